//! Makes enough copies of a new blob and finds a copy of an old one.
//!
//! Owns the fetches that are in flight; files belong to `blob`, nodes to `topology`, liveness to `gossip`.
//! Invariants: bytes count as copied only where a node says it has synced and hashed them (P14); memory per stream does
//! not grow with a blob's size (P15); a body that is not its digest is never completed (P16); at most one fetch of a blob
//! runs on this node (P17); gossip is a hint, the holder's own answer decides (P19).
//! Deliberately does not know what is linked: callers bring digest and size from the agreed state.
//! Start reading at [`Replicas`]; a push is `receive.rs`, `assemble.rs` and `counting.rs`, a pull is `read.rs`.

mod activity;
mod assemble;
mod bodies;
mod counting;
mod direct;
mod error;
mod fan_out;
mod in_flight;
mod locate;
mod read;
mod receive;
mod salvage;
mod sight;
mod tail;

#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use tokio::sync::{oneshot, watch};

use crate::env::{BoxFuture, Env};
use crate::oci::{Digest, ExtentId, HashState};
use crate::topology::{NodeId, NodeState, Policy, Topology, placement};
use crate::transfer::Local;

use in_flight::InFlight;

pub use crate::transfer::{HeldPart, Throttle};
pub use activity::Activity;
pub use error::{Error, Result};
pub use sight::Sight;

/// How long after a client's last byte too few targets in reach are waited for (P14).
const TARGETS_WAIT: Duration = Duration::from_secs(5);

/// How often missing holders are looked for.
const LOOK: Duration = Duration::from_millis(200);

/// How many copies are made, and how many before the answer.
#[derive(Debug, Clone)]
pub struct Config {
    /// Copies wanted of each blob.
    pub copies: usize,
    /// Synced copies before a push is answered.
    pub write_copies: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { copies: 3, write_copies: 2 }
    }
}

/// One PATCH (or whole body) that is to become an extent.
#[derive(Debug, Clone)]
pub struct ExtentRequest {
    /// Fresh for every attempt (P24).
    pub id: ExtentId,
    /// The session's hash state before the first byte.
    pub resume: HashState,
    /// The session's holders (P25).
    pub holders: Vec<NodeId>,
    /// What `Content-Length` promised, if anything: a shorter body counts as broken.
    pub promised_length: Option<u64>,
}

/// The extent that a PATCH (or a whole monolithic body) became.
#[derive(Debug, Clone)]
pub struct ReceivedExtent {
    /// The id it was asked to have.
    pub id: ExtentId,
    /// Its bytes.
    pub length: u64,
    /// The session's hash state after its last byte.
    pub hash_state: HashState,
    /// Nodes on which these `length` bytes are synced and hashed.
    pub holders: Vec<NodeId>,
    /// Whether the body ended as it should (false: cut, `length` is the salvaged part, P28).
    pub complete: bool,
}

/// A client's body, frame by frame; an error or a drop means the connection broke.
pub type Body = BoxStream<'static, std::result::Result<Bytes, std::io::Error>>;

/// What [`Replicas`] is built on.
#[derive(Debug, Clone)]
pub struct Parts {
    /// This node's disk and its way to the others.
    pub local: Local,
    /// The outer world.
    pub env: Env,
    /// The agreed nodes.
    pub topology: watch::Receiver<Arc<Topology>>,
    /// Who is alive and who is said to hold what.
    pub sight: Arc<dyn Sight>,
}

/// This node's hand on all copies of the cluster; cheap to clone.
#[derive(Clone, Debug)]
pub struct Replicas(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Config,
    parts: Parts,
    in_flight: InFlight,
    activity: Arc<Activity>,
}

impl Replicas {
    /// Wires the parts together; starts nothing.
    #[must_use]
    pub fn new(config: Config, parts: Parts) -> Self {
        Self(Arc::new(Inner { config, parts, in_flight: InFlight::default(), activity: Arc::default() }))
    }

    /// Counts what clients move through this node.
    #[must_use]
    pub fn activity(&self) -> Arc<Activity> {
        Arc::clone(&self.0.activity)
    }

    /// This node.
    #[must_use]
    pub fn me(&self) -> NodeId {
        self.local().client.me()
    }

    /// The effective `write_copies` now: what is configured, capped by the members only (P14).
    #[must_use]
    pub fn write_copies(&self) -> usize {
        self.0.config.write_copies.min(self.topology().members()).max(1)
    }

