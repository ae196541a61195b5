//! When bytes become a blob: put together, verified, synced, named, in that order.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::BLOCK_BYTES;
use super::error::{Error, Result};
use super::index::BlobEntry;
use super::layout::SUMLESS_BYTES_MAX;
use super::locks::{Held, Item};
use super::sink::{Sink, SinkOptions, expect_length};
use super::space::Demand;
use super::store::{BlobStore, Event, Shared, blocking, remove_quietly};
use super::sums::{self, ReadFault, is_damage};
use crate::disk;
use crate::oci::{Digest, ExtentId, Hasher};

// Copies go through memory in portions of 1 MiB.
const COPY_BLOCKS: u64 = 4;

/// One run of a blob that is to be put together.
#[derive(Debug, Clone)]
pub struct ExtentPart {
    /// The extent that holds the bytes, from its start.
    pub id: ExtentId,
    /// Where the bytes stand in the blob.
    pub offset: u64,
    /// How many of the extent's bytes belong to the blob.
    pub length: u64,
}

/// A verified file that is to get a blob's name.
struct Publication<'a> {
    digest: &'a Digest,
    size: u64,
    file: &'a File,
    /// Where the file lies, in `tmp/`.
    path: &'a Path,
    sums: &'a [u32],
}

impl BlobStore {
    /// Turns extents that all lie here into the blob `digest` of `size` bytes; verified, synced, durable on return.
    ///
    /// A single extent that was hashed whole gets a second name without being read; else the parts are copied and hashed.
    /// The extents stay until [`Self::remove_extents`]. Idempotent: with the extents gone, an intact blob that is here
    /// already is enough. Without parts it makes the empty blob. The blob is pinned (P21).
    ///
    /// # Errors
    ///
    /// - [`Error::DigestMismatch`] if the bytes are not those of `digest`; nothing changes.
    /// - [`Error::SizeMismatch`] if the parts do not cover `[0, size)` without gap, or an extent is too short.
    /// - [`Error::ExtentUnknown`] if a part is not synced here, or proves damaged (it is then removed).
    /// - [`Error::NoSpace`] if there is no room for a copy.
    ///
    /// # Cancel safety
    ///
    /// The work goes on to its end.
    pub async fn assemble(&self, digest: &Digest, size: u64, parts: &[ExtentPart]) -> Result<()> {
        let mut parts: Vec<_> = parts.iter().filter(|part| part.length > 0).cloned().collect();
        parts.sort_by_key(|part| part.offset);
        let held = self.shared.locks.lock(Item::Blob(digest.clone())).await;
        // Taken here and not in the blocking work: threads that wait for each other's turn would use up their pool.
        // Always after the digest's; it keeps a trim out while the file gets its second name.
        let single = match parts.as_slice() {
            [part] => Some(self.shared.locks.lock(Item::Extent(part.id)).await),
            _ => None,
        };
        let (shared, digest) = (Arc::clone(&self.shared), digest.clone());
        blocking(move || {
            let _held = (held, single);
            shared.assemble(&digest, size, &parts)
        })
        .await
    }
}

impl Shared {
    fn assemble(self: &Arc<Self>, digest: &Digest, size: u64, parts: &[ExtentPart]) -> Result<()> {
        let mut covered = 0;
        for part in parts {
            expect_length(covered, part.offset)?;
            covered = covered.saturating_add(part.length);
        }
        expect_length(size, covered)?;
        if let [part] = parts
            && self.name_extent(digest, size, part)?
        {
            return Ok(());
        }
        // A copy costs more than a look at what is there.
        if self.has_intact(digest, size)? {
            return self.make_durable(digest, size);
        }
        self.copy_parts(digest, size, parts)
    }

