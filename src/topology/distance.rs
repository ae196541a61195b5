//! How far nodes stand from each other.

use super::{NodeId, Topology};

/// How far a node is, near to far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Distance {
    /// The node itself.
    Here,
    /// Another node of the same zone.
    Zone,
    /// Another zone of the same region.
    Region,
    /// Another region, or a node the topology does not name.
    Far,
}

/// Returns the distance between two nodes.
#[must_use]
pub fn distance(topology: &Topology, from: NodeId, to: NodeId) -> Distance {
    if from == to {
        return Distance::Here;
    }
    match (topology.node(from), topology.node(to)) {
        (Some(a), Some(b)) if a.region == b.region && a.zone == b.zone => Distance::Zone,
        (Some(a), Some(b)) if a.region == b.region => Distance::Region,
        _ => Distance::Far,
    }
}

/// Sorts `nodes` by their distance from `from`, keeping the given order among equals.
pub fn nearest_first(topology: &Topology, from: NodeId, nodes: &mut [NodeId]) {
    nodes.sort_by_key(|node| distance(topology, from, *node));
}
