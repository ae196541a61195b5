//! Which copies count towards the answer to a push.

use std::sync::Arc;
use std::time::Duration;

use super::lab::{Carry, Lab, Options, body, cut_body, eventually, part, pattern};
use crate::oci::{Algorithm, Digest};
use crate::replica::Error;
use crate::topology::{NodeId, NodeState};

const MIB: usize = 1024 * 1024;

fn place(lab: &Lab, node: u64, state: NodeState) {
    lab.topology.send_modify(|topology| {
        Arc::make_mut(topology).nodes.get_mut(&NodeId(node)).unwrap().state = state;
    });
}

fn sorted(mut nodes: Vec<NodeId>) -> Vec<NodeId> {
    nodes.sort();
    nodes
}

#[tokio::test]
async fn a_holder_that_lost_its_copy_while_others_made_theirs_does_not_count() {
    // A node's word holds for 50 ms.
    let options = Options { pin: Some(Duration::from_millis(600)), ..Options::default() };
    let lab = Lab::start_with(3, options).await;
    let bytes = pattern(1, 2 * MIB);
    let extent = lab.node(1).receive(1, body(&bytes), &[1, 2]).await.unwrap();
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    for slow in [2, 3] {
        lab.node(slow).wire.carry.send_replace(Carry::Frozen);
    }
    let parts = [part(&extent, 0)];
    let holders = [NodeId(1), NodeId(2)];
    let assemble = lab.node(1).replicas.assemble(&digest, extent.length, &parts, &holders);
    let story = async {
        eventually("the first copy", || lab.node(1).has(&digest, &bytes)).await;
        // What the reaper does when the pin is over: nothing links the blob yet.
        std::fs::remove_file(lab.node(1).path(&digest)).unwrap();
        // Its word is asked for again while the others are at work, and the copy made anew.
        eventually("another first copy", || lab.node(1).has(&digest, &bytes)).await;
        for slow in [2, 3] {
            lab.node(slow).wire.carry.send_replace(Carry::Open);
        }
    };
    let (held, ()) = tokio::join!(assemble, story);
    let held = held.unwrap();
    assert_eq!(held.len(), 2, "{held:?}");
    for node in held {
        assert!(lab.node(node.0).has(&digest, &bytes).await, "{node} counts and has no copy");
    }
}

#[tokio::test]
async fn an_extent_stays_open_until_enough_others_have_it() {
    let lab = Lab::start(2).await;
    let bytes = pattern(2, MIB);
    lab.node(2).wire.carry.send_replace(Carry::Frozen);
    let node = lab.node(1);
    let receive = node.receive(1, body(&bytes), &[1, 2]);
    let story = async {
        let id = crate::oci::ExtentId::from_random(1);
        eventually("synced here", async || node.blobs.extent(id).await.unwrap().is_some()).await;
        assert!(node.replicas.is_open(id), "the reaper would take it for abandoned");
        lab.node(2).wire.carry.send_replace(Carry::Open);
        id
    };
    let (extent, id) = tokio::join!(receive, story);
    assert_eq!(extent.unwrap().holders, [NodeId(1), NodeId(2)]);
    assert!(!node.replicas.is_open(id));
}

#[tokio::test]
async fn copies_on_nodes_that_are_leaving_or_out_do_not_count() {
    for state in [NodeState::Decommissioned, NodeState::Out] {
        let lab = Lab::start(3).await;
        let bytes = pattern(3, MIB + 1);
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        let size = bytes.len() as u64;
        let stay = [NodeId(2), NodeId(3)];
        let earlier = lab.node(1).receive(1, body(&bytes), &[1, 2]).await.unwrap();
        place(&lab, 1, state);
        // The leaving node takes the client's bytes, and passes them to two that stay.
        let extent = lab.node(1).receive(2, body(&bytes), &[1, 2]).await.unwrap();
        assert_eq!(sorted(extent.holders.clone()), stay, "{state:?}");
        let cut = lab.node(1).receive(3, cut_body(&bytes), &[1, 2]).await.unwrap();
        assert_eq!((cut.length, sorted(cut.holders)), (size, stay.to_vec()), "{state:?}");
        let held = lab.node(1).replicas.assemble(&digest, size, &[part(&earlier, 0)], &earlier.holders).await;
        assert_eq!(sorted(held.unwrap()), stay, "{state:?}");
        assert!(lab.node(2).has(&digest, &bytes).await && lab.node(3).has(&digest, &bytes).await);
        assert_eq!(lab.node(2).replicas.counted(&[NodeId(1), NodeId(2)]), 1);
    }
}

#[tokio::test]
async fn a_push_again_makes_up_for_copies_that_do_not_count() {
    let lab = Lab::start(3).await;
    let bytes = pattern(4, MIB);
    let digest = lab.node(1).store(&bytes).await;
    lab.node(2).store(&bytes).await;
    place(&lab, 1, NodeState::Decommissioned);
    let held = lab.node(1).replicas.ensure_copies(&digest, bytes.len() as u64).await.unwrap();
    assert_eq!(sorted(held), [NodeId(2), NodeId(3)]);
    assert!(lab.node(3).has(&digest, &bytes).await);
}

#[tokio::test]
async fn where_too_few_nodes_are_in_a_push_is_refused_and_the_reason_named() {
    let lab = Lab::start(2).await;
    let bytes = pattern(5, MIB);
    place(&lab, 2, NodeState::Out);
    let error = lab.node(1).receive(1, body(&bytes), &[1, 2]).await.unwrap_err();
    let told =
        matches!(&error, Error::TooFewCopies { made: 1, needed: 2, reason } if reason.contains("out or leaving"));
    assert!(told, "{error}");
    // One that leaves is no member: the other alone is enough, and it alone counts.
    place(&lab, 2, NodeState::In);
    place(&lab, 1, NodeState::Decommissioned);
    let extent = lab.node(1).receive(2, body(&bytes), &[1, 2]).await.unwrap();
    assert_eq!(extent.holders, [NodeId(2)]);
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    let held = lab.node(1).replicas.assemble(&digest, extent.length, &[part(&extent, 0)], &extent.holders).await;
    assert_eq!(held.unwrap(), [NodeId(2)]);
}
