use std::fs;
use std::os::unix::fs::FileExt;

use bytes::Bytes;

use super::support::{Node, eventually, initial, noise, part};
use crate::blob::{BLOCK_BYTES, Error, Event, Verdict};
use crate::oci::{Algorithm, Digest, ExtentId};

const MIB: usize = 1 << 20;

fn flip_bit(path: &std::path::Path, at: u64) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
}

#[tokio::test]
async fn a_flipped_bit_stops_the_read_at_its_block_and_the_copy_is_set_aside_once() {
    let node = Node::start();
    let bytes = noise(1, 2 * MIB);
    let (size, bad) = (bytes.len() as u64, 5 * BLOCK_BYTES + 100);
    let digest = node.store_blob(1, &bytes).await;
    node.store.remove_extents(&[ExtentId::from_random(1)]).await.unwrap();
    flip_bit(&node.blob_path(&digest), bad);

    let mut reader = node.store.open_blob(&digest, size).await.unwrap().unwrap();
    let mut position = 0;
    let error = loop {
        match reader.read(position, size).await {
            Ok(read) => {
                assert_eq!(read, bytes[usize::try_from(position).unwrap()..][..read.len()]);
                position += read.len() as u64;
            }
            Err(error) => break error,
        }
    };
    assert_eq!(position, 5 * BLOCK_BYTES, "good blocks come first");
    assert!(matches!(error, Error::BlockDamaged { block: 5, .. }), "{error}");

    let mut events = node.store.events();
    node.store.quarantine(&digest).await.unwrap();
    assert!(matches!(events.try_recv().unwrap(), Event::Quarantined { .. }));
    assert!(!node.store.has(&digest, size).await.unwrap());
    assert_eq!(node.files_in("quarantine"), 1);
    assert_eq!(node.store.usage().blobs, 0);

    // Repair brings a good copy; a second reader of the bad one reports late.
    node.store_blob(2, &bytes).await;
    assert!(matches!(reader.read(position, size).await, Err(Error::BlockDamaged { .. })));
    node.store.quarantine(&digest).await.unwrap();
    assert_eq!(node.read(&digest, size).await.unwrap(), bytes);
}

#[tokio::test]
async fn in_a_crowd_a_block_is_given_in_parts_and_checked_again_once_the_file_has_changed() {
    const READERS: usize = 300;
    let node = Node::start();
    let bytes = noise(7, 600_000);
    let digest = node.store_blob(1, &bytes).await;
    let size = bytes.len() as u64;
    let mut crowd = Vec::new();
    for _ in 0..READERS {
        crowd.push(node.store.open_blob(&digest, size).await.unwrap().unwrap());
    }
    let reader = &mut crowd[0];
    let mut read = Vec::new();
    while (read.len() as u64) < size {
        let part = reader.read(read.len() as u64, size).await.unwrap();
        assert!(part.len() <= 16 << 10, "{} bytes for one of many", part.len());
        read.extend_from_slice(&part);
    }
    assert_eq!(read, bytes);
    let first = reader.read(0, size).await.unwrap();
    flip_bit(&node.blob_path(&digest), 200_000);
    let second = reader.read(first.len() as u64, size).await;
    assert!(matches!(second, Err(Error::BlockDamaged { block: 0, .. })), "{second:?}");
}

#[tokio::test]
async fn a_small_blob_is_checked_whole() {
    let node = Node::start();
    let body = noise(2, 5000);
    let digest = Digest::of(Algorithm::Sha256, &body);
    node.store.put(&digest, Bytes::from(body.clone())).await.unwrap();
    node.store.put(&digest, Bytes::from(body.clone())).await.unwrap();
    assert_eq!(node.read(&digest, 5000).await.unwrap(), body);
    flip_bit(&node.blob_path(&digest), 4999);
    assert!(node.store.open_blob(&digest, 5000).await.unwrap().is_none());
    assert_eq!(node.files_in("quarantine"), 1);
    assert_eq!(node.store.read_all(&digest, 5000).await.unwrap(), None, "not even from memory");
}

