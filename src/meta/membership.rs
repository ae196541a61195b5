//! Who consensus runs among: the leader takes in new nodes, makes caught-up learners voters, and finishes what a dead leader
//! began (P12, R19, R20). Nothing here makes the voter set smaller.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::impls::EmptyNode;
use tokio::time::timeout;

use crate::topology::{NodeId, NodeState, Topology};

use super::command::Command;
use super::engine::Core;
use super::followers::Report;
use super::types::Metrics as RaftMetrics;

/// How often the leader looks.
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// A learner with fewer entries to go is caught up with the log.
const LAG_MAX: u64 = 64;
/// How long one change may take before the leader looks again.
const CHANGE_MAX: Duration = Duration::from_secs(10);
/// How long the leader waits for what it proposes itself.
const PROPOSE_MAX: Duration = Duration::from_secs(3);
/// Sessions expired by one entry.
const EXPIRED_MAX: usize = 256;

/// One change to the membership.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    AddLearner(u64),
    RemoveLearners(BTreeSet<u64>),
    SetVoters(BTreeSet<u64>),
}

/// What the next step is decided from.
#[derive(Debug, Default)]
struct Situation {
    /// The voter sets in force, two while a change is joint.
    voters: Vec<BTreeSet<u64>>,
    members: BTreeSet<u64>,
    /// Nodes of the agreed table, with whether each counts for placement and its zone.
    nodes: BTreeMap<u64, (NodeState, String)>,
    /// Learners whose log and bodies are caught up.
    ready: BTreeSet<u64>,
}

impl Situation {
    /// Decides on one change, or none.
    fn step(&self) -> Option<Step> {
        let voters = self.voters.last()?;
        if self.voters.len() > 1 {
            // A dead leader left its change half done: go on to the set it wanted.
            return Some(Step::SetVoters(voters.clone()));
        }
        if let Some(new) = self.nodes.keys().find(|id| !self.members.contains(id)) {
            return Some(Step::AddLearner(*new));
        }
        let gone: BTreeSet<u64> =
            self.members.iter().filter(|id| !self.nodes.contains_key(id) && !voters.contains(id)).copied().collect();
        if !gone.is_empty() && !self.nodes.is_empty() {
            return Some(Step::RemoveLearners(gone));
        }
        self.swap(voters).or_else(|| self.grow(voters)).map(Step::SetVoters)
    }

    fn candidates(&self) -> impl Iterator<Item = u64> + '_ {
        let counts = |id: &u64| self.nodes.get(id).is_some_and(|(state, _)| *state == NodeState::In);
        self.ready.iter().copied().filter(counts)
    }

    /// Replaces one voter that no longer counts by a learner that is ready.
    fn swap(&self, voters: &BTreeSet<u64>) -> Option<BTreeSet<u64>> {
        let counts = |id: &u64| self.nodes.get(id).is_some_and(|(state, _)| *state == NodeState::In);
        let old = voters.iter().find(|id| !counts(id))?;
        let new = self.candidates().find(|id| !voters.contains(id))?;
        let mut swapped = voters.clone();
        swapped.remove(old);
        swapped.insert(new);
        Some(swapped)
    }

    /// Goes from 1 to 3 and from 3 to 5 voters, never to an even number; zones that have no voter yet go first.
    fn grow(&self, voters: &BTreeSet<u64>) -> Option<BTreeSet<u64>> {
        let target = match voters.len() {
            1 => 3,
            3 => 5,
            _ => return None,
        };
        let mut grown = voters.clone();
        while grown.len() < target {
            let zone = |id: &u64| self.nodes.get(id).map(|(_, zone)| zone.as_str());
            let crowd = |id: &u64| grown.iter().filter(|voter| zone(voter) == zone(id)).count();
            let next = self.candidates().filter(|id| !grown.contains(id)).min_by_key(|id| (crowd(id), *id))?;
            grown.insert(next);
        }
        Some(grown)
    }
}

/// The number of voters that `nodes` nodes allow.
fn voters_for(nodes: u32) -> usize {
    match nodes {
        0..=2 => 1,
        3 | 4 => 3,
        _ => 5,
    }
}

