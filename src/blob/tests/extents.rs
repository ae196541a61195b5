use std::collections::BTreeSet;

use bytes::Bytes;
use proptest::prelude::*;
use tokio::task::JoinSet;

use super::support::{Node, initial, noise, part};
use crate::blob::{BLOCK_BYTES, Error, ExtentPart};
use crate::oci::{Algorithm, Digest, ExtentId, HashState, Hasher};

const MIB: usize = 1 << 20;

fn state_after(bytes: &[u8]) -> HashState {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    hasher.update(bytes);
    hasher.state()
}

fn id(number: u128) -> ExtentId {
    ExtentId::from_random(number)
}

#[tokio::test]
async fn a_single_extent_becomes_the_blob_and_stays_an_extent_until_removed() {
    let node = Node::start();
    let bytes = noise(1, 3 * MIB + 17);
    let digest = node.store_blob(1, &bytes).await;
    assert_eq!(node.read(&digest, bytes.len() as u64).await.unwrap(), bytes);
    assert_eq!(node.store.extent(id(1)).await.unwrap().unwrap().length, bytes.len() as u64);
    assert!(node.store.has(&digest, bytes.len() as u64).await.unwrap());

    node.store.remove_extents(&[id(1), id(1), id(9)]).await.unwrap();
    assert_eq!(node.store.extent(id(1)).await.unwrap(), None);
    assert!(node.store.list_extents().await.unwrap().is_empty());
    // A retry whose first answer was lost.
    node.store.assemble(&digest, bytes.len() as u64, &[part(1, 0, bytes.len() as u64)]).await.unwrap();
    assert_eq!(node.read(&digest, bytes.len() as u64).await.unwrap(), bytes);
    let usage = node.store.usage();
    assert_eq!((usage.blobs, usage.blob_bytes, usage.extents), (1, bytes.len() as u64, 0));
    assert_eq!(node.files_in("tmp"), 0);
}

#[tokio::test]
async fn the_empty_blob_is_made_of_nothing() {
    let node = Node::start();
    let digest = Digest::of(Algorithm::Sha512, b"");
    node.store.assemble(&digest, 0, &[]).await.unwrap();
    assert!(node.store.open_blob(&digest, 0).await.unwrap().is_some());
    assert_eq!(node.store.read_all(&digest, 0).await.unwrap().unwrap(), "");
    assert!(node.store.hold(&digest, 0).await.unwrap());
}

#[tokio::test]
async fn wrong_bytes_gaps_and_missing_extents_make_no_blob() {
    let node = Node::start();
    let bytes = noise(2, MIB);
    let size = bytes.len() as u64;
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    let wrong = Digest::of(Algorithm::Sha256, b"wrong");
    node.stage(1, initial(), &bytes, MIB).await;
    let half = size / 2;

    let refused = [
        (&wrong, size, vec![part(1, 0, size)]),
        (&wrong, size, vec![part(1, 0, half), part(1, half, half)]),
        (&digest, size, vec![part(1, 0, half)]),
        (&digest, size, vec![part(1, 1, size - 1)]),
        (&digest, size + 1, vec![part(1, 0, size + 1)]),
        (&digest, size, vec![part(2, 0, size)]),
    ];
    let mut errors = Vec::new();
    for (digest, size, parts) in &refused {
        errors.push(node.store.assemble(digest, *size, parts).await.unwrap_err());
    }
    assert!(matches!(errors[0], Error::DigestMismatch { .. }), "{errors:?}");
    assert!(matches!(errors[1], Error::DigestMismatch { .. }), "{errors:?}");
    assert!(errors[2..5].iter().all(|error| matches!(error, Error::SizeMismatch { .. })), "{errors:?}");
    assert!(matches!(errors[5], Error::ExtentUnknown { .. }), "{errors:?}");
    assert!(!node.store.has(&digest, size).await.unwrap() && !node.store.has(&wrong, size).await.unwrap());
    assert_eq!(node.files_in("tmp"), 0);
    assert!(node.store.extent(id(1)).await.unwrap().is_some(), "the session stays open");
}

