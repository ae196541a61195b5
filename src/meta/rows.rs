//! Putting and removing rows: the only code that changes a table, so that derived tables and the hash stay in step.
//!
//! Nothing here decides anything: `apply` has checked before, and a snapshot's builder checks what it pushes.

use std::cmp::Reverse;
use std::sync::Arc;

use crate::oci::{Digest, RepositoryName, Tag, UploadId};
use crate::topology::{NodeId, Policy, Topology};

use super::command::{HeldExtent, LogTime, ReferenceKind, Rejection, RequestId, Response};
use super::plan::{Plan, TokenHash, TokenRow};
use super::query::{ManifestRecord, TagEvent, TagRecord, Upload};
use super::state::{ContentEntry, Named, Repository, State};
use super::tables::{BlobLink, ContentRow, ManifestLease, NodeRow, OutcomeRow, Record, RepositoryRow, UploadEnd};

/// How many past states of a tag are kept.
pub(super) const HISTORY_MAX: usize = 100;
/// How many deleted tags of a repository keep their history.
pub(super) const DELETED_TAGS_MAX: usize = 1000;

/// What some repository links a digest as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinkKind {
    Blob,
    Manifest,
}

/// Nodes.
impl State {
    pub(super) fn put_node(&mut self, row: NodeRow) {
        self.sum.add(&Record::Node(row.clone()));
        if let Some(old) = self.nodes.insert(row.id(), Arc::new(row)) {
            self.sum.subtract(&Record::Node(Arc::unwrap_or_clone(old)));
        }
    }

    pub(super) fn remove_node(&mut self, id: NodeId) {
        if let Some(old) = self.nodes.remove(&id) {
            self.sum.subtract(&Record::Node(Arc::unwrap_or_clone(old)));
        }
    }

    /// Puts the plan; an empty one has no row.
    pub(super) fn put_plan(&mut self, plan: Plan) {
        let row = |plan: &Plan| (*plan != Plan::default()).then(|| Record::Plan(plan.clone()));
        if let Some(old) = row(&self.plan) {
            self.sum.subtract(&old);
        }
        if let Some(new) = row(&plan) {
            self.sum.add(&new);
        }
        self.plan = Arc::new(plan);
    }

    pub(super) fn put_token(&mut self, token: TokenHash, row: TokenRow) {
        self.sum.add(&Record::Token(token, row.clone()));
        if let Some(old) = self.tokens.insert(token, row) {
            self.sum.subtract(&Record::Token(token, old));
        }
    }

    pub(super) fn remove_token(&mut self, token: &TokenHash) -> bool {
        let old = self.tokens.remove(token);
        let was_there = old.is_some();
        if let Some(old) = old {
            self.sum.subtract(&Record::Token(*token, old));
        }
        was_there
    }

    /// Derives the topology from the nodes.
    /// Puts or replaces the policy.
    pub(super) fn put_policy(&mut self, policy: Policy) {
        self.sum.add(&Record::Policy(policy.clone()));
        if let Some(old) = self.policy.replace(policy) {
            self.sum.subtract(&Record::Policy(old));
        }
    }

    /// Derives the topology from the nodes and the policy.
    pub(super) fn rebuild_topology(&mut self) {
        let nodes = self.nodes.iter().map(|(id, row)| (*id, row.record.clone())).collect();
        self.topology = Arc::new(Topology { index: self.head.topology_index, nodes, policy: self.policy.clone() });
    }
}

/// Content.
impl State {
    /// Returns the digest as the tables hold it, if it is content; else a copy of its own.
    fn shared(&self, digest: &Digest) -> Arc<Digest> {
        self.contents.get_entry(digest).map_or_else(|| Arc::new(digest.clone()), |(shared, _)| Arc::clone(shared))
    }

    /// The same for what a manifest names: mostly in the small tables of its repository, not a cache miss at every step.
    fn shared_near(&self, repository: Option<&Repository>, digest: &Digest) -> Arc<Digest> {
        let near = repository.and_then(|repository| {
            let blob = repository.blobs.get_entry(digest).map(|(shared, _)| shared);
            blob.or_else(|| repository.manifests.get_entry(digest).map(|(shared, _)| shared))
        });
        near.map_or_else(|| self.shared(digest), Arc::clone)
    }

