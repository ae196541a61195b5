//! What may be proposed to the agreed state, and what comes back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::oci::{Algorithm, Digest, ExtentId, HashState, MediaType, RepositoryName, Tag, UploadId};
use crate::topology::{ClusterId, NodeId, NodeState, Policy, Region, Zone};

use super::plan::{PlanChange, TokenHash, TokenJoin};

/// Milliseconds of log time: what the leaders' stamps add up to; no wall clock (P7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash, Serialize, Deserialize)]
pub struct LogTime(pub u64);

/// Identifies one attempt of a client to change something, however often it is sent (P4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId(pub u128);

/// A command as it lies in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// Drawn once per attempt of a client; the same in every copy that is sent.
    pub id: RequestId,
    /// The proposer's log time when it made the command; older than 60 s at apply is refused as expired.
    pub issued: LogTime,
    /// The leader's stamp (P7).
    pub at: LogTime,
    /// Wall-clock seconds since 1970 at the proposer, for display only.
    pub wall_seconds: u64,
    /// What to do.
    pub command: Command,
}

/// A run of an upload session's bytes that lies synced on some nodes (P24).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldExtent {
    /// Names its file.
    pub id: ExtentId,
    /// Where it begins, in bytes from the start of the blob.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
    /// The nodes that hold it.
    pub holders: Vec<NodeId>,
}

/// What a manifest takes a reference for; a link of the same kind is demanded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReferenceKind {
    /// An image's config: a blob.
    Config,
    /// A layer, or an index entry that is no manifest: a blob.
    Layer,
    /// A child of an index.
    Manifest,
}

/// What a manifest points at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestReference {
    /// What it is.
    pub digest: Digest,
    /// The length the manifest states, in bytes.
    pub size: u64,
    /// What it is for.
    pub kind: ReferenceKind,
    /// False for non-distributable layers, which are not demanded.
    pub required: bool,
}

/// A condition on the tags a manifest is put under (I3); without tags, on the manifest itself.
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

/// A manifest to store, whose body a majority of the voters has (P18).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutManifest {
    /// Where.
    pub repository: RepositoryName,
    /// The digest of the body.
    pub digest: Digest,
    /// What it is served as.
    pub media_type: MediaType,
    /// The length of the body in bytes.
    pub size: u64,
    /// What it names, in its own order.
    pub references: Vec<ManifestReference>,
    /// What it refers to; need not be there.
    pub subject: Option<Digest>,
    /// As the referrers API shows it: the manifest's `artifactType`, else its config's media type.
    pub artifact_type: Option<String>,
    /// Kept only for manifests with a subject.
    pub annotations: BTreeMap<String, String>,
    /// The tags to set, all or none.
    pub tags: Vec<Tag>,
    /// What must hold for each of them.
    pub condition: Option<Condition>,
    /// Log index of the membership whose majority holds the body (P18).
    pub membership_index: u64,
    /// Whether missing references are accepted (repository policy).
    pub sparse: bool,
    /// Who puts it.
    pub principal: String,
}

