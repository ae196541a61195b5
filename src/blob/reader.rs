//! Reading blobs: nothing leaves before it was checked (P16), and the filesystem says what is here (P20).

use std::fs::{self, File};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::BLOCK_BYTES;
use super::error::{Error, Result};
use super::layout::SUMLESS_BYTES_MAX;
use super::locks::{Held, Item};
use super::quarantine::Identity;
use super::store::{BlobStore, Shared, blocking, in_memory};
use super::sums::{self, Checked, ReadFault, Stamp, is_damage};
use crate::disk;
use crate::oci::Digest;

// One hop and one system call per MiB while few read, else per block; of very many, each gets a small part of a block that
// was checked whole, so that what stalled readers keep in memory stays bounded. The other parts are then read without a
// second check of the whole.
const BLOCKS_PER_READ: u64 = 4;
const EAGER_READERS_MAX: usize = 32;
const BLOCK_READERS_MAX: usize = 256;
const CROWDED_BYTES: usize = 16 << 10;

/// Reads one blob's bytes, in any order. A copy that is deleted or set aside meanwhile is read to its end.
#[derive(Debug)]
pub struct BlobReader {
    shared: Arc<Shared>,
    digest: Digest,
    size: u64,
    identity: Identity,
    source: Source,
    /// The block that was checked last, and how the file looked before.
    last: Option<(u64, Stamp)>,
}

#[derive(Debug, Clone)]
pub(super) enum Source {
    /// A small blob, verified whole.
    Whole(Bytes),
    /// A file, verified block by block.
    Blocks(Checked),
}

enum Opened {
    Ready(Source, Identity),
    Absent,
    /// The digest is wrong.
    Bad,
    /// The size is not the one asked for, but this.
    Sized(u64),
    /// The sums are missing or damaged.
    Unsummed,
}

impl BlobStore {
    /// Opens a blob that lies here with exactly `size` bytes (P20: asks the filesystem; another size is quarantined).
    ///
    /// A copy whose block sums are missing or damaged is hashed whole first, and quarantined if it is not `digest`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the disk cannot be read.
    pub async fn open_blob(&self, digest: &Digest, size: u64) -> Result<Option<BlobReader>> {
        let (shared, wanted) = (Arc::clone(&self.shared), digest.clone());
        let opened = blocking(move || {
            let opened = shared.open_source(&wanted, size)?;
            if matches!(opened, Opened::Absent) {
                shared.strike_if_missing(&wanted);
            }
            Ok(opened)
        })
        .await?;
        let opened = match opened {
            Opened::Absent => return Ok(None),
            Opened::Ready(source, identity) => Some((source, identity)),
            Opened::Bad | Opened::Sized(_) | Opened::Unsummed => {
                let held = self.shared.locks.lock(Item::Blob(digest.clone())).await;
                let (shared, digest) = (Arc::clone(&self.shared), digest.clone());
                blocking(move || shared.open_doubtful(&held, &digest, size)).await?
            }
        };
        Ok(opened.map(|(source, identity)| {
            self.shared.readers.fetch_add(1, Ordering::Relaxed);
            BlobReader { shared: Arc::clone(&self.shared), digest: digest.clone(), size, identity, source, last: None }
        }))
    }

    /// Whether the filesystem has the blob at that size, without opening a reader; another size is quarantined.
    ///
    /// Only a look. Whoever tells others "I hold it" calls [`Self::hold`].
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the disk cannot be asked.
    pub async fn has(&self, digest: &Digest, size: u64) -> Result<bool> {
        let here = self.has_each(&[(digest.clone(), size)]).await?;
        Ok(here == [true])
    }

    /// Says the same of many blobs, in their order: one step on a thread for blocking work, not one each.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if one of them cannot be looked at.
    pub async fn has_each(&self, blobs: &[(Digest, u64)]) -> Result<Vec<bool>> {
        let (shared, wanted) = (Arc::clone(&self.shared), blobs.to_vec());
        let found = blocking(move || wanted.iter().map(|(digest, _)| shared.size_here(digest)).collect());
        let found: Vec<Option<u64>> = found.await?;
        let mut here = Vec::with_capacity(found.len());
        for (found, (digest, size)) in found.into_iter().zip(blobs) {
            here.push(match found {
                Some(there) if there == *size => true,
                None => false,
                Some(_) => {
                    let held = self.shared.locks.lock(Item::Blob(digest.clone())).await;
                    let (shared, digest, size) = (Arc::clone(&self.shared), digest.clone(), *size);
                    blocking(move || shared.look(&held, &digest, size)).await?
                }
            });
        }
        Ok(here)
    }

