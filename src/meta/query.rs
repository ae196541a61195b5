//! What may be read from the agreed state (pure).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::oci::{Algorithm, Digest, ExtentId, HashState, MediaType, RepositoryName, Tag, UploadId};
use crate::topology::NodeId;

use super::command::{HeldExtent, LogTime, ManifestReference, ReferenceKind};
use super::plan::{Plan, TokenHash, TokenRow};
use super::state::{ContentEntry, Repository, State};
use super::tables::NodeRow;

/// What a stored manifest points at; as [`ManifestReference`], but the digest is shared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredReference {
    /// What it is.
    pub digest: Arc<Digest>,
    /// The length the manifest states, in bytes.
    pub size: u64,
    /// What it is for.
    pub kind: ReferenceKind,
    /// False for non-distributable layers, which are not demanded.
    pub required: bool,
}

impl From<&ManifestReference> for StoredReference {
    fn from(reference: &ManifestReference) -> Self {
        Self {
            digest: Arc::new(reference.digest.clone()),
            size: reference.size,
            kind: reference.kind,
            required: reference.required,
        }
    }
}

/// A manifest of a repository; its body is content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestRecord {
    /// What it is served as.
    pub media_type: MediaType,
    /// The length of its body in bytes.
    pub size: u64,
    /// What it names, in its own order.
    pub references: Box<[StoredReference]>,
    /// What it refers to, softly: the subject need not be there.
    pub subject: Option<Arc<Digest>>,
    /// As the referrers API shows it.
    pub artifact_type: Option<Arc<str>>,
    /// As the referrers API shows them; empty without a subject.
    pub annotations: BTreeMap<String, String>,
    /// When it was first put.
    pub at: LogTime,
    /// When, by the proposer's wall clock, in seconds since 1970.
    pub wall_seconds: u64,
    /// Who put it first.
    pub principal: Arc<str>,
}

/// What a tag points at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagRecord {
    /// The manifest.
    pub digest: Digest,
    /// The log index of the last write.
    pub index: u64,
    /// When.
    pub at: LogTime,
    /// When, by the proposer's wall clock, in seconds since 1970.
    pub wall_seconds: u64,
    /// Who.
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
    /// Who; empty for a deletion.
    pub principal: Arc<str>,
}

/// An upload session, open or closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upload {
    /// Where the blob will be linked.
    pub repository: RepositoryName,
    /// What the bytes are hashed with (P26).
    pub algorithm: Algorithm,
    /// The running hash over the first `length` bytes.
    pub hash_state: HashState,
    /// The bytes so far; of a closed session the size of the blob.
    pub length: u64,
    /// The extents in order, without gaps, none empty. A closed session lists none: their files may go.
    #[serde(skip)]
    pub extents: Vec<HeldExtent>,
    /// The nodes its bytes go to (P25).
    pub holders: Vec<NodeId>,
    /// Who opened it.
    pub principal: Arc<str>,
    /// How long it lives after each use, in milliseconds of log time.
    pub ttl_ms: u64,
    /// When it ends unless used before.
    pub expires: LogTime,
    /// The blob it became; kept until expiry so that a repeated `PUT` is answered alike (P27).
    pub closed: Option<Digest>,
}

/// A manifest that refers to another, as the referrers API shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Referrer {
    /// The referring manifest.
    pub digest: Digest,
    /// What it is served as.
    pub media_type: MediaType,
    /// The length of its body in bytes.
    pub size: u64,
    /// Its `artifactType`, else its config's media type.
    pub artifact_type: Option<String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

/// Content that some repository links: a blob, or a manifest's body (wanted on every node).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// The digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Whether some repository holds it as a manifest.
    pub body: bool,
    /// How many links there are: repositories that link it as a blob, and repositories that hold it as a manifest.
    pub links: u32,
    /// The log index at which it was first linked, or became a body if that is later.
    pub index: u64,
}

impl ContentEntry {
    fn to_content(&self, digest: &Digest) -> Content {
        Content {
            digest: digest.clone(),
            size: self.row.size,
            body: self.manifests > 0,
            links: self.blobs + self.manifests,
            index: self.row.index,
        }
    }
}

