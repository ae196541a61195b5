//! The agreed state: its tables, and what the raft side asks of it.

use std::cmp::Reverse;
use std::sync::Arc;

use crate::oci::{Digest, ExtentId, RepositoryName, Tag, UploadId};
use crate::topology::{ClusterId, NodeId, Policy, Topology};

use super::command::{LogTime, RequestId};
use super::plan::{Plan, TokenHash, TokenRow};
use super::query::{ManifestRecord, TagEvent, TagRecord, Upload};
use super::snapshot_codec::encode_record;
use super::sorted_map::{SortedMap, SortedSet};
use super::state_hash::HashSum;
use super::tables::{BlobLink, ContentRow, Head, ManifestLease, NodeRow, OutcomeRow, Record, RepositoryRow, UploadEnd};

/// The highest feature level that this binary knows; a state above it must not be applied (P8).
///
/// 1: the first. 2: agreed placement policy. 3: uploads keep what lies in their repository.
pub const FEATURE_LEVEL_MAX: u32 = 3;
/// The level from which on leases are kept up and links are collected (P23).
pub(super) const LEASES_LEVEL: u32 = 2;
/// The level from which on an upload keeps what else its repository links (P23), and what names a digest as another kind
/// than it is keeps its promise.
pub(super) const UPLOADS_LEVEL: u32 = 3;

/// The agreed state at one log index; cloning shares structure.
///
/// Most of a large state is digests, in some seven tables each, so the tables share them: a digest that is content is
/// allocated once. `tables.rs` draws the tables. Rows are put and removed only by the functions of `rows.rs`, which keep derived tables
/// and hash in step; `apply` decides which.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// The sum over all rows but the head, which changes with every command.
    pub(super) sum: HashSum,
    pub(super) head: Head,
    /// The log index last applied; not agreed state (entries without a command move it), so neither hashed nor kept.
    pub(super) applied: u64,
    pub(super) nodes: SortedMap<NodeId, Arc<NodeRow>>,
    pub(super) contents: SortedMap<Arc<Digest>, ContentEntry>,
    pub(super) repositories: SortedMap<RepositoryName, Repository>,
    pub(super) uploads: SortedMap<UploadId, Arc<Upload>>,
    pub(super) outcomes: SortedMap<RequestId, Arc<OutcomeRow>>,
    pub(super) plan: Arc<Plan>,
    pub(super) tokens: SortedMap<TokenHash, TokenRow>,
    pub(super) policy: Option<Policy>,

    pub(super) content_order: SortedSet<(u64, Arc<Digest>)>,
    pub(super) blob_repositories: SortedSet<(Arc<Digest>, RepositoryName)>,
    pub(super) uploads_by_expiry: SortedSet<(LogTime, UploadId)>,
    pub(super) uploads_of: SortedMap<Arc<str>, u32>,
    pub(super) uploads_in: SortedSet<(RepositoryName, Reverse<u64>, UploadId)>,
    pub(super) extents: SortedMap<ExtentId, UploadId>,
    pub(super) outcomes_by_time: SortedSet<(LogTime, RequestId)>,
    /// What the remembered answers weigh together, for the cap.
    pub(super) outcomes_weight: usize,
    pub(super) topology: Arc<Topology>,
}

/// A row of `contents` with its derived counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ContentEntry {
    pub(super) row: ContentRow,
    /// Repositories that link it as a blob.
    pub(super) blobs: u32,
    /// Repositories that hold it as a manifest.
    pub(super) manifests: u32,
}

/// A repository: its row and its tables.
#[derive(Debug, Clone)]
pub(super) struct Repository {
    pub(super) row: RepositoryRow,
    pub(super) upload_end: Option<UploadEnd>,
    pub(super) blobs: SortedMap<Arc<Digest>, BlobLink>,
    pub(super) manifests: SortedMap<Arc<Digest>, Arc<ManifestRecord>>,
    pub(super) leases: SortedMap<Arc<Digest>, ManifestLease>,
    pub(super) tags: SortedMap<Tag, Arc<TagRecord>>,
    /// Oldest first; without what the tag is now.
    pub(super) history: SortedMap<Tag, Arc<Vec<Arc<TagEvent>>>>,

    pub(super) tags_of: SortedSet<(Arc<Digest>, Tag)>,
    pub(super) referrers: SortedSet<(Arc<Digest>, Arc<Digest>)>,
    pub(super) named_blobs: SortedSet<Named>,
    pub(super) named_manifests: SortedSet<Named>,
    pub(super) deleted_tags: SortedSet<(u64, Tag)>,
}

/// That a manifest of the repository names a digest; ordered by what is named. The most frequent row of all, so what it is
/// named as is said by the table it lies in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Named {
    pub(super) digest: Arc<Digest>,
    pub(super) by: Arc<Digest>,
}

impl Repository {
    pub(super) fn new(row: RepositoryRow) -> Self {
        Self {
            row,
            upload_end: None,
            blobs: SortedMap::default(),
            manifests: SortedMap::default(),
            leases: SortedMap::default(),
            tags: SortedMap::default(),
            history: SortedMap::default(),
            tags_of: SortedMap::default(),
            referrers: SortedMap::default(),
            named_blobs: SortedMap::default(),
            named_manifests: SortedMap::default(),
            deleted_tags: SortedMap::default(),
        }
    }

    /// The table of what is named as a manifest, or as a blob.
    pub(super) fn named(&self, as_manifest: bool) -> &SortedSet<Named> {
        if as_manifest { &self.named_manifests } else { &self.named_blobs }
    }

