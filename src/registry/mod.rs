//! Performs each thing a client can ask of a registry, independent of HTTP.
//!
//! CONTRACT (bodies to be written, one file per verb). No status code, header, JSON or channel here.

use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;

use crate::auth::Principal;
pub use crate::meta::command::Condition;
pub use crate::meta::{Consistency, Outcome, Referrer};
use crate::oci::{Algorithm, Digest, MediaType, Reference, RepositoryName, Tag, UploadId};
pub use crate::replica::Body;

#[derive(Debug, Clone)]
pub struct Config {
    pub read: Consistency,
    /// Accept manifests and indexes whose references are not there.
    pub sparse: bool,
    pub upload_ttl: Duration,
    pub uploads_per_principal_max: u32,
    /// 4 MiB by default.
    pub manifest_bytes_max: usize,
}

/// Who asks, and how fresh the answer must be.
#[derive(Debug, Clone)]
pub struct Caller {
    pub principal: Principal,
    pub consistency: Option<Consistency>,
    pub wait_for: Option<u64>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("repository is not known")]
    NameUnknown,
    #[error("manifest is not known")]
    ManifestUnknown,
    #[error("blob is not known")]
    BlobUnknown,
    #[error("upload session is not known")]
    UploadUnknown,
    #[error("upload session stands at {length}")]
    RangeInvalid { length: u64 },
    #[error("bytes hash to {actual}, not {expected}")]
    DigestMismatch { expected: Digest, actual: Digest },
    #[error("body has {actual} bytes, not {expected}")]
    SizeInvalid { expected: u64, actual: u64 },
    #[error("manifest is invalid: {0}")]
    ManifestInvalid(crate::oci::ManifestError),
    #[error("references are not in the repository")]
    ManifestReferencesUnknown { digests: Vec<Digest> },
    #[error("condition does not hold")]
    ConditionFailed { current: Option<Digest> },
    #[error("manifest {by} needs it")]
    Referenced { by: Digest },
    #[error("too many open uploads")]
    TooManyUploads { max: u32 },
    #[error("body broke off")]
    BodyBroken,
    #[error("no quorum")]
    NoQuorum { outcome: crate::meta::Outcome },
    #[error("registry is not open yet")]
    NotOpen,
    #[error("no live holder")]
    Unavailable,
    /** P19: HEAD 404, GET 503 */
    #[error("every copy is lost")]
    Lost,
    /** more commands in flight than the agreed state remembers: 503 with `Retry-After`, nothing was done */
    #[error("too many writes at once")]
    Busy,
    /** 413 */
    #[error("manifest is larger than {max} bytes")]
    ManifestTooLarge { max: usize },
    /** the session is made of so many small chunks that no more are taken */
    #[error("chunks are too small, send at least {min} bytes at a time")]
    ChunkTooSmall { min: u64 },
    #[error("too few copies: {reason}")]
    TooFewCopies { made: usize, needed: usize, reason: String },
    #[error("disk is full")]
    NoSpace,
    #[error("internal")]
    Internal {
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, Clone)]
pub struct ManifestFound {
    pub digest: Digest,
    pub media_type: MediaType,
    pub size: u64,
    /** `None` for HEAD */
    pub body: Option<Bytes>,
    /** answer with `Warning` */
    pub stale: bool,
    pub index: u64,
}
#[derive(Debug, Clone)]
pub struct BlobFound {
    pub digest: Digest,
    pub size: u64,
    pub stale: bool,
}
#[derive(Debug, Clone, Copy)]
pub struct UploadProgress {
    pub id: UploadId,
    /** bytes so far */
    pub length: u64,
    pub index: u64,
}
#[derive(Debug, Clone)]
pub struct BlobPushed {
    pub digest: Digest,
    pub size: u64,
    pub copies: usize,
    pub index: u64,
}
#[derive(Debug, Clone)]
pub struct ManifestPushed {
    pub digest: Digest,
    pub subject: Option<Digest>,
    pub tags: Vec<Tag>,
    pub copies: usize,
    pub index: u64,
}
#[derive(Debug, Clone)]
pub struct Page<T> {
    pub items: Vec<T>,
    /** more after the last item */
    pub more: bool,
    pub stale: bool,
}
/// The bytes of one PATCH, PUT or POST.
pub struct Chunk {
    /** first byte's offset if the client named one (`Content-Range`, or the `Location`'s state, P28) */
    pub offset: Option<u64>,
    /** the length the client promised, if any */
    pub length: Option<u64>,
    pub body: Body,
}
#[derive(Debug, Clone)]
pub struct ManifestUpload {
    pub reference: Reference,
    pub content_type: Option<String>,
    pub body: Bytes,
    /** `?tag=`: only with a digest reference */
    pub tags: Vec<Tag>,
    pub condition: Option<Condition>,
}

