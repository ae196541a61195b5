//! Right bytes from whoever has them, and no complete body that is wrong.

use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::join_all;

use super::lab::{Carry, Lab, Options, eventually, pattern};
use crate::oci::{Algorithm, Digest};
use crate::replica::Error;
use crate::topology::NodeId;

const MIB: usize = 1024 * 1024;

/// Flips a bit of a node's copy behind its back.
fn rot(lab: &Lab, node: u64, digest: &Digest, at: u64) {
    let path = lab.node(node).path(digest);
    let mut file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::Start(at)).unwrap();
    file.read_exact(&mut byte).unwrap();
    byte[0] ^= 0x10;
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&byte).unwrap();
}

/// A blob that placement does not want on `node` when there are fewer copies than nodes.
fn unwanted(lab: &Lab, node: u64, length: usize) -> Bytes {
    let is_unwanted = |bytes: &Bytes| !lab.node(node).replicas.is_wanted_here(&Digest::of(Algorithm::Sha256, bytes));
    (1..).map(|seed| pattern(seed, length)).find(is_unwanted).unwrap()
}

#[tokio::test]
async fn a_missing_blob_is_served_and_kept_by_a_node_that_should_hold_it() {
    let lab = Lab::start(3).await;
    for length in [1, 1000, 32 * 1024, 70_000, 3 * MIB + 7] {
        let bytes = pattern(length as u64, length);
        let digest = lab.node(2).store(&bytes).await;
        let size = bytes.len() as u64;
        assert_eq!(lab.node(1).read(&digest, size, 0..size).await, (bytes.to_vec(), true), "{length} bytes");
        assert!(lab.node(1).has(&digest, &bytes).await);
        let (from, to) = (size / 3, size - size / 4);
        let middle = bytes[usize::try_from(from).unwrap()..usize::try_from(to).unwrap()].to_vec();
        assert_eq!(lab.node(3).read(&digest, size, from..to).await, (middle, true));
    }
    assert!(lab.node(1).blobs.list_extents().await.unwrap().is_empty(), "no staging file stays");
}

#[tokio::test]
async fn a_holder_that_dies_in_the_middle_is_not_noticed_by_the_reader() {
    for copies in [3, 2] {
        let lab = Lab::start_with(3, Options { copies: Some(copies), ..Options::default() }).await;
        let bytes = if copies == 2 { unwanted(&lab, 1, 6 * MIB) } else { pattern(1, 6 * MIB) };
        let digest = lab.node(2).store(&bytes).await;
        lab.node(3).store(&bytes).await;
        let sent = [2, 3].map(|id| lab.node(id).wire.sent.load(Ordering::Relaxed));
        lab.cut_first_after.store(sent[0].max(sent[1]) + 2 * MIB as u64, Ordering::Relaxed);
        let size = bytes.len() as u64;
        let (read, whole) = lab.node(1).read(&digest, size, 0..size).await;
        let dead = [2, 3].map(|id| *lab.node(id).wire.carry.borrow() == Carry::Cut);
        assert!(whole && read == bytes, "{} of {size} bytes, dead: {dead:?}", read.len());
        assert!(dead[0] != dead[1], "one holder died: {dead:?}");
        assert_eq!(lab.node(1).has(&digest, &bytes).await, copies == 3, "kept only where it is wanted");
    }
}

#[tokio::test]
async fn a_silent_holder_is_left_for_another() {
    let lab = Lab::start(3).await;
    let bytes = pattern(2, MIB);
    let digest = lab.node(2).store(&bytes).await;
    lab.node(3).store(&bytes).await;
    let size = bytes.len() as u64;
    for frozen in [2, 3] {
        lab.node(frozen).wire.carry.send_replace(Carry::Frozen);
        assert_eq!(lab.node(1).read(&digest, size, 5..size).await, (bytes[5..].to_vec(), true));
        lab.node(frozen).wire.carry.send_replace(Carry::Open);
        lab.node(1).blobs.quarantine(&digest).await.unwrap();
    }
}

#[tokio::test]
async fn a_holder_that_is_taken_for_dead_and_lives_is_asked_when_no_other_has_the_blob() {
    let lab = Lab::start(3).await;
    let bytes = pattern(8, MIB);
    let digest = lab.node(2).store(&bytes).await;
    lab.mourn(2);
    let size = bytes.len() as u64;
    assert_eq!(lab.node(1).read(&digest, size, 0..size).await, (bytes.to_vec(), true));
}

#[tokio::test]
async fn looking_for_a_blob_again_and_again_does_not_keep_its_surplus_copies() {
    let pin = Some(std::time::Duration::from_millis(300));
    let lab = Lab::start_with(3, Options { pin, ..Options::default() }).await;
    let bytes = pattern(9, 1000);
    let digest = lab.node(2).store(&bytes).await;
    eventually("the copy may go", async || {
        assert_eq!(lab.node(1).replicas.locate(&digest, 1000).await.unwrap(), [NodeId(2)]);
        lab.node(2).blobs.permit_delete(crate::blob::Item::Blob(digest.clone())).is_some()
    })
    .await;
}

#[tokio::test]
async fn a_damaged_block_here_is_read_on_from_another_node_and_the_copy_is_healed() {
    let lab = Lab::start(3).await;
    let bytes = pattern(3, 10 * MIB);
    let size = bytes.len() as u64;
    let digest = lab.node(1).store(&bytes).await;
    lab.node(2).store(&bytes).await;
    for at in [0, size / 2, size - 1] {
        rot(&lab, 1, &digest, at);
        assert_eq!(lab.node(1).read(&digest, size, 0..size).await, (bytes.to_vec(), true), "damage at {at}");
        eventually("healed copy", || lab.node(1).has(&digest, &bytes)).await;
    }
}