#[tokio::test]
async fn a_rotten_body_is_healed_by_putting_it_again() {
    let node = Node::start();
    let body = noise(3, 100_000);
    let digest = Digest::of(Algorithm::Sha256, &body);
    node.store.put(&digest, Bytes::from(body.clone())).await.unwrap();
    flip_bit(&node.blob_path(&digest), 7);
    node.store.put(&digest, Bytes::from(body.clone())).await.unwrap();
    assert_eq!(node.read(&digest, 100_000).await.unwrap(), body);
    let error = node.store.put(&digest, Bytes::from_static(b"other")).await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }));
}

#[tokio::test]
async fn truncated_and_zero_length_files_never_serve() {
    for length in [0, 1, MIB as u64 - 1] {
        let node = Node::start();
        let bytes = noise(4, MIB);
        let digest = node.store_blob(1, &bytes).await;
        let file = fs::File::options().write(true).open(node.blob_path(&digest)).unwrap();
        file.set_len(length).unwrap();
        assert!(!node.store.has(&digest, MIB as u64).await.unwrap());
        assert!(node.store.open_blob(&digest, MIB as u64).await.unwrap().is_none());
        assert_eq!(node.files_in("quarantine"), 1, "{length}");
        assert!(!node.store.hold(&digest, MIB as u64).await.unwrap());
    }
}

#[tokio::test]
async fn missing_or_damaged_sums_are_rebuilt_only_from_bytes_of_the_digest() {
    let node = Node::start();
    let bytes = noise(5, MIB);
    let size = bytes.len() as u64;
    let digest = node.store_blob(1, &bytes).await;
    fs::remove_file(node.sums_path(&digest)).unwrap();
    assert_eq!(node.read(&digest, size).await.unwrap(), bytes);
    assert!(node.sums_path(&digest).exists());
    flip_bit(&node.sums_path(&digest), 60);
    assert_eq!(node.read(&digest, size).await.unwrap(), bytes);

    fs::remove_file(node.sums_path(&digest)).unwrap();
    flip_bit(&node.blob_path(&digest), 3);
    assert!(node.store.open_blob(&digest, size).await.unwrap().is_none());
    assert!(!node.sums_path(&digest).exists());
    assert_eq!(node.files_in("quarantine"), 1);
}

#[tokio::test]
async fn scrub_finds_damage_mends_sums_and_remembers_when() {
    let node = Node::start();
    let bytes = noise(6, MIB);
    let size = bytes.len() as u64;
    let digest = node.store_blob(1, &bytes).await;
    fs::remove_file(node.sums_path(&digest)).unwrap();
    assert_eq!(node.store.verify(&digest, size, Some(&|| 1 << 40)).await.unwrap(), Verdict::Good);
    assert!(node.sums_path(&digest).exists());
    let listed = node.store.list_blobs(None, 10).await.unwrap();
    assert!(listed.len() == 1 && listed[0].digest == digest && listed[0].size == size && listed[0].verified_at > 0);
    assert!(node.store.list_blobs(Some(digest.clone()), 10).await.unwrap().is_empty());

    flip_bit(&node.blob_path(&digest), size - 1);
    assert_eq!(node.store.verify(&digest, size, None).await.unwrap(), Verdict::Quarantined);
    assert_eq!(node.store.verify(&digest, size, None).await.unwrap(), Verdict::Missing);
}

#[tokio::test]
async fn an_extent_that_rotted_does_not_count_any_more() {
    let node = Node::start();
    let bytes = noise(7, MIB);
    let extent = node.stage(1, initial(), &bytes[..MIB / 2], MIB).await;
    node.stage(2, extent.hash_state, &bytes[MIB / 2..], MIB).await;
    let (digest, half) = (Digest::of(Algorithm::Sha256, &bytes), MIB as u64 / 2);
    flip_bit(&node.dir.path().join("extents").join(ExtentId::from_random(2).to_string()), 99);
    let mut follower = node.store.follow(ExtentId::from_random(2), 0).await.unwrap();
    assert!(matches!(follower.next().await, Err(Error::ExtentUnknown { .. })));
    let parts = [part(1, 0, half), part(2, half, half)];
    let error = node.store.assemble(&digest, 2 * half, &parts).await.unwrap_err();
    assert!(matches!(error, Error::ExtentUnknown { id } if id == ExtentId::from_random(2)), "{error}");
    assert_eq!(node.store.extent(ExtentId::from_random(2)).await.unwrap(), None);
    assert_eq!(node.files_in("tmp"), 0);
}