fn situation(metrics: &RaftMetrics, topology: &Topology, is_ready: impl Fn(u64) -> bool) -> Situation {
    let membership = metrics.membership_config.membership();
    let last = metrics.last_log_index.unwrap_or(0);
    let matched = |id: &u64| metrics.replication.as_ref()?.get(id).copied().flatten().map(|matched| matched.index);
    let caught_up = |id: &u64| matched(id).is_some_and(|index| index + LAG_MAX >= last);
    Situation {
        voters: membership.get_joint_config().clone(),
        members: membership.nodes().map(|(id, _)| *id).collect(),
        nodes: topology.nodes.values().map(|node| (node.id.0, (node.state, node.zone.0.clone()))).collect(),
        ready: membership.learner_ids().filter(|id| caught_up(id) && is_ready(*id)).collect(),
    }
}

/// Whether a node said that it has every body of a state that is almost the newest.
const fn is_complete(report: &Report, last: u64) -> bool {
    report.bodies_complete && report.applied.saturating_add(LAG_MAX) >= last
}

impl Core {
    /// Looks after membership, the opening of the registry and expired sessions, while this node leads; for ever.
    pub(super) async fn keep_members(&self) {
        loop {
            self.changed(LOOK_EVERY).await;
            let Some(term) = self.leading() else { continue };
            self.followers.lead(term);
            self.look_after().await;
        }
    }

    async fn look_after(&self) {
        let state = self.published.current().state;
        if state.cluster().is_none() {
            // The first node is about to say what this cluster is.
            return;
        }
        let metrics = self.raft_metrics();
        // One change at a time: the last one must be committed before the next is proposed.
        if metrics.membership_config == metrics.committed_membership_config {
            let last = metrics.last_log_index.unwrap_or(0);
            let complete = |id: u64| self.followers.report(id).is_some_and(|report| is_complete(&report, last));
            if let Some(step) = situation(&metrics, &state.topology(), complete).step() {
                self.take(step).await;
            }
        }
        self.open_when_complete().await;
        self.raise_feature_level().await;
        self.expire_uploads().await;
    }

    /// Raises the agreed feature level to the lowest that any member reports (P8); there is no way back.
    async fn raise_feature_level(&self) {
        let state = self.published.current().state;
        let lowest = state.nodes().map(|node| node.feature_level).min();
        if let Some(level) = lowest.filter(|level| *level > state.feature_level()) {
            self.propose_own(Command::RaiseFeatureLevel { level }).await;
        }
    }

    async fn take(&self, step: Step) {
        tracing::info!(?step, "membership changes");
        let change = async {
            match step.clone() {
                Step::AddLearner(id) => self.raft.add_learner(id, EmptyNode {}, false).await,
                Step::RemoveLearners(ids) => self.raft.change_membership(ChangeMembers::RemoveNodes(ids), true).await,
                Step::SetVoters(voters) => {
                    self.raft.change_membership(ChangeMembers::ReplaceAllVoters(voters), true).await
                }
            }
        };
        match timeout(CHANGE_MAX, change).await {
            // The next look finds out whether the outcome is uniform, and goes on from there if not.
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(?step, %error, "membership did not change"),
            Err(_) => tracing::warn!(?step, "membership did not change in time"),
        }
    }

    /// Opens the registry once the nodes that were expected are there and vote.
    async fn open_when_complete(&self) {
        let state = self.published.current().state;
        if state.is_open() {
            return;
        }
        let expected = state.nodes_expected();
        let voters = self.voter_sets();
        let [set] = voters.sets.as_slice() else { return };
        let nodes = state.topology().nodes.len();
        if u32::try_from(nodes).is_ok_and(|nodes| nodes >= expected) && set.len() >= voters_for(expected) {
            self.propose_own(Command::OpenRegistry).await;
        }
    }

    async fn expire_uploads(&self) {
        let state = self.published.current().state;
        let Some(now) = self.stamp(PROPOSE_MAX).await else { return };
        let sessions = state.expired_uploads(now, EXPIRED_MAX);
        if !sessions.is_empty() {
            self.propose_own(Command::ExpireUploads { sessions }).await;
        }
    }

