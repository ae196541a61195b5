//! Who consensus runs among: the leader takes in new nodes, makes caught-up learners voters, carries out what operators have
//! decided, and finishes what a dead leader began (P12, P13, R19, R20).
//!
//! What an operator wants is agreed state (`plan.rs`), so any later leader goes on with it. Start reading at `steps.rs`
//! (pure: which change comes next), `away.rs` (pure: who counts out), `operate.rs` (pure: what an operator may ask for).

mod away;
#[cfg(test)]
mod cluster_tests;
mod operate;
mod steps;

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::impls::EmptyNode;
use tokio::time::{Instant, timeout};

use crate::topology::{NodeId, Policy};

use super::State;
use super::command::{Command, Response};
use super::engine::Core;
use super::types::Metrics as RaftMetrics;

use away::Away;
use steps::{Member, Situation, Step, voters_for};

pub use away::Sight;
pub use operate::{Operation, Refusal};

/// How often the leader looks.
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// A learner whose log reached to where the leader's ended this long ago is caught up with it.
const LOG_LAG: Duration = Duration::from_secs(1);
/// The same for what it has applied and which bodies it has: it says so every half second.
const BODIES_LAG: Duration = Duration::from_secs(5);
/// How long one change may take before the leader looks again.
const CHANGE_MAX: Duration = Duration::from_secs(10);
/// How long the leader waits for what it proposes itself.
const PROPOSE_MAX: Duration = Duration::from_secs(3);
/// How long a leader that gives up its own vote tries to hand over first.
const HAND_OVER_MAX: Duration = Duration::from_secs(3);
/// Sessions expired by one entry.
const EXPIRED_MAX: usize = 256;

/// Where the leader's log ended, some seconds back.
///
/// Under constant writes nobody is ever caught up to the newest entry; whoever has what was there a moment ago keeps up.
#[derive(Debug, Default)]
struct Past(VecDeque<(Instant, u64)>);

impl Past {
    fn note(&mut self, now: Instant, last: u64) {
        self.0.push_back((now, last));
        // One older than needed stays, so that there is an answer between two looks.
        while self.0.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= BODIES_LAG) {
            self.0.pop_front();
        }
    }

    /// Where the log ended `ago`; where it ended when this leader began, if that is not so long ago.
    fn at(&self, now: Instant, ago: Duration) -> u64 {
        let old = self.0.iter().rev().find(|(at, _)| now.duration_since(*at) >= ago);
        old.or_else(|| self.0.front()).map_or(0, |(_, last)| *last)
    }
}

/// What one leader remembers from look to look.
#[derive(Debug, Default)]
struct Reign {
    term: u64,
    past: Past,
    away: Away,
}

impl Core {
    /// Looks after membership, the opening of the registry and expired sessions, while this node leads; for ever.
    pub(super) async fn keep_members(&self) {
        let mut reign = Reign::default();
        loop {
            self.changed(LOOK_EVERY).await;
            let Some(term) = self.leading() else {
                self.set_notices(Vec::new());
                continue;
            };
            if reign.term != term {
                reign = Reign { term, ..Reign::default() };
            }
            self.followers.lead(term);
            self.look_after(&mut reign).await;
        }
    }

    async fn look_after(&self, reign: &mut Reign) {
        let state = self.published.current().state;
        if state.cluster().is_none() {
            // The first node is about to say what this cluster is.
            return;
        }
        let metrics = self.raft_metrics();
        let now = Instant::now();
        reign.past.note(now, metrics.last_log_index.unwrap_or(0));
        // One change at a time: the last one must be committed before the next is proposed.
        if metrics.membership_config == metrics.committed_membership_config
            && let Some(step) = self.situation(&metrics, &state, &reign.past).step()
        {
            self.take(step).await;
        }
        self.mark_nodes(&mut reign.away).await;
        self.open_when_complete().await;
        self.raise_feature_level().await;
        self.agree_on_policy().await;
        self.expire_uploads().await;
    }

    fn situation(&self, metrics: &RaftMetrics, state: &State, past: &Past) -> Situation {
        let membership = metrics.membership_config.membership();
        let (topology, plan, now) = (state.topology(), state.plan(), Instant::now());
        let matched = |id: u64| metrics.replication.as_ref()?.get(&id).copied().flatten().map(|matched| matched.index);
        let bodies_to = |id: u64| match id == self.me.0 {
            true => Some((self.hooks.bodies_to)()),
            false => self.followers.bodies_to(id),
        };
        let (log_end, old_end) = (past.at(now, LOG_LAG), past.at(now, BODIES_LAG));
        let caught_up = |id: &u64| {
            let applied = self.followers.report(*id).is_some_and(|report| report.applied >= old_end);
            // One that has never looked knows of no body, and says 0.
            let bodies = bodies_to(*id).is_some_and(|index| index > 0 && index >= old_end);
            applied && bodies && matched(*id).is_some_and(|index| index >= log_end)
        };
        let decided = plan.index.max(state.membership_index());
        let nodes = topology.nodes.values().map(|node| {
            let (state, zone) = (node.state, node.zone.0.clone());
            (node.id.0, Member { state, zone, plan: plan.node(node.id) })
        });
        let ids = || topology.nodes.keys().map(|id| id.0);
        Situation {
            voters: membership.get_joint_config().clone(),
            members: membership.nodes().map(|(id, _)| *id).collect(),
            nodes: nodes.collect(),
            heard: ids().filter(|id| *id == self.me.0 || self.followers.report(*id).is_some()).collect(),
            ready: membership.learner_ids().filter(caught_up).collect(),
            complete: ids().filter(|id| bodies_to(*id).is_some_and(|index| index >= decided)).collect(),
            empty: ids().filter(|id| (self.hooks.is_empty)(NodeId(*id), decided)).collect(),
        }
    }