    /// Gives a single extent that was hashed whole the blob's name; false if it must be copied, or is not here.
    ///
    /// The extent's lock is held.
    fn name_extent(self: &Arc<Self>, digest: &Digest, size: u64, part: &ExtentPart) -> Result<bool> {
        let Some((record, file)) = self.open_extent(part.id)? else { return Ok(false) };
        if !record.first || record.length != size || record.hash_state.algorithm != digest.algorithm() {
            return Ok(false);
        }
        let actual = Hasher::resume(&record.hash_state).map_err(|_| Error::HashState)?.finish();
        if actual != *digest {
            return Err(Error::DigestMismatch { expected: digest.clone(), actual });
        }
        let path = self.layout.extent(part.id);
        let metadata = file.metadata().map_err(|source| Error::Io { doing: "look at", path: path.clone(), source })?;
        if metadata.len() != size {
            if metadata.nlink() > 1 {
                return Ok(false);
            }
            self.cut_file(part.id, size)?;
        }
        let name = self.layout.temporary();
        match disk::link(&path, &name) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                return Err(self.write_error("link", &name, error));
            }
            // Not every filesystem has second names.
            Err(_) => return Ok(false),
        }
        // The bytes are synced already; after a crash of the process it is cheap to make sure of that.
        self.publish(&Publication { digest, size, file: &file, path: &name, sums: &record.sums })?;
        Ok(true)
    }

    fn copy_parts(self: &Arc<Self>, digest: &Digest, size: u64, parts: &[ExtentPart]) -> Result<()> {
        self.space.admit(Demand::Reserved(size))?;
        let options = SinkOptions { hasher: Hasher::new(digest.algorithm()), checkpoints: false, progress: None };
        let mut sink = Sink::create(Arc::clone(self), self.layout.temporary(), options)?;
        let copied = parts
            .iter()
            .try_for_each(|part| self.copy_part(part, &mut sink))
            .and_then(|()| self.publish_sink(digest, size, &mut sink));
        if copied.is_err() {
            sink.discard();
        }
        copied
    }

    fn copy_part(&self, part: &ExtentPart, sink: &mut Sink) -> Result<()> {
        let id = part.id;
        let (record, checked) = self.open_extent_checked(id)?.ok_or(Error::ExtentUnknown { id })?;
        if record.length < part.length {
            return Err(Error::SizeMismatch { expected: part.length, actual: record.length });
        }
        let mut position = 0;
        while position < part.length {
            let mut bytes = match checked.read(position / BLOCK_BYTES, COPY_BLOCKS) {
                Ok(bytes) => bytes,
                Err(ReadFault::Io(source)) => {
                    return Err(Error::Io { doing: "read", path: self.layout.extent(id), source });
                }
                // Without its record the extent no longer counts, so the caller fetches it from another holder.
                Err(ReadFault::Damaged { block }) => {
                    tracing::warn!(%id, block, "extent is damaged, removing it");
                    self.metrics.damaged_blocks.inc();
                    remove_quietly(&self.layout.record(id));
                    self.index.remove_extent(id);
                    return Err(Error::ExtentUnknown { id });
                }
            };
            bytes.truncate(usize::try_from(part.length - position).unwrap_or(usize::MAX));
            position += bytes.len() as u64;
            sink.write(&[Bytes::from(bytes)])?;
        }
        Ok(())
    }

    /// Verifies, syncs and names what a sink holds. The digest's lock is held. On an error the sink still has its file.
    pub(super) fn publish_sink(&self, digest: &Digest, size: u64, sink: &mut Sink) -> Result<()> {
        expect_length(size, sink.length())?;
        let actual = sink.digest();
        if actual != *digest {
            return Err(Error::DigestMismatch { expected: digest.clone(), actual });
        }
        let sealed = sink.seal()?;
        self.publish(&Publication { digest, size, file: sink.file(), path: sink.path(), sums: &sealed.sums })?;
        sink.keep();
        Ok(())
    }

    /// Gives a verified file the blob's name, durably: bytes and sums, then names, then everything that speaks of it.
    ///
    /// The digest's lock is held. A file already there is replaced: these bytes were verified just now, those may have
    /// rotted, and who reads them keeps reading.
    fn publish(&self, publication: &Publication<'_>) -> Result<()> {
        let &Publication { digest, size, .. } = publication;
        let path = self.layout.blob(digest);
        let replaces = path.exists();
        let named = match self.name(publication, &path) {
            Err(error) if self.directory_was_gone(&error) => self.name(publication, &path),
            named => named,
        };
        // A new name that may vanish with the power must not be taken for a promise. One that was there before stays:
        // whichever file a power cut leaves under it is verified.
        if named.is_err() && !replaces {
            remove_quietly(&path);
        }
        // Renaming one name of a file over another name of it does nothing.
        remove_quietly(publication.path);
        named?;
        self.index.put_blob(&BlobEntry { digest: digest.clone(), size, verified_at: self.now() });
        self.pins.pin(Item::Blob(digest.clone()));
        self.emit(Event::Added { digest: digest.clone(), size });
        Ok(())
    }

    fn name(&self, publication: &Publication<'_>, path: &Path) -> Result<()> {
        let &Publication { digest, size, file, path: unnamed, sums } = publication;
        self.ready_dir_of(path)?;
        if size <= SUMLESS_BYTES_MAX {
            self.sync(file, unnamed)?;
            return self.rename_durable(unnamed, path);
        }
        let sums_path = self.layout.sums(digest);
        self.ready_dir_of(&sums_path)?;
        let (sums_file, sums_unnamed) = self.write_temporary(&sums::encode(digest, size, sums))?;
        let named = Self::both(|| self.sync(file, unnamed), || self.sync(&sums_file, &sums_unnamed))
            .and_then(|()| self.rename(&sums_unnamed, &sums_path))
            .and_then(|()| self.rename(unnamed, path));
        if named.is_err() {
            remove_quietly(&sums_unnamed);
        }
        named?;
        // Should a power cut leave the blob's name without its sums, the next reader hashes it whole.
        Self::both(|| self.sync_dir(parent_of(path)), || self.sync_dir(parent_of(&sums_path)))
    }

    pub(super) fn write_sums(&self, digest: &Digest, size: u64, sums: &[u32]) -> Result<()> {
        if size <= SUMLESS_BYTES_MAX {
            return Ok(());
        }
        let path = self.layout.sums(digest);
        self.ready_dir_of(&path)?;
        self.place(&path, &sums::encode(digest, size, sums))
    }

    /// Whether a copy is here already whose every block is in order; reads it through. The lock is held.
    ///
    /// Sets nothing aside: the size is what a client made of its parts, and no client may cost us a good copy.
    fn has_intact(&self, digest: &Digest, size: u64) -> Result<bool> {
        let there = fs::metadata(self.layout.blob(digest)).is_ok_and(|metadata| metadata.len() == size);
        Ok(there && self.check_sums(digest, size)?)
    }

    /// Syncs a file found under its name: it may have been left by a process that died before its own sync.
    pub(super) fn make_durable(&self, digest: &Digest, size: u64) -> Result<()> {
        let item = Item::Blob(digest.clone());
        if !self.pins.is_pinned(&item) {
            let path = self.layout.blob(digest);
            let file = File::open(&path).map_err(|source| self.write_error("open", &path, source))?;
            self.sync(&file, &path)?;
            self.sync_dir(parent_of(&path))?;
            self.ready_dir_of(&path)?;
            let verified_at = self.index.blob(digest).map_or(0, |entry| entry.verified_at);
            self.index.put_blob(&BlobEntry { digest: digest.clone(), size, verified_at });
        }
        self.pins.pin(item);
        Ok(())
    }

    /// Whether a file of that size has the blob's name; one of another size is set aside. The lock is held.
    pub(super) fn look(&self, held: &Held, digest: &Digest, size: u64) -> Result<bool> {
        let path = self.layout.blob(digest);
        match fs::metadata(&path) {
            Ok(metadata) if metadata.len() == size => Ok(true),
            Ok(metadata) => {
                self.judge_size(held, digest, metadata.len(), size);
                Ok(false)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.strike(held, digest);
                Ok(false)
            }
            Err(error) if is_damage(&error) => {
                self.set_aside_or_log(held, digest);
                Ok(false)
            }
            Err(source) => Err(Error::Io { doing: "look at", path, source }),
        }
    }

    /// Sets a copy aside whose size differs from the agreed one, unless its bytes are the digest's after all. The lock is
    /// held.
    ///
    /// Then the caller is wrong about the size, and must not cost us a good copy.
    pub(super) fn judge_size(&self, held: &Held, digest: &Digest, there: u64, agreed: u64) {
        if self.rebuild_sums(digest, there).is_ok_and(|intact| intact.is_some()) {
            tracing::error!(%digest, there, agreed, "copy is intact, but not of the size that was asked for");
        } else {
            self.set_aside_or_log(held, digest);
        }
    }
}

fn parent_of(path: &Path) -> &Path {
    path.parent().expect("files lie in directories")
}
