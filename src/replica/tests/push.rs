//! Bodies become extents on enough nodes, and extents become blobs.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::{mpsc, oneshot};

use super::lab::{Carry, Lab, body, cut_body, eventually, part, pattern};
use crate::blob::Verdict;
use crate::disk::faults::{Step, inject};
use crate::oci::{Algorithm, Digest, ExtentId, HashState, Hasher};
use crate::replica::{Error, ExtentRequest};
use crate::topology::NodeId;

const MIB: usize = 1024 * 1024;

/// `ENOSPC`.
const NO_SPACE: i32 = 28;

fn state_after(bytes: &[u8]) -> HashState {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    hasher.update(bytes);
    hasher.state()
}

#[tokio::test]
async fn an_extent_lies_synced_on_write_copies_nodes_and_becomes_the_blob_there() {
    let lab = Lab::start(3).await;
    let bytes = pattern(1, 3 * MIB + 5);
    let extent = lab.node(1).receive(1, body(&bytes), &[1, 2]).await.unwrap();
    assert!(extent.complete);
    assert_eq!((extent.length, &extent.holders), (bytes.len() as u64, &vec![NodeId(1), NodeId(2)]));
    assert_eq!(extent.hash_state, state_after(&bytes));
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    let parts = [part(&extent, 0)];
    let holders = lab.node(3).replicas.assemble(&digest, extent.length, &parts, &extent.holders).await.unwrap();
    assert_eq!(holders.len(), 2);
    assert!(lab.node(1).has(&digest, &bytes).await && lab.node(2).has(&digest, &bytes).await);
    lab.node(3).replicas.free_extents(parts.to_vec());
    for node in [lab.node(1), lab.node(2)] {
        eventually("free extents", || async { node.blobs.list_extents().await.unwrap().is_empty() }).await;
        assert!(node.has(&digest, &bytes).await, "the blob stays");
    }
}

#[tokio::test]
async fn a_session_goes_on_at_any_node_and_holders_fetch_what_they_lack_at_the_commit() {
    let lab = Lab::start(3).await;
    let bytes = pattern(2, 2 * MIB + 17);
    let middle = MIB + 3;
    let first = lab.node(1).receive(1, body(&bytes.slice(..middle)), &[1, 2]).await.unwrap();
    let request = ExtentRequest {
        id: ExtentId::from_random(2),
        resume: first.hash_state.clone(),
        holders: vec![NodeId(3), NodeId(2)],
        promised_length: Some((bytes.len() - middle) as u64),
    };
    let rest = body(&bytes.slice(middle..));
    let node = &lab.node(3).replicas;
    let second = node.receive_extent(request, rest, |extent| Box::pin(async move { extent })).await.unwrap();
    assert_eq!(second.hash_state, state_after(&bytes));
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    let parts = [part(&first, 0), part(&second, middle as u64)];
    let size = bytes.len() as u64;
    let rehashed = lab.node(1).replicas.hash_parts(&parts, Algorithm::Sha512).await.unwrap();
    assert_eq!(rehashed, Digest::of(Algorithm::Sha512, &bytes));
    let holders = node.assemble(&digest, size, &parts, &[NodeId(1), NodeId(3)]).await.unwrap();
    assert_eq!(holders.len(), 2);
    assert_eq!(lab.node(1).read(&digest, size, 0..size).await, (bytes.to_vec(), true));
    assert_eq!(lab.node(3).read(&digest, size, 0..size).await, (bytes.to_vec(), true));
    // Once more: the commit was lost and the client repeats its PUT.
    assert_eq!(node.assemble(&digest, size, &parts, &holders).await.unwrap().len(), 2);
    // A wrong digest makes nothing.
    let wrong = Digest::of(Algorithm::Sha256, b"other");
    assert!(node.assemble(&wrong, size, &parts, &holders).await.is_err());
}

