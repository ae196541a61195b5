//! Free space, two watermarks, and whether the disk takes writes at all.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::Config;
use super::error::{Error, Result};
use crate::disk::{self, Space};

// Each blob takes a few files; raft and the index need some too.
const FREE_FILES_MIN: u64 = 256;

/// What is about to be written.
#[derive(Debug, Clone, Copy)]
pub(super) enum Demand {
    /// Bytes of an upload, of unknown size.
    Upload,
    /// A copy from a peer, of that size.
    Copy(u64),
    /// A small body, or the putting together of bytes that were let in before, of that size.
    Reserved(u64),
}

/// Watches the filesystem of the data directory. Heals by itself: every answer follows what the disk said last.
#[derive(Debug)]
pub(super) struct SpaceWatch {
    dir: PathBuf,
    refuse_bytes: u64,
    reserve_bytes: u64,
    refusing: AtomicBool,
    unwritable: AtomicBool,
    suspect: AtomicBool,
    free_bytes: AtomicU64,
    room_bytes: AtomicU64,
}

impl SpaceWatch {
    pub(super) fn new(dir: PathBuf, config: &Config) -> Self {
        let watch = Self {
            dir,
            refuse_bytes: config.refuse_free_bytes,
            reserve_bytes: config.reserve_free_bytes,
            refusing: AtomicBool::new(false),
            unwritable: AtomicBool::new(false),
            suspect: AtomicBool::new(false),
            free_bytes: AtomicU64::new(0),
            room_bytes: AtomicU64::new(0),
        };
        // An unreadable filesystem shows at the first write.
        drop(watch.measure());
        watch
    }

    /// Asks the filesystem and updates what [`Self::refuses`] says.
    pub(super) fn measure(&self) -> io::Result<Space> {
        let space = disk::free_space(&self.dir)?;
        self.free_bytes.store(space.free_bytes, Ordering::Relaxed);
        let low = space.free_bytes < self.refuse_floor(&space) || space.free_files < FREE_FILES_MIN;
        self.refusing.store(low, Ordering::Relaxed);
        let room = space.free_bytes.saturating_sub(self.refuse_floor(&space));
        self.room_bytes.store(if low { 0 } else { room }, Ordering::Relaxed);
        Ok(space)
    }

    // Small disks keep a share instead of the configured bytes, else they would refuse from the start.
    fn refuse_floor(&self, space: &Space) -> u64 {
        self.refuse_bytes.min(space.total_bytes / 20)
    }

    fn reserve_floor(&self, space: &Space) -> u64 {
        self.reserve_bytes.min(space.total_bytes / 50)
    }

    /// Lets a write begin, or says why not.
    pub(super) fn admit(&self, demand: Demand) -> Result<()> {
        if self.unwritable.load(Ordering::Relaxed) {
            return Err(Error::DiskUnwritable);
        }
        // A filesystem that cannot say how much is free decides at the write itself.
        let Ok(space) = self.measure() else { return Ok(()) };
        let needed = match demand {
            Demand::Upload => self.refuse_floor(&space),
            Demand::Copy(size) => self.refuse_floor(&space).saturating_add(size),
            Demand::Reserved(size) => self.reserve_floor(&space).saturating_add(size),
        };
        if space.free_bytes < needed || space.free_files < FREE_FILES_MIN { Err(Error::NoSpace) } else { Ok(()) }
    }

    /// Lets a write that began go on, or stops it before it takes the reserve.
    pub(super) fn admit_more(&self) -> Result<()> {
        match self.measure() {
            Ok(space) if space.free_bytes < self.reserve_floor(&space) => Err(Error::NoSpace),
            _ => Ok(()),
        }
    }

    pub(super) fn note_full(&self) {
        self.refusing.store(true, Ordering::Relaxed);
    }

    /// Notes a failed write or sync: nothing more is written until a probe succeeds.
    pub(super) fn note_failure(&self) {
        self.suspect.store(true, Ordering::Relaxed);
        self.unwritable.store(true, Ordering::Relaxed);
    }

    pub(super) fn note_probe_passed(&self) {
        self.unwritable.store(false, Ordering::Relaxed);
    }

    pub(super) fn is_unwritable(&self) -> bool {
        self.unwritable.load(Ordering::Relaxed)
    }

    pub(super) fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Relaxed)
    }

    pub(super) fn refuses(&self) -> bool {
        self.refusing.load(Ordering::Relaxed) || self.is_unwritable()
    }

    pub(super) fn free_bytes(&self) -> u64 {
        self.free_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of copies that would still be let in.
    pub(super) fn room_bytes(&self) -> u64 {
        if self.refuses() { 0 } else { self.room_bytes.load(Ordering::Relaxed) }
    }
}