    /// Says "I hold it" if so: under the digest's lock, durable, and pinned against deletion for one period (P21).
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the disk cannot be asked or synced.
    pub async fn hold(&self, digest: &Digest, size: u64) -> Result<bool> {
        let held = self.shared.locks.lock(Item::Blob(digest.clone())).await;
        let (shared, digest) = (Arc::clone(&self.shared), digest.clone());
        blocking(move || {
            let holds = shared.look(&held, &digest, size)?;
            if holds {
                shared.make_durable(&digest, size)?;
            }
            Ok(holds)
        })
        .await
    }

    /// Reads a whole small blob (manifest body), verified against its digest; one that is read often comes from memory.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the disk cannot be read.
    pub async fn read_all(&self, digest: &Digest, size: u64) -> Result<Option<Bytes>> {
        if let Some(body) = self.shared.hot.get(digest).filter(|body| body.len() as u64 == size) {
            return Ok(Some(body));
        }
        let (shared, wanted) = (Arc::clone(&self.shared), digest.clone());
        let read = blocking(move || {
            let read = shared.read_whole(&wanted, size)?;
            if matches!(read, Whole::Absent) {
                shared.strike_if_missing(&wanted);
            }
            Ok(read)
        });
        match read.await? {
            Whole::Good(body) => {
                self.shared.hot.put(digest, &body);
                Ok(Some(body))
            }
            Whole::Absent => Ok(None),
            Whole::Bad => {
                let held = self.shared.locks.lock(Item::Blob(digest.clone())).await;
                let (shared, digest) = (Arc::clone(&self.shared), digest.clone());
                blocking(move || match shared.read_whole(&digest, size)? {
                    Whole::Good(body) => Ok(Some(body)),
                    Whole::Absent => Ok(None),
                    Whole::Bad => {
                        if shared.look(&held, &digest, size)? {
                            shared.set_aside_or_log(&held, &digest);
                        }
                        Ok(None)
                    }
                })
                .await
            }
        }
    }
}

enum Whole {
    Good(Bytes),
    Absent,
    Bad,
}

