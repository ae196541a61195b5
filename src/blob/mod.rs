//! Stores and serves immutable bytes by digest on this node, and nothing unverified.
//!
//! CONTRACT (signatures below are what other modules code against; bodies are to be written in this folder).

use std::path::PathBuf;

use bytes::Bytes;
use tokio::sync::{broadcast, watch};

use crate::oci::{Digest, ExtentId, HashState};

/// Bytes under one CRC32C in a sidecar (P16); reads are checked in these units.
pub const BLOCK_BYTES: u64 = 256 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("disk is past its high watermark")]
    NoSpace,
    #[error("bytes hash to {actual}, not {expected}")]
    DigestMismatch { expected: Digest, actual: Digest },
    #[error("extent {id} is not on this node")]
    ExtentUnknown { id: ExtentId },
    #[error("extents have {actual} bytes where {expected} are wanted")]
    SizeMismatch { expected: u64, actual: u64 },
    #[error("block {block} of {digest} is damaged")]
    BlockDamaged { digest: Digest, block: u64 },
    #[error("{doing} {path}")]
    Io { doing: &'static str, path: PathBuf, source: std::io::Error },
}
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// One extent as it lies synced on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredExtent {
    pub id: ExtentId,
    /// Bytes of this extent alone.
    pub length: u64,
    /// State of the session's hash after this extent's last byte.
    pub hash_state: HashState,
}

/// One run of a blob that is to be put together.
#[derive(Debug, Clone)]
pub struct ExtentPart {
    pub id: ExtentId,
    pub offset: u64,
    pub length: u64,
}

#[derive(Debug, Clone)]
pub enum Event {
    Added { digest: Digest, size: u64 },
    Removed { digest: Digest },
    Quarantined { digest: Digest },
}

#[derive(Debug, Clone, Copy)]
pub struct Usage {
    pub blobs: u64,
    pub blob_bytes: u64,
    pub extents: u64,
    pub index_complete: bool,
}

#[derive(Clone, Debug)]
pub struct BlobStore {}

impl BlobStore {
    /// Starts a new extent file; `resume` is the session's hash state before its first byte (initial state for offset 0).
    pub async fn stage(&self, id: ExtentId, resume: HashState) -> Result<ExtentWriter> {
        let _ = (id, resume);
        todo!()
    }
    /// Follows an extent file while it is being written here (fan-out, P15) or after: reads from `offset` in the extent.
    pub async fn follow(&self, id: ExtentId, offset: u64) -> Result<ExtentFollower> {
        let _ = (id, offset);
        todo!()
    }
    /// The synced extent, if this node has it.
    pub async fn extent(&self, id: ExtentId) -> Result<Option<StoredExtent>> {
        let _ = id;
        todo!()
    }
    /// Truncates a synced extent to `length` (salvage, P28) and returns it with the hash state at that length.
    pub async fn trim_extent(&self, id: ExtentId, length: u64, resume: HashState) -> Result<StoredExtent> {
        let _ = (id, length, resume);
        todo!()
    }
    /// Turns extents that all lie here into the blob `digest` of `size` bytes; verified, synced, durable on return. Idempotent.
    pub async fn assemble(&self, digest: &Digest, size: u64, parts: &[ExtentPart]) -> Result<()> {
        let _ = (digest, size, parts);
        todo!()
    }
    /// Removes extents (idempotent).
    pub async fn remove_extents(&self, ids: &[ExtentId]) -> Result<()> {
        let _ = ids;
        todo!()
    }
    pub async fn list_extents(&self) -> Result<Vec<ExtentId>> {
        todo!()
    }
    /// Stores a small body (manifest): verified against `digest`, synced, durable on return. Idempotent.
    pub async fn put(&self, digest: &Digest, body: Bytes) -> Result<()> {
        let _ = (digest, body);
        todo!()
    }
    /// Opens a blob that lies here with exactly `size` bytes (P20: asks the filesystem; another size is quarantined).
    pub async fn open_blob(&self, digest: &Digest, size: u64) -> Result<Option<BlobReader>> {
        let _ = (digest, size);
        todo!()
    }
    /// Whether the filesystem has the blob at that size, without opening a reader.
    pub async fn has(&self, digest: &Digest, size: u64) -> Result<bool> {
        let _ = (digest, size);
        todo!()
    }
    /// Reads a whole small blob (manifest body), checked.
    pub async fn read_all(&self, digest: &Digest, size: u64) -> Result<Option<Bytes>> {
        let _ = (digest, size);
        todo!()
    }
    /// Starts receiving a blob from a peer: hashes as it writes, publishes under `digest` only if the whole matches.
    pub async fn receive(&self, digest: &Digest, size: u64) -> Result<BlobWriter> {
        let _ = (digest, size);
        todo!()
    }
    /// Sets a copy aside.
    pub async fn quarantine(&self, digest: &Digest) -> Result<()> {
        let _ = digest;
        todo!()
    }
    pub fn usage(&self) -> Usage {
        todo!()
    }
    pub fn events(&self) -> broadcast::Receiver<Event> {
        todo!()
    }
    /// Whether new bytes are refused (high watermark).
    pub fn refuses_writes(&self) -> bool {
        todo!()
    }
}

#[derive(Debug)]
pub struct ExtentWriter {}
impl ExtentWriter {
    pub async fn write(&mut self, bytes: Bytes) -> Result<()> {
        let _ = bytes;
        todo!()
    }
    /// Bytes written so far (a follower may read up to here).
    pub fn written(&self) -> u64 {
        todo!()
    }
    /// Syncs the file and ends it; followers see the end.
    pub async fn finish(self) -> Result<StoredExtent> {
        todo!()
    }
}

/// Progress of an extent that others follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub written: u64,
    pub ended: bool,
}

#[derive(Debug)]
pub struct ExtentFollower {}
impl ExtentFollower {
    /// The next bytes (at most 256 KiB); waits for the writer; `None` at the end. An abandoned writer is an error.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        todo!()
    }
    pub fn progress(&self) -> watch::Receiver<Progress> {
        todo!()
    }
}

#[derive(Debug)]
pub struct BlobReader {}
impl BlobReader {
    pub fn size(&self) -> u64 {
        todo!()
    }
    /// Reads the checked bytes of [start, end) that lie in one block: from `start` to the block's end or `end`.
    pub async fn read(&mut self, start: u64, end: u64) -> Result<Bytes> {
        let _ = (start, end);
        todo!()
    }
}

#[derive(Debug)]
pub struct BlobWriter {}
impl BlobWriter {
    pub async fn write(&mut self, bytes: Bytes) -> Result<()> {
        let _ = bytes;
        todo!()
    }
    /// Verifies, syncs, publishes.
    pub async fn finish(self) -> Result<()> {
        todo!()
    }
}
