//! Reading an extent while it is being written (P15), or after.

use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use super::error::{Error, Result};
use super::extent::Progress;
use super::locks::Item;
use super::store::{BlobStore, blocking, in_memory};
use super::sums::is_damage;
use crate::disk;
use crate::oci::ExtentId;

const READ_BYTES: u64 = 256 * 1024;

/// Reads an extent's bytes in order, at the writer's pace. Needs no lock and holds up nobody.
#[derive(Debug)]
pub struct ExtentFollower {
    id: ExtentId,
    file: Arc<File>,
    position: u64,
    progress: watch::Receiver<Progress>,
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
            let (file, progress) = if let Some(progress) = active {
                (File::open(&path).map_err(|source| Error::Io { doing: "open", path, source })?, progress)
            } else {
                let (record, file) = shared.open_extent(id)?.ok_or(Error::ExtentUnknown { id })?;
                (file, watch::channel(Progress { written: record.length, ended: true }).1)
            };
            Ok(ExtentFollower { id, file: Arc::new(file), position: offset, progress })
        })
        .await
    }
}

impl ExtentFollower {
    /// The next bytes (at most 256 KiB); waits for the writer; `None` at the end.
    ///
    /// # Errors
    ///
    /// - [`Error::ExtentAbandoned`] if the writer went away before its end.
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
        let (id, file) = (self.id, Arc::clone(&self.file));
        let wanted = in_memory(READ_BYTES.min(written - position));
        let bytes = blocking(move || {
            disk::read_exact_at(&file, position, wanted).map_err(|source| {
                // Only a trim makes the file shorter than it was.
                if is_damage(&source) { Error::ExtentUnknown { id } } else { read_error(id, source) }
            })
        })
        .await?;
        self.position += bytes.len() as u64;
        Ok(Some(bytes.into()))
    }

    /// How far the writer has come, for those who watch its pace.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }
}

fn read_error(id: ExtentId, source: std::io::Error) -> Error {
    Error::Io { doing: "read extent", path: id.to_string().into(), source }
}
