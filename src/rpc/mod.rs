//! Keeps one authenticated channel per peer and one server for this node.
//!
//! CONTRACT (bodies to be written).

mod wire;

pub use wire::proto;

use crate::topology::{ClusterId, NodeId};

/// Which connection to a peer a call travels on: bulk bytes never delay a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    Raft,
    Control,
    Bulk,
}

/// Who is at the far end of an authenticated connection; in the extensions of every request to this node's server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    pub cluster: ClusterId,
    pub node: NodeId,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("node {node} is not in the topology")]
    PeerUnknown { node: NodeId },
}
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// This node's channels to its peers; cheap to clone.
#[derive(Clone, Debug)]
pub struct Peers {}
impl Peers {
    /// This node's id.
    pub fn me(&self) -> NodeId {
        todo!()
    }
    /// A lazily connected channel that reconnects by itself; calling never blocks on connecting.
    pub fn channel(&self, peer: NodeId, lane: Lane) -> Result<tonic::transport::Channel> {
        let _ = (peer, lane);
        todo!()
    }
}

/// What a caller may do about a failed call (STYLE.md: three classes), carried as a typed detail in gRPC metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    Here,
    Elsewhere,
    GiveUp,
}

/// The authenticated peer of a request.
pub fn peer<T>(request: &tonic::Request<T>) -> std::result::Result<PeerIdentity, tonic::Status> {
    let _ = request;
    todo!()
}
