//! Extents: runs of an upload session's bytes, written once by one attempt (P24).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::watch;

use super::error::{Error, Result};
use super::layout::RECORD_SUFFIX;
use super::locks::{Held, Item};
use super::pump::Pump;
use super::record::ExtentRecord;
use super::sink::{Sink, SinkOptions};
use super::space::Demand;
use super::store::{BlobStore, Shared, blocking, remove_quietly};
use crate::oci::{ExtentId, HashState, Hasher};

/// One extent as it lies synced on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredExtent {
    /// The extent.
    pub id: ExtentId,
    /// Bytes of this extent alone.
    pub length: u64,
    /// State of the session's hash after this extent's last byte.
    pub hash_state: HashState,
}

/// Progress of an extent that others follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes in the file, from the extent's start.
    pub written: u64,
    /// Whether no more bytes come. The writer may still be syncing them.
    pub ended: bool,
}

/// An extent that is being written.
#[derive(Debug)]
pub(super) struct Active {
    attempt: u64,
    pub(super) progress: watch::Receiver<Progress>,
}

/// Writes one extent's bytes in order.
///
/// Dropped before [`Self::finish`], it takes the file away and fails those who follow it.
#[derive(Debug)]
pub struct ExtentWriter {
    shared: Arc<Shared>,
    id: ExtentId,
    attempt: u64,
    first: bool,
    pump: Pump,
    progress: watch::Receiver<Progress>,
}

