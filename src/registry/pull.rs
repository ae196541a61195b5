//! How a manifest or a blob is found and read.

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;

use crate::meta::State;
use crate::oci::{Digest, MediaType, Reference, RepositoryName, Tag};
use crate::replica;

use super::error::Unexpected;
use super::view::Seen;
use super::{BlobFound, Caller, Error, ManifestFound, Registry, Result};

/// What the agreed state says of a manifest.
struct Entry {
    digest: Digest,
    media_type: MediaType,
    size: u64,
}

impl Registry {
    /// Finds a manifest by tag or digest; with its bytes if `want_body` (GET), else only where a copy is in reach (HEAD).
    ///
    /// A tag is read as freshly as the caller asks (I3); a digest from this node alone while it is fresh (P5).
    ///
    /// # Errors
    ///
    /// - [`Error::NameUnknown`], [`Error::ManifestUnknown`] if a fresh view does not have it.
    /// - [`Error::NoQuorum`] if only a view out of touch could be asked, and it does not have it.
    /// - [`Error::Unavailable`], [`Error::Lost`] if no node in reach has the bytes.
    ///
    /// Spec: distribution-spec v1.1.1 end-3.
    pub async fn manifest(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        reference: &Reference,
        want_body: bool,
    ) -> Result<ManifestFound> {
        let Seen { found: Entry { digest, media_type, size }, stale } = match reference {
            Reference::Tag(tag) => self.tagged(caller, repository, tag).await?,
            Reference::Digest(digest) => self.by_digest(caller, repository, digest).await?,
        };
        let index = self.index();
        let body = if want_body {
            Some(self.0.replicas.read_all(&digest, size).await?)
        } else {
            self.obtainable(&digest, size).await?;
            None
        };
        Ok(ManifestFound { digest, media_type, size, body, stale, index })
    }

    /// Finds a blob that the repository links and that some node in reach holds; it is not collected for a while (P23).
    ///
    /// # Errors
    ///
    /// - [`Error::BlobUnknown`] if a fresh view has no link; the repository need not exist.
    /// - [`Error::NoQuorum`] if only a view out of touch could be asked, and it has none.
    /// - [`Error::Unavailable`] if a node that may hold it is away; [`Error::Lost`] if every node says it has none (P19).
    ///
    /// Spec: distribution-spec v1.1.1 end-2.
    pub async fn blob(&self, caller: &Caller, repository: &RepositoryName, digest: &Digest) -> Result<BlobFound> {
        let find = |state: &State| state.blob(repository, digest);
        let Seen { found: size, stale } = self.look_up(caller, find, |_| Error::BlobUnknown).await?;
        self.obtainable(digest, size).await?;
        // Who hears that it is there need not push it: it must be there when a manifest names it (I6).
        let stale = stale || !self.promise_blob(repository, digest).await?;
        Ok(BlobFound { digest: digest.clone(), size, stale })
    }

    /// Opens the checked bytes from `start` up to, not including, `end` of a blob that [`Self::blob`] found.
    ///
    /// Wrong bytes are never sent: the stream ends with an error where no good copy is left (I4).
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`], [`Error::Lost`] before the first byte.
    pub async fn read_blob(
        &self,
        found: &BlobFound,
        start: u64,
        end: u64,
    ) -> Result<BoxStream<'static, Result<Bytes>>> {
        debug_assert!(start <= end && end <= found.size, "the door cuts ranges to the blob");
        let (end, start) = (end.min(found.size), start.min(end));
        if start >= end {
            return Ok(futures::stream::empty().boxed());
        }
        let bytes = self.0.replicas.read(&found.digest, found.size, start, end).await?;
        Ok(bytes.map(|piece| piece.map_err(Error::from)).boxed())
    }

    /// Finds a manifest by digest; it is not collected for a while, should nothing name it (P23).
    async fn by_digest(&self, caller: &Caller, repository: &RepositoryName, digest: &Digest) -> Result<Seen<Entry>> {
        let find = |state: &State| entry(state, repository, digest);
        let mut seen = self.look_up(caller, find, |state| manifest_missing(state, repository)).await?;
        if !seen.stale {
            let rules = self.0.config.rules;
            let is_short = |state: &State, now| state.manifest_lease_is_short(repository, digest, &rules, now);
            seen.stale = !self.keep_leased(repository, digest, is_short).await;
            let here = self.0.meta.local();
            if !seen.stale && find(&here).is_none() {
                return Err(manifest_missing(&here, repository));
            }
        }
        Ok(seen)
    }

    async fn tagged(&self, caller: &Caller, repository: &RepositoryName, tag: &Tag) -> Result<Seen<Entry>> {
        let view = self.view(caller).await?;
        let Some(record) = view.state.tag(repository, tag) else {
            return Err(if view.fresh { manifest_missing(&view.state, repository) } else { Error::no_quorum() });
        };
        // One entry of the log moves tags and manifests together.
        let found = entry(&view.state, repository, &record.digest)
            .ok_or_else(|| Error::internal(Unexpected::Dangling(record.digest.clone())))?;
        Ok(Seen { found, stale: !view.fresh })
    }

    /// Makes sure that some node in reach holds the bytes: a file here answers at once.
    async fn obtainable(&self, digest: &Digest, size: u64) -> Result<()> {
        match self.0.blobs.has(digest, size).await {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            // This node's disk fails: others may have it.
            Err(error) => tracing::warn!(%digest, error = &error as &dyn std::error::Error, "blob not looked at here"),
        }
        match self.0.replicas.locate(digest, size).await {
            Ok(_) => Ok(()),
            Err(error @ (replica::Error::NoHolder { .. } | replica::Error::Stopped)) => Err(error.into()),
            // Whatever else went wrong on the way: absence is not proved.
            Err(error) => {
                tracing::warn!(%digest, error = &error as &dyn std::error::Error, "blob not located");
                Err(Error::Unavailable)
            }
        }
    }
}

fn entry(state: &State, repository: &RepositoryName, digest: &Digest) -> Option<Entry> {
    let record = state.manifest(repository, digest)?;
    Some(Entry { digest: digest.clone(), media_type: record.media_type.clone(), size: record.size })
}

/// The error of a manifest that is not there.
pub(super) fn manifest_missing(state: &State, repository: &RepositoryName) -> Error {
    if state.repository_exists(repository) { Error::ManifestUnknown } else { Error::NameUnknown }
}
