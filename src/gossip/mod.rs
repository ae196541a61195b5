//! Spreads, without a leader, who is alive and who holds which blob.
//!
//! CONTRACT (bodies to be written).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::oci::Digest;
use crate::topology::NodeId;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    Live,
    Suspect,
    Dead,
}

/// A member as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub liveness: Liveness,
    pub since_heard: Option<Duration>,
    pub reason: Option<String>,
}

/// Everyone's liveness as this node sees it; this node itself is always live.
pub type Members = BTreeMap<NodeId, Member>;

#[derive(Clone, Debug)]
pub struct Gossip {}
impl Gossip {
    pub fn members(&self) -> watch::Receiver<Arc<Members>> {
        todo!()
    }
    pub fn is_live(&self, node: NodeId) -> bool {
        let _ = node;
        todo!()
    }
    /// Nodes that said they hold `digest`: a hint, never a promise; may be empty.
    pub fn holders(&self, digest: &Digest) -> Vec<NodeId> {
        let _ = digest;
        todo!()
    }
    /// Says that this node gained a blob.
    pub fn announce(&self, digest: &Digest) {
        let _ = digest;
        todo!()
    }
    /// Remembers that `node` served or stored `digest`.
    pub fn learn(&self, digest: &Digest, node: NodeId) {
        let _ = (digest, node);
        todo!()
    }
    /// Remembers that a call to `node` did not go through, so that others avoid it before the next round.
    pub fn report_unreachable(&self, node: NodeId) {
        let _ = node;
        todo!()
    }
}
