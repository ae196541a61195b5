//! Cutting a synced extent to a shorter length (P28).

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use super::BLOCK_BYTES;
use super::error::{Error, Result};
use super::locks::{Held, Item};
use super::record::ExtentRecord;
use super::sink::{CHECKPOINT_BYTES, expect_length};
use super::store::{BlobStore, Shared, blocking};
use super::sums::{Checked, ReadFault};
use crate::oci::{ExtentId, HashState, Hasher};

use super::extent::StoredExtent;

// Checkpoints stand at block borders, so that what is hashed again is checked block by block.
const _: () = assert!(CHECKPOINT_BYTES.is_multiple_of(BLOCK_BYTES));

impl BlobStore {
    /// Truncates a synced extent to `length` (salvage, P28) and returns it with the hash state at that length.
    ///
    /// `resume` is the session's hash state before the extent's first byte. At most 4 MiB are read again.
    ///
    /// # Errors
    ///
    /// - [`Error::ExtentUnknown`] if the extent is not synced here, or proves damaged.
    /// - [`Error::SizeMismatch`] if it is shorter than `length`.
    pub async fn trim_extent(&self, id: ExtentId, length: u64, resume: HashState) -> Result<StoredExtent> {
        let held = self.shared.locks.lock(Item::Extent(id)).await;
        let shared = Arc::clone(&self.shared);
        blocking(move || shared.trim_extent(&held, id, length, &resume)).await
    }
}

impl Shared {
    fn trim_extent(
        self: &Arc<Self>,
        held: &Held,
        id: ExtentId,
        length: u64,
        resume: &HashState,
    ) -> Result<StoredExtent> {
        let (record, file) = self.open_extent(id)?.ok_or(Error::ExtentUnknown { id })?;
        if record.length < length {
            return Err(Error::SizeMismatch { expected: length, actual: record.length });
        }
        if record.length == length {
            return Ok(record.stored());
        }
        let shared_file = file.metadata().map_or(true, |metadata| metadata.nlink() > 1);
        let checked = Checked::new(Arc::new(file), record.length, record.sums.clone());
        let trimmed = match shortened(&record, &checked, length, resume) {
            Ok(trimmed) => trimmed,
            Err(Fault::HashState) => return Err(Error::HashState),
            Err(Fault::Read(ReadFault::Io(source))) => {
                return Err(Error::Io { doing: "read", path: self.layout.extent(id), source });
            }
            // Rotten bytes do not count as a copy.
            Err(Fault::Read(ReadFault::Damaged { block })) => {
                tracing::warn!(%id, block, "extent is damaged, removing it");
                self.remove_extent(held, id);
                return Err(Error::ExtentUnknown { id });
            }
        };
        // The record first: a crash between the two leaves a file with more bytes than count.
        self.place(&self.layout.record(id), &trimmed.encode())?;
        self.index.put_extent(id, length);
        // A blob may be another name of the same bytes; those stay, and the surplus with them until the extent goes.
        if !shared_file {
            self.cut_file(id, length)?;
        }
        Ok(trimmed.stored())
    }

    /// Cuts an extent's file, whose lock is held and which has no other name, to the length that its record says.
    pub(super) fn cut_file(&self, id: ExtentId, length: u64) -> Result<()> {
        let path = self.layout.extent(id);
        let cut = File::options().write(true).open(&path).and_then(|file| file.set_len(length).map(|()| file));
        let file = cut.map_err(|source| self.write_error("cut file", &path, source))?;
        self.sync(&file, &path)
    }
}

enum Fault {
    Read(ReadFault),
    HashState,
}

/// The record of the first `length` bytes.
fn shortened(
    record: &ExtentRecord,
    checked: &Checked,
    length: u64,
    resume: &HashState,
) -> std::result::Result<ExtentRecord, Fault> {
    let full = length / CHECKPOINT_BYTES;
    let kept = usize::try_from(full).expect("checkpoints were counted in memory");
    let state = if kept == 0 { resume } else { record.checkpoints.get(kept - 1).ok_or(Fault::HashState)? };
    let mut hasher = Hasher::resume(state).map_err(|_| Fault::HashState)?;
    let mut position = full * CHECKPOINT_BYTES;
    let first_block = usize::try_from(position / BLOCK_BYTES).expect("sums were counted in memory");
    let mut sums = record.sums.get(..first_block).ok_or(Fault::HashState)?.to_vec();
    while position < length {
        let mut block = checked.read(position / BLOCK_BYTES, 1).map_err(Fault::Read)?;
        block.truncate(usize::try_from(length - position).unwrap_or(usize::MAX));
        hasher.update(&block);
        sums.push(crc32c::crc32c(&block));
        position += block.len() as u64;
    }
    debug_assert!(expect_length(length, position).is_ok());
    let checkpoints = record.checkpoints[..kept].to_vec();
    Ok(ExtentRecord { id: record.id, length, hash_state: hasher.state(), first: record.first, checkpoints, sums })
}
