//! The one thread that writes the log: takes what has queued up, writes it as one batch, syncs once, answers in order.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc::Receiver;
use tokio::time::Instant;

use crate::disk::{self, sync_dir};

use super::record::{BATCH_BYTES_MAX, BATCH_HEADER_BYTES, Checkpoint, Records};
use super::recovery::open_last;
use super::segment::Segment;
use super::{Done, EntryId, Files, Hooks, Place, Recovered, Sizes, Write, segment_path};

/// Writes taken into one batch.
const BATCH_WRITES_MAX: usize = 1024;
/// Bytes after which a batch takes no further write.
const BATCH_BYTES_SOFT: usize = 4 << 20;
/// How long the writer waits before it asks again for space for a new segment.
const SPACE_RETRY: Duration = Duration::from_millis(500);

pub(super) struct Writer {
    dir: PathBuf,
    sizes: Sizes,
    hooks: Hooks,
    files: Files,
    closing: Arc<AtomicBool>,
    segment: Segment,
    sealed: Vec<(u64, Option<u64>)>,
    state: Checkpoint,
    failed: Option<(io::ErrorKind, String)>,
}

/// A batch being put together.
#[derive(Default)]
struct Forming {
    records: Records,
    placed: Vec<(EntryId, usize, usize)>,
    done: Vec<Done>,
    state: Checkpoint,
    must_sync: bool,
    purges: bool,
}

impl Forming {
    fn take(&mut self, write: Write) {
        match write {
            Write::Append { entries, done } => {
                for (id, encoded) in entries {
                    let (offset, length) = self.records.entry(&id, &encoded);
                    self.placed.push((id, offset, length));
                }
                self.settle(done);
            }
            Write::Ballot { ballot, done } => {
                self.records.ballot(&ballot);
                self.state.ballot = Some(ballot);
                self.settle(done);
            }
            Write::Truncate { after, done } => {
                self.records.truncate(after.as_ref());
                self.settle(done);
            }
            Write::Purge { upto, done } => {
                self.records.purge(&upto);
                self.state.purged = Some(upto);
                self.purges = true;
                self.settle(done);
            }
            Write::Committed { committed } => {
                self.records.committed(committed.as_ref());
                self.state.committed = committed;
            }
        }
    }

    fn settle(&mut self, done: Done) {
        self.must_sync = true;
        self.done.push(done);
    }
}

impl Writer {
    pub(super) fn new(
        dir: &Path,
        recovered: &Recovered,
        sizes: Sizes,
        hooks: Hooks,
        closing: Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let files = hooks.files.clone();
        for (number, _) in &recovered.sealed {
            files.insert(*number, Arc::new(fs::File::open(segment_path(dir, *number))?));
        }
        let segment = open_last(dir, recovered, sizes.segment_bytes)?;
        files.insert(segment.number, segment.file.clone());
        Ok(Self {
            dir: dir.to_owned(),
            sizes,
            hooks,
            files,
            closing,
            segment,
            sealed: recovered.sealed.clone(),
            state: recovered.checkpoint(),
            failed: None,
        })
    }

    /// Serves the queue until it is closed and empty.
    pub(super) fn run(mut self, mut queue: Receiver<Write>) {
        loop {
            let first = match queue.try_recv() {
                Ok(write) => write,
                Err(_) => {
                    self.announce();
                    match queue.blocking_recv() {
                        Some(write) => write,
                        None => break,
                    }
                }
            };
            let mut forming = Forming { state: self.state, ..Forming::default() };
            forming.take(first);
            for _ in 1..BATCH_WRITES_MAX {
                if forming.records.len() >= BATCH_BYTES_SOFT {
                    break;
                }
                match queue.try_recv() {
                    Ok(write) => forming.take(write),
                    Err(_) => break,
                }
            }
            self.commit(forming);
        }
        if let Err(error) = self.segment.file.sync_data() {
            tracing::error!(%error, "last sync of the log failed");
        }
    }

    fn commit(&mut self, forming: Forming) {
        let Forming { records, placed, done, state, must_sync, purges } = forming;
        let result = match &self.failed {
            // A failed sync is final: the kernel has marked the pages clean.
            Some((kind, text)) => Err(io::Error::new(*kind, text.clone())),
            None => self.write(records, &placed, state, must_sync),
        };
        if let Err(error) = &result
            && self.failed.is_none()
        {
            tracing::error!(%error, "log can no longer be written");
            self.failed = Some((error.kind(), error.to_string()));
        }
        for callback in done {
            callback(result.as_ref().copied().map_err(|error| io::Error::new(error.kind(), error.to_string())));
        }
        if purges && result.is_ok() {
            self.delete_purged();
        }
    }

