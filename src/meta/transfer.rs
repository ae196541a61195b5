//! Leadership that moves on purpose: at a stop, for a leader that gives up its vote, and when an operator asks.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::topology::NodeId;

use super::client;
use super::engine::Core;

/// How long a chosen successor may take before another is asked.
const TRY_MAX: Duration = Duration::from_millis(700);

/// Says why leadership did not move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// Nobody leads.
    #[error("no leader is known")]
    NoLeader,
    /// The node that was asked for has no vote, or nobody else has one.
    #[error("the node has no vote, or there is no other voter")]
    NoVoter,
    /// It was asked for, and did not happen in time; it may yet.
    #[error("the successor did not take over in time")]
    TooLate,
}

impl Core {
    /// Hands leadership to a caught-up voter, one of `among` if they are named, if this node leads; returns when it no longer
    /// does, or after `limit`.
    pub(super) async fn hand_over(&self, among: Option<&BTreeSet<u64>>, limit: Duration) {
        let deadline = Instant::now() + limit;
        while self.leading().is_some() && Instant::now() < deadline {
            let Some(successor) = self.successor(among) else { return };
            if self.raft.trigger().transfer_leader(successor).await.is_err() {
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let handed = timeout(left.min(TRY_MAX), async {
                while self.leading().is_some() {
                    self.changed(Duration::from_millis(20)).await;
                }
            });
            // Not taken in time: ask again, perhaps another one.
            handed.await.ok();
        }
    }

    /// Returns the voter, one of `among` if they are named, whose log is the longest beside this node's.
    fn successor(&self, among: Option<&BTreeSet<u64>>) -> Option<u64> {
        let metrics = self.raft_metrics();
        let replication = metrics.replication?;
        let asked = |id: &u64| *id != self.me.0 && among.is_none_or(|among| among.contains(id));
        let voters = metrics.membership_config.membership().voter_ids().filter(asked);
        voters.max_by_key(|id| replication.get(id).copied().flatten().map(|matched| matched.index))
    }

    /// Has the leader, wherever it is, hand over.
    pub(super) async fn transfer_leader(&self, to: Option<NodeId>, limit: Duration) -> Result<NodeId, TransferError> {
        if self.leading().is_some() {
            return self.transfer_here(to, limit).await;
        }
        let leader = self.leader().filter(|leader| *leader != self.me).ok_or(TransferError::NoLeader)?;
        let answer = client::hand_over(&self.peers, leader, to, limit).await;
        answer.unwrap_or_else(|status| {
            tracing::debug!(peer = leader.0, error = status.message(), "leader does not answer");
            Err(TransferError::NoLeader)
        })
    }

    /// Hands over, as the leader; returns who leads then.
    pub(super) async fn transfer_here(&self, to: Option<NodeId>, limit: Duration) -> Result<NodeId, TransferError> {
        let deadline = Instant::now() + limit;
        self.leading().ok_or(TransferError::NoLeader)?;
        if to == Some(self.me) {
            return Ok(self.me);
        }
        let among = to.map(|to| BTreeSet::from([to.0]));
        self.successor(among.as_ref()).ok_or(TransferError::NoVoter)?;
        self.hand_over(among.as_ref(), limit).await;
        loop {
            if let Some(leader) = self.leader().filter(|leader| *leader != self.me) {
                return Ok(leader);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(TransferError::TooLate);
            }
            self.changed(left.min(Duration::from_millis(20))).await;
        }
    }
}
