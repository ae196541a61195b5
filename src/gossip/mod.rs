//! Spreads, without a leader, who is alive and who holds which blob.
//!
//! Owns, in memory only: when each peer last answered and what others say of those that do not, and for each node a *book*
//! of what it holds. Invariants: all of it is observed and none of it is ever trusted for a promise; a node counts as live
//! only while it answers this node's own pings, and as dead only if nobody reaches it; what a book does not name is not
//! absent (P20); memory is bounded whatever peers say. Does not decide about membership or placement (that is agreed state).
//!
//! Liveness: `detector.rs` (pure). Who holds what: `keys.rs` (a set with sums over ranges), `book.rs` (such a set at a
//! version, with its last steps), `holdings.rs` (all books), `exchange.rs` (how one node takes books over from another), all
//! pure. Start reading at `holdings.rs`, then `rounds.rs`.

mod book;
mod client;
mod config;
mod detector;
mod exchange;
mod holdings;
mod keys;
mod metrics;
mod rounds;
mod service;
#[cfg(test)]
mod simulation_tests;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::env::Env;
use crate::oci::Digest;
use crate::rpc::Peers;
use crate::topology::{NodeId, Topology};

pub use config::Config;
pub use holdings::Known;
pub use metrics::Metrics;
pub use service::{Answerer, GossipService};

use book::Step;
use client::Client;
use detector::Detector;
use holdings::{Holdings, Standing};
use keys::{KeySet, key_of};

/// How a node stands, as this node sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// It answers.
    Live,
    /// It does not answer this node, but others or only for a moment, or a call to it failed: better ask another.
    Suspect,
    /// It has not answered for long and nobody else reaches it, or it said that it stops.
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
    /// Who reached it lately, while it does not answer this node.
    pub reached_by: Vec<NodeId>,
    /// Who could not reach it either.
    pub missed_by: Vec<NodeId>,
}

impl Member {
    const fn live() -> Self {
        Self {
            liveness: Liveness::Live,
            since_heard: None,
            reason: None,
            reached_by: Vec::new(),
            missed_by: Vec::new(),
        }
    }
}

/// Everyone's liveness as this node sees it; this node itself is always live.
pub type Members = BTreeMap<NodeId, Member>;

/// What a node holds, all of it, as [`Gossip::publish`] wants it; some 20 bytes a blob.
#[derive(Debug, Default)]
pub struct Listing(KeySet);

impl Listing {
    /// Notes that a blob is there.
    pub fn add(&mut self, digest: &Digest) {
        self.0.insert(key_of(digest));
    }

    /// Notes that a blob is not there after all.
    pub fn remove(&mut self, digest: &Digest) {
        self.0.remove(key_of(digest));
    }
}

/// What [`Gossip::start`] needs.
#[derive(Debug)]
pub struct Parts {
    /// For the numbers that tell this process from the node's earlier ones.
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
}

/// Neither lock is ever held across a wait, nor while the other is taken.
struct Shared {
    config: Config,
    client: Client,
    incarnation: u64,
    detector: Mutex<Detector>,
    holdings: Mutex<Holdings>,
    members: watch::Sender<Arc<Members>>,
    /// Starts a round among those that are not live, before its time.
    wake: Notify,
    /// A peer knows better than this node who holds what.
    behind: Notify,
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
        let (me, now) = (peers.me(), Instant::now());
        let since_1970 = env.clock.now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let epoch = u64::try_from(since_1970.as_millis()).unwrap_or_default();
        let detector = Detector::new(me, config.clone(), now);
        let shared = Arc::new(Shared {
            members: watch::Sender::new(Arc::new(detector.members(now))),
            detector: Mutex::new(detector),
            holdings: Mutex::new(Holdings::new(me, epoch, config.entries_max)),
            incarnation: env.seed.draw_u64(),
            client: Client { peers, metrics },
            config,
            wake: Notify::new(),
            behind: Notify::new(),
        });
        shared.set_nodes(&topology.borrow().nodes.keys().copied().collect());
        let rounds = rounds::Rounds::new(shared.clone(), topology);
        let gossip = Self { shared };
        let service = Answerer::service(gossip.clone());
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