    /// Whether placement wants a copy of the blob on this node.
    #[must_use]
    pub fn is_wanted_here(&self, digest: &Digest) -> bool {
        self.wanted_holders(digest).contains(&self.me())
    }

    /// The nodes that placement wants a copy of the blob on, best first: by the agreed policy, and by this node's own
    /// number of copies only while none is agreed on.
    #[must_use]
    pub fn wanted_holders(&self, digest: &Digest) -> Vec<NodeId> {
        let topology = self.topology();
        match &topology.policy {
            Some(policy) => placement(digest, &topology, policy),
            None => placement(digest, &topology, &Policy::of_copies(self.copies_configured())),
        }
    }

    /// The copies that this node is configured to want, agreed on or not.
    #[must_use]
    pub fn copies_configured(&self) -> u32 {
        u32::try_from(self.0.config.copies).unwrap_or(u32::MAX)
    }

    /// Whether somebody is writing the extent on this node right now.
    #[must_use]
    pub fn is_open(&self, id: ExtentId) -> bool {
        self.local().open.contains(id)
    }

    /// The agreed nodes as this node last saw them.
    #[must_use]
    pub fn topology(&self) -> Arc<Topology> {
        Arc::clone(&self.0.parts.topology.borrow())
    }

    /// Chooses `write_copies` live holders for a new session: this node first if it is *in* and takes writes (P25).
    ///
    /// Fewer if fewer are in reach; zones that have no holder yet come first.
    #[must_use]
    pub fn choose_holders(&self) -> Vec<NodeId> {
        let needed = self.write_copies();
        let mut holders = Vec::with_capacity(needed);
        if self.takes_writes_here() {
            holders.push(self.me());
        }
        let others = self.candidates(&holders);
        holders.extend(others.into_iter().take(needed.saturating_sub(holders.len())));
        holders
    }

    fn local(&self) -> &Local {
        &self.0.parts.local
    }

    fn takes_writes_here(&self) -> bool {
        self.counts(self.me()) && !self.local().blobs.refuses_writes()
    }

    /// Live peers that may take new bytes: zones that `holders` do not cover first, in random order otherwise.
    fn candidates(&self, holders: &[NodeId]) -> Vec<NodeId> {
        let topology = self.topology();
        let mut left: Vec<NodeId> = topology
            .nodes
            .values()
            .filter(|node| node.state == NodeState::In && node.id != self.me() && !holders.contains(&node.id))
            .filter(|node| self.0.parts.sight.is_live(node.id))
            .map(|node| node.id)
            .collect();
        if !left.is_empty() {
            let draw = self.0.parts.env.seed.draw_u64() % left.len() as u64;
            left.rotate_left(usize::try_from(draw).expect("less than a length"));
        }
        let place = |id: &NodeId| topology.node(*id).map(|node| (&node.region, &node.zone));
        let mut covered: Vec<_> = holders.iter().map(place).collect();
        let mut order = Vec::with_capacity(left.len());
        while !left.is_empty() {
            let next = left.iter().position(|id| !covered.contains(&place(id))).unwrap_or(0);
            let id = left.remove(next);
            covered.push(place(&id));
            order.push(id);
        }
        order
    }

    /// Runs `work` in a task that outlives this call, and waits for its result.
    ///
    /// # Errors
    ///
    /// [`Error::Stopped`] if the node stops meanwhile.
    ///
    /// # Cancel safety
    ///
    /// A dropped call lets the work go on.
    pub async fn supervised<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T> {
        let (answer, wait) = oneshot::channel();
        self.spawn(
            name,
            Box::pin(async move {
                // Nobody waits any more: the request was dropped, the work was done all the same.
                drop(answer.send(work.await));
            }),
        );
        wait.await.map_err(|_| Error::Stopped)
    }

    fn spawn(&self, name: &'static str, work: BoxFuture<'static, ()>) {
        self.0.parts.env.spawner.spawn(name, work);
    }

    /// Takes note of how a peer behaved, so that others avoid it.
    fn note(&self, node: NodeId, error: &crate::transfer::Error) {
        tracing::debug!(peer = %node, %error, "transfer with a peer ended early");
        if matches!(error, crate::transfer::Error::Unreachable { .. }) {
            self.0.parts.sight.report_unreachable(node);
        }
    }
}
