//! What the index says about blobs and extents; a hint, counted and listed but never served from (P20).

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::metrics::Metrics;
use crate::db::{Batch, Db, Table};
use crate::oci::{Algorithm, Digest, ExtentId};

const VERSION: u8 = 1;

/// A blob as the index knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobEntry {
    /// The blob.
    pub digest: Digest,
    /// Bytes of its file.
    pub size: u64,
    /// When its bytes were last hashed, in seconds of Unix time; 0 if that is not known.
    pub verified_at: u64,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) blobs: u64,
    pub(super) blob_bytes: u64,
    pub(super) extents: u64,
}

#[derive(Debug)]
pub(super) struct Index {
    pub(super) db: Db,
    /// Held while the index changes, so that counts and entries agree.
    counts: Mutex<Counts>,
    /// The counts for those who ask, who must not wait for a recount.
    shown: Mutex<Counts>,
    complete: AtomicBool,
    metrics: Metrics,
}

impl Index {
    pub(super) fn new(db: Db, metrics: Metrics) -> Self {
        let clean = db.is_clean();
        let index =
            Self { db, counts: Mutex::default(), shown: Mutex::default(), complete: AtomicBool::new(false), metrics };
        index.recount();
        index.set_complete(clean);
        index
    }

    pub(super) fn counts(&self) -> Counts {
        *self.shown.lock().expect("no panic while counting")
    }

    pub(super) fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    pub(super) fn set_complete(&self, complete: bool) {
        self.complete.store(complete, Ordering::Release);
        self.metrics.index_complete.set(complete.into());
    }

    /// Counts afresh what the index holds; changes wait meanwhile.
    pub(super) fn recount(&self) {
        let mut counts = self.counts.lock().expect("no panic while counting");
        *counts = Counts::default();
        let mut after = None;
        loop {
            let mut entries = self.list_blobs(after.as_ref(), 4096);
            counts.blobs += entries.len() as u64;
            counts.blob_bytes += entries.iter().map(|entry| entry.size).sum::<u64>();
            let Some(last) = entries.pop() else { break };
            after = Some(last.digest);
        }
        let mut after: Option<Vec<u8>> = None;
        loop {
            let mut entries = self.db.scan(Table::Extents, after.as_deref(), 4096);
            counts.extents += entries.len() as u64;
            let Some((last, _)) = entries.pop() else { break };
            after = Some(last);
        }
        self.show(&counts);
    }

    fn show(&self, counts: &Counts) {
        *self.shown.lock().expect("no panic while counting") = *counts;
        let shown = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics.blobs.set(shown(counts.blobs));
        self.metrics.blob_bytes.set(shown(counts.blob_bytes));
        self.metrics.extents.set(shown(counts.extents));
    }

    pub(super) fn blob(&self, digest: &Digest) -> Option<BlobEntry> {
        entry(digest.clone(), &self.db.get(Table::Blobs, &key(digest))?)
    }

    pub(super) fn put_blob(&self, entry: &BlobEntry) {
        let value = postcard::to_stdvec(&(VERSION, entry.size, entry.verified_at)).expect("numbers encode");
        let mut batch = Batch::default();
        batch.put(Table::Blobs, &key(&entry.digest), &value);
        let mut counts = self.counts.lock().expect("no panic while counting");
        let before = self.blob(&entry.digest);
        self.db.commit(&batch);
        counts.blobs += u64::from(before.is_none());
        counts.blob_bytes = (counts.blob_bytes + entry.size).saturating_sub(before.map_or(0, |before| before.size));
        self.show(&counts);
    }

    pub(super) fn remove_blob(&self, digest: &Digest) {
        let mut counts = self.counts.lock().expect("no panic while counting");
        let Some(before) = self.blob(digest) else { return };
        let mut batch = Batch::default();
        batch.remove(Table::Blobs, &key(digest));
        self.db.commit(&batch);
        counts.blobs = counts.blobs.saturating_sub(1);
        counts.blob_bytes = counts.blob_bytes.saturating_sub(before.size);
        self.show(&counts);
    }

    /// Lists blobs in order of their digests, beginning after `after`.
    pub(super) fn list_blobs(&self, after: Option<&Digest>, limit: usize) -> Vec<BlobEntry> {
        let after = after.map(key);
        let entries = self.db.scan(Table::Blobs, after.as_deref(), limit);
        entries.iter().filter_map(|(key, value)| entry(digest_of(key)?, value)).collect()
    }

    pub(super) fn put_extent(&self, id: ExtentId, length: u64) {
        let mut batch = Batch::default();
        batch.put(Table::Extents, id.as_bytes(), &postcard::to_stdvec(&(VERSION, length)).expect("numbers encode"));
        let mut counts = self.counts.lock().expect("no panic while counting");
        let known = self.db.get(Table::Extents, id.as_bytes()).is_some();
        self.db.commit(&batch);
        counts.extents += u64::from(!known);
        self.show(&counts);
    }

    pub(super) fn remove_extent(&self, id: ExtentId) {
        let mut counts = self.counts.lock().expect("no panic while counting");
        if self.db.get(Table::Extents, id.as_bytes()).is_none() {
            return;
        }
        let mut batch = Batch::default();
        batch.remove(Table::Extents, id.as_bytes());
        self.db.commit(&batch);
        counts.extents = counts.extents.saturating_sub(1);
        self.show(&counts);
    }

    pub(super) fn list_extents(&self, after: Option<ExtentId>, limit: usize) -> Vec<ExtentId> {
        let entries = self.db.scan(Table::Extents, after.as_ref().map(|id| id.as_bytes().as_slice()), limit);
        entries.iter().filter_map(|(key, _)| ExtentId::from_slice(key)).collect()
    }
}

fn key(digest: &Digest) -> Vec<u8> {
    let algorithm = match digest.algorithm() {
        Algorithm::Sha256 => 1,
        Algorithm::Sha512 => 2,
    };
    let mut key = vec![algorithm];
    key.extend_from_slice(digest.hash());
    key
}

fn digest_of(key: &[u8]) -> Option<Digest> {
    let (algorithm, hash) = key.split_first()?;
    let algorithm = match algorithm {
        1 => Algorithm::Sha256,
        2 => Algorithm::Sha512,
        _ => return None,
    };
    Digest::from_hash(algorithm, hash)
}

fn entry(digest: Digest, value: &[u8]) -> Option<BlobEntry> {
    let (version, size, verified_at): (u8, u64, u64) = postcard::from_bytes(value).ok()?;
    (version == VERSION).then_some(BlobEntry { digest, size, verified_at })
}
