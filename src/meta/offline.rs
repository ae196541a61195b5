//! The agreed state of a node that does not run, put together from its snapshots and its log; nothing is changed.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::topology::ClusterId;

use super::State;
use super::snapshot::Header;
use super::snapshot_file;
use super::types::{Payload, decode_entry};
use super::wal::{self, EntryId, Place, Recovered};

/// What a node's snapshots and log say while it does not run.
#[derive(Debug, Default)]
pub struct Offline {
    /// The state after the last entry that is known to be committed; `None` if it cannot be put together.
    pub state: Option<State>,
    /// The log index of that entry.
    pub applied: u64,
    /// The last log index of each good snapshot, oldest first.
    pub snapshots: Vec<u64>,
    /// The first and the last log index that the log holds; `None` if it holds none.
    pub log: Option<(u64, u64)>,
    /// Entries that were applied on top of a snapshot.
    pub replayed: u64,
    /// What is wrong, in words.
    pub problems: Vec<String>,
}

impl Offline {
    /// Reads snapshots and log of the data directory, verifies both, applies what is committed, and checks the result: the
    /// hash against its rows, the derived tables, and each newer snapshot against the log that led to it. Blocks.
    #[must_use]
    pub fn read(data_dir: &Path, cluster: ClusterId) -> Self {
        let mut found = Self::default();
        let mut snapshots = found.read_snapshots(&data_dir.join("snapshots"), cluster);
        let log_dir = data_dir.join("raft");
        let log = match wal::inspect(&log_dir) {
            Ok(log) => log,
            Err(error) => {
                found.problem(&error);
                return found;
            }
        };
        let index = |entry: Option<&(EntryId, Place)>| entry.map(|(id, _)| id.index);
        found.log = index(log.entries.front()).zip(index(log.entries.back()));
        let base = (!snapshots.is_empty()).then(|| snapshots.remove(0));
        let (last, mut state) = base.map_or((0, State::default()), |(header, state)| (last_index(&header), state));
        state.set_applied(last);
        match found.replay(&log_dir, &log, (last, &mut state), &snapshots) {
            Ok(applied) => {
                found.applied = applied;
                found.problems.extend(state.check().iter().map(ToString::to_string));
                found.state = Some(state);
            }
            Err(error) => found.problem(error.as_ref()),
        }
        found
    }

    fn problem(&mut self, error: &dyn std::error::Error) {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(source) = cause {
            text.push_str(": ");
            text.push_str(&source.to_string());
            cause = source.source();
        }
        self.problems.push(text);
    }

    /// The good snapshots, oldest first.
    fn read_snapshots(&mut self, dir: &Path, cluster: ClusterId) -> Vec<(Header, State)> {
        let mut paths: Vec<PathBuf> = match fs::read_dir(dir) {
            Ok(entries) => entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                self.problem(&error);
                Vec::new()
            }
        };
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "snap"));
        paths.sort();
        let mut good = Vec::new();
        for path in paths {
            match snapshot_file::load(&path, cluster) {
                Ok((header, state)) => {
                    self.snapshots.push(last_index(&header));
                    good.push((header, state));
                }
                Err(error) => self.problem(&error),
            }
        }
        good
    }

    /// Applies the committed entries after `last`; returns the index of the last one.
    fn replay(
        &mut self,
        dir: &Path,
        log: &Recovered,
        (mut last, state): (u64, &mut State),
        later: &[(Header, State)],
    ) -> Result<u64, Box<dyn std::error::Error>> {
        let hashes: BTreeMap<u64, u128> =
            later.iter().map(|(header, state)| (last_index(header), state.hash())).collect();
        let known = hashes.keys().next_back().copied().unwrap_or(last);
        let committed = log.committed.map_or(0, |id| id.index).max(known);
        if let Some(purged) = log.purged.filter(|purged| purged.index > last) {
            return Err(
                format!("no good snapshot reaches log entry {}, up to which the log was purged", purged.index).into()
            );
        }
        let mut segments: BTreeMap<u64, File> = BTreeMap::new();
        let from = last;
        for (id, place) in log.entries.iter().filter(|(id, _)| id.index > from && id.index <= committed) {
            let file = match segments.entry(place.segment) {
                Entry::Occupied(open) => open.into_mut(),
                Entry::Vacant(free) => free.insert(File::open(dir.join(format!("{:020}.wal", place.segment)))?),
            };
            let entry = decode_entry(&wal::read_entry(file, *place)?)?;
            match &entry.payload {
                Payload::Blank => state.set_applied(id.index),
                Payload::Normal(logged) => drop(state.apply(id.index, &logged.0)),
                Payload::Membership(_) => state.set_membership(id.index),
            }
            last = id.index;
            self.replayed += 1;
            if hashes.get(&last).is_some_and(|hash| *hash != state.hash()) {
                let text = format!("the log leads to another state at index {last} than the snapshot there holds");
                self.problems.push(text);
            }
        }
        if last < committed {
            self.problems.push(format!("the log ends at entry {last}, and up to {committed} was committed"));
        }
        Ok(last)
    }
}

fn last_index(header: &Header) -> u64 {
    header.last.map_or(0, |last| last.index)
}