impl BlobStore {
    /// Starts a new extent file; `resume` is the session's hash state before its first byte (initial state for offset 0).
    ///
    /// An extent of the same id that is here or being written (an earlier try of the same attempt) is removed first; its
    /// writer's later calls fail.
    ///
    /// # Errors
    ///
    /// - [`Error::NoSpace`] if the disk is past its high watermark.
    /// - [`Error::DiskUnwritable`] if the disk failed a moment ago.
    /// - [`Error::HashState`] if `resume` is malformed.
    pub async fn stage(&self, id: ExtentId, resume: HashState) -> Result<ExtentWriter> {
        static ATTEMPTS: AtomicU64 = AtomicU64::new(0);
        let held = self.shared.locks.lock(Item::Extent(id)).await;
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            let hasher = Hasher::resume(&resume).map_err(|_| Error::HashState)?;
            shared.space.admit(Demand::Upload)?;
            shared.remove_extent(&held, id);
            let (sender, progress) = watch::channel(Progress { written: 0, ended: false });
            let options = SinkOptions { hasher, checkpoints: true, progress: Some(sender) };
            let sink = Sink::create(Arc::clone(&shared), shared.layout.extent(id), options)?;
            let attempt = ATTEMPTS.fetch_add(1, Ordering::Relaxed);
            let first = resume == HashState::initial(resume.algorithm);
            shared.active().insert(id, Active { attempt, progress: progress.clone() });
            Ok(ExtentWriter { shared, id, attempt, first, pump: Pump::new(sink), progress })
        })
        .await
    }

    /// The synced extent, if this node has it; it is then durable, and pinned against [`Self::delete`] for one period.
    ///
    /// `None` while a writer is open.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the disk cannot be read.
    pub async fn extent(&self, id: ExtentId) -> Result<Option<StoredExtent>> {
        let held = self.shared.locks.lock(Item::Extent(id)).await;
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            let Some((record, file)) = shared.open_extent(id)? else { return Ok(None) };
            // After a crash of the process the names may be only in the page cache.
            if !shared.pins.is_pinned(held.item()) {
                shared.sync(&file, &shared.layout.extent(id))?;
                shared.sync_dir(&shared.layout.extents())?;
            }
            shared.pins.pin(held.item().clone());
            Ok(Some(record.stored()))
        })
        .await
    }

    /// Removes extents, whether synced or being written; those that are not here count as removed.
    ///
    /// # Errors
    ///
    /// [`Error::Stopped`] if the process is stopping.
    pub async fn remove_extents(&self, ids: &[ExtentId]) -> Result<()> {
        for id in ids {
            let held = self.shared.locks.lock(Item::Extent(*id)).await;
            let (shared, id) = (Arc::clone(&self.shared), *id);
            blocking(move || {
                shared.remove_extent(&held, id);
                shared.pins.forget(held.item());
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// Lists every extent of which anything lies here, in order: synced, being written, or left behind by a crash.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the directory cannot be read.
    pub async fn list_extents(&self) -> Result<Vec<ExtentId>> {
        let shared = Arc::clone(&self.shared);
        blocking(move || shared.list_extents()).await
    }
}

impl Shared {
    pub(super) fn active(&self) -> std::sync::MutexGuard<'_, std::collections::HashMap<ExtentId, Active>> {
        self.active.lock().expect("no panic while held")
    }

    /// Removes what lies here of an extent whose lock is held. Not synced: a name that comes back is reaped later.
    pub(super) fn remove_extent(&self, held: &Held, id: ExtentId) {
        debug_assert_eq!(held.item(), &Item::Extent(id));
        self.active().remove(&id);
        // The record first: bytes without a record do not count, a record without bytes neither.
        remove_quietly(&self.layout.record(id));
        remove_quietly(&self.layout.extent(id));
        self.index.remove_extent(id);
    }

    pub(super) fn list_extents(&self) -> Result<Vec<ExtentId>> {
        let path = self.layout.extents();
        let failed = |source: io::Error| Error::Io { doing: "list", path: path.clone(), source };
        let mut ids = BTreeSet::new();
        for entry in fs::read_dir(&path).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let Some(name) = name.to_str() else { continue };
            ids.extend(name.strip_suffix(RECORD_SUFFIX).unwrap_or(name).parse::<ExtentId>().ok());
        }
        Ok(ids.into_iter().collect())
    }

    /// Syncs an extent's bytes and its record, then both names; only then it counts.
    fn seal_extent(&self, held: &Held, writer: (u64, bool), mut sink: Box<Sink>) -> Result<StoredExtent> {
        let Item::Extent(id) = *held.item() else { unreachable!("an extent's lock guards it") };
        let (attempt, first) = writer;
        // Another attempt began anew, or the extent was removed.
        if self.active().get(&id).is_none_or(|active| active.attempt != attempt) || !sink.is_in_place() {
            return Err(Error::ExtentUnknown { id });
        }
        let sealed = match sink.seal() {
            Ok(sealed) => sealed,
            Err(error) => {
                sink.discard();
                return Err(error);
            }
        };
        let record = ExtentRecord {
            id,
            length: sealed.length,
            hash_state: sealed.hasher.state(),
            first,
            checkpoints: sealed.checkpoints,
            sums: sealed.sums,
        };
        // The record gets its name only once the bytes are synced: the name says that they are.
        let recorded = self.write_temporary(&record.encode()).and_then(|(file, path)| {
            Self::both(|| self.sync(sink.file(), sink.path()), || self.sync(&file, &path))
                .and_then(|()| self.rename_durable(&path, &self.layout.record(id)))
                .inspect_err(|_| remove_quietly(&path))
        });
        if let Err(error) = recorded {
            remove_quietly(&self.layout.record(id));
            sink.discard();
            return Err(error);
        }
        sink.keep();
        self.index.put_extent(id, record.length);
        self.pins.pin(held.item().clone());
        self.forget_attempt(id, attempt);
        Ok(record.stored())
    }

    fn forget_attempt(&self, id: ExtentId, attempt: u64) {
        let mut active = self.active();
        if active.get(&id).is_some_and(|active| active.attempt == attempt) {
            active.remove(&id);
        }
    }
}

impl ExtentWriter {
    /// Takes the next bytes, of any length.
    ///
    /// They are written in batches of 256 KiB; at most two batches are in memory. A batch that failed shows at a later call.
    ///
    /// # Errors
    ///
    /// - [`Error::NoSpace`] if the disk is full; the file is gone.
    /// - [`Error::Ended`] if an earlier call failed.
    ///
    /// # Cancel safety
    ///
    /// A dropped call may or may not have taken the bytes; only [`Self::finish`] makes sense after it.
    pub async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.pump.write(bytes).await
    }

    /// Writes out the bytes taken so far, so that followers see them; they are not synced.
    ///
    /// # Errors
    ///
    /// As [`Self::write`].
    pub async fn flush(&mut self) -> Result<()> {
        self.pump.flush().await
    }

    /// Bytes written so far (a follower may read up to here).
    #[must_use]
    pub fn written(&self) -> u64 {
        self.progress.borrow().written
    }

    /// Ends the extent: followers see the end, then bytes, record and names are synced.
    ///
    /// # Errors
    ///
    /// - [`Error::ExtentUnknown`] if the extent was removed or staged anew meanwhile.
    /// - [`Error::NoSpace`], [`Error::Io`]: nothing is kept.
    ///
    /// # Cancel safety
    ///
    /// A dropped call leaves either nothing or the synced extent.
    pub async fn finish(mut self) -> Result<StoredExtent> {
        let sink = self.pump.take().await?;
        sink.end();
        let held = self.shared.locks.lock(Item::Extent(self.id)).await;
        let (shared, writer) = (Arc::clone(&self.shared), (self.attempt, self.first));
        blocking(move || shared.seal_extent(&held, writer, sink)).await
    }
}

impl Drop for ExtentWriter {
    fn drop(&mut self) {
        self.shared.forget_attempt(self.id, self.attempt);
    }
}