    async fn propose_own(&self, command: Command) {
        // Whatever comes of it, the next look sees the state as it then is.
        if let Err(error) = self.propose(command, PROPOSE_MAX).await {
            tracing::debug!(%error, "own proposal failed");
        }
    }

    /// Whether a node may speak to this one: not if it was removed (R21). A node that is not applied here yet may.
    pub(super) fn admits(&self, node: NodeId) -> bool {
        let state = self.published.current().state;
        state.topology().node(node).is_some() || node >= state.next_node()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(list: &[(u64, NodeState, &str)]) -> BTreeMap<u64, (NodeState, String)> {
        list.iter().map(|(id, state, zone)| (*id, (*state, (*zone).to_owned()))).collect()
    }

    fn set(ids: &[u64]) -> BTreeSet<u64> {
        ids.iter().copied().collect()
    }

    const IN: NodeState = NodeState::In;

    #[track_caller]
    fn check(situation: &Situation, expected: Option<Step>) {
        assert_eq!(situation.step(), expected, "{situation:?}");
    }

    #[test]
    fn voters_go_from_one_to_three_when_both_learners_are_ready() {
        let mut situation = Situation {
            voters: vec![set(&[1])],
            members: set(&[1, 2, 3]),
            nodes: nodes(&[(1, IN, "a"), (2, IN, "b"), (3, IN, "c")]),
            ready: set(&[2]),
        };
        check(&situation, None);
        situation.ready.insert(3);
        check(&situation, Some(Step::SetVoters(set(&[1, 2, 3]))));
    }

    #[test]
    fn bodies_that_are_complete_for_an_old_state_do_not_count() {
        let report = |applied, bodies_complete| Report { applied, state_hash: 0, bodies_complete };
        assert!(is_complete(&report(100, true), 100 + LAG_MAX));
        assert!(!is_complete(&report(99, true), 100 + LAG_MAX));
        assert!(!is_complete(&report(200, false), 100));
    }

    #[test]
    fn zones_without_a_voter_go_first() {
        let situation = Situation {
            voters: vec![set(&[1])],
            members: set(&[1, 2, 3, 4]),
            nodes: nodes(&[(1, IN, "a"), (2, IN, "a"), (3, IN, "b"), (4, IN, "c")]),
            ready: set(&[2, 3, 4]),
        };
        check(&situation, Some(Step::SetVoters(set(&[1, 3, 4]))));
    }

    #[test]
    fn a_change_left_half_done_is_finished_before_anything_else() {
        let situation = Situation {
            voters: vec![set(&[1]), set(&[1, 2, 3])],
            members: set(&[1, 2, 3]),
            nodes: nodes(&[(1, IN, "a"), (2, IN, "b"), (3, IN, "c"), (4, IN, "d")]),
            ready: set(&[]),
        };
        check(&situation, Some(Step::SetVoters(set(&[1, 2, 3]))));
    }

    #[test]
    fn nodes_become_learners_and_removed_learners_go() {
        let mut situation = Situation {
            voters: vec![set(&[1])],
            members: set(&[1]),
            nodes: nodes(&[(1, IN, "a"), (2, IN, "b")]),
            ready: set(&[]),
        };
        check(&situation, Some(Step::AddLearner(2)));
        situation.members = set(&[1, 2, 9]);
        check(&situation, Some(Step::RemoveLearners(set(&[9]))));
    }

    #[test]
    fn a_dead_voter_is_replaced_in_one_swap_and_never_just_dropped() {
        let mut situation = Situation {
            voters: vec![set(&[1, 2, 3])],
            members: set(&[1, 2, 3, 4]),
            nodes: nodes(&[(1, IN, "a"), (2, NodeState::Out, "b"), (3, IN, "c"), (4, IN, "d")]),
            ready: set(&[]),
        };
        check(&situation, None);
        situation.ready.insert(4);
        check(&situation, Some(Step::SetVoters(set(&[1, 3, 4]))));
    }
}