    fn write(
        &mut self,
        records: Records,
        placed: &[(EntryId, usize, usize)],
        state: Checkpoint,
        must_sync: bool,
    ) -> io::Result<()> {
        if records.len() + BATCH_HEADER_BYTES > BATCH_BYTES_MAX {
            // Recovery would take it for damage: better refused now than after it was acknowledged.
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "batch is too large for the log"));
        }
        let length = (records.len() + BATCH_HEADER_BYTES) as u64;
        if self.segment.end + length > self.segment.capacity {
            self.rotate(length)?;
        }
        let start = self.segment.end;
        let batch = records.into_batch(self.segment.number, start, self.segment.durable);
        disk::write_all_at(&self.segment.file, &self.segment.path, &batch, start)?;
        self.segment.end = start + batch.len() as u64;
        self.segment.announced = self.segment.durable;
        if let Some((last, ..)) = placed.last() {
            self.segment.index_max = self.segment.index_max.max(Some(last.index));
        }
        self.state = state;
        if must_sync {
            self.sync()?;
        }
        let base = start + BATCH_HEADER_BYTES as u64;
        let places: Vec<_> = placed
            .iter()
            .map(|(id, offset, length)| {
                let length = u32::try_from(*length).expect("batches are capped below 4 GiB");
                (*id, Place { segment: self.segment.number, offset: base + *offset as u64, length })
            })
            .collect();
        (self.hooks.placed)(&places);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let begun = Instant::now();
        disk::sync_file(&self.segment.file, &self.segment.path)?;
        self.segment.durable = self.segment.end;
        (self.hooks.synced)(begun.elapsed());
        Ok(())
    }

    /// While there is nothing to do, writes an empty batch that says how far the log is durable, so that damage to what was
    /// acknowledged last is told from a torn tail. It needs no sync: it only states what is already true.
    fn announce(&mut self) {
        let fits = self.segment.end + BATCH_HEADER_BYTES as u64 <= self.segment.capacity;
        if self.failed.is_some() || !fits || self.segment.announced >= self.segment.durable {
            return;
        }
        let (number, end) = (self.segment.number, self.segment.end);
        let batch = Records::default().into_batch(number, end, self.segment.durable);
        match disk::write_all_at(&self.segment.file, &self.segment.path, &batch, end) {
            Ok(()) => {
                self.segment.end = end + batch.len() as u64;
                self.segment.announced = self.segment.durable;
            }
            Err(error) => {
                tracing::error!(%error, "log can no longer be written");
                self.failed = Some((error.kind(), error.to_string()));
            }
        }
    }

    /// Seals the segment and goes on in a new one. A full disk is waited out: nothing acknowledged is lost, and the node
    /// goes on when space returns.
    fn rotate(&mut self, length: u64) -> io::Result<()> {
        self.segment.seal()?;
        let number = self.segment.number + 1;
        let capacity = self.sizes.segment_bytes.max(length + 4096);
        let mut warned = false;
        let next = loop {
            match Segment::create(&self.dir, number, capacity, &self.state) {
                Err(error) if error.kind() == io::ErrorKind::StorageFull && !self.closing.load(Ordering::Relaxed) => {
                    let beside = segment_path(&self.dir, number).with_extension("new");
                    fs::remove_file(beside).or_else(ignore_missing)?;
                    if (self.hooks.relieve)() {
                        continue;
                    }
                    if !warned {
                        tracing::error!(%error, "no space for the log, waiting for some");
                        (self.hooks.starving)(true);
                        warned = true;
                    }
                    std::thread::sleep(SPACE_RETRY);
                }
                other => break other?,
            }
        };
        if warned {
            tracing::info!("space for the log again");
            (self.hooks.starving)(false);
        }
        self.files.insert(number, next.file.clone());
        let before = std::mem::replace(&mut self.segment, next);
        self.sealed.push((before.number, before.index_max));
        Ok(())
    }

    /// Deletes the oldest segments that hold nothing after the purged index; the purge itself is durable by now. One that
    /// cannot be removed keeps those after it, for the next purge: a hole between segments is taken for loss.
    fn delete_purged(&mut self) {
        let Some(purged) = self.state.purged else { return };
        let free = |(_, index_max): &&(u64, Option<u64>)| index_max.is_none_or(|index| index <= purged.index);
        let count = self.sealed.iter().take_while(free).count();
        let mut removed = 0;
        for (number, _) in &self.sealed[..count] {
            if let Err(error) = fs::remove_file(segment_path(&self.dir, *number)).or_else(ignore_missing) {
                // It is only space.
                tracing::warn!(%error, number, "purged log segment could not be removed");
                break;
            }
            self.files.remove(*number);
            removed += 1;
        }
        self.sealed.drain(..removed);
        if removed > 0
            && let Err(error) = sync_dir(&self.dir)
        {
            tracing::warn!(%error, "log directory could not be synced after a purge");
        }
    }
}

fn ignore_missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}