#[derive(Clone, Debug)]
pub struct Registry {}
impl Registry {
    pub async fn manifest(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        reference: &Reference,
        want_body: bool,
    ) -> Result<ManifestFound> {
        let _ = (caller, repository, reference, want_body);
        todo!()
    }
    pub async fn blob(&self, caller: &Caller, repository: &RepositoryName, digest: &Digest) -> Result<BlobFound> {
        let _ = (caller, repository, digest);
        todo!()
    }
    /// Checked bytes [start, end) of a blob that `blob` found.
    pub async fn read_blob(
        &self,
        found: &BlobFound,
        start: u64,
        end: u64,
    ) -> Result<BoxStream<'static, Result<Bytes>>> {
        let _ = (found, start, end);
        todo!()
    }
    pub async fn start_upload(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        algorithm: Algorithm,
    ) -> Result<UploadProgress> {
        let _ = (caller, repository, algorithm);
        todo!()
    }
    pub async fn upload(&self, caller: &Caller, repository: &RepositoryName, id: UploadId) -> Result<UploadProgress> {
        let _ = (caller, repository, id);
        todo!()
    }
    pub async fn append(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        id: UploadId,
        chunk: Chunk,
    ) -> Result<UploadProgress> {
        let _ = (caller, repository, id, chunk);
        todo!()
    }
    pub async fn commit(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        id: UploadId,
        digest: Digest,
        last: Chunk,
    ) -> Result<BlobPushed> {
        let _ = (caller, repository, id, digest, last);
        todo!()
    }
    pub async fn cancel(&self, caller: &Caller, repository: &RepositoryName, id: UploadId) -> Result<()> {
        let _ = (caller, repository, id);
        todo!()
    }
    /// Whole blob in one POST.
    pub async fn push_blob(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        digest: Digest,
        body: Chunk,
    ) -> Result<BlobPushed> {
        let _ = (caller, repository, digest, body);
        todo!()
    }
    /// `None`: cannot be mounted, open an upload instead (202). `readable` says whether the caller may pull a repository.
    pub async fn mount(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        digest: &Digest,
        from: Option<&RepositoryName>,
        readable: &(dyn Fn(&RepositoryName) -> bool + Sync),
    ) -> Result<Option<BlobPushed>> {
        let _ = (caller, repository, digest, from, readable);
        todo!()
    }
    pub async fn delete_blob(&self, caller: &Caller, repository: &RepositoryName, digest: &Digest) -> Result<u64> {
        let _ = (caller, repository, digest);
        todo!()
    }
    pub async fn put_manifest(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        upload: ManifestUpload,
    ) -> Result<ManifestPushed> {
        let _ = (caller, repository, upload);
        todo!()
    }
    /// Deletes a tag or a manifest with its tags; the log index (P6, P29).
    pub async fn delete_manifest(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        reference: &Reference,
        condition: Option<Condition>,
    ) -> Result<u64> {
        let _ = (caller, repository, reference, condition);
        todo!()
    }
    pub async fn tags(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page<Tag>> {
        let _ = (caller, repository, after, limit);
        todo!()
    }
    pub async fn catalog(&self, caller: &Caller, after: Option<&str>, limit: usize) -> Result<Page<RepositoryName>> {
        let _ = (caller, after, limit);
        todo!()
    }
    /// Referrers after `after`, cut so that the page's JSON stays under 4 MiB. Never `NameUnknown`.
    pub async fn referrers(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        subject: &Digest,
        artifact_types: &[String],
        after: Option<&Digest>,
    ) -> Result<Page<crate::meta::Referrer>> {
        let _ = (caller, repository, subject, artifact_types, after);
        todo!()
    }
}
