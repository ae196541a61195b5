//! Files that nothing links any more are removed, by the one deletion rule (P21): extents, blobs, manifest bodies.
//!
//! Each node does this for its own disk. The grace begins when this process first saw the file unlinked, so after a start
//! nothing is removed for one grace; a file that is linked again in between begins anew. Whoever wants to link bytes must
//! make sure first that enough nodes hold them, which pins them there: the removal asks for the lock and the pins, and then
//! for the agreed state at a read index, so one of the two always sees the other.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::blob::Item;
use crate::meta::{COMMAND_LIFE_MS, State};
use crate::oci::{Digest, ExtentId};

use super::Upkeep;

/// Files removed at one read index: their locks are held meanwhile.
const REAPED_MAX: usize = 256;
/// Blobs looked at in one go.
const PAGE: usize = 512;
/// Pause between two pages, so that a walk through millions stays in the background.
const PAUSE: Duration = Duration::from_millis(5);
/// After a walk comes so many times as long without one: a disk with millions of files is not walked all the time.
const REST: u32 = 9;
/// Unlinked blobs remembered at most, so that memory is bounded; the rest waits for the next walk.
const WAITING_MAX: usize = 100_000;

/// What this node has removed since the start of the process, and what waits for its grace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Reaped {
    /// Blobs and manifest bodies removed.
    pub blobs: u64,
    /// Bytes of those.
    pub blob_bytes: u64,
    /// Extents removed.
    pub extents: u64,
    /// Blobs and bodies that nothing links and whose grace is not over, or that are pinned.
    pub waiting: u64,
    /// Bytes of those.
    pub waiting_bytes: u64,
}

impl Upkeep {
    /// Looks now and then for files on this disk that nothing links, and removes them after the grace. Never ends.
    pub async fn reap(self) {
        if self.0.config.reap_grace < Duration::from_millis(COMMAND_LIFE_MS) {
            tracing::warn!("gc.grace is shorter than a command may live: for tests only, bytes may be lost");
        }
        let mut extents = Unlinked::default();
        let mut blobs = Unlinked::default();
        loop {
            let began = Instant::now();
            if let Err(error) = self.reap_extents(&mut extents).await {
                tracing::warn!(%error, "extents could not be reaped");
            }
            if let Err(error) = self.reap_blobs(&mut blobs).await {
                tracing::warn!(%error, "blobs could not be reaped");
            }
            let reaped = *self.0.reaped.borrow();
            self.0.gc_metrics.set_waiting(reaped.waiting, reaped.waiting_bytes);
            sleep(self.0.config.reap_every.max(began.elapsed() * REST)).await;
        }
    }

    async fn reap_extents(&self, unlinked: &mut Unlinked<ExtentId>) -> Result<(), crate::blob::Error> {
        let parts = &self.0.parts;
        let here = parts.blobs.list_extents().await?;
        let state = parts.meta.local();
        unlinked.begin();
        let now = Instant::now();
        for id in here.into_iter().filter(|id| !parts.replicas.is_open(*id) && !state.extent_is_listed(*id)) {
            unlinked.see(id, 0, now);
        }
        unlinked.end();
        let old = unlinked.older_than(self.0.config.reap_grace, Instant::now());
        for batch in old.chunks(REAPED_MAX) {
            let items = batch.iter().map(|(id, size)| (Item::Extent(*id), *size)).collect();
            let is_unused = |item: &Item, _, state: &State| match item {
                Item::Extent(id) => !state.extent_is_listed(*id) && !parts.replicas.is_open(*id),
                Item::Blob(_) => false,
            };
            let removed = self.remove(items, &is_unused).await;
            if removed.is_empty() {
                continue;
            }
            tracing::info!(extents = removed.len(), "removed extents that no session lists");
            self.0.gc_metrics.extents_removed(removed.len() as u64);
            self.0.reaped.send_modify(|reaped| reaped.extents += removed.len() as u64);
        }
        Ok(())
    }