/// What may be proposed.
///
/// A variant's position and fields are its form in the log: new variants go to the end, and only above the feature level
/// that knows them (P8).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// The first command of a cluster.
    FormCluster {
        /// Drawn at bootstrap.
        cluster: ClusterId,
        /// How many nodes are to be there before the registry opens.
        nodes_expected: u32,
    },
    /// Said once when the expected first nodes are voters; before it the registry takes no writes.
    OpenRegistry,
    /// Opens an upload session.
    OpenUpload {
        /// Drawn by the proposer.
        session: UploadId,
        /// Where the blob will be linked.
        repository: RepositoryName,
        /// What its bytes are hashed with.
        algorithm: Algorithm,
        /// Where its bytes go (P25).
        holders: Vec<NodeId>,
        /// Who opens it.
        principal: String,
        /// How long it lives after each use, in milliseconds of log time.
        ttl_ms: u64,
        /// How many open sessions a principal may have.
        sessions_max: u32,
    },
    /// Adds bytes at the end of a session (P24).
    AppendExtent {
        /// Which.
        session: UploadId,
        /// Its repository.
        repository: RepositoryName,
        /// The bytes.
        extent: HeldExtent,
        /// The running hash behind the extent.
        hash_state: HashState,
    },
    /// Sends a session's further bytes elsewhere (P25).
    ReplaceHolders {
        /// Which.
        session: UploadId,
        /// The new ones, all of them.
        holders: Vec<NodeId>,
    },
    /// Appends the last extent if there is one, links the blob and closes the session (P27).
    CommitUpload {
        /// Which.
        session: UploadId,
        /// Its repository.
        repository: RepositoryName,
        /// The last bytes.
        last: Option<HeldExtent>,
        /// The digest of the whole.
        digest: Digest,
        /// The length of the whole in bytes.
        size: u64,
        /// Who commits it.
        principal: String,
    },
    /// Ends an open session without a blob.
    CancelUpload {
        /// Which.
        session: UploadId,
        /// Its repository.
        repository: RepositoryName,
    },
    /// Proposed by the leader; sessions that were used since are spared at apply.
    ExpireUploads {
        /// Which.
        sessions: Vec<UploadId>,
    },
    /// A blob pushed whole without a session.
    LinkBlob {
        /// Where.
        repository: RepositoryName,
        /// Its digest.
        digest: Digest,
        /// Its length in bytes.
        size: u64,
        /// Who pushed it.
        principal: String,
    },
    /// Links a blob of `from` in `repository`.
    MountBlob {
        /// Where it is linked now.
        from: RepositoryName,
        /// Where it is to be linked, too.
        repository: RepositoryName,
        /// Its digest.
        digest: Digest,
        /// Who mounts it.
        principal: String,
    },
    /// Takes a blob out of a repository, unless a manifest there names it (P29).
    UnlinkBlob {
        /// Where.
        repository: RepositoryName,
        /// Its digest.
        digest: Digest,
        /// Whether it may go although it is named.
        sparse: bool,
    },
    /// Stores a manifest and sets its tags.
    PutManifest(Box<PutManifest>),
    /// Deletes a manifest with its tags, unless another manifest of the repository names it (P29).
    DeleteManifest {
        /// Where.
        repository: RepositoryName,
        /// Its digest.
        digest: Digest,
        /// Whether it may go although it is named.
        sparse: bool,
    },
    /// Deletes a tag; its manifest stays.
    DeleteTag {
        /// Where.
        repository: RepositoryName,
        /// Which.
        tag: Tag,
        /// What must hold for it.
        condition: Option<Condition>,
    },
    /// Joins a node; the same `key_fingerprint` again gets the same id (P10).
    AddNode {
        /// The operator's name for it.
        name: String,
        /// Its failure domain.
        zone: Zone,
        /// Its region.
        region: Region,
        /// Where other nodes reach it: `host:port`.
        rpc_address: String,
        /// Where clients reach it: a URL.
        api_url: String,
        /// Its share of the bytes relative to others.
        weight: u32,
        /// The SHA-256 of its public key.
        key_fingerprint: [u8; 32],
    },
    /// A node's own news of itself (P11).
    UpdateNode {
        /// Which.
        node: NodeId,
        /// Its failure domain.
        zone: Zone,
        /// Its region.
        region: Region,
        /// Where other nodes reach it: `host:port`.
        rpc_address: String,
        /// Where clients reach it: a URL.
        api_url: String,
        /// Its share of the bytes relative to others.
        weight: u32,
        /// The highest feature level its binary knows (P8).
        feature_level: u32,
    },
    /// Marks a node in, out or decommissioned (P13).
    SetNodeState {
        /// Which.
        node: NodeId,
        /// How it counts from now on.
        state: NodeState,
    },
    /// Takes a node out of the table for good; its id is never used again.
    RemoveNode {
        /// Which.
        node: NodeId,
    },
    /// Raises the agreed feature level, if every node knows the new one (P8); irrevocable.
    RaiseFeatureLevel {
        /// The new level.
        level: u32,
    },
    /// Changes what operators have decided about members. From level 2 on.
    ChangePlan(PlanChange),
    /// Makes a token by which one node may join. From level 2 on.
    CreateToken {
        /// The SHA-256 of the token.
        token: TokenHash,
        /// How long it is good for, in milliseconds of log time.
        ttl_ms: u64,
        /// Whoever joins by it never votes, unless an operator says so later.
        learner: bool,
    },
    /// Takes a token back, used or not. From level 2 on.
    RevokeToken {
        /// The SHA-256 of the token.
        token: TokenHash,
    },
    /// Joins a node by a token (P10). From level 2 on.
    JoinByToken(Box<TokenJoin>),
    /// Begins the leases of links anew that a client was told of (P23); what is gone meanwhile stays gone. Level 2.
    RenewLeases {
        /// Blobs or manifests, each with the repository that links it.
        links: Vec<(RepositoryName, Digest)>,
    },
    /// Takes links out that nothing names and whose time is over; each is judged again where it is applied, so that what was
    /// pushed, mounted, named or renewed before it stays (P23). Level 2.
    Collect {
        /// Where.
        repository: RepositoryName,
        /// Blobs of it.
        blobs: Vec<Digest>,
        /// Manifests of it.
        manifests: Vec<Digest>,
        /// What is to be spared: the proposer's, so the same wherever it is applied.
        rules: CollectionRules,
    },
    /// Says how many copies of each blob there should be. From level 2 on.
    SetPolicy {
        /// From now on.
        policy: Policy,
        /// Only if nothing is agreed yet: the leader's proposal must not undo an operator's.
        first: bool,
    },
}

