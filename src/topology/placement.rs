//! Which nodes should hold a blob: rendezvous hashing, spread over zones.

use std::collections::BTreeSet;

use crate::oci::Digest;

use super::{NodeId, NodeRecord, NodeState, Topology};

/// Returns the nodes that should hold `digest`, best first, at most `copies` of them.
///
/// Only nodes that are *in* count. Zones are spread first: a second copy goes to a zone already used only when every
/// zone has one. The same digest, topology and count give the same answer on every node.
#[must_use]
pub fn placement(digest: &Digest, topology: &Topology, copies: usize) -> Vec<NodeId> {
    let mut order = placement_order(digest, topology);
    order.truncate(copies);
    order
}

/// Returns every node that is *in*, in the order in which copies of `digest` would go to them.
#[must_use]
pub fn placement_order(digest: &Digest, topology: &Topology) -> Vec<NodeId> {
    let mut ranked: Vec<(f64, &NodeRecord)> = topology
        .nodes
        .values()
        .filter(|node| node.state == NodeState::In && node.weight > 0)
        .map(|node| (score(digest, node), node))
        .collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.id.cmp(&b.1.id)));
    let mut order = Vec::with_capacity(ranked.len());
    // Round after round, each zone gives its best node that is left.
    while !ranked.is_empty() {
        let mut zones = BTreeSet::new();
        ranked.retain(|(_, node)| {
            let first_of_its_zone = zones.insert((&node.region, &node.zone));
            if first_of_its_zone {
                order.push(node.id);
            }
            !first_of_its_zone
        });
    }
    order
}

/// Weighted rendezvous score: `-weight / ln(u)` with `u` in (0, 1) drawn from digest and node.
///
/// Source: Schindelhauer and Schomaker, "Weighted distributed hash tables", 2005 (logarithmic method).
fn score(digest: &Digest, node: &NodeRecord) -> f64 {
    let mut seed = node.id.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for word in digest.hash().chunks_exact(8) {
        seed = mix(seed ^ u64::from_le_bytes(word.try_into().expect("eight bytes")));
    }
    #[expect(clippy::cast_precision_loss, reason = "53 of 64 bits are what a unit float can carry")]
    let unit = ((seed >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -f64::from(node.weight) / unit.ln()
}

/// The finaliser of `SplitMix64` (Steele, Lea, Flood, 2014): every input bit reaches every output bit.
fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;
    use crate::topology::{Region, Zone};

    fn topology(zones: &[&str]) -> Topology {
        let nodes = zones.iter().zip(1..).map(|(zone, id)| {
            let id = NodeId(id);
            let record = NodeRecord {
                id,
                name: format!("n{id}"),
                zone: Zone((*zone).to_owned()),
                region: Region("r".to_owned()),
                rpc_address: String::new(),
                api_url: String::new(),
                weight: 1,
                state: NodeState::In,
            };
            (id, record)
        });
        Topology { index: 1, nodes: nodes.collect() }
    }

    fn digests(count: u32) -> impl Iterator<Item = Digest> {
        (0..count).map(|n| Digest::of(Algorithm::Sha256, &n.to_le_bytes()))
    }

    #[test]
    fn copies_go_to_distinct_zones_while_there_are_any() {
        let topology = topology(&["a", "a", "a", "b", "c"]);
        for digest in digests(200) {
            let zones: BTreeSet<_> =
                placement(&digest, &topology, 3).iter().map(|id| topology.nodes[id].zone.clone()).collect();
            assert_eq!(zones.len(), 3);
        }
    }

    #[test]
    fn a_joining_node_takes_its_share_and_moves_nothing_else() {
        let before = topology(&["a", "b", "c", "d"]);
        let after = topology(&["a", "b", "c", "d", "e"]);
        let mut taken = 0;
        for digest in digests(2000) {
            let old = placement(&digest, &before, 1)[0];
            let new = placement(&digest, &after, 1)[0];
            if old != new {
                assert_eq!(new, NodeId(5), "a blob moved between old nodes");
                taken += 1;
            }
        }
        assert!((300..500).contains(&taken), "one in five of 2000, got {taken}");
    }

    #[test]
    fn a_node_that_is_out_holds_nothing_new() {
        let mut topology = topology(&["a", "b", "c"]);
        topology.nodes.get_mut(&NodeId(2)).unwrap().state = NodeState::Out;
        assert!(digests(50).all(|digest| !placement_order(&digest, &topology).contains(&NodeId(2))));
    }
}
