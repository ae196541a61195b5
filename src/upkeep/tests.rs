//! The comparison of agreed state and disk, on real nodes.

use bytes::Bytes;

use crate::meta::State;
use crate::meta::command::{Command, LogTime, Proposal, PutManifest, RequestId, Response};
use crate::oci::{Digest, MediaType, RepositoryName};
use crate::replica::tests::lab::{Lab, LabNode, Options, pattern};

use super::catch_up::CatchUp;

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
    let mut work = CatchUp::new(lab.node(2).replicas.clone(), lab.node(2).blobs.clone());
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
        let mut work = CatchUp::new(node.replicas.clone(), node.blobs.clone());
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
    let mut work = CatchUp::new(lab.node(2).replicas.clone(), lab.node(2).blobs.clone());
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
    let mut work = CatchUp::new(lab.node(2).replicas.clone(), lab.node(2).blobs.clone());
    turn(&mut work, &ledger).await;
    let progress = work.progress();
    assert_eq!((progress.missing, progress.done), (1, 0));
    assert!(progress.last_error.unwrap().contains(&digest.to_string()));
}
