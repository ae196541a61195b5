//! What may be proposed to the agreed state, and what comes back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::oci::{Algorithm, Digest, ExtentId, HashState, MediaType, RepositoryName, Tag, UploadId};
use crate::topology::{ClusterId, NodeId, NodeState, Region, Zone};

/// Milliseconds of log time: what the leaders' stamps add up to; no wall clock (P7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash, Serialize, Deserialize)]
pub struct LogTime(pub u64);

/// Identifies one attempt of a client to change something, however often it is sent (P4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId(pub u128);

/// A command as it lies in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    pub id: RequestId,
    /// The proposer's log time when it made the command; older than 60 s at apply is refused as expired.
    pub issued: LogTime,
    /// The leader's stamp (P7).
    pub at: LogTime,
    /// Wall-clock seconds since 1970 at the proposer, for display only.
    pub wall_seconds: u64,
    pub command: Command,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldExtent {
    pub id: ExtentId,
    pub offset: u64,
    pub length: u64,
    pub holders: Vec<NodeId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReferenceKind {
    Config,
    Layer,
    Manifest,
}

/// What a manifest points at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestReference {
    pub digest: Digest,
    pub size: u64,
    pub kind: ReferenceKind,
    /// False for non-distributable layers, which are not demanded.
    pub required: bool,
}

/// A condition on the tags a manifest is put under (I3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// `If-Match: "<digest>"` (any of them).
    Is(Vec<Digest>),
    /// `If-Match: *`.
    Exists,
    /// `If-None-Match: *`.
    Absent,
    /// `If-None-Match: "<digest>"` (none of them).
    IsNot(Vec<Digest>),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutManifest {
    pub repository: RepositoryName,
    pub digest: Digest,
    pub media_type: MediaType,
    pub size: u64,
    pub references: Vec<ManifestReference>,
    pub subject: Option<Digest>,
    /// As the referrers API shows it: the manifest's `artifactType`, else its config's media type.
    pub artifact_type: Option<String>,
    /// Kept only for manifests with a subject.
    pub annotations: BTreeMap<String, String>,
    pub tags: Vec<Tag>,
    pub condition: Option<Condition>,
    /// Log index of the membership whose majority holds the body (P18).
    pub membership_index: u64,
    /// Whether missing references are accepted (repository policy).
    pub sparse: bool,
    pub principal: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// The first command of a cluster.
    FormCluster {
        cluster: ClusterId,
        nodes_expected: u32,
    },
    /// Said once when the expected first nodes are voters; before it the registry takes no writes.
    OpenRegistry,
    OpenUpload {
        session: UploadId,
        repository: RepositoryName,
        algorithm: Algorithm,
        holders: Vec<NodeId>,
        principal: String,
        ttl_ms: u64,
        sessions_max: u32,
    },
    AppendExtent {
        session: UploadId,
        repository: RepositoryName,
        extent: HeldExtent,
        hash_state: HashState,
    },
    ReplaceHolders {
        session: UploadId,
        holders: Vec<NodeId>,
    },
    /// Appends the last extent if there is one, links the blob and closes the session (P27).
    CommitUpload {
        session: UploadId,
        repository: RepositoryName,
        last: Option<HeldExtent>,
        digest: Digest,
        size: u64,
        principal: String,
    },
    CancelUpload {
        session: UploadId,
        repository: RepositoryName,
    },
    /// Proposed by the leader; sessions that were used since are spared at apply.
    ExpireUploads {
        sessions: Vec<UploadId>,
    },
    /// A blob pushed whole without a session.
    LinkBlob {
        repository: RepositoryName,
        digest: Digest,
        size: u64,
        principal: String,
    },
    /// Links a blob of `from` in `repository`.
    MountBlob {
        from: RepositoryName,
        repository: RepositoryName,
        digest: Digest,
        principal: String,
    },
    UnlinkBlob {
        repository: RepositoryName,
        digest: Digest,
        sparse: bool,
    },
    PutManifest(Box<PutManifest>),
    DeleteManifest {
        repository: RepositoryName,
        digest: Digest,
        sparse: bool,
    },
    DeleteTag {
        repository: RepositoryName,
        tag: Tag,
        condition: Option<Condition>,
    },
    /// Joins a node; the same `key_fingerprint` again gets the same id (P10).
    AddNode {
        name: String,
        zone: Zone,
        region: Region,
        rpc_address: String,
        api_url: String,
        weight: u32,
        key_fingerprint: [u8; 32],
    },
    /// A node's own news of itself (P11).
    UpdateNode {
        node: NodeId,
        zone: Zone,
        region: Region,
        rpc_address: String,
        api_url: String,
        weight: u32,
        feature_level: u32,
    },
    SetNodeState {
        node: NodeId,
        state: NodeState,
    },
    RemoveNode {
        node: NodeId,
    },
    RaiseFeatureLevel {
        level: u32,
    },
}

/// What `apply` answers; replicated and deterministic, remembered for retries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    Done,
    /// The session's length after the append (also when the same extent was appended before).
    Appended {
        length: u64,
    },
    Committed {
        digest: Digest,
        size: u64,
    },
    Mounted {
        size: u64,
    },
    ManifestStored {
        digest: Digest,
        created: bool,
    },
    NodeAdded {
        node: NodeId,
    },
    Rejected(Rejection),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rejection {
    /// Older than commands may live; nothing was done.
    Expired,
    /// The table of remembered outcomes is full: try later.
    Busy,
    /// The cluster has not formed yet.
    NotOpen,
    RepositoryUnknown,
    UploadUnknown,
    /// The session stands at `length`.
    OffsetMismatch {
        length: u64,
    },
    /// The session was closed with another digest.
    UploadClosed,
    TooManyUploads {
        max: u32,
    },
    /// The session has as many extents as a session may have: it must be finished with one `PUT` or begun anew.
    TooManyExtents {
        max: u32,
    },
    BlobUnknown {
        digests: Vec<Digest>,
    },
    SizeMismatch {
        digest: Digest,
        expected: u64,
        actual: u64,
    },
    ManifestUnknown,
    TagUnknown,
    ConditionFailed {
        current: Option<Digest>,
    },
    /// Deleting it would break `by`.
    Referenced {
        by: Digest,
    },
    /// The voters changed since the body was spread (P18): spread again.
    MembershipChanged,
    ClusterMismatch,
    NodeUnknown,
    NameTaken,
    FeatureLevel {
        agreed: u32,
    },
}
