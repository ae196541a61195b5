//! Checks a whole state against itself: `fsck` of what is agreed.

use crate::oci::{Digest, RepositoryName, Tag};

use super::command::ReferenceKind;
use super::snapshot_codec::{SnapshotError, StateBuilder};
use super::state::{Repository, State};

/// Something about a state that cannot be true.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The running hash is not that of the rows.
    #[error("state hash is {kept:032x}, its rows hash to {recomputed:032x}")]
    Hash {
        /// What the state says.
        kept: u128,
        /// What its rows say.
        recomputed: u128,
    },
    /// The rows do not make a state.
    #[error("rows contradict each other: {source}")]
    Rows {
        /// What the builder says.
        source: SnapshotError,
    },
    /// A derived table differs from what the rows derive.
    #[error("derived table {table} differs from its rows")]
    Derived {
        /// Its name in `tables.rs`.
        table: &'static str,
    },
    /// A tag points at a manifest that is not there.
    #[error("tag {repository}:{tag} points at {digest}, which is not there")]
    Tag {
        /// Where.
        repository: RepositoryName,
        /// Which.
        tag: Tag,
        /// What is missing.
        digest: Digest,
    },
    /// A manifest demands what its repository does not have, though nothing sparse was ever accepted there.
    #[error("manifest {repository}@{manifest} demands {digest}, which is not there")]
    Reference {
        /// Where.
        repository: RepositoryName,
        /// Which.
        manifest: Digest,
        /// What is missing.
        digest: Digest,
    },
    /// A repository holds nothing.
    #[error("repository {repository} is empty")]
    Empty {
        /// Which.
        repository: RepositoryName,
    },
}

impl State {
    /// Looks for contradictions: O(state), for `fsck` and tests.
    #[must_use]
    pub fn check(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let (kept, recomputed) = (self.hash(), self.recompute_hash());
        if kept != recomputed {
            problems.push(Problem::Hash { kept, recomputed });
        }
        let mut builder = StateBuilder::new();
        match self.records().try_for_each(|record| builder.push(record)).and_then(|()| builder.finish()) {
            Ok(rebuilt) => self.check_derived(&rebuilt, &mut problems),
            Err(source) => problems.push(Problem::Rows { source }),
        }
        for (name, repository) in self.repositories.iter() {
            check_repository(name, repository, &mut problems);
        }
        problems
    }

    fn check_derived(&self, rebuilt: &Self, problems: &mut Vec<Problem>) {
        let mut same = |same: bool, table: &'static str| {
            if !same {
                problems.push(Problem::Derived { table });
            }
        };
        same(self.contents == rebuilt.contents, "contents");
        same(self.content_order == rebuilt.content_order, "content_order");
        same(self.blob_repositories == rebuilt.blob_repositories, "blob_repositories");
        same(self.uploads == rebuilt.uploads, "uploads");
        same(self.uploads_by_expiry == rebuilt.uploads_by_expiry, "uploads_by_expiry");
        same(self.uploads_of == rebuilt.uploads_of, "uploads_of");
        same(self.uploads_in == rebuilt.uploads_in, "uploads_in");
        same(self.extents == rebuilt.extents, "extents");
        same(self.outcomes_by_time == rebuilt.outcomes_by_time, "outcomes_by_time");
        same(self.outcomes_weight == rebuilt.outcomes_weight, "outcomes_weight");
        same(self.topology == rebuilt.topology, "topology");
        same(self.plan == rebuilt.plan, "plan");
        same(self.tokens == rebuilt.tokens, "tokens");
        same(self.repositories.len() == rebuilt.repositories.len(), "repositories");
        for ((_, ours), (_, theirs)) in self.repositories.iter().zip(rebuilt.repositories.iter()) {
            same(ours.tags_of == theirs.tags_of, "repositories[].tags_of");
            same(ours.referrers == theirs.referrers, "repositories[].referrers");
            same(ours.named_blobs == theirs.named_blobs, "repositories[].named_blobs");
            same(ours.named_manifests == theirs.named_manifests, "repositories[].named_manifests");
            same(ours.deleted_tags == theirs.deleted_tags, "repositories[].deleted_tags");
        }
    }
}

fn check_repository(name: &RepositoryName, repository: &Repository, problems: &mut Vec<Problem>) {
    if repository.blobs.is_empty() && repository.manifests.is_empty() {
        problems.push(Problem::Empty { repository: name.clone() });
    }
    for (tag, record) in repository.tags.iter() {
        if !repository.manifests.contains(&record.digest) {
            let (repository, tag, digest) = (name.clone(), tag.clone(), record.digest.clone());
            problems.push(Problem::Tag { repository, tag, digest });
        }
    }
    if repository.row.sparse {
        return;
    }
    for (manifest, record) in repository.manifests.iter() {
        for reference in record.references.iter().filter(|reference| reference.required) {
            let there = match reference.kind {
                ReferenceKind::Manifest => repository.manifests.contains(&*reference.digest),
                ReferenceKind::Config | ReferenceKind::Layer => repository.blobs.contains(&*reference.digest),
            };
            if !there {
                let (repository, manifest, digest) =
                    (name.clone(), Digest::clone(manifest), Digest::clone(&reference.digest));
                problems.push(Problem::Reference { repository, manifest, digest });
            }
        }
    }
}
