//! Which nodes should hold a blob: weighted rendezvous hashing, spread over zones, with a number of copies per region.
//!
//! What holds for every topology: the answer depends on digest, nodes and policy alone, to the last bit, on every machine;
//! zones are distinct while there are any; a node that joins, or gains weight, takes copies and moves none between others,
//! one that leaves hands on its own and moves none besides. The scores of nodes are independent of each other, which is
//! what makes the last point exact, with any weights and zones.
//!
//! Balance follows from it where the spread leaves a choice. Inside a zone that gives one copy, nodes hold exactly in
//! proportion to their weights; so do all nodes for one copy. Nodes that weigh the same, in zones that weigh the same (or
//! in one), hold the same. Otherwise the rule of distinct zones (or nodes) bends the shares towards the light ones: who
//! already holds a copy takes no second one. With `copies` on zones that each are a small part `p` of the whole, shares are
//! off by about half of `copies` × `p`; a zone that weighs more than a `copies`-th of the whole cannot have its share, by
//! anyone's rule. A method that were exact there, too, would have to move copies between old nodes at each join.

use std::collections::BTreeSet;

use crate::oci::Digest;

use super::{NodeId, NodeRecord, NodeState, Policy, Topology};

/// Returns the nodes that should hold `digest`, best first: `policy.total()` of them, or all if there are fewer.
///
/// Only nodes that are *in* count. Each region of the policy gives its copies as far as it has nodes; what is left of
/// `policy.copies` goes wherever it spreads best, so that a region without nodes never costs copies below that number.
/// Zones are spread first: a second copy goes to a zone already used only when every zone has one.
#[must_use]
pub fn placement(digest: &Digest, topology: &Topology, policy: &Policy) -> Vec<NodeId> {
    let order = placement_order(digest, topology);
    let mut left = policy.regions.clone();
    let mut chosen = vec![false; order.len()];
    for (node, chosen) in order.iter().zip(&mut chosen) {
        let region = topology.node(*node).map(|record| &record.region);
        if let Some(left) = region.and_then(|region| left.get_mut(region)).filter(|left| **left > 0) {
            *left -= 1;
            *chosen = true;
        }
    }
    let mut more = (policy.copies as usize).saturating_sub(chosen.iter().filter(|chosen| **chosen).count());
    for chosen in chosen.iter_mut().filter(|chosen| !**chosen) {
        if more == 0 {
            break;
        }
        *chosen = true;
        more -= 1;
    }
    order.into_iter().zip(chosen).filter_map(|(node, chosen)| chosen.then_some(node)).collect()
}

/// Returns every node that is *in*, in the order in which copies of `digest` would go to them but for regions.
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
    f64::from(node.weight) / minus_ln(seed)
}

/// Returns `-ln(u)` for the `u` in (0, 1) that the upper 52 bits of `seed` stand for; finite and above zero.
///
/// Of additions, multiplications and divisions alone, which IEEE 754 defines to the last bit: the logarithm of a system's
/// library may differ between machines, and with it the order of two nodes. Error below 1e-12.
pub(super) fn minus_ln(seed: u64) -> f64 {
    // (2 k + 1) / 2^53 for k < 2^52: never 0 and never 1, and exact.
    let odd = (seed >> 12 << 1) | 1;
    // odd = m · 2^exponent with m in [1, 2)
    let exponent = i32::try_from(odd.ilog2()).expect("below 64");
    #[expect(clippy::cast_precision_loss, reason = "both have at most 53 bits: exact")]
    let mut m = odd as f64 / (1u64 << exponent) as f64;
    let mut power = exponent - 53;
    if m > std::f64::consts::SQRT_2 {
        m /= 2.0;
        power += 1;
    }
    // ln m = 2 (s + s³/3 + s⁵/5 + …), |s| < 0.172
    let s = (m - 1.0) / (m + 1.0);
    let square = s * s;
    let mut sum = 0.0;
    for odd in [17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        sum = sum * square + 1.0 / odd;
    }
    -(f64::from(power) * std::f64::consts::LN_2 + 2.0 * s * sum)
}

/// The finaliser of `SplitMix64` (Steele, Lea, Flood, 2014): every input bit reaches every output bit.
fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}
