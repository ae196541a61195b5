//! Agrees with the other nodes, through raft, on manifests, tags, links and topology.
//!
//! Owns `<data>/raft/` (log and vote), `<data>/snapshots/`, and the agreed state in memory. Invariants: nothing is
//! acknowledged before it is synced (P1, P9); a command takes effect at most once (P4); what is called fresh reflects every
//! write answered before it was asked for (P2, P5, P6); `apply` sees neither clock, disk nor chance.
//! Names `openraft` so that nobody else has to. Does not know where bytes are or who is alive.
//! Start reading at [`Meta`], then `start.rs`; the pure part begins at `command.rs` and `apply/mod.rs`; the log at
//! `wal/mod.rs`; reads at `consistency.rs`; writes at `propose.rs`.

mod apply;
mod boot_clock;
mod check;
mod client;
pub mod command;
mod config;
mod consistency;
mod engine;
mod followers;
mod freshness;
mod log_clock;
mod log_memory;
mod log_space;
mod log_store;
mod maintenance;
mod membership;
mod metrics;
mod network;
mod offline;
pub mod plan;
mod preload;
mod propose;
mod published;
mod query;
mod reach;
mod recount;
pub mod recover;
mod rows;
mod service;
mod snapshot;
mod snapshot_codec;
mod snapshot_file;
mod sorted_map;
mod start;
mod state;
mod state_hash;
mod state_machine;
mod tables;
mod transfer;
mod types;
mod wal;
mod wire;

#[cfg(test)]
mod suite_tests;
#[cfg(test)]
mod test_cluster;
#[cfg(test)]
mod tests;

pub use apply::COMMAND_LIFE_MS;
pub use check::Problem;
pub use config::{Config, ConfigError};
pub use engine::Hooks;
pub use membership::{Operation, Refusal, Sight};
pub use metrics::Metrics;
pub use offline::Offline;
pub use preload::Preload;
pub use query::{Content, ManifestRecord, Referrer, StoredReference, TagEvent, TagRecord, Upload};
pub use reach::{Fate, Keeper, LinkPage, LinkPlace, Unnamed};
pub use recount::{Miscount, Recount};
pub use recover::Remains;
pub use service::Door;
pub use snapshot::Error as SnapshotFileError;
pub use snapshot_codec::{RECORD_VERSION, SnapshotError, StateBuilder, decode_record, encode_record};
pub use start::{Bootstrap, Options, Services, StartError};
pub use state::{FEATURE_LEVEL_MAX, State};
pub use tables::{BlobLink, ContentRow, Head, ManifestLease, NodeRow, OutcomeRow, Record, RepositoryRow, UploadEnd};
pub use transfer::TransferError;
pub use wal::Error as LogError;

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::watch;

use crate::topology::{ClusterId, NodeId, Topology};
use command::{Command, LogTime, Response};
use engine::Core;

/// A command's place in the log and what `apply` said.
#[derive(Debug, Clone)]
pub struct Applied {
    /// Its log index, for `Rafthold-Index`.
    pub index: u64,
    /// The outcome; the original one if this was a retry.
    pub response: Response,
}

/// Whether a command that got no answer may still take effect (P4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was never proposed.
    None,
    /// It may or may not.
    Unknown,
}

/// Says why a command was not answered.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// No leader with a quorum took it within the deadline.
    #[error("no leader took the command in time")]
    Unavailable {
        /// Whether it may still take effect.
        outcome: Outcome,
    },
    /// This node takes nothing any more; the command was not proposed.
    #[error("node is stopping")]
    Stopped,
}

/// Says why this node can take no further part in consensus, and must stop.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The raft core ended: its storage failed, or it found something impossible.
    #[error("raft ended: {reason}")]
    Raft {
        /// What it said.
        reason: String,
    },
    /// The cluster has removed this node (R21).
    #[error("this node was removed from the cluster: its data directory is of no more use to it")]
    Removed,
    /// This node's state differs from the majority's (P8). Its state is kept for whoever looks into it.
    #[error("the state differs from the majority's at log index {index}")]
    Diverged {
        /// Where that was seen.
        index: u64,
    },
}

