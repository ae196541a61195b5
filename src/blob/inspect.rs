//! This node's bytes while the node does not run: looked at, never changed.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::layout::{ALGORITHMS, Layout, RECORD_SUFFIX, SUMLESS_BYTES_MAX, digest_of_name};
use super::reader::hash_file;
use super::record::ExtentRecord;
use super::sums;
use crate::oci::Digest;

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Flaw {
    /// The kind, one word.
    pub kind: &'static str,
    /// The file.
    pub path: PathBuf,
    /// The rest, in words.
    pub detail: String,
}

/// What lies on a node's disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Inspection {
    /// Blobs and manifest bodies.
    pub blobs: u64,
    /// Bytes of those.
    pub blob_bytes: u64,
    /// Of those, the ones that were hashed.
    pub hashed: u64,
    /// Blobs that nothing links.
    pub unlinked: u64,
    /// Bytes of those.
    pub unlinked_bytes: u64,
    /// Blobs whose file of block sums is missing: the next reader makes it.
    pub unsummed: u64,
    /// Files of block sums without a blob.
    pub stray_sums: u64,
    /// Synced extents of uploads.
    pub extents: u64,
    /// Extents without a good record, left by a crash.
    pub unfinished_extents: u64,
    /// Files on their way to a name; the next start clears them.
    pub temporaries: u64,
    /// Damaged copies that are kept for a look.
    pub quarantined: u64,
    /// Bytes of those.
    pub quarantined_bytes: u64,
    /// What is wrong.
    pub flaws: Vec<Flaw>,
}

/// Where a node's bytes lie.
#[derive(Debug)]
pub struct Inspector {
    layout: Layout,
    /// Whether everything is hashed.
    deep: bool,
}

impl Inspector {
    /// Prepares to look at the bytes under `data_dir`; `deep` reads and hashes them all.
    #[must_use]
    pub fn new(data_dir: &Path, deep: bool) -> Self {
        Self { layout: Layout::new(data_dir), deep }
    }

    /// Bytes of the file of a blob; `None` if there is none.
    ///
    /// # Errors
    ///
    /// Whatever the filesystem says.
    pub fn size(&self, digest: &Digest) -> io::Result<Option<u64>> {
        match fs::metadata(self.layout.blob(digest)) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Looks at every file; `agreed` says which size a blob has that is linked. Blocks.
    ///
    /// # Errors
    ///
    /// [`io::Error`] if a directory cannot be listed; what is wrong with a single file is a flaw.
    pub fn look(&self, agreed: impl Fn(&Digest) -> Option<u64>) -> io::Result<Inspection> {
        let mut found = Inspection::default();
        for algorithm in ALGORITHMS {
            for path in files_below(&self.layout.blobs_of(algorithm))? {
                match digest_of(&path, |name| digest_of_name(algorithm, name)) {
                    Some(digest) => self.look_at_blob(&digest, &path, agreed(&digest), &mut found),
                    None => found.flaw("name", &path, "the file is not named by a digest".to_owned()),
                }
            }
            for path in files_below(&self.layout.sums_of(algorithm))? {
                let digest = digest_of(&path, |name| digest_of_name(algorithm, name));
                found.stray_sums += u64::from(digest.is_none_or(|digest| !self.layout.blob(&digest).exists()));
            }
        }
        self.look_at_extents(&mut found)?;
        found.temporaries = list(&self.layout.temporary_dir())?.len() as u64;
        for path in list(&self.layout.quarantine())? {
            found.quarantined += 1;
            found.quarantined_bytes += fs::metadata(path).map_or(0, |metadata| metadata.len());
        }
        Ok(found)
    }

    fn look_at_blob(&self, digest: &Digest, path: &Path, agreed: Option<u64>, found: &mut Inspection) {
        let size = match fs::metadata(path) {
            Ok(metadata) => metadata.len(),
            Err(error) => return found.flaw("unreadable", path, error.to_string()),
        };
        found.blobs += 1;
        found.blob_bytes += size;
        match agreed {
            None => {
                found.unlinked += 1;
                found.unlinked_bytes += size;
            }
            Some(agreed) if agreed != size => {
                return found.flaw("size", path, format!("it has {size} bytes, and {agreed} are agreed on"));
            }
            Some(_) => {}
        }
        let sums = self.look_at_sums(digest, size, found);
        if self.deep {
            self.hash(digest, (path, size), sums.as_deref(), found);
        }
    }

    fn look_at_sums(&self, digest: &Digest, size: u64, found: &mut Inspection) -> Option<Vec<u32>> {
        if size <= SUMLESS_BYTES_MAX {
            return None;
        }
        let path = self.layout.sums(digest);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                found.unsummed += 1;
                return None;
            }
            Err(error) => {
                found.flaw("unreadable", &path, error.to_string());
                return None;
            }
        };
        match sums::decode(&bytes, digest) {
            Some((summed, sums)) if summed == size => Some(sums),
            Some((summed, _)) => {
                found.flaw("sums", &path, format!("they are of {summed} bytes, and the blob has {size}"));
                None
            }
            None => {
                found.flaw("sums", &path, "they are damaged".to_owned());
                None
            }
        }
    }

    fn hash(&self, digest: &Digest, (path, size): (&Path, u64), sums: Option<&[u32]>, found: &mut Inspection) {
        let hashed = File::open(path).and_then(|file| hash_file(&file, digest.algorithm(), size));
        match hashed {
            Err(error) => found.flaw("unreadable", path, error.to_string()),
            Ok((actual, _)) if actual != *digest => found.flaw("hash", path, format!("it hashes to {actual}")),
            Ok((_, actual)) => {
                found.hashed += 1;
                if sums.is_some_and(|sums| sums != actual) {
                    let path = self.layout.sums(digest);
                    found.flaw("sums", &path, "they are not those of the blob, which is good".to_owned());
                }
            }
        }
    }

    fn look_at_extents(&self, found: &mut Inspection) -> io::Result<()> {
        for path in list(&self.layout.extents())? {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            let Some(id) = name.strip_suffix(RECORD_SUFFIX) else {
                let record = path.with_file_name(format!("{name}{RECORD_SUFFIX}"));
                found.unfinished_extents += u64::from(!record.exists());
                continue;
            };
            let record = fs::read(&path).ok().and_then(|bytes| ExtentRecord::decode(&bytes));
            let length = fs::metadata(path.with_file_name(id)).map(|metadata| metadata.len()).ok();
            if record.is_some_and(|record| length.is_some_and(|length| length >= record.length)) {
                found.extents += 1;
            } else {
                found.unfinished_extents += 1;
            }
        }
        Ok(())
    }
}

impl Inspection {
    fn flaw(&mut self, kind: &'static str, path: &Path, detail: String) {
        self.flaws.push(Flaw { kind, path: path.to_owned(), detail });
    }
}

fn digest_of(path: &Path, parse: impl Fn(&str) -> Option<Digest>) -> Option<Digest> {
    parse(path.file_name()?.to_str()?)
}

/// The entries of a directory; none if it is not there.
fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The files in the directories of a directory.
fn files_below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for dir in list(dir)? {
        if dir.is_dir() {
            files.extend(list(&dir)?);
        } else {
            files.push(dir);
        }
    }
    Ok(files)
}
