//! The handle, what its parts share, and opening.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::UNIX_EPOCH;

use prometheus_client::registry::Registry;
use tokio::sync::{Semaphore, broadcast};
use tokio::task::JoinError;
use tokio::time::Instant;

use super::Config;
use super::error::{Error, Result};
use super::extent::Active;
use super::hot::Hot;
use super::index::{BlobEntry, Index};
use super::layout::Layout;
use super::locks::{Locks, Pins};
use super::metrics::Metrics;
use super::quarantine::Identity;
use super::space::SpaceWatch;
use crate::db::Db;
use crate::disk;
use crate::env::Clock;
use crate::oci::{Algorithm, Digest, ExtentId};

// A slow listener loses the oldest events and lists afresh; the index and the disk have the truth.
const EVENTS_MAX: usize = 4096;

/// Says what became of a blob's copy on this node.
#[derive(Debug, Clone)]
pub enum Event {
    /// A verified, durable copy lies here.
    Added {
        /// The blob.
        digest: Digest,
        /// Its bytes.
        size: u64,
    },
    /// The copy was deleted.
    Removed {
        /// The blob.
        digest: Digest,
    },
    /// The copy was damaged and set aside; a good one is wanted.
    Quarantined {
        /// The blob.
        digest: Digest,
    },
}

/// How much lies here and in what state the disk is.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// Blobs, manifest bodies included.
    pub blobs: u64,
    /// Bytes of those.
    pub blob_bytes: u64,
    /// Synced extents.
    pub extents: u64,
    /// Whether the index agrees with the disk; until then absence from it means nothing (P20).
    pub index_complete: bool,
    /// Whether a write or sync has failed since the start: a human should look at the disk.
    pub disk_suspect: bool,
    /// Free bytes of the filesystem, as last measured.
    pub free_bytes: u64,
    /// Bytes of copies that would still be let in, as last measured.
    pub room_bytes: u64,
    /// Damaged copies that are kept for a look.
    pub quarantined: u64,
    /// Bytes of those.
    pub quarantined_bytes: u64,
}

/// This node's blobs and extents. Cheap to clone.
#[derive(Clone, Debug)]
pub struct BlobStore {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) layout: Layout,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) space: SpaceWatch,
    pub(super) locks: Arc<Locks>,
    pub(super) pins: Pins,
    pub(super) index: Index,
    pub(super) hot: Hot,
    pub(super) metrics: Metrics,
    pub(super) events: broadcast::Sender<Event>,
    /// Extents that are being written.
    pub(super) active: Mutex<HashMap<ExtentId, Active>>,
    /// Files in which a reader found damage, so that only that very file is set aside.
    pub(super) damaged: Mutex<HashMap<Digest, Identity>>,
    /// Batches that may be hashed and written at once: more would only keep other threads from the processors.
    pub(super) batches: Arc<Semaphore>,
    /// Open readers: they share a memory budget.
    pub(super) readers: AtomicUsize,
    /// Damaged copies that are kept for a look, and their bytes.
    pub(super) set_aside_files: AtomicU64,
    pub(super) set_aside_bytes: AtomicU64,
    /// Whether the index is to be checked against the disk once more.
    pub(super) walk_again: AtomicBool,
    /// Fan-out directories known to be durable.
    ready_dirs: Mutex<HashSet<PathBuf>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("root", &self.layout.root()).finish_non_exhaustive()
    }
}