    pub(super) fn named_mut(&mut self, as_manifest: bool) -> &mut SortedSet<Named> {
        if as_manifest { &mut self.named_manifests } else { &mut self.named_blobs }
    }

    /// Goes through the manifests that name `digest`, as a manifest or as a blob.
    pub(super) fn namers<'a, 'b>(
        &'a self,
        digest: &'b Digest,
        as_manifest: bool,
    ) -> impl Iterator<Item = &'a Digest> + use<'a, 'b> {
        let named = self.named(as_manifest).iter_after(|named| *named.digest < *digest).map(|(named, ())| named);
        named.take_while(move |named| *named.digest == *digest).map(|named| &*named.by)
    }

    /// Lets a tag share the name of who set it with the manifest, which is mostly put by the same.
    pub(super) fn share_principal(&self, mut record: Arc<TagRecord>) -> Arc<TagRecord> {
        let manifest = self.manifests.get(&record.digest);
        if let Some(manifest) = manifest.filter(|manifest| manifest.principal == record.principal) {
            Arc::make_mut(&mut record).principal = Arc::clone(&manifest.principal);
        }
        record
    }

    /// Returns the first manifest that names `digest`.
    pub(super) fn named_by(&self, digest: &Digest, as_manifest: bool) -> Option<&Digest> {
        self.namers(digest, as_manifest).next()
    }
}

impl State {
    /// Notes that a membership entry was applied at `index` (P18).
    pub fn set_membership(&mut self, index: u64) {
        self.head.membership_index = index;
        self.applied = self.applied.max(index);
    }

    /// Notes that an entry without a command was applied at `index`, or that a loaded snapshot stands there.
    pub fn set_applied(&mut self, index: u64) {
        self.applied = self.applied.max(index);
    }

    /// Returns the log index that was last applied.
    #[must_use]
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// Returns the log index of the membership in force (P18).
    #[must_use]
    pub fn membership_index(&self) -> u64 {
        self.head.membership_index
    }

    /// Returns the hash over all primary rows: equal states have equal hashes (P8).
    #[must_use]
    pub fn hash(&self) -> u128 {
        let mut sum = self.sum;
        sum.add(&Record::Head(self.head.clone()));
        sum.value()
    }

    /// Computes the hash from the rows as they are now, for `fsck` and tests.
    #[must_use]
    pub fn recompute_hash(&self) -> u128 {
        let mut sum = HashSum::default();
        self.records().for_each(|record| sum.add(&record));
        sum.value()
    }

    /// Returns the nodes as placement sees them.
    #[must_use]
    pub fn topology(&self) -> Arc<Topology> {
        Arc::clone(&self.topology)
    }

    /// Returns the cluster, once formed.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        self.head.cluster
    }

    /// Returns the agreed feature level; above [`FEATURE_LEVEL_MAX`] the node must stop.
    #[must_use]
    pub fn feature_level(&self) -> u32 {
        self.head.feature_level
    }

    /// Goes through every primary row as `StateBuilder::add` takes it.
    pub fn encoded_records(&self) -> impl Iterator<Item = Vec<u8>> + Send + '_ {
        self.records().map(|record| encode_record(&record))
    }

    /// Goes through every primary row, in the order in which a builder takes them.
    pub fn records(&self) -> impl Iterator<Item = Record> + Send + '_ {
        std::iter::once(Record::Head(self.head.clone()))
            .chain(self.nodes.iter().map(|(_, row)| Record::Node(NodeRow::clone(row))))
            .chain(
                self.contents.iter().map(|(digest, entry)| Record::Content(Digest::clone(digest), entry.row.clone())),
            )
            .chain(self.repositories.iter().flat_map(|(name, repository)| repository.records(name)))
            .chain(self.uploads.iter().flat_map(|(id, upload)| {
                let extents = upload.extents.iter().map(|extent| Record::Extent(*id, extent.clone()));
                std::iter::once(Record::Upload(*id, Arc::clone(upload))).chain(extents)
            }))
            .chain(self.outcomes.iter().map(|(id, row)| Record::Outcome(*id, Arc::clone(row))))
            .chain((*self.plan != Plan::default()).then(|| Record::Plan(Plan::clone(&self.plan))))
            .chain(self.tokens.iter().map(|(hash, row)| Record::Token(*hash, row.clone())))
            .chain(self.policy.iter().cloned().map(Record::Policy))
    }
}

impl Repository {
    fn records<'a>(&'a self, name: &'a RepositoryName) -> impl Iterator<Item = Record> + Send + 'a {
        std::iter::once(Record::Repository(name.clone(), self.row.clone()))
            .chain(self.upload_end.map(|end| Record::UploadEnd(name.clone(), end)))
            .chain(self.blobs.iter().map(|(digest, link)| Record::Blob(name.clone(), Digest::clone(digest), *link)))
            .chain(
                self.manifests
                    .iter()
                    .map(|(digest, record)| Record::Manifest(name.clone(), Digest::clone(digest), Arc::clone(record))),
            )
            .chain(self.leases.iter().map(|(digest, lease)| Record::Lease(name.clone(), Digest::clone(digest), *lease)))
            .chain(self.tags.iter().map(|(tag, record)| Record::Tag(name.clone(), tag.clone(), Arc::clone(record))))
            .chain(self.history.iter().flat_map(|(tag, events)| {
                events.iter().map(|event| Record::TagEvent(name.clone(), tag.clone(), Arc::clone(event)))
            }))
    }
}
