//! What placement promises: the same everywhere, spread, balanced where the spread leaves a choice, and few moves.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;

use crate::oci::{Algorithm, Digest};

use super::placement::{minus_ln, placement, placement_order};
use super::{NodeId, NodeRecord, NodeState, Policy, Region, Topology, Zone, testing};

/// A node as a test names it: region, zone, weight.
type Sketch = (&'static str, &'static str, u32);

fn topology(sketch: &[Sketch]) -> Topology {
    let place = |((region, zone, weight), id): (&Sketch, u64)| NodeRecord {
        region: Region((*region).to_owned()),
        zone: Zone((*zone).to_owned()),
        weight: *weight,
        ..testing::record(id)
    };
    testing::topology(sketch.iter().zip(1..).map(place))
}

fn zones(zones: &[&'static str]) -> Topology {
    topology(&zones.iter().map(|zone| ("r", *zone, 1)).collect::<Vec<_>>())
}

fn policy(copies: u32, regions: &[(&str, u32)]) -> Policy {
    Policy { copies, regions: regions.iter().map(|(name, copies)| (Region((*name).to_owned()), *copies)).collect() }
}

fn digests(count: u32) -> impl Iterator<Item = Digest> {
    (0..count).map(|n| Digest::of(Algorithm::Sha256, &n.to_le_bytes()))
}

fn zone_of(topology: &Topology, node: NodeId) -> (&Region, &Zone) {
    let record = &topology.nodes[&node];
    (&record.region, &record.zone)
}

#[test]
fn the_logarithm_is_right_at_both_ends_and_between() {
    let odd = |seed: u64| ((seed >> 12 << 1) | 1) as f64 / (1u64 << 53) as f64;
    for seed in (0..64).map(|bit| 1u64 << bit).flat_map(|seed| [seed - 1, seed, u64::MAX - seed, seed | seed >> 1]) {
        let (ours, theirs) = (minus_ln(seed), -odd(seed).ln());
        assert!(ours.is_finite() && ours > 0.0, "{seed:x}");
        assert!((ours - theirs).abs() <= 1e-12 * theirs.max(1e-3), "{seed:x}: {ours} and {theirs}");
    }
}

#[test]
fn the_answer_is_written_down() {
    // Another answer here would move the bytes of every cluster: it may only come with a new rule and a way to it.
    let nodes = topology(&[("eu", "a", 1), ("eu", "b", 2), ("us", "c", 3), ("us", "c", 1), ("us", "d", 1)]);
    let answers: Vec<Vec<u64>> =
        digests(4).map(|digest| placement_order(&digest, &nodes).into_iter().map(|node| node.0).collect()).collect();
    assert_eq!(answers, WRITTEN_DOWN);
}

const WRITTEN_DOWN: [[u64; 5]; 4] = [[5, 3, 2, 1, 4], [4, 2, 5, 1, 3], [3, 2, 1, 5, 4], [1, 2, 3, 5, 4]];

#[test]
fn a_node_that_is_out_or_weighs_nothing_holds_nothing() {
    let mut topology = zones(&["a", "b", "c", "d"]);
    topology.nodes.get_mut(&NodeId(2)).unwrap().state = NodeState::Out;
    topology.nodes.get_mut(&NodeId(3)).unwrap().weight = 0;
    for digest in digests(50) {
        let order: BTreeSet<_> = placement_order(&digest, &topology).into_iter().collect();
        assert_eq!(order, [1, 4].map(NodeId).into());
    }
}

#[test]
fn regions_get_their_copies_and_the_rest_goes_where_it_spreads() {
    let nodes =
        topology(&[("eu", "a", 1), ("eu", "b", 1), ("eu", "c", 1), ("us", "d", 1), ("us", "e", 1), ("us", "f", 1)]);
    let count =
        |holders: &[NodeId], region: &str| holders.iter().filter(|node| nodes.nodes[*node].region.0 == region).count();
    for digest in digests(200) {
        let both = placement(&digest, &nodes, &policy(3, &[("eu", 2), ("us", 2)]));
        assert_eq!((both.len(), count(&both, "eu"), count(&both, "us")), (4, 2, 2));
        let eu_first = placement(&digest, &nodes, &policy(3, &[("eu", 2)]));
        assert_eq!(eu_first.len(), 3);
        assert!(count(&eu_first, "eu") >= 2);
        // Nobody is there, or too few are: never fewer copies than `copies` for that.
        assert_eq!(placement(&digest, &nodes, &policy(3, &[("asia", 2)])).len(), 3);
        let many = placement(&digest, &nodes, &policy(4, &[("us", 5)]));
        assert_eq!((many.len(), count(&many, "us")), (4, 3));
        assert_eq!(placement(&digest, &nodes, &policy(16, &[])).len(), 6);
    }
}

/// How often each node holds one of `blobs` blobs.
fn load(topology: &Topology, policy: &Policy, blobs: u32) -> BTreeMap<NodeId, f64> {
    let mut held: BTreeMap<NodeId, f64> = topology.nodes.keys().map(|node| (*node, 0.0)).collect();
    for node in digests(blobs).flat_map(|digest| placement(&digest, topology, policy)) {
        *held.get_mut(&node).unwrap() += 1.0;
    }
    held
}

/// Every node holds within 5 % of what its weight says of `blobs` blobs.
#[track_caller]
fn check_balance(sketch: &[Sketch], copies: u32, blobs: u32) {
    let topology = topology(sketch);
    let total: f64 = sketch.iter().map(|(_, _, weight)| f64::from(*weight)).sum();
    for (node, held) in load(&topology, &Policy::of_copies(copies), blobs) {
        let share = f64::from(blobs * copies) * f64::from(topology.nodes[&node].weight) / total;
        assert!((held / share - 1.0).abs() < 0.05, "node {node} holds {held} instead of {share}");
    }
}

#[test]
fn one_copy_is_balanced_by_weight() {
    check_balance(&[("r", "a", 1), ("r", "a", 2), ("r", "b", 3), ("r", "c", 5), ("r", "d", 1)], 1, 60_000);
}

#[test]
fn equal_nodes_in_one_zone_or_each_in_its_own_are_balanced() {
    check_balance(&[("r", "a", 1); 5], 3, 20_000);
    check_balance(&["a", "b", "c", "d", "e", "f", "g"].map(|zone| ("r", zone, 1)), 3, 20_000);
}

#[test]
fn unequal_nodes_in_zones_that_weigh_the_same_are_balanced() {
    check_balance(
        &[("r", "a", 4), ("r", "b", 3), ("r", "b", 1), ("r", "c", 2), ("r", "c", 1), ("r", "c", 1)],
        3,
        40_000,
    );
    check_balance(
        &[("r", "a", 2), ("r", "b", 1), ("r", "b", 1), ("r", "c", 2), ("r", "d", 1), ("r", "d", 1)],
        2,
        40_000,
    );
}

#[test]
fn many_nodes_of_unequal_weights_are_balanced() {
    let nodes: Vec<Sketch> = (0..30).map(|n| ("r", "a", if n % 2 == 0 { 2 } else { 3 })).collect();
    check_balance(&nodes, 3, 60_000);
}

/// Nodes by region, zone and weight, a policy, and which node comes or goes.
fn situations() -> impl Strategy<Value = (Vec<Sketch>, Policy, prop::sample::Index)> {
    let node = (prop::sample::select(vec!["eu", "us"]), prop::sample::select(vec!["a", "b", "c"]), 1u32..6);
    let regions = prop::collection::btree_map(prop::sample::select(vec!["eu", "us", "asia"]), 1u32..4, 0..3);
    let policy =
        (1u32..6, regions).prop_map(|(copies, regions)| policy(copies, &regions.into_iter().collect::<Vec<_>>()));
    (vec(node, 2..10), policy, any::<prop::sample::Index>())
}

fn without(topology: &Topology, node: NodeId) -> Topology {
    let mut smaller = topology.clone();
    smaller.nodes.remove(&node);
    smaller
}

fn holders(digest: &Digest, topology: &Topology, policy: &Policy) -> BTreeSet<NodeId> {
    placement(digest, topology, policy).into_iter().collect()
}

proptest! {
    #[test]
    fn a_join_takes_only_its_share_and_a_leave_hands_on_only_its_own((sketch, policy, at) in situations()) {
        let with = topology(&sketch);
        let node = NodeId(at.index(sketch.len()) as u64 + 1);
        let without = without(&with, node);
        for digest in digests(40) {
            let (before, after) = (holders(&digest, &without, &policy), holders(&digest, &with, &policy));
            let gained: Vec<_> = after.difference(&before).collect();
            prop_assert!(gained.is_empty() || gained == [&node], "a join moved a copy to {:?}", gained);
            let inherited: Vec<_> = before.difference(&after).collect();
            prop_assert!(inherited.len() <= usize::from(after.contains(&node)), "a leave moved {:?}", inherited);
        }
    }

    #[test]
    fn more_weight_only_draws_copies_here_and_less_only_gives_them_away((sketch, policy, at) in situations()) {
        let light = topology(&sketch);
        let node = NodeId(at.index(sketch.len()) as u64 + 1);
        let mut heavy = light.clone();
        heavy.nodes.get_mut(&node).unwrap().weight += 3;
        for digest in digests(40) {
            let (before, after) = (holders(&digest, &light, &policy), holders(&digest, &heavy, &policy));
            prop_assert!(after.difference(&before).all(|gained| *gained == node));
            prop_assert!(before.difference(&after).all(|lost| *lost != node));
        }
    }

    #[test]
    fn zones_are_distinct_where_they_exist((sketch, policy, _) in situations()) {
        let topology = topology(&sketch);
        for digest in digests(40) {
            let holders = placement(&digest, &topology, &Policy::of_copies(policy.copies));
            let all: BTreeSet<_> = topology.nodes.keys().map(|node| zone_of(&topology, *node)).collect();
            // Best first: however many of them one takes, they are in as many zones as can be.
            for count in 1..=holders.len() {
                let used: BTreeSet<_> = holders[..count].iter().map(|node| zone_of(&topology, *node)).collect();
                prop_assert_eq!(used.len(), count.min(all.len()));
            }
            for region in policy.regions.keys() {
                let here = |node: &NodeId| topology.nodes[node].region == *region;
                let zones: BTreeSet<_> = topology.nodes.keys().filter(|node| here(node)).map(|node| zone_of(&topology, *node)).collect();
                let held: Vec<_> = placement(&digest, &topology, &policy).into_iter().filter(here).collect();
                let used: BTreeSet<_> = held.iter().map(|node| zone_of(&topology, *node)).collect();
                prop_assert_eq!(used.len(), held.len().min(zones.len()), "spread inside a region");
            }
        }
    }

    #[test]
    fn every_policy_is_kept_as_far_as_there_are_nodes((sketch, policy, _) in situations()) {
        let topology = topology(&sketch);
        for digest in digests(20) {
            let held = placement(&digest, &topology, &policy);
            prop_assert_eq!(&held, &placement(&digest, &topology.clone(), &policy), "the same again");
            let distinct: BTreeSet<_> = held.iter().collect();
            prop_assert_eq!(distinct.len(), held.len());
            prop_assert!(held.len() >= (policy.copies as usize).min(topology.nodes.len()));
            prop_assert!(held.len() <= policy.total() as usize);
            for (region, copies) in &policy.regions {
                let in_region = |node: &NodeId| topology.nodes[node].region == *region;
                let there = topology.nodes.keys().filter(|node| in_region(node)).count();
                let got = held.iter().filter(|node| in_region(node)).count();
                prop_assert!(got >= (*copies as usize).min(there));
            }
        }
    }
}
