//! What a client is told.

use bytes::Bytes;

use crate::oci::{Digest, MediaType, Tag, UploadId};

/// A manifest that is there.
#[derive(Debug, Clone)]
pub struct ManifestFound {
    /// Its digest.
    pub digest: Digest,
    /// The media type it was pushed as.
    pub media_type: MediaType,
    /// Its length in bytes.
    pub size: u64,
    /// Its exact bytes; `None` for HEAD.
    pub body: Option<Bytes>,
    /// Whether it comes from a node out of touch with the quorum: answered with a `Warning`.
    pub stale: bool,
    /// A log index at which this was so, as seen here.
    pub index: u64,
}

/// A blob that is there.
#[derive(Debug, Clone)]
pub struct BlobFound {
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Whether the link was seen on a node out of touch with the quorum.
    pub stale: bool,
}

/// Where an upload session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UploadProgress {
    /// The session.
    pub id: UploadId,
    /// Bytes so far.
    pub length: u64,
    /// A log index at which this is so.
    pub index: u64,
}

/// A blob that is linked now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobPushed {
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Nodes that hold it, synced and verified, as far as this push knows.
    pub copies: usize,
    /// The log index of the link.
    pub index: u64,
}

/// A manifest that is stored now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestPushed {
    /// Its digest.
    pub digest: Digest,
    /// The manifest it refers to.
    pub subject: Option<Digest>,
    /// The tags that name it now because of this push.
    pub tags: Vec<Tag>,
    /// Nodes that hold its body, synced and verified, as far as this push knows.
    pub copies: usize,
    /// The log index of the change.
    pub index: u64,
}

/// A part of a list.
#[derive(Debug, Clone)]
pub struct Page<T> {
    /// The items, in order.
    pub items: Vec<T>,
    /// Whether there are more after the last item.
    pub more: bool,
    /// Whether it comes from a node out of touch with the quorum.
    pub stale: bool,
}
