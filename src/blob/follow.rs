//! Reading an extent while it is being written (P15), or after.

use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use super::BLOCK_BYTES;
use super::error::{Error, Result};
use super::extent::Progress;
use super::locks::Item;
use super::store::{BlobStore, blocking, in_memory};
use super::sums::{Checked, ReadFault, is_damage};
use crate::disk;
use crate::oci::ExtentId;

const READ_BYTES: u64 = 256 * 1024;

/// Reads an extent's bytes in order, at the writer's pace. Needs no lock and holds up nobody.
#[derive(Debug)]
pub struct ExtentFollower {
    id: ExtentId,
    source: Source,
    position: u64,
    progress: watch::Receiver<Progress>,
}

#[derive(Debug, Clone)]
enum Source {
    /// Being written when it was opened.
    Growing(Arc<File>),
    /// Synced; the record has its block sums.
    Synced(Checked),
}

impl BlobStore {
    /// Follows an extent file while it is being written here (fan-out, P15) or after: reads from `offset` in the extent.
    ///
    /// May be called as soon as [`Self::stage`] returned, any number of times. Removing the extent does not disturb those
    /// who follow it.
    ///
    /// # Errors
    ///
    /// - [`Error::ExtentUnknown`] if the extent is neither being written nor synced here.
    /// - [`Error::Io`] if the disk cannot be read.
    pub async fn follow(&self, id: ExtentId, offset: u64) -> Result<ExtentFollower> {
        // The lock keeps `stage` from putting another file under the name between the two looks.
        let held = self.shared.locks.lock(Item::Extent(id)).await;
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            let _held = held;
            let path = shared.layout.extent(id);
            let active = shared.active().get(&id).map(|active| active.progress.clone());
            let (source, progress) = if let Some(progress) = active {
                let file = File::open(&path).map_err(|source| Error::Io { doing: "open", path, source })?;
                (Source::Growing(Arc::new(file)), progress)
            } else {
                let (record, checked) = shared.open_extent_checked(id)?.ok_or(Error::ExtentUnknown { id })?;
                (Source::Synced(checked), watch::channel(Progress { written: record.length, ended: true }).1)
            };
            Ok(ExtentFollower { id, source, position: offset, progress })
        })
        .await
    }
}

impl ExtentFollower {
    /// The next bytes (at most 256 KiB); waits for the writer; `None` at the end. Those of a synced extent are checked.
    ///
    /// # Errors
    ///
    /// - [`Error::ExtentAbandoned`] if the writer went away before its end.
    /// - [`Error::ExtentUnknown`] if the bytes are damaged or were trimmed away: another holder has them.
    /// - [`Error::Io`] if the disk cannot be read.
    ///
    /// # Cancel safety
    ///
    /// A dropped call loses nothing: the next one reads the same bytes.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        let position = self.position;
        let waited = self.progress.wait_for(|progress| progress.written > position || progress.ended).await;
        let written = waited.map_err(|_| Error::ExtentAbandoned { id: self.id })?.written;
        if position >= written {
            return Ok(None);
        }
        let (id, source) = (self.id, self.source.clone());
        let bytes = blocking(move || read(&source, position, written).map_err(|fault| fault_error(id, fault))).await?;
        self.position += bytes.len() as u64;
        Ok(Some(bytes))
    }

    /// How far the writer has come, for those who watch its pace.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }
}

/// Reads from `position` to at most `written`, checked where the sums are known.
fn read(source: &Source, position: u64, written: u64) -> Result<Bytes, ReadFault> {
    match source {
        Source::Growing(file) => disk::read_exact_at(file, position, in_memory(READ_BYTES.min(written - position)))
            .map(Bytes::from)
            .map_err(ReadFault::Io),
        Source::Synced(checked) => {
            let block = position / BLOCK_BYTES;
            let bytes = Bytes::from(checked.read(block, 1)?);
            Ok(bytes.slice(in_memory(position - block * BLOCK_BYTES)..))
        }
    }
}

fn fault_error(id: ExtentId, fault: ReadFault) -> Error {
    match fault {
        // A file that is shorter than it was has been trimmed.
        ReadFault::Damaged { .. } => Error::ExtentUnknown { id },
        ReadFault::Io(source) if is_damage(&source) => Error::ExtentUnknown { id },
        ReadFault::Io(source) => Error::Io { doing: "read extent", path: id.to_string().into(), source },
    }
}
