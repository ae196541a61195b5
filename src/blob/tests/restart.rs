use std::fs;

use bytes::Bytes;
use tokio::time::Duration;

use super::support::{Node, config, eventually, initial, noise, open, part};
use crate::blob::{Config, Item, Verdict};
use crate::db::Db;
use crate::oci::{Algorithm, Digest, ExtentId};

const MIB: usize = 1 << 20;

#[tokio::test]
async fn a_restart_clears_temporaries_and_keeps_everything_else() {
    let node = Node::start();
    let bytes = noise(1, MIB);
    let digest = node.store_blob(1, &bytes).await;
    let extent = node.stage(2, initial(), &bytes[..1000], 10).await;
    fs::write(node.dir.path().join("tmp/0"), b"stale").unwrap();
    let unsynced = ExtentId::from_random(3);
    fs::write(node.dir.path().join("extents").join(unsynced.to_string()), b"half").unwrap();

    let node = node.restart();
    assert_eq!(node.files_in("tmp"), 0);
    assert_eq!(node.read(&digest, MIB as u64).await.unwrap(), bytes);
    assert_eq!(node.store.extent(extent.id).await.unwrap(), Some(extent));
    assert_eq!(node.store.extent(unsynced).await.unwrap(), None);
    assert_eq!(node.store.list_extents().await.unwrap().len(), 3);
    assert!(!node.store.usage().index_complete);
    node.store.walk().await.unwrap();
    let usage = node.store.usage();
    assert_eq!((usage.blobs, usage.blob_bytes, usage.extents, usage.index_complete), (2 - 1, MIB as u64, 2, true));
    node.store.assemble(&digest, MIB as u64, &[part(1, 0, MIB as u64)]).await.unwrap();
}

#[tokio::test]
async fn the_walk_sets_aside_what_a_power_cut_left_and_strikes_out_what_is_gone() {
    let node = Node::start();
    let whole = noise(2, MIB);
    let mut digests = Vec::new();
    for number in 0..6u32 {
        digests.push(node.store_blob(number.into(), &noise(10 + number, MIB)).await);
    }
    let small = Digest::of(Algorithm::Sha256, b"small");
    node.store.put(&small, Bytes::from_static(b"small")).await.unwrap();
    let kept = node.store_blob(9, &whole).await;
    let cut = |digest: &Digest, length| {
        fs::File::options().write(true).open(node.blob_path(digest)).unwrap().set_len(length).unwrap();
    };
    cut(&digests[0], 0);
    cut(&digests[1], 7);
    cut(&digests[2], MIB as u64 - 1);
    cut(&small, 3);
    fs::remove_file(node.blob_path(&digests[3])).unwrap();
    fs::remove_file(node.sums_path(&digests[4])).unwrap();
    fs::write(node.dir.path().join("blobs/sha256/README"), b"not a directory").unwrap();
    fs::write(node.blob_path(&kept).with_file_name("note"), b"not a digest").unwrap();

    // With the index that still knows all, and with none.
    node.store.walk().await.unwrap();
    assert_eq!(node.files_in("quarantine"), 4);
    let usage = node.store.usage();
    assert_eq!((usage.blobs, usage.index_complete), (3, true));
    assert!(!node.sums_path(&digests[3]).exists(), "sums without a blob go");
    let node = node.restart();
    node.store.walk().await.unwrap();
    assert_eq!(node.store.usage().blobs, 3);
    assert_eq!(node.read(&kept, MIB as u64).await.unwrap(), whole);
}

#[tokio::test]
async fn a_truncated_small_blob_is_found_even_without_an_index() {
    let node = Node::start();
    let digest = Digest::of(Algorithm::Sha512, b"a manifest");
    node.store.put(&digest, Bytes::from_static(b"a manifest")).await.unwrap();
    fs::write(node.blob_path(&digest), b"a man").unwrap();
    let node = node.restart();
    node.store.walk().await.unwrap();
    assert_eq!((node.store.usage().blobs, node.files_in("quarantine")), (0, 1));
}

#[tokio::test]
async fn counts_and_check_times_survive_in_the_index_and_its_loss_is_healed() {
    let node = Node::start();
    let dir = node.dir.path();
    let store = open(dir, Db::open(dir));
    let digest = Digest::of(Algorithm::Sha256, b"body");
    store.put(&digest, Bytes::from_static(b"body")).await.unwrap();
    let checked = store.list_blobs(None, 1).await.unwrap()[0].verified_at;
    assert!(checked > 0);
    store.shared.index.db.close().unwrap();
    drop(store);
    let store = open(dir, Db::open(dir));
    assert!(store.usage().index_complete, "after an orderly stop it is trusted");
    assert_eq!(store.usage().blobs, 1);
    drop(store);
    let store = open(dir, Db::open(dir));
    assert!(!store.usage().index_complete, "after a crash it is not");
    store.walk().await.unwrap();
    assert_eq!(store.list_blobs(None, 1).await.unwrap()[0].verified_at, checked);
    drop(store);

    fs::write(dir.join("index/db"), vec![0xff; 50_000]).unwrap();
    fs::write(dir.join("index/conf"), b"garbage").unwrap();
    let store = open(dir, Db::open(dir));
    let run = store.clone().run();
    tokio::pin!(run);
    let waited = eventually("the index is rebuilt", || store.usage().index_complete);
    tokio::select! { () = &mut run => unreachable!("runs for ever"), () = waited => {} }
    assert_eq!(store.usage().blobs, 1);
    assert_eq!(store.read_all(&digest, 4).await.unwrap().unwrap(), "body");
}

#[tokio::test]
async fn nothing_is_deleted_that_was_spoken_for_or_before_one_pin_period() {
    let node = Node::start();
    let config = Config { pin: Duration::from_millis(200), ..config() };
    let clock = std::sync::Arc::new(crate::env::SystemClock);
    let store = crate::blob::BlobStore::open(config, node.dir.path(), Db::in_memory(), clock).unwrap();
    let bytes = noise(3, MIB);
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    let item = Item::Blob(digest.clone());
    assert!(store.permit_delete(item.clone()).is_none(), "too early in this process");
    tokio::time::sleep(Duration::from_millis(250)).await;
    store.put(&digest, Bytes::from(bytes)).await.unwrap();
    assert!(store.permit_delete(item.clone()).is_none(), "just stored");
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert!(store.hold(&digest, MIB as u64).await.unwrap());
    assert!(store.permit_delete(item.clone()).is_none(), "just spoken for");
    tokio::time::sleep(Duration::from_millis(250)).await;
    let permit = store.permit_delete(item.clone()).unwrap();
    {
        let hold = store.hold(&digest, MIB as u64);
        tokio::pin!(hold);
        assert!(futures::poll!(hold.as_mut()).is_pending(), "nobody says so while a permit is held");
        store.delete(permit).await.unwrap();
        assert!(!hold.await.unwrap());
    }
    assert_eq!(store.usage().blobs, 0);
    assert_eq!(store.verify(&digest, MIB as u64, None).await.unwrap(), Verdict::Missing);

    let writer = store.stage(ExtentId::from_random(1), initial()).await.unwrap();
    let extent = Item::Extent(ExtentId::from_random(1));
    assert!(store.permit_delete(extent.clone()).is_none(), "being written");
    writer.finish().await.unwrap();
    assert!(store.permit_delete(extent).is_none(), "just synced");
}
