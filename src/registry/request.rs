//! What a client asks.

use std::fmt;

use bytes::Bytes;

use crate::auth::Principal;
use crate::meta::Consistency;
use crate::meta::command::Condition;
use crate::oci::{Reference, Tag};
use crate::replica::Body;

/// Who asks, and how fresh the answer must be.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Who asks.
    pub principal: Principal,
    /// How fresh, if the request says so.
    pub consistency: Option<Consistency>,
    /// The log index that the answer must have seen (`Rafthold-Wait-For`).
    pub wait_for: Option<u64>,
}

/// The bytes of one PATCH, PUT or POST.
pub struct Chunk {
    /// Offset of the first byte if the client named one (`Content-Range`, or the state in the `Location`, P28).
    pub offset: Option<u64>,
    /// The length that the client promised, in bytes; 0 is a request without a body.
    pub length: Option<u64>,
    /// The bytes.
    pub body: Body,
}

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chunk").field("offset", &self.offset).field("length", &self.length).finish_non_exhaustive()
    }
}

impl Chunk {
    /// Says whether there is certainly no byte in it.
    pub(super) fn is_empty(&self) -> bool {
        self.length == Some(0)
    }
}

/// A manifest as it was sent.
#[derive(Debug, Clone)]
pub struct ManifestUpload {
    /// The tag or digest in the URL.
    pub reference: Reference,
    /// The `Content-Type`, parameters and all.
    pub content_type: Option<String>,
    /// The exact bytes.
    pub body: Bytes,
    /// The tags of `?tag=`; they count only beside a digest.
    pub tags: Vec<Tag>,
    /// What must hold of every tag.
    pub condition: Option<Condition>,
}
