//! One lock per digest or extent, and the pins that keep a file from being deleted (P21).

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use crate::oci::{Digest, ExtentId};

/// Something of which this node may hold a file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Item {
    /// A blob or a manifest body.
    Blob(Digest),
    /// An extent of an upload session.
    Extent(ExtentId),
}

type Lock = Arc<tokio::sync::Mutex<()>>;

/// Locks by item; an item that nobody locks takes no memory.
#[derive(Debug, Default)]
pub(super) struct Locks(Mutex<HashMap<Item, Lock>>);

/// A held lock. Move it into the blocking work it guards, so that a dropped call does not open it half-way.
#[derive(Debug)]
pub(super) struct Held {
    locks: Arc<Locks>,
    item: Item,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Locks {
    fn of(&self, item: &Item) -> Lock {
        let mut locks = self.0.lock().expect("no panic while locking");
        // Waiters that were dropped leave an entry behind.
        if locks.len() >= 1024 && locks.len().is_power_of_two() {
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        }
        Arc::clone(locks.entry(item.clone()).or_default())
    }

    pub(super) async fn lock(self: &Arc<Self>, item: Item) -> Held {
        let guard = self.of(&item).lock_owned().await;
        Held { locks: Arc::clone(self), item, guard: Some(guard) }
    }

    /// Takes the lock unless somebody has it or waits for it.
    pub(super) fn try_lock(self: &Arc<Self>, item: Item) -> Option<Held> {
        let guard = self.of(&item).try_lock_owned().ok()?;
        Some(Held { locks: Arc::clone(self), item, guard: Some(guard) })
    }

    /// Waits for the lock in a blocking thread.
    pub(super) fn lock_blocking(self: &Arc<Self>, item: Item) -> Held {
        let guard = self.of(&item).blocking_lock_owned();
        Held { locks: Arc::clone(self), item, guard: Some(guard) }
    }
}

impl Held {
    pub(super) fn item(&self) -> &Item {
        &self.item
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut locks = self.locks.0.lock().expect("no panic while locking");
        drop(self.guard.take());
        if locks.get(&self.item).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            locks.remove(&self.item);
        }
    }
}

/// What this node lately said it holds.
#[derive(Debug)]
pub(super) struct Pins {
    started: Instant,
    period: Duration,
    until: Mutex<HashMap<Item, Instant>>,
}

impl Pins {
    pub(super) fn new(period: Duration) -> Self {
        Self { started: Instant::now(), period, until: Mutex::default() }
    }

    pub(super) const fn period(&self) -> Duration {
        self.period
    }

    pub(super) fn pin(&self, item: Item) {
        self.until.lock().expect("no panic while pinning").insert(item, Instant::now() + self.period);
    }

    /// Whether the item was pinned since the start, so that what it needs is known to be synced.
    pub(super) fn is_pinned(&self, item: &Item) -> bool {
        let until = self.until.lock().expect("no panic while pinning");
        until.get(item).is_some_and(|until| *until > Instant::now())
    }

    /// Whether a file may be deleted as far as pins go: what an earlier process said is unknown for one period.
    pub(super) fn allow_delete(&self, item: &Item) -> bool {
        self.started.elapsed() >= self.period && !self.is_pinned(item)
    }

    pub(super) fn forget(&self, item: &Item) {
        self.until.lock().expect("no panic while pinning").remove(item);
    }

    pub(super) fn drop_expired(&self) {
        let now = Instant::now();
        self.until.lock().expect("no panic while pinning").retain(|_, until| *until > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_item_that_nobody_locks_takes_no_memory() {
        let locks = Arc::new(Locks::default());
        let item = Item::Extent(ExtentId::from_random(1));
        let held = locks.lock(item.clone()).await;
        {
            let second = locks.lock(item.clone());
            tokio::pin!(second);
            assert!(futures::poll!(second.as_mut()).is_pending());
            drop(held);
            drop(second.await);
        }
        assert!(locks.0.lock().unwrap().is_empty());
    }

    #[test]
    fn nothing_may_be_deleted_while_pinned_or_within_one_period_of_the_start() {
        let item = Item::Extent(ExtentId::from_random(1));
        let pins = Pins::new(Duration::from_secs(3600));
        assert!(!pins.allow_delete(&item), "too early");
        let pins = Pins { started: Instant::now(), ..Pins::new(Duration::ZERO) };
        assert!(pins.allow_delete(&item));
        pins.until.lock().unwrap().insert(item.clone(), Instant::now() + Duration::from_secs(3600));
        assert!(!pins.allow_delete(&item));
        pins.drop_expired();
        assert!(!pins.allow_delete(&item));
        pins.pin(item.clone());
        assert!(pins.allow_delete(&item), "a period of zero is over at once");
        pins.drop_expired();
        assert!(pins.until.lock().unwrap().is_empty());
    }
}
