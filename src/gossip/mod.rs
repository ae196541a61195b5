//! Spreads, without a leader, who is alive and who holds which blob.
//!
//! Owns, in memory only: when each peer last answered, and a bounded memory of who said to hold what. Invariants: all of it
//! is observed and none of it is ever trusted for a promise; a node counts as live only while it answers this node's own
//! pings. Does not decide about membership or placement (that is agreed state). Start reading at `state.rs` (pure), then
//! `rounds.rs`.

mod client;
mod config;
mod detector;
mod journal;
mod locations;
mod metrics;
mod rounds;
mod service;
mod state;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::env::Env;
use crate::oci::Digest;
use crate::rpc::Peers;
use crate::topology::{NodeId, Topology};

pub use config::Config;
pub use metrics::Metrics;
pub use service::{Answerer, GossipService};

use state::State;

/// How a node stands, as this node sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// It answers.
    Live,
    /// It has not answered for a moment, or a call to it failed: better ask another.
    Suspect,
    /// It has not answered for long, or said that it stops.
    Dead,
}

/// A member as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// How it stands.
    pub liveness: Liveness,
    /// How long ago it last answered; nothing if it never did.
    pub since_heard: Option<Duration>,
    /// Why it is not live, for people.
    pub reason: Option<String>,
}

/// Everyone's liveness as this node sees it; this node itself is always live.
pub type Members = BTreeMap<NodeId, Member>;

/// What [`Gossip::start`] needs.
#[derive(Debug)]
pub struct Parts {
    /// For the number that tells this process from the node's earlier ones.
    pub env: Env,
    /// Channels to the peers.
    pub peers: Peers,
    /// The agreed set of nodes.
    pub topology: watch::Receiver<Arc<Topology>>,
    /// Where to count.
    pub metrics: Metrics,
}

/// What this node hears from the others; cheap to clone.
#[derive(Clone)]
pub struct Gossip {
    shared: Arc<Shared>,
    peers: Peers,
}

struct Shared {
    incarnation: u64,
    state: Mutex<State>,
    members: watch::Sender<Arc<Members>>,
    /// Starts a round among those that are not live, before its time.
    wake: Notify,
    metrics: Metrics,
}

impl fmt::Debug for Gossip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gossip").field("members", &self.shared.members.borrow()).finish_non_exhaustive()
    }
}

impl Gossip {
    /// Makes the handle, the future that runs the rounds (to be supervised, ends only when dropped) and the service that
    /// answers other nodes' rounds.
    pub fn start(config: Config, parts: Parts) -> (Self, impl Future<Output = ()> + Send + 'static, GossipService) {
        let Parts { env, peers, topology, metrics } = parts;
        let now = Instant::now();
        let mut state = State::new(peers.me(), &config, now);
        state.set_nodes(&topology.borrow().nodes.keys().copied().collect(), now);
        let members = watch::Sender::new(Arc::new(state.members(now)));
        let shared = Arc::new(Shared {
            incarnation: env.seed.draw_u64(),
            state: Mutex::new(state),
            members,
            wake: Notify::new(),
            metrics,
        });
        let rounds = rounds::Rounds { config, peers: peers.clone(), topology, shared: shared.clone() };
        let gossip = Self { shared, peers };
        let service = Answerer(gossip.clone()).service();
        (gossip, rounds.run(), service)
    }

    /// Follows everyone's liveness: wakes when someone's changes; `since_heard` is at most a round old.
    #[must_use]
    pub fn members(&self) -> watch::Receiver<Arc<Members>> {
        self.shared.members.subscribe()
    }

    /// Says whether `node` answers; this node itself always does.
    #[must_use]
    pub fn is_live(&self, node: NodeId) -> bool {
        self.shared.liveness(node) == Some(Liveness::Live)
    }

    /// Nodes that said they hold `digest`, latest news first: a hint, never a promise; may be empty.
    #[must_use]
    pub fn holders(&self, digest: &Digest) -> Vec<NodeId> {
        self.shared.lock().locations.holders(digest)
    }

    /// Says to everyone, within a round or so, that this node gained a blob.
    pub fn announce(&self, digest: &Digest) {
        self.shared.lock().journal.announce(digest);
    }

    /// Remembers that `node` served or stored `digest`.
    pub fn learn(&self, digest: &Digest, node: NodeId) {
        self.shared.lock().locations.learn(digest, node);
    }

    /// Remembers that `node` did not have `digest` after all.
    pub fn forget(&self, digest: &Digest, node: NodeId) {
        self.shared.lock().locations.forget(digest, node);
    }

    /// Remembers that a call to `node` did not go through, so that others avoid it until it next answers a ping.
    pub fn report_unreachable(&self, node: NodeId) {
        self.shared.update(|state, _| state.detector.unreachable(node));
        self.shared.wake.notify_one();
    }

    /// Tells everyone that this node stops on purpose, so that nobody waits for its silence to grow; takes at most
    /// `deadline`.
    pub async fn leave(&self, deadline: Duration) {
        let nodes: Vec<NodeId> = self.shared.lock().detector.peers().collect();
        let mut goodbyes = JoinSet::new();
        for node in nodes {
            let (peers, incarnation) = (self.peers.clone(), self.shared.incarnation);
            goodbyes.spawn(async move { client::goodbye(&peers, node, incarnation, deadline).await });
        }
        // Whoever does not hear it finds out by itself.
        while goodbyes.join_next().await.is_some() {}
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn liveness(&self, node: NodeId) -> Option<Liveness> {
        self.members.borrow().get(&node).map(|member| member.liveness)
    }

    /// Changes the state and publishes what follows from it.
    fn update(&self, change: impl FnOnce(&mut State, Instant)) {
        let mut state = self.lock();
        let now = Instant::now();
        change(&mut state, now);
        let members = state.members(now);
        self.metrics.publish(&members, state.locations.len());
        // Published under the lock: an older view must not replace a newer one.
        self.members.send_if_modified(|published| {
            let news = changes(published, &members);
            for (node, before, after) in &news {
                log_change(*node, *before, after);
            }
            *published = Arc::new(members);
            !news.is_empty()
        });
    }
}

type Change = (NodeId, Option<Liveness>, Option<Member>);

fn changes(before: &Members, after: &Members) -> Vec<Change> {
    let gone = before.keys().filter(|node| !after.contains_key(node)).map(|node| (*node, None));
    let now = after.iter().map(|(node, member)| (*node, Some(member)));
    gone.chain(now)
        .filter_map(|(node, member)| {
            let was = before.get(&node).map(|member| member.liveness);
            (was != member.map(|member| member.liveness)).then(|| (node, was, member.cloned()))
        })
        .collect()
}

fn log_change(node: NodeId, before: Option<Liveness>, after: &Option<Member>) {
    match after {
        Some(Member { liveness: Liveness::Live, .. }) => tracing::info!(peer = %node, ?before, "peer is live"),
        Some(Member { liveness, reason, .. }) => {
            let reason = reason.as_deref().unwrap_or_default();
            // A restart or a hiccup is worth a line; only a lost peer is worth a warning.
            if *liveness == Liveness::Dead {
                tracing::warn!(peer = %node, reason, "peer is taken for dead");
            } else {
                tracing::info!(peer = %node, reason, "peer is suspect");
            }
        }
        None => tracing::info!(peer = %node, "peer is no member any more"),
    }
}
