//! When a node that is away counts out, and when it counts in again (P13). Pure: time and sight are handed in.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::meta::plan::{Leave, Plan};
use crate::topology::{NodeId, NodeRecord, NodeState, Topology};

/// A node that is back must have been so for this long: one that flaps stays out.
const BACK_FOR: Duration = Duration::from_secs(5);

/// How the leader sees a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// It answers.
    Live,
    /// It has not answered for a moment, or nothing is known of it.
    Unsure,
    /// It has not answered for long.
    Dead,
}

/// What the leader's timers say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Nodes that are to count differently from now on.
    pub(super) changes: Vec<(NodeId, NodeState)>,
    /// What an operator should know.
    pub(super) notices: Vec<String>,
}

/// Since when each node has been seen as it is; begun anew by each leader.
#[derive(Debug, Default)]
pub(super) struct Away {
    seen: BTreeMap<NodeId, (Sight, Instant)>,
}

impl Away {
    /// Looks at all nodes and says who goes out or comes in.
    pub(super) fn look(
        &mut self,
        (topology, plan): (&Topology, &Plan),
        sight: impl Fn(NodeId) -> Sight,
        grace: Duration,
        now: Instant,
    ) -> Verdict {
        self.seen.retain(|node, _| topology.nodes.contains_key(node));
        for node in topology.nodes.keys() {
            let is = sight(*node);
            let known = self.seen.entry(*node).or_insert((is, now));
            // A doubt about somebody dead is no sign of life.
            if known.0 != is && (known.0, is) != (Sight::Dead, Sight::Unsure) {
                *known = (is, now);
            }
        }
        let lasting = |node: &NodeRecord, is: Sight, time: Duration| {
            self.seen.get(&node.id).is_some_and(|(seen, since)| *seen == is && now.duration_since(*since) >= time)
        };
        let free = |node: &NodeRecord| !plan.node(node.id).held_out && plan.node(node.id).leave == Leave::Stays;
        let mut verdict = Verdict::default();
        let named = |name: &str| topology.nodes.values().any(|node| node.name == name && node.state == NodeState::In);
        for node in topology.nodes.values().filter(|node| node.state == NodeState::Out && free(node)) {
            if lasting(node, Sight::Live, BACK_FOR) && !named(&node.name) {
                verdict.changes.push((node.id, NodeState::In));
            }
        }
        let due = |node: &&NodeRecord| node.state == NodeState::In && free(node) && lasting(node, Sight::Dead, grace);
        let due: Vec<&NodeRecord> = topology.nodes.values().filter(due).collect();
        if !due.is_empty() {
            let back: Vec<NodeId> = verdict.changes.iter().map(|(node, _)| *node).collect();
            let out = |node: &&NodeRecord| node.state == NodeState::Out && free(node) && !back.contains(&node.id);
            // Those that are dead and not due yet too: the nodes of a zone are not missed at the very same moment.
            let going = |node: &&NodeRecord| {
                node.state == NodeState::In && free(node) && lasting(node, Sight::Dead, Duration::ZERO)
            };
            let all = topology.nodes.values();
            let gone: Vec<&NodeRecord> = all.filter(|node| out(node) || going(node)).collect();
            match suspended(topology, &gone) {
                Some(notice) => verdict.notices.push(notice),
                None => verdict.changes.extend(due.iter().map(|node| (node.id, NodeState::Out))),
            }
        }
        verdict
    }
}

