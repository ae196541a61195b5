//! The full mark: counts links and references anew from tags and manifests, and compares (G18; pure).
//!
//! Derived tables decide what may be collected, so a bug in keeping them would lose content. Nothing is repaired here: the
//! caller sounds an alarm. Goes slice by slice of the digests and in steps of bounded size, so that neither memory nor one
//! step grows with the registry.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::oci::{Digest, RepositoryName, UploadId};

use super::command::ReferenceKind;
use super::query::ManifestRecord;
use super::state::{Named, Repository, State};

/// Digests are counted in so many slices, one after the other, each a walk through all links.
const SLICES: u8 = 16;
/// Contradictions told apart; the rest is only counted.
const TOLD_MAX: usize = 20;

/// Something that derived tables and rows say differently.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Miscount {
    /// Content counts other links than there are.
    #[error("{digest} counts {kept:?} links as a blob and as a manifest, there are {found:?}")]
    Links {
        /// The content.
        digest: Digest,
        /// What its row counts: as a blob, as a manifest.
        kept: (u32, u32),
        /// What there is.
        found: (u32, u32),
    },
    /// The table of references lacks one.
    #[error("{repository} does not know that {manifest} names {digest}")]
    Named {
        /// Where.
        repository: RepositoryName,
        /// The manifest.
        manifest: Digest,
        /// What it names.
        digest: Digest,
    },
    /// A manifest demands what its repository does not have, though nothing sparse was ever accepted there.
    #[error("{repository} does not have {digest}, which {manifest} needs")]
    Missing {
        /// Where.
        repository: RepositoryName,
        /// The manifest.
        manifest: Digest,
        /// What is missing.
        digest: Digest,
    },
    /// A tag points at no manifest, or the table of tagged manifests does not know it.
    #[error("a tag of {repository} points at {digest}, which is not there or does not count as tagged")]
    Tag {
        /// Where.
        repository: RepositoryName,
        /// What it points at.
        digest: Digest,
    },
    /// An upload is open and does not count as such in its repository, or more count than are open.
    #[error("{open} uploads are open, {found} of them count as such in their repository, {counted} do in all")]
    Uploads {
        /// Open sessions.
        open: usize,
        /// Those of them that count.
        found: usize,
        /// All that count.
        counted: usize,
    },
}

/// A full mark under way on one state.
#[derive(Debug)]
pub struct Recount {
    state: Arc<State>,
    slice: u8,
    place: Place,
    counts: BTreeMap<Arc<Digest>, (u32, u32)>,
    /// Sessions that are open, and those of them that count as such.
    uploads: (usize, usize),
    problems: u64,
    told: Vec<Miscount>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// Looking at upload sessions after this one.
    Uploads(Option<UploadId>),
    /// Counting the links of repositories after this one.
    Repository(Option<RepositoryName>),
    /// Counting the manifests, or the blobs, of one repository after this digest.
    Links {
        repository: RepositoryName,
        blobs: bool,
        after: Option<Arc<Digest>>,
    },
    /// Comparing contents after this one.
    Contents(Option<Arc<Digest>>),
    Done,
}

impl Recount {
    /// Begins a full mark of a state.
    #[must_use]
    pub fn new(state: Arc<State>) -> Self {
        let (place, counts) = (Place::Uploads(None), BTreeMap::new());
        Self { state, slice: 0, place, counts, uploads: (0, 0), problems: 0, told: Vec::new() }
    }

    /// Goes on by about `rows` rows; true once everything was compared.
    pub fn step(&mut self, rows: usize) -> bool {
        let state = Arc::clone(&self.state);
        let mut left = rows;
        while left > 0 {
            let seen = match self.place.clone() {
                Place::Uploads(after) => self.count_uploads(&state, after, left),
                Place::Repository(after) => self.enter(&state, after.as_ref()),
                Place::Links { repository, blobs, after } => {
                    self.count_links(&state, (&repository, blobs, after.as_deref()), left)
                }
                Place::Contents(after) => self.compare(&state, after.as_deref(), left),
                Place::Done => return true,
            };
            left = left.saturating_sub(seen.max(1));
        }
        self.place == Place::Done
    }

    /// How many contradictions were found, and the first of them.
    #[must_use]
    pub fn found(&self) -> (u64, &[Miscount]) {
        (self.problems, &self.told)
    }

    fn tell(&mut self, miscount: Miscount) {
        self.problems += 1;
        if self.told.len() < TOLD_MAX {
            self.told.push(miscount);
        }
    }

    fn counts_now(&self, digest: &Digest) -> bool {
        digest.hash()[0] % SLICES == self.slice
    }

