//! One file that is being written: bytes go to disk, through the hash and into block sums in one pass. Blocking.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

use super::error::{Error, Result};
use super::extent::Progress;
use super::store::{Shared, joined, remove_quietly};
use super::sums::Summer;
use crate::disk;
use crate::oci::{HashState, Hasher};

/// Bytes between two exported hash states of an extent (P28).
pub(super) const CHECKPOINT_BYTES: u64 = 4 << 20;

// Written bytes are pushed to the disk in such portions while more arrive, so that the last sync is short.
const EARLY_SYNC_BYTES: u64 = 16 << 20;

/// What a file must be told at its start.
pub(super) struct SinkOptions {
    pub(super) hasher: Hasher,
    /// Whether states of the hash are kept on the way.
    pub(super) checkpoints: bool,
    /// Who is told how far the file has come.
    pub(super) progress: Option<watch::Sender<Progress>>,
}

/// A file on its way. Dropped before [`Sink::keep`], it takes the file away with it.
#[derive(Debug)]
pub(super) struct Sink {
    shared: Arc<Shared>,
    path: PathBuf,
    file: Arc<File>,
    hasher: Hasher,
    summer: Summer,
    length: u64,
    checkpoints: Option<Vec<HashState>>,
    progress: Option<watch::Sender<Progress>>,
    early: Option<JoinHandle<Result<()>>>,
    early_length: u64,
    kept: bool,
}

/// What is known of a file once all its bytes are written.
#[derive(Debug)]
pub(super) struct Sealed {
    pub(super) hasher: Hasher,
    pub(super) length: u64,
    pub(super) sums: Vec<u32>,
    pub(super) checkpoints: Vec<HashState>,
}

impl Sink {
    pub(super) fn create(shared: Arc<Shared>, path: PathBuf, options: SinkOptions) -> Result<Self> {
        let file = disk::create_new(&path).map_err(|source| shared.write_error("create file", &path, source))?;
        Ok(Self {
            shared,
            path,
            file: Arc::new(file),
            hasher: options.hasher,
            summer: Summer::default(),
            length: 0,
            checkpoints: options.checkpoints.then(Vec::new),
            progress: options.progress,
            early: None,
            early_length: 0,
            kept: false,
        })
    }

    pub(super) fn batches(&self) -> Arc<Semaphore> {
        Arc::clone(&self.shared.batches)
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn write(&mut self, pieces: &[Bytes]) -> Result<()> {
        self.shared.space.admit_more()?;
        let before = self.length;
        for piece in pieces {
            disk::write_all_at(&self.file, &self.path, piece, self.length)
                .map_err(|source| self.shared.write_error("write file", &self.path, source))?;
            self.absorb(piece);
        }
        self.shared.metrics.written_bytes.inc_by(self.length - before);
        self.tell(false);
        self.sync_early()
    }

    fn absorb(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = usize::try_from(CHECKPOINT_BYTES - self.length % CHECKPOINT_BYTES).expect("a few MiB");
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.hasher.update(now);
            self.summer.update(now);
            self.length += now.len() as u64;
            if self.length.is_multiple_of(CHECKPOINT_BYTES)
                && let Some(checkpoints) = &mut self.checkpoints
            {
                checkpoints.push(self.hasher.state());
            }
            bytes = later;
        }
    }

    fn tell(&self, ended: bool) {
        if let Some(progress) = &self.progress {
            progress.send_replace(Progress { written: self.length, ended });
        }
    }

    /// Tells followers that no more bytes come; they need not wait for the sync.
    pub(super) fn end(&self) {
        self.tell(true);
    }

    // The outcome must not be missed: the kernel reports a failed writeback once, to whoever syncs first.
    fn sync_early(&mut self) -> Result<()> {
        if self.early.as_ref().is_some_and(JoinHandle::is_finished) {
            self.await_early()?;
        }
        if self.early.is_none() && self.length - self.early_length >= EARLY_SYNC_BYTES {
            self.early_length = self.length;
            let (shared, file, path) = (Arc::clone(&self.shared), Arc::clone(&self.file), self.path.clone());
            self.early = Some(Handle::current().spawn_blocking(move || shared.sync(&file, &path)));
        }
        Ok(())
    }

    fn await_early(&mut self) -> Result<()> {
        match self.early.take() {
            Some(early) => joined(Handle::current().block_on(early)),
            None => Ok(()),
        }
    }

    /// Ends the bytes. The caller syncs the file and gives it a name; it is still taken away unless [`Self::keep`] is called.
    pub(super) fn seal(&mut self) -> Result<Sealed> {
        self.await_early()?;
        Ok(Sealed {
            hasher: self.hasher.clone(),
            length: self.length,
            sums: std::mem::take(&mut self.summer).finish(),
            checkpoints: self.checkpoints.take().unwrap_or_default(),
        })
    }

    /// The digest of the bytes so far.
    pub(super) fn digest(&self) -> crate::oci::Digest {
        self.hasher.clone().finish()
    }

    /// Leaves the file where it is.
    pub(super) fn keep(&mut self) {
        self.kept = true;
    }

    /// Whether the file still lies under its name; another attempt may have begun anew there.
    pub(super) fn is_in_place(&self) -> bool {
        is_file_at(&self.file, &self.path)
    }

    /// Takes the file away now.
    pub(super) fn discard(mut self) {
        self.kept = true;
        if self.is_in_place() {
            remove_quietly(&self.path);
        }
    }
}

fn is_file_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), path.metadata()) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let (file, path) = (Arc::clone(&self.file), self.path.clone());
        let remove = move || {
            if is_file_at(&file, &path) {
                remove_quietly(&path);
            }
        };
        // A large file takes a while to free; a dropped call must not hold up its thread.
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

/// Checks the length of a finished stream of bytes.
pub(super) fn expect_length(expected: u64, actual: u64) -> Result<()> {
    if expected == actual { Ok(()) } else { Err(Error::SizeMismatch { expected, actual }) }
}
