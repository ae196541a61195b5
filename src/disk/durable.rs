//! Write beside, sync, rename, sync directory.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use super::faults::{self, Step};

/// Syncs a directory, so that names made or removed in it survive a power cut.
///
/// # Errors
///
/// Whatever the filesystem says.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    faults::check(Step::Sync, dir)?;
    File::open(dir)?.sync_all()
}

/// Creates a directory and its missing parents, each synced into its parent.
///
/// # Errors
///
/// Whatever the filesystem says.
pub fn create_dir_durable(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    create_dir_durable(parent)?;
    match fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => other?,
    }
    sync_dir(parent)
}

/// Renames a file; the caller syncs the directory it lands in before the name counts.
///
/// # Errors
///
/// Whatever the filesystem says; nothing has changed then.
#[expect(clippy::disallowed_methods, reason = "the one place that renames")]
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    faults::check(Step::Write, to)?;
    fs::rename(from, to)
}

/// Renames a file whose bytes are already synced, and syncs the directory it lands in.
///
/// Replaces an existing file at `to`. The directory of `from` is not synced: a name that comes back there after a power
/// cut is a stale temporary, which start-up clears.
///
/// # Errors
///
/// Whatever the filesystem says.
pub fn rename_durable(from: &Path, to: &Path) -> io::Result<()> {
    rename(from, to)?;
    sync_dir(parent_of(to))
}

/// Writes a whole file: beside under the suffix `.new`, synced, renamed over `path`, directory synced.
///
/// # Errors
///
/// Whatever the filesystem says; the old file is then still there.
pub fn write_durable(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = Path::new(&beside);
    let mut file = File::create(beside)?;
    faults::check(Step::Write, beside)?;
    file.write_all(bytes)?;
    faults::check(Step::Sync, beside)?;
    file.sync_all()?;
    rename_durable(beside, path)
}

/// Removes a file if it is there and syncs its directory.
///
/// # Errors
///
/// Whatever the filesystem says, except that the file is not there.
pub fn remove_durable(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_dir(parent_of(path)),
    }
}

fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}
