//! Space put by for what must be written although the disk is full.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::{free_space, sync_dir};

/// A file that takes up space until it is needed for something that matters more.
#[derive(Debug)]
pub struct Reserve {
    path: PathBuf,
    bytes: u64,
}

impl Reserve {
    /// Names the file and how much it is to take; makes nothing. On a small disk it takes a sixteenth.
    #[must_use]
    pub fn new(path: &Path, bytes: u64) -> Self {
        let total = path.parent().and_then(|dir| free_space(dir).ok()).map_or(u64::MAX, |space| space.total_bytes);
        Self { path: path.to_owned(), bytes: bytes.min(total / 16) }
    }

    /// Whether the space is put by.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.bytes == 0 || fs::metadata(&self.path).is_ok_and(|metadata| metadata.len() >= self.bytes)
    }

    /// Puts the space by, if as much again is free beside it; says whether it is put by now. Blocks.
    ///
    /// # Errors
    ///
    /// Whatever the filesystem says; nothing is put by then.
    pub fn fill(&self) -> io::Result<bool> {
        if self.is_there() {
            return Ok(true);
        }
        let dir = self.path.parent().unwrap_or_else(|| Path::new("."));
        if free_space(dir)?.free_bytes < self.bytes.saturating_mul(2) {
            return Ok(false);
        }
        let filled = File::create(&self.path)
            .and_then(|file| Ok(rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, self.bytes)?));
        match filled {
            Ok(()) => sync_dir(dir).map(|()| true),
            Err(error) => {
                fs::remove_file(&self.path).ok();
                Err(error)
            }
        }
    }

    /// Gives the space back; false if none was put by.
    #[must_use]
    pub fn release(&self) -> bool {
        fs::remove_file(&self.path).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_put_by_and_given_back_once() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::new(&dir.path().join("reserve"), 1 << 20);
        assert!(!reserve.is_there() && !reserve.release());
        assert!(reserve.fill().unwrap() && reserve.fill().unwrap() && reserve.is_there());
        assert!(reserve.release() && !reserve.release());
    }

    #[test]
    fn nothing_to_put_by_is_always_there() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::new(&dir.path().join("reserve"), 0);
        assert!(reserve.is_there() && reserve.fill().unwrap() && !reserve.release());
    }
}
