//! The graceful stop, in the reverse order of the start.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::gossip::{Liveness, Members};
use crate::ops::Stage;

use super::Node;

/// What one step beside the draining may take.
const STEP_MAX: Duration = Duration::from_secs(3);

impl Node {
    /// Stops in good order: not ready, open requests finish (at most the grace period), leadership is handed over, the
    /// others are told, raft is closed, the lock is released. Each step is logged with its time.
    ///
    /// # Cancel safety
    ///
    /// A dropped call leaves the rest of the steps undone, as a crash would.
    pub async fn stop(mut self) {
        tracing::info!("stopping");
        self.health.set(Stage::Stopping);
        let grace = self.stop_grace;
        step("drain", grace, self.doors.drain()).await;
        self.parts.upkeep_stop.cancel();
        let work_done = async {
            self.tasks.work_done(grace).await;
        };
        step("finish work", grace, work_done).await;
        step("hand over leadership", STEP_MAX, async {
            tokio::select! {
                () = self.parts.meta.hand_over(STEP_MAX) => {}
                () = self.nobody_left() => {}
            }
        })
        .await;
        step("say goodbye", STEP_MAX, self.parts.gossip.leave(STEP_MAX / 3)).await;
        step("stop rpc", STEP_MAX * 2, async {
            self.rpc_stop.cancel();
            while self.rpc_closed.recv().await.is_some() {}
        })
        .await;
        step("close raft", STEP_MAX, self.parts.meta.close()).await;
        self.tasks.abort();
        let db = self.parts.db.clone();
        step("flush index", STEP_MAX, async {
            match tokio::task::spawn_blocking(move || db.close()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "close index"),
                Err(error) => tracing::warn!(%error, "close index"),
            }
        })
        .await;
        tracing::info!("stopped");
    }

    /// Waits until no other node lives, as when all are stopped together: then nobody can lead.
    async fn nobody_left(&self) {
        let me = self.id();
        let mut members = self.parts.gossip.members();
        let alone =
            |members: &Arc<Members>| members.iter().all(|(id, member)| *id == me || member.liveness == Liveness::Dead);
        if members.wait_for(alone).await.is_err() {
            std::future::pending().await
        }
    }
}

async fn step(name: &'static str, limit: Duration, work: impl Future<Output = ()>) {
    let begun = Instant::now();
    let in_time = timeout(limit, work).await.is_ok();
    let duration_ms = begun.elapsed().as_secs_f64() * 1e3;
    if in_time {
        tracing::info!(step = name, duration_ms, "stop");
    } else {
        tracing::warn!(step = name, duration_ms, "stop: the step took too long and was left");
    }
}
