//! The raft log as consensus uses it: writes go to the WAL's thread, reads come from memory.

use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{OptionalSend, entry::RaftEntry as _};
use tokio::sync::oneshot;

use super::log_memory::{CacheLimits, LogMemory};
use super::log_space::LogSpace;
use super::types::{Entry, LogId, TypeConfig, Vote, encode_entry};
use super::wal::{self, Done, EntryId, Hooks, Sizes, Wal, Write};

/// Bytes of entries read for one append to a follower.
const READ_BYTES_MAX: usize = 2 << 20;
/// Bytes of entries after which an append goes on in a further write: recovery refuses batches beyond a limit.
const WRITE_BYTES_MAX: usize = 4 << 20;

/// Sizes of the log in files and memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogLimits {
    pub(super) segment_bytes: u64,
    pub(super) cache: CacheLimits,
}

/// The log of this node; dropping it finishes what was submitted and ends the writer.
pub(super) struct LogStore {
    memory: Arc<LogMemory>,
    wal: Wal,
}

/// Reads the log; cheap to make.
#[derive(Debug, Clone)]
pub(super) struct LogReader(Arc<LogMemory>);

impl LogStore {
    /// Opens the log in `dir`; blocks while it reads it. `space` is for when the disk is full; `synced` hears how long each sync took.
    ///
    /// # Errors
    ///
    /// [`wal::Error`]: the node must not start.
    pub(super) fn open(
        dir: &Path,
        limits: LogLimits,
        space: &Arc<LogSpace>,
        synced: impl Fn(Duration) + Send + 'static,
    ) -> Result<Self, wal::Error> {
        let recovered = wal::recover(dir)?;
        let memory = Arc::new(LogMemory::new(&recovered, limits.cache));
        let placed = memory.clone();
        let (relief, starved) = (Arc::clone(space), Arc::clone(space));
        let hooks = Hooks {
            files: memory.files.clone(),
            placed: Box::new(move |places| placed.placed(places)),
            synced: Box::new(synced),
            relieve: Box::new(move || relief.relieve()),
            starving: Box::new(move |starving| starved.set_starving(starving)),
        };
        let sizes = Sizes { segment_bytes: limits.segment_bytes };
        let wal = Wal::start(dir, &recovered, sizes, hooks)
            .map_err(|source| wal::Error::Io { dir: dir.to_owned(), source })?;
        Ok(Self { memory, wal })
    }

    pub(super) fn reader(&self) -> LogReader {
        LogReader(self.memory.clone())
    }

    /// Returns the last entry that was purged.
    pub(super) fn purged(&self) -> Option<EntryId> {
        self.memory.bounds().0
    }

    async fn submit_and_wait(&self, write: impl FnOnce(Done) -> Write) -> io::Result<()> {
        let (sender, receiver) = oneshot::channel();
        let done: Done = Box::new(move |result| {
            // The raft core may be gone.
            sender.send(result).ok();
        });
        self.wal.submit(write(done)).await?;
        receiver.await.map_err(|_| io::Error::other("log writer ended"))?
    }
}

impl RaftLogReader<TypeConfig> for LogReader {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        self.0.read(range).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.0.read_limited(start, end, READ_BYTES_MAX).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.0.ballot().map(Vote::from))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let (purged, last) = self.memory.bounds();
        Ok(LogState { last_purged_log_id: purged.map(LogId::from), last_log_id: last.map(LogId::from) })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        self.reader()
    }

    /// Returns when the vote is synced (R1).
    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let ballot = vote.into();
        self.submit_and_wait(|done| Write::Ballot { ballot, done }).await?;
        self.memory.set_ballot(ballot);
        Ok(())
    }

    /// Written in order but without a sync of its own: it only has to be no later than the log (P2).
    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let committed = committed.map(EntryId::from);
        self.memory.set_committed(committed);
        self.wal.submit(Write::Committed { committed }).await
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        // A torn tail may have taken entries that a lazily written record after them would name; the stream's order makes
        // that impossible, and the bound costs nothing.
        let (_, last) = self.memory.bounds();
        Ok(self.memory.committed().min(last).map(LogId::from))
    }

    /// Returns when the entries are readable (R3); `callback` hears when they are synced, in order (R4). Many are written in
    /// parts; a part that fails fails those after it too, so the last one answers for all.
    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut encoded = Vec::new();
        let mut size = 0;
        for entry in entries {
            if size >= WRITE_BYTES_MAX {
                let part = std::mem::take(&mut encoded);
                self.wal.submit(Write::Append { entries: part, done: Box::new(|_| {}) }).await?;
                size = 0;
            }
            let id = EntryId::from(entry.log_id());
            let bytes = encode_entry(&entry);
            self.memory.push(id, entry, bytes.len())?;
            size += bytes.len();
            encoded.push((id, bytes));
        }
        let done: Done = Box::new(move |result| callback.io_completed(result));
        self.wal.submit(Write::Append { entries: encoded, done }).await
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let after = last_log_id.map(EntryId::from);
        self.memory.truncate(after);
        self.submit_and_wait(|done| Write::Truncate { after, done }).await
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        let upto = EntryId::from(log_id);
        self.memory.purge(upto);
        self.submit_and_wait(|done| Write::Purge { upto, done }).await
    }
}

#[cfg(test)]
mod tests {
    use openraft::storage::RaftLogStorageExt as _;

    use crate::meta::command::{Command, LogTime, Proposal, RequestId};
    use crate::meta::types::{Logged, Payload};

    use super::*;

    fn entry(index: u64, principal: String) -> Entry {
        let command = Command::LinkBlob {
            repository: "app".parse().unwrap(),
            digest: crate::oci::Digest::of(crate::oci::Algorithm::Sha256, b"x"),
            size: 1,
            principal,
        };
        let (id, issued) = (RequestId(index.into()), LogTime(0));
        let proposal = Proposal { id, issued, at: issued, wall_seconds: 0, command };
        Entry {
            log_id: EntryId { term: 1, node: 1, index }.into(),
            payload: Payload::Normal(Logged(Arc::new(proposal))),
        }
    }

    #[tokio::test]
    async fn an_append_of_any_size_is_written_in_batches_that_recovery_accepts() {
        let dir = tempfile::tempdir().unwrap();
        let limits = LogLimits { segment_bytes: 64 << 10, cache: CacheLimits { entries: 1, bytes: 1 } };
        let space = Arc::new(LogSpace::open(dir.path(), 0));
        let mut log = LogStore::open(dir.path(), limits, &space, |_| {}).unwrap();
        let text = "x".repeat(1 << 20);
        log.blocking_append((0..20).map(|index| entry(index, text.clone()))).await.unwrap();
        drop(log);
        // Every batch was too large for a segment of the usual size, and got one of its own.
        let sizes = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
        assert!(sizes.max().unwrap() < 2 * WRITE_BYTES_MAX as u64);
        assert_eq!(wal::recover(dir.path()).unwrap().entries.len(), 20);
    }
}
