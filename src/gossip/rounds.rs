//! Asks every peer, about twice a second, whether it lives; asks others about those that do not answer; and takes over
//! what peers know of who holds what.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::topology::{NodeId, Topology};

use super::exchange::Exchange;
use super::{Liveness, Shared};

/// Exchanges at once, each with another peer and about other books.
const EXCHANGES_MAX: usize = 4;
/// How long a peer may take to answer one question of an exchange.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Intervals for which a peer is not asked after an exchange that failed.
const RESTS: u32 = 4;

/// The rounds of one node.
pub(super) struct Rounds {
    shared: Arc<Shared>,
    topology: watch::Receiver<Arc<Topology>>,
    calls: JoinSet<Done>,
    /// Peers whose ping is under way.
    pinged: BTreeSet<NodeId>,
    /// Exchanges under way, by peer, with their books.
    exchanges: BTreeMap<NodeId, Vec<NodeId>>,
    /// Until when peers are not asked for books.
    resting: BTreeMap<NodeId, Instant>,
}

/// What ended.
enum Done {
    Ping(NodeId),
    Probe,
    Exchange { with: NodeId, went_well: bool },
}

impl Rounds {
    pub(super) fn new(shared: Arc<Shared>, topology: watch::Receiver<Arc<Topology>>) -> Self {
        Self {
            shared,
            topology,
            calls: JoinSet::new(),
            pinged: BTreeSet::new(),
            exchanges: BTreeMap::new(),
            resting: BTreeMap::new(),
        }
    }

    /// Runs the rounds; ends only when dropped.
    pub(super) async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let mut ticks = interval(shared.config.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut topology_follows = true;
        self.follow_topology();
        loop {
            tokio::select! {
                _ = ticks.tick() => self.tick(),
                () = shared.wake.notified() => self.ping(|liveness| liveness != Liveness::Live),
                () = shared.behind.notified() => self.exchange(),
                changed = self.topology.changed(), if topology_follows => {
                    topology_follows = changed.is_ok(); // its owner is gone: the node is stopping
                    self.follow_topology();
                    self.ping(|liveness| liveness != Liveness::Live);
                }
                Some(done) = self.calls.join_next() => {
                    // A call's task neither panics nor is aborted while this future lives.
                    if let Ok(done) = done {
                        self.note(&done);
                    }
                }
            }
        }
    }

    fn follow_topology(&mut self) {
        let nodes: BTreeSet<NodeId> = self.topology.borrow_and_update().nodes.keys().copied().collect();
        self.resting.retain(|node, _| nodes.contains(node));
        self.shared.set_nodes(&nodes);
    }

    fn tick(&mut self) {
        let mut probes = Vec::new();
        self.shared.update(|detector, now| {
            detector.turn(now);
            probes = detector.probes(now);
        });
        self.ping(|_| true);
        for probe in probes {
            for helper in probe.helpers {
                let shared = Arc::clone(&self.shared);
                drop(self.calls.spawn(async move {
                    shared.probe(helper, probe.suspect).await;
                    Done::Probe
                }));
            }
        }
        self.exchange();
        let known = self.shared.holdings().len();
        self.shared.metrics().locations(known);
    }

    fn ping(&mut self, wanted: impl Fn(Liveness) -> bool) {
        let members = self.shared.members.borrow().clone();
        let me = self.shared.client.peers.me();
        for (node, _) in members.iter().filter(|(node, member)| **node != me && wanted(member.liveness)) {
            if self.pinged.insert(*node) {
                let (shared, node) = (Arc::clone(&self.shared), *node);
                drop(self.calls.spawn(async move {
                    // What went wrong is noted with the node.
                    shared.call(node).await.ok();
                    Done::Ping(node)
                }));
            }
        }
    }

    /// Takes over what peers are said to know better.
    fn exchange(&mut self) {
        let free = EXCHANGES_MAX.saturating_sub(self.exchanges.len());
        if free == 0 {
            return;
        }
        let now = Instant::now();
        self.resting.retain(|_, until| *until > now);
        let members = self.shared.members.borrow().clone();
        let may_ask = |node: NodeId| {
            let is_dead = members.get(&node).is_none_or(|member| member.liveness == Liveness::Dead);
            !is_dead && !self.exchanges.contains_key(&node) && !self.resting.contains_key(&node)
        };
        let may_take = |book: NodeId| !self.exchanges.values().flatten().any(|taken| *taken == book);
        let plan = self.shared.holdings().plan(may_ask, may_take);
        for (with, books) in plan.into_iter().take(free) {
            self.exchanges.insert(with, books.clone());
            let shared = Arc::clone(&self.shared);
            drop(
                self.calls
                    .spawn(async move { Done::Exchange { with, went_well: exchange(&shared, with, books).await } }),
            );
        }
    }

    fn note(&mut self, done: &Done) {
        match done {
            Done::Ping(node) => drop(self.pinged.remove(node)),
            Done::Probe => {}
            Done::Exchange { with, went_well } => {
                self.exchanges.remove(with);
                let interval = self.shared.config.interval;
                let rest = if *went_well { interval } else { interval * RESTS };
                self.resting.insert(*with, Instant::now() + rest);
                self.exchange();
            }
        }
    }
}

/// Takes some books over from a peer; says whether it went well.
async fn exchange(shared: &Shared, with: NodeId, books: Vec<NodeId>) -> bool {
    let mut exchange = Exchange::new(books);
    let went_well = loop {
        let question = exchange.question(&mut shared.holdings());
        let Some(question) = question else { break true };
        match shared.client.ask(with, &question, ANSWER_MAX).await {
            Ok(answer) => exchange.take(&mut shared.holdings(), answer),
            Err(problem) => {
                tracing::debug!(peer = %with, problem, "who holds what could not be learned");
                break false;
            }
        }
    };
    shared.metrics().exchanged(went_well, exchange.outcome);
    went_well
}
