//! Why a use case did not do what was asked.

use crate::blob;
use crate::meta::command::{Rejection, Response};
use crate::meta::{Outcome, ProposeError};
use crate::oci::{Digest, ManifestError};
use crate::replica;

/// The least bytes per chunk that a session made of many chunks is asked for.
pub(super) const CHUNK_BYTES_MIN: u64 = 1 << 20;

/// Says why a request was refused or could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The repository holds nothing.
    #[error("repository is not known")]
    NameUnknown,
    /// The repository has no such manifest or tag.
    #[error("manifest is not known")]
    ManifestUnknown,
    /// The repository does not link the blob.
    #[error("blob is not known")]
    BlobUnknown,
    /// No open session of this id, repository and principal.
    #[error("upload session is not known")]
    UploadUnknown,
    /// The chunk does not begin where the session ends.
    #[error("upload session stands at {length}")]
    RangeInvalid {
        /// The session's true length in bytes.
        length: u64,
    },
    /// The bytes are not those of the digest.
    #[error("bytes hash to {actual}, not {expected}")]
    DigestMismatch {
        /// What the client said.
        expected: Digest,
        /// What the bytes are.
        actual: Digest,
    },
    /// A body or a descriptor has another length than it says.
    #[error("body has {actual} bytes, not {expected}")]
    SizeInvalid {
        /// What was said.
        expected: u64,
        /// What is.
        actual: u64,
    },
    /// The manifest breaks its specification.
    #[error("manifest is invalid: {0}")]
    ManifestInvalid(ManifestError),
    /// The manifest names content that the repository does not have.
    #[error("references are not in the repository")]
    ManifestReferencesUnknown {
        /// The content.
        digests: Vec<Digest>,
    },
    /// `If-Match` or `If-None-Match` does not hold.
    #[error("condition does not hold")]
    ConditionFailed {
        /// What the tag points at.
        current: Option<Digest>,
    },
    /// A manifest of the repository names it (P29).
    #[error("manifest {by} needs it")]
    Referenced {
        /// One manifest that does.
        by: Digest,
    },
    /// The principal has too many open sessions.
    #[error("too many open uploads")]
    TooManyUploads {
        /// The most a principal may have.
        max: u32,
    },
    /// The session is made of so many small chunks that no more are taken.
    #[error("chunks are too small, send at least {min} bytes at a time")]
    ChunkTooSmall {
        /// How many bytes a chunk should have.
        min: u64,
    },
    /// The manifest is too large.
    #[error("manifest is larger than {max} bytes")]
    ManifestTooLarge {
        /// The largest, in bytes.
        max: usize,
    },
    /// The client's body broke off; what arrived of an upload is kept (P28).
    #[error("body broke off")]
    BodyBroken,
    /// No quorum in time.
    #[error("no quorum")]
    NoQuorum {
        /// Whether the change may still take effect (P4).
        outcome: Outcome,
    },
    /// The cluster has not formed yet.
    #[error("registry is not open yet")]
    NotOpen,
    /// More commands in flight than the agreed state remembers; nothing was done.
    #[error("too many writes at once")]
    Busy,
    /// The content exists, but no node that is up has a good copy (P19).
    #[error("no live holder")]
    Unavailable,
    /// The content exists by agreement, but every node says it has no copy (P19).
    #[error("every copy is lost")]
    Lost,
    /// Too few nodes could take a copy (P14).
    #[error("too few copies: {reason}")]
    TooFewCopies {
        /// Copies made.
        made: usize,
        /// Copies needed.
        needed: usize,
        /// Why the others failed.
        reason: String,
    },
    /// This node's disk is past its high watermark.
    #[error("disk is full")]
    NoSpace,
    /// The node failed.
    #[error("internal")]
    Internal {
        /// How.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What a use case returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An answer of the agreed state that does not belong to the command.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unexpected {
    #[error("the agreed state answered {0:?}")]
    Response(Response),
    #[error("the agreed state refused with {0:?}")]
    Rejection(Rejection),
    #[error("a tag points at {0}, which is not there")]
    Dangling(Digest),
}

impl Error {
    /// Wraps a failure that no client can act on.
    pub(super) fn internal(source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Internal { source: Box::new(source) }
    }

    /// A write that certainly did nothing, or a read that could not be confirmed.
    pub(super) const fn no_quorum() -> Self {
        Self::NoQuorum { outcome: Outcome::None }
    }
}

