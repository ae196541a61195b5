//! Reads that must not be stale: read indexes in rounds, and what a view of the state may claim (P2, P5).

use std::time::Duration;

use openraft::ReadPolicy;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::topology::NodeId;

use super::boot_clock::BootTime;
use super::client::{self, ReadAnswer};
use super::command::LogTime;
use super::engine::Core;
use super::{Consistency, Failure, View};

/// How long a round may take in all.
const ROUND_MAX: Duration = Duration::from_secs(1);
/// How long a node waits to apply what a round told it.
const APPLY_MAX: Duration = Duration::from_secs(1);
/// How often a node renews its freshness.
const RENEW_EVERY: Duration = Duration::from_millis(500);
/// How long a round waits before it asks again, unless the leader changes.
const RETRY_AFTER: Duration = Duration::from_millis(60);
/// Readers that may wait for one round.
pub(super) const READERS_MAX: usize = 8192;

/// A confirmed read index.
#[derive(Debug, Clone, Copy)]
pub(super) struct Granted {
    pub(super) index: u64,
    /// When it was asked for, by this node's clock: what it says was true after that.
    pub(super) asked: BootTime,
}

/// Why a round gave nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unconfirmed {
    /// This node does not lead, and was asked as a leader.
    NotLeader,
    /// No leader with a quorum answered in time.
    NoQuorum,
}

/// One reader waiting for the next round.
#[derive(Debug)]
pub(super) struct ReadRequest {
    /// Asked by another node: only the leader itself may answer.
    for_other: bool,
    reply: oneshot::Sender<Result<Granted, Unconfirmed>>,
}

impl Core {
    /// Joins the next round and returns its read index.
    pub(super) async fn read_index(&self, for_other: bool) -> Result<Granted, Unconfirmed> {
        let (reply, answer) = oneshot::channel();
        // A full queue is overload: to the reader it is as if nobody answered.
        self.reads.try_send(ReadRequest { for_other, reply }).map_err(|_| Unconfirmed::NoQuorum)?;
        let waited = timeout(ROUND_MAX * 2, answer).await;
        waited.ok().and_then(Result::ok).unwrap_or(Err(Unconfirmed::NoQuorum))
    }

    /// Has a read index confirmed and applied here.
    pub(super) async fn confirm(&self) -> bool {
        let Ok(granted) = self.read_index(false).await else { return false };
        let applied = self.wait_applied(granted.index, APPLY_MAX).await;
        if applied {
            self.freshness.renew(granted.asked);
        }
        applied
    }

    /// Returns the state as it is here, and whether that is fresh.
    pub(super) fn view_local(&self) -> View {
        // Freshness first: the state read after it is at least as new.
        let fresh = self.freshness.is_fresh();
        View { state: self.published.current().state, fresh }
    }

    pub(super) async fn view(&self, consistency: Consistency) -> View {
        match consistency {
            Consistency::Local => self.view_local(),
            Consistency::Bounded if self.freshness.is_fresh() => self.view_local(),
            Consistency::Bounded | Consistency::Linearizable => self.view_confirmed().await,
        }
    }

    /// Waits for a read index, but not at all once freshness is known lost.
    pub(super) async fn view_confirmed(&self) -> View {
        let confirmed = !self.freshness.is_lost() && timeout(ROUND_MAX, self.confirm()).await.unwrap_or(false);
        View { state: self.published.current().state, fresh: confirmed }
    }

    /// Serves rounds, one in flight and one forming, until the last handle is gone.
    pub(super) async fn serve_reads(&self, mut queue: mpsc::Receiver<ReadRequest>) {
        let mut readers = Vec::new();
        while queue.recv_many(&mut readers, READERS_MAX).await > 0 {
            // Whoever comes from here on is served by the next round, which is sent later (P2).
            let own = readers.iter().any(|reader| !reader.for_other);
            let outcome = self.round(own).await;
            for reader in readers.drain(..) {
                let outcome = match (reader.for_other, outcome) {
                    (true, Ok((_, false))) => Err(Unconfirmed::NotLeader),
                    (_, outcome) => outcome.map(|(granted, _)| granted),
                };
                // The reader may have gone.
                reader.reply.send(outcome).ok();
            }
        }
    }

    /// Runs one round; the flag says whether this node answered as the leader.
    async fn round(&self, own: bool) -> Result<(Granted, bool), Unconfirmed> {
        let deadline = Instant::now() + ROUND_MAX;
        let mut hint = None;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.freshness.round_failed();
                return Err(Unconfirmed::NoQuorum);
            }
            let asked = BootTime::now();
            if self.leading().is_some() {
                if let Some(index) = self.confirm_as_leader(left).await {
                    self.freshness.heard();
                    if let Some(time) = self.stamp(left).await {
                        self.clock.heard(time);
                    }
                    return Ok((Granted { index, asked }, true));
                }
            } else if !own {
                return Err(Unconfirmed::NotLeader);
            } else if let Some(leader) = hint.take().or_else(|| self.leader()).filter(|leader| *leader != self.me) {
                match self.ask(leader, left).await {
                    Some(ReadAnswer::Granted { index, log_time_ms, diverged }) => {
                        self.learn(log_time_ms, diverged);
                        return Ok((Granted { index, asked }, false));
                    }
                    Some(ReadAnswer::NotLeader { leader: Some(other) }) if other != leader => {
                        hint = Some(other);
                        continue;
                    }
                    _ => {}
                }
            }
            self.changed(RETRY_AFTER.min(left)).await;
        }
    }

    async fn ask(&self, leader: NodeId, left: Duration) -> Option<ReadAnswer> {
        let answer = tokio::select! {
            answer = client::read_index(&self.peers, leader, self.report(), left) => answer,
            () = self.deposed(leader) => return None,
        };
        match answer {
            Ok(answer) => Some(answer),
            Err(status) => {
                tracing::debug!(peer = leader.0, error = status.message(), "read index not answered");
                // Ids are never used again: who was removed stays so, and needs not knock for ever.
                if status.code() == tonic::Code::PermissionDenied {
                    self.fail(Failure::Removed);
                }
                None
            }
        }
    }

    fn learn(&self, log_time_ms: u64, diverged: bool) {
        self.clock.heard(LogTime(log_time_ms));
        self.freshness.heard();
        if diverged {
            self.fail(Failure::Diverged { index: self.published.current().index });
        }
    }

    /// Has this leader's read index confirmed by a quorum that was asked after this call began.
    async fn confirm_as_leader(&self, limit: Duration) -> Option<u64> {
        let confirmed = timeout(limit, self.raft.get_read_linearizer(ReadPolicy::ReadIndex)).await;
        let linearizer = confirmed.ok()?.ok()?;
        Some(linearizer.read_log_id().index())
    }

    /// Returns a stamp for a proposal made now, if this node leads (P7).
    pub(super) async fn stamp(&self, limit: Duration) -> Option<LogTime> {
        let term = self.leading()?;
        self.followers.lead(term);
        let last = async {
            // Everything that earlier leaders committed must be applied before its last stamp is known.
            let index = self.confirm_as_leader(limit).await.ok_or(())?;
            if !self.wait_applied(index, limit).await {
                return Err(());
            }
            Ok(self.published.current().state.log_time())
        };
        timeout(limit, self.clock.stamp(term, last)).await.ok()?.ok()
    }

    /// Keeps this node fresh, for ever.
    pub(super) async fn keep_fresh(&self) {
        let mut ticks = interval(RENEW_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.confirm().await;
        }
    }
}
