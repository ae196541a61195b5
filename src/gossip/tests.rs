//! Rounds between real servers on loopback.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::service::Routes;

use crate::oci::{Algorithm, Digest};
use crate::rpc::testing::{Loopback, LoopbackNode};
use crate::topology::NodeId;

use super::{Config, Gossip, Liveness, Metrics, Parts};

const SOON: Duration = Duration::from_secs(20);

fn start(cluster: &Loopback, node: &LoopbackNode, tasks: &mut JoinSet<()>) -> Gossip {
    let config = Config { interval: Duration::from_millis(50), ..Config::default() };
    let parts = Parts {
        env: node.env.clone(),
        peers: node.peers.clone(),
        topology: cluster.topology.subscribe(),
        metrics: Metrics::default(),
    };
    let (gossip, run, service) = Gossip::start(config, parts);
    node.serve(Routes::new(service));
    tasks.spawn(run);
    gossip
}

async fn wait_for(gossip: &Gossip, node: u64, liveness: Liveness) -> Option<String> {
    let mut members = gossip.members();
    let seen = members.wait_for(|members| members.get(&NodeId(node)).is_some_and(|member| member.liveness == liveness));
    let seen = timeout(SOON, seen).await.unwrap_or_else(|_| panic!("{node} never {liveness:?}: {gossip:?}")).unwrap();
    seen[&NodeId(node)].reason.clone()
}

#[tokio::test]
async fn nodes_find_each_other_and_tell_what_they_gained() {
    let cluster = Loopback::start(3).await;
    let mut tasks = JoinSet::new();
    let gossips: Vec<_> = cluster.nodes.iter().map(|node| start(&cluster, node, &mut tasks)).collect();
    for gossip in &gossips {
        for node in 1..=3 {
            wait_for(gossip, node, Liveness::Live).await;
        }
    }
    let digests: Vec<_> = (0..600u32).map(|n| Digest::of(Algorithm::Sha512, &n.to_le_bytes())).collect();
    digests.iter().for_each(|digest| gossips[0].announce(digest));
    let known = async {
        while !digests.iter().all(|digest| gossips[2].holders(digest) == [NodeId(1)]) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, known).await.unwrap();
}

#[tokio::test]
async fn a_node_that_says_goodbye_is_dead_at_once_and_one_that_falls_silent_soon() {
    let cluster = Loopback::start(3).await;
    let mut tasks = JoinSet::new();
    let gossips: Vec<_> = cluster.nodes.iter().map(|node| start(&cluster, node, &mut tasks)).collect();
    for node in [2, 3] {
        wait_for(&gossips[0], node, Liveness::Live).await;
        wait_for(&gossips[1], node, Liveness::Live).await;
    }
    gossips[2].leave(Duration::from_secs(5)).await;
    assert_eq!(wait_for(&gossips[0], 3, Liveness::Dead).await.as_deref(), Some("it said that it stops"));
    cluster.node(2).stop.cancel();
    let reason = wait_for(&gossips[0], 2, Liveness::Suspect).await.unwrap();
    assert!(reason.contains("no answer") && reason.contains("last error"), "{reason}");
}

#[tokio::test]
async fn a_failed_call_is_forgotten_with_the_next_answer() {
    let cluster = Loopback::start(2).await;
    let mut tasks = JoinSet::new();
    let gossips: Vec<_> = cluster.nodes.iter().map(|node| start(&cluster, node, &mut tasks)).collect();
    wait_for(&gossips[0], 2, Liveness::Live).await;
    gossips[0].report_unreachable(NodeId(2));
    wait_for(&gossips[0], 2, Liveness::Live).await;
    assert!(gossips[0].is_live(NodeId(1)));
    assert!(!gossips[0].is_live(NodeId(9)));
}
