//! Leases and collection (P23).
//!
//! Below feature level 2 nothing here happens, and below 3 nothing of uploads, so that every binary that takes part keeps the
//! same state.

use super::{
    Answer, CollectionRules, Context, Digest, Fate, LogTime, ManifestLease, ManifestRecord, ReferenceKind,
    RepositoryName, Response, State, UploadEnd, UploadId,
};
use crate::meta::state::{LEASES_LEVEL, UPLOADS_LEVEL};

impl State {
    fn keeps_leases(&self) -> bool {
        self.head.feature_level >= LEASES_LEVEL
    }

    /// Notes that a session is about to end, if it is open: the manifest of the push comes after it, so what else the
    /// repository links is spared for a lease more.
    pub(super) fn upload_ends(&mut self, context: Context, id: UploadId) {
        let Some(upload) = self.uploads.get(&id).filter(|upload| upload.closed.is_none()) else { return };
        let (name, ttl_ms) = (upload.repository.clone(), upload.ttl_ms);
        let Some(repository) = self.repositories.get(&name).filter(|_| self.head.feature_level >= UPLOADS_LEVEL) else {
            return;
        };
        // A longer time to live was promised to those that were told of links meanwhile.
        let old = repository.upload_end.filter(|old| old.at.0.saturating_add(old.ttl_ms) > context.now.0);
        let ttl_ms = old.map_or(ttl_ms, |old| old.ttl_ms.max(ttl_ms));
        self.put_upload_end(&name, UploadEnd { at: context.now, ttl_ms });
    }

    /// Begins the leases of links anew; each that is gone stays gone.
    pub(super) fn renew_leases(&mut self, context: Context, links: &[(RepositoryName, Digest)]) -> Answer {
        for (name, digest) in links {
            self.renew_blob(name, digest, context.now);
            self.touch_manifest(name, digest, context.now);
        }
        Ok(Response::Done)
    }

    fn renew_blob(&mut self, name: &RepositoryName, digest: &Digest, at: LogTime) {
        let link = self.repositories.get(name).and_then(|repository| repository.blobs.get(digest)).copied();
        if let Some(mut link) = link.filter(|link| link.at < at) {
            link.at = at;
            self.put_counted_blob(name, digest, link);
        }
    }

    /// Notes that a manifest was put again or asked for, or lost something that named it.
    pub(super) fn touch_manifest(&mut self, name: &RepositoryName, digest: &Digest, at: LogTime) {
        let Some(repository) = self.repositories.get(name).filter(|_| self.keeps_leases()) else { return };
        if repository.manifests.contains(digest) && repository.last_held(digest) < at {
            let orphaned = repository.leases.get(digest).is_some_and(|lease| lease.orphaned);
            self.put_lease(name, digest, ManifestLease { at, orphaned });
        }
    }

    /// Takes a manifest out. What it named and nothing names now is leased as if it had just been pushed: a client may
    /// have been told a moment ago that it is there, when that needed no lease. Child manifests and referrers count as last
    /// held at `held_at`.
    pub(super) fn remove_manifest(
        &mut self,
        context: Context,
        name: &RepositoryName,
        digest: &Digest,
        held_at: LogTime,
    ) {
        let Some(repository) = self.repositories.get(name) else { return };
        let Some(record) = repository.manifests.get(digest).cloned() else { return };
        self.remove_manifest_row(name, digest);
        if self.keeps_leases() {
            self.release(context, name, &record, held_at);
            self.orphan_referrers(name, digest, held_at);
        }
    }

    fn release(&mut self, context: Context, name: &RepositoryName, record: &ManifestRecord, held_at: LogTime) {
        for reference in &record.references {
            let digest = &*reference.digest;
            if self.head.feature_level >= UPLOADS_LEVEL {
                // Named as either kind it was kept as both.
                self.touch_manifest(name, digest, held_at);
                if self.repositories.get(name).is_some_and(|repository| repository.named_at_all(digest).is_none()) {
                    self.renew_blob(name, digest, context.now);
                }
                continue;
            }
            match reference.kind {
                ReferenceKind::Manifest => self.touch_manifest(name, digest, held_at),
                ReferenceKind::Config | ReferenceKind::Layer => {
                    if self.named_by(name, digest, false).is_none() {
                        self.renew_blob(name, digest, context.now);
                    }
                }
            }
        }
    }

    fn orphan_referrers(&mut self, name: &RepositoryName, subject: &Digest, held_at: LogTime) {
        let referrers: Vec<Digest> = self.referrers(name, subject, None).map(|referrer| referrer.digest).collect();
        for digest in referrers {
            let Some(repository) = self.repositories.get(name) else { return };
            let at = repository.last_held(&digest).max(held_at);
            self.put_lease(name, &digest, ManifestLease { at, orphaned: true });
        }
    }

    /// Takes out those of the named links that nothing keeps at this place of the log.
    pub(super) fn collect(
        &mut self,
        context: Context,
        name: &RepositoryName,
        (blobs, manifests): (&[Digest], &[Digest]),
        rules: &CollectionRules,
    ) -> Answer {
        let (mut blobs_gone, mut manifests_gone, mut bytes) = (0, 0, 0);
        let now = context.now;
        // What hung on a manifest that was unused for its whole time has only a lease left, not such a time again.
        let spared = rules.untagged_ms.unwrap_or(0).saturating_sub(rules.lease_ms);
        let held_at = LogTime(now.0.saturating_sub(spared));
        for digest in manifests {
            if self.manifest_fate(name, digest, rules, now) == Fate::Goes {
                let size = self.content(digest).map_or(0, |content| content.size);
                self.remove_manifest(context, name, digest, held_at);
                manifests_gone += 1;
                bytes += if self.content(digest).is_none() { size } else { 0 };
            }
        }
        for digest in blobs {
            if self.blob_fate(name, digest, rules, now) == Fate::Goes {
                let size = self.content(digest).map_or(0, |content| content.size);
                self.remove_blob(name, digest);
                blobs_gone += 1;
                bytes += if self.content(digest).is_none() { size } else { 0 };
            }
        }
        self.drop_if_empty(name);
        Ok(Response::Collected { blobs: blobs_gone, manifests: manifests_gone, bytes })
    }
}
