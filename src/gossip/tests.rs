//! Rounds between real servers on loopback.

#![expect(clippy::print_stdout, reason = "the figures of ARCHITECTURE.md come from here")]

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::service::Routes;

use crate::oci::{Algorithm, Digest};
use crate::rpc::Peers;
use crate::rpc::testing::{Loopback, LoopbackNode};
use crate::topology::{NodeId, Topology};

use super::{Config, Gossip, Listing, Liveness, Member, Metrics, Parts};

const SOON: Duration = Duration::from_secs(30);

struct Running {
    gossip: Gossip,
    metrics: Metrics,
    tasks: JoinSet<()>,
}

fn start(cluster: &Loopback, node: &LoopbackNode) -> Running {
    start_by(cluster, node, node.peers.clone())
}

fn start_by(cluster: &Loopback, node: &LoopbackNode, peers: Peers) -> Running {
    let config = Config { interval: Duration::from_millis(50), ..Config::default() };
    let metrics = Metrics::default();
    let parts =
        Parts { env: node.env.clone(), peers, topology: cluster.topology.subscribe(), metrics: metrics.clone() };
    let (gossip, run, service) = Gossip::start(config, parts);
    node.serve(Routes::new(service));
    let mut tasks = JoinSet::new();
    tasks.spawn(run);
    Running { gossip, metrics, tasks }
}

fn start_all(cluster: &Loopback) -> Vec<Running> {
    cluster.nodes.iter().map(|node| start(cluster, node)).collect()
}

async fn wait_for(running: &Running, node: u64, wanted: impl Fn(&Member) -> bool) -> Member {
    let mut members = running.gossip.members();
    let is_wanted = |member: &Member| wanted(member);
    let seen = async {
        // What changes beside the liveness wakes nobody.
        loop {
            let member = members.borrow_and_update().get(&NodeId(node)).cloned();
            if let Some(member) = member.filter(is_wanted) {
                return member;
            }
            timeout(Duration::from_millis(50), members.changed()).await.ok();
        }
    };
    timeout(SOON, seen).await.unwrap_or_else(|_| panic!("of node {node}: {:?}", running.gossip))
}

