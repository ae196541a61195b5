//! Reads the log at start, and tells a torn tail from damage (P9).

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::disk::create_dir_durable;

use super::record::{BatchError, Checkpoint, Record, decode_batch, later_batches};
use super::segment::{self, Segment};
use super::{Ballot, EntryId, Place};

/// Says why a log cannot be opened. The node must not go on: it may have forgotten what it promised.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filesystem refused.
    #[error("read the log in {dir}")]
    Io {
        /// The log's directory.
        dir: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// Bytes that were durable are damaged: the node returns only under a new id.
    #[error("log segment {segment} is damaged at offset {offset}, below what was durable")]
    Damaged {
        /// The segment's number.
        segment: u64,
        /// Where in it.
        offset: u64,
    },
    /// A segment between others is gone.
    #[error("log segment {segment} is missing")]
    SegmentMissing {
        /// The segment's number.
        segment: u64,
    },
    /// The entries do not follow each other, or do not begin where the log was purged.
    #[error("log has a hole before entry {index}")]
    Hole {
        /// The entry after the hole.
        index: u64,
    },
    /// The log was written by a newer binary.
    #[error("log segment {segment} has a format {version} that this binary does not know")]
    Version {
        /// The segment's number.
        segment: u64,
        /// What it says.
        version: u8,
    },
}

/// The log as it was found.
#[derive(Debug)]
pub(in crate::meta) struct Recovered {
    pub(in crate::meta) ballot: Option<Ballot>,
    pub(in crate::meta) purged: Option<EntryId>,
    pub(in crate::meta) committed: Option<EntryId>,
    /// The entries after `purged`, in order.
    pub(in crate::meta) entries: VecDeque<(EntryId, Place)>,
    /// Sealed segments, oldest first, with the highest index written in each.
    pub(super) sealed: Vec<(u64, Option<u64>)>,
    /// The segment to go on writing, if there is one: its number, its end, its highest index.
    pub(super) last: Option<(u64, u64, Option<u64>)>,
}

impl Recovered {
    pub(super) fn checkpoint(&self) -> Checkpoint {
        Checkpoint { ballot: self.ballot, purged: self.purged, committed: self.committed }
    }

    fn apply(&mut self, segment: u64, record: &Record, first: bool) -> Result<Option<u64>, Error> {
        match *record {
            // What a checkpoint says is already known, unless the segments before it are purged.
            Record::Checkpoint(checkpoint) if first => {
                (self.ballot, self.purged) = (checkpoint.ballot, checkpoint.purged);
                self.committed = checkpoint.committed;
            }
            Record::Checkpoint(checkpoint) => {
                if (checkpoint.ballot, checkpoint.purged) != (self.ballot, self.purged) {
                    return Err(Error::Damaged { segment, offset: 0 });
                }
            }
            Record::Ballot(ballot) => self.ballot = Some(ballot),
            Record::Committed(committed) => self.committed = committed,
            Record::Truncate(after) => {
                let keep = |id: &EntryId| after.is_some_and(|after| id.index <= after.index);
                while self.entries.back().is_some_and(|(id, _)| !keep(id)) {
                    self.entries.pop_back();
                }
            }
            Record::Purge(upto) => {
                self.purged = Some(upto);
                while self.entries.front().is_some_and(|(id, _)| id.index <= upto.index) {
                    self.entries.pop_front();
                }
            }
            Record::Entry { id, offset, length } => {
                if self.entries.back().is_some_and(|(last, _)| last.index + 1 != id.index) {
                    return Err(Error::Hole { index: id.index });
                }
                self.entries.push_back((id, Place { segment, offset, length }));
                return Ok(Some(id.index));
            }
        }
        Ok(None)
    }

    /// Segments go only by a purge, and entries begin where it ended.
    fn check_start(&self, first_segment: u64) -> Result<(), Error> {
        match (self.purged, self.entries.front()) {
            (None, _) if first_segment > 1 => Err(Error::SegmentMissing { segment: 1 }),
            (Some(purged), Some((id, _))) if id.index != purged.index + 1 => Err(Error::Hole { index: id.index }),
            _ => Ok(()),
        }
    }
}

