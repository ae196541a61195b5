//! Members that come and go, in one process over real connections.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::meta::test_cluster::{
    SOON, TestCluster, TestNode, add_node, eventually, has, leader_of, link, propose_ok, quick, raise_level,
};
use crate::meta::{Config, Meta};
use crate::topology::{NodeId, NodeState};

use super::{Operation, Refusal, Sight};

fn ids(ids: &[u64]) -> BTreeSet<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}

/// Writes as fast as it can until told to stop; returns what was acknowledged.
fn write(meta: Meta, stop: CancellationToken, tasks: &mut JoinSet<Vec<String>>) {
    tasks.spawn(async move {
        let mut acknowledged = Vec::new();
        while !stop.is_cancelled() {
            let text = format!("{}-{}", meta.status().me, acknowledged.len());
            if meta.propose(link(&text), SOON).await.is_ok() {
                acknowledged.push(text);
            }
        }
        acknowledged
    });
}

async fn voters_become(nodes: &[TestNode], expected: &[u64]) {
    let expected = vec![ids(expected)];
    eventually("the voters change", || async { nodes.iter().all(|node| node.meta.voter_sets().sets == expected) })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_becomes_three_becomes_five_and_three_again_while_writes_go_on_and_the_leader_changes() {
    let mut cluster = TestCluster::new(5, quick()).await;
    cluster.expect(1);
    let mut nodes = vec![cluster.start(1).await];
    eventually("it opens", || async { nodes[0].meta.local().is_open() }).await;
    let (stop, mut writers) = (CancellationToken::new(), JoinSet::new());
    for _ in 0..4 {
        write(nodes[0].meta.clone(), stop.clone(), &mut writers);
    }
    for id in 2..=5 {
        propose_ok(&nodes[0].meta, add_node(id)).await;
        nodes.push(cluster.start(id).await);
        if id == 3 {
            voters_become(&nodes, &[1, 2, 3]).await;
        }
    }
    voters_become(&nodes, &[1, 2, 3, 4, 5]).await;
    raise_level(&nodes).await;
    // The leader is among those that give up their vote, and one operator asks while another's wish is carried out.
    let leader = nodes[leader_of(&nodes).unwrap()].meta.status().me.0;
    let other = if leader == 5 { 4 } else { 5 };
    let demoted = ids(&[leader, other]);
    nodes[2].meta.operate(Operation::Demote { nodes: demoted.clone(), force: false }, SOON).await.unwrap();
    let left: Vec<u64> = (1..=5).filter(|id| !demoted.contains(&NodeId(*id))).collect();
    voters_become(&nodes, &left).await;
    sleep(Duration::from_secs(1)).await;
    stop.cancel();
    let acknowledged = writers.join_all().await.concat();
    assert_eq!(nodes[0].meta.voter_sets().sets.len(), 1, "and it stays so");
    assert_eq!(nodes[0].meta.voter_sets().sets[0].len(), 3);
    for node in &nodes {
        assert!(node.meta.confirm().await.fresh);
        let state = node.meta.local();
        assert!(acknowledged.iter().all(|text| has(&state, text)), "{} are acknowledged", acknowledged.len());
    }
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_counts_out_and_is_replaced_and_one_that_is_back_counts_in() {
    let cluster = TestCluster::new(4, Config { out_after_ms: 500, ..quick() }).await;
    let nodes = cluster.form().await;
    let voters = nodes[0].meta.voter_sets().sets[0].clone();
    let leader = leader_of(&nodes).unwrap();
    let dead = *voters.iter().find(|id| **id != nodes[leader].meta.status().me).unwrap();
    for node in &nodes {
        node.sight.lock().unwrap().insert(dead, Sight::Dead);
    }
    let state = || nodes[leader].meta.local().node(dead).unwrap().record.state;
    eventually("it counts out", || async { state() == NodeState::Out }).await;
    eventually("another has its vote", || async {
        let sets = nodes[leader].meta.voter_sets().sets;
        sets.len() == 1 && sets[0].len() == 3 && !sets[0].contains(&dead)
    })
    .await;
    for node in &nodes {
        node.sight.lock().unwrap().clear();
    }
    eventually("it counts in", || async { state() == NodeState::In }).await;
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_is_gone_for_good_and_two_operators_at_once_are_told_apart() {
    let cluster = TestCluster::new(4, quick()).await;
    let mut nodes = cluster.form().await;
    raise_level(&nodes).await;
    let remove = |node| Operation::Remove { node: NodeId(node), write_copies: 2, force: false };
    assert!(matches!(nodes[0].meta.operate(remove(4), SOON).await, Err(Refusal::Lives { .. })));
    for node in &nodes {
        node.sight.lock().unwrap().insert(NodeId(4), Sight::Dead);
    }
    nodes.pop().unwrap().stop().await;
    let (one, two) = tokio::join!(nodes[0].meta.operate(remove(4), SOON), nodes[1].meta.operate(remove(4), SOON));
    assert!(one.is_ok() || two.is_ok());
    for outcome in [one, two] {
        let told = |error: &Refusal| matches!(error, Refusal::Conflict | Refusal::NodeUnknown(_));
        assert!(outcome.as_ref().err().is_none_or(told), "{outcome:?}");
    }
    eventually("it is gone", || async {
        nodes.iter().all(|node| node.meta.local().node(NodeId(4)).is_none() && !node.meta.admits(NodeId(4)))
    })
    .await;
    voters_become(&nodes, &[1, 2, 3]).await;
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_goes_to_the_node_that_is_named() {
    let cluster = TestCluster::new(3, quick()).await;
    let nodes = cluster.form().await;
    for _ in 0..3 {
        let leader = leader_of(&nodes).unwrap();
        let (next, asked) = (&nodes[(leader + 1) % 3], &nodes[(leader + 2) % 3]);
        let id = next.meta.status().me;
        let begun = Instant::now();
        assert_eq!(asked.meta.transfer_leader(Some(id), SOON).await, Ok(id));
        assert!(begun.elapsed() < Duration::from_secs(3));
        eventually("it leads", || async { next.meta.core.leading().is_some() }).await;
    }
    let learner = nodes[0].meta.transfer_leader(Some(NodeId(9)), SOON).await;
    assert!(learner.is_err(), "{learner:?}");
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_is_carried_out_by_later_leaders_when_the_one_that_began_it_dies() {
    let cluster = TestCluster::new(5, quick()).await;
    let mut nodes = cluster.form().await;
    raise_level(&nodes).await;
    for round in 0..4 {
        let leader = leader_of_any(&nodes).await;
        let id = nodes[leader].meta.status().me;
        let others: BTreeSet<NodeId> = ids(&[1, 2, 3, 4, 5]).into_iter().filter(|node| *node != id).take(2).collect();
        let (operation, expected) = match round % 2 {
            0 => (Operation::Demote { nodes: others.clone(), force: false }, 3),
            _ => {
                let voters = nodes[leader].meta.voter_sets().sets[0].clone();
                let nodes = ids(&[1, 2, 3, 4, 5]).difference(&voters).copied().collect();
                (Operation::AddVoters { nodes, force: false }, 5)
            }
        };
        nodes[leader].meta.operate(operation, SOON).await.unwrap();
        // Somewhere between the decision and the end of the change.
        sleep(Duration::from_millis(150 * round)).await;
        nodes.remove(leader).stop().await;
        leader_of_any(&nodes).await;
        propose_ok(&nodes[0].meta, link(&format!("round {round}"))).await;
        // Whoever keeps its vote must have all bodies before others give up theirs (P18), so the dead one is waited for.
        nodes.push(cluster.start(id.0).await);
        eventually("the change is whole", || async {
            nodes.iter().all(|node| {
                let sets = node.meta.voter_sets().sets;
                sets.len() == 1 && sets[0].len() == expected
            })
        })
        .await;
        eventually("all agree", || async {
            let applied = nodes[0].meta.status().applied;
            nodes.iter().all(|node| node.meta.status().applied >= applied && node.meta.status().fresh)
        })
        .await;
    }
    for node in nodes {
        node.stop().await;
    }
}

async fn leader_of_any(nodes: &[TestNode]) -> usize {
    eventually("a leader", || async { leader_of(nodes).is_some() }).await;
    leader_of(nodes).unwrap()
}