    /// Counts nodes out that are away for long, and in that are back (P13).
    async fn mark_nodes(&self, away: &mut Away) {
        let state = self.published.current().state;
        let (topology, plan) = (state.topology(), state.plan());
        let grace = Duration::from_millis(self.config.out_after_ms);
        let sight = |node| if node == self.me { Sight::Live } else { (self.hooks.sight)(node) };
        let verdict = away.look((&topology, &plan), sight, grace, Instant::now());
        self.set_notices(verdict.notices);
        for (node, state) in verdict.changes {
            tracing::warn!(node = node.0, ?state, "node counts differently for placement from now on");
            self.propose_own(Command::SetNodeState { node, state }).await;
        }
    }

    fn set_notices(&self, notices: Vec<String>) {
        *self.notices.lock().expect("no panic while held") = notices;
    }

    /// Raises the agreed feature level to the lowest that any member reports (P8); there is no way back.
    async fn raise_feature_level(&self) {
        let state = self.published.current().state;
        let lowest = state.nodes().map(|node| node.feature_level).min();
        if let Some(level) = lowest.filter(|level| *level > state.feature_level()) {
            self.propose_own(Command::RaiseFeatureLevel { level }).await;
        }
    }

    /// Makes this node's number of copies the agreed one, if there is none: a new cluster, or one from before policies.
    async fn agree_on_policy(&self) {
        let state = self.published.current().state;
        let command = Command::SetPolicy { policy: Policy::of_copies(self.config.copies), first: true };
        if state.is_open() && state.topology().policy.is_none() && command.feature_level() <= state.feature_level() {
            self.propose_own(command).await;
        }
    }

    async fn take(&self, step: Step) {
        tracing::info!(?step, "membership changes");
        if let Step::SetVoters(voters) = &step
            && !voters.contains(&self.me.0)
        {
            // A leader without a vote could not stay one: another carries the change out.
            self.hand_over(Some(voters), HAND_OVER_MAX).await;
            return;
        }
        let change = async {
            match step.clone() {
                Step::AddLearner(id) => self.raft.add_learner(id, EmptyNode {}, false).await.map(drop),
                Step::RemoveLearners(ids) => {
                    self.raft.change_membership(ChangeMembers::RemoveNodes(ids), true).await.map(drop)
                }
                Step::SetVoters(voters) => {
                    self.raft.change_membership(ChangeMembers::ReplaceAllVoters(voters), true).await.map(drop)
                }
                Step::RemoveNode(id) => {
                    self.propose_own(Command::RemoveNode { node: NodeId(id) }).await;
                    Ok(())
                }
            }
        };
        match timeout(CHANGE_MAX, change).await {
            // The next look finds out whether the outcome is uniform, and goes on from there if not.
            Ok(Ok(())) => {}
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
        match self.propose(command, PROPOSE_MAX).await {
            Ok(applied) => {
                if let Response::Rejected(rejection) = applied.response {
                    tracing::debug!(?rejection, "own proposal refused");
                }
            }
            Err(error) => tracing::debug!(%error, "own proposal failed"),
        }
    }

    /// Whether a node may speak to this one: not if it was removed (R21). A node that is not applied here yet may.
    pub(super) fn admits(&self, node: NodeId) -> bool {
        let state = self.published.current().state;
        state.topology().node(node).is_some() || node >= state.next_node()
    }
}

/// Everyone with a vote in any set.
fn all_voters(metrics: &RaftMetrics) -> BTreeSet<u64> {
    metrics.membership_config.membership().voter_ids().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_has_what_was_there_a_moment_ago_is_caught_up_under_any_number_of_writes() {
        let (begin, mut past) = (Instant::now(), Past::default());
        past.note(begin, 5);
        assert_eq!(past.at(begin, BODIES_LAG), 5, "a new leader knows no earlier end");
        for second in 1..60u32 {
            let now = begin + Duration::from_secs(1) * second;
            past.note(now, u64::from(second) * 1000);
            if second > 5 {
                assert_eq!(past.at(now, BODIES_LAG), u64::from(second - 5) * 1000);
                assert_eq!(past.at(now, LOG_LAG), u64::from(second - 1) * 1000);
            }
        }
        assert!(past.0.len() < 10);
    }
}