    /// Other nodes that are said to hold `digest`: a hint, never a promise; may be empty.
    #[must_use]
    pub fn holders(&self, digest: &Digest) -> Vec<NodeId> {
        self.shared.holdings().holders(key_of(digest)).collect()
    }

    /// Says how much is known of what each node holds, this one too.
    #[must_use]
    pub fn known(&self) -> BTreeMap<NodeId, Known> {
        self.shared.holdings().known()
    }

    /// Says to everyone, within a round or so, that this node gained a blob.
    pub fn gained(&self, digest: &Digest) {
        self.shared.holdings().write(Step { key: key_of(digest), gained: true });
    }

    /// Says to everyone, within a round or so, that this node lost a blob.
    pub fn lost(&self, digest: &Digest) {
        self.shared.holdings().write(Step { key: key_of(digest), gained: false });
    }

    /// Says to everyone that this node holds exactly these blobs. Before the first time others keep what they knew.
    pub fn publish(&self, listing: Listing) {
        self.shared.holdings().rewrite(listing.0);
    }

    /// Remembers that a call to `node` did not go through, so that others avoid it until it next answers a ping.
    pub fn report_unreachable(&self, node: NodeId) {
        self.shared.update(|detector, _| detector.unreachable(node));
        self.shared.wake.notify_one();
    }

    /// Tells everyone that this node stops on purpose, so that nobody waits for its silence to grow; takes at most
    /// `deadline`.
    pub async fn leave(&self, deadline: Duration) {
        let nodes: Vec<NodeId> = self.shared.detector().peers().collect();
        let mut goodbyes = JoinSet::new();
        for node in nodes {
            let (client, incarnation) = (self.shared.client.clone(), self.shared.incarnation);
            goodbyes.spawn(async move { client.goodbye(node, incarnation, deadline).await });
        }
        // Whoever does not hear it finds out by itself.
        while goodbyes.join_next().await.is_some() {}
    }
}

impl Shared {
    fn detector(&self) -> MutexGuard<'_, Detector> {
        self.detector.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn holdings(&self) -> MutexGuard<'_, Holdings> {
        self.holdings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn metrics(&self) -> &Metrics {
        &self.client.metrics
    }

    fn liveness(&self, node: NodeId) -> Option<Liveness> {
        self.members.borrow().get(&node).map(|member| member.liveness)
    }

    fn set_nodes(&self, nodes: &BTreeSet<NodeId>) {
        self.update(|detector, now| detector.set_nodes(nodes, now));
        self.holdings().set_nodes(nodes);
    }

    /// Takes note of where books stand at a peer.
    fn hear(&self, from: NodeId, standings: Vec<Standing>) {
        if self.holdings().hear(from, standings) {
            self.behind.notify_one();
        }
    }

    /// Pings a node and takes in its answer.
    ///
    /// # Errors
    ///
    /// What kept the answer from coming back in time, for people; noted with the node.
    async fn call(&self, node: NodeId) -> Result<(), String> {
        let standings = self.holdings().standings();
        let answer = self.client.ping(node, self.incarnation, &standings, self.config.ping_timeout).await;
        self.metrics().pinged(answer.is_ok());
        match answer {
            Ok(pong) => {
                self.update(|detector, now| detector.answered(node, pong.incarnation, now));
                self.hear(node, pong.standings);
                Ok(())
            }
            Err(problem) => {
                self.update(|detector, _| detector.failed(node, problem.clone()));
                Err(problem)
            }
        }
    }

    /// Has a helper call a silent node and takes note of what it found.
    async fn probe(&self, helper: NodeId, suspect: NodeId) {
        // The helper's own call may take its whole time.
        let answer = self.client.probe(helper, suspect, self.config.ping_timeout * 3 / 2).await;
        self.metrics().probed(match &answer {
            Ok(None) => "reached",
            Ok(Some(_)) => "not_reached",
            Err(_) => "unknown",
        });
        if let Ok(problem) = answer {
            self.update(|detector, now| detector.found(suspect, helper, problem, now));
        }
    }

    /// Changes what is known of liveness and publishes what follows from it.
    fn update(&self, change: impl FnOnce(&mut Detector, Instant)) {
        let mut detector = self.detector();
        let now = Instant::now();
        change(&mut detector, now);
        let members = detector.members(now);
        self.metrics().publish(&members);
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
