//! Setting damaged copies aside.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::error::{Error, Result};
use super::locks::{Held, Item};
use super::store::{BlobStore, Event, Shared, blocking, remove_quietly};
use crate::oci::Digest;

// Beyond this many, findings are forgotten; the next reader finds them again.
const FINDINGS_MAX: usize = 4096;

/// Which file it was, whatever name it has since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    changed: (i64, i64),
}

impl Identity {
    pub(super) fn of(metadata: &Metadata) -> Self {
        let changed = (metadata.mtime(), metadata.mtime_nsec());
        Self { device: metadata.dev(), inode: metadata.ino(), changed }
    }
}

impl BlobStore {
    /// Sets a copy aside in which a reader found damage; it no longer serves, and [`Event::Quarantined`] is sent.
    ///
    /// Nothing happens if there is no copy, or if the damaged file was replaced by a good one since the reader opened it.
    /// On mere suspicion call [`Self::verify`] instead.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the file cannot be moved (a read-only disk); readers keep finding the damage.
    pub async fn quarantine(&self, digest: &Digest) -> Result<()> {
        let held = self.shared.locks.lock(Item::Blob(digest.clone())).await;
        let (shared, digest) = (Arc::clone(&self.shared), digest.clone());
        blocking(move || {
            let found = shared.findings().get(&digest).copied();
            let there = fs::metadata(shared.layout.blob(&digest)).ok().map(|metadata| Identity::of(&metadata));
            if found.is_some() && there != found {
                return Ok(());
            }
            shared.set_aside(&held, &digest)
        })
        .await
    }
}

impl Shared {
    fn findings(&self) -> std::sync::MutexGuard<'_, std::collections::HashMap<Digest, Identity>> {
        self.damaged.lock().expect("no panic while held")
    }

    /// Remembers in which file damage was found.
    pub(super) fn note_damage(&self, digest: &Digest, file: Identity) {
        self.metrics.damaged_blocks.inc();
        let mut findings = self.findings();
        if findings.len() >= FINDINGS_MAX {
            findings.clear();
        }
        findings.insert(digest.clone(), file);
    }

    /// Moves the blob's file out of service. The digest's lock is held.
    pub(super) fn set_aside(&self, held: &Held, digest: &Digest) -> Result<()> {
        debug_assert_eq!(held.item(), &Item::Blob(digest.clone()));
        let path = self.layout.blob(digest);
        // One that cannot be looked at is there.
        if matches!(path.try_exists(), Ok(false)) {
            return Ok(());
        }
        tracing::warn!(%digest, "copy is damaged, setting it aside");
        self.hot.remove(digest);
        self.pins.forget(held.item());
        let name = format!("{}-{}.{}", digest.algorithm().as_str(), digest.hex(), self.now());
        self.rename_durable(&path, &self.layout.quarantine().join(name))?;
        // Without this a power cut brings the damaged copy back; it would be found again, but why serve it at all.
        self.sync_dir(path.parent().expect("files lie in directories"))?;
        remove_quietly(&self.layout.sums(digest));
        self.index.remove_blob(digest);
        self.metrics.quarantined.inc();
        self.emit(Event::Quarantined { digest: digest.clone() });
        self.trim_quarantine(self.config.quarantine_files_max, self.config.quarantine_bytes_max)
    }

    /// Removes the oldest damaged copies beyond the limits.
    pub(super) fn trim_quarantine(&self, files_max: usize, bytes_max: u64) -> Result<()> {
        let path = self.layout.quarantine();
        let mut kept = list_by_age(&path).map_err(|source| Error::Io { doing: "list", path, source })?;
        let mut bytes: u64 = kept.iter().map(|file| file.size).sum();
        kept.reverse();
        while kept.len() > files_max || bytes > bytes_max {
            let Some(oldest) = kept.pop() else { break };
            remove_quietly(&oldest.path);
            bytes -= oldest.size;
        }
        self.set_aside_files.store(kept.len() as u64, Ordering::Relaxed);
        self.set_aside_bytes.store(bytes, Ordering::Relaxed);
        Ok(())
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct SetAside {
    /// When the file got its name here, in seconds and nanoseconds.
    changed: (i64, i64),
    size: u64,
    path: PathBuf,
}

/// The files of a directory, oldest first.
fn list_by_age(dir: &Path) -> io::Result<Vec<SetAside>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        let changed = (metadata.ctime(), metadata.ctime_nsec());
        files.push(SetAside { changed, size: metadata.len(), path: entry.path() });
    }
    files.sort();
    Ok(files)
}
