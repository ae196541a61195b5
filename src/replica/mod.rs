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
    /// The node is stopping: the work was taken down before it ended.
    #[error("node is stopping")]
    Stopped,
    #[error("blob {digest} was being received and turned out not to be it")]
    DigestMismatch { digest: Digest },
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

/// One PATCH (or whole body) that is to become an extent.
#[derive(Debug, Clone)]
pub struct ExtentRequest {
    /// Fresh for every attempt (P24).
    pub id: ExtentId,
    /// The session's hash state before the first byte.
    pub resume: HashState,
    /// The session's holders (P25).
    pub holders: Vec<NodeId>,
    /// What `Content-Length` promised, if anything: a shorter body counts as broken.
    pub promised_length: Option<u64>,
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
    /// Receives one extent: staged here, streamed to `request.holders` while it arrives (P15), synced on `write_copies` nodes.
    ///
    /// The node that receives always stages, so it is a natural holder beside the session's; dead holders are replaced by
    /// live candidates. The work runs in a supervised task that outlives a dropped call (P28): `then` (it proposes the
    /// append) runs in that task with the extent, salvaged or whole, and its answer comes back here if somebody still waits.
    /// `then` is not run when the extent could not be stored. A body without any byte gives an extent of length 0 with the
    /// request's hash state and no holders, stored nowhere: there is nothing to append.
    pub async fn receive_extent<T, F>(&self, request: ExtentRequest, body: Body, then: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(ReceivedExtent) -> crate::env::BoxFuture<'static, T> + Send + 'static,
    {
        let _ = (request, body, then);
        todo!()
    }
    /// Frees the extents of a session that was committed or cancelled, here and at their holders, in the background.
    pub fn free_extents(&self, parts: Vec<HeldPart>) {
        let _ = parts;
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