/// How fresh a read must be; asked per request by `Rafthold-Consistency`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// Reflects every write answered before.
    #[default]
    Linearizable,
    /// At most about 2 s behind.
    Bounded,
    /// Whatever this node has applied.
    Local,
}

/// A consistent view of the agreed state and how fresh it is.
#[derive(Debug, Clone)]
pub struct View {
    /// The state.
    pub state: Arc<State>,
    /// False: served with a `Warning`, and a miss is a 503 (P5).
    pub fresh: bool,
}

/// Whether a node has a vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Forms the quorum.
    Voter,
    /// Holds all metadata and serves everything, but votes on nothing.
    Learner,
}

/// What a node does in consensus right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RaftState {
    /// Leads.
    Leader,
    /// Follows, as voter or learner.
    Follower,
    /// Campaigns.
    Candidate,
    /// Did not answer.
    Unreachable,
}

/// A node's own view of consensus.
#[derive(Debug, Clone)]
pub struct Status {
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// The node.
    pub me: NodeId,
    /// The leader it hears from.
    pub leader: Option<NodeId>,
    /// Its term.
    pub term: u64,
    /// Whether it votes.
    pub role: Role,
    /// What it does.
    pub state: RaftState,
    /// The last log index it applied.
    pub applied: u64,
    /// The hash of its state there.
    pub state_hash: u128,
    /// The last log index it has.
    pub last_log: u64,
    /// The last log index of its newest snapshot; 0 without one.
    pub snapshot: u64,
    /// Whether its local answers are final (P5).
    pub fresh: bool,
    /// Whether its state differs from the majority's (P8).
    pub diverged: bool,
    /// Whether every manifest body lies there (P12).
    pub bodies_complete: bool,
}

/// The agreed state of the cluster, from this node; cheap to clone.
#[derive(Clone, Debug)]
pub struct Meta {
    core: Arc<Core>,
}

impl Meta {
    /// Proposes a command at the leader, wherever it is; retried with the same request id until `deadline` from now.
    ///
    /// Without a leader it gives up within 5 s, whatever the deadline. A delete is answered only when no node serves the thing
    /// as fresh any more (P6). A refusal by `apply` is no error: it is in the response.
    ///
    /// # Errors
    ///
    /// - [`ProposeError::Unavailable`] if no leader took it in time; `outcome` says whether it may still take effect.
    /// - [`ProposeError::Stopped`] if this node is stopping and nothing was proposed.
    ///
    /// # Cancel safety
    ///
    /// A dropped call may or may not have proposed the command.
    pub async fn propose(&self, command: Command, deadline: Duration) -> Result<Applied, ProposeError> {
        self.core.propose(command, deadline).await
    }

    /// Returns the state as applied here, now: no freshness implied.
    #[must_use]
    pub fn local(&self) -> Arc<State> {
        self.core.published.current().state
    }

    /// Returns a view at the asked consistency for things that move (tags, lists): waits at most 1 s when freshness was just
    /// lost, and not at all once it is known lost (P5). Without a quorum it is the local state with `fresh: false`.
    pub async fn view(&self, consistency: Consistency) -> View {
        self.core.view(consistency).await
    }

    /// Returns a view for immutable things: local; while it is fresh a hit and a miss are final (P5).
    #[must_use]
    pub fn view_local(&self) -> View {
        self.core.view_local()
    }

    /// After a local miss: one read index, then the state again; `fresh: false` if it could not be had.
    pub async fn confirm(&self) -> View {
        self.core.view_confirmed().await
    }

    /// Returns the log time as this node estimates it (P7): as the leader last said it, plus the time since.
    #[must_use]
    pub fn log_time(&self) -> LogTime {
        self.core.clock.estimate(self.local().log_time())
    }

