//! What keeps a link of a repository alive, and what may be collected (P23; pure).
//!
//! One set of rules for everybody: the planner pages through them, `apply` judges by them again, an operator is told them.
//! Something is kept by what names it in its repository, whether or not that is to go itself: what hangs on it goes later,
//! so a chain unravels from its top and no closure is ever assumed (sparse indexes).

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::oci::{Digest, RepositoryName, Tag};

use super::command::{CollectionRules, LogTime, ReferenceKind};
use super::state::{Repository, State, UPLOADS_LEVEL};
use super::tables::UploadEnd;

/// Manifests looked through for one that lives by what it refers to; beyond it everything is kept.
const DESCENT_MAX: usize = 256;
/// Rows of names looked at for one of them: enough to be beyond that, as a manifest may name another as either kind.
const NAMES_MAX: usize = 2 * DESCENT_MAX + 2;

/// Why a link stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keeper {
    /// A tag points at it (fallback tags of referrers are tags, too).
    Tag(Tag),
    /// A manifest of the repository names it.
    Manifest(Digest),
    /// It refers to a manifest that is there.
    Subject(Digest),
    /// It refers to a manifest that was never there and may still come.
    SubjectToCome(Digest),
    /// It was pushed, mounted, asked for, or last named too short a while ago.
    Lease {
        /// The log time from which on it may go.
        until: LogTime,
    },
    /// Its own time is over, but an upload to its repository is under way, or ended less than a lease ago.
    Upload {
        /// The log time from which on it may go if no upload goes on.
        until: LogTime,
    },
    /// Manifests that nothing names are kept for ever.
    Policy,
}

/// What becomes of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// There is no such link.
    Absent,
    /// It stays.
    Kept(Keeper),
    /// Nothing keeps it.
    Goes,
}

/// A link that nothing names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unnamed {
    /// Where.
    pub repository: RepositoryName,
    /// What.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Whether it is a manifest, else a blob.
    pub manifest: bool,
    /// The log time from which on it may go; `None`: it may go now.
    pub until: Option<LogTime>,
}

/// Where a walk through all links stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkPlace {
    repository: RepositoryName,
    /// The manifests of the repository are done, its blobs are under way.
    blobs: bool,
    after: Option<Digest>,
}

/// A page of a walk through all links.
#[derive(Debug, Clone, Default)]
pub struct LinkPage {
    /// Links that nothing names, repository by repository, manifests first.
    pub unnamed: Vec<Unnamed>,
    /// Links looked at.
    pub seen: usize,
    /// Where to go on; `None`: everything was looked at.
    pub next: Option<LinkPlace>,
}

fn later(time: LogTime, span_ms: u64) -> LogTime {
    LogTime(time.0.saturating_add(span_ms))
}

impl CollectionRules {
    /// How long a manifest that nothing names is spared, if not for ever: never less than a blob.
    fn manifest_ms(&self) -> Option<u64> {
        self.untagged_ms.map(|untagged| untagged.max(self.lease_ms))
    }
}

impl Repository {
    /// Returns a manifest that names `digest`, as whatever.
    pub(super) fn named_at_all(&self, digest: &Digest) -> Option<&Digest> {
        self.named_by(digest, false).or_else(|| self.named_by(digest, true))
    }

    fn a_tag_of(&self, digest: &Digest) -> Option<&Tag> {
        let ((tagged, tag), ()) = self.tags_of.iter_after(|(other, _)| **other < *digest).next()?;
        (**tagged == *digest).then_some(tag)
    }

    /// When a manifest was last put, or last lost something that named it.
    pub(super) fn last_held(&self, digest: &Digest) -> LogTime {
        let put = self.manifests.get(digest).map_or(LogTime(0), |record| record.at);
        self.leases.get(digest).map_or(put, |lease| lease.at.max(put))
    }

    fn blob_fate(&self, digest: &Digest, terms: &Terms<'_>) -> Fate {
        let Some(link) = self.blobs.get(digest) else { return Fate::Absent };
        if let Some(by) = self.named_at_all(digest) {
            return Fate::Kept(Keeper::Manifest(by.clone()));
        }
        terms.spare(link.at, terms.rules.lease_ms)
    }

    fn manifest_fate(&self, digest: &Digest, terms: &Terms<'_>) -> Fate {
        let Some(record) = self.manifests.get(digest) else { return Fate::Absent };
        if let Some(tag) = self.a_tag_of(digest) {
            return Fate::Kept(Keeper::Tag(tag.clone()));
        }
        if let Some(by) = self.named_at_all(digest) {
            return Fate::Kept(Keeper::Manifest(by.clone()));
        }
        let mut held = self.last_held(digest);
        if let Some(subject) = record.subject.as_deref() {
            if self.manifests.contains(subject) {
                // A subject that lives by this very manifest alone would keep both for ever.
                let standing = self.standing(subject, digest);
                let apart = if terms.current { !standing.by_it } else { !self.names_at_last(digest, subject) };
                if apart || standing.for_good {
                    return Fate::Kept(Keeper::Subject(subject.clone()));
                }
                // Until the leases of what keeps the subject are over as well, which a client may have been told to rely on.
                held = if terms.current { held.max(standing.held) } else { held };
            } else if !self.is_orphaned(digest) {
                return Fate::Kept(Keeper::SubjectToCome(subject.clone()));
            }
        }
        match terms.rules.manifest_ms() {
            None => Fate::Kept(Keeper::Policy),
            Some(spared_ms) => terms.spare(held, spared_ms),
        }
    }

