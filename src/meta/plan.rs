//! What operators have decided about members: who shall vote, who stays out, who leaves; and the tokens to join by (pure).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::topology::{NodeId, NodeState, Region, Zone};

use super::command::LogTime;

/// Whether a node shall have a vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Vote {
    /// As the cluster needs it.
    #[default]
    Auto,
    /// Before others.
    Always,
    /// Not.
    Never,
}

/// Whether a node is on its way out of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Leave {
    /// It stays.
    #[default]
    Stays,
    /// It is removed once its content lies where it belongs without it.
    WhenEmpty,
    /// It is removed as soon as it has no vote.
    Now,
}

/// What operators have decided about one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodePlan {
    /// Whether it shall have a vote.
    pub vote: Vote,
    /// It stays out although it lives (P13).
    pub held_out: bool,
    /// Whether it goes.
    pub leave: Leave,
}

/// What operators have decided about all nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Plan {
    /// The log index that last changed it.
    pub index: u64,
    /// The nodes about which something was decided.
    pub nodes: BTreeMap<NodeId, NodePlan>,
}

impl Plan {
    /// Returns what was decided about a node.
    #[must_use]
    pub fn node(&self, id: NodeId) -> NodePlan {
        self.nodes.get(&id).copied().unwrap_or_default()
    }
}

/// What shall become of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeChange {
    /// Which.
    pub node: NodeId,
    /// How it counts for placement from now on.
    pub state: NodeState,
    /// What is decided about it from now on.
    pub plan: NodePlan,
}

/// A change of the plan; the leaders then carry it out, step by step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanChange {
    /// [`Plan::index`] as the proposer saw it: of two changes at once, one is refused.
    pub seen: u64,
    /// What changes about single nodes.
    pub nodes: Vec<NodeChange>,
}

/// The SHA-256 of a join token: the token itself is nowhere in the state.
pub type TokenHash = [u8; 32];

/// A token by which one node may join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRow {
    /// After this it is good for nothing.
    pub expires: LogTime,
    /// Whoever joins by it never votes, unless an operator says so later.
    pub learner: bool,
    /// When it was made, by the maker's wall clock, in seconds since 1970.
    pub wall_seconds: u64,
    /// The first key that used it, and the id it got: a retry with the same key gets the same id (P10).
    pub used: Option<([u8; 32], NodeId)>,
}

/// A node that joins by a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenJoin {
    /// Which token.
    pub token: TokenHash,
    /// The operator's name for it.
    pub name: String,
    /// Its failure domain.
    pub zone: Zone,
    /// Its region.
    pub region: Region,
    /// Where other nodes reach it: `host:port`.
    pub rpc_address: String,
    /// Where clients reach it: a URL.
    pub api_url: String,
    /// Its share of the bytes relative to others.
    pub weight: u32,
    /// The SHA-256 of its public key.
    pub key_fingerprint: [u8; 32],
}