#[tokio::test]
async fn a_later_extent_alone_never_passes_for_the_whole() {
    let node = Node::start();
    let bytes = noise(3, 2000);
    node.stage(2, state_after(&bytes[..1000]), &bytes[1000..], 100).await;
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    let error = node.store.assemble(&digest, 1000, &[part(2, 0, 1000)]).await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
}

#[tokio::test]
async fn another_algorithm_is_hashed_afresh() {
    let node = Node::start();
    let bytes = noise(4, MIB + 3);
    node.stage(1, initial(), &bytes, 5000).await;
    let digest = Digest::of(Algorithm::Sha512, &bytes);
    node.store.assemble(&digest, bytes.len() as u64, &[part(1, 0, bytes.len() as u64)]).await.unwrap();
    assert_eq!(node.read(&digest, bytes.len() as u64).await.unwrap(), bytes);
}

#[tokio::test]
async fn sixteen_tasks_assemble_one_digest_at_once() {
    let node = Node::start();
    let bytes = noise(5, MIB);
    let (size, half) = (bytes.len() as u64, bytes.len() as u64 / 2);
    node.stage(1, initial(), &bytes, 70_000).await;
    node.stage(2, initial(), &bytes[..MIB / 2], 70_000).await;
    node.stage(3, state_after(&bytes[..MIB / 2]), &bytes[MIB / 2..], 70_000).await;
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    let mut tasks = JoinSet::new();
    for task in 0..16 {
        let (store, digest) = (node.store.clone(), digest.clone());
        let parts: Vec<ExtentPart> =
            if task % 2 == 0 { vec![part(1, 0, size)] } else { vec![part(3, half, half), part(2, 0, half)] };
        tasks.spawn(async move { store.assemble(&digest, size, &parts).await });
    }
    while let Some(outcome) = tasks.join_next().await {
        outcome.unwrap().unwrap();
    }
    assert_eq!(node.read(&digest, size).await.unwrap(), bytes);
    assert_eq!(node.store.usage().blobs, 1);
    assert_eq!(node.files_in("tmp"), 0);
}

#[tokio::test]
async fn followers_see_every_byte_while_the_writer_writes() {
    let node = Node::start();
    let bytes = noise(6, 2 * MIB + 5);
    let mut writer = node.store.stage(id(1), initial()).await.unwrap();
    assert_eq!(node.store.extent(id(1)).await.unwrap(), None, "not synced yet");
    let mut tasks = JoinSet::new();
    for offset in [0usize, 1, MIB, bytes.len()] {
        let mut follower = node.store.follow(id(1), offset as u64).await.unwrap();
        tasks.spawn(async move {
            let mut seen = Vec::new();
            while let Some(bytes) = follower.next().await.unwrap() {
                assert!(bytes.len() as u64 <= BLOCK_BYTES);
                seen.extend_from_slice(&bytes);
            }
            (offset, seen)
        });
    }
    for frame in bytes.chunks(33_000) {
        writer.write(Bytes::copy_from_slice(frame)).await.unwrap();
    }
    writer.flush().await.unwrap();
    assert_eq!(writer.written(), bytes.len() as u64);
    writer.finish().await.unwrap();
    while let Some(seen) = tasks.join_next().await {
        let (offset, seen) = seen.unwrap();
        assert_eq!(seen, bytes[offset..]);
    }
    let mut late = node.store.follow(id(1), 10).await.unwrap();
    assert_eq!(late.next().await.unwrap().unwrap(), bytes[10..256 * 1024]);
}

