//! Makes enough copies of a new blob and finds a copy of an old one.
//!
//! CONTRACT (bodies to be written).

use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;

use crate::blob::{ExtentPart, StoredExtent};
use crate::oci::{Digest, ExtentId, HashState};
use crate::topology::NodeId;

#[derive(Debug, Clone)]
pub struct Config {
    /// Copies wanted of each blob.
    pub copies: usize,
    /// Synced copies before a push is answered.
    pub write_copies: usize,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Linked, but no live holder answered with good bytes: unavailable or lost (P19).
    #[error("no live node holds {digest}")]
    NoHolder { digest: Digest, lost: bool },
    #[error("{made} of {needed} copies could be made")]
    TooFewCopies { made: usize, needed: usize, reason: String },
    #[error(transparent)]
    Blob(#[from] crate::blob::Error),
    #[error("client body broke off")]
    BodyBroken,
}
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The extent that a PATCH (or a whole monolithic body) became.
#[derive(Debug, Clone)]
pub struct ReceivedExtent {
    pub id: ExtentId,
    pub length: u64,
    pub hash_state: HashState,
    /// Nodes on which these `length` bytes are synced and hashed.
    pub holders: Vec<NodeId>,
    /// Whether the body ended as it should (false: cut, `length` is the salvaged part, P28).
    pub complete: bool,
}

/// A client's body, frame by frame; an error or a drop means the connection broke.
pub type Body = BoxStream<'static, std::result::Result<Bytes, std::io::Error>>;

#[derive(Clone, Debug)]
pub struct Replicas {}
impl Replicas {
    /// This node.
    pub fn me(&self) -> NodeId {
        todo!()
    }
    /// Effective `write_copies` now (P14).
    pub fn write_copies(&self) -> usize {
        todo!()
    }
    /// Chooses `write_copies` live holders for a new session: this node first if it is *in* and takes writes (P25).
    pub fn choose_holders(&self) -> Vec<NodeId> {
        todo!()
    }
    /// Receives one extent: staged here, streamed to `holders` while it arrives (P15), synced on `write_copies` of them.
    ///
    /// Dead holders are replaced by live candidates. The work runs in a supervised task that outlives a dropped call (P28):
    /// when the body breaks off, `on_end` still sees the salvaged extent, so pass everything the append needs into it.
    pub async fn receive_extent(
        &self,
        id: ExtentId,
        resume: HashState,
        body: Body,
        holders: Vec<NodeId>,
    ) -> Result<ReceivedExtent> {
        let _ = (id, resume, body, holders);
        todo!()
    }
    /// Has the holders put the blob together from its extents (each fetches what it lacks), verified and synced (P25).
    /// Returns the nodes that hold the blob now, at least `write_copies`.
    pub async fn assemble(
        &self,
        digest: &Digest,
        size: u64,
        parts: &[HeldPart],
        holders: &[NodeId],
    ) -> Result<Vec<NodeId>> {
        let _ = (digest, size, parts, holders);
        todo!()
    }
    /// Puts a small body on every live node; returns when `enough(nodes so far)` says so or all answered (P18).
    pub async fn put_body(
        &self,
        digest: &Digest,
        body: Bytes,
        enough: &(dyn Fn(&[NodeId]) -> bool + Sync),
        deadline: Duration,
    ) -> Result<Vec<NodeId>> {
        let _ = (digest, body, enough, deadline);
        todo!()
    }
    /// Opens the bytes [start, end) of a linked blob, from here or from the nearest live holder; every block is checked (P16, P17).
    /// Errors come before the first byte; later damage or loss moves on to another holder unseen, or ends the stream with an error.
    pub async fn read(
        &self,
        digest: &Digest,
        size: u64,
        start: u64,
        end: u64,
    ) -> Result<BoxStream<'static, Result<Bytes>>> {
        let _ = (digest, size, start, end);
        todo!()
    }
    /// Whether a copy exists somewhere in reach; `Err(NoHolder{lost})` says how sure the absence is (HEAD, P19).
    pub async fn locate(&self, digest: &Digest, size: u64) -> Result<Vec<NodeId>> {
        let _ = (digest, size);
        todo!()
    }
    /// A whole small body (manifest), from here or a peer.
    pub async fn read_all(&self, digest: &Digest, size: u64) -> Result<Bytes> {
        let _ = (digest, size);
        todo!()
    }
    /// Makes sure this node itself holds the blob, fetching it if need be (catch-up, repair).
    pub async fn ensure_local(&self, digest: &Digest, size: u64) -> Result<()> {
        let _ = (digest, size);
        todo!()
    }
    /// Brings the copies of a linked blob up to `write_copies` (P19: a re-push heals); returns holders.
    pub async fn ensure_copies(&self, digest: &Digest, size: u64) -> Result<Vec<NodeId>> {
        let _ = (digest, size);
        todo!()
    }
    /// Re-hashes a session's bytes under another algorithm (P26).
    pub async fn hash_parts(&self, parts: &[HeldPart], algorithm: crate::oci::Algorithm) -> Result<Digest> {
        let _ = (parts, algorithm);
        todo!()
    }
}

/// An extent of a session with the nodes that hold it.
#[derive(Debug, Clone)]
pub struct HeldPart {
    pub part: ExtentPart,
    pub holders: Vec<NodeId>,
}

#[allow(dead_code, reason = "contract")]
fn _unused(_: StoredExtent) {}