    fn is_orphaned(&self, digest: &Digest) -> bool {
        self.leases.get(digest).is_some_and(|lease| lease.orphaned)
    }

    /// Whether `top` names `wanted`, be it through other manifests: how cycles were looked for below feature level 3.
    fn names_at_last(&self, top: &Digest, wanted: &Digest) -> bool {
        let mut open = vec![top];
        let mut seen = BTreeSet::new();
        while let Some(digest) = open.pop() {
            let Some(record) = self.manifests.get(digest).filter(|_| seen.insert(digest)) else { continue };
            if seen.len() > DESCENT_MAX {
                return false;
            }
            let children = record.references.iter().filter(|reference| reference.kind == ReferenceKind::Manifest);
            for child in children {
                if *child.digest == *wanted {
                    return true;
                }
                open.push(&child.digest);
            }
        }
        false
    }

    /// Looks for what keeps `top`: upwards along names and subjects, beside `without` and what hangs on it alone.
    fn standing(&self, top: &Digest, without: &Digest) -> Standing {
        let mut standing = Standing { for_good: false, by_it: false, held: LogTime(0) };
        let mut open = vec![top];
        let mut seen = BTreeSet::from([without]);
        while let Some(digest) = open.pop() {
            standing.by_it |= *digest == *without;
            let Some(record) = self.manifests.get(digest).filter(|_| seen.insert(digest)) else { continue };
            if self.a_tag_of(digest).is_some() || seen.len() > DESCENT_MAX {
                return Standing { for_good: true, ..standing };
            }
            standing.held = standing.held.max(self.last_held(digest));
            if let Some(subject) = record.subject.as_deref() {
                if !self.manifests.contains(subject) && !self.is_orphaned(digest) {
                    return Standing { for_good: true, ..standing };
                }
                open.push(subject);
            }
            open.extend(self.namers(digest, false).chain(self.namers(digest, true)).take(NAMES_MAX));
        }
        standing
    }
}

/// What keeps a manifest beside one that refers to it.
struct Standing {
    /// A tag, or a subject that may still come.
    for_good: bool,
    /// The one that refers to it is among what keeps it.
    by_it: bool,
    /// When something that keeps it, or it, was last held.
    held: LogTime,
}

/// What the links of one repository are judged by.
struct Terms<'a> {
    rules: &'a CollectionRules,
    now: LogTime,
    /// By the rules of feature level 3.
    current: bool,
    /// The longest time to live of a session that is open there, in milliseconds of log time.
    open_ms: Option<u64>,
    ended: Option<UploadEnd>,
}

impl Terms<'_> {
    /// When what was last held at `at` counts as last held, as uploads go on. Bounded by their time to live: else nothing
    /// would ever go where somebody pushes all the time.
    fn held(&self, at: LogTime) -> LogTime {
        let open = self.open_ms.map(|ttl_ms| self.now.min(later(at, ttl_ms)));
        let ended = self.ended.map(|end| end.at.min(later(at, end.ttl_ms)));
        open.into_iter().chain(ended).fold(at, LogTime::max)
    }

    fn spare(&self, at: LogTime, span_ms: u64) -> Fate {
        let until = later(self.held(at), span_ms);
        match self.now {
            now if now >= until => Fate::Goes,
            now if now >= later(at, span_ms) => Fate::Kept(Keeper::Upload { until }),
            _ => Fate::Kept(Keeper::Lease { until }),
        }
    }

    /// The same as if there were no uploads: whether they are the client's own who asks nobody knows.
    fn alone(self) -> Self {
        Self { open_ms: None, ended: None, ..self }
    }
}

/// Collection.
impl State {
    /// Says what becomes of a blob link of a repository at log time `now`.
    #[must_use]
    pub fn blob_fate(&self, name: &RepositoryName, digest: &Digest, rules: &CollectionRules, now: LogTime) -> Fate {
        let repository = self.repositories.get(name);
        repository.map_or(Fate::Absent, |found| found.blob_fate(digest, &self.terms((name, found), rules, now)))
    }

    /// Says what becomes of a manifest of a repository at log time `now`.
    #[must_use]
    pub fn manifest_fate(&self, name: &RepositoryName, digest: &Digest, rules: &CollectionRules, now: LogTime) -> Fate {
        let repository = self.repositories.get(name);
        repository.map_or(Fate::Absent, |found| found.manifest_fate(digest, &self.terms((name, found), rules, now)))
    }