impl BlobStore {
    /// Opens this node's bytes under `data_dir`: makes the directories and clears `tmp/`, nothing else.
    ///
    /// Blocks. Starts no task: [`Self::run`] is to be driven by the caller, who also holds the lock of the directory.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if a directory cannot be made.
    pub fn open(config: Config, data_dir: &Path, db: Db, clock: Arc<dyn Clock>) -> Result<Self> {
        let layout = Layout::new(data_dir);
        for dir in layout.directories() {
            disk::create_dir_durable(&dir).map_err(|source| Error::Io {
                doing: "create directory",
                path: dir,
                source,
            })?;
        }
        clear_temporaries(&layout);
        let metrics = Metrics::new();
        let shared = Shared {
            space: SpaceWatch::new(layout.root().into(), &config),
            pins: Pins::new(config.pin),
            hot: Hot::new(config.hot_bytes_max),
            index: Index::new(db, metrics.clone()),
            config,
            layout,
            clock,
            locks: Arc::default(),
            metrics,
            events: broadcast::Sender::new(EVENTS_MAX),
            active: Mutex::default(),
            damaged: Mutex::default(),
            batches: Arc::new(Semaphore::new(batches_max())),
            readers: AtomicUsize::new(0),
            set_aside_files: AtomicU64::new(0),
            set_aside_bytes: AtomicU64::new(0),
            walk_again: AtomicBool::new(false),
            ready_dirs: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Registers this module's metrics.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.shared.metrics.register(registry);
    }

    /// How long a file is not deleted after this node said "I hold it" (P21).
    #[must_use]
    pub fn pin_period(&self) -> std::time::Duration {
        self.shared.pins.period()
    }

    /// Says how much lies here; counts come from the index and are right once it is complete.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let counts = self.shared.index.counts();
        Usage {
            blobs: counts.blobs,
            blob_bytes: counts.blob_bytes,
            extents: counts.extents,
            index_complete: self.shared.index.is_complete(),
            disk_suspect: self.shared.space.is_suspect(),
            free_bytes: self.shared.space.free_bytes(),
            room_bytes: self.shared.space.room_bytes(),
            quarantined: self.shared.set_aside_files.load(Ordering::Relaxed),
            quarantined_bytes: self.shared.set_aside_bytes.load(Ordering::Relaxed),
        }
    }

    /// Lists up to `limit` blobs in order of their digests, beginning after `after` (catch-up, scrub, announcements).
    ///
    /// What is missing here may still lie on disk while [`Usage::index_complete`] is false.
    ///
    /// # Errors
    ///
    /// [`Error::Stopped`] if the process is stopping.
    pub async fn list_blobs(&self, after: Option<Digest>, limit: usize) -> Result<Vec<BlobEntry>> {
        let shared = Arc::clone(&self.shared);
        blocking(move || Ok(shared.index.list_blobs(after.as_ref(), limit))).await
    }

    /// Subscribes to what becomes of copies here; a receiver that lags loses the oldest events.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    /// Whether new bytes are refused: the disk is past its high watermark, or failed a write and no probe has passed since.
    #[must_use]
    pub fn refuses_writes(&self) -> bool {
        self.shared.space.refuses()
    }
}

// Twice the processors, for a batch also waits for the disk.
fn batches_max() -> usize {
    std::thread::available_parallelism().map_or(4, |processors| processors.get() * 2).max(4)
}

// What cannot be removed now is tried again at the next start; names are never reused within a run.
fn clear_temporaries(layout: &Layout) {
    let cleared = fs::read_dir(layout.temporary_dir()).and_then(|entries| {
        for entry in entries {
            fs::remove_file(entry?.path())?;
        }
        Ok(())
    });
    if let Err(error) = cleared {
        tracing::warn!(%error, "temporary files could not be cleared");
    }
}

