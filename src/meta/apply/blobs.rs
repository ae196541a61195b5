//! Blob links.

use super::{Answer, BlobLink, Context, Digest, Rejection, RepositoryName, RepositoryRow, Response, State};

impl State {
    /// Links a blob that was pushed whole.
    pub(super) fn link_blob(
        &mut self,
        context: Context,
        repository: &RepositoryName,
        digest: &Digest,
        size: u64,
    ) -> Answer {
        self.check_size(digest, size)?;
        self.link(context, repository, digest, size);
        Ok(Response::Committed { digest: digest.clone(), size })
    }

    pub(super) fn mount_blob(
        &mut self,
        context: Context,
        from: &RepositoryName,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Answer {
        let unknown = || Rejection::BlobUnknown { digests: vec![digest.clone()] };
        let size = self.blob(from, digest).ok_or_else(unknown)?;
        self.link(context, repository, digest, size);
        Ok(Response::Mounted { size })
    }

    pub(super) fn unlink_blob(&mut self, name: &RepositoryName, digest: &Digest, sparse: bool) -> Answer {
        let repository = self.repositories.get(name).ok_or(Rejection::RepositoryUnknown)?;
        if !repository.blobs.contains(digest) {
            return Err(Rejection::BlobUnknown { digests: vec![digest.clone()] });
        }
        if let Some(by) = repository.named_by(digest, false) {
            if !sparse {
                return Err(Rejection::Referenced { by: by.clone() });
            }
            self.mark_sparse(name);
        }
        self.remove_blob(name, digest);
        self.drop_if_empty(name);
        Ok(Response::Done)
    }

    /// Links checked content; a link that is there already is renewed.
    pub(super) fn link(&mut self, context: Context, repository: &RepositoryName, digest: &Digest, size: u64) {
        self.ensure_repository(context, repository);
        self.put_blob(repository, digest, BlobLink { size, at: context.now }, context.index);
    }

    /// Refuses a size that differs from what is agreed for the same digest: one of them did not count the bytes.
    pub(super) fn check_size(&self, digest: &Digest, actual: u64) -> Result<(), Rejection> {
        match self.contents.get(digest) {
            Some(entry) if entry.row.size != actual => {
                Err(Rejection::SizeMismatch { digest: digest.clone(), expected: entry.row.size, actual })
            }
            _ => Ok(()),
        }
    }

    pub(super) fn ensure_repository(&mut self, context: Context, name: &RepositoryName) {
        if !self.repositories.contains(name) {
            self.put_repository(name, RepositoryRow { index: context.index, sparse: false });
        }
    }

    /// Notes that the repository's references may point at what is not there.
    pub(super) fn mark_sparse(&mut self, name: &RepositoryName) {
        if let Some(repository) = self.repositories.get(name).filter(|repository| !repository.row.sparse) {
            let row = RepositoryRow { sparse: true, ..repository.row.clone() };
            self.put_repository(name, row);
        }
    }
}
