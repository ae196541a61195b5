//! The comparison of agreed state and disk, on real nodes.

use std::sync::Arc;

use bytes::Bytes;

use crate::meta::State;
use crate::meta::command::{Command, LogTime, Proposal, PutManifest, RequestId, Response};
use crate::oci::{Digest, MediaType, RepositoryName};
use crate::replica::tests::lab::{Lab, LabNode, Options, pattern};
use crate::topology::{NodeId, NodeState};

use super::backlog::Backlog;
use super::catch_up::CatchUp;
use super::trim::{Trim, Trimmed};
use super::{Limits, Pace};

/// An agreed state that is told what to link.
struct Ledger {
    state: State,
    index: u64,
}

impl Ledger {
    fn new() -> Self {
        let mut ledger = Self { state: State::default(), index: 0 };
        ledger.apply(Command::FormCluster { cluster: crate::topology::ClusterId(1), nodes_expected: 1 });
        ledger.apply(Command::OpenRegistry);
        ledger
    }

    fn apply(&mut self, command: Command) -> Response {
        self.index += 1;
        let at = LogTime(self.index);
        let proposal = Proposal { id: RequestId(self.index.into()), issued: at, at, wall_seconds: 0, command };
        self.state.apply(self.index, &proposal)
    }

    fn link(&mut self, digest: &Digest, size: u64) {
        let repository: RepositoryName = "app".parse().unwrap();
        let (digest, principal) = (digest.clone(), "anyone".to_owned());
        let response = self.apply(Command::LinkBlob { repository, digest, size, principal });
        assert!(matches!(response, Response::Committed { .. }), "{response:?}");
    }

    fn put_manifest(&mut self, digest: &Digest, size: u64) {
        let put = PutManifest {
            repository: "app".parse().unwrap(),
            digest: digest.clone(),
            media_type: MediaType::OCI_MANIFEST.parse().unwrap(),
            size,
            references: Vec::new(),
            subject: None,
            artifact_type: None,
            annotations: std::collections::BTreeMap::new(),
            tags: Vec::new(),
            condition: None,
            membership_index: 0,
            sparse: false,
            principal: "anyone".to_owned(),
        };
        let response = self.apply(Command::PutManifest(Box::new(put)));
        assert!(matches!(response, Response::ManifestStored { .. }), "{response:?}");
    }
}

/// Stores a blob at a node and links it.
async fn link(ledger: &mut Ledger, node: &LabNode, seed: u64) -> (Digest, Bytes) {
    let bytes = pattern(seed, 100_000);
    let digest = node.store(&bytes).await;
    ledger.link(&digest, bytes.len() as u64);
    (digest, bytes)
}

fn catch_up(node: &LabNode) -> CatchUp {
    let pace = Pace::new(Limits { idle: 0, busy: 1 << 30 }, node.replicas.activity());
    CatchUp::new(node.replicas.clone(), node.blobs.clone(), Arc::new(pace))
}

/// One turn of the loop, to the end of all it began.
async fn turn(work: &mut CatchUp, ledger: &Ledger) {
    work.follow(&ledger.state, ledger.index).await;
    for _ in 0..3 {
        work.compare(&ledger.state).await;
        work.begin(&ledger.state, 4);
        work.settle().await;
    }
}

#[tokio::test]
async fn a_node_fetches_what_it_lacks_at_start_and_what_is_linked_later() {
    let lab = Lab::start(2).await;
    let mut ledger = Ledger::new();
    let old = link(&mut ledger, lab.node(1), 1).await;
    let body = Bytes::from_static(b"{}");
    let manifest = lab.node(1).store(&body).await;
    ledger.put_manifest(&manifest, 2);
    let mut work = catch_up(lab.node(2));
    assert!(!work.progress().bodies_are_complete(0), "nothing has been compared yet");
    turn(&mut work, &ledger).await;
    assert!(lab.node(2).has(&old.0, &old.1).await && lab.node(2).has(&manifest, &body).await);
    let progress = work.progress();
    assert!(progress.bodies_are_complete(ledger.index));
    assert!(!progress.bodies_are_complete(ledger.index + 1), "what came later has not been looked at");
    assert_eq!((progress.missing, progress.done), (0, 2));
    let new = link(&mut ledger, lab.node(1), 2).await;
    turn(&mut work, &ledger).await;
    assert!(lab.node(2).has(&new.0, &new.1).await);
}