    fn count_uploads(&mut self, state: &State, after: Option<UploadId>, limit: usize) -> usize {
        let (mut seen, mut last) = (0, None);
        for (id, upload) in state.uploads.iter_after(|id| after.is_some_and(|after| *id <= after)).take(limit) {
            (seen, last) = (seen + 1, Some(*id));
            if upload.closed.is_none() {
                let row = (upload.repository.clone(), Reverse(upload.ttl_ms), *id);
                self.uploads.0 += 1;
                self.uploads.1 += usize::from(state.uploads_in.contains(&row));
            }
        }
        if seen == limit {
            self.place = Place::Uploads(last);
            return seen;
        }
        let ((open, found), counted) = (self.uploads, state.uploads_in.len());
        if open != found || found != counted {
            self.tell(Miscount::Uploads { open, found, counted });
        }
        self.place = Place::Repository(None);
        seen
    }

    /// Goes to the next repository, or to the comparison after the last.
    fn enter(&mut self, state: &State, after: Option<&RepositoryName>) -> usize {
        let before = |name: &RepositoryName| after.is_some_and(|after| name <= after);
        let Some((name, repository)) = state.repositories.iter_after(before).next() else {
            self.place = Place::Contents(None);
            return 1;
        };
        self.place = Place::Links { repository: name.clone(), blobs: false, after: None };
        if self.slice > 0 {
            return 1;
        }
        for (tag, record) in repository.tags.iter() {
            let row = (Arc::new(record.digest.clone()), tag.clone());
            if !repository.manifests.contains(&record.digest) || !repository.tags_of.contains(&row) {
                self.tell(Miscount::Tag { repository: name.clone(), digest: record.digest.clone() });
            }
        }
        repository.tags.len()
    }

    fn count_links(
        &mut self,
        state: &State,
        (name, blobs, after): (&RepositoryName, bool, Option<&Digest>),
        limit: usize,
    ) -> usize {
        let next = Place::Repository(Some(name.clone()));
        let Some(repository) = state.repositories.get(name) else {
            self.place = next;
            return 1;
        };
        let before = |digest: &Arc<Digest>| after.is_some_and(|after| **digest <= *after);
        let (mut seen, mut last) = (0, None);
        if blobs {
            for (digest, _) in repository.blobs.iter_after(before).take(limit) {
                (seen, last) = (seen + 1, Some(Arc::clone(digest)));
                if self.counts_now(digest) {
                    self.counts.entry(Arc::clone(digest)).or_default().0 += 1;
                }
            }
        } else {
            for (digest, record) in repository.manifests.iter_after(before).take(limit) {
                (seen, last) = (seen + 1, Some(Arc::clone(digest)));
                if self.counts_now(digest) {
                    self.counts.entry(Arc::clone(digest)).or_default().1 += 1;
                    self.mark(name, repository, (digest, record));
                }
            }
        }
        self.place = match last {
            Some(last) if seen == limit => Place::Links { repository: name.clone(), blobs, after: Some(last) },
            _ if !blobs => Place::Links { repository: name.clone(), blobs: true, after: None },
            _ => next,
        };
        seen
    }

    /// Checks that everything a manifest names counts as named, and is there.
    fn mark(
        &mut self,
        name: &RepositoryName,
        repository: &Repository,
        (manifest, record): (&Arc<Digest>, &ManifestRecord),
    ) {
        for reference in &record.references {
            let as_manifest = reference.kind == ReferenceKind::Manifest;
            let named = Named { digest: Arc::clone(&reference.digest), by: Arc::clone(manifest) };
            let (name, manifest, digest) = (name.clone(), Digest::clone(manifest), Digest::clone(&reference.digest));
            if !repository.named(as_manifest).contains(&named) {
                self.tell(Miscount::Named { repository: name, manifest, digest });
                continue;
            }
            let there = match as_manifest {
                true => repository.manifests.contains(&digest),
                false => repository.blobs.contains(&digest),
            };
            if !there && reference.required && !repository.row.sparse {
                self.tell(Miscount::Missing { repository: name, manifest, digest });
            }
        }
    }

    fn compare(&mut self, state: &State, after: Option<&Digest>, limit: usize) -> usize {
        let before = |digest: &Arc<Digest>| after.is_some_and(|after| **digest <= *after);
        let (mut seen, mut last) = (0, None);
        for (digest, entry) in state.contents.iter_after(before).take(limit) {
            (seen, last) = (seen + 1, Some(Arc::clone(digest)));
            if self.counts_now(digest) {
                let kept = (entry.blobs, entry.manifests);
                let found = self.counts.remove(&**digest).unwrap_or_default();
                if kept != found {
                    self.tell(Miscount::Links { digest: Digest::clone(digest), kept, found });
                }
            }
        }
        if seen == limit {
            self.place = Place::Contents(last);
            return seen;
        }
        for (digest, found) in std::mem::take(&mut self.counts) {
            self.tell(Miscount::Links { digest: Digest::clone(&digest), kept: (0, 0), found });
        }
        self.slice += 1;
        self.place = if self.slice == SLICES { Place::Done } else { Place::Repository(None) };
        seen
    }
}
