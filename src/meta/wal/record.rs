//! The bytes of batches and records.
//!
//! A segment is a run of batches. A batch is a magic, then one frame (`disk::encode_frame`) around: version (u8), segment
//! number, own offset, durable offset (u64 each, little endian), then framed records. A record is a kind (u8) and a payload.

use serde::{Deserialize, Serialize};

use crate::disk::{FRAME_HEADER_BYTES, decode_frame, encode_frame};

use super::{Ballot, EntryId};

const MAGIC: [u8; 4] = *b"RfB1";
const VERSION: u8 = 1;
/// Bytes of a batch before its records.
pub(super) const BATCH_HEADER_BYTES: usize = MAGIC.len() + FRAME_HEADER_BYTES + 1 + 3 * 8;
/// No batch is longer: a length beyond it is damage, not a reason to allocate.
pub(super) const BATCH_BYTES_MAX: usize = 256 << 20;

const KIND_CHECKPOINT: u8 = 1;
const KIND_BALLOT: u8 = 2;
const KIND_ENTRY: u8 = 3;
const KIND_TRUNCATE: u8 = 4;
const KIND_PURGE: u8 = 5;
const KIND_COMMITTED: u8 = 6;

/// What the log's bounds and vote were when a segment began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Checkpoint {
    pub(super) ballot: Option<Ballot>,
    pub(super) purged: Option<EntryId>,
    pub(super) committed: Option<EntryId>,
}

/// A decoded record; of an entry only its id, with its frame's offset in the segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Record {
    Checkpoint(Checkpoint),
    Ballot(Ballot),
    Entry { id: EntryId, offset: u64, length: u32 },
    Truncate(Option<EntryId>),
    Purge(EntryId),
    Committed(Option<EntryId>),
}

/// Collects the records of one batch.
#[derive(Debug, Default)]
pub(super) struct Records {
    bytes: Vec<u8>,
}

impl Records {
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn checkpoint(&mut self, checkpoint: &Checkpoint) {
        self.small(KIND_CHECKPOINT, checkpoint);
    }

    pub(super) fn ballot(&mut self, ballot: &Ballot) {
        self.small(KIND_BALLOT, ballot);
    }

    pub(super) fn truncate(&mut self, after: Option<&EntryId>) {
        self.small(KIND_TRUNCATE, &after);
    }

    pub(super) fn purge(&mut self, upto: &EntryId) {
        self.small(KIND_PURGE, upto);
    }

    pub(super) fn committed(&mut self, committed: Option<&EntryId>) {
        self.small(KIND_COMMITTED, &committed);
    }

    /// Adds an entry; returns the offset within the records and the length of its frame.
    pub(super) fn entry(&mut self, id: &EntryId, encoded: &[u8]) -> (usize, usize) {
        let mut record = vec![KIND_ENTRY];
        record = postcard::to_extend(id, record).expect("an id always encodes");
        record.extend_from_slice(encoded);
        self.frame(&record)
    }

    fn small<T: Serialize>(&mut self, kind: u8, value: &T) {
        let record = postcard::to_extend(value, vec![kind]).expect("small records always encode");
        self.frame(&record);
    }

    fn frame(&mut self, record: &[u8]) -> (usize, usize) {
        let start = self.bytes.len();
        encode_frame(&mut self.bytes, record);
        (start, self.bytes.len() - start)
    }

    /// Wraps the records as a batch for `offset` of `segment`, saying that `durable` bytes of it are durable.
    pub(super) fn into_batch(self, segment: u64, offset: u64, durable: u64) -> Vec<u8> {
        let mut body = Vec::with_capacity(1 + 24 + self.bytes.len());
        body.push(VERSION);
        for number in [segment, offset, durable] {
            body.extend_from_slice(&number.to_le_bytes());
        }
        body.extend_from_slice(&self.bytes);
        let mut batch = Vec::with_capacity(body.len() + BATCH_HEADER_BYTES);
        batch.extend_from_slice(&MAGIC);
        encode_frame(&mut batch, &body);
        batch
    }
}

/// Says why bytes are not a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BatchError {
    /// Not whole or not undamaged: a torn tail, or damage.
    Bad,
    /// Whole, but of a format this binary does not know.
    Version(u8),
}