impl Shared {
    /// The length of a blob's file, if there is one; what only the index has is struck out of it.
    fn size_here(&self, digest: &Digest) -> Result<Option<u64>> {
        let path = self.layout.blob(digest);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.strike_if_missing(digest);
                Ok(None)
            }
            // Of no size it could have: the closer look sets it aside.
            Err(error) if is_damage(&error) => Ok(Some(u64::MAX)),
            Err(source) => Err(Error::Io { doing: "look at", path, source }),
        }
    }

    fn open_source(&self, digest: &Digest, size: u64) -> Result<Opened> {
        let path = self.layout.blob(digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Opened::Absent),
            Err(error) if is_damage(&error) => return Ok(Opened::Bad),
            Err(source) => return Err(Error::Io { doing: "open", path, source }),
        };
        let metadata = file.metadata().map_err(|source| Error::Io { doing: "look at", path: path.clone(), source })?;
        if metadata.len() != size {
            return Ok(Opened::Sized(metadata.len()));
        }
        let identity = Identity::of(&metadata);
        if size <= SUMLESS_BYTES_MAX {
            return match disk::read_exact_at(&file, 0, usize::try_from(size).expect("small")) {
                Ok(body) if Digest::of(digest.algorithm(), &body) == *digest => {
                    Ok(Opened::Ready(Source::Whole(body.into()), identity))
                }
                Ok(_) => Ok(Opened::Bad),
                Err(error) if is_damage(&error) => Ok(Opened::Bad),
                Err(source) => Err(Error::Io { doing: "read", path, source }),
            };
        }
        Ok(match self.read_sums(digest).filter(|(summed, _)| *summed == size) {
            Some((_, sums)) => Opened::Ready(Source::Blocks(Checked::new(Arc::new(file), size, sums)), identity),
            None => Opened::Unsummed,
        })
    }

    /// The second look at a copy that seemed bad or had no sums, with its lock held.
    fn open_doubtful(&self, held: &Held, digest: &Digest, size: u64) -> Result<Option<(Source, Identity)>> {
        match self.open_source(digest, size)? {
            Opened::Ready(source, identity) => return Ok(Some((source, identity))),
            Opened::Absent => return Ok(None),
            Opened::Sized(there) => {
                self.judge_size(held, digest, there, size);
                return Ok(None);
            }
            Opened::Bad => {}
            Opened::Unsummed => {
                if let Some(rebuilt) = self.rebuild_sums(digest, size)? {
                    return Ok(Some(rebuilt));
                }
            }
        }
        self.set_aside_or_log(held, digest);
        Ok(None)
    }

    /// Hashes a copy whole and writes its sums anew; `None` if it is not the digest's.
    pub(super) fn rebuild_sums(&self, digest: &Digest, size: u64) -> Result<Option<(Source, Identity)>> {
        let path = self.layout.blob(digest);
        let failed = |source: io::Error| Error::Io { doing: "read", path: path.clone(), source };
        let file = File::open(&path).map_err(failed)?;
        let identity = Identity::of(&file.metadata().map_err(failed)?);
        let (actual, sums) = match hash_file(&file, digest.algorithm(), size) {
            Ok(hashed) => hashed,
            Err(error) if is_damage(&error) => return Ok(None),
            Err(source) => return Err(failed(source)),
        };
        if actual != *digest {
            return Ok(None);
        }
        // A disk that takes no writes still serves; the next reader hashes again.
        if let Err(error) = self.write_sums(digest, size, &sums) {
            tracing::warn!(%error, %digest, "block sums could not be written");
        }
        Ok(Some((Source::Blocks(Checked::new(Arc::new(file), size, sums)), identity)))
    }

    fn read_whole(&self, digest: &Digest, size: u64) -> Result<Whole> {
        let path = self.layout.blob(digest);
        match fs::read(&path) {
            Ok(body) if body.len() as u64 == size && Digest::of(digest.algorithm(), &body) == *digest => {
                Ok(Whole::Good(body.into()))
            }
            Ok(_) => Ok(Whole::Bad),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Whole::Absent),
            Err(error) if is_damage(&error) => Ok(Whole::Bad),
            Err(source) => Err(Error::Io { doing: "read", path, source }),
        }
    }

    pub(super) fn set_aside_or_log(&self, held: &Held, digest: &Digest) {
        if let Err(error) = self.set_aside(held, digest) {
            tracing::warn!(%error, %digest, "damaged copy could not be set aside");
        }
    }

    /// The size and sums that the sidecar says.
    pub(super) fn read_sums(&self, digest: &Digest) -> Option<(u64, Vec<u32>)> {
        sums::decode(&fs::read(self.layout.sums(digest)).ok()?, digest)
    }

    pub(super) fn has_sums(&self, digest: &Digest, size: u64) -> bool {
        size <= SUMLESS_BYTES_MAX || self.read_sums(digest).is_some_and(|(summed, _)| summed == size)
    }

    /// Whether every block of the copy agrees with its sum (or a small copy, or one without sums, with its digest).
    pub(super) fn check_sums(&self, digest: &Digest, size: u64) -> Result<bool> {
        let checked = match self.open_source(digest, size)? {
            Opened::Ready(Source::Whole(_), _) => return Ok(true),
            Opened::Ready(Source::Blocks(checked), _) => checked,
            Opened::Unsummed => return Ok(self.rebuild_sums(digest, size)?.is_some()),
            Opened::Absent | Opened::Bad | Opened::Sized(_) => return Ok(false),
        };
        let mut block = 0;
        while block * BLOCK_BYTES < size {
            match checked.read(block, BLOCKS_PER_READ) {
                Ok(bytes) => block += (bytes.len() as u64).div_ceil(BLOCK_BYTES),
                Err(ReadFault::Damaged { .. }) => return Ok(false),
                Err(ReadFault::Io(source)) => {
                    return Err(Error::Io { doing: "read", path: self.layout.blob(digest), source });
                }
            }
        }
        Ok(true)
    }
}

