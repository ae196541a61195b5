//! Nodes and topologies for the tests of this and of other modules.

use super::{NodeId, NodeRecord, NodeState, Region, Topology, Zone};

/// Node `n<id>` in a zone of its own, in region `r`, of weight 1, in, without addresses.
pub(crate) fn record(id: u64) -> NodeRecord {
    NodeRecord {
        id: NodeId(id),
        name: format!("n{id}"),
        zone: Zone(format!("z{id}")),
        region: Region("r".to_owned()),
        rpc_address: String::new(),
        api_url: String::new(),
        weight: 1,
        state: NodeState::In,
    }
}

/// These nodes, at index 1 and without a policy.
pub(crate) fn topology(nodes: impl IntoIterator<Item = NodeRecord>) -> Topology {
    let nodes = nodes.into_iter().map(|record| (record.id, record)).collect();
    Topology { index: 1, nodes, policy: None }
}
