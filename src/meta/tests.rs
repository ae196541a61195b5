//! One node alone, and three in one process over real connections.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::command::Rejection;
use super::test_cluster::{SOON, TestCluster, add_node, eventually, has, leader_of, link, propose_ok, quick, unlink};
use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_opens_at_once_and_keeps_what_it_answered_over_a_restart() {
    let cluster = TestCluster::new(1, quick()).await;
    let nodes = cluster.form().await;
    for text in ["a", "b", "c"] {
        propose_ok(&nodes[0].meta, link(text)).await;
    }
    assert!(has(&nodes[0].meta.local(), "c"));
    let (applied, hash) = (nodes[0].meta.status().applied, nodes[0].meta.status().state_hash);
    for node in nodes {
        node.stop().await;
    }
    let node = cluster.start(1).await;
    let view = node.meta.view(Consistency::Linearizable).await;
    assert!(view.fresh && has(&view.state, "a") && has(&view.state, "c"));
    assert!(node.meta.status().applied > applied);
    assert_eq!(node.meta.status().state_hash, hash);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_log_is_gone_does_not_start() {
    let cluster = TestCluster::new(1, quick()).await;
    for node in cluster.form().await {
        node.stop().await;
    }
    std::fs::remove_dir_all(cluster.dir(1).join("raft")).unwrap();
    assert!(matches!(cluster.try_start(1).await, Err(StartError::LogGone { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_goes_on_from_a_snapshot_and_the_log_after_it() {
    let config = Config { snapshot_entries: 20, log_entries_kept: 10, segment_bytes: 64 << 10, ..quick() };
    let cluster = TestCluster::new(1, config).await;
    let nodes = cluster.form().await;
    for number in 0..100 {
        propose_ok(&nodes[0].meta, link(&number.to_string())).await;
    }
    eventually("two snapshots and a purge", || async {
        nodes[0].meta.core.snapshots.bounds().is_some() && nodes[0].meta.core.raft_metrics().purged.is_some()
    })
    .await;
    let hash = nodes[0].meta.status().state_hash;
    for node in nodes {
        node.stop().await;
    }
    // The newest is damaged: the older one and the log after it still give the whole state.
    let mut snapshots: Vec<_> =
        std::fs::read_dir(cluster.dir(1).join("snapshots")).unwrap().map(|e| e.unwrap().path()).collect();
    snapshots.sort();
    let newest = snapshots.pop().unwrap();
    let mut bytes = std::fs::read(&newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&newest, bytes).unwrap();
    let node = cluster.start(1).await;
    assert!(node.meta.view(Consistency::Linearizable).await.fresh);
    assert_eq!(node.meta.status().state_hash, hash);
    assert_eq!(node.meta.local().recompute_hash(), hash);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_snapshots_do_not_reach_its_log_does_not_start() {
    let config = Config { snapshot_entries: 20, log_entries_kept: 10, segment_bytes: 64 << 10, ..quick() };
    let cluster = TestCluster::new(1, config).await;
    let nodes = cluster.form().await;
    for number in 0..100 {
        propose_ok(&nodes[0].meta, link(&number.to_string())).await;
    }
    eventually("a purge", || async { nodes[0].meta.core.raft_metrics().purged.is_some() }).await;
    for node in nodes {
        node.stop().await;
    }
    std::fs::remove_dir_all(cluster.dir(1).join("snapshots")).unwrap();
    assert!(matches!(cluster.try_start(1).await, Err(StartError::SnapshotLost { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_is_not_admitted_even_if_no_later_one_is_known() {
    let cluster = TestCluster::new(1, quick()).await;
    let nodes = cluster.form().await;
    let meta = &nodes[0].meta;
    assert_eq!(propose_ok(meta, add_node(2)).await.response, Response::NodeAdded { node: NodeId(2) });
    assert!(meta.admits(NodeId(2)));
    propose_ok(meta, Command::RemoveNode { node: NodeId(2) }).await;
    assert!(!meta.admits(NodeId(2)));
    // One that is not known here yet.
    assert!(meta.admits(NodeId(3)));
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_form_vote_and_take_writes_at_any_of_them() {
    let cluster = TestCluster::new(3, quick()).await;
    let nodes = cluster.form().await;
    let begun = Instant::now();
    for (number, node) in nodes.iter().cycle().take(60).enumerate() {
        let text = number.to_string();
        propose_ok(&node.meta, link(&text)).await;
        let reader = &nodes[(number + 1) % 3].meta;
        let view = reader.view(Consistency::Linearizable).await;
        assert!(view.fresh && has(&view.state, &text), "write {number} is not seen at another node");
    }
    tracing::info!("write and linearizable read elsewhere: {:?}", begun.elapsed() / 60);
    assert_eq!(nodes[0].meta.voter_sets().sets, vec![(1..=3).map(NodeId).collect()]);
    assert!(nodes.iter().all(|node| node.meta.status().role == Role::Voter));
    let statuses = nodes[1].meta.peer_statuses(SOON).await;
    assert!(statuses.iter().all(|(_, status)| status.as_ref().is_some_and(|status| status.fresh)));
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_without_all_bodies_gets_no_vote() {
    let cluster = TestCluster::new(3, quick()).await;
    let first = cluster.start(1).await;
    let mut others = Vec::new();
    for id in [2, 3] {
        propose_ok(&first.meta, add_node(id)).await;
        let node = cluster.start(id).await;
        node.bodies.store(id != 3, Ordering::Relaxed);
        others.push(node);
    }
    eventually("both are learners and fresh", || async { others.iter().all(|node| node.meta.status().fresh) }).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(first.meta.voter_sets().sets, vec![BTreeSet::from([NodeId(1)])]);
    assert!(!first.meta.local().is_open());
    let refused = first.meta.propose(link("early"), SOON).await.unwrap();
    assert_eq!(refused.response, Response::Rejected(Rejection::NotOpen));
    others[1].bodies.store(true, Ordering::Relaxed);
    eventually("the registry opens", || async { first.meta.local().is_open() }).await;
    for node in others.into_iter().chain([first]) {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_go_on_after_the_leader_died_and_nothing_acknowledged_is_lost() {
    let cluster = TestCluster::new(3, quick()).await;
    let mut nodes = cluster.form().await;
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        for number in 0..10 {
            let text = format!("{round}-{number}");
            propose_ok(&nodes[number % nodes.len()].meta, link(&text)).await;
            acknowledged.push(text);
        }
        let dead = leader_of(&nodes).unwrap();
        let id = nodes[dead].meta.status().me.0;
        nodes.remove(dead).stop().await;
        let begun = Instant::now();
        let text = format!("{round}-after");
        propose_ok(&nodes[0].meta, link(&text)).await;
        tracing::info!("leader stopped to next write: {:?}", begun.elapsed());
        acknowledged.push(text);
        nodes.push(cluster.start(id).await);
    }
    for node in &nodes {
        let mut view = node.meta.view(Consistency::Linearizable).await;
        let deadline = Instant::now() + SOON;
        while !view.fresh && Instant::now() < deadline {
            view = node.meta.view(Consistency::Linearizable).await;
        }
        assert!(view.fresh);
        for text in &acknowledged {
            assert!(has(&view.state, text), "{text} is missing at node {}", node.meta.status().me);
        }
    }
    for node in nodes {
        node.stop().await;
    }
}

/// P2: all were stopped, the former leader comes first; a read right away is either complete or not called fresh.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_right_after_everybody_was_stopped_is_never_stale_and_fresh() {
    let cluster = TestCluster::new(3, quick()).await;
    let nodes = cluster.form().await;
    for number in 0..20 {
        propose_ok(&nodes[0].meta, link(&number.to_string())).await;
    }
    let former = nodes[leader_of(&nodes).unwrap()].meta.status().me.0;
    for node in nodes {
        node.stop().await;
    }
    let first = cluster.start(former).await;
    let view = first.meta.view(Consistency::Linearizable).await;
    assert!(!view.fresh, "one of three cannot confirm anything");
    let mut others = Vec::new();
    for id in (1..=3).filter(|id| *id != former) {
        others.push(cluster.start(id).await);
    }
    eventually("a fresh read", || async {
        let view = first.meta.view(Consistency::Linearizable).await;
        assert!(!view.fresh || has(&view.state, "19"));
        view.fresh
    })
    .await;
    for node in others.into_iter().chain([first]) {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_writes_fail_within_five_seconds_and_reads_go_on_with_a_warning() {
    let cluster = TestCluster::new(3, quick()).await;
    let mut nodes = cluster.form().await;
    propose_ok(&nodes[0].meta, link("kept")).await;
    let alone = nodes.pop().unwrap();
    assert!(alone.meta.confirm().await.fresh);
    for node in nodes {
        node.stop().await;
    }
    let begun = Instant::now();
    let refused = alone.meta.propose(link("lost"), Duration::from_secs(60)).await;
    assert!(matches!(refused, Err(ProposeError::Unavailable { .. })), "{refused:?}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let begun = Instant::now();
    let refused = alone.meta.propose(link("lost"), Duration::from_secs(60)).await;
    assert!(matches!(refused, Err(ProposeError::Unavailable { outcome: Outcome::None })), "{refused:?}");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    let begun = Instant::now();
    let view = alone.meta.view(Consistency::Linearizable).await;
    assert!(!view.fresh && has(&view.state, "kept"));
    assert!(begun.elapsed() < Duration::from_millis(100));
    assert_eq!(alone.meta.status().leader, None);
    // One comes back: writes go on.
    let other = cluster.start(1).await;
    eventually("a write", || async { alone.meta.propose(link("again"), SOON).await.is_ok() }).await;
    other.stop().await;
    alone.stop().await;
}

/// P6: when a delete is answered, no node that holds itself fresh has the thing, a node that hears nothing included.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fresh_node_serves_what_was_answered_deleted() {
    let cluster = TestCluster::new(3, quick()).await;
    let nodes = cluster.form().await;
    let mut slowest = Duration::ZERO;
    for number in 0..10 {
        let text = number.to_string();
        propose_ok(&nodes[number % 3].meta, link(&text)).await;
        let begun = Instant::now();
        propose_ok(&nodes[(number + 1) % 3].meta, unlink(&text)).await;
        slowest = slowest.max(begun.elapsed());
        for node in &nodes {
            let view = node.meta.view_local();
            assert!(!view.fresh || !has(&view.state, &text));
        }
    }
    tracing::info!("slowest delete with all nodes up: {slowest:?}");
    // A follower stops answering while its last confirmation is live: the delete outlasts that.
    propose_ok(&nodes[0].meta, link("late")).await;
    let leader = leader_of(&nodes).unwrap();
    let silent = (leader + 1) % 3;
    let id = nodes[silent].meta.status().me;
    assert!(nodes[silent].meta.confirm().await.fresh);
    cluster.loopback.node(id.0).stop.cancel();
    let begun = Instant::now();
    propose_ok(&nodes[leader].meta, unlink("late")).await;
    let view = nodes[silent].meta.view_local();
    assert!(!view.fresh || !has(&view.state, "late"));
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_stops_gracefully_hands_over_without_an_election_timeout() {
    let cluster = TestCluster::new(3, quick()).await;
    let nodes = cluster.form().await;
    propose_ok(&nodes[0].meta, link("before")).await;
    let leader = leader_of(&nodes).unwrap();
    let begun = Instant::now();
    nodes[leader].meta.hand_over(SOON).await;
    tracing::info!("handed over in {:?}", begun.elapsed());
    assert_ne!(leader_of(&nodes), Some(leader));
    propose_ok(&nodes[leader].meta, link("after")).await;
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_far_behind_is_brought_up_by_a_snapshot() {
    let config = Config { snapshot_entries: 20, log_entries_kept: 5, ..quick() };
    let cluster = TestCluster::new(3, config).await;
    let mut nodes = cluster.form().await;
    let behind = (0..3).find(|at| Some(*at) != leader_of(&nodes)).unwrap();
    let id = nodes[behind].meta.status().me.0;
    nodes.remove(behind).stop().await;
    for number in 0..120 {
        propose_ok(&nodes[0].meta, link(&number.to_string())).await;
    }
    let missing = nodes[0].meta.status().applied - 100;
    eventually("the log is purged beyond what the node has", || async {
        nodes.iter().all(|node| node.meta.core.raft_metrics().purged.is_some_and(|purged| purged.index > missing))
    })
    .await;
    let back = cluster.start(id).await;
    eventually("it has everything", || async { has(&back.meta.local(), "119") }).await;
    let leader = leader_of(&nodes).unwrap();
    let index = nodes[leader].meta.status().applied;
    assert!(back.meta.wait_applied(index, SOON).await);
    assert!(back.meta.status().snapshot > missing);
    assert_eq!(back.meta.local().recompute_hash(), back.meta.status().state_hash);
    // What it installed is on its disk.
    back.stop().await;
    let again = cluster.start(id).await;
    assert!(again.meta.wait_applied(missing, SOON).await);
    eventually("it is fresh", || async { again.meta.status().fresh }).await;
    nodes.push(again);
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writers_at_once_are_answered_once_each() {
    let cluster = TestCluster::new(3, quick()).await;
    let nodes = cluster.form().await;
    let mut writers = JoinSet::new();
    for writer in 0..24usize {
        let meta = nodes[writer % 3].meta.clone();
        writers.spawn(async move {
            let mut times = Vec::new();
            for number in 0..10 {
                let begun = Instant::now();
                propose_ok(&meta, link(&format!("{writer}-{number}"))).await;
                times.push(begun.elapsed());
            }
            times
        });
    }
    let mut times: Vec<Duration> = timeout(SOON * 3, writers.join_all()).await.unwrap().into_iter().flatten().collect();
    times.sort();
    tracing::info!("240 writes by 24 writers: p50 {:?}, max {:?}", times[times.len() / 2], times[times.len() - 1]);
    let last = nodes[leader_of(&nodes).unwrap()].meta.status().applied;
    for node in &nodes {
        assert!(node.meta.wait_applied(last, SOON).await);
    }
    let hashes: BTreeSet<u128> = nodes.iter().map(|node| node.meta.status().state_hash).collect();
    assert_eq!(hashes.len(), 1);
    for node in nodes {
        node.stop().await;
    }
}

/// P4: commands live for a minute of log time, which passes while nothing is written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_of_an_idle_cluster_are_not_issued_in_the_past() {
    let cluster = TestCluster::new(3, quick()).await;
    let nodes = cluster.form().await;
    let written = propose_ok(&nodes[0].meta, link("a")).await;
    for node in &nodes {
        assert!(node.meta.wait_applied(written.index, SOON).await);
    }
    let before = nodes[0].meta.local().log_time();
    sleep(Duration::from_millis(1500)).await;
    for node in &nodes {
        assert!(node.meta.confirm().await.fresh);
        assert!(node.meta.log_time().0 >= before.0 + 1000, "time passes without any write, for the leader too");
        let proposal = node.meta.core.proposal(link("b")).await;
        assert!(proposal.issued.0 >= before.0 + 1000, "{:?} after {before:?}", proposal.issued);
    }
    // One that was issued too long ago is refused, and changes nothing.
    let leader = &nodes[leader_of(&nodes).unwrap()].meta.core;
    let mut old = leader.proposal(link("old")).await;
    old.issued = command::LogTime(0);
    let ahead = leader.proposal(link("b")).await.issued.0;
    if ahead > COMMAND_LIFE_MS {
        let submitted = leader.submit(old, Instant::now() + SOON).await;
        let expired = Response::Rejected(Rejection::Expired);
        assert!(matches!(submitted, propose::Submitted::Applied { response, .. } if response == expired));
    }
    for node in nodes {
        node.stop().await;
    }
}

/// P8: whoever is not with the majority of the voters is told, and stops.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_state_differs_from_the_majoritys_is_told() {
    let cluster = TestCluster::new(3, quick()).await;
    let nodes = cluster.form().await;
    let leader = leader_of(&nodes).unwrap();
    let (right, wrong) = ((leader + 1) % 3, (leader + 2) % 3);
    assert!(nodes[right].meta.confirm().await.fresh);
    let status = nodes[wrong].meta.status();
    let (applied, state_hash) = (status.applied, status.state_hash ^ 1);
    let report = followers::Report { applied, state_hash, bodies_complete: true, bodies_to: applied };
    let peers = &cluster.loopback.node(status.me.0).peers;
    let leader_id = nodes[leader].meta.status().me;
    let answer = client::read_index(peers, leader_id, report, SOON).await.unwrap();
    assert!(matches!(answer, client::ReadAnswer::Granted { diverged: true, .. }), "{answer:?}");
    nodes[wrong].meta.core.fail(Failure::Diverged { index: status.applied });
    let mut nodes = nodes;
    let mut diverged = nodes.remove(wrong);
    let failure = timeout(SOON, diverged.run.join_next()).await.unwrap().unwrap().unwrap();
    assert_eq!(failure, Failure::Diverged { index: status.applied });
    assert!(diverged.meta.status().diverged);
    assert!(matches!(diverged.meta.propose(link("x"), SOON).await, Err(ProposeError::Stopped)));
    diverged.stop().await;
    for node in nodes {
        node.stop().await;
    }
}