#[tokio::test]
async fn a_damaged_copy_at_a_holder_is_set_aside_there_and_served_from_another() {
    let lab = Lab::start(3).await;
    let bytes = pattern(4, 2 * MIB);
    let size = bytes.len() as u64;
    let digest = lab.node(2).store(&bytes).await;
    lab.node(3).store(&bytes).await;
    rot(&lab, 2, &digest, size - 5);
    rot(&lab, 3, &digest, 5);
    // Each has what the other lost: block sums put a whole blob together from two damaged copies.
    let (read, whole) = lab.node(1).read(&digest, size, 0..size).await;
    assert!(!whole || read == bytes);
    let path = |id: u64| lab.node(id).path(&digest);
    assert!(!path(2).exists() || !path(3).exists(), "at least one was set aside");
}

#[tokio::test]
async fn sixteen_readers_at_once_share_one_fetch() {
    let lab = Lab::start(2).await;
    let bytes = pattern(5, 4 * MIB);
    let size = bytes.len() as u64;
    let digest = lab.node(2).store(&bytes).await;
    let before = lab.node(2).wire.sent.load(Ordering::Relaxed);
    let reads = join_all((0..16).map(|_| lab.node(1).read(&digest, size, 0..size))).await;
    assert!(reads.into_iter().all(|read| read == (bytes.to_vec(), true)));
    let sent = lab.node(2).wire.sent.load(Ordering::Relaxed) - before;
    assert!(sent < size + size / 2, "{sent} bytes for one blob of {size}");
}

#[tokio::test]
async fn wrong_bytes_under_right_checksums_are_never_completed_and_never_kept() {
    for copies in [3, 2] {
        let options = Options { copies: Some(copies), lying: vec![2], ..Options::default() };
        let lab = Lab::start_with(3, options).await;
        let bytes = if copies == 2 { unwanted(&lab, 1, 2 * MIB) } else { pattern(6, 2 * MIB) };
        let size = bytes.len() as u64;
        let digest = lab.node(2).store(&bytes).await;
        let (read, whole) = lab.node(1).read(&digest, size, 0..size).await;
        assert!(!whole && read.len() as u64 <= size - 32 * 1024, "{} bytes went out", read.len());
        assert!(!lab.node(1).has(&digest, &bytes).await);
        // With an honest holder the next read is right, though the liar still offers its copy.
        lab.node(3).store(&bytes).await;
        assert_eq!(lab.node(1).read(&digest, size, 0..size).await, (bytes.to_vec(), true));
    }
}

#[tokio::test]
async fn a_lying_node_cannot_place_a_manifest_body() {
    let lab = Lab::start_with(3, Options { lying: vec![2], ..Options::default() }).await;
    let text = Bytes::from_static(b"{\"schemaVersion\":2}");
    let digest = lab.node(2).store(&text).await;
    let size = text.len() as u64;
    assert!(lab.node(1).replicas.read_all(&digest, size).await.is_err());
    lab.node(3).store(&text).await;
    assert_eq!(lab.node(1).replicas.read_all(&digest, size).await.unwrap(), text);
}

#[tokio::test]
async fn a_reader_that_does_not_read_holds_the_holder_back() {
    let lab = Lab::start_with(2, Options { copies: Some(1), ..Options::default() }).await;
    let bytes = unwanted(&lab, 1, 64 * MIB);
    let size = bytes.len() as u64;
    let digest = lab.node(2).store(&bytes).await;
    let mut stream = lab.node(1).replicas.read(&digest, size, 0, size).await.unwrap();
    drop(stream.next().await.unwrap().unwrap());
    let sent = || lab.node(2).wire.sent.load(Ordering::Relaxed);
    let mut last = 0;
    // Until the connection's windows are full and nothing moves any more.
    eventually("standstill", || {
        let now = sent();
        let still = now == std::mem::replace(&mut last, now);
        async move {
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            still
        }
    })
    .await;
    assert!(sent() < size / 4, "{} of {size} bytes are on their way to nobody", sent());
}

#[tokio::test]
async fn a_blob_is_lost_only_when_everyone_says_so() {
    let lab = Lab::start(3).await;
    let bytes = pattern(7, 1000);
    let (digest, size) = (Digest::of(Algorithm::Sha256, &bytes), 1000);
    let lost = async || match lab.node(1).replicas.locate(&digest, size).await {
        Err(Error::NoHolder { lost, .. }) => Some(lost),
        Err(error) => panic!("{error}"),
        Ok(_) => None,
    };
    assert_eq!(lost().await, Some(true));
    lab.cut(3);
    assert_eq!(lost().await, Some(false), "a silent node may have it");
    lab.mourn(3);
    assert_eq!(lost().await, Some(false), "a dead node may have it");
    assert!(!lab.node(1).read(&digest, size, 0..size).await.1);
    lab.node(2).store(&bytes).await;
    assert_eq!(lost().await, None);
}

#[tokio::test]
async fn copies_of_a_linked_blob_are_brought_up_to_write_copies() {
    let lab = Lab::start(3).await;
    let bytes = pattern(8, MIB + 1);
    let size = bytes.len() as u64;
    let digest = lab.node(2).store(&bytes).await;
    let holders = lab.node(1).replicas.ensure_copies(&digest, size).await.unwrap();
    assert!(holders.len() >= 2 && holders.contains(&NodeId(2)), "{holders:?}");
    for node in &lab.nodes {
        assert!(!holders.contains(&node.id) || node.has(&digest, &bytes).await, "{} says it holds it", node.id);
    }
    lab.node(3).replicas.ensure_local(&digest, size).await.unwrap();
    assert!(lab.node(3).has(&digest, &bytes).await);
}