    /// Puts the row of content that nothing links yet.
    pub(super) fn put_content(&mut self, digest: &Digest, row: ContentRow) {
        let shared = Arc::new(digest.clone());
        self.sum.add(&Record::Content(digest.clone(), row.clone()));
        self.content_order.insert((row.index, Arc::clone(&shared)), ());
        self.contents.insert(shared, ContentEntry { row, blobs: 0, manifests: 0 });
    }

    fn remove_content(&mut self, digest: &Digest) {
        let shared = self.shared(digest);
        if let Some(entry) = self.contents.remove(digest) {
            self.content_order.remove(&(entry.row.index, shared));
            self.sum.subtract(&Record::Content(digest.clone(), entry.row));
        }
    }

    /// Counts a new link at log index `index`.
    ///
    /// What becomes a manifest body counts as new: from then on every node wants it, so catch-up must see it again.
    fn count_link(&mut self, digest: &Digest, size: u64, kind: LinkKind, index: u64) {
        let (blobs, manifests) = match self.contents.get(digest) {
            Some(entry) if kind == LinkKind::Blob || entry.manifests > 0 => (entry.blobs, entry.manifests),
            Some(entry) => {
                let counts = (entry.blobs, entry.manifests);
                self.remove_content(digest);
                self.put_content(digest, ContentRow { size, index });
                counts
            }
            None => {
                self.put_content(digest, ContentRow { size, index });
                (0, 0)
            }
        };
        if let Some(entry) = self.contents.get_mut(digest) {
            entry.blobs = blobs + u32::from(kind == LinkKind::Blob);
            entry.manifests = manifests + u32::from(kind == LinkKind::Manifest);
        }
    }

    fn uncount_link(&mut self, digest: &Digest, kind: LinkKind) {
        let Some(entry) = self.contents.get_mut(digest) else { return };
        match kind {
            LinkKind::Blob => entry.blobs -= 1,
            LinkKind::Manifest => entry.manifests -= 1,
        }
        if entry.blobs + entry.manifests == 0 {
            self.remove_content(digest);
        }
    }

    /// Counts a link of a snapshot, whose content row came before; says whether it did, with that size.
    pub(super) fn recount_link(&mut self, digest: &Digest, size: u64, kind: LinkKind) -> bool {
        let Some(entry) = self.contents.get_mut(digest).filter(|entry| entry.row.size == size) else { return false };
        match kind {
            LinkKind::Blob => entry.blobs += 1,
            LinkKind::Manifest => entry.manifests += 1,
        }
        true
    }
}

/// Repositories, blob links, manifests.
impl State {
    pub(super) fn put_repository(&mut self, name: &RepositoryName, row: RepositoryRow) {
        self.sum.add(&Record::Repository(name.clone(), row.clone()));
        match self.repositories.get_mut(name) {
            Some(repository) => {
                let old = std::mem::replace(&mut repository.row, row);
                self.sum.subtract(&Record::Repository(name.clone(), old));
            }
            None => drop(self.repositories.insert(name.clone(), Repository::new(row))),
        }
    }

    /// Removes a repository in which nothing is left but history.
    pub(super) fn drop_if_empty(&mut self, name: &RepositoryName) {
        let empty = |repository: &&Repository| {
            repository.blobs.is_empty() && repository.manifests.is_empty() && repository.tags.is_empty()
        };
        if self.repositories.get(name).filter(empty).is_none() {
            return;
        }
        let Some(repository) = self.repositories.remove(name) else { return };
        for (tag, events) in repository.history.iter() {
            for event in events.iter() {
                self.sum.subtract(&Record::TagEvent(name.clone(), tag.clone(), Arc::clone(event)));
            }
        }
        if let Some(end) = repository.upload_end {
            self.sum.subtract(&Record::UploadEnd(name.clone(), end));
        }
        self.sum.subtract(&Record::Repository(name.clone(), repository.row));
    }

    /// Puts or replaces when an upload to the existing repository last ended.
    pub(super) fn put_upload_end(&mut self, name: &RepositoryName, end: UploadEnd) {
        let Some(repository) = self.repositories.get_mut(name) else { return };
        self.sum.add(&Record::UploadEnd(name.clone(), end));
        if let Some(old) = repository.upload_end.replace(end) {
            self.sum.subtract(&Record::UploadEnd(name.clone(), old));
        }
    }