#[tokio::test]
async fn an_abandoned_writer_fails_its_followers_and_leaves_nothing() {
    let node = Node::start();
    let mut writer = node.store.stage(id(1), initial()).await.unwrap();
    writer.write(Bytes::from_static(b"bytes")).await.unwrap();
    writer.flush().await.unwrap();
    let mut follower = node.store.follow(id(1), 0).await.unwrap();
    assert_eq!(follower.next().await.unwrap().unwrap(), "bytes");
    drop(writer);
    assert!(matches!(follower.next().await, Err(Error::ExtentAbandoned { .. })));
    assert!(matches!(node.store.follow(id(1), 0).await, Err(Error::ExtentUnknown { .. })));
    super::support::eventually("the file goes", || node.files_in("extents") == 0).await;
}

#[tokio::test]
async fn staging_anew_supersedes_the_attempt_before() {
    let node = Node::start();
    let mut old = node.store.stage(id(1), initial()).await.unwrap();
    old.write(Bytes::from_static(b"old bytes")).await.unwrap();
    let mut new = node.store.stage(id(1), initial()).await.unwrap();
    new.write(Bytes::from_static(b"new")).await.unwrap();
    assert!(matches!(old.finish().await, Err(Error::ExtentUnknown { .. })));
    assert_eq!(new.finish().await.unwrap().length, 3);
    let mut follower = node.store.follow(id(1), 0).await.unwrap();
    assert_eq!(follower.next().await.unwrap().unwrap(), "new");

    let again = node.store.stage(id(1), initial()).await.unwrap();
    assert_eq!(node.store.extent(id(1)).await.unwrap(), None);
    node.store.remove_extents(&[id(1)]).await.unwrap();
    assert!(matches!(again.finish().await, Err(Error::ExtentUnknown { .. })));
    assert_eq!(node.store.usage().extents, 0);
}

#[tokio::test]
async fn a_trim_gives_the_hash_state_of_exactly_that_length() {
    let node = Node::start();
    let prefix = noise(7, 1000);
    let bytes = noise(8, 9 * MIB + 100);
    let resume = state_after(&prefix);
    let borders = [0, 1, 256 * 1024, 4 * MIB - 1, 4 * MIB, 4 * MIB + 1, 8 * MIB, 8 * MIB + 1, 9 * MIB + 100];
    node.stage(1, resume.clone(), &bytes, 300_000).await;
    // Downwards, so that each trim starts from the one before.
    for length in borders.into_iter().rev() {
        let trimmed = node.store.trim_extent(id(1), length as u64, resume.clone()).await.unwrap();
        let whole = [&prefix[..], &bytes[..length]].concat();
        assert_eq!(trimmed.hash_state, state_after(&whole), "at {length}");
        assert_eq!(trimmed.length, length as u64);
        assert_eq!(node.store.extent(id(1)).await.unwrap().unwrap(), trimmed);
        let mut seen = Vec::new();
        let mut follower = node.store.follow(id(1), 0).await.unwrap();
        while let Some(bytes) = follower.next().await.unwrap() {
            seen.extend_from_slice(&bytes);
        }
        assert_eq!(seen, bytes[..length]);
    }
    let error = node.store.trim_extent(id(1), 1, resume).await.unwrap_err();
    assert!(matches!(error, Error::SizeMismatch { expected: 1, actual: 0 }), "{error}");
}

#[tokio::test]
async fn a_trim_after_the_commit_leaves_the_blob_whole() {
    let node = Node::start();
    let bytes = noise(9, MIB);
    let digest = node.store_blob(1, &bytes).await;
    node.store.trim_extent(id(1), 1000, initial()).await.unwrap();
    assert_eq!(node.read(&digest, bytes.len() as u64).await.unwrap(), bytes);
    // The shortened extent makes a blob of its own.
    let short = Digest::of(Algorithm::Sha256, &bytes[..1000]);
    node.store.assemble(&short, 1000, &[part(1, 0, 1000)]).await.unwrap();
    assert_eq!(node.read(&short, 1000).await.unwrap(), bytes[..1000]);
    assert_eq!(node.read(&digest, bytes.len() as u64).await.unwrap(), bytes);
}