/// Says why `gone` must not all count out by themselves: then it is more likely the network, or too much for the rest.
fn suspended(topology: &Topology, gone: &[&NodeRecord]) -> Option<String> {
    let zones: BTreeSet<_> = gone.iter().map(|node| (&node.region, &node.zone)).collect();
    let names = gone.iter().map(|node| node.name.as_str()).collect::<Vec<_>>().join(", ");
    let why = if zones.len() > 1 {
        "more than one zone would go"
    } else if gone.len() * 3 > topology.members() {
        "more than a third of the nodes would go"
    } else {
        return None;
    };
    Some(format!("{names}: away for long, and not marked out by itself because {why}: `cluster out` does it"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::plan::NodePlan;
    use crate::topology::{Zone, testing};

    const GRACE: Duration = Duration::from_secs(600);
    const SECOND: Duration = Duration::from_secs(1);

    fn topology(zones: &str) -> Topology {
        let place = |(zone, id): (char, u64)| NodeRecord { zone: Zone(zone.to_string()), ..testing::record(id) };
        testing::topology(zones.chars().zip(1..).map(place))
    }

    struct Watch {
        away: Away,
        topology: Topology,
        plan: Plan,
        now: Instant,
    }

    impl Watch {
        fn new(zones: &str) -> Self {
            Self { away: Away::default(), topology: topology(zones), plan: Plan::default(), now: Instant::now() }
        }

        fn look(&mut self, dead: &[u64]) -> Verdict {
            let sight = |node: NodeId| if dead.contains(&node.0) { Sight::Dead } else { Sight::Live };
            let verdict = self.away.look((&self.topology, &self.plan), sight, GRACE, self.now);
            for (node, state) in &verdict.changes {
                self.topology.nodes.get_mut(node).unwrap().state = *state;
            }
            verdict
        }

        /// Looks now, and again after `time`.
        fn after(&mut self, time: Duration, dead: &[u64]) -> Verdict {
            assert_eq!(self.look(dead).changes, vec![]);
            self.now += time;
            self.look(dead)
        }
    }

    #[tokio::test]
    async fn a_node_counts_out_after_the_grace_period_and_in_again_when_it_is_back() {
        let mut watch = Watch::new("abc");
        assert_eq!(watch.after(GRACE - SECOND, &[2]).changes, vec![]);
        watch.now += SECOND;
        assert_eq!(watch.look(&[2]).changes, vec![(NodeId(2), NodeState::Out)]);
        assert_eq!(watch.after(SECOND, &[]).changes, vec![], "it may only flap");
        watch.now += BACK_FOR;
        assert_eq!(watch.look(&[]).changes, vec![(NodeId(2), NodeState::In)]);
    }

    #[tokio::test]
    async fn a_short_return_starts_the_period_anew() {
        let mut watch = Watch::new("abc");
        assert_eq!(watch.after(GRACE - SECOND, &[2]).changes, vec![]);
        assert_eq!(watch.look(&[]).changes, vec![]);
        assert_eq!(watch.after(GRACE - SECOND, &[2]).changes, vec![]);
    }

    #[tokio::test]
    async fn nobody_goes_by_itself_when_a_second_zone_or_more_than_a_third_would() {
        let mut watch = Watch::new("abc");
        assert_eq!(watch.after(GRACE, &[2]).changes.len(), 1);
        let verdict = watch.after(GRACE, &[2, 3]);
        assert_eq!(verdict.changes, vec![]);
        assert!(verdict.notices[0].contains("more than one zone"), "{verdict:?}");
        let verdict = Watch::new("aabbc").after(GRACE, &[1, 2]);
        assert!(verdict.changes.is_empty() && verdict.notices[0].contains("a third"), "{verdict:?}");
        assert_eq!(Watch::new("aabbcc").after(GRACE, &[1, 2]).changes.len(), 2);
    }

    #[tokio::test]
    async fn a_zone_of_too_many_nodes_does_not_go_one_node_after_the_other() {
        let mut watch = Watch::new("aabbc");
        assert_eq!(watch.after(SECOND, &[1]).changes, vec![], "the first is missed a moment before the second");
        assert_eq!(watch.after(GRACE - SECOND, &[1, 2]).changes, vec![]);
        assert!(watch.look(&[1, 2]).notices[0].contains("a third"));
        assert_eq!(watch.after(SECOND, &[1, 2]).changes, vec![]);
    }

    #[tokio::test]
    async fn what_an_operator_decided_stands() {
        let mut watch = Watch::new("abc");
        watch.plan.nodes.insert(NodeId(2), NodePlan { held_out: true, ..NodePlan::default() });
        watch.topology.nodes.get_mut(&NodeId(2)).unwrap().state = NodeState::Out;
        assert_eq!(watch.after(GRACE, &[]).changes, vec![]);
        // And it does not count as one of those that are away.
        assert_eq!(watch.after(GRACE, &[3]).changes, vec![(NodeId(3), NodeState::Out)]);
    }

    #[tokio::test]
    async fn a_node_whose_name_another_has_taken_stays_out() {
        let mut watch = Watch::new("abc");
        watch.topology.nodes.get_mut(&NodeId(2)).unwrap().state = NodeState::Out;
        watch.topology.nodes.get_mut(&NodeId(2)).unwrap().name = "n3".to_owned();
        assert_eq!(watch.after(GRACE, &[]).changes, vec![]);
    }
}
