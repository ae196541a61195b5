//! Files and directories that went behind this node's back.

use std::sync::atomic::Ordering;

use super::error::{Error, Result};
use super::locks::{Held, Item};
use super::store::{Event, Shared};
use crate::disk;
use crate::oci::Digest;

impl Shared {
    /// Strikes a blob out of the index whose file is gone; blocks.
    pub(super) fn strike_if_missing(&self, digest: &Digest) {
        if self.index.blob(digest).is_none() || self.layout.blob(digest).exists() {
            return;
        }
        let held = self.locks.lock_blocking(Item::Blob(digest.clone()));
        if !self.layout.blob(digest).exists() {
            self.strike(&held, digest);
        }
    }

    /// The same with the digest's lock held, and the file known to be gone.
    pub(super) fn strike(&self, held: &Held, digest: &Digest) {
        if self.index.blob(digest).is_none() {
            return;
        }
        tracing::warn!(%digest, "copy is gone from the disk");
        self.hot.remove(digest);
        self.pins.forget(held.item());
        self.index.remove_blob(digest);
        self.emit(Event::Removed { digest: digest.clone() });
    }

    /// Makes directories again that are gone, and has the index checked against what is left.
    pub(super) fn remake_directories(&self) -> Result<bool> {
        let gone: Vec<_> = self.layout.directories().into_iter().filter(|dir| !dir.is_dir()).collect();
        for dir in &gone {
            tracing::error!(path = %dir.display(), "directory is gone, making it again");
            disk::create_dir_durable(dir).map_err(|source| self.write_error("create directory", dir, source))?;
        }
        if gone.is_empty() {
            return Ok(false);
        }
        self.forget_ready_dirs();
        self.walk_again.store(true, Ordering::Relaxed);
        Ok(true)
    }

    /// Whether a step failed for want of a directory that should be there, and may be tried again now.
    pub(super) fn directory_was_gone(&self, error: &Error) -> bool {
        let missing = matches!(error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound);
        if missing {
            // Also where only a directory below those is gone.
            self.forget_ready_dirs();
        }
        missing && self.remake_directories().is_ok()
    }
}