    /// Puts or replaces a blob link of an existing repository; a new one counts from log index `index`.
    pub(super) fn put_blob(&mut self, name: &RepositoryName, digest: &Digest, link: BlobLink, index: u64) {
        if !self.has_blob(name, digest) {
            self.count_link(digest, link.size, LinkKind::Blob, index);
        }
        self.put_counted_blob(name, digest, link);
    }

    fn has_blob(&self, name: &RepositoryName, digest: &Digest) -> bool {
        self.repositories.get(name).is_some_and(|repository| repository.blobs.contains(digest))
    }

    /// Puts a blob link that `contents` counts already.
    pub(super) fn put_counted_blob(&mut self, name: &RepositoryName, digest: &Digest, link: BlobLink) {
        let shared = self.shared(digest);
        // The name as the table has it: a copy of the text for each link would be a tenth of a large state.
        let Some((name, _)) = self.repositories.get_entry(name) else { return };
        let name = &name.clone();
        let Some(repository) = self.repositories.get_mut(name) else { return };
        self.sum.add(&Record::Blob(name.clone(), digest.clone(), link));
        if let Some(old) = repository.blobs.insert(Arc::clone(&shared), link) {
            self.sum.subtract(&Record::Blob(name.clone(), digest.clone(), old));
        }
        self.blob_repositories.insert((shared, name.clone()), ());
    }

    pub(super) fn remove_blob(&mut self, name: &RepositoryName, digest: &Digest) {
        let Some(link) = self.repositories.get_mut(name).and_then(|repository| repository.blobs.remove(digest)) else {
            return;
        };
        self.sum.subtract(&Record::Blob(name.clone(), digest.clone(), link));
        self.blob_repositories.remove(&(self.shared(digest), name.clone()));
        self.uncount_link(digest, LinkKind::Blob);
    }

    /// Puts a manifest that the existing repository does not have; it counts from log index `index`.
    pub(super) fn put_manifest_row(
        &mut self,
        name: &RepositoryName,
        digest: &Digest,
        record: ManifestRecord,
        index: u64,
    ) {
        self.count_link(digest, record.size, LinkKind::Manifest, index);
        self.put_counted_manifest(name, digest, record);
    }

    /// Puts a manifest that `contents` counts already.
    pub(super) fn put_counted_manifest(&mut self, name: &RepositoryName, digest: &Digest, mut record: ManifestRecord) {
        let by = self.shared(digest);
        self.share(name, &mut record);
        let record = Arc::new(record);
        let Some(repository) = self.repositories.get_mut(name) else { return };
        self.sum.add(&Record::Manifest(name.clone(), digest.clone(), Arc::clone(&record)));
        for (as_manifest, named) in names(&by, &record) {
            repository.named_mut(as_manifest).insert(named, ());
        }
        if let Some(subject) = &record.subject {
            repository.referrers.insert((Arc::clone(subject), Arc::clone(&by)), ());
        }
        repository.manifests.insert(by, record);
    }

    /// Replaces what a new record has in common with others by what they have: digests that are content, and texts of
    /// the repository's first manifest, as its manifests are mostly of one type and by one principal.
    fn share(&self, name: &RepositoryName, record: &mut ManifestRecord) {
        let repository = self.repositories.get(name);
        for reference in &mut record.references {
            reference.digest = self.shared_near(repository, &reference.digest);
        }
        if let Some(subject) = &mut record.subject {
            *subject = self.shared_near(repository, subject);
        }
        let first = repository.and_then(|repository| repository.manifests.iter().next());
        if let Some((_, first)) = first {
            if record.media_type == first.media_type {
                record.media_type = first.media_type.clone();
            }
            if record.artifact_type == first.artifact_type {
                record.artifact_type.clone_from(&first.artifact_type);
            }
            if record.principal == first.principal {
                record.principal = Arc::clone(&first.principal);
            }
        }
    }

    /// Removes a manifest; its tags are the caller's business.
    pub(super) fn remove_manifest_row(&mut self, name: &RepositoryName, digest: &Digest) {
        let by = self.shared(digest);
        let Some(repository) = self.repositories.get_mut(name) else { return };
        let Some(record) = repository.manifests.remove(digest) else { return };
        if let Some(lease) = repository.leases.remove(digest) {
            self.sum.subtract(&Record::Lease(name.clone(), digest.clone(), lease));
        }
        for (as_manifest, named) in names(&by, &record) {
            repository.named_mut(as_manifest).remove(&named);
        }
        if let Some(subject) = &record.subject {
            repository.referrers.remove(&(Arc::clone(subject), by));
        }
        self.sum.subtract(&Record::Manifest(name.clone(), digest.clone(), record));
        self.uncount_link(digest, LinkKind::Manifest);
    }