#[tokio::test]
async fn what_no_queue_holds_is_counted_once_and_gone_through_once() {
    const BLOBS: u64 = 120;
    let lab = Lab::start(2).await;
    let mut ledger = Ledger::new();
    for seed in 0..BLOBS {
        let bytes = pattern(seed, 100);
        let digest = lab.node(1).store(&bytes).await;
        ledger.link(&digest, 100);
    }
    let mut work = catch_up(lab.node(2));
    work.backlog = Backlog::with_max(16);
    work.follow(&ledger.state, ledger.index).await;
    while work.progress().missing as u64 != BLOBS {
        work.compare(&ledger.state).await;
        assert_eq!(work.passes, 1, "the first one counts everything");
    }
    for turn in 1..=BLOBS / 2 {
        work.begin(&ledger.state, 2);
        work.settle().await;
        for _ in 0..8 {
            work.compare(&ledger.state).await;
        }
        assert_eq!(work.progress().missing as u64, BLOBS - 2 * turn);
    }
    assert_eq!((work.progress().done, work.passes), (BLOBS, 2));
}

#[tokio::test]
async fn blobs_go_where_placement_wants_them_and_bodies_everywhere() {
    let lab = Lab::start_with(3, Options { copies: Some(1), ..Options::default() }).await;
    let mut ledger = Ledger::new();
    let mut blobs = Vec::new();
    for seed in 1..=8 {
        blobs.push(link(&mut ledger, lab.node(1), seed).await);
    }
    let body = Bytes::from_static(b"{}");
    let manifest = lab.node(1).store(&body).await;
    ledger.put_manifest(&manifest, 2);
    for node in [lab.node(2), lab.node(3)] {
        let mut work = catch_up(node);
        turn(&mut work, &ledger).await;
        turn(&mut work, &ledger).await;
        assert!(node.has(&manifest, &body).await);
        for (digest, bytes) in &blobs {
            assert_eq!(node.has(digest, bytes).await, node.replicas.is_wanted_here(digest));
        }
    }
}

#[tokio::test]
async fn what_was_compared_with_the_empty_state_does_not_count_later() {
    let lab = Lab::start(2).await;
    let mut work = catch_up(lab.node(2));
    let empty = State::default();
    work.follow(&empty, 0).await;
    work.compare(&empty).await;
    assert!(!work.progress().bodies_are_complete(0), "an empty log says nothing");
    let mut ledger = Ledger::new();
    let body = Bytes::from_static(b"{}");
    let manifest = lab.node(1).store(&body).await;
    ledger.put_manifest(&manifest, 2);
    work.follow(&ledger.state, ledger.index).await;
    assert!(!work.progress().bodies_are_complete(ledger.index));
    turn(&mut work, &ledger).await;
    assert!(work.progress().bodies_are_complete(ledger.index));
    assert!(lab.node(2).has(&manifest, &body).await);
}

#[tokio::test]
async fn what_nobody_has_stays_in_the_queue_and_in_sight() {
    let lab = Lab::start(2).await;
    let mut ledger = Ledger::new();
    let (digest, _) = link(&mut ledger, lab.node(1), 1).await;
    lab.node(1).blobs.quarantine(&digest).await.unwrap();
    let mut work = catch_up(lab.node(2));
    turn(&mut work, &ledger).await;
    let progress = work.progress();
    assert_eq!((progress.missing, progress.done), (1, 0));
    assert!(progress.last_error.unwrap().contains(&digest.to_string()));
}

