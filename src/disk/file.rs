//! Single steps on files: create, write, read, sync, link.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::faults::{self, Step};

/// Creates a file that must not be there yet, open for reading and writing.
///
/// # Errors
///
/// `AlreadyExists`, or whatever else the filesystem says.
pub fn create_new(path: &Path) -> io::Result<File> {
    faults::check(Step::Write, path)?;
    File::options().read(true).write(true).create_new(true).open(path)
}

/// Writes all of `bytes` at `offset` of the file that lies at `path`.
///
/// # Errors
///
/// Whatever the filesystem says; some of the bytes may then be written.
pub fn write_all_at(file: &File, path: &Path, bytes: &[u8], offset: u64) -> io::Result<()> {
    faults::check(Step::Write, path)?;
    file.write_all_at(bytes, offset)
}

/// Reads exactly `length` bytes at `offset`, without clearing the buffer first.
///
/// # Errors
///
/// `UnexpectedEof` if the file ends before that; else whatever the filesystem says.
pub fn read_exact_at(file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        let at = offset + bytes.len() as u64;
        match rustix::io::pread(file, rustix::buffer::spare_capacity(&mut bytes), at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // A vector may have more room than was asked for.
    bytes.truncate(length);
    Ok(bytes)
}

/// Syncs the bytes and the length of the file that lies at `path`.
///
/// # Errors
///
/// Whatever the filesystem says. Final: nobody may sync that file again and believe the answer.
pub fn sync_file(file: &File, path: &Path) -> io::Result<()> {
    faults::check(Step::Sync, path)?;
    file.sync_data()
}

/// Lets go of what the machine keeps in memory of a part of a file, so that the next read asks the disk; a hint.
pub fn forget_cached(file: &File, offset: u64, length: u64) {
    // Not every filesystem can, and a read from memory is no error.
    rustix::fs::fadvise(file, offset, std::num::NonZeroU64::new(length), rustix::fs::Advice::DontNeed).ok();
}

/// Gives a file a second name, which must not be there yet; neither directory is synced.
///
/// # Errors
///
/// Whatever the filesystem says; some have no second names.
pub fn link(from: &Path, to: &Path) -> io::Result<()> {
    faults::check(Step::Write, to)?;
    std::fs::hard_link(from, to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_gives_exactly_the_bytes_asked_for_or_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = create_new(&path).unwrap();
        write_all_at(&file, &path, b"0123456789", 0).unwrap();
        assert_eq!(read_exact_at(&file, 3, 4).unwrap(), b"3456");
        assert_eq!(read_exact_at(&file, 10, 0).unwrap(), b"");
        assert_eq!(read_exact_at(&file, 8, 3).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(create_new(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }
}