    /// Puts or replaces the lease of a manifest of the repository.
    pub(super) fn put_lease(&mut self, name: &RepositoryName, digest: &Digest, lease: ManifestLease) {
        let shared = self.shared(digest);
        let Some(repository) = self.repositories.get_mut(name) else { return };
        self.sum.add(&Record::Lease(name.clone(), digest.clone(), lease));
        if let Some(old) = repository.leases.insert(shared, lease) {
            self.sum.subtract(&Record::Lease(name.clone(), digest.clone(), old));
        }
    }
}

/// What a manifest names, as rows of `named_manifests` and `named_blobs`.
fn names<'a>(by: &'a Arc<Digest>, record: &'a ManifestRecord) -> impl Iterator<Item = (bool, Named)> + 'a {
    record.references.iter().map(|reference| {
        let as_manifest = reference.kind == ReferenceKind::Manifest;
        (as_manifest, Named { digest: Arc::clone(&reference.digest), by: Arc::clone(by) })
    })
}

/// Tags.
impl State {
    /// Puts a tag of an existing repository and returns what it was.
    pub(super) fn put_tag(
        &mut self,
        name: &RepositoryName,
        tag: &Tag,
        record: Arc<TagRecord>,
    ) -> Option<Arc<TagRecord>> {
        let shared = self.shared_near(self.repositories.get(name), &record.digest);
        let repository = self.repositories.get_mut(name)?;
        let record = repository.share_principal(record);
        self.sum.add(&Record::Tag(name.clone(), tag.clone(), Arc::clone(&record)));
        repository.tags_of.insert((shared, tag.clone()), ());
        let digest = record.digest.clone();
        let old = repository.tags.insert(tag.clone(), record);
        if let Some(old) = &old {
            if old.digest != digest {
                repository.tags_of.remove(&(Arc::new(old.digest.clone()), tag.clone()));
            }
            self.sum.subtract(&Record::Tag(name.clone(), tag.clone(), Arc::clone(old)));
        } else if let Some(last) = repository.history.get(tag).and_then(|events| events.last()) {
            repository.deleted_tags.remove(&(last.index, tag.clone()));
        }
        old
    }

    /// Removes a tag and returns what it was.
    pub(super) fn remove_tag(&mut self, name: &RepositoryName, tag: &Tag) -> Option<Arc<TagRecord>> {
        let repository = self.repositories.get_mut(name)?;
        let old = repository.tags.remove(tag)?;
        repository.tags_of.remove(&(Arc::new(old.digest.clone()), tag.clone()));
        self.sum.subtract(&Record::Tag(name.clone(), tag.clone(), Arc::clone(&old)));
        Some(old)
    }

    /// Adds to the history of a tag, dropping the oldest of too many.
    ///
    /// A deletion (no digest) must come after the tag was removed; then the history of the tag that was deleted longest
    /// ago may go, so that tags that come and go cannot grow the state without end.
    pub(super) fn push_history(&mut self, name: &RepositoryName, tag: &Tag, event: Arc<TagEvent>) {
        let Some(repository) = self.repositories.get_mut(name) else { return };
        self.sum.add(&Record::TagEvent(name.clone(), tag.clone(), Arc::clone(&event)));
        if !repository.history.contains(tag) {
            repository.history.insert(tag.clone(), Arc::default());
        }
        let Some(events) = repository.history.get_mut(tag).map(Arc::make_mut) else { return };
        if let Some(last) = events.last() {
            repository.deleted_tags.remove(&(last.index, tag.clone()));
        }
        if event.digest.is_none() && !repository.tags.contains(tag) {
            repository.deleted_tags.insert((event.index, tag.clone()), ());
        }
        events.push(event);
        if events.len() > HISTORY_MAX {
            self.sum.subtract(&Record::TagEvent(name.clone(), tag.clone(), events.remove(0)));
        }
        if repository.deleted_tags.len() <= DELETED_TAGS_MAX {
            return;
        }
        let Some((index, oldest)) = repository.deleted_tags.first().cloned() else { return };
        let events = repository.history.remove(&oldest).unwrap_or_default();
        for event in events.iter() {
            self.sum.subtract(&Record::TagEvent(name.clone(), oldest.clone(), Arc::clone(event)));
        }
        repository.deleted_tags.remove(&(index, oldest));
    }
}

