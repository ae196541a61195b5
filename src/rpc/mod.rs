//! Keeps one authenticated channel per peer and one server for this node.
//!
//! Owns `identity/` and `promise` in the data directory, and the connections. Invariants: between nodes there is only TLS
//! 1.3 with certificates of the cluster's own authority, each naming cluster, recovery epoch and node exactly; nothing but
//! the bootstrap service answers a caller without one; connecting never blocks a caller that has not put a call.
//! Does not retry calls and does not know what they carry. Start reading at `server.rs` and `peers.rs`; how a node comes by
//! its identity is in `bootstrap/`.

mod bootstrap;
mod ca;
mod connection;
mod dial;
mod error;
mod files;
mod identity;
mod lane;
mod metrics;
mod node_uri;
mod peers;
mod server;
mod status;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod tls;
mod wire;

pub use bootstrap::{
    AddNodeError, BadNode, BadToken, Bootstrap, BootstrapOptions, Bootstrapped, ClusterHooks, JoinToken,
    NodeDescription, Secret, TokenJoinError, join_by_token,
};
pub use dial::{describe, describe_status};
pub use error::{Error, Result};
pub use identity::{Identity, load_identity, renew_epoch, whose};
pub use lane::{Lane, Runtimes};
pub use metrics::Metrics;
pub use node_uri::NodeUri;
pub use peers::{Peers, PeersParts, within};
pub use server::{Admission, Limits, Server, ServerHandle, ServerParts};
pub use status::Retry;
pub use tls::Credentials;
pub use wire::{BadDigest, proto};

use crate::topology::{ClusterId, NodeId};

/// The largest message of any service, in bytes; each generated server and client is told so explicitly.
pub const MESSAGE_BYTES_MAX: usize = 8 << 20;

/// Who is at the far end of an authenticated connection; in the extensions of every request to this node's server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The cluster it belongs to: always this node's own.
    pub cluster: ClusterId,
    /// The recovery epoch: always this node's own.
    pub epoch: u64,
    /// The node, as its certificate says.
    pub node: NodeId,
}

/// Returns the authenticated peer of a request.
///
/// # Errors
///
/// `UNAUTHENTICATED` if the caller showed no certificate; the server lets that happen only in the bootstrap service.
pub fn peer<T>(request: &tonic::Request<T>) -> std::result::Result<PeerIdentity, tonic::Status> {
    let missing = || Retry::GiveUp.status(tonic::Code::Unauthenticated, "a node certificate is needed");
    request.extensions().get().cloned().ok_or_else(missing)
}