impl From<ProposeError> for Error {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::Unavailable { outcome } => Self::NoQuorum { outcome },
            ProposeError::Stopped => Self::no_quorum(),
        }
    }
}

impl From<replica::Error> for Error {
    fn from(error: replica::Error) -> Self {
        match error {
            replica::Error::NoHolder { lost: true, .. } => Self::Lost,
            replica::Error::NoHolder { lost: false, .. } => Self::Unavailable,
            replica::Error::TooFewCopies { made, needed, reason } => Self::TooFewCopies { made, needed, reason },
            replica::Error::Blob(error) => error.into(),
            replica::Error::Stopped => Self::no_quorum(),
            // What the client said of its bytes was compared already: a mismatch below is damage on the way.
            error @ replica::Error::DigestMismatch { .. } => {
                tracing::warn!(error = &error as &dyn std::error::Error, "copies are not the blob");
                Self::Unavailable
            }
        }
    }
}

impl From<blob::Error> for Error {
    fn from(error: blob::Error) -> Self {
        match error {
            blob::Error::NoSpace | blob::Error::DiskUnwritable => Self::NoSpace,
            blob::Error::Stopped => Self::no_quorum(),
            // A failing disk, or bytes on it that went bad, is no fault of the request (I12): another node, or a later try,
            // may do.
            blob::Error::Io { .. }
            | blob::Error::DigestMismatch { .. }
            | blob::Error::SizeMismatch { .. }
            | blob::Error::BlockDamaged { .. }
            | blob::Error::ExtentUnknown { .. }
            | blob::Error::ExtentAbandoned { .. }
            | blob::Error::Ended => {
                tracing::warn!(error = &error as &dyn std::error::Error, "disk failed a request");
                Self::Unavailable
            }
            error @ blob::Error::HashState => Self::internal(error),
        }
    }
}

impl From<Rejection> for Error {
    /// As a rule; the verbs treat first what means more to them.
    fn from(rejection: Rejection) -> Self {
        match rejection {
            Rejection::Expired | Rejection::MembershipChanged => Self::no_quorum(),
            Rejection::Busy => Self::Busy,
            Rejection::NotOpen => Self::NotOpen,
            Rejection::RepositoryUnknown => Self::NameUnknown,
            Rejection::UploadUnknown | Rejection::UploadClosed => Self::UploadUnknown,
            Rejection::OffsetMismatch { length } => Self::RangeInvalid { length },
            Rejection::TooManyUploads { max } => Self::TooManyUploads { max },
            Rejection::TooManyExtents { .. } => Self::ChunkTooSmall { min: CHUNK_BYTES_MIN },
            Rejection::BlobUnknown { .. } => Self::BlobUnknown,
            Rejection::SizeMismatch { expected, actual, .. } => Self::SizeInvalid { expected, actual },
            Rejection::ManifestUnknown | Rejection::TagUnknown => Self::ManifestUnknown,
            Rejection::ConditionFailed { current } => Self::ConditionFailed { current },
            Rejection::Referenced { by } => Self::Referenced { by },
            rejection @ (Rejection::ClusterMismatch
            | Rejection::NodeUnknown
            | Rejection::NameTaken
            | Rejection::FeatureLevel { .. }
            | Rejection::PlanChanged
            | Rejection::TokenUnknown
            | Rejection::TokenExpired
            | Rejection::TokenUsed
            | Rejection::PolicyInvalid) => Self::internal(Unexpected::Rejection(rejection)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn what_a_disk_does_is_never_an_internal_error() {
        let digest = Digest::of(Algorithm::Sha256, b"");
        let bad = [
            blob::Error::DigestMismatch { expected: digest.clone(), actual: digest.clone() },
            blob::Error::SizeMismatch { expected: 1, actual: 2 },
            blob::Error::BlockDamaged { digest: digest.clone(), block: 0 },
            blob::Error::Ended,
        ];
        for error in bad {
            assert!(matches!(Error::from(replica::Error::Blob(error)), Error::Unavailable));
        }
        assert!(matches!(Error::from(replica::Error::DigestMismatch { digest }), Error::Unavailable));
        assert!(matches!(Error::from(blob::Error::DiskUnwritable), Error::NoSpace));
        assert!(matches!(Error::from(blob::Error::Stopped), Error::NoQuorum { .. }));
    }
}
