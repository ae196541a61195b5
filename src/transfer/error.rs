//! What can go wrong between two nodes.

use crate::topology::NodeId;

/// Says why bytes did not get from one node to another.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The peer answered that it does not hold what was asked for.
    #[error("node {node} does not hold it")]
    NotHere {
        /// The peer.
        node: NodeId,
    },
    /// The peer's disk is past its watermark.
    #[error("node {node} takes no writes")]
    NoSpace {
        /// The peer.
        node: NodeId,
    },
    /// The peer's copy or the frames it sent do not match their checksums.
    #[error("node {node} has damaged bytes")]
    Damaged {
        /// The peer.
        node: NodeId,
    },
    /// The peer is still busy with the same extent, or with too much else.
    #[error("node {node} is busy")]
    Busy {
        /// The peer.
        node: NodeId,
    },
    /// No byte and no sign of life for [`super::STALL`].
    #[error("node {node} makes no progress")]
    Stalled {
        /// The peer.
        node: NodeId,
    },
    /// The connection could not be made or broke.
    #[error("node {node} is out of reach")]
    Unreachable {
        /// The peer.
        node: NodeId,
        /// What the connection said, if anything.
        source: Option<Box<tonic::Status>>,
    },
    /// The peer answered with an error of its own.
    #[error("node {node} refuses the call: {}", source.message())]
    Refused {
        /// The peer.
        node: NodeId,
        /// Its answer.
        source: Box<tonic::Status>,
    },
    /// The peer's answer does not make sense.
    #[error("node {node} answers out of turn")]
    Malformed {
        /// The peer.
        node: NodeId,
    },
    /// None of the nodes asked could serve it.
    #[error("no node asked could serve it")]
    NoHolder,
    /// The bytes that holders sent are not the blob.
    #[error("bytes received are not the blob")]
    NotTheBlob,
    /// The peer is no member.
    #[error(transparent)]
    Peer(#[from] crate::rpc::Error),
    /// This node's disk.
    #[error(transparent)]
    Blob(#[from] crate::blob::Error),
}

/// The result of a transfer.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Whether the peer gave no answer at all, so that others should avoid it for a while.
    #[must_use]
    pub const fn is_silence(&self) -> bool {
        matches!(self, Self::Stalled { .. } | Self::Unreachable { .. })
    }

    pub(super) fn from_status(node: NodeId, status: tonic::Status) -> Self {
        use tonic::Code;
        match status.code() {
            Code::NotFound => Self::NotHere { node },
            Code::ResourceExhausted => Self::NoSpace { node },
            Code::DataLoss => Self::Damaged { node },
            Code::Aborted => Self::Busy { node },
            Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded | Code::Unknown => {
                Self::Unreachable { node, source: Some(Box::new(status)) }
            }
            _ => Self::Refused { node, source: Box::new(status) },
        }
    }
}