#[tokio::test]
async fn a_received_copy_counts_only_if_it_is_whole_and_right() {
    let node = Node::start();
    let bytes = noise(10, MIB + 1);
    let size = bytes.len() as u64;
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    let mut writer = node.store.receive(&digest, size).await.unwrap();
    writer.write(Bytes::copy_from_slice(&bytes[1..])).await.unwrap();
    assert!(matches!(writer.write(Bytes::from_static(b"xy")).await, Err(Error::SizeMismatch { .. })));
    drop(writer);
    let mut short = node.store.receive(&digest, size).await.unwrap();
    short.write(Bytes::copy_from_slice(&bytes[1..])).await.unwrap();
    assert!(matches!(short.finish().await, Err(Error::SizeMismatch { .. })));
    let mut wrong = node.store.receive(&digest, size).await.unwrap();
    wrong.write(vec![0; bytes.len()].into()).await.unwrap();
    assert!(matches!(wrong.finish().await, Err(Error::DigestMismatch { .. })));
    assert!(!node.store.has(&digest, size).await.unwrap());
    let mut right = node.store.receive(&digest, size).await.unwrap();
    for frame in bytes.chunks(9000) {
        right.write(Bytes::copy_from_slice(frame)).await.unwrap();
    }
    let mut events = node.store.events();
    right.finish().await.unwrap();
    assert!(matches!(events.try_recv().unwrap(), crate::blob::Event::Added { .. }));
    assert_eq!(node.read(&digest, size).await.unwrap(), bytes);
    super::support::eventually("temporaries go", || node.files_in("tmp") == 0).await;
}

#[tokio::test]
async fn any_range_of_a_blob_reads_as_its_bytes() {
    let node = Node::start();
    let bytes = noise(11, 2 * MIB + 777);
    let digest = node.store_blob(1, &bytes).await;
    let mut reader = node.store.open_blob(&digest, bytes.len() as u64).await.unwrap().unwrap();
    let block = 256 * 1024;
    for start in [0, 1, block - 1, block, block + 1, 4 * block, bytes.len() - 1] {
        for end in [start + 1, start + block, bytes.len()] {
            let end = end.min(bytes.len());
            let read = reader.read(start as u64, end as u64).await.unwrap();
            assert!(!read.is_empty() && read.len() <= MIB);
            assert_eq!(read, bytes[start..start + read.len()]);
            assert!(start + read.len() == end || (start + read.len()).is_multiple_of(block), "{start} {end}");
        }
    }
    assert!(reader.read(5, 5).await.is_err() && reader.read(0, bytes.len() as u64 + 1).await.is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_frames_over_any_extents_give_the_same_blob(
        length in 0usize..1_500_000,
        cuts in proptest::collection::vec(0usize..1_500_000, 0..5),
        frame in 1usize..600_000,
        seed in 0u32..1000,
    ) {
        let bytes = noise(seed, length);
        let borders: BTreeSet<usize> = cuts.into_iter().filter(|cut| *cut < length).chain([0, length]).collect();
        let borders: Vec<usize> = borders.into_iter().collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let node = Node::start();
            let (mut parts, mut state) = (Vec::new(), initial());
            for (number, run) in (1u128..).zip(borders.windows(2)) {
                let run = run[0]..run[1];
                // Tiny frames only for a while: each is a call.
                let frame = frame.max(run.len() / 200).max(1);
                let stored = node.stage(number, state, &bytes[run.clone()], frame).await;
                parts.push(part(number, run.start as u64, run.len() as u64));
                state = stored.hash_state;
            }
            assert_eq!(state, state_after(&bytes));
            let digest = Digest::of(Algorithm::Sha256, &bytes);
            node.store.assemble(&digest, length as u64, &parts).await.unwrap();
            assert_eq!(node.read(&digest, length as u64).await.unwrap(), bytes);
            assert_eq!(node.store.verify(&digest, length as u64, None).await.unwrap(), crate::blob::Verdict::Good);
        });
    }
}
