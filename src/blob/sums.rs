//! CRC32C per block: computed while bytes pass, kept beside the blob, checked before bytes leave (P16).

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use super::BLOCK_BYTES;
use crate::disk;
use crate::oci::Digest;

const BLOCK: usize = 256 * 1024;
const _: () = assert!(BLOCK as u64 == BLOCK_BYTES);

const VERSION: u8 = 1;
// Sums of a blob of 4 TiB.
const RECORD_BYTES_MAX: usize = 65 << 20;

/// Computes one CRC32C per block of a stream; the last block may be short.
#[derive(Debug, Default)]
pub(super) struct Summer {
    sums: Vec<u32>,
    open: u32,
    open_bytes: usize,
}

impl Summer {
    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK - self.open_bytes));
            self.open = crc32c::crc32c_append(self.open, now);
            self.open_bytes += now.len();
            if self.open_bytes == BLOCK {
                self.sums.push(std::mem::take(&mut self.open));
                self.open_bytes = 0;
            }
            bytes = later;
        }
    }

    pub(super) fn finish(mut self) -> Vec<u32> {
        if self.open_bytes > 0 {
            self.sums.push(self.open);
        }
        self.sums
    }
}

/// Encodes a blob's sums for its sidecar.
pub(super) fn encode(digest: &Digest, size: u64, sums: &[u32]) -> Vec<u8> {
    let head = postcard::to_stdvec(&(VERSION, digest, size)).expect("plain values encode");
    let mut record = Vec::with_capacity(head.len() + sums.len() * 4);
    record.extend_from_slice(&head);
    for sum in sums {
        record.extend_from_slice(&sum.to_le_bytes());
    }
    let mut framed = Vec::with_capacity(record.len() + disk::FRAME_HEADER_BYTES);
    disk::encode_frame(&mut framed, &record);
    framed
}

/// Decodes a sidecar to the blob's size and sums; `None` if it is damaged, of another version or of another blob.
pub(super) fn decode(bytes: &[u8], digest: &Digest) -> Option<(u64, Vec<u32>)> {
    let (record, taken) = disk::decode_frame(bytes, RECORD_BYTES_MAX).ok()?;
    let ((version, of, size), rest): ((u8, Digest, u64), _) = postcard::take_from_bytes(record).ok()?;
    let sums: Vec<u32> =
        rest.chunks_exact(4).map(|sum| u32::from_le_bytes(sum.try_into().expect("four bytes"))).collect();
    let whole = taken == bytes.len() && rest.len() as u64 == size.div_ceil(BLOCK_BYTES) * 4;
    (version == VERSION && of == *digest && whole).then_some((size, sums))
}

/// Why blocks could not be read.
#[derive(Debug)]
pub(super) enum ReadFault {
    /// The block's bytes differ from its sum, or cannot be read at all.
    Damaged { block: u64 },
    /// The filesystem said something else.
    Io(io::Error),
}

/// A file whose bytes come out only after their block was checked.
#[derive(Debug, Clone)]
pub(super) struct Checked {
    file: Arc<File>,
    length: u64,
    sums: Arc<[u32]>,
}

/// How a file looked when bytes of it were checked: while it looks the same they need no other check (P16).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Checked {
    /// How the file looks now.
    pub(super) fn stamp(&self) -> io::Result<Stamp> {
        let now = self.file.metadata()?;
        Ok(Stamp {
            inode: now.ino(),
            size: now.size(),
            modified: (now.mtime(), now.mtime_nsec()),
            changed: (now.ctime(), now.ctime_nsec()),
        })
    }

    /// Reads a range of bytes that were checked when the file looked like that; `None` if it does no more, or cannot be read.
    pub(super) fn read_again(&self, start: u64, end: u64, stamp: Stamp) -> Option<Vec<u8>> {
        let length = usize::try_from(end - start).ok()?;
        let bytes = disk::read_exact_at(&self.file, start, length).ok()?;
        (self.stamp().ok()? == stamp).then_some(bytes)
    }

    /// `length` may be less than the file's, never more.
    pub(super) fn new(file: Arc<File>, length: u64, sums: Vec<u32>) -> Self {
        Self { file, length, sums: sums.into() }
    }

    /// Reads up to `count` whole blocks from block `first` on; the file's last one may be short.
    ///
    /// Stops before a damaged block; only a damaged first block is an error.
    pub(super) fn read(&self, first: u64, count: u64) -> Result<Vec<u8>, ReadFault> {
        let start = first * BLOCK_BYTES;
        let end = (start + count * BLOCK_BYTES).min(self.length);
        let wanted = usize::try_from(end.saturating_sub(start)).expect("a few blocks fit in memory");
        let damaged = ReadFault::Damaged { block: first };
        let mut bytes = match disk::read_exact_at(&self.file, start, wanted) {
            Ok(bytes) => bytes,
            // One bad sector must not hide the good blocks before it.
            Err(error) if is_damage(&error) && count > 1 => return self.read(first, count / 2),
            Err(error) if is_damage(&error) => return Err(damaged),
            Err(error) => return Err(ReadFault::Io(error)),
        };
        let sums = usize::try_from(first).ok().and_then(|first| self.sums.get(first..)).unwrap_or_default();
        let mut good = 0;
        for (index, block) in bytes.chunks(BLOCK).enumerate() {
            if sums.get(index).is_none_or(|sum| crc32c::crc32c(block) != *sum) {
                break;
            }
            good += block.len();
        }
        if good == 0 && wanted > 0 {
            return Err(damaged);
        }
        bytes.truncate(good);
        Ok(bytes)
    }
}

/// Whether a file could not be read or looked at because of what lies on the disk: an error of the medium, or of the
/// filesystem's own records.
pub(super) fn is_damage(error: &io::Error) -> bool {
    const EIO: i32 = 5;
    const EBADMSG: i32 = 74;
    const EUCLEAN: i32 = 117;
    error.kind() == io::ErrorKind::UnexpectedEof || matches!(error.raw_os_error(), Some(EIO | EBADMSG | EUCLEAN))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn a_sidecar_comes_back_and_any_flipped_bit_or_other_blob_is_seen() {
        let digest = Digest::of(Algorithm::Sha512, b"blob");
        let bytes = encode(&digest, BLOCK_BYTES + 1, &[7, u32::MAX]);
        assert_eq!(decode(&bytes, &digest), Some((BLOCK_BYTES + 1, vec![7, u32::MAX])));
        assert_eq!(decode(&bytes, &Digest::of(Algorithm::Sha512, b"other")), None);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&damaged, &digest), None, "bit {bit}");
        }
        assert_eq!(decode(&bytes[..bytes.len() - 1], &digest), None);
    }

    #[test]
    fn sums_do_not_depend_on_how_the_bytes_arrive() {
        let bytes: Vec<u8> = (0..=255u8).cycle().take(BLOCK * 2 + 5).collect();
        let mut whole = Summer::default();
        whole.update(&bytes);
        let mut pieces = Summer::default();
        bytes.chunks(1000).for_each(|piece| pieces.update(piece));
        let sums = whole.finish();
        assert_eq!(sums.len(), 3);
        assert_eq!(pieces.finish(), sums);
    }
}