/// The cluster.
impl State {
    /// Returns the log time of the last command (P7).
    #[must_use]
    pub fn log_time(&self) -> LogTime {
        self.head.log_time
    }

    /// Says whether the registry takes writes: false until the expected first nodes are there.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.head.open
    }

    /// Returns how many nodes were to form the cluster.
    #[must_use]
    pub fn nodes_expected(&self) -> u32 {
        self.head.nodes_expected
    }

    /// Returns the id the next node will get: a lower one that names no node was removed.
    #[must_use]
    pub fn next_node(&self) -> NodeId {
        NodeId(self.head.next_node)
    }

    /// Returns what operators have decided about members.
    #[must_use]
    pub fn plan(&self) -> Arc<Plan> {
        Arc::clone(&self.plan)
    }

    /// Goes through the join tokens, the expired ones too.
    pub fn tokens(&self) -> impl Iterator<Item = (&TokenHash, &TokenRow)> {
        self.tokens.iter()
    }

    /// Goes through the nodes by id, with what the topology leaves out.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeRow> {
        self.nodes.iter().map(|(_, row)| &**row)
    }

    /// Returns a node.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&NodeRow> {
        self.nodes.get(&id).map(|row| &**row)
    }
}

/// Repositories.
impl State {
    /// Says whether a repository exists: it does while it links a blob or holds a manifest.
    #[must_use]
    pub fn repository_exists(&self, repository: &RepositoryName) -> bool {
        self.repositories.contains(repository)
    }

    /// Lists repositories after `after` in byte order (the text need not be a valid or existing name), at most `limit`.
    #[must_use]
    pub fn repositories(&self, after: Option<&str>, limit: usize) -> Vec<RepositoryName> {
        let before = |name: &RepositoryName| after.is_some_and(|after| name.as_str() <= after);
        self.repositories.iter_after(before).take(limit).map(|(name, _)| name.clone()).collect()
    }

    /// Returns the size of a blob that the repository links.
    #[must_use]
    pub fn blob(&self, repository: &RepositoryName, digest: &Digest) -> Option<u64> {
        Some(self.repositories.get(repository)?.blobs.get(digest)?.size)
    }

    /// Lists the repositories that link a blob, sorted (mount without `from`).
    #[must_use]
    pub fn blob_repositories(&self, digest: &Digest) -> Vec<RepositoryName> {
        self.repositories_with_blob(digest).cloned().collect()
    }

    /// Goes through the repositories that link a blob, sorted; a popular base layer has very many.
    pub fn repositories_with_blob<'a>(&'a self, digest: &'a Digest) -> impl Iterator<Item = &'a RepositoryName> {
        self.blob_repositories
            .iter_after(move |(other, _)| **other < *digest)
            .take_while(move |((other, _), ())| **other == *digest)
            .map(|((_, name), ())| name)
    }

    /// Returns a manifest of a repository.
    #[must_use]
    pub fn manifest(&self, repository: &RepositoryName, digest: &Digest) -> Option<&ManifestRecord> {
        self.repositories.get(repository)?.manifests.get(digest).map(|record| &**record)
    }

    /// Returns what a tag points at.
    #[must_use]
    pub fn tag(&self, repository: &RepositoryName, tag: &Tag) -> Option<&TagRecord> {
        self.repositories.get(repository)?.tags.get(tag).map(|record| &**record)
    }

    /// Lists tags after `after` in byte order (the text need not be a valid or existing tag), at most `limit`.
    #[must_use]
    pub fn tags(&self, repository: &RepositoryName, after: Option<&str>, limit: usize) -> Vec<Tag> {
        let Some(repository) = self.repositories.get(repository) else { return Vec::new() };
        let before = |tag: &Tag| after.is_some_and(|after| tag.as_str() <= after);
        repository.tags.iter_after(before).take(limit).map(|(tag, _)| tag.clone()).collect()
    }

    /// Returns what a tag was before, oldest first; the tag may be gone.
    ///
    /// Bounded: the last 100 changes of a tag, and of deleted tags the last 1000 of a repository.
    #[must_use]
    pub fn tag_history(&self, repository: &RepositoryName, tag: &Tag) -> Vec<Arc<TagEvent>> {
        let repository = self.repositories.get(repository);
        repository.and_then(|repository| repository.history.get(tag)).map(|events| events.to_vec()).unwrap_or_default()
    }

