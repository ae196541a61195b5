//! What is left when the quorum is lost for good: one node's data directory, offline, becomes a cluster of its own.
//!
//! All that the directory's log holds is kept, whether it was known as committed or not: whatever was acknowledged and
//! reached this node is in it. What only the lost nodes had is lost.

use std::path::Path;

use openraft::storage::{RaftLogReader, RaftLogStorage, RaftLogStorageExt};
use std::sync::Arc;

use crate::topology::{ClusterId, NodeId, NodeRecord};

use super::command::{Command, Proposal, RequestId};
use super::config::Config;
use super::log_memory::CacheLimits;
use super::log_space::LogSpace;
use super::log_store::{LogLimits, LogStore};
use super::snapshot::SnapshotDir;
use super::types::{Entry, Logged, Members, Payload, StoredMembership, Vote};
use super::wal::{self, Ballot, EntryId};
use super::{FEATURE_LEVEL_MAX, StartError, State};

/// Entries read at once.
const PAGE: u64 = 256;

/// What a data directory still knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remains {
    /// The last log index; of several survivors, the one with the highest is to be recovered.
    pub last_index: u64,
    /// The term of the last entry; where it differs, the higher one goes before the higher index.
    pub last_term: u64,
    /// The nodes as the log has them.
    pub nodes: Vec<NodeRecord>,
    /// Repositories in the state.
    pub repositories: usize,
    /// Blobs and manifests that are linked.
    pub contents: usize,
    /// The hash of the state.
    pub state_hash: u128,
}

/// An opened data directory, with all of its log applied.
pub(super) struct Survivor {
    pub(super) log: LogStore,
    pub(super) snapshots: SnapshotDir,
    pub(super) state: State,
    pub(super) membership: StoredMembership,
    pub(super) last: EntryId,
    ballot: Option<Ballot>,
}

pub(super) fn broken(reason: impl std::fmt::Display) -> StartError {
    StartError::Raft { reason: reason.to_string() }
}

/// Opens log and snapshots and replays all of the log.
pub(super) async fn open(data_dir: &Path, cluster: ClusterId) -> Result<Survivor, StartError> {
    let dir = data_dir.to_owned();
    let config = Config::default();
    let limits = LogLimits {
        segment_bytes: config.segment_bytes,
        cache: CacheLimits { entries: config.log_cache_entries, bytes: config.log_cache_bytes },
    };
    let opened = tokio::task::spawn_blocking(move || -> Result<_, StartError> {
        let log_dir = dir.join("raft");
        if !wal::is_there(&log_dir)? {
            return Err(StartError::LogGone { dir: log_dir });
        }
        let (snapshots, loaded) = SnapshotDir::open(&dir.join("snapshots"), cluster)?;
        let space = std::sync::Arc::new(LogSpace::unreserved(&log_dir));
        Ok((LogStore::open(&log_dir, limits, &space, |_| {})?, snapshots, loaded))
    });
    let (mut log, snapshots, loaded) = opened.await.map_err(broken)??;
    let (from, mut state, mut membership) = match loaded {
        Some((header, state)) => (header.last.map_or(0, |last| last.index + 1), state, header.membership()),
        None => (0, State::default(), StoredMembership::default()),
    };
    if let Some(purged) = log.purged().filter(|purged| from <= purged.index) {
        return Err(StartError::SnapshotLost { purged: purged.index });
    }
    let bounds = log.get_log_state().await.map_err(broken)?;
    let last = bounds.last_log_id.map(EntryId::from).ok_or_else(|| broken("the log is empty"))?;
    let mut reader = log.reader();
    let mut next = from;
    while next <= last.index {
        let end = (next + PAGE).min(last.index + 1);
        for entry in reader.try_get_log_entries(next..end).await.map_err(broken)? {
            replay(&mut state, &entry);
            if let Payload::Membership(members) = &entry.payload {
                membership = StoredMembership::new(Some(entry.log_id), members.clone());
            }
        }
        next = end;
    }
    if state.feature_level() > FEATURE_LEVEL_MAX {
        return Err(broken("the cluster has raised its feature level above what this binary knows"));
    }
    let ballot = reader.read_vote().await.map_err(broken)?.map(|vote| Ballot::from(&vote));
    Ok(Survivor { log, snapshots, state, membership, last, ballot })
}

fn replay(state: &mut State, entry: &Entry) {
    let index = entry.log_id.index;
    match &entry.payload {
        Payload::Blank => state.set_applied(index),
        Payload::Normal(logged) => drop(state.apply(index, &logged.0)),
        Payload::Membership(_) => state.set_membership(index),
    }
}

/// Looks into a data directory, without changing it.
///
/// # Errors
///
/// [`StartError`] if its log or snapshots cannot be read.
pub async fn inspect(data_dir: &Path, cluster: ClusterId) -> Result<Remains, StartError> {
    let Survivor { state, last, .. } = open(data_dir, cluster).await?;
    Ok(Remains {
        last_index: last.index,
        last_term: last.term,
        nodes: state.topology().nodes.values().cloned().collect(),
        repositories: state.repositories.len(),
        contents: state.contents.len(),
        state_hash: state.hash(),
    })
}

/// Makes `me` the only member: entries at the end of its log take every other node out of the table and give the one vote
/// to it. The next start elects it and applies them. Repeating it does no harm.
///
/// # Errors
///
/// [`StartError`]; what was not written was not done.
pub async fn take_over(
    data_dir: &Path,
    (cluster, me): (ClusterId, NodeId),
    random: impl Fn() -> u128,
) -> Result<(), StartError> {
    let Survivor { mut log, state, last, ballot, .. } = open(data_dir, cluster).await?;
    if state.node(me).is_none() {
        return Err(broken(format!("node {me} was removed from the cluster: recover another one")));
    }
    let term = last.term.max(ballot.map_or(0, |ballot| ballot.term)) + 1;
    let now = state.log_time();
    let others = state.topology().nodes.keys().copied().filter(|node| *node != me).collect::<Vec<_>>();
    let removals = others.into_iter().map(|node| {
        let command = Command::RemoveNode { node };
        let proposal = Proposal { id: RequestId(random()), issued: now, at: now, wall_seconds: 0, command };
        Payload::Normal(Logged(Arc::new(proposal)))
    });
    let alone = Members { voters: vec![[me.0].into()], all: [me.0].into() };
    let payloads = removals.chain([Payload::Membership(alone.into())]);
    let entries = payloads
        .zip(last.index + 1..)
        .map(|(payload, index)| Entry { log_id: EntryId { term, node: me.0, index }.into(), payload });
    let entries: Vec<Entry> = entries.collect();
    // The vote first: entries of a term that this node never voted in would be no log.
    log.save_vote(&Vote::from(Ballot { term, node: me.0, granted: true })).await.map_err(broken)?;
    log.blocking_append(entries).await.map_err(broken)
}
