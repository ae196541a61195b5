use bytes::Bytes;

use super::support::{Node, config, eventually, initial, noise, part};
use crate::blob::{BlobStore, Config, Error};
use crate::db::Db;
use crate::disk::faults::{Step, inject};
use crate::oci::{Algorithm, Digest, ExtentId};

const ENOSPC: i32 = 28;
const EIO: i32 = 5;
const MIB: usize = 1 << 20;

#[tokio::test]
async fn a_full_disk_refuses_leaves_nothing_and_heals_by_itself() {
    let node = Node::start();
    let before = node.store_blob(9, &noise(9, MIB)).await;
    let bytes = noise(1, 3 * MIB);
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    let mut writer = node.store.stage(ExtentId::from_random(1), initial()).await.unwrap();
    writer.write(Bytes::copy_from_slice(&bytes[..MIB])).await.unwrap();
    writer.flush().await.unwrap();
    let full = inject(node.dir.path(), Step::Write, ENOSPC);
    writer.write(Bytes::copy_from_slice(&bytes[MIB..])).await.unwrap();
    let error = writer.finish().await.unwrap_err();
    assert!(matches!(error, Error::NoSpace), "{error}");
    assert!(node.store.refuses_writes());
    assert!(matches!(node.store.put(&digest, Bytes::from(bytes.clone())).await, Err(Error::NoSpace)));
    assert!(matches!(node.store.stage(ExtentId::from_random(2), initial()).await, Err(Error::NoSpace)));
    assert_eq!((node.files_in("tmp"), node.files_in("extents")), (0, 2), "the earlier extent and its record");
    assert_eq!(node.read(&before, MIB as u64).await.unwrap(), noise(9, MIB));
    drop(full);

    node.store_blob(3, &bytes).await;
    assert!(!node.store.refuses_writes());
    assert!(!node.store.usage().disk_suspect, "full is not broken");
}

#[tokio::test]
async fn watermarks_refuse_before_the_first_byte() {
    let node = Node::start();
    let open = |refuse_free_bytes, reserve_free_bytes| {
        let config = Config { refuse_free_bytes, reserve_free_bytes, ..config() };
        let clock = std::sync::Arc::new(crate::env::SystemClock);
        BlobStore::open(config, node.dir.path(), Db::in_memory(), clock).unwrap()
    };
    let digest = Digest::of(Algorithm::Sha256, b"body");
    // More than any disk has free, less than any shares allow: a copy of the size of the universe.
    let store = open(0, 0);
    assert!(matches!(store.receive(&digest, u64::MAX / 2).await, Err(Error::NoSpace)));
    assert!(!store.refuses_writes());
    store.put(&digest, Bytes::from_static(b"body")).await.unwrap();
}

#[tokio::test]
async fn a_failed_sync_drops_the_file_and_stops_writes_until_a_probe_passes() {
    let node = Node::start();
    let bytes = noise(2, MIB);
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    let mut writer = node.store.stage(ExtentId::from_random(1), initial()).await.unwrap();
    writer.write(Bytes::from(bytes.clone())).await.unwrap();
    let broken = inject(node.dir.path(), Step::Sync, EIO);
    let error = writer.finish().await.unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    assert_eq!(node.store.extent(ExtentId::from_random(1)).await.unwrap(), None);
    assert_eq!(node.files_in("extents"), 0);
    assert!(node.store.refuses_writes() && node.store.usage().disk_suspect);
    let error = node.store.put(&digest, Bytes::from(bytes.clone())).await.unwrap_err();
    assert!(matches!(error, Error::DiskUnwritable), "{error}");

    drop(broken);
    let run = node.store.clone().run();
    tokio::pin!(run);
    let waited = eventually("a probe passes", || !node.store.refuses_writes());
    tokio::select! { () = &mut run => unreachable!("runs for ever"), () = waited => {} }
    node.store.put(&digest, Bytes::from(bytes)).await.unwrap();
    assert!(node.store.usage().disk_suspect, "a human should still know");
}

#[tokio::test]
async fn a_blob_whose_name_could_not_be_synced_does_not_count() {
    let node = Node::start();
    let bytes = noise(3, MIB);
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    node.stage(1, initial(), &bytes, MIB).await;
    for dir in ["blobs", "sums"] {
        let broken = inject(&node.dir.path().join(dir), Step::Sync, EIO);
        let parts = [part(1, 0, MIB as u64)];
        assert!(node.store.assemble(&digest, MIB as u64, &parts).await.is_err());
        drop(broken);
        assert!(!node.store.has(&digest, MIB as u64).await.unwrap(), "{dir}");
        assert_eq!(node.files_in("tmp"), 0);
    }
    // The extent is still there; the next try succeeds.
    node.store.assemble(&digest, MIB as u64, &[part(1, 0, MIB as u64)]).await.unwrap();
    assert_eq!(node.read(&digest, MIB as u64).await.unwrap(), bytes);
}

#[tokio::test]
async fn a_failed_replacement_leaves_the_copy_that_was_there() {
    let node = Node::start();
    let bytes = noise(4, MIB);
    let digest = node.store_blob(1, &bytes).await;
    for (step, errno) in [(Step::Write, ENOSPC), (Step::Sync, EIO)] {
        let broken = inject(&node.dir.path().join("blobs"), step, errno);
        assert!(node.store.assemble(&digest, MIB as u64, &[part(1, 0, MIB as u64)]).await.is_err());
        drop(broken);
        assert_eq!(node.read(&digest, MIB as u64).await.unwrap(), bytes);
        assert_eq!(node.files_in("tmp"), 0);
    }
}

#[tokio::test]
async fn a_want_of_descriptors_is_not_blamed_on_the_disk() {
    const EMFILE: i32 = 24;
    let node = Node::start();
    let digest = Digest::of(Algorithm::Sha256, b"body");
    let scarce = inject(node.dir.path(), Step::Write, EMFILE);
    assert!(matches!(node.store.put(&digest, Bytes::from_static(b"body")).await, Err(Error::Io { .. })));
    drop(scarce);
    assert!(!node.store.refuses_writes() && !node.store.usage().disk_suspect);
    node.store.put(&digest, Bytes::from_static(b"body")).await.unwrap();
}