    /// Waits until `index` is applied here (`Rafthold-Wait-For`); false if `deadline` from now passes first.
    pub async fn wait_applied(&self, index: u64, deadline: Duration) -> bool {
        self.core.wait_applied(index, deadline).await
    }

    /// Follows the agreed nodes.
    #[must_use]
    pub fn topology(&self) -> watch::Receiver<Arc<Topology>> {
        self.core.published.topology()
    }

    /// Follows the applied index.
    #[must_use]
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.core.published.applied()
    }

    /// Returns this node's view of consensus.
    #[must_use]
    pub fn status(&self) -> Status {
        self.core.status()
    }

    /// Asks every other node for its view of consensus, all at once; a node that does not answer within `deadline` has none.
    pub async fn peer_statuses(&self, deadline: Duration) -> Vec<(NodeId, Option<Status>)> {
        let ours = self.status();
        let topology = self.local().topology();
        let others = topology.nodes.keys().copied().filter(|id| *id != ours.me);
        let asked = others.map(|id| {
            let (core, ours) = (&self.core, &ours);
            async move { (id, client::node_status(&core.peers, id, ours, deadline).await.ok()) }
        });
        join_all(asked).await
    }

    /// Returns the voters of every config in force (two sets while a change is joint), and its log index, for P18.
    #[must_use]
    pub fn voter_sets(&self) -> VoterSets {
        self.core.voter_sets()
    }

    /// Returns whether a node may speak to this one: not if it was removed (R21).
    #[must_use]
    pub fn admits(&self, node: NodeId) -> bool {
        self.core.admits(node)
    }

    /// Carries out what an operator wants of the members; returns the log index of the decision, which every later leader
    /// carries out.
    ///
    /// # Errors
    ///
    /// [`Refusal`], always with nothing changed but where it says that the outcome is not known.
    pub async fn operate(&self, operation: Operation, deadline: Duration) -> Result<u64, Refusal> {
        self.core.operate(operation, deadline).await
    }

    /// Has the leader, wherever it is, hand over to `to`, or to whoever has the longest log; returns who leads then.
    ///
    /// # Errors
    ///
    /// [`TransferError`].
    pub async fn transfer_leader(&self, to: Option<NodeId>, deadline: Duration) -> Result<NodeId, TransferError> {
        self.core.transfer_leader(to, deadline).await
    }

    /// Returns what this node, if it leads, has to say to operators.
    #[must_use]
    pub fn notices(&self) -> Vec<String> {
        self.core.notices.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the log waits for space on a full disk: this node then promises nothing.
    #[must_use]
    pub fn waits_for_space(&self) -> bool {
        self.core.space.is_starving()
    }

    /// Whether space is put by for the log and snapshots, should the disk be full otherwise.
    #[must_use]
    pub fn has_reserve(&self) -> bool {
        self.core.space.has_reserve()
    }

    /// Hands leadership to a caught-up voter if this node leads (graceful stop), within `deadline`.
    pub async fn hand_over(&self, deadline: Duration) {
        self.core.hand_over(None, deadline).await;
    }

    /// Ends this node's part in consensus: proposals are refused, the raft core stops, the log is closed synced.
    pub async fn close(&self) {
        self.core.closing.store(true, Ordering::Relaxed);
        // It joins the core; what it returns says only how the core ended, which no longer matters.
        self.core.raft.shutdown().await.ok();
    }
}

/// The voters that a manifest body must reach a majority of, and the log index of the membership they come from (P18).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VoterSets {
    /// The log index of the membership.
    pub membership_index: u64,
    /// One set, or two while a change is joint.
    pub sets: Vec<BTreeSet<NodeId>>,
}

impl VoterSets {
    /// Returns whether `nodes` are a majority of every set.
    #[must_use]
    pub fn is_majority(&self, nodes: &[NodeId]) -> bool {
        self.sets.iter().all(|set| set.iter().filter(|node| nodes.contains(node)).count() * 2 > set.len())
    }
}