/// Whether a log was ever made in `dir`: its first segment is made with it, and the last one is never deleted.
///
/// # Errors
///
/// [`Error::Io`] if that cannot be told.
pub(in crate::meta) fn is_there(dir: &Path) -> Result<bool, Error> {
    let io_error = |source| Error::Io { dir: dir.to_owned(), source };
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other.map_err(io_error)?,
    };
    for entry in entries {
        if entry.map_err(io_error)?.path().extension().is_some_and(|extension| extension == "wal") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reads the log in `dir`, which is made if it is missing. Nothing is changed but half-made segments, which go.
///
/// # Errors
///
/// See [`Error`]: a torn tail is none, it is dropped.
pub(in crate::meta) fn recover(dir: &Path) -> Result<Recovered, Error> {
    let io_error = |source| Error::Io { dir: dir.to_owned(), source };
    create_dir_durable(dir).map_err(io_error)?;
    let segments = segment::list(dir).map_err(io_error)?;
    read(dir, segments)
}

/// Reads the log in `dir` and changes nothing.
///
/// # Errors
///
/// As [`recover`]; a missing directory is one too.
pub(in crate::meta) fn inspect(dir: &Path) -> Result<Recovered, Error> {
    let (segments, _) = segment::find(dir).map_err(|source| Error::Io { dir: dir.to_owned(), source })?;
    read(dir, segments)
}

fn read(dir: &Path, segments: Vec<(u64, PathBuf)>) -> Result<Recovered, Error> {
    let io_error = |source| Error::Io { dir: dir.to_owned(), source };
    let mut recovered = Recovered {
        ballot: None,
        purged: None,
        committed: None,
        entries: VecDeque::new(),
        sealed: Vec::new(),
        last: None,
    };
    let count = segments.len();
    let first = segments.first().map_or(1, |(number, _)| *number);
    for (position, (number, path)) in segments.into_iter().enumerate() {
        let expected = first + position as u64;
        if number != expected {
            return Err(Error::SegmentMissing { segment: expected });
        }
        let bytes = fs::read(&path).map_err(io_error)?;
        let is_last = position + 1 == count;
        let (end, index_max) = read_segment(&mut recovered, &bytes, number, position == 0)?;
        if is_last {
            check_tail(&bytes, number, end)?;
            recovered.last = Some((number, end, index_max));
        } else if end != bytes.len() as u64 {
            // A segment is synced and cut to its length before the next one exists.
            return Err(Error::Damaged { segment: number, offset: end });
        } else {
            recovered.sealed.push((number, index_max));
        }
    }
    recovered.check_start(first)?;
    Ok(recovered)
}

/// Takes in the batches of a segment; returns where they end and the highest index written.
fn read_segment(log: &mut Recovered, bytes: &[u8], number: u64, first: bool) -> Result<(u64, Option<u64>), Error> {
    let mut offset = 0;
    let mut index_max = None;
    loop {
        match decode_batch(bytes, number, offset) {
            Ok(batch) => {
                for record in &batch.records {
                    index_max = index_max.max(log.apply(number, record, first)?);
                }
                offset += batch.length;
            }
            Err(BatchError::Version(version)) => return Err(Error::Version { segment: number, version }),
            // The first batch was durable before the segment had its name.
            Err(BatchError::Bad) if offset == 0 => return Err(Error::Damaged { segment: number, offset }),
            Err(BatchError::Bad) => return Ok((offset, index_max)),
        }
    }
}

/// Refuses a segment in which a whole batch after the bad bytes says that they were durable.
fn check_tail(bytes: &[u8], number: u64, end: u64) -> Result<(), Error> {
    match later_batches(bytes, number, end).any(|(_, batch)| batch.durable > end) {
        true => Err(Error::Damaged { segment: number, offset: end }),
        false => Ok(()),
    }
}

/// Opens the segment to write after recovery, or makes the first one.
pub(super) fn open_last(dir: &Path, recovered: &Recovered, capacity: u64) -> io::Result<Segment> {
    match recovered.last {
        Some((number, end, index_max)) => {
            let mut segment = Segment::reopen(dir, number, end, capacity)?;
            segment.index_max = index_max;
            Ok(segment)
        }
        None => Segment::create(dir, 1, capacity, &recovered.checkpoint()),
    }
}
