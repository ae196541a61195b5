//! Applies committed entries to a private copy of the state and publishes it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use openraft::OptionalSend;
use openraft::storage::{ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine};

use crate::topology::ClusterId;

use super::command::Response;
use super::log_space::LogSpace;
use super::published::Published;
use super::snapshot::{Header, SnapshotDir, SnapshotFile};
use super::snapshot_file::load;
use super::types::{Entry, LogId, Payload, Snapshot, SnapshotMeta, StoredMembership, TypeConfig};
use super::wal::EntryId;
use super::{FEATURE_LEVEL_MAX, State};

/// Entries applied before the state is published and their clients are answered.
const PUBLISH_EVERY: usize = 128;
/// How long a snapshot that could not be written waits for another try.
const SNAPSHOT_RETRY: Duration = Duration::from_secs(5);

/// This node's copy of the agreed state.
pub(super) struct StateMachine {
    cluster: ClusterId,
    state: State,
    last_applied: Option<LogId>,
    membership: StoredMembership,
    published: Arc<Published>,
    snapshots: Arc<SnapshotDir>,
    /// For when the disk is full.
    space: Option<Arc<LogSpace>>,
    /// Entries may be left out: consensus' own test suite does.
    #[cfg(test)]
    pub(super) may_jump: bool,
}

type Answers = Vec<(ApplyResponder<TypeConfig>, Option<Response>)>;

impl StateMachine {
    /// Begins with a loaded snapshot, or with nothing.
    pub(super) fn new(cluster: ClusterId, snapshots: Arc<SnapshotDir>, loaded: Option<(Header, State)>) -> Self {
        let (last_applied, membership, state) = match loaded {
            Some((header, mut state)) => {
                state.set_applied(header.last.map_or(0, |last| last.index));
                (header.last.map(LogId::from), header.membership(), state)
            }
            None => (None, StoredMembership::default(), State::default()),
        };
        let index = last_applied.map_or(0, |id| id.index);
        let published = Arc::new(Published::new(index, state.clone()));
        Self {
            cluster,
            state,
            last_applied,
            membership,
            published,
            snapshots,
            space: None,
            #[cfg(test)]
            may_jump: false,
        }
    }

    /// Uses space that was put by when the disk is full.
    pub(super) fn with_space(self, space: Arc<LogSpace>) -> Self {
        Self { space: Some(space), ..self }
    }

    pub(super) fn published(&self) -> Arc<Published> {
        self.published.clone()
    }

    fn follows(&self, index: u64) -> bool {
        #[cfg(test)]
        if self.may_jump {
            return true;
        }
        index == self.last_applied.map_or(0, |last| last.index + 1)
    }

    fn apply_entry(&mut self, entry: &Entry) -> io::Result<Option<Response>> {
        let index = entry.log_id.index;
        if !self.follows(index) {
            let last = self.last_applied.map(EntryId::from);
            return Err(io::Error::other(format!("entry {index} does not follow {last:?}, the last one applied")));
        }
        let response = match &entry.payload {
            Payload::Blank => {
                self.state.set_applied(index);
                None
            }
            Payload::Normal(logged) => Some(self.state.apply(index, &logged.0)),
            Payload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                self.state.set_membership(index);
                None
            }
        };
        self.last_applied = Some(entry.log_id);
        if self.state.feature_level() > FEATURE_LEVEL_MAX {
            return Err(io::Error::other("the cluster has raised its feature level above what this binary knows"));
        }
        Ok(response)
    }

    fn publish(&self, hashes: &mut Vec<(u64, u128)>, answers: &mut Answers) {
        let index = self.last_applied.map_or(0, |id| id.index);
        self.published.publish(index, Arc::new(self.state.clone()), hashes);
        // Whoever is answered must find what it wrote here.
        for (responder, response) in answers.drain(..) {
            responder.send(response);
        }
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.last_applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut hashes = Vec::new();
        let mut answers = Vec::new();
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let response = self.apply_entry(&entry)?;
            hashes.push((entry.log_id.index, self.state.hash()));
            answers.extend(responder.map(|responder| (responder, response)));
            if hashes.len() >= PUBLISH_EVERY {
                self.publish(&mut hashes, &mut answers);
            }
        }
        if !hashes.is_empty() {
            self.publish(&mut hashes, &mut answers);
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            state: self.state.clone(),
            header: Header::new(&self.state, self.last_applied, &self.membership),
            snapshots: self.snapshots.clone(),
            space: self.space.clone(),
        }
    }

    /// Swaps in a snapshot. One that came over the wire was verified before it got here; an error from here is fatal.
    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotFile) -> io::Result<()> {
        let (snapshots, cluster) = (self.snapshots.clone(), self.cluster);
        let (last, membership) = (meta.last_log_id, meta.last_membership.clone());
        let state = tokio::task::spawn_blocking(move || -> Result<State, super::snapshot::Error> {
            let (header, state) = match snapshot.state {
                Some(state) => (Header::new(&state, last, &membership), Arc::unwrap_or_clone(state)),
                None => load(&snapshot.path, cluster)?,
            };
            snapshots.adopt(header, &snapshot.path)?;
            Ok(state)
        })
        .await
        .map_err(io::Error::other)?
        .map_err(io::Error::other)?;
        self.state = state;
        self.last_applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        let index = self.last_applied.map_or(0, |id| id.index);
        self.state.set_applied(index);
        self.publish(&mut vec![(index, self.state.hash())], &mut Vec::new());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        Ok(self.snapshots.newest().map(|(header, file)| Snapshot { meta: header.meta(), snapshot: file }))
    }
}

/// Writes a snapshot of the state as it was when the builder was made (R10).
pub(super) struct Builder {
    state: State,
    header: Header,
    snapshots: Arc<SnapshotDir>,
    space: Option<Arc<LogSpace>>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotFile;

    /// Retried until it succeeds: a full disk delays the purge of the log and nothing else (I12).
    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        loop {
            let (state, header, snapshots) = (self.state.clone(), self.header.clone(), self.snapshots.clone());
            let written = tokio::task::spawn_blocking(move || snapshots.write(&state, header)).await;
            match written.map_err(io::Error::other)? {
                Ok(file) => return Ok(Snapshot { meta: self.header.meta(), snapshot: file }),
                Err(error) => {
                    tracing::error!(%error, "snapshot could not be written, trying again");
                    // A snapshot lets the log be cut, which gives more space than it takes.
                    if error.is_no_space() && self.space.as_ref().is_some_and(|space| space.relieve()) {
                        continue;
                    }
                    tokio::time::sleep(SNAPSHOT_RETRY).await;
                }
            }
        }
    }
}
