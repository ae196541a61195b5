//! Free space, and the lock that keeps two processes out of one data directory.

use std::fs::File;
use std::io;
use std::path::Path;

/// How much room a filesystem has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes in all.
    pub total_bytes: u64,
    /// Bytes that an unprivileged writer may still take.
    pub free_bytes: u64,
    /// Files that may still be made; `u64::MAX` where the filesystem has no limit.
    pub free_files: u64,
}

/// Asks the filesystem of `path` for its free space.
///
/// # Errors
///
/// Whatever the filesystem says.
pub fn free_space(path: &Path) -> io::Result<Space> {
    let stat = rustix::fs::statvfs(path)?;
    let free_files = if stat.f_files == 0 { u64::MAX } else { stat.f_favail };
    Ok(Space {
        total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        free_files,
    })
}

/// Holds a data directory for this process until dropped.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

/// Takes the lock file `lock` in `dir`, without waiting.
///
/// # Errors
///
/// `WouldBlock` if another process holds it; else whatever the filesystem says.
pub fn lock_dir(dir: &Path) -> io::Result<DirLock> {
    let file = File::options().create(true).truncate(false).write(true).open(dir.join("lock"))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
    Ok(DirLock { _file: file })
}