/// Changes one byte of a file that keeps its size.
fn damage(path: &std::path::Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn only_the_damaged_extent_is_taken_anew() {
    let lab = Lab::start(3).await;
    let bytes = pattern(20, 2 * MIB);
    let first = lab.node(1).receive(1, body(&bytes.slice(..MIB)), &[1, 2]).await.unwrap();
    let request = ExtentRequest {
        id: ExtentId::from_random(2),
        resume: first.hash_state.clone(),
        holders: vec![NodeId(1), NodeId(2)],
        promised_length: None,
    };
    let node = &lab.node(1).replicas;
    let rest = body(&bytes.slice(MIB..));
    let second = node.receive_extent(request, rest, |extent| Box::pin(async move { extent })).await.unwrap();
    // The second extent is nowhere but at the node where the first is damaged.
    let mut parts = [part(&first, 0), part(&second, MIB as u64)];
    parts[1].holders = vec![NodeId(2), NodeId(3)];
    lab.node(1).blobs.remove_extents(&[second.id]).await.unwrap();
    damage(&lab.node(2).dir.path().join("extents").join(first.id.to_string()));
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    let size = bytes.len() as u64;
    assert_eq!(node.assemble(&digest, size, &parts, &[NodeId(1), NodeId(2)]).await.unwrap().len(), 2);
    assert_eq!(lab.node(2).blobs.verify(&digest, size, None).await.unwrap(), Verdict::Good);
}

#[tokio::test]
async fn a_file_of_the_right_size_is_not_taken_for_a_copy() {
    let lab = Lab::start(2).await;
    let bytes = pattern(21, MIB);
    let size = bytes.len() as u64;
    let extent = lab.node(1).receive(1, body(&bytes), &[1, 2]).await.unwrap();
    let digest = lab.node(2).store(&bytes).await;
    let other = &lab.node(2).blobs;
    damage(&lab.node(2).path(&digest));
    let holders = [NodeId(1), NodeId(2)];
    lab.node(1).replicas.assemble(&digest, size, &[part(&extent, 0)], &holders).await.unwrap();
    assert_eq!(other.verify(&digest, size, None).await.unwrap(), Verdict::Good, "put together anew");
    damage(&lab.node(2).path(&digest));
    lab.node(1).replicas.local().client.pull_blob(NodeId(2), &digest, size, &[NodeId(1)]).await.unwrap();
    assert_eq!(other.verify(&digest, size, None).await.unwrap(), Verdict::Good, "fetched anew");
}

#[tokio::test]
async fn a_dead_holder_is_replaced_at_the_commit() {
    let lab = Lab::start(3).await;
    let bytes = pattern(3, MIB);
    let extent = lab.node(1).receive(1, body(&bytes), &[1, 2]).await.unwrap();
    lab.cut(2);
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    let holders = [NodeId(1), NodeId(2)];
    let held = lab.node(1).replicas.assemble(&digest, extent.length, &[part(&extent, 0)], &holders).await.unwrap();
    assert_eq!(held.len(), 2);
    assert!(lab.node(3).has(&digest, &bytes).await);
}

#[tokio::test]
async fn a_broken_body_is_kept_to_its_last_byte_even_if_nobody_waits() {
    let lab = Lab::start(2).await;
    let bytes = pattern(4, 2 * MIB + 999);
    let request = ExtentRequest {
        id: ExtentId::from_random(1),
        resume: HashState::initial(Algorithm::Sha256),
        holders: vec![NodeId(1), NodeId(2)],
        promised_length: None,
    };
    let (appended, extent) = oneshot::channel();
    let received = lab
        .node(1)
        .replicas
        .receive_extent(request, cut_body(&bytes), |extent| Box::pin(async move { drop(appended.send(extent)) }));
    // The request is dropped as soon as the connection breaks.
    tokio::select! {
        biased;
        _ = received => panic!("it cannot have ended yet"),
        () = tokio::task::yield_now() => {}
    }
    let extent = extent.await.unwrap();
    assert!(!extent.complete);
    assert_eq!((extent.length, extent.holders.len()), (bytes.len() as u64, 2));
    assert_eq!(extent.hash_state, state_after(&bytes));
}

#[tokio::test]
async fn a_body_cut_short_of_its_promise_is_broken_and_an_empty_one_is_nothing() {
    let lab = Lab::start(1).await;
    let request = |promised| ExtentRequest {
        id: ExtentId::from_random(1),
        resume: HashState::initial(Algorithm::Sha256),
        holders: vec![NodeId(1)],
        promised_length: promised,
    };
    let receive = async |promised, bytes: &Bytes| {
        let node = &lab.node(1).replicas;
        node.receive_extent(request(promised), body(bytes), |extent| Box::pin(async move { extent })).await.unwrap()
    };
    let bytes = pattern(5, 1000);
    assert!(receive(Some(1000), &bytes).await.complete);
    assert!(!receive(Some(1001), &bytes).await.complete);
    assert!(!receive(Some(1), &Bytes::new()).await.complete);
    let empty = receive(Some(0), &Bytes::new()).await;
    assert_eq!((empty.length, empty.complete, empty.holders.len()), (0, true, 0));
}

#[tokio::test]
async fn a_body_and_a_holder_that_break_are_salvaged_at_what_both_nodes_have() {
    let lab = Lab::start(2).await;
    let bytes = pattern(6, 4 * MIB);
    let (frames, inbox) = mpsc::channel(1);
    let client = tokio_stream::wrappers::ReceiverStream::new(inbox).boxed();
    let push = lab.node(1).receive(1, client, &[1, 2]);
    let story = async {
        for frame in bytes.slice(..2 * MIB).chunks(MIB / 4) {
            frames.send(Ok(Bytes::copy_from_slice(frame))).await.unwrap();
        }
        // The other node has some of it when it is cut off for good.
        let file = lab.node(2).dir.path().join("extents").join(ExtentId::from_random(1).to_string());
        let some = || std::future::ready(file.metadata().is_ok_and(|metadata| metadata.len() > 0));
        eventually("bytes at the other node", some).await;
        lab.mourn(2); // nobody tries it again
        lab.cut(2);
        for frame in bytes.slice(2 * MIB..).chunks(MIB / 4) {
            frames.send(Ok(Bytes::copy_from_slice(frame))).await.unwrap();
        }
        let other = &lab.node(2).blobs;
        let id = ExtentId::from_random(1);
        eventually("synced part", || async move { other.extent(id).await.unwrap().is_some() }).await;
        frames.send(Err(std::io::ErrorKind::ConnectionReset.into())).await.unwrap();
        lab.node(2).wire.carry.send_replace(Carry::Open);
    };
    let (extent, ()) = tokio::join!(push, story);
    let extent = extent.unwrap();
    let there = lab.node(2).blobs.extent(extent.id).await.unwrap().unwrap();
    let here = lab.node(1).blobs.extent(extent.id).await.unwrap().unwrap();
    assert!(!extent.complete);
    assert_eq!((extent.length, here.length), (there.length, there.length));
    let kept = usize::try_from(extent.length).unwrap();
    assert!(kept < bytes.len(), "the other node missed some");
    assert_eq!(extent.hash_state, state_after(&bytes[..kept]));
    assert_eq!(extent.holders.len(), 2);
}

#[tokio::test]
async fn a_holder_without_progress_is_replaced_and_the_client_never_waits_for_it() {
    let lab = Lab::start(3).await;
    lab.node(2).wire.carry.send_replace(Carry::Frozen);
    let bytes = pattern(7, 4 * MIB);
    let extent = lab.node(1).receive(1, body(&bytes), &[1, 2]).await.unwrap();
    assert_eq!(extent.holders, [NodeId(1), NodeId(3)]);
    assert_eq!(extent.length, bytes.len() as u64);
}

#[tokio::test]
async fn too_few_copies_is_said_five_seconds_after_the_last_byte() {
    let lab = Lab::start(2).await;
    lab.cut(2);
    lab.mourn(2);
    let begun = tokio::time::Instant::now();
    let error = lab.node(1).receive(1, body(&pattern(8, 1000)), &[1, 2]).await.unwrap_err();
    assert!(matches!(error, Error::TooFewCopies { made: 1, needed: 2, .. }), "{error}");
    let waited = begun.elapsed();
    assert!(waited >= Duration::from_secs(5) && waited < Duration::from_secs(8), "{waited:?}");
}

#[tokio::test]
async fn a_node_with_a_full_disk_passes_the_bytes_on_to_others() {
    let lab = Lab::start(3).await;
    let bytes = pattern(9, 2 * MIB + 1);
    let _full = inject(lab.node(1).dir.path(), Step::Write, NO_SPACE);
    let extent = lab.node(1).receive(1, body(&bytes), &[2, 3]).await.unwrap();
    assert_eq!(extent.hash_state, state_after(&bytes));
    let mut holders = extent.holders.clone();
    holders.sort();
    assert_eq!(holders, [NodeId(2), NodeId(3)]);
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    let held = lab.node(1).replicas.assemble(&digest, extent.length, &[part(&extent, 0)], &holders).await.unwrap();
    assert_eq!(held.len(), 2);
    // It forgets as soon as it measures a disk that has room, so it is asked right after each refusal.
    let mut id = 10;
    eventually("the node is no candidate of its own", async || {
        id += 1;
        lab.node(1).receive(id, body(&bytes), &[2, 3]).await.unwrap();
        !lab.node(1).replicas.choose_holders().contains(&NodeId(1))
    })
    .await;
    let cut = lab.node(1).receive(2, cut_body(&bytes), &[2, 3]).await.unwrap();
    assert!(!cut.complete);
    assert_eq!((cut.length, cut.hash_state), (bytes.len() as u64, state_after(&bytes)));
}

#[tokio::test]
async fn a_body_that_no_disk_takes_is_not_called_broken() {
    let lab = Lab::start(3).await;
    let bytes = pattern(10, 4 * MIB);
    let _full: Vec<_> = lab.nodes.iter().map(|node| inject(node.dir.path(), Step::Write, NO_SPACE)).collect();
    let error = lab.node(1).receive(1, body(&bytes), &[2, 3]).await.unwrap_err();
    let told = matches!(error, Error::TooFewCopies { made: 0, .. } | Error::Blob(crate::blob::Error::NoSpace));
    assert!(told, "the client sent all of it: {error}");
}

#[tokio::test]
async fn a_manifest_body_goes_everywhere_and_is_found_from_anywhere() {
    let lab = Lab::start(3).await;
    let text = Bytes::from_static(b"{\"schemaVersion\":2}");
    let digest = Digest::of(Algorithm::Sha256, &text);
    lab.cut(3);
    let deadline = Duration::from_secs(3);
    let spread = lab.node(1).replicas.put_body(&digest, text.clone(), &|nodes| nodes.len() >= 2, deadline);
    assert_eq!(spread.await.unwrap().len(), 2);
    assert!(lab.node(2).has(&digest, &text).await);
    lab.node(3).wire.carry.send_replace(Carry::Open);
    assert_eq!(lab.node(3).replicas.read_all(&digest, text.len() as u64).await.unwrap(), text);
    eventually("kept copy", || lab.node(3).has(&digest, &text)).await;
    let all = lab.node(1).replicas.put_body(&digest, text, &|nodes| nodes.len() == 3, deadline).await.unwrap();
    assert_eq!(all.len(), 3);
}

#[tokio::test]
async fn the_empty_blob_needs_no_extent() {
    let lab = Lab::start(3).await;
    let digest = Digest::of(Algorithm::Sha256, b"");
    let held = lab.node(1).replicas.assemble(&digest, 0, &[], &[NodeId(1), NodeId(2)]).await.unwrap();
    assert_eq!(held.len(), 2);
    assert!(lab.node(2).has(&digest, &Bytes::new()).await);
    assert_eq!(lab.node(3).read(&digest, 0, 0..0).await, (Vec::new(), true));
}