async fn wait_for_liveness(running: &Running, node: u64, liveness: Liveness) -> Member {
    wait_for(running, node, |member| member.liveness == liveness).await
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn digests(count: u32) -> Vec<Digest> {
    (0..count).map(|n| Digest::of(Algorithm::Sha512, &n.to_le_bytes())).collect()
}

fn listing(digests: &[Digest]) -> Listing {
    let mut listing = Listing::default();
    digests.iter().for_each(|digest| listing.add(digest));
    listing
}

#[tokio::test]
async fn nodes_find_each_other_and_tell_what_they_gain_and_lose() {
    let cluster = Loopback::start(3).await;
    let all = start_all(&cluster);
    for running in &all {
        for node in 1..=3 {
            wait_for_liveness(running, node, Liveness::Live).await;
        }
    }
    let digests = digests(600);
    digests.iter().for_each(|digest| all[0].gossip.gained(digest));
    let holds = |digest| all[2].gossip.holders(digest) == [NodeId(1)];
    until("all learned, though the first node knows not all it holds", || digests.iter().all(holds)).await;
    all[0].gossip.publish(listing(&digests[..500]));
    until("what it does not hold is forgotten", || {
        digests[500..].iter().all(|digest| !holds(digest)) && digests[..500].iter().all(holds)
    })
    .await;
    all[0].gossip.lost(&digests[7]);
    until("a loss is told", || !holds(&digests[7])).await;
    assert!(all[2].gossip.known()[&NodeId(1)].whole);
}

#[tokio::test]
async fn a_restarted_node_learns_from_others_what_a_node_out_of_its_reach_holds() {
    let cluster = Loopback::start(3).await;
    let all = start_all(&cluster);
    let digests = digests(3000);
    all[2].gossip.publish(listing(&digests));
    until("the second knows", || all[1].gossip.known().get(&NodeId(3)).is_some_and(|known| known.blobs == 3000)).await;
    cluster.node(3).stop.cancel();
    let mut all = all;
    drop(all.remove(2));
    let again = start(&cluster, cluster.node(1));
    until("passed on", || again.gossip.known().get(&NodeId(3)).is_some_and(|known| known.blobs == 3000)).await;
    assert!(digests.iter().all(|digest| again.gossip.holders(digest) == [NodeId(3)]));
}

#[tokio::test]
async fn a_node_that_says_goodbye_is_dead_at_once_and_one_that_falls_silent_soon() {
    let cluster = Loopback::start(3).await;
    let mut all = start_all(&cluster);
    for node in [2, 3] {
        wait_for_liveness(&all[0], node, Liveness::Live).await;
        wait_for_liveness(&all[1], node, Liveness::Live).await;
    }
    all[2].gossip.leave(Duration::from_secs(5)).await;
    let left = wait_for_liveness(&all[0], 3, Liveness::Dead).await;
    assert_eq!(left.reason.as_deref(), Some("it said that it stops"));
    cluster.node(2).stop.cancel();
    all[1].tasks.abort_all();
    let reason = wait_for_liveness(&all[0], 2, Liveness::Suspect).await.reason.unwrap();
    assert!(reason.contains("no answer") && reason.contains("last error"), "{reason}");
}

#[tokio::test]
async fn a_node_that_only_others_reach_is_a_suspect_and_one_that_nobody_reaches_is_dead() {
    let cluster = Loopback::start(4).await;
    let mut all = start_all(&cluster);
    for node in 2..=4 {
        wait_for_liveness(&all[0], node, Liveness::Live).await;
        wait_for_liveness(&all[1], node, Liveness::Live).await;
    }
    // Node 1 has a wrong address for node 3: its calls go nowhere, those of the others arrive.
    let mut wrong = Topology::clone(&cluster.topology.borrow());
    wrong.nodes.get_mut(&NodeId(3)).unwrap().rpc_address = "127.0.0.1:1".to_owned();
    let wrong = watch::Sender::new(Arc::new(wrong));
    all[0] = start_by(&cluster, cluster.node(1), cluster.peers(1, wrong.subscribe()));
    let cut = wait_for(&all[0], 3, |member| !member.reached_by.is_empty()).await;
    assert_eq!(cut.liveness, Liveness::Suspect);
    let reason = cut.reason.unwrap();
    assert!(reason.contains("reached by node"), "{reason}");
    cluster.node(4).stop.cancel();
    all[3].tasks.abort_all();
    let dead = wait_for_liveness(&all[0], 4, Liveness::Dead).await;
    assert!(!dead.missed_by.is_empty(), "{dead:?}");
    assert!(dead.reason.unwrap().contains("cannot reach it either"));
}

/// Bytes of messages for each ping of a node that has nothing to tell.
async fn idle_bytes_per_ping(blobs: u32) -> f64 {
    let cluster = Loopback::start(3).await;
    let all = start_all(&cluster);
    for (node, running) in (1u32..).zip(&all) {
        let name = |n: u32| [node.to_le_bytes(), n.to_le_bytes()].concat();
        let own = (0..blobs).map(|n| Digest::of(Algorithm::Sha256, &name(n)));
        running.gossip.publish(listing(&own.collect::<Vec<_>>()));
    }
    let is_known = |running: &Running| {
        let known = running.gossip.known();
        known.len() == 3 && known.values().all(|known| known.whole && known.blobs == u64::from(blobs))
    };
    until("everybody knows everything", || all.iter().all(is_known)).await;
    let (bytes, pings) = all[0].metrics.traffic();
    let work = all[0].metrics.work();
    until("some idle rounds", || all[0].metrics.traffic().1 >= pings + 60).await;
    assert_eq!(all[0].metrics.work(), work, "nothing was asked");
    let (bytes_after, pings_after) = all[0].metrics.traffic();
    (bytes_after - bytes) as f64 / (pings_after - pings) as f64
}

#[tokio::test]
async fn idle_traffic_does_not_grow_with_the_number_of_blobs() {
    let (few, many) = (idle_bytes_per_ping(1_000).await, idle_bytes_per_ping(100_000).await);
    println!(
        "with 1,000 blobs a node {few:.0} bytes a ping, with 100,000 {many:.0}, both ways and the peer's ping too"
    );
    assert!(many < few * 1.1 && many < 1000.0, "{few} {many}");
}
