//! What can go wrong with the copies of a blob.

use crate::oci::Digest;

/// Says why copies could not be made or found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Linked, but no live holder answered with good bytes: unavailable or lost (P19).
    #[error("no live node holds {digest}")]
    NoHolder {
        /// The blob.
        digest: Digest,
        /// Whether every member said for certain that it is not there.
        lost: bool,
    },
    /// Fewer nodes took the bytes than must.
    #[error("{made} of {needed} copies could be made: {reason}")]
    TooFewCopies {
        /// Copies that are synced.
        made: usize,
        /// Copies needed.
        needed: usize,
        /// What the nodes in question answered, for a human.
        reason: String,
    },
    /// This node's disk.
    #[error(transparent)]
    Blob(#[from] crate::blob::Error),
    /// The node is stopping: the work was taken down before it ended.
    #[error("node is stopping")]
    Stopped,
    /// Bytes received as the blob turned out not to be it.
    #[error("blob {digest} was being received and turned out not to be it")]
    DigestMismatch {
        /// The blob.
        digest: Digest,
    },
}

/// The result of making or finding copies.
pub type Result<T, E = Error> = std::result::Result<T, E>;
