//! Removing tags, manifests and blob links; answered when no node can serve them any more (P6).

use crate::meta::State;
use crate::meta::command::{Command, Rejection, Response};
use crate::oci::{Digest, Reference, RepositoryName};

use super::pull::manifest_missing;
use super::view::{Budget, refused};
use super::{Caller, Condition, Error, Registry, Result};

impl Registry {
    /// Deletes a tag, or a manifest with its tags; returns the log index.
    ///
    /// # Errors
    ///
    /// - [`Error::NameUnknown`], [`Error::ManifestUnknown`].
    /// - [`Error::Referenced`] if an index of the repository names the manifest (P29).
    /// - [`Error::ConditionFailed`] with what is there.
    /// - [`Error::NoQuorum`].
    ///
    /// Spec: distribution-spec v1.1.1 end-9.
    pub async fn delete_manifest(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        reference: &Reference,
        condition: Option<Condition>,
    ) -> Result<u64> {
        let budget = Budget::start();
        let find = |state: &State| match reference {
            Reference::Tag(tag) => state.tag(repository, tag).map(|_| ()),
            Reference::Digest(digest) => state.manifest(repository, digest).map(|_| ()),
        };
        self.worth_proposing(caller, find, |state| manifest_missing(state, repository)).await?;
        let command = match reference {
            Reference::Tag(tag) => Command::DeleteTag { repository: repository.clone(), tag: tag.clone(), condition },
            Reference::Digest(digest) => {
                // A manifest under its digest never changes: the condition holds or not whenever it is looked at.
                if condition.as_ref().is_some_and(|condition| !holds(condition, digest)) {
                    return Err(Error::ConditionFailed { current: Some(digest.clone()) });
                }
                let sparse = self.0.config.sparse;
                Command::DeleteManifest { repository: repository.clone(), digest: digest.clone(), sparse }
            }
        };
        self.propose_done(command, budget).await
    }

    /// Unlinks a blob from a repository; returns the log index.
    ///
    /// # Errors
    ///
    /// - [`Error::BlobUnknown`].
    /// - [`Error::Referenced`] if a manifest of the repository names it (P29).
    /// - [`Error::NoQuorum`].
    ///
    /// Spec: distribution-spec v1.1.1 end-10.
    pub async fn delete_blob(&self, caller: &Caller, repository: &RepositoryName, digest: &Digest) -> Result<u64> {
        let budget = Budget::start();
        let find = |state: &State| state.blob(repository, digest);
        self.worth_proposing(caller, find, |_| Error::BlobUnknown).await?;
        let sparse = self.0.config.sparse;
        let command = Command::UnlinkBlob { repository: repository.clone(), digest: digest.clone(), sparse };
        match self.propose(command, budget).await? {
            (index, Response::Done) => Ok(index),
            (_, Response::Rejected(Rejection::RepositoryUnknown)) => Err(Error::BlobUnknown),
            (_, other) => Err(refused(other)),
        }
    }

    /// Refuses a delete of what a fresh view does not have, so that it costs no entry of the log.
    ///
    /// Anything less sure goes to the log, where it is decided.
    async fn worth_proposing<T>(
        &self,
        caller: &Caller,
        find: impl Fn(&State) -> Option<T>,
        missing: impl Fn(&State) -> Error,
    ) -> Result<()> {
        let caller = Caller { consistency: None, ..caller.clone() };
        match self.look_up(&caller, find, missing).await {
            Ok(_) | Err(Error::NoQuorum { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Whether a condition holds of a manifest that is there.
fn holds(condition: &Condition, digest: &Digest) -> bool {
    match condition {
        Condition::Is(digests) => digests.contains(digest),
        Condition::Exists => true,
        Condition::Absent => false,
        Condition::IsNot(digests) => !digests.contains(digest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn conditions_on_a_digest_are_about_that_digest() {
        let digest = Digest::of(Algorithm::Sha256, b"a");
        let other = Digest::of(Algorithm::Sha256, b"b");
        for (condition, expected) in [
            (Condition::Is(vec![other.clone(), digest.clone()]), true),
            (Condition::Is(vec![other.clone()]), false),
            (Condition::Exists, true),
            (Condition::Absent, false),
            (Condition::IsNot(vec![other]), true),
            (Condition::IsNot(vec![digest.clone()]), false),
        ] {
            assert_eq!(holds(&condition, &digest), expected, "{condition:?}");
        }
    }
}