/// A whole and undamaged batch.
#[derive(Debug)]
pub(super) struct Batch {
    /// Bytes it takes in the segment.
    pub(super) length: u64,
    /// Offset of the segment known durable when it was written.
    pub(super) durable: u64,
    pub(super) records: Vec<Record>,
}

/// Decodes the batch at `offset` of a segment's bytes.
pub(super) fn decode_batch(bytes: &[u8], segment: u64, offset: u64) -> Result<Batch, BatchError> {
    let start = usize::try_from(offset).map_err(|_| BatchError::Bad)?;
    let rest = bytes.get(start..).ok_or(BatchError::Bad)?;
    let framed = rest.strip_prefix(&MAGIC).ok_or(BatchError::Bad)?;
    let (body, taken) = decode_frame(framed, BATCH_BYTES_MAX).map_err(|_| BatchError::Bad)?;
    let (version, body) = body.split_first().ok_or(BatchError::Bad)?;
    if *version != VERSION {
        return Err(BatchError::Version(*version));
    }
    let number = |at: usize| -> Option<u64> { Some(u64::from_le_bytes(body.get(at..at + 8)?.try_into().ok()?)) };
    let header = (number(0), number(8), number(16));
    let (Some(own_segment), Some(own_offset), Some(durable)) = header else { return Err(BatchError::Bad) };
    // A batch of an earlier life of these disk blocks is not one of this segment.
    if own_segment != segment || own_offset != offset {
        return Err(BatchError::Bad);
    }
    let records_at = offset + BATCH_HEADER_BYTES as u64;
    let records = decode_records(&body[24..], records_at)?;
    Ok(Batch { length: (MAGIC.len() + taken) as u64, durable, records })
}

fn decode_records(mut bytes: &[u8], mut offset: u64) -> Result<Vec<Record>, BatchError> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let (record, taken) = decode_frame(bytes, BATCH_BYTES_MAX).map_err(|_| BatchError::Bad)?;
        let length = u32::try_from(taken).map_err(|_| BatchError::Bad)?;
        records.push(decode_record(record, offset, length)?);
        bytes = &bytes[taken..];
        offset += taken as u64;
    }
    Ok(records)
}

fn decode_record(record: &[u8], offset: u64, length: u32) -> Result<Record, BatchError> {
    let (kind, payload) = record.split_first().ok_or(BatchError::Bad)?;
    Ok(match *kind {
        KIND_CHECKPOINT => Record::Checkpoint(small(payload)?),
        KIND_BALLOT => Record::Ballot(small(payload)?),
        KIND_ENTRY => {
            let (id, _) = postcard::take_from_bytes(payload).map_err(|_| BatchError::Bad)?;
            Record::Entry { id, offset, length }
        }
        KIND_TRUNCATE => Record::Truncate(small(payload)?),
        KIND_PURGE => Record::Purge(small(payload)?),
        KIND_COMMITTED => Record::Committed(small(payload)?),
        // An unknown kind is from a newer binary: stop, never skip.
        other => return Err(BatchError::Version(other)),
    })
}

fn small<'a, T: Deserialize<'a>>(payload: &'a [u8]) -> Result<T, BatchError> {
    postcard::from_bytes(payload).map_err(|_| BatchError::Bad)
}

/// Returns the encoded entry within its framed record, or `None` if that is damaged.
pub(super) fn decode_entry_record(framed: &[u8]) -> Option<Vec<u8>> {
    let (record, _) = decode_frame(framed, BATCH_BYTES_MAX).ok()?;
    let payload = record.strip_prefix(&[KIND_ENTRY])?;
    let (_, encoded) = postcard::take_from_bytes::<EntryId>(payload).ok()?;
    Some(encoded.to_vec())
}

/// Finds the first batch after `from` that is whole: what a torn tail never has with a durable offset beyond `from`.
pub(super) fn later_batches(bytes: &[u8], segment: u64, from: u64) -> impl Iterator<Item = (u64, Batch)> + '_ {
    let start = usize::try_from(from).unwrap_or(usize::MAX).min(bytes.len());
    bytes[start..].windows(MAGIC.len()).enumerate().filter(|(_, window)| *window == MAGIC).filter_map(move |(at, _)| {
        let offset = from + at as u64;
        decode_batch(bytes, segment, offset).ok().map(|batch| (offset, batch))
    })
}
