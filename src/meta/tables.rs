//! Every table of the agreed state, drawn with the record that carries one row of it through snapshots and the hash.
//!
//! Primary tables are what a snapshot holds and the state hash covers; the number is the record's variant in [`Record`]
//! and never changes its meaning. Derived tables are rebuilt from them, row by row, wherever rows are put.
//!
//! ```text
//! no  record       table                               key                      row
//!  0  Head         head                                (one row)                cluster, openness, feature level, log time,
//!                                                                               counters
//!  1  Node         nodes                               node id                  record, key fingerprint, feature level
//!  2  Content      contents                            digest                   size, log index at which it began to count
//!  3  Repository   repositories                        name                     log index of its birth, whether ever sparse
//!  4  Blob         repositories[name].blobs            digest                   size, log time of the link
//!  5  Manifest     repositories[name].manifests        digest                   media type, size, references, subject, …
//!  6  Tag          repositories[name].tags             tag                      digest, log index, times, principal
//!  7  TagEvent     repositories[name].history          tag, log index           digest it had, or none: it was deleted
//!  8  Upload       uploads                             session id               repository, length, hash state, holders, …
//!  9  Extent       uploads[id].extents                 session id, offset       extent id, length, holders
//! 10  Outcome      outcomes                            request id               response, log time until which it is kept
//! 11  Plan         plan                                (one row, or none)       what operators decided about members
//! 12  Token        tokens                              SHA-256 of the token     expiry, who used it
//! 13  Lease        repositories[name].leases           digest of a manifest     log time of its last use, whether orphaned
//! 14  Policy       policy                              (one row, or none)       copies in all and per region
//! 15  UploadEnd    repositories[name].upload_end       (one row, or none)       log time at which an upload last ended, its
//!                                                                               time to live
//!
//! derived: contents[].blobs, .manifests      how many repositories link it as a blob, hold it as a manifest
//!          content_order                     (log index, digest) of every content: what began to count since an index
//!          blob_repositories                 (digest, repository) of every blob link
//!          repositories[].tags_of            (digest, tag) of every tag
//!          repositories[].referrers          (subject, manifest)
//!          repositories[].named_blobs        (digest, by manifest) of every reference to a blob
//!          repositories[].named_manifests    (digest, by manifest) of every reference to a manifest
//!          repositories[].deleted_tags       (log index of the deletion, tag) of tags of which only history is left
//!          uploads_by_expiry                 (expiry, session)
//!          uploads_of                        principal -> open sessions
//!          uploads_in                        (repository, time to live, longest first, session) of every open session
//!          extents                           extent id -> session, of open sessions
//!          outcomes_by_time                  (kept until, request id)
//!          topology                          nodes and policy as placement sees them
//! ```

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::oci::{Digest, RepositoryName, Tag, UploadId};
use crate::topology::{ClusterId, NodeId, NodeRecord, Policy};

use super::command::{HeldExtent, LogTime, RequestId, Response};
use super::plan::{Plan, TokenHash, TokenRow};
use super::query::{ManifestRecord, TagEvent, TagRecord, Upload};

/// The one row of what belongs to no table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The cluster, once formed.
    pub cluster: Option<ClusterId>,
    /// How many nodes were to form it.
    pub nodes_expected: u32,
    /// Whether the registry takes writes.
    pub open: bool,
    /// The agreed feature level (P8).
    pub feature_level: u32,
    /// The id the next node gets; never lowered (P10).
    pub next_node: u64,
    /// The log time of the last command (P7).
    pub log_time: LogTime,
    /// The log index of the membership in force (P18).
    pub membership_index: u64,
    /// The log index that last changed the nodes or the policy.
    pub topology_index: u64,
}

/// What is agreed about one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRow {
    /// What placement and peers need.
    pub record: NodeRecord,
    /// The SHA-256 of the key it joined with (P10).
    pub key_fingerprint: [u8; 32],
    /// The highest level its binary knows (P8).
    pub feature_level: u32,
}

/// What is agreed about content that some repository links.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentRow {
    /// Its length in bytes.
    pub size: u64,
    /// The log index at which it was first linked, or became a manifest body if that is later.
    pub index: u64,
}

