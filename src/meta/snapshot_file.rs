//! The form of a snapshot file, its writer, and its reader, which takes nothing from a file that is not whole.
//!
//! A file is a run of frames (`disk::encode_frame`): a header, the state's records, a trailer with their count and the
//! checksum of everything before it.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};

use crate::disk::{FRAME_HEADER_BYTES, decode_frame, encode_frame};
use crate::topology::ClusterId;

use super::snapshot::{Error, Header};
use super::state_hash::HashSum;
use super::tables::Record;
use super::{SnapshotError, State, StateBuilder, decode_record, encode_record};

const FORMAT: u8 = 1;
const HEADER: u8 = b'H';
const RECORD: u8 = b'R';
const TRAILER: u8 = b'T';
/// No record is longer: a length beyond it is damage.
const RECORD_BYTES_MAX: usize = 64 << 20;

/// Counts and checksums what goes through.
struct Summing<W> {
    inner: W,
    checksum: u32,
}

impl<W: Write> Summing<W> {
    fn frame(&mut self, scratch: &mut Vec<u8>, kind: u8, body: &[u8]) -> io::Result<()> {
        let mut record = Vec::with_capacity(body.len() + 1);
        record.push(kind);
        record.extend_from_slice(body);
        scratch.clear();
        encode_frame(scratch, &record);
        self.checksum = crc32c::crc32c_append(self.checksum, scratch);
        self.inner.write_all(scratch)
    }
}

/// Writes a snapshot whole, synced, under a name that is not its own yet.
///
/// # Errors
///
/// What the filesystem says; the file may be half there.
pub(super) fn write_file(path: &Path, state: &State, header: &Header) -> io::Result<()> {
    let mut out = Summing { inner: BufWriter::with_capacity(1 << 20, File::create(path)?), checksum: 0 };
    let mut scratch = Vec::new();
    let encoded = postcard::to_extend(header, vec![FORMAT]).expect("a header always encodes");
    out.frame(&mut scratch, HEADER, &encoded)?;
    let mut count = 0u64;
    for record in state.records() {
        out.frame(&mut scratch, RECORD, &encode_record(&record))?;
        count += 1;
    }
    let mut trailer = count.to_le_bytes().to_vec();
    trailer.extend_from_slice(&out.checksum.to_le_bytes());
    out.frame(&mut scratch, TRAILER, &trailer)?;
    let file = out.inner.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()
}

/// Records that go from the thread that reads a snapshot to the one that builds the state, at once and in all.
const BATCH: usize = 512;
const BATCHES: usize = 8;

/// Reads and verifies a whole snapshot: every frame, the trailer, the state's hash, the cluster.
///
/// Two threads share the work, for a large state is what a start waits for.
///
/// # Errors
///
/// See [`Error`].
pub(super) fn load(path: &Path, cluster: ClusterId) -> Result<(Header, State), Error> {
    let records = |source| records_error(path, source);
    let mut frames = Frames::open(path)?;
    let header = frames.header(cluster)?;
    let (send, batches) = sync_channel(BATCHES);
    let state = std::thread::scope(|scope| {
        let reading = scope.spawn(move || read_records(frames, &send));
        let mut builder = StateBuilder::unhashed();
        let built = batches.iter().flatten().try_for_each(|record| builder.push(record));
        // The reader ends when nobody takes its records any more.
        drop(batches);
        let read = reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        built.map_err(records)?;
        builder.finish_with(read?).map_err(records)
    })?;
    if state.hash() != header.state_hash {
        return Err(Error::Hash { path: path.to_owned() });
    }
    Ok((header, state))
}

fn records_error(path: &Path, source: SnapshotError) -> Error {
    match source {
        SnapshotError::Version { .. } => Error::Version { path: path.to_owned() },
        source => Error::Records { path: path.to_owned(), source },
    }
}

/// Sends all records of a snapshot on and returns the sum of their hashes, as they were written.
fn read_records(mut frames: Frames<'_>, send: &SyncSender<Vec<Record>>) -> Result<HashSum, Error> {
    let mut sum = HashSum::default();
    let mut count = 0u64;
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        let checksum = frames.checksum;
        let (kind, body) = frames.next()?;
        match kind {
            RECORD => {
                let record = decode_record(&body).map_err(|source| records_error(frames.path, source))?;
                // The sum of a state is without its head, which changes with every command.
                if !matches!(record, Record::Head(_)) {
                    sum.add_encoded(&body);
                }
                batch.push(record);
            }
            TRAILER => {
                let mut expected = count.to_le_bytes().to_vec();
                expected.extend_from_slice(&checksum.to_le_bytes());
                if body != expected || frames.has_more()? {
                    return Err(frames.damaged());
                }
            }
            _ => return Err(Error::Version { path: frames.path.to_owned() }),
        }
        count += 1;
        if kind == TRAILER || batch.len() >= BATCH {
            // Whoever builds the state may have given up: it says why.
            let is_taken = send.send(std::mem::take(&mut batch)).is_ok();
            if kind == TRAILER || !is_taken {
                return Ok(sum);
            }
        }
    }
}

/// The frames of a snapshot, one after the other.
pub(super) struct Frames<'a> {
    input: BufReader<File>,
    checksum: u32,
    path: &'a Path,
}

impl<'a> Frames<'a> {
    pub(super) fn open(path: &'a Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        Ok(Self { input: BufReader::with_capacity(1 << 20, file), checksum: 0, path })
    }

    pub(super) fn header(&mut self, cluster: ClusterId) -> Result<Header, Error> {
        let (kind, body) = self.next()?;
        let (format, body) = body.split_first().ok_or_else(|| self.damaged())?;
        if kind != HEADER {
            return Err(self.damaged());
        }
        if *format != FORMAT {
            return Err(Error::Version { path: self.path.to_owned() });
        }
        let header: Header = postcard::from_bytes(body).map_err(|_| self.damaged())?;
        if header.cluster.is_some_and(|other| other != cluster) {
            return Err(Error::Cluster { path: self.path.to_owned() });
        }
        Ok(header)
    }

    fn next(&mut self) -> Result<(u8, Vec<u8>), Error> {
        let mut bytes = vec![0; FRAME_HEADER_BYTES];
        self.fill(&mut bytes)?;
        let length = u32::from_le_bytes(bytes[..4].try_into().expect("four bytes")) as usize;
        if length > RECORD_BYTES_MAX {
            return Err(self.damaged());
        }
        bytes.resize(FRAME_HEADER_BYTES + length, 0);
        self.fill(&mut bytes[FRAME_HEADER_BYTES..])?;
        self.checksum = crc32c::crc32c_append(self.checksum, &bytes);
        let (record, _) = decode_frame(&bytes, RECORD_BYTES_MAX).map_err(|_| self.damaged())?;
        let (kind, body) = record.split_first().ok_or_else(|| self.damaged())?;
        Ok((*kind, body.to_vec()))
    }

    fn has_more(&mut self) -> Result<bool, Error> {
        let mut byte = [0];
        self.input.read(&mut byte).map(|read| read > 0).map_err(|error| self.io(error))
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        self.input.read_exact(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.damaged(),
            _ => self.io(error),
        })
    }

    fn damaged(&self) -> Error {
        Error::Damaged { path: self.path.to_owned() }
    }

    fn io(&self, source: io::Error) -> Error {
        Error::Io { path: self.path.to_owned(), source }
    }
}