impl Command {
    /// Returns the feature level from which on every member can read the command (P8).
    #[must_use]
    pub const fn feature_level(&self) -> u32 {
        match self {
            Self::ChangePlan(_) | Self::CreateToken { .. } | Self::RevokeToken { .. } | Self::JoinByToken(_) => 2,
            Self::RenewLeases { .. } | Self::Collect { .. } | Self::SetPolicy { .. } => 2,
            _ => 1,
        }
    }
}

/// How long what nothing names is spared (P23).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectionRules {
    /// How long a blob link lives after it was made, renewed or last named, in milliseconds of log time.
    pub lease_ms: u64,
    /// How long a manifest lives that nothing has named for so long, in milliseconds of log time; `None`: for ever.
    pub untagged_ms: Option<u64>,
}

/// What `apply` answers; replicated and deterministic, remembered for retries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// It is so, whether now or before.
    Done,
    /// The extent is part of the session.
    Appended {
        /// The session's length after the append (also when the same extent was appended before).
        length: u64,
    },
    /// The blob is linked.
    Committed {
        /// Its digest.
        digest: Digest,
        /// Its length in bytes.
        size: u64,
    },
    /// The blob is linked here as it is there.
    Mounted {
        /// Its length in bytes.
        size: u64,
    },
    /// The manifest is stored and its tags are set.
    ManifestStored {
        /// Its digest.
        digest: Digest,
        /// Whether the repository did not have it before.
        created: bool,
    },
    /// The node has an id.
    NodeAdded {
        /// The id, new or given out before to the same key.
        node: NodeId,
    },
    /// Nothing was done.
    Rejected(Rejection),
    /// The collection took what was still to be taken.
    Collected {
        /// Blob links that went.
        blobs: u32,
        /// Manifests that went.
        manifests: u32,
        /// Bytes of content that nothing links any more because of it.
        bytes: u64,
    },
}

/// Why `apply` did nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rejection {
    /// Older than commands may live; nothing was done. Not remembered.
    Expired,
    /// The table of remembered outcomes is full: try later. Not remembered.
    Busy,
    /// The cluster has not formed yet.
    NotOpen,
    /// Nothing is linked there.
    RepositoryUnknown,
    /// No such session in that repository, or it is closed and there is nothing to cancel.
    UploadUnknown,
    /// The session stands elsewhere than the command says.
    OffsetMismatch {
        /// The session's length in bytes.
        length: u64,
    },
    /// The session was closed, with another digest if this is a commit.
    UploadClosed,
    /// The principal has as many open sessions as it may have.
    TooManyUploads {
        /// How many.
        max: u32,
    },
    /// The session has as many extents as a session may have: it must be finished with one `PUT` or begun anew.
    TooManyExtents {
        /// How many.
        max: u32,
    },
    /// The repository lacks content.
    BlobUnknown {
        /// What is missing, all of it.
        digests: Vec<Digest>,
    },
    /// Agreed content has another size.
    SizeMismatch {
        /// What.
        digest: Digest,
        /// The agreed size in bytes.
        expected: u64,
        /// What the command says.
        actual: u64,
    },
    /// No such manifest in that repository.
    ManifestUnknown,
    /// No such tag in that repository.
    TagUnknown,
    /// The condition does not hold (412).
    ConditionFailed {
        /// What the first tag that fails it points at.
        current: Option<Digest>,
    },
    /// Deleting it would break a manifest of the repository.
    Referenced {
        /// The manifest.
        by: Digest,
    },
    /// The voters changed since the body was spread (P18): spread again.
    MembershipChanged,
    /// The cluster has formed with another id.
    ClusterMismatch,
    /// No such node.
    NodeUnknown,
    /// Another node that is *in* has the name.
    NameTaken,
    /// A node does not know the level: below the agreed one, or not all can follow.
    FeatureLevel {
        /// The agreed level.
        agreed: u32,
    },
    /// Somebody else changed the plan meanwhile: look again.
    PlanChanged,
    /// No such token.
    TokenUnknown,
    /// The token's time is over.
    TokenExpired,
    /// Another key has used the token.
    TokenUsed,
    /// The policy's numbers make no sense.
    PolicyInvalid,
}