    /// Walks all blobs here, page by page. The index is enough: what it misses is entered by the check at the start, and
    /// stays on disk at worst.
    async fn reap_blobs(&self, unlinked: &mut Unlinked<Digest>) -> Result<(), crate::blob::Error> {
        let parts = &self.0.parts;
        unlinked.begin();
        let mut after = None;
        loop {
            let page = parts.blobs.list_blobs(after, PAGE).await?;
            after = page.last().map(|entry| entry.digest.clone());
            let state = parts.meta.local();
            let now = Instant::now();
            for entry in page {
                if state.content(&entry.digest).is_none() {
                    unlinked.see(entry.digest, entry.size, now);
                }
            }
            if after.is_none() {
                break;
            }
            sleep(PAUSE).await;
        }
        unlinked.end();
        let old = unlinked.older_than(self.0.config.reap_grace, Instant::now());
        for batch in old.chunks(REAPED_MAX) {
            let items = batch.iter().map(|(digest, size)| (Item::Blob(digest.clone()), *size)).collect();
            let is_unlinked = |item: &Item, _, state: &State| match item {
                Item::Blob(digest) => state.content(digest).is_none(),
                Item::Extent(_) => false,
            };
            let removed = self.remove(items, &is_unlinked).await;
            if removed.is_empty() {
                continue;
            }
            let size_bytes: u64 = removed.iter().map(|(_, size)| size).sum();
            tracing::info!(blobs = removed.len(), size_bytes, "removed blobs that no repository links");
            self.0.gc_metrics.blobs_removed(removed.len() as u64, size_bytes);
            self.0.reaped.send_modify(|reaped| {
                reaped.blobs += removed.len() as u64;
                reaped.blob_bytes += size_bytes;
            });
            for (item, _) in &removed {
                if let Item::Blob(digest) = item {
                    unlinked.forget(digest);
                }
            }
        }
        let (waiting, waiting_bytes) = unlinked.totals();
        self.0.reaped.send_modify(|reaped| (reaped.waiting, reaped.waiting_bytes) = (waiting, waiting_bytes));
        Ok(())
    }
}

/// Since when files have been seen unlinked, walk by walk.
#[derive(Debug)]
struct Unlinked<K> {
    since: BTreeMap<K, Seen>,
    walk: u64,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    first: Instant,
    size: u64,
    /// The last walk that saw it.
    walk: u64,
}

impl<K> Default for Unlinked<K> {
    fn default() -> Self {
        Self { since: BTreeMap::new(), walk: 0 }
    }
}

impl<K: Ord + Clone> Unlinked<K> {
    /// Begins a walk.
    fn begin(&mut self) {
        self.walk += 1;
    }

    /// Notes a file that is unlinked now; when no more can be remembered, only one that is known.
    fn see(&mut self, key: K, size: u64, now: Instant) {
        let walk = self.walk;
        if let Some(seen) = self.since.get_mut(&key) {
            seen.walk = walk;
        } else if self.since.len() < WAITING_MAX {
            self.since.insert(key, Seen { first: now, size, walk });
        }
    }

    /// Ends a walk: what it did not see is linked again, or gone.
    fn end(&mut self) {
        let walk = self.walk;
        self.since.retain(|_, seen| seen.walk == walk);
    }

    fn older_than(&self, grace: Duration, now: Instant) -> Vec<(K, u64)> {
        let old = self.since.iter().filter(|(_, seen)| now.saturating_duration_since(seen.first) >= grace);
        old.map(|(key, seen)| (key.clone(), seen.size)).collect()
    }

    fn forget(&mut self, key: &K) {
        self.since.remove(key);
    }

    /// How many files wait, and their bytes.
    fn totals(&self) -> (u64, u64) {
        (self.since.len() as u64, self.since.values().map(|seen| seen.size).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stays_unlinked_for_the_whole_grace_is_old() {
        let mut unlinked = Unlinked::default();
        let start = Instant::now();
        // One walk at that second that sees these files unlinked, then the files that are old.
        let mut walk = |seconds, files: &[u32]| {
            let now = start + Duration::from_secs(seconds);
            unlinked.begin();
            files.iter().for_each(|file| unlinked.see(*file, 1, now));
            unlinked.end();
            let old = unlinked.older_than(Duration::from_secs(10), now);
            old.iter().for_each(|(file, _)| unlinked.forget(file));
            (old.into_iter().map(|(file, _)| file).collect::<Vec<_>>(), unlinked.totals())
        };
        assert_eq!(walk(0, &[1, 2]), (vec![], (2, 2)));
        // The second was linked for a moment: its grace begins anew.
        assert_eq!(walk(5, &[1]), (vec![], (1, 1)));
        assert_eq!(walk(10, &[1, 2]), (vec![1], (1, 1)));
        assert_eq!(walk(20, &[2]), (vec![2], (0, 0)));
    }

    #[test]
    fn memory_is_bounded_what_is_known_keeps_its_time_and_the_rest_has_its_turn_later() {
        let mut unlinked = Unlinked::default();
        let max = u32::try_from(WAITING_MAX).unwrap();
        let (start, grace) = (Instant::now(), Duration::from_secs(10));
        unlinked.begin();
        (1..=max).for_each(|file| unlinked.see(file, 1, start));
        unlinked.end();
        unlinked.begin();
        (0..=max).for_each(|file| unlinked.see(file, 1, start + grace));
        unlinked.end();
        assert_eq!(unlinked.older_than(grace, start + grace).len(), WAITING_MAX);
        unlinked.forget(&1);
        unlinked.begin();
        unlinked.see(0, 1, start + grace);
        unlinked.end();
        assert_eq!(unlinked.totals(), (1, 1));
    }
}