/// Upload sessions.
impl State {
    /// Puts a session that is not there yet; its extents are added one by one.
    pub(super) fn put_upload(&mut self, id: UploadId, upload: Upload) {
        let upload = Arc::new(upload);
        self.count_upload(id, &upload);
        self.uploads.insert(id, upload);
    }

    fn count_upload(&mut self, id: UploadId, upload: &Arc<Upload>) {
        self.sum.add(&Record::Upload(id, Arc::clone(upload)));
        self.uploads_by_expiry.insert((upload.expires, id), ());
        if upload.closed.is_none() {
            let open = self.uploads_of.get(&upload.principal).copied().unwrap_or(0);
            self.uploads_of.insert(Arc::clone(&upload.principal), open + 1);
            self.uploads_in.insert((upload.repository.clone(), Reverse(upload.ttl_ms), id), ());
        }
    }

    fn uncount_upload(&mut self, id: UploadId, upload: &Arc<Upload>) {
        self.sum.subtract(&Record::Upload(id, Arc::clone(upload)));
        self.uploads_by_expiry.remove(&(upload.expires, id));
        if upload.closed.is_none() {
            self.uploads_in.remove(&(upload.repository.clone(), Reverse(upload.ttl_ms), id));
            match self.uploads_of.get(&upload.principal).copied() {
                Some(open) if open > 1 => drop(self.uploads_of.insert(Arc::clone(&upload.principal), open - 1)),
                _ => drop(self.uploads_of.remove(&upload.principal)),
            }
        }
    }

    /// Changes a session in anything but its extents.
    pub(super) fn change_upload(&mut self, id: UploadId, change: impl FnOnce(&mut Upload)) {
        // Taken out while it changes, so that an unshared session changes in place.
        let Some(mut upload) = self.uploads.remove(&id) else { return };
        self.uncount_upload(id, &upload);
        change(Arc::make_mut(&mut upload));
        self.count_upload(id, &upload);
        self.uploads.insert(id, upload);
    }

    /// Adds an extent to the list of a session; its length is changed apart.
    pub(super) fn put_extent(&mut self, id: UploadId, extent: &HeldExtent) {
        let Some(upload) = self.uploads.get_mut(&id) else { return };
        self.sum.add(&Record::Extent(id, extent.clone()));
        self.extents.insert(extent.id, id);
        Arc::make_mut(upload).extents.push(extent.clone());
    }

    /// Empties the list of a session's extents: from now on their files may go (P24).
    pub(super) fn clear_extents(&mut self, id: UploadId) {
        let Some(upload) = self.uploads.get_mut(&id) else { return };
        if upload.extents.is_empty() {
            return;
        }
        for extent in std::mem::take(&mut Arc::make_mut(upload).extents) {
            self.extents.remove(&extent.id);
            self.sum.subtract(&Record::Extent(id, extent));
        }
    }

    /// Removes a session with its extents.
    pub(super) fn remove_upload(&mut self, id: UploadId) {
        self.clear_extents(id);
        if let Some(upload) = self.uploads.remove(&id) {
            self.uncount_upload(id, &upload);
        }
    }
}

/// Remembered answers.
impl State {
    pub(super) fn put_outcome(&mut self, id: RequestId, row: OutcomeRow) {
        let row = Arc::new(row);
        self.sum.add(&Record::Outcome(id, Arc::clone(&row)));
        self.outcomes_by_time.insert((row.keep_until, id), ());
        self.outcomes_weight += weight(&row.response);
        self.outcomes.insert(id, row);
    }

    /// Forgets the answers that are kept until before `now`.
    pub(super) fn forget_outcomes(&mut self, now: LogTime) {
        while let Some((keep_until, id)) = self.outcomes_by_time.first().copied()
            && keep_until < now
        {
            self.outcomes_by_time.remove(&(keep_until, id));
            if let Some(row) = self.outcomes.remove(&id) {
                self.outcomes_weight -= weight(&row.response);
                self.sum.subtract(&Record::Outcome(id, row));
            }
        }
    }
}

/// What an answer counts against the cap: one, and more if it lists digests.
fn weight(response: &Response) -> usize {
    match response {
        Response::Rejected(Rejection::BlobUnknown { digests }) => 1 + digests.len() / 4,
        _ => 1,
    }
}