    /// Goes through the manifests whose subject is `subject`, in digest order, after `after`.
    pub fn referrers<'a>(
        &'a self,
        repository: &RepositoryName,
        subject: &'a Digest,
        after: Option<&'a Digest>,
    ) -> impl Iterator<Item = Referrer> + use<'a> {
        let repository: Option<&'a Repository> = self.repositories.get(repository);
        repository.into_iter().flat_map(move |repository| {
            let before = move |(other, by): &(Arc<Digest>, Arc<Digest>)| match (**other).cmp(subject) {
                std::cmp::Ordering::Equal => after.is_some_and(|after| **by <= *after),
                order => order.is_lt(),
            };
            let of_subject = repository.referrers.iter_after(before).map(|(row, ())| row);
            of_subject.take_while(move |(other, _)| **other == *subject).filter_map(|(_, by)| {
                let record = repository.manifests.get(&**by)?;
                Some(Referrer {
                    digest: Digest::clone(by),
                    media_type: record.media_type.clone(),
                    size: record.size,
                    artifact_type: record.artifact_type.as_deref().map(str::to_owned),
                    annotations: record.annotations.clone(),
                })
            })
        })
    }

    /// Returns a manifest of the repository that names `digest` (P29), as a manifest or as a blob.
    #[must_use]
    pub fn named_by(&self, repository: &RepositoryName, digest: &Digest, as_manifest: bool) -> Option<&Digest> {
        self.repositories.get(repository)?.named_by(digest, as_manifest)
    }
}

/// Upload sessions.
impl State {
    /// Returns an upload session of a repository; another repository's is as unknown as none.
    #[must_use]
    pub fn upload(&self, repository: &RepositoryName, id: UploadId) -> Option<&Upload> {
        self.uploads.get(&id).map(|upload| &**upload).filter(|upload| upload.repository == *repository)
    }

    /// Goes through all sessions, open and closed.
    pub fn uploads(&self) -> impl Iterator<Item = (UploadId, &Upload)> {
        self.uploads.iter().map(|(id, upload)| (*id, &**upload))
    }

    /// Lists sessions that have expired at `time`, longest first, at most `limit`: what `ExpireUploads` may name.
    #[must_use]
    pub fn expired_uploads(&self, time: LogTime, limit: usize) -> Vec<UploadId> {
        let expired = self.uploads_by_expiry.keys().take_while(|(expires, _)| *expires <= time);
        expired.take(limit).map(|(_, id)| *id).collect()
    }

    /// Says whether an open session lists this extent (P24).
    #[must_use]
    pub fn extent_is_listed(&self, id: ExtentId) -> bool {
        self.extents.contains(&id)
    }
}

/// Content.
impl State {
    /// Returns what is linked under a digest, with its size (P20), if anything links it.
    #[must_use]
    pub fn content(&self, digest: &Digest) -> Option<Content> {
        self.contents.get(digest).map(|entry| entry.to_content(digest))
    }

    /// Lists linked content in digest order, after `after`, at most `limit` (catch-up).
    #[must_use]
    pub fn contents(&self, after: Option<&Digest>, limit: usize) -> Vec<Content> {
        let entries = self.contents.iter_after(|digest| after.is_some_and(|after| **digest <= *after));
        entries.take(limit).map(|(digest, entry)| entry.to_content(digest)).collect()
    }

    /// Counts linked content.
    #[must_use]
    pub fn contents_len(&self) -> usize {
        self.contents.len()
    }

    /// Lists content first linked (or first a manifest's body) at a log index above `after` and still linked, by index.
    ///
    /// Never `None`: the state knows the index of everything that is linked.
    #[must_use]
    pub fn contents_since(&self, after: u64) -> Option<Vec<Content>> {
        let rows = self.content_order.iter_after(|(index, _)| *index <= after);
        Some(rows.filter_map(|((_, digest), ())| self.content(digest)).collect())
    }
}
