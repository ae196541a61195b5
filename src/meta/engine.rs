//! What every part of `meta` shares: the raft handle, the published state, and what this node knows of time and leaders.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver as _;
use tokio::sync::{Mutex as AsyncMutex, mpsc, watch};

use crate::rpc::Peers;
use crate::topology::{ClusterId, NodeId};

use super::config::Config;
use super::consistency::ReadRequest;
use super::followers::{Followers, Report};
use super::freshness::Freshness;
use super::log_clock::LogClock;
use super::log_space::LogSpace;
use super::metrics::Metrics;
use super::published::Published;
use super::snapshot::SnapshotDir;
use super::types::{Metrics as RaftMetrics, Raft};
use super::{Failure, RaftState, Role, Sight, Status, VoterSets};

/// What `meta` is given by the node, since it can see neither clock nor chance.
#[derive(Clone)]
pub struct Hooks {
    /// Draws 128 random bits.
    pub random: Arc<dyn Fn() -> u128 + Send + Sync>,
    /// Wall-clock seconds since 1970, for display.
    pub wall_seconds: Arc<dyn Fn() -> u64 + Send + Sync>,
    /// Whether every manifest body that the state names which is applied up to the given log index lies on this node (P12).
    pub bodies_complete: Arc<dyn Fn(u64) -> bool + Send + Sync>,
    /// Up to which log index every manifest body that was put lies on this node; 0 if that is not known (P12).
    pub bodies_to: Arc<dyn Fn() -> u64 + Send + Sync>,
    /// How this node sees another.
    pub sight: Arc<dyn Fn(NodeId) -> Sight + Send + Sync>,
    /// Whether all that a leaving node holds lies where it belongs without it, as this node found out after the given log
    /// index.
    pub is_empty: Arc<dyn Fn(NodeId, u64) -> bool + Send + Sync>,
}

impl std::fmt::Debug for Hooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hooks")
    }
}

pub(super) struct Core {
    pub(super) cluster: ClusterId,
    pub(super) me: NodeId,
    pub(super) config: Config,
    pub(super) raft: Raft,
    pub(super) peers: Peers,
    pub(super) hooks: Hooks,
    pub(super) published: Arc<Published>,
    pub(super) snapshots: Arc<SnapshotDir>,
    pub(super) space: Arc<LogSpace>,
    pub(super) followers: Followers,
    pub(super) freshness: Freshness,
    pub(super) clock: LogClock,
    pub(super) metrics: Metrics,
    pub(super) reads: mpsc::Sender<ReadRequest>,
    /// One snapshot is received at a time.
    pub(super) receiving: AsyncMutex<()>,
    pub(super) failure: watch::Sender<Option<Failure>>,
    pub(super) diverged: AtomicBool,
    pub(super) closing: AtomicBool,
    /// What this node, as the leader, has to say to operators.
    pub(super) notices: Mutex<Vec<String>>,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("cluster", &self.cluster).field("me", &self.me).finish_non_exhaustive()
    }
}

impl Core {
    /// Returns openraft's metrics, cloned at once: holding the borrow would block the core (R23).
    pub(super) fn raft_metrics(&self) -> RaftMetrics {
        self.raft.metrics().borrow_watched().clone()
    }

    /// Returns the term in which this node leads.
    pub(super) fn leading(&self) -> Option<u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        (metrics.state == ServerState::Leader).then_some(metrics.current_term)
    }

    /// Returns the leader as far as this node knows. After a leader's death it is named here until another is elected.
    pub(super) fn leader(&self) -> Option<NodeId> {
        self.raft.metrics().borrow_watched().current_leader.map(NodeId)
    }

    /// Waits until this node knows another leader than `leader`.
    pub(super) async fn deposed(&self, leader: NodeId) {
        let mut metrics = self.raft.server_metrics();
        loop {
            let current = metrics.borrow_and_update().current_leader;
            if current.is_some_and(|current| current != leader.0) {
                return;
            }
            if metrics.changed().await.is_err() {
                // The core has ended: nobody will be told of a leader any more.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until openraft says something new, or `limit` has passed.
    pub(super) async fn changed(&self, limit: Duration) {
        let mut metrics = self.raft.server_metrics();
        metrics.borrow_and_update();
        // A closed channel is a stopped core; the caller finds out.
        tokio::time::timeout(limit, metrics.changed()).await.ok();
    }

    /// What this node says of itself.
    pub(super) fn report(&self) -> Report {
        let current = self.published.current();
        Report {
            applied: current.index,
            state_hash: current.state.hash(),
            bodies_complete: (self.hooks.bodies_complete)(current.index),
            bodies_to: (self.hooks.bodies_to)(),
        }
    }

    pub(super) fn voter_sets(&self) -> VoterSets {
        let membership = self.raft_metrics().membership_config;
        VoterSets {
            membership_index: membership.log_id().map_or(0, |id| id.index),
            sets: membership
                .membership()
                .get_joint_config()
                .iter()
                .map(|set| set.iter().map(|id| NodeId(*id)).collect())
                .collect(),
        }
    }

    pub(super) fn status(&self) -> Status {
        let metrics = self.raft_metrics();
        let current = self.published.current();
        let voter = metrics.membership_config.membership().voter_ids().any(|id| id == self.me.0);
        let lost = self.freshness.is_lost();
        Status {
            cluster: self.cluster,
            me: self.me,
            // A leader without a quorum is none, and openraft names a silent one until another is elected.
            leader: metrics.current_leader.map(NodeId).filter(|_| !lost),
            term: metrics.current_term,
            role: if voter { Role::Voter } else { Role::Learner },
            state: match metrics.state {
                ServerState::Leader if lost => RaftState::Candidate,
                ServerState::Leader => RaftState::Leader,
                ServerState::Candidate => RaftState::Candidate,
                _ => RaftState::Follower,
            },
            applied: current.index,
            state_hash: current.state.hash(),
            last_log: metrics.last_log_index.unwrap_or(0),
            snapshot: metrics.snapshot.map_or(0, |id| id.index),
            fresh: self.freshness.is_fresh(),
            diverged: self.diverged.load(Ordering::Relaxed),
            bodies_complete: (self.hooks.bodies_complete)(current.index),
        }
    }

    /// Waits until `index` is applied and published here.
    pub(super) async fn wait_applied(&self, index: u64, limit: Duration) -> bool {
        let mut applied = self.published.applied();
        let waited = tokio::time::timeout(limit, applied.wait_for(|applied| *applied >= index)).await;
        matches!(waited, Ok(Ok(_)))
    }

    /// Ends this node's part in consensus for good.
    pub(super) fn fail(&self, failure: Failure) {
        if matches!(failure, Failure::Diverged { .. }) {
            self.diverged.store(true, Ordering::Relaxed);
        }
        self.failure.send_if_modified(|current| {
            let first = current.is_none();
            current.get_or_insert(failure);
            first
        });
    }
}
