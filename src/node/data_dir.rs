//! The data directory: one process at a time, one format.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::disk::{self, DirLock};

/// What the file `format` says; another version's data is not touched.
const FORMAT: &str = "rafthold data 1\n";

/// Says why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another process holds it.
    #[error("data directory {path} is in use by another process", path = path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// It was written by a version that this one does not know.
    #[error("data directory {path} has the unknown format `{found}`", path = path.display())]
    Format {
        /// The directory.
        path: PathBuf,
        /// What it says of itself.
        found: String,
    },
    /// The filesystem refused.
    #[error("{doing} {path}", path = path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// Makes the directory if need be, takes its lock and checks its format; blocks.
///
/// # Errors
///
/// [`DataDirError`].
pub(super) fn open(path: &Path) -> Result<DirLock, DataDirError> {
    let failed = |doing: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source| DataDirError::Io { doing, path, source }
    };
    disk::create_dir_durable(path).map_err(failed("create", path))?;
    let lock = disk::lock_dir(path).map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock => DataDirError::InUse { path: path.to_owned() },
        _ => DataDirError::Io { doing: "lock", path: path.to_owned(), source },
    })?;
    let format = path.join("format");
    match fs::read_to_string(&format) {
        Ok(found) if found == FORMAT => {}
        Ok(found) => return Err(DataDirError::Format { path: path.to_owned(), found: found.trim().to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            disk::write_durable(&format, FORMAT.as_bytes()).map_err(failed("write", &format))?;
        }
        Err(source) => return Err(DataDirError::Io { doing: "read", path: format, source }),
    }
    Ok(lock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let held = open(&path).unwrap();
        assert!(matches!(open(&path), Err(DataDirError::InUse { .. })));
        drop(held);
        open(&path).unwrap();
    }

    #[test]
    fn an_unknown_format_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("format"), "rafthold data 9\n").unwrap();
        assert!(matches!(open(dir.path()), Err(DataDirError::Format { .. })));
    }
}
