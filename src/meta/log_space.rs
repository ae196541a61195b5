//! What becomes of the log when the disk is full: space that was put by is used up, then the writer waits (I12).

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::disk::Reserve;

/// Space put by for the log and for snapshots, shared by both and by whoever puts it by again.
#[derive(Debug)]
pub(super) struct LogSpace {
    reserve: Reserve,
    starving: AtomicBool,
}

impl LogSpace {
    /// Puts `reserve_bytes` by in the data directory, if there is room; what there is no room for now is tried again later.
    pub(super) fn open(data_dir: &Path, reserve_bytes: u64) -> Self {
        let space =
            Self { reserve: Reserve::new(&data_dir.join("reserve"), reserve_bytes), starving: AtomicBool::new(false) };
        space.refill();
        space
    }

    /// Nothing put by, for whoever only ends a log.
    pub(super) fn unreserved(dir: &Path) -> Self {
        Self::open(dir, 0)
    }

    /// Gives back what was put by; false if there is none left.
    pub(super) fn relieve(&self) -> bool {
        let relieved = self.reserve.release();
        if relieved {
            tracing::error!("disk is full: the space put by for the log and snapshots is used from now on");
        }
        relieved
    }

    /// Puts space by again once there is enough; blocks.
    pub(super) fn refill(&self) {
        if self.reserve.is_there() || self.is_starving() {
            return;
        }
        match self.reserve.fill() {
            Ok(true) => tracing::info!("space is put by for the log and snapshots"),
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "no space could be put by for the log"),
        }
    }

    /// Whether space is put by.
    pub(super) fn has_reserve(&self) -> bool {
        self.reserve.is_there()
    }

    /// Notes whether the log waits for space.
    pub(super) fn set_starving(&self, starving: bool) {
        self.starving.store(starving, Ordering::Relaxed);
    }

    /// Whether the log waits for space: nothing can be promised here until it has some.
    pub(super) fn is_starving(&self) -> bool {
        self.starving.load(Ordering::Relaxed)
    }
}