impl Shared {
    /// Turns an error of a writing step into ours, and remembers what it says about the disk.
    pub(super) fn write_error(&self, doing: &'static str, path: &Path, source: io::Error) -> Error {
        if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            self.space.note_full();
            self.metrics.no_space.inc();
            return Error::NoSpace;
        }
        if blames_disk(&source) {
            tracing::error!(error = %source, doing, path = %path.display(), "disk failed a write");
            self.space.note_failure();
        }
        Error::Io { doing, path: path.into(), source }
    }

    /// Syncs a file; a failure is final for it.
    pub(super) fn sync(&self, file: &File, path: &Path) -> Result<()> {
        self.timed("sync file", path, || disk::sync_file(file, path))
    }

    pub(super) fn sync_dir(&self, dir: &Path) -> Result<()> {
        self.timed("sync directory", dir, || disk::sync_dir(dir))
    }

    pub(super) fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        disk::rename(from, to).map_err(|source| self.write_error("rename to", to, source))
    }

    /// Gives a synced file its final name, durably.
    pub(super) fn rename_durable(&self, from: &Path, to: &Path) -> Result<()> {
        self.timed("rename to", to, || disk::rename_durable(from, to))
    }

    pub(super) fn timed(&self, doing: &'static str, path: &Path, step: impl FnOnce() -> io::Result<()>) -> Result<()> {
        let started = Instant::now();
        let outcome = step();
        self.metrics.sync_seconds.observe(started.elapsed().as_secs_f64());
        outcome.map_err(|source| {
            let error = self.write_error(doing, path, source);
            if self.space.is_unwritable() {
                self.metrics.sync_failures.inc();
            }
            error
        })
    }

    /// Does two syncs at once: filesystems with one journal make them one.
    pub(super) fn both(first: impl Fn() -> Result<()>, second: impl Fn() -> Result<()> + Sync) -> Result<()> {
        std::thread::scope(|scope| {
            let beside = std::thread::Builder::new().name("sync".into()).spawn_scoped(scope, &second);
            let first = first();
            let second = match beside {
                Ok(beside) => beside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                // No thread to be had: one after the other.
                Err(_) => second(),
            };
            first.and(second)
        })
    }

    /// Writes a small file whole into `tmp/`; it is not synced.
    pub(super) fn write_temporary(&self, bytes: &[u8]) -> Result<(File, PathBuf)> {
        let path = self.layout.temporary();
        let file = disk::create_new(&path).map_err(|source| self.write_error("create file", &path, source))?;
        if let Err(source) = disk::write_all_at(&file, &path, bytes, 0) {
            remove_quietly(&path);
            return Err(self.write_error("write file", &path, source));
        }
        Ok((file, path))
    }

    /// Writes a small file whole under `path`, durably, by way of `tmp/`.
    pub(super) fn place(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let (file, temporary) = self.write_temporary(bytes)?;
        let placed = self.sync(&file, &temporary).and_then(|()| self.rename_durable(&temporary, path));
        if placed.is_err() {
            remove_quietly(&temporary);
        }
        placed
    }

    /// Makes the fan-out directory of `path`, durable even if another call or process made it a moment ago.
    pub(super) fn ready_dir_of(&self, path: &Path) -> Result<()> {
        let dir = path.parent().expect("files lie in directories");
        let mut ready = self.ready_dirs.lock().expect("no panic while making a directory");
        if ready.contains(dir) {
            return Ok(());
        }
        match fs::create_dir(dir) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                return Err(self.write_error("create directory", dir, source));
            }
            _ => {}
        }
        self.sync_dir(dir.parent().expect("fan-out directories lie in their algorithm's"))?;
        ready.insert(dir.into());
        Ok(())
    }

    pub(super) fn forget_ready_dirs(&self) {
        self.ready_dirs.lock().expect("no panic while making a directory").clear();
    }

    /// Makes all fan-out directories of the usual algorithm at once, so that pushes need not wait for it one by one.
    pub(super) fn ready_all_dirs(&self) -> Result<()> {
        for dir in [self.layout.blobs_of(Algorithm::Sha256), self.layout.sums_of(Algorithm::Sha256)] {
            let made: Vec<_> = (0..=255u8).map(|byte| dir.join(format!("{byte:02x}"))).collect();
            for made in &made {
                match fs::create_dir(made) {
                    Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(self.write_error("create directory", made, source));
                    }
                    _ => {}
                }
            }
            self.sync_dir(&dir)?;
            self.ready_dirs.lock().expect("no panic while making a directory").extend(made);
        }
        Ok(())
    }

    /// The wall clock in seconds of Unix time.
    pub(super) fn now(&self) -> u64 {
        self.clock.now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }

    pub(super) fn emit(&self, event: Event) {
        // Nobody may be listening yet.
        drop(self.events.send(event));
    }
}

/// Whether an error says that the disk is failing or takes no writes, as opposed to a want of descriptors or memory.
fn blames_disk(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let blaming = [Errno::IO, Errno::ROFS, Errno::NXIO, Errno::NODEV, Errno::UCLEAN, Errno::BADMSG, Errno::STALE];
    blaming.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// A number of bytes that are, or are about to be, in memory.
pub(super) fn in_memory(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

pub(super) fn remove_quietly(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, path = %path.display(), "file could not be removed");
    }
}

/// Runs blocking work to its end, even if this call is dropped.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    joined(tokio::task::spawn_blocking(work).await)
}

pub(super) fn joined<T>(outcome: std::result::Result<Result<T>, JoinError>) -> Result<T> {
    match outcome {
        Ok(outcome) => outcome,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Error::Stopped),
        },
    }
}
