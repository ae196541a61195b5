//! Asks every peer, about twice a second, whether it lives.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::rpc::Peers;
use crate::topology::{NodeId, Topology};

use super::{Config, Liveness, Shared, client};

/// Runs the rounds; ends only when dropped.
pub(super) struct Rounds {
    pub(super) config: Config,
    pub(super) peers: Peers,
    pub(super) topology: watch::Receiver<Arc<Topology>>,
    pub(super) shared: Arc<Shared>,
}

/// What became of one ping.
struct Pinged {
    node: NodeId,
    /// The journal's number to confirm.
    told: u64,
    /// The incarnation that answered, or what kept the answer from coming.
    answer: Result<u64, String>,
}

impl Rounds {
    pub(super) async fn run(mut self) {
        let mut ticks = interval(self.config.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pings: JoinSet<Pinged> = JoinSet::new();
        let mut under_way: BTreeSet<NodeId> = BTreeSet::new();
        let mut topology_follows = true;
        self.follow_topology();
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    self.shared.update(|state, now| state.detector.turn(now));
                    let everyone = self.targets(|_| true);
                    self.ping(everyone, &mut under_way, &mut pings);
                }
                () = self.shared.wake.notified() => {
                    let silent = self.targets(|liveness| liveness != Liveness::Live);
                    self.ping(silent, &mut under_way, &mut pings);
                }
                changed = self.topology.changed(), if topology_follows => {
                    topology_follows = changed.is_ok(); // its owner is gone: the node is stopping
                    self.follow_topology();
                    let new = self.targets(|liveness| liveness != Liveness::Live);
                    self.ping(new, &mut under_way, &mut pings);
                }
                Some(done) = pings.join_next() => {
                    // A ping's task neither panics nor is aborted while this future lives.
                    let Ok(pinged) = done else { continue };
                    under_way.remove(&pinged.node);
                    let node = pinged.node;
                    if self.take(pinged) {
                        self.ping(vec![node], &mut under_way, &mut pings);
                    }
                }
            }
        }
    }

    fn follow_topology(&mut self) {
        let nodes: BTreeSet<NodeId> = self.topology.borrow_and_update().nodes.keys().copied().collect();
        self.shared.update(|state, now| state.set_nodes(&nodes, now));
    }

    fn targets(&self, wanted: impl Fn(Liveness) -> bool) -> Vec<NodeId> {
        let members = self.shared.members.borrow();
        let me = self.peers.me();
        members.iter().filter(|(node, member)| **node != me && wanted(member.liveness)).map(|(node, _)| *node).collect()
    }

    fn ping(&self, nodes: Vec<NodeId>, under_way: &mut BTreeSet<NodeId>, pings: &mut JoinSet<Pinged>) {
        for node in nodes {
            if !under_way.insert(node) {
                continue;
            }
            let (gained, told, views) = {
                let state = self.shared.lock();
                let (gained, told) = state.journal.batch(node);
                (gained, told, state.views(Instant::now()))
            };
            let ping = client::Ping { incarnation: self.shared.incarnation, gained, views };
            let (peers, deadline) = (self.peers.clone(), self.config.ping_timeout);
            pings.spawn(async move { Pinged { node, told, answer: client::ping(&peers, node, ping, deadline).await } });
        }
    }

    /// Takes in an answer; says whether there is more to tell at once.
    fn take(&self, pinged: Pinged) -> bool {
        let Pinged { node, told, answer } = pinged;
        self.shared.metrics.pinged(answer.is_ok());
        let mut more = false;
        self.shared.update(|state, now| match answer {
            Ok(incarnation) => {
                if state.detector.answered(node, incarnation, now) {
                    state.journal.forget(node);
                } else {
                    more = state.journal.confirm(node, told);
                }
            }
            Err(problem) => state.detector.failed(node, problem),
        });
        more
    }
}
