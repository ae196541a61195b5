//! Agrees with the other nodes, through raft, on manifests, tags, links and topology.
//!
//! CONTRACT for the pure part: `command.rs` (what may be proposed and what comes back) and `state.rs`/`query.rs` (what may
//! be read). CONTRACT for the handle: [`Meta`] below.

mod apply;
mod check;
pub mod command;
mod log_memory;
mod log_store;
mod published;
mod query;
mod rows;
mod snapshot;
mod snapshot_codec;
mod sorted_map;
mod state;
mod state_hash;
mod state_machine;
mod tables;
mod types;
mod wal;

#[cfg(test)]
mod suite_tests;

pub use apply::COMMAND_LIFE_MS;
pub use check::Problem;
pub use query::{Content, ManifestRecord, Referrer, StoredReference, TagEvent, TagRecord, Upload};
pub use snapshot_codec::{RECORD_VERSION, SnapshotError, StateBuilder, decode_record, encode_record};
pub use state::{FEATURE_LEVEL_MAX, State};
pub use tables::{BlobLink, ContentRow, Head, NodeRow, OutcomeRow, Record, RepositoryRow};

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::topology::{ClusterId, NodeId, Topology};
use command::{Command, Response};

/// A command's place in the log and what `apply` said.
#[derive(Debug, Clone)]
pub struct Applied {
    pub index: u64,
    pub response: Response,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    None,
    Unknown,
}

#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// No leader or no quorum within the deadline. `outcome` says whether the command may still take effect (P4).
    #[error("no leader took the command in time")]
    Unavailable { outcome: Outcome },
    #[error("node is stopping")]
    Stopped,
}

/// How fresh a read must be; asked per request by `Rafthold-Consistency`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    #[default]
    Linearizable,
    Bounded,
    Local,
}

/// A consistent view of the agreed state and how fresh it is.
#[derive(Debug, Clone)]
pub struct View {
    pub state: Arc<State>,
    /// False: served with a `Warning`, and a miss is a 503 (P5).
    pub fresh: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Voter,
    Learner,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RaftState {
    Leader,
    Follower,
    Candidate,
    Unreachable,
}

/// This node's consensus status.
#[derive(Debug, Clone)]
pub struct Status {
    pub cluster: ClusterId,
    pub me: NodeId,
    pub leader: Option<NodeId>,
    pub term: u64,
    pub role: Role,
    pub state: RaftState,
    pub applied: u64,
    pub state_hash: u128,
    pub last_log: u64,
    pub snapshot: u64,
    pub fresh: bool,
}

#[derive(Clone, Debug)]
pub struct Meta {}
impl Meta {
    /// Proposes a command at the leader, wherever it is; retried with the same request id until `deadline` from now.
    pub async fn propose(&self, command: Command, deadline: Duration) -> Result<Applied, ProposeError> {
        let _ = (command, deadline);
        todo!()
    }
    /// The state as applied here, now: no freshness implied.
    pub fn local(&self) -> Arc<State> {
        todo!()
    }
    /// A view at the asked consistency for things that move (tags, lists): waits at most 1 s when freshness was just lost (P5).
    /// Never fails: without a quorum it is the local state with `fresh: false`.
    pub async fn view(&self, consistency: Consistency) -> View {
        let _ = consistency;
        todo!()
    }
    /// A view for immutable things: local while fresh; `confirm` asks one read index (after a local miss) (P5).
    pub fn view_local(&self) -> View {
        todo!()
    }
    /// After a local miss: one read index, then the state again. `fresh: false` if it could not be had.
    pub async fn confirm(&self) -> View {
        todo!()
    }
    /// Waits until `index` is applied here (Rafthold-Wait-For).
    pub async fn wait_applied(&self, index: u64, deadline: Duration) -> bool {
        let _ = (index, deadline);
        todo!()
    }
    pub fn topology(&self) -> watch::Receiver<Arc<Topology>> {
        todo!()
    }
    /// Follows the applied index.
    pub fn applied(&self) -> watch::Receiver<u64> {
        todo!()
    }
    pub fn status(&self) -> Status {
        todo!()
    }
    /// Current voters of every config in force (two sets while joint) and the membership's log id, for P18.
    pub fn voter_sets(&self) -> VoterSets {
        todo!()
    }
    /// Hands leadership to a caught-up voter if this node leads (graceful stop).
    pub async fn hand_over(&self, deadline: Duration) {
        let _ = deadline;
        todo!()
    }
}

/// The voters that a manifest body must reach a majority of, and the log index of the membership they come from (P18).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VoterSets {
    pub membership_index: u64,
    pub sets: Vec<std::collections::BTreeSet<NodeId>>,
}
impl VoterSets {
    pub fn is_majority(&self, nodes: &[NodeId]) -> bool {
        self.sets.iter().all(|set| set.iter().filter(|node| nodes.contains(node)).count() * 2 > set.len())
    }
}