#[tokio::test]
async fn repair_keeps_to_its_limit_and_uses_most_of_it() {
    const LIMIT: u64 = 2 << 20;
    let lab = Lab::start(3).await;
    let mut ledger = Ledger::new();
    let mut size = 0;
    for seed in 1..=8 {
        let bytes = pattern(seed, 512 << 10);
        for node in [1, 2] {
            lab.node(node).store(&bytes).await;
        }
        let digest = Digest::of(crate::oci::Algorithm::Sha256, &bytes);
        ledger.link(&digest, bytes.len() as u64);
        size += bytes.len() as u64;
    }
    let node = lab.node(3);
    let pace = Arc::new(Pace::new(Limits { idle: LIMIT, busy: 1 }, node.replicas.activity()));
    let mut work = CatchUp::new(node.replicas.clone(), node.blobs.clone(), Arc::clone(&pace));
    let began = tokio::time::Instant::now();
    turn(&mut work, &ledger).await;
    turn(&mut work, &ledger).await;
    let took = began.elapsed().as_secs_f64();
    assert_eq!((work.progress().missing, work.progress().done), (0, 8));
    // The last frames of the fetches that ran at once are paid for only by whoever comes next.
    #[expect(clippy::cast_precision_loss, reason = "a few MiB")]
    let rate = size as f64 / took / LIMIT as f64;
    assert!((0.7..4.0).contains(&rate), "{rate} of the limit, {took} s");
}

#[tokio::test]
async fn a_client_does_not_wait_for_a_slow_repair() {
    let lab = Lab::start(2).await;
    let bytes = pattern(1, 4 << 20);
    let digest = lab.node(1).store(&bytes).await;
    let size = bytes.len() as u64;
    let node = lab.node(2);
    let pace = Arc::new(Pace::new(Limits { idle: 10_000, busy: 10_000 }, node.replicas.activity()));
    let slow = node.replicas.repair(&digest, size, pace);
    tokio::pin!(slow);
    // At its pace the repair would take minutes.
    assert!(tokio::time::timeout(std::time::Duration::from_millis(300), slow.as_mut()).await.is_err());
    assert_eq!(node.read(&digest, size, 0..size).await, (bytes.to_vec(), true));
    slow.await.unwrap();
    assert!(node.has(&digest, &bytes).await);
}

/// A lab in which copies may be trimmed at once, with blobs of which every node has a copy.
async fn crowded(nodes: u64, copies: usize, blobs: u64) -> (Lab, Ledger, Vec<(Digest, Bytes)>) {
    let options = Options { copies: Some(copies), pin: Some(std::time::Duration::ZERO), ..Options::default() };
    let lab = Lab::start_with(nodes, options).await;
    let mut ledger = Ledger::new();
    let mut stored = Vec::new();
    for seed in 1..=blobs {
        let bytes = pattern(seed, 10_000);
        let mut digest = None;
        for node in &lab.nodes {
            digest = Some(node.store(&bytes).await);
        }
        let digest = digest.unwrap();
        ledger.link(&digest, bytes.len() as u64);
        stored.push((digest, bytes));
    }
    // The ledger's topology is the lab's.
    lab.topology.send_modify(|topology| Arc::make_mut(topology).index = ledger.state.topology().index);
    (lab, ledger, stored)
}

async fn trim(node: &LabNode, ledger: &Ledger) -> Trimmed {
    Trim { replicas: &node.replicas }.turn(&node.blobs, &ledger.state).await
}

#[tokio::test]
async fn surplus_copies_go_and_wanted_ones_stay() {
    let (lab, ledger, blobs) = crowded(5, 2, 12).await;
    let mut trimmed = 0;
    for node in &lab.nodes {
        trimmed += trim(node, &ledger).await.copies;
    }
    assert_eq!(trimmed, 12 * 3);
    for node in &lab.nodes {
        for (digest, bytes) in &blobs {
            assert_eq!(node.has(digest, bytes).await, node.replicas.is_wanted_here(digest));
        }
    }
}

