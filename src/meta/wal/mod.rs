//! Keeps the raft log, the vote and the log's bounds in one ordered stream of checksummed batches on disk.
//!
//! Owns `<data>/raft/`: segments `<number>.wal`, preallocated, written by one thread. Knows nothing of `openraft`.
//! Invariants: everything a caller was told is durable was `fdatasync`ed before it was told (R1, R2); callbacks come in the
//! order of submission (R4); a batch says which offset was durable before it was written, so damage below that offset is
//! told from a torn tail (P9); a segment is deleted only after the purge that frees it is durable.
//! Does not hold entries in memory (that is `log_memory.rs`). Start reading at `writer.rs`, then `recovery.rs`.

mod record;
mod recovery;
mod segment;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

pub use recovery::Error;
pub(super) use recovery::{Recovered, inspect, is_there, recover};

/// Identifies a log entry: who led when it was made, and its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct EntryId {
    pub(super) term: u64,
    pub(super) node: u64,
    pub(super) index: u64,
}

/// A vote: for whom, in which term, and whether a quorum granted it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ballot {
    pub(super) term: u64,
    pub(super) node: u64,
    pub(super) granted: bool,
}

/// Where an entry's framed record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) segment: u64,
    pub(super) offset: u64,
    pub(super) length: u32,
}

/// Tells the submitter of a write that it is durable, or why it can never be.
pub(super) type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// One write, in the order of submission.
pub(super) enum Write {
    /// Entries with their encoded bytes, consecutive.
    Append {
        entries: Vec<(EntryId, Vec<u8>)>,
        done: Done,
    },
    Ballot {
        ballot: Ballot,
        done: Done,
    },
    /// Drops the entries after `after`, or all.
    Truncate {
        after: Option<EntryId>,
        done: Done,
    },
    /// Drops the entries up to `upto`, inclusive.
    Purge {
        upto: EntryId,
        done: Done,
    },
    /// Remembered lazily: no sync of its own.
    Committed {
        committed: Option<EntryId>,
    },
}

/// Told of entries and where they lie.
pub(super) type Placed = Box<dyn Fn(&[(EntryId, Place)]) + Send>;

/// What the writer reports while it works.
pub(super) struct Hooks {
    /// Filled with the segments' files.
    pub(super) files: Files,
    /// Entries became durable at these places.
    pub(super) placed: Placed,
    /// A sync took this long.
    pub(super) synced: Box<dyn Fn(Duration) + Send>,
    /// The disk is full: gives back space that was put by; false if there is none.
    pub(super) relieve: Box<dyn Fn() -> bool + Send>,
    /// The writer waits for space, or has some again.
    pub(super) starving: Box<dyn Fn(bool) + Send>,
}

/// Sizes of the log's files.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    /// Bytes of a segment; a larger batch gets a larger segment.
    pub(super) segment_bytes: u64,
}

/// The open files of the segments, shared by the writer and the readers.
#[derive(Debug, Clone, Default)]
pub(super) struct Files(Arc<Mutex<ByNumber>>);

type ByNumber = BTreeMap<u64, Arc<File>>;

impl Files {
    fn insert(&self, number: u64, file: Arc<File>) {
        self.0.lock().expect("no panic while held").insert(number, file);
    }

    fn remove(&self, number: u64) {
        self.0.lock().expect("no panic while held").remove(&number);
    }

    /// Returns the file of a segment; it stays readable even if the segment is deleted meanwhile.
    pub(super) fn get(&self, number: u64) -> Option<Arc<File>> {
        self.0.lock().expect("no panic while held").get(&number).cloned()
    }
}

/// The log's writer thread; dropping it finishes what was submitted.
pub(super) struct Wal {
    queue: Option<mpsc::Sender<Write>>,
    closing: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Writes submitted and not yet taken up by the writer.
const QUEUE_MAX: usize = 4096;

impl Wal {
    /// Starts the writer after `recovered`.
    pub(super) fn start(dir: &Path, recovered: &Recovered, sizes: Sizes, hooks: Hooks) -> io::Result<Self> {
        let (queue, receiver) = mpsc::channel(QUEUE_MAX);
        let closing = Arc::new(AtomicBool::new(false));
        let writer = writer::Writer::new(dir, recovered, sizes, hooks, closing.clone())?;
        let thread = std::thread::Builder::new().name("raft-log".into()).spawn(move || writer.run(receiver))?;
        Ok(Self { queue: Some(queue), closing, thread: Some(thread) })
    }

    /// Submits a write; its callback comes from the writer's thread.
    ///
    /// # Errors
    ///
    /// If the writer has ended (it panicked).
    pub(super) async fn submit(&self, write: Write) -> io::Result<()> {
        let queue = self.queue.as_ref().expect("the queue lives until drop");
        queue.send(write).await.map_err(|_| io::Error::other("log writer ended"))
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::Relaxed);
        drop(self.queue.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("log writer panicked");
        }
    }
}

/// Reads one entry's encoded bytes back from its place.
///
/// # Errors
///
/// What the filesystem says, or `InvalidData` if the record is damaged.
pub(super) fn read_entry(file: &File, place: Place) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; place.length as usize];
    std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, place.offset)?;
    record::decode_entry_record(&bytes).ok_or_else(|| {
        let (segment, offset) = (place.segment, place.offset);
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("entry at offset {offset} of log segment {segment} is damaged"),
        )
    })
}

fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:020}.wal"))
}
