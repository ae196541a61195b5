//! Small files of the identity, written durably.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::disk;

use super::{Error, Result};

fn wrap(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { doing, path, source }
}

pub(super) fn create_dir(dir: &Path) -> Result<()> {
    disk::create_dir_durable(dir).map_err(wrap("create directory", dir))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(wrap("restrict", dir))
}

pub(super) fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(wrap("read", path))
}

pub(super) fn read_optional(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(wrap("read", path)(error)),
    }
}

pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    disk::write_durable(path, bytes).map_err(wrap("write", path))
}

/// Writes a file that only this user may read, from its first byte on.
pub(super) fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let attempt = || {
        // Made anew: a file left by a crash, or put there by another, keeps no mode of its own.
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        disk::rename_durable(&beside, path)
    };
    attempt().map_err(wrap("write", path))
}

/// Moves a directory to where another may be, which goes.
pub(super) fn replace_dir(from: &Path, to: &Path) -> Result<()> {
    match fs::remove_dir_all(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(wrap("remove", to)(error)),
        _ => {}
    }
    disk::rename_durable(from, to).map_err(wrap("rename", from))
}

pub(super) fn remove(path: &Path) -> Result<()> {
    disk::remove_durable(path).map_err(wrap("remove", path))
}

/// Refuses a file of a later version before its other fields are looked at.
pub(super) fn check_version(path: &Path, text: &str, known: u32) -> Result<()> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let Versioned { version } = serde_json::from_str(text)
        .map_err(|error| Error::Damaged { path: path.to_owned(), problem: error.to_string() })?;
    if version == known { Ok(()) } else { Err(Error::Version { path: path.to_owned(), version, known }) }
}