#[tokio::test]
async fn nothing_is_trimmed_while_a_wanted_holder_lacks_the_blob_or_is_away() {
    let (lab, ledger, blobs) = crowded(3, 2, 1).await;
    let (digest, bytes) = &blobs[0];
    let wanted = lab.node(1).replicas.wanted_holders(digest);
    let surplus = lab.nodes.iter().find(|node| !wanted.contains(&node.id)).unwrap();
    let holder = lab.node(wanted[1].0);
    std::fs::remove_file(holder.path(digest)).unwrap();
    assert_eq!(trim(surplus, &ledger).await, Trimmed::default(), "one lacks it");
    holder.store(bytes).await;
    lab.mourn(holder.id.0);
    assert_eq!(trim(surplus, &ledger).await, Trimmed::default(), "one is away");
    assert!(surplus.has(digest, bytes).await);
}

#[tokio::test]
async fn a_node_that_knows_another_topology_confirms_nothing() {
    let (lab, ledger, blobs) = crowded(3, 2, 1).await;
    let (digest, bytes) = &blobs[0];
    let wanted = lab.node(1).replicas.wanted_holders(digest);
    let surplus = lab.nodes.iter().find(|node| !wanted.contains(&node.id)).unwrap();
    let question = [(digest.clone(), bytes.len() as u64)];
    let index = surplus.replicas.topology().index;
    let ask = async |index| surplus.replicas.confirm_copies(wanted[0], &question, index).await.unwrap();
    assert_eq!((ask(index).await, ask(index + 1).await), (vec![true], vec![false]));
    // Everyone has gone on, but what was read with the locks held is older.
    lab.topology.send_modify(|topology| Arc::make_mut(topology).index += 1);
    assert_eq!(trim(surplus, &ledger).await, Trimmed::default());
    assert!(surplus.has(digest, bytes).await);
}

#[tokio::test]
async fn a_node_that_is_out_keeps_what_it_has() {
    let (lab, ledger, blobs) = crowded(3, 2, 4).await;
    lab.topology.send_modify(|topology| {
        Arc::make_mut(topology).nodes.get_mut(&NodeId(3)).unwrap().state = NodeState::Out;
    });
    assert_eq!(trim(lab.node(3), &ledger).await, Trimmed::default());
    for (digest, bytes) in &blobs {
        assert!(lab.node(3).has(digest, bytes).await);
    }
}

#[tokio::test]
async fn a_node_that_joins_takes_its_share_and_the_others_let_go_of_it() {
    const BLOBS: u64 = 60;
    let options = Options { copies: Some(2), pin: Some(std::time::Duration::ZERO), ..Options::default() };
    let lab = Lab::start_with(5, options).await;
    let place_fifth = |state| {
        lab.topology.send_modify(|topology| {
            Arc::make_mut(topology).nodes.get_mut(&NodeId(5)).unwrap().state = state;
        });
    };
    place_fifth(NodeState::Out);
    let mut ledger = Ledger::new();
    let mut blobs = Vec::new();
    for seed in 1..=BLOBS {
        let bytes = pattern(seed, 5_000);
        let digest = Digest::of(crate::oci::Algorithm::Sha256, &bytes);
        for holder in lab.node(1).replicas.wanted_holders(&digest) {
            lab.node(holder.0).store(&bytes).await;
        }
        ledger.link(&digest, bytes.len() as u64);
        blobs.push((digest, bytes));
    }
    lab.topology.send_modify(|topology| Arc::make_mut(topology).index = ledger.state.topology().index);
    place_fifth(NodeState::In);
    let mut moved = 0;
    for node in &lab.nodes {
        let mut work = catch_up(node);
        turn(&mut work, &ledger).await;
        while work.progress().missing > 0 {
            turn(&mut work, &ledger).await;
        }
        assert!(node.id == NodeId(5) || work.progress().done == 0, "only the new node has something to fetch");
        moved += work.progress().done;
    }
    let share = BLOBS * 2 / 5;
    assert!((share / 2..=share * 3 / 2).contains(&moved), "{moved} moved, the share is {share}");
    let mut trimmed = 0;
    for node in &lab.nodes {
        trimmed += trim(node, &ledger).await.copies;
    }
    assert_eq!(trimmed, moved);
    for (digest, bytes) in &blobs {
        let wanted = lab.node(1).replicas.wanted_holders(digest);
        for node in &lab.nodes {
            assert_eq!(node.has(digest, bytes).await, wanted.contains(&node.id));
        }
    }
}
