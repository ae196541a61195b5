//! What may be read from the agreed state (pure). CONTRACT: bodies to be written.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::oci::{Algorithm, Digest, HashState, MediaType, RepositoryName, Tag, UploadId};
use crate::topology::NodeId;

use super::State;
use super::command::{HeldExtent, LogTime, ManifestReference};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestRecord {
    pub media_type: MediaType,
    pub size: u64,
    pub references: Vec<ManifestReference>,
    pub subject: Option<Digest>,
    pub artifact_type: Option<String>,
    pub annotations: BTreeMap<String, String>,
    pub at: LogTime,
    pub wall_seconds: u64,
    pub principal: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagRecord {
    pub digest: Digest,
    pub index: u64,
    pub at: LogTime,
    pub wall_seconds: u64,
    pub principal: Arc<str>,
}

/// What a tag was before: a digest, or nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagEvent {
    /// The manifest it pointed at; `None` if it was deleted then.
    pub digest: Option<Digest>,
    /// The log index of the change.
    pub index: u64,
    /// When.
    pub at: LogTime,
    /// When, by the proposer's wall clock, in seconds since 1970.
    pub wall_seconds: u64,
    /// Who.
    pub principal: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upload {
    pub repository: RepositoryName,
    pub algorithm: Algorithm,
    pub hash_state: HashState,
    pub length: u64,
    #[serde(skip)]
    pub extents: Vec<HeldExtent>,
    pub holders: Vec<NodeId>,
    pub principal: Arc<str>,
    pub ttl_ms: u64,
    pub expires: LogTime,
    pub closed: Option<Digest>,
}

#[derive(Debug, Clone)]
pub struct Referrer {
    pub digest: Digest,
    pub media_type: MediaType,
    pub size: u64,
    pub artifact_type: Option<String>,
    pub annotations: BTreeMap<String, String>,
}

/// Content that some repository links: a blob, or a manifest's body (wanted on every node).
#[derive(Debug, Clone)]
pub struct Content {
    pub digest: Digest,
    pub size: u64,
    pub body: bool,
}

impl State {
    pub fn log_time(&self) -> LogTime {
        todo!()
    }
    pub fn is_open(&self) -> bool {
        todo!()
    }
    pub fn repository_exists(&self, repository: &RepositoryName) -> bool {
        let _ = repository;
        todo!()
    }
    /// Size of a blob the repository links.
    pub fn blob(&self, repository: &RepositoryName, digest: &Digest) -> Option<u64> {
        let _ = (repository, digest);
        todo!()
    }
    /// Repositories that link a blob, sorted (mount without `from`).
    pub fn blob_repositories(&self, digest: &Digest) -> Vec<RepositoryName> {
        let _ = digest;
        todo!()
    }
    pub fn manifest(&self, repository: &RepositoryName, digest: &Digest) -> Option<&ManifestRecord> {
        let _ = (repository, digest);
        todo!()
    }
    pub fn tag(&self, repository: &RepositoryName, tag: &Tag) -> Option<&TagRecord> {
        let _ = (repository, tag);
        todo!()
    }
    /// Tags after `after` in byte order (the text need not be a valid or existing tag), at most `limit`.
    pub fn tags(&self, repository: &RepositoryName, after: Option<&str>, limit: usize) -> Vec<Tag> {
        let _ = (repository, after, limit);
        todo!()
    }
    pub fn repositories(&self, after: Option<&str>, limit: usize) -> Vec<RepositoryName> {
        let _ = (after, limit);
        todo!()
    }
    /// Manifests whose subject is `subject`, by digest order, after `after`.
    pub fn referrers(&self, repository: &RepositoryName, subject: &Digest, after: Option<&Digest>) -> Vec<Referrer> {
        let _ = (repository, subject, after);
        todo!()
    }
    pub fn upload(&self, repository: &RepositoryName, id: UploadId) -> Option<&Upload> {
        let _ = (repository, id);
        todo!()
    }
    /// Whether an open or closed session lists this extent (P24).
    pub fn extent_is_listed(&self, id: crate::oci::ExtentId) -> bool {
        let _ = id;
        todo!()
    }
    /// Whether anything links the digest, with its size (P20).
    pub fn content(&self, digest: &Digest) -> Option<Content> {
        let _ = digest;
        todo!()
    }
    /// All linked content in digest order, from `after`, at most `limit` (catch-up).
    pub fn contents(&self, after: Option<&Digest>, limit: usize) -> Vec<Content> {
        let _ = (after, limit);
        todo!()
    }
    /// Content first linked at a log index in (after, until], for event-driven catch-up; `None` if no longer known.
    pub fn contents_since(&self, after: u64) -> Option<Vec<Content>> {
        let _ = after;
        todo!()
    }
}
