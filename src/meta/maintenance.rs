//! What every node does beside consensus: have snapshots written, purge the log, watch for the end, keep the gauges right.

use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use tokio::time::{MissedTickBehavior, interval};

use super::Failure;
use super::engine::Core;
use super::snapshot::Written;

/// How often it is looked at least whether a snapshot is due; else whenever something was applied.
const SNAPSHOT_LOOK: Duration = Duration::from_secs(1);
/// Between two snapshots lies so many times as long as the last one took: writing all of a large state is a tenth of the
/// time at most, however many entries there are.
const SNAPSHOT_REST: u32 = 9;
/// After so many times the usual entries a snapshot is due in any case: they have to be applied again at a start.
const SNAPSHOT_PATIENCE: u64 = 16;

/// How often the log is looked at for something to purge.
const PURGE_EVERY: Duration = Duration::from_secs(2);
/// Entries purged at once at least.
const PURGE_MIN: u64 = 256;

/// Returns up to which index the log may be purged: the older of two snapshots, and some entries kept in any case (P9).
fn purge_to(snapshots: Option<(u64, u64)>, purged: Option<u64>, kept: u64) -> Option<u64> {
    let (older, newer) = snapshots?;
    let upto = older.min(newer.checked_sub(kept)?);
    (upto >= purged.map_or(0, |purged| purged + 1) + PURGE_MIN.min(kept)).then_some(upto)
}

/// Returns whether another snapshot is due: `entries` lie behind the last one, `every` are usual, and so long ago it ended.
fn snapshot_due(entries: u64, every: u64, last: Option<(&Written, Duration)>) -> bool {
    let rested = last.is_none_or(|(last, since)| since >= last.took * SNAPSHOT_REST);
    entries >= every && (rested || entries >= every.saturating_mul(SNAPSHOT_PATIENCE))
}

impl Core {
    /// Has a snapshot written whenever one is due, for ever.
    pub(super) async fn keep_snapshots(&self) {
        let mut changes = self.raft.metrics();
        let mut seen = None;
        loop {
            // Neither the time that passes nor a core that stopped matters here.
            drop(tokio::time::timeout(SNAPSHOT_LOOK, changes.changed()).await);
            let last = self.snapshots.last_written();
            if let Some(written) = last.filter(|_| last != seen) {
                seen = last;
                self.metrics.snapshot_written(written.took, written.size_bytes);
                let duration_ms = u64::try_from(written.took.as_millis()).unwrap_or(u64::MAX);
                let (log_index, size_bytes) = (written.index, written.size_bytes);
                tracing::info!(log_index, size_bytes, duration_ms, "snapshot written");
            }
            let metrics = self.raft_metrics();
            let index = |id: Option<super::types::LogId>| id.map_or(0, |id| id.index);
            let entries = index(metrics.last_applied).saturating_sub(index(metrics.snapshot));
            let last = last.as_ref().map(|last| (last, last.ended.elapsed()));
            if snapshot_due(entries, self.config.snapshot_entries, last) {
                // While one is being written this does nothing; an error means a stopped core, which `watch_core` sees.
                self.raft.trigger().snapshot().await.ok();
            }
        }
    }

    /// Purges the log as snapshots allow, for ever.
    pub(super) async fn keep_log_short(&self) {
        let mut ticks = interval(PURGE_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.keep_space().await;
            let purged = self.raft_metrics().purged.map(|id| id.index);
            if let Some(upto) = purge_to(self.snapshots.bounds(), purged, self.config.log_entries_kept) {
                // An error means a stopped core, which `watch_core` sees.
                self.raft.trigger().purge_log(upto).await.ok();
            }
        }
    }

    /// Puts space by again once there is enough. A leader whose log waits for space gives its place to another.
    async fn keep_space(&self) {
        if self.space.is_starving() && self.leading().is_some() {
            tracing::error!("no space for the log, handing leadership over");
            self.hand_over(None, PURGE_EVERY).await;
        }
        if !self.space.has_reserve() {
            let space = self.space.clone();
            // A panic there is no reason to end this.
            tokio::task::spawn_blocking(move || space.refill()).await.ok();
        }
    }

    /// Follows the raft core; returns why it ended (R26).
    pub(super) async fn watch_core(&self) -> Failure {
        let mut metrics = self.raft.metrics();
        loop {
            let current = metrics.borrow_watched().clone();
            self.metrics.observe(&current, self.me.0);
            if self.closing.load(Ordering::Relaxed) {
                // The core ends because this node stops: that is no failure.
                std::future::pending::<()>().await;
            }
            if let Err(fatal) = &current.running_state {
                return Failure::Raft { reason: fatal.to_string() };
            }
            if metrics.changed().await.is_err() && !self.closing.load(Ordering::Relaxed) {
                return Failure::Raft { reason: "raft core ended".to_owned() };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[test]
    fn snapshots_of_a_large_state_take_a_tenth_of_the_time_at_most() {
        let took = Duration::from_secs(20);
        let last = Written { index: 1, size_bytes: 1 << 30, took, ended: Instant::now() };
        let is_due = |entries, since| snapshot_due(entries, 10_000, Some((&last, since)));
        assert!(!snapshot_due(9_999, 10_000, None) && snapshot_due(10_000, 10_000, None));
        assert!(!is_due(100_000, took), "just written");
        assert!(is_due(160_000, took), "so many entries would have to be applied again");
        assert!(is_due(10_000, took * 9) && !is_due(9_999, took * 9));
    }

    #[test]
    fn the_log_is_purged_to_the_older_snapshot_and_some_entries_are_kept() {
        assert_eq!(purge_to(None, None, 100), None);
        assert_eq!(purge_to(Some((10_000, 20_000)), None, 20_000), None);
        assert_eq!(purge_to(Some((20_000, 30_000)), None, 20_000), Some(10_000));
        assert_eq!(purge_to(Some((20_000, 90_000)), Some(9_000), 20_000), Some(20_000));
        assert_eq!(purge_to(Some((20_000, 90_000)), Some(19_900), 20_000), None);
        assert_eq!(purge_to(Some((10, 20)), None, 5), Some(10));
    }
}
