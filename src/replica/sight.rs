//! What `replica` wants to know of the other nodes.

use std::fmt;

use crate::gossip::Gossip;
use crate::oci::Digest;
use crate::topology::NodeId;

/// Liveness and hints, as gossip has them; tests hand in their own.
pub trait Sight: fmt::Debug + Send + Sync + 'static {
    /// Whether the node answers.
    fn is_live(&self, node: NodeId) -> bool;
    /// Whether the node has been silent for so long that asking it is a waste.
    fn is_dead(&self, node: NodeId) -> bool;
    /// Nodes said to hold a blob: a hint, never a promise.
    fn holders(&self, digest: &Digest) -> Vec<NodeId>;
    /// Remembers that a call to `node` did not go through.
    fn report_unreachable(&self, node: NodeId);
}

impl Sight for Gossip {
    fn is_live(&self, node: NodeId) -> bool {
        Self::is_live(self, node)
    }

    fn is_dead(&self, node: NodeId) -> bool {
        let members = self.members().borrow().clone();
        members.get(&node).is_some_and(|member| member.liveness == crate::gossip::Liveness::Dead)
    }

    fn holders(&self, digest: &Digest) -> Vec<NodeId> {
        Self::holders(self, digest)
    }

    fn report_unreachable(&self, node: NodeId) {
        Self::report_unreachable(self, node);
    }
}
