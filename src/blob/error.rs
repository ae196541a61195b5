//! What can go wrong with this node's bytes.

use std::path::PathBuf;

use crate::oci::{Digest, ExtentId};

/// Says why this node's bytes cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk is past its watermark, or said that it is full; nothing of the file was kept.
    #[error("disk is past its high watermark")]
    NoSpace,
    /// The disk failed a write or a sync a moment ago and has not passed a probe since.
    #[error("disk takes no writes")]
    DiskUnwritable,
    /// The bytes are not those that the digest names; nothing was kept.
    #[error("bytes hash to {actual}, not {expected}")]
    DigestMismatch {
        /// The digest that was asked for.
        expected: Digest,
        /// The digest of the bytes.
        actual: Digest,
    },
    /// No synced extent of that id lies here.
    #[error("extent {id} is not on this node")]
    ExtentUnknown {
        /// The extent.
        id: ExtentId,
    },
    /// The writer of an extent that is being followed went away before its end.
    #[error("extent {id} was abandoned by its writer")]
    ExtentAbandoned {
        /// The extent.
        id: ExtentId,
    },
    /// There are more or fewer bytes than were announced.
    #[error("extents have {actual} bytes where {expected} are wanted")]
    SizeMismatch {
        /// Bytes wanted.
        expected: u64,
        /// Bytes there.
        actual: u64,
    },
    /// The state to resume a hash from is not one.
    #[error("hash state is malformed")]
    HashState,
    /// A block of a stored blob differs from its checksum; the caller quarantines the copy and reads on elsewhere.
    #[error("block {block} of {digest} is damaged")]
    BlockDamaged {
        /// The blob.
        digest: Digest,
        /// Which block, counted from 0 in units of [`super::BLOCK_BYTES`].
        block: u64,
    },
    /// An earlier write of this writer failed; its file is gone.
    #[error("writer has failed before")]
    Ended,
    /// The process is stopping.
    #[error("process is stopping")]
    Stopped,
    /// The filesystem refused a step.
    #[error("{doing} {path}")]
    Io {
        /// The step, as in "sync file".
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the filesystem said.
        source: std::io::Error,
    },
}

/// The outcome of a call into `blob`.
pub type Result<T, E = Error> = std::result::Result<T, E>;
