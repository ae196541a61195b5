//! Manifests and tags (I3, P18, P29).

use std::sync::Arc;

use super::{
    Answer, Condition, Context, Digest, ManifestRecord, PutManifest, ReferenceKind, Rejection, Repository,
    RepositoryName, Response, State, Tag, TagEvent, TagRecord,
};

impl State {
    /// Stores a manifest with its referrer entry and all its tags, or nothing.
    pub(super) fn put_manifest(&mut self, context: Context, put: &PutManifest) -> Answer {
        if put.membership_index != self.head.membership_index {
            return Err(Rejection::MembershipChanged);
        }
        let repository = self.repositories.get(&put.repository);
        check_put_condition(repository, put)?;
        self.check_size(&put.digest, put.size)?;
        let missing = missing_references(repository, put)?;
        if !missing.is_empty() && !put.sparse {
            return Err(Rejection::BlobUnknown { digests: missing });
        }
        let created = repository.is_none_or(|repository| !repository.manifests.contains(&put.digest));
        self.ensure_repository(context, &put.repository);
        if !missing.is_empty() {
            self.mark_sparse(&put.repository);
        }
        let principal: Arc<str> = Arc::from(put.principal.as_str());
        // A manifest put again stays as it was: its body is the same, and what is immutable may be read anywhere.
        if created {
            let record = ManifestRecord {
                media_type: put.media_type.clone(),
                size: put.size,
                references: put.references.iter().map(Into::into).collect(),
                subject: put.subject.clone().map(Arc::new),
                artifact_type: put.artifact_type.as_deref().map(Arc::from),
                annotations: put.annotations.clone(),
                at: context.now,
                wall_seconds: context.wall_seconds,
                principal: Arc::clone(&principal),
            };
            self.put_manifest_row(&put.repository, &put.digest, record, context.index);
        } else {
            self.touch_manifest(&put.repository, &put.digest, context.now);
        }
        for tag in &put.tags {
            let record = TagRecord {
                digest: put.digest.clone(),
                index: context.index,
                at: context.now,
                wall_seconds: context.wall_seconds,
                principal: Arc::clone(&principal),
            };
            self.move_tag(&put.repository, tag, record);
        }
        Ok(Response::ManifestStored { digest: put.digest.clone(), created })
    }

    /// Sets a tag and keeps what it was, unless it pointed there before.
    fn move_tag(&mut self, repository: &RepositoryName, tag: &Tag, record: TagRecord) {
        let (digest, at) = (record.digest.clone(), record.at);
        if let Some(old) = self.put_tag(repository, tag, Arc::new(record)).filter(|old| old.digest != digest) {
            self.touch_manifest(repository, &old.digest, at);
            self.push_history(repository, tag, Arc::new(past(&old)));
        }
    }

    fn drop_tag(&mut self, context: Context, repository: &RepositoryName, tag: &Tag) {
        let Some(old) = self.remove_tag(repository, tag) else { return };
        self.touch_manifest(repository, &old.digest, context.now);
        self.push_history(repository, tag, Arc::new(past(&old)));
        let deletion = TagEvent {
            digest: None,
            index: context.index,
            at: context.now,
            wall_seconds: context.wall_seconds,
            principal: Arc::from(""),
        };
        self.push_history(repository, tag, Arc::new(deletion));
    }

    /// Deletes a manifest and the tags that point at it, unless another manifest names it (P29).
    pub(super) fn delete_manifest(
        &mut self,
        context: Context,
        name: &RepositoryName,
        digest: &Digest,
        sparse: bool,
    ) -> Answer {
        let repository = self.repositories.get(name).ok_or(Rejection::RepositoryUnknown)?;
        if !repository.manifests.contains(digest) {
            return Err(Rejection::ManifestUnknown);
        }
        let tags: Vec<Tag> = repository
            .tags_of
            .iter_after(|(other, _)| **other < *digest)
            .take_while(|((other, _), ())| **other == *digest)
            .map(|((_, tag), ())| tag.clone())
            .collect();
        if let Some(by) = repository.named_by(digest, true) {
            if !sparse {
                return Err(Rejection::Referenced { by: by.clone() });
            }
            self.mark_sparse(name);
        }
        for tag in &tags {
            self.drop_tag(context, name, tag);
        }
        self.remove_manifest(context, name, digest, context.now);
        self.drop_if_empty(name);
        Ok(Response::Done)
    }

    pub(super) fn delete_tag(
        &mut self,
        context: Context,
        name: &RepositoryName,
        tag: &Tag,
        condition: Option<&Condition>,
    ) -> Answer {
        let repository = self.repositories.get(name).ok_or(Rejection::RepositoryUnknown)?;
        let current = &repository.tags.get(tag).ok_or(Rejection::TagUnknown)?.digest;
        check_condition(condition, Some(current))?;
        self.drop_tag(context, name, tag);
        Ok(Response::Done)
    }
}

/// What a tag was, as its history says it.
fn past(record: &TagRecord) -> TagEvent {
    TagEvent {
        digest: Some(record.digest.clone()),
        index: record.index,
        at: record.at,
        wall_seconds: record.wall_seconds,
        principal: Arc::clone(&record.principal),
    }
}

/// Checks the condition of a put on each tag, or on the manifest itself if it is put without one.
fn check_put_condition(repository: Option<&Repository>, put: &PutManifest) -> Result<(), Rejection> {
    if put.tags.is_empty() {
        let there = repository.is_some_and(|repository| repository.manifests.contains(&put.digest));
        return check_condition(put.condition.as_ref(), there.then_some(&put.digest));
    }
    put.tags.iter().try_for_each(|tag| {
        let current = repository.and_then(|repository| repository.tags.get(tag)).map(|record| &record.digest);
        check_condition(put.condition.as_ref(), current)
    })
}

fn check_condition(condition: Option<&Condition>, current: Option<&Digest>) -> Result<(), Rejection> {
    let holds = match condition {
        None => true,
        Some(Condition::Is(digests)) => current.is_some_and(|current| digests.contains(current)),
        Some(Condition::Exists) => current.is_some(),
        Some(Condition::Absent) => current.is_none(),
        Some(Condition::IsNot(digests)) => current.is_none_or(|current| !digests.contains(current)),
    };
    if holds { Ok(()) } else { Err(Rejection::ConditionFailed { current: current.cloned() }) }
}

/// Lists what a manifest demands and the repository lacks, each once, in the manifest's order.
///
/// # Errors
///
/// [`Rejection::SizeMismatch`] if something is there with another size than the manifest says.
fn missing_references(repository: Option<&Repository>, put: &PutManifest) -> Result<Vec<Digest>, Rejection> {
    let mut missing = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for reference in put.references.iter().filter(|reference| reference.required) {
        let digest = &reference.digest;
        let linked = repository.and_then(|repository| match reference.kind {
            ReferenceKind::Manifest => repository.manifests.get(digest).map(|record| record.size),
            ReferenceKind::Config | ReferenceKind::Layer => repository.blobs.get(digest).map(|link| link.size),
        });
        match linked {
            None if seen.insert(digest) => missing.push(digest.clone()),
            Some(size) if size != reference.size => {
                let digest = digest.clone();
                return Err(Rejection::SizeMismatch { digest, expected: size, actual: reference.size });
            }
            _ => {}
        }
    }
    Ok(missing)
}