/// What is agreed about a repository as such.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryRow {
    /// The log index at which it came to be.
    pub index: u64,
    /// Whether a command with `sparse` was ever accepted: then references may point at what is not there.
    pub sparse: bool,
}

/// The link that lets a repository serve a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobLink {
    /// The blob's length in bytes.
    pub size: u64,
    /// When it was linked, or its lease began anew (P23).
    pub at: LogTime,
}

/// What a manifest that nothing names lives by, besides the time at which it was first put (P23).
///
/// There is none for most manifests: it comes with the first thing that would renew it, at feature level 2 or above.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestLease {
    /// When it was last put again or asked for, or last lost a tag, an index that named it, or its subject.
    pub at: LogTime,
    /// Whether its subject was here and went: one whose subject never was here may still get it.
    pub orphaned: bool,
}

/// When an upload to a repository last ended, by whatever: what else the repository links is spared for a lease more (P23).
///
/// There is none before feature level 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadEnd {
    /// When its session was committed or cancelled, or expired.
    pub at: LogTime,
    /// How long after its own lease began a link may be spared because of that, in milliseconds of log time.
    pub ttl_ms: u64,
}

/// A remembered answer (P4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutcomeRow {
    /// What `apply` said the first time.
    pub response: Response,
    /// The log time after which no copy of the command can be applied any more.
    pub keep_until: LogTime,
}

/// One row of one table: what snapshots are made of and the state hash is summed over.
///
/// A variant's position is its number in the drawing above; new ones go to the end. Snapshots carry them in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// 0: the row of what belongs to no table.
    Head(Head),
    /// 1: a node.
    Node(NodeRow),
    /// 2: content that is linked somewhere.
    Content(Digest, ContentRow),
    /// 3: a repository.
    Repository(RepositoryName, RepositoryRow),
    /// 4: a blob link.
    Blob(RepositoryName, Digest, BlobLink),
    /// 5: a manifest.
    Manifest(RepositoryName, Digest, Arc<ManifestRecord>),
    /// 6: a tag.
    Tag(RepositoryName, Tag, Arc<TagRecord>),
    /// 7: something a tag was before.
    TagEvent(RepositoryName, Tag, Arc<TagEvent>),
    /// 8: an upload session; its extents follow as records of their own.
    Upload(UploadId, Arc<Upload>),
    /// 9: an extent of an upload session.
    Extent(UploadId, HeldExtent),
    /// 10: a remembered answer.
    Outcome(RequestId, Arc<OutcomeRow>),
    /// 11: what operators decided about members; absent while that is nothing.
    Plan(Plan),
    /// 12: a join token.
    Token(TokenHash, TokenRow),
    /// 13: what a manifest that nothing names lives by.
    Lease(RepositoryName, Digest, ManifestLease),
    /// 14: how many copies there should be.
    Policy(Policy),
    /// 15: when an upload to a repository last ended.
    UploadEnd(RepositoryName, UploadEnd),
}

impl Record {
    /// Returns the number of the record's kind, as drawn above.
    #[must_use]
    pub const fn number(&self) -> u8 {
        match self {
            Self::Head(_) => 0,
            Self::Node(_) => 1,
            Self::Content(..) => 2,
            Self::Repository(..) => 3,
            Self::Blob(..) => 4,
            Self::Manifest(..) => 5,
            Self::Tag(..) => 6,
            Self::TagEvent(..) => 7,
            Self::Upload(..) => 8,
            Self::Extent(..) => 9,
            Self::Outcome(..) => 10,
            Self::Plan(_) => 11,
            Self::Token(..) => 12,
            Self::Lease(..) => 13,
            Self::Policy(_) => 14,
            Self::UploadEnd(..) => 15,
        }
    }
}

impl Default for Head {
    fn default() -> Self {
        Self {
            cluster: None,
            nodes_expected: 0,
            open: false,
            feature_level: 1,
            next_node: 1,
            log_time: LogTime(0),
            membership_index: 0,
            topology_index: 0,
        }
    }
}

impl NodeRow {
    /// Returns the node's id.
    #[must_use]
    pub const fn id(&self) -> NodeId {
        self.record.id
    }
}
