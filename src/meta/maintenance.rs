//! What every node does beside consensus: purge the log, watch for the end, keep the gauges right.

use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use tokio::time::{MissedTickBehavior, interval};

use super::Failure;
use super::engine::Core;

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

impl Core {
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
    use super::*;

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