/// The digest of the first `size` bytes of a file, and the sums of its blocks.
pub(super) fn hash_file(file: &File, algorithm: crate::oci::Algorithm, size: u64) -> io::Result<(Digest, Vec<u32>)> {
    const STEP: u64 = 1 << 20;
    let mut hasher = crate::oci::Hasher::new(algorithm);
    let mut summer = sums::Summer::default();
    let mut position = 0;
    while position < size {
        let step = usize::try_from(STEP.min(size - position)).expect("at most 1 MiB");
        let bytes = disk::read_exact_at(file, position, step)?;
        hasher.update(&bytes);
        summer.update(&bytes);
        position += bytes.len() as u64;
    }
    Ok((hasher.finish(), summer.finish()))
}

impl BlobReader {
    /// Bytes of the blob.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads checked bytes of `[start, end)` from `start` on: at least one, at most 1 MiB, up to the end of a block or `end`.
    ///
    /// `start < end <= size`. While many readers are open a call gives at most 256 KiB, while very many are 16 KiB, which
    /// bounds the memory of all.
    ///
    /// # Errors
    ///
    /// - [`Error::BlockDamaged`] if the block of `start` is damaged or cannot be read: the caller quarantines the copy and
    ///   goes on from `start` at another holder. Good blocks before a damaged one are given first.
    /// - [`Error::SizeMismatch`] if the range is empty or beyond the blob.
    /// - [`Error::Io`] if the disk cannot be asked.
    ///
    /// # Cancel safety
    ///
    /// A dropped call changes nothing.
    pub async fn read(&mut self, start: u64, end: u64) -> Result<Bytes> {
        if start >= end || end > self.size {
            return Err(Error::SizeMismatch { expected: self.size, actual: end });
        }
        let checked = match &self.source {
            Source::Whole(body) => {
                return Ok(body.slice(in_memory(start)..in_memory(end)));
            }
            Source::Blocks(checked) => checked.clone(),
        };
        let readers = self.shared.readers.load(Ordering::Relaxed);
        let first = start / BLOCK_BYTES;
        let is_crowded = readers > BLOCK_READERS_MAX;
        let blocks = if readers <= EAGER_READERS_MAX { BLOCKS_PER_READ } else { 1 };
        let count = (end.div_ceil(BLOCK_BYTES) - first).min(blocks);
        let (shared, digest, identity) = (Arc::clone(&self.shared), self.digest.clone(), self.identity);
        let known = self.last.filter(|(block, _)| is_crowded && *block == first).map(|(_, stamp)| stamp);
        let (bytes, last) = blocking(move || {
            if let Some(stamp) = known {
                let part = end.min(start + CROWDED_BYTES as u64).min((first + 1) * BLOCK_BYTES);
                if let Some(bytes) = checked.read_again(start, part, stamp) {
                    return Ok((Bytes::from(bytes), Some((first, stamp))));
                }
            }
            // Looked at before the bytes are: a change between the two only costs another check.
            let stamp = if is_crowded { checked.stamp().ok() } else { None };
            match checked.read(first, count) {
                Ok(bytes) => {
                    let skipped = first * BLOCK_BYTES;
                    let (from, to) = (in_memory(start - skipped), in_memory(end - skipped).min(bytes.len()));
                    let given = match is_crowded {
                        true => Bytes::copy_from_slice(&bytes[from..to.min(from + CROWDED_BYTES)]),
                        false => Bytes::from(bytes).slice(from..to),
                    };
                    Ok((given, stamp.map(|stamp| (first, stamp))))
                }
                Err(ReadFault::Damaged { block }) => {
                    shared.note_damage(&digest, identity);
                    Err(Error::BlockDamaged { digest, block })
                }
                Err(ReadFault::Io(source)) => {
                    Err(Error::Io { doing: "read", path: shared.layout.blob(&digest), source })
                }
            }
        })
        .await?;
        self.last = last;
        Ok(bytes)
    }
}

impl Drop for BlobReader {
    fn drop(&mut self) {
        self.shared.readers.fetch_sub(1, Ordering::Relaxed);
    }
}