    fn terms<'a>(
        &self,
        (name, repository): (&RepositoryName, &Repository),
        rules: &'a CollectionRules,
        now: LogTime,
    ) -> Terms<'a> {
        let current = self.head.feature_level >= UPLOADS_LEVEL;
        let open_ms = self.longest_upload(name).filter(|_| current);
        Terms { rules, now, current, open_ms, ended: repository.upload_end }
    }

    /// The longest time to live of the sessions open in a repository, in milliseconds of log time.
    fn longest_upload(&self, name: &RepositoryName) -> Option<u64> {
        let ((repository, ttl_ms, _), ()) = self.uploads_in.iter_after(|(other, ..)| other < name).next()?;
        (repository == name).then_some(ttl_ms.0)
    }

    /// Says whether a client that is told of a blob now must have its lease renewed first: nothing names it, and less than
    /// half the lease is left (P23).
    #[must_use]
    pub fn blob_lease_is_short(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        rules: &CollectionRules,
        now: LogTime,
    ) -> bool {
        let Some(repository) = self.repositories.get(name) else { return false };
        let terms = self.terms((name, repository), rules, now).alone();
        is_short(&repository.blob_fate(digest, &terms), rules.lease_ms, now)
    }

    /// The same of a manifest; never so where untagged manifests are kept.
    #[must_use]
    pub fn manifest_lease_is_short(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        rules: &CollectionRules,
        now: LogTime,
    ) -> bool {
        let Some(spared_ms) = rules.manifest_ms() else { return false };
        let Some(repository) = self.repositories.get(name) else { return false };
        let terms = self.terms((name, repository), rules, now).alone();
        is_short(&repository.manifest_fate(digest, &terms), spared_ms, now)
    }

    /// Looks at the next `limit` or so links from `place` on for those that nothing names; a place whose repository went is
    /// as good as any.
    #[must_use]
    pub fn unnamed_links(
        &self,
        place: Option<&LinkPlace>,
        limit: usize,
        (rules, now): (&CollectionRules, LogTime),
    ) -> LinkPage {
        let mut page = LinkPage::default();
        let before = |name: &RepositoryName| place.is_some_and(|place| *name < place.repository);
        for (name, repository) in self.repositories.iter_after(before) {
            let place = place.filter(|place| place.repository == *name);
            if page.seen >= limit {
                page.next = Some(LinkPlace { repository: name.clone(), blobs: false, after: None });
                return page;
            }
            let terms = self.terms((name, repository), rules, now);
            page.next = repository.unnamed((name, place), limit, &terms, &mut page);
            if page.next.is_some() {
                return page;
            }
        }
        page
    }
}

impl Repository {
    /// Adds what nothing names to a page until that is full; returns where to go on in this repository.
    fn unnamed(
        &self,
        (name, place): (&RepositoryName, Option<&LinkPlace>),
        limit: usize,
        terms: &Terms<'_>,
        page: &mut LinkPage,
    ) -> Option<LinkPlace> {
        let after = |blobs: bool| place.filter(|place| place.blobs == blobs).and_then(|place| place.after.as_ref());
        let stop = |blobs: bool, digest: &Arc<Digest>| {
            Some(LinkPlace { repository: name.clone(), blobs, after: Some(Digest::clone(digest)) })
        };
        let skip_manifests = place.is_some_and(|place| place.blobs) || terms.rules.untagged_ms.is_none();
        let passed = |after: Option<&Digest>, digest: &Digest| after.is_some_and(|after| *digest <= *after);
        if !skip_manifests {
            for (digest, record) in self.manifests.iter_after(|digest| passed(after(false), digest)) {
                page.seen += 1;
                page.add(name, (digest, record.size, true), self.manifest_fate(digest, terms));
                if page.seen >= limit {
                    return stop(false, digest);
                }
            }
        }
        for (digest, link) in self.blobs.iter_after(|digest| passed(after(true), digest)) {
            page.seen += 1;
            page.add(name, (digest, link.size, false), self.blob_fate(digest, terms));
            if page.seen >= limit {
                return stop(true, digest);
            }
        }
        None
    }
}

impl LinkPage {
    fn add(&mut self, name: &RepositoryName, (digest, size, manifest): (&Digest, u64, bool), fate: Fate) {
        let until = match fate {
            Fate::Goes => None,
            Fate::Kept(Keeper::Lease { until } | Keeper::Upload { until }) => Some(until),
            Fate::Kept(_) | Fate::Absent => return,
        };
        self.unnamed.push(Unnamed { repository: name.clone(), digest: digest.clone(), size, manifest, until });
    }
}

fn is_short(fate: &Fate, spared_ms: u64, now: LogTime) -> bool {
    match fate {
        Fate::Goes => true,
        Fate::Kept(Keeper::Lease { until } | Keeper::Upload { until }) => {
            until.0.saturating_sub(now.0) < spared_ms.div_ceil(2)
        }
        Fate::Kept(_) | Fate::Absent => false,
    }
}
