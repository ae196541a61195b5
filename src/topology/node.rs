//! Nodes and where they stand.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Policy;

/// Identifies a node for ever: an integer given out by the agreed state and never used again (P10).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Identifies a cluster: 128 random bits drawn at bootstrap, printed as 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterId(pub u128);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ClusterId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u128::from_str_radix(text, 16).map(Self)
    }
}

impl TryFrom<String> for ClusterId {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ClusterId> for String {
    fn from(id: ClusterId) -> Self {
        id.to_string()
    }
}

macro_rules! place_name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

place_name! {
    /// Names a failure domain: nodes of one zone may die together.
    Zone
}
place_name! {
    /// Names a group of zones that are near each other.
    Region
}

/// Says how a node counts for placement; changed only by agreed commands (P13).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
pub enum NodeState {
    /// Holds copies and counts.
    #[default]
    In,
    /// Away longer than the grace period: counts for nothing until it is back.
    Out,
    /// Being emptied for good: takes no new copies.
    Decommissioned,
}

/// What the cluster has agreed on about one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// The node's id.
    pub id: NodeId,
    /// The operator's name for it, unique in the cluster.
    pub name: String,
    /// Its failure domain.
    pub zone: Zone,
    /// Its region.
    pub region: Region,
    /// Where other nodes reach it: `host:port`.
    pub rpc_address: String,
    /// Where clients reach it: a URL, for `cluster status`.
    pub api_url: String,
    /// Its share of the bytes relative to others; 1 unless configured.
    pub weight: u32,
    /// How it counts for placement.
    pub state: NodeState,
}

/// The agreed set of nodes at one log index, and how many copies they should hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Topology {
    /// The log index that last changed it.
    pub index: u64,
    /// The nodes by id.
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    /// The agreed policy; none before the first leader that knows of policies has proposed one.
    pub policy: Option<Policy>,
}

impl Topology {
    /// Returns the record of a node.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&NodeRecord> {
        self.nodes.get(&id)
    }

    /// Counts the nodes that are not decommissioned: the ceiling of the effective `write_copies` (P14).
    #[must_use]
    pub fn members(&self) -> usize {
        self.nodes.values().filter(|node| node.state != NodeState::Decommissioned).count()
    }
}