#[tokio::test]
async fn the_quarantine_keeps_the_newest_few() {
    let node = Node::start();
    for number in 0..20u32 {
        let bytes = noise(100 + number, 100);
        let digest = node.store_blob(number.into(), &bytes).await;
        node.store.quarantine(&digest).await.unwrap();
    }
    assert_eq!(node.files_in("quarantine"), super::support::config().quarantine_files_max);
}

#[tokio::test]
async fn a_wrong_idea_of_its_size_does_not_cost_a_good_copy() {
    let node = Node::start();
    for length in [1000, MIB] {
        let bytes = noise(8, length);
        let size = length as u64;
        let digest = node.store_blob(1, &bytes).await;
        assert!(!node.store.has(&digest, size + 1).await.unwrap());
        assert!(!node.store.hold(&digest, size - 1).await.unwrap());
        assert!(node.store.open_blob(&digest, size * 2).await.unwrap().is_none());
        assert_eq!(node.store.read_all(&digest, 1).await.unwrap(), None);
        // A client that names this digest for bytes of its own.
        node.stage(2, initial(), b"own", 3).await;
        let error = node.store.assemble(&digest, 3, &[part(2, 0, 1), part(2, 1, 2)]).await.unwrap_err();
        assert!(matches!(error, Error::DigestMismatch { .. }));
        assert_eq!(node.files_in("quarantine"), 0);
        assert_eq!(node.read(&digest, size).await.unwrap(), bytes);
    }
}

#[tokio::test]
async fn a_file_that_is_gone_is_told_once_somebody_looks() {
    let node = Node::start();
    let bytes = noise(40, 100_000);
    let digest = node.store_blob(1, &bytes).await;
    let mut events = node.store.events();
    fs::remove_file(node.blob_path(&digest)).unwrap();
    assert!(!node.store.has(&digest, 100_000).await.unwrap());
    assert!(matches!(events.try_recv(), Ok(Event::Removed { digest: gone }) if gone == digest));
    assert!(node.store.list_blobs(None, 10).await.unwrap().is_empty());
    assert!(!node.store.has(&digest, 100_000).await.unwrap());
    assert!(events.try_recv().is_err(), "once is enough");
}

#[tokio::test]
async fn a_deleted_directory_is_made_again_and_what_was_in_it_is_told() {
    let node = Node::start();
    let (small, large) = (noise(41, 1_000), noise(42, 300_000));
    let digests = [node.store_blob(1, &small).await, node.store_blob(2, &large).await];
    let mut events = node.store.events();
    let running = tokio::task::JoinSet::from_iter([node.store.clone().run()]);
    eventually("index", || node.store.usage().index_complete).await;
    fs::remove_dir_all(node.dir.path().join("blobs")).unwrap();
    // A copy that arrives before anybody looked finds its place.
    let again = node.store_blob(3, &large).await;
    assert_eq!(node.read(&again, 300_000).await.unwrap(), large);
    let mut gone = Vec::new();
    while gone.is_empty() {
        if let Event::Removed { digest } = events.recv().await.unwrap() {
            gone.push(digest);
        }
    }
    assert_eq!(gone, [digests[0].clone()]);
    drop(running);
}

#[tokio::test]
async fn only_a_copy_that_was_hashed_lately_is_vouched_for() {
    let node = Node::start();
    let digest = node.store_blob(1, &noise(43, 100_000)).await;
    assert_eq!(node.store.hold_checked(&digest, 100_000).await.unwrap(), Some(true));
    // After a restart without an index nobody knows when it was.
    let node = node.restart();
    assert_eq!(node.store.hold_checked(&digest, 100_000).await.unwrap(), Some(false));
    assert_eq!(node.store.verify(&digest, 100_000, None).await.unwrap(), Verdict::Good);
    assert_eq!(node.store.hold_checked(&digest, 100_000).await.unwrap(), Some(true));
    fs::remove_file(node.blob_path(&digest)).unwrap();
    assert_eq!(node.store.hold_checked(&digest, 100_000).await.unwrap(), None);
}
