use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;

use crate::blob::{BlobStore, Config, ExtentPart, StoredExtent};
use crate::db::Db;
use crate::env::SystemClock;
use crate::oci::{Algorithm, Digest, ExtentId, HashState};

pub(super) struct Node {
    pub(super) dir: TempDir,
    pub(super) store: BlobStore,
}

/// A store on an own directory; tests run on disks of any fullness.
pub(super) fn config() -> Config {
    Config { refuse_free_bytes: 0, reserve_free_bytes: 0, pin: Duration::from_secs(60), ..Config::default() }
}

impl Node {
    pub(super) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path(), Db::in_memory());
        Self { dir, store }
    }

    /// The same directory after the process died: nothing was closed, the index is gone.
    pub(super) fn restart(self) -> Self {
        let store = open(self.dir.path(), Db::in_memory());
        Self { store, ..self }
    }

    pub(super) fn blob_path(&self, digest: &Digest) -> PathBuf {
        fanned(&self.dir.path().join("blobs"), digest)
    }

    pub(super) fn sums_path(&self, digest: &Digest) -> PathBuf {
        fanned(&self.dir.path().join("sums"), digest)
    }

    pub(super) fn files_in(&self, name: &str) -> usize {
        fs::read_dir(self.dir.path().join(name)).unwrap().count()
    }

    pub(super) async fn read(&self, digest: &Digest, size: u64) -> Option<Vec<u8>> {
        let mut reader = self.store.open_blob(digest, size).await.unwrap()?;
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < size {
            bytes.extend_from_slice(&reader.read(bytes.len() as u64, size).await.unwrap());
        }
        Some(bytes)
    }

    /// Stages one extent in frames of `frame` bytes, going on from `resume`.
    pub(super) async fn stage(&self, id: u128, resume: HashState, bytes: &[u8], frame: usize) -> StoredExtent {
        let mut writer = self.store.stage(ExtentId::from_random(id), resume).await.unwrap();
        for frame in bytes.chunks(frame) {
            writer.write(Bytes::copy_from_slice(frame)).await.unwrap();
        }
        writer.finish().await.unwrap()
    }

    /// Stages `bytes` as one extent and makes it a blob.
    pub(super) async fn store_blob(&self, id: u128, bytes: &[u8]) -> Digest {
        let digest = Digest::of(Algorithm::Sha256, bytes);
        let extent = self.stage(id, initial(), bytes, 100_000).await;
        self.store.assemble(&digest, extent.length, &[part(id, 0, extent.length)]).await.unwrap();
        digest
    }
}

pub(super) fn open(dir: &Path, db: Db) -> BlobStore {
    BlobStore::open(config(), dir, db, Arc::new(SystemClock)).unwrap()
}

fn fanned(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join(digest.algorithm().as_str()).join(&digest.hex()[..2]).join(digest.hex())
}

pub(super) fn initial() -> HashState {
    HashState::initial(Algorithm::Sha256)
}

pub(super) fn part(id: u128, offset: u64, length: u64) -> ExtentPart {
    ExtentPart { id: ExtentId::from_random(id), offset, length }
}

/// Bytes without a period that blocks or frames could share.
pub(super) fn noise(seed: u32, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[1]
    };
    (0..length).map(|_| next()).collect()
}

/// Polls until `done`, with a deadline.
pub(super) async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("did not happen: {what}");
}
