//! Reuse of a blob that another repository links.

use crate::meta::State;
use crate::meta::command::{Command, Rejection, Response};
use crate::oci::{Digest, RepositoryName};

use super::view::{Budget, refused};
use super::{BlobPushed, Caller, Registry, Result};

/// Whether the caller may pull a repository.
type Readable<'a> = &'a (dyn Fn(&RepositoryName) -> bool + Sync);

impl Registry {
    /// Links a blob that the caller may read in `from`, or anywhere; `None` if that cannot be: open an upload (202).
    ///
    /// Why not is not told: no such repository, no such blob, not readable, and no copy in reach all look the same (I10).
    /// On success the blob has its `write_copies` copies (I2).
    ///
    /// # Errors
    ///
    /// [`super::Error::NoQuorum`], [`super::Error::NotOpen`], [`super::Error::Busy`].
    ///
    /// Spec: distribution-spec v1.1.1 end-11.
    #[expect(clippy::too_many_arguments, reason = "who, where and what: each has a type of its own")]
    pub async fn mount(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        digest: &Digest,
        from: Option<&RepositoryName>,
        readable: Readable<'_>,
    ) -> Result<Option<BlobPushed>> {
        let here = self.0.meta.view_local();
        let found = match source(&here.state, digest, from, readable) {
            Some(found) => Some(found),
            // Everything that is not found takes a read index, readable or not.
            None => source(&self.0.meta.confirm().await.state, digest, from, readable),
        };
        let Some((from, size)) = found else { return Ok(None) };
        let copies = match self.0.replicas.ensure_copies(digest, size).await {
            Ok(nodes) => nodes.len(),
            Err(error) => {
                tracing::debug!(%digest, error = &error as &dyn std::error::Error, "blob not mounted");
                return Ok(None);
            }
        };
        let command = Command::MountBlob {
            from,
            repository: repository.clone(),
            digest: digest.clone(),
            principal: caller.principal.as_str().to_owned(),
        };
        match self.propose(command, Budget::start()).await? {
            (index, Response::Mounted { size }) => Ok(Some(BlobPushed { digest: digest.clone(), size, copies, index })),
            // Deleted in between (G5).
            (_, Response::Rejected(Rejection::BlobUnknown { .. } | Rejection::RepositoryUnknown)) => Ok(None),
            (_, other) => Err(refused(other)),
        }
    }
}

/// A repository that links the blob and that the caller may read, with the blob's size.
fn source(
    state: &State,
    digest: &Digest,
    from: Option<&RepositoryName>,
    readable: Readable<'_>,
) -> Option<(RepositoryName, u64)> {
    let linked = |repository: RepositoryName| state.blob(&repository, digest).map(|size| (repository, size));
    match from {
        Some(from) => readable(from).then(|| from.clone()).and_then(linked),
        None => state.blob_repositories(digest).into_iter().filter(|repository| readable(repository)).find_map(linked),
    }
}
