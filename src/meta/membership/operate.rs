//! What an operator may ask for, and what is refused. The decision is pure; the leaders carry it out step by step.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::meta::command::{Command, Rejection, Response};
use crate::meta::engine::Core;
use crate::meta::plan::{Leave, NodeChange, NodePlan, Plan, PlanChange, Vote};
use crate::meta::{Outcome, ProposeError, State};
use crate::topology::{NodeId, NodeRecord, NodeState, Topology};

use super::{Sight, all_voters};

/// What an operator wants of the members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Keeps a node out of placement although it lives.
    Out {
        /// Which.
        node: NodeId,
    },
    /// Lets a node count again; a node that is leaving stays after all.
    In {
        /// Which.
        node: NodeId,
    },
    /// Gives nodes a vote, before others.
    AddVoters {
        /// Which.
        nodes: BTreeSet<NodeId>,
        /// Although the number of voters becomes even.
        force: bool,
    },
    /// Takes nodes' votes away; others get them if any are there.
    Demote {
        /// Which.
        nodes: BTreeSet<NodeId>,
        /// Although fewer than three voters are left.
        force: bool,
    },
    /// Leaves it to the cluster again whether nodes vote.
    FreeVotes {
        /// Which.
        nodes: BTreeSet<NodeId>,
    },
    /// Empties a node and removes it then.
    Decommission {
        /// Which.
        node: NodeId,
        /// The copies that a push waits for.
        write_copies: usize,
        /// Although too few nodes or voters are left.
        force: bool,
    },
    /// Removes a dead node; at once if forced, else when everything has its copies without it.
    Remove {
        /// Which.
        node: NodeId,
        /// The copies that a push waits for.
        write_copies: usize,
        /// At once, whatever is lost and even if it lives.
        force: bool,
    },
    /// Has one node take another's vote and content, and removes the other.
    Replace {
        /// The node that goes.
        old: NodeId,
        /// The node that takes its place.
        new: NodeId,
    },
}

/// Says why an operator's wish is not carried out; nothing was changed then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such node.
    #[error("there is no node {0}")]
    NodeUnknown(NodeId),
    /// Nobody would be left.
    #[error("it is the last node that counts")]
    LastNode,
    /// A push could not be kept as often as it should.
    #[error("{left} nodes would be left, and a push waits for {write_copies} copies: join a node first, or force it")]
    TooFewNodes {
        /// Members left.
        left: usize,
        /// What a push waits for.
        write_copies: usize,
    },
    /// The next loss would end the quorum.
    #[error("{left} voters would be left, which do not survive the loss of one: join a node first, or force it")]
    TooFewVoters {
        /// Voters left.
        left: usize,
    },
    /// An even number of voters survives no more than the odd one below it.
    #[error("there would be {count} voters, which survive no more losses than {}: name one more, or force it", count - 1)]
    EvenVoters {
        /// How many there would be.
        count: usize,
    },
    /// It answers.
    #[error("node {node} ({name}) lives: decommission it, or force it")]
    Lives {
        /// Which.
        node: NodeId,
        /// Its name.
        name: String,
    },
    /// The node cannot take on what is asked of it.
    #[error("node {node} ({name}) is out, dead, or leaves the cluster")]
    Unfit {
        /// Which.
        node: NodeId,
        /// Its name.
        name: String,
    },
    /// One node cannot take its own place.
    #[error("old and new are the same node")]
    SameNode,
    /// Another node that is in has its name.
    #[error("another node has the name of node {0} by now")]
    NameTaken(NodeId),
    /// Another operator was faster.
    #[error("another change of the members came between: look, and ask again")]
    Conflict,
    /// Some node is too old to know of this.
    #[error("not all nodes run a version that knows this: the agreed feature level is {agreed}")]
    Level {
        /// What all know.
        agreed: u32,
    },
    /// There is no quorum.
    #[error("no quorum")]
    Unavailable {
        /// Whether it may happen all the same.
        outcome: Outcome,
    },
}

/// What a decision is made from.
struct Ground<'a> {
    topology: &'a Topology,
    plan: &'a Plan,
    voters: BTreeSet<NodeId>,
    sight: &'a dyn Fn(NodeId) -> Sight,
}

impl Ground<'_> {
    fn node(&self, id: NodeId) -> Result<&NodeRecord, Refusal> {
        self.topology.node(id).ok_or(Refusal::NodeUnknown(id))
    }

    fn is_fit(&self, node: &NodeRecord) -> bool {
        let leaves = self.plan.node(node.id).leave != Leave::Stays;
        node.state == NodeState::In && !leaves && (self.sight)(node.id) != Sight::Dead
    }

    fn require_fit(&self, id: NodeId) -> Result<&NodeRecord, Refusal> {
        let node = self.node(id)?;
        if self.is_fit(node) { Ok(node) } else { Err(Refusal::Unfit { node: id, name: node.name.clone() }) }
    }

    fn change(&self, id: NodeId, state: NodeState, change: impl FnOnce(&mut NodePlan)) -> NodeChange {
        let mut plan = self.plan.node(id);
        change(&mut plan);
        NodeChange { node: id, state, plan }
    }

    fn decide(&self, operation: &Operation) -> Result<PlanChange, Refusal> {
        let nodes = match operation {
            Operation::Out { node } => self.out(*node)?,
            Operation::In { node } => vec![self.back(*node)?],
            Operation::AddVoters { nodes, force } => self.add_voters(nodes, *force)?,
            Operation::Demote { nodes, force } => {
                self.require_voters_without(nodes, *force)?;
                let demoted = |id: &NodeId| {
                    let state = self.node(*id)?.state;
                    Ok(self.change(*id, state, |plan| plan.vote = Vote::Never))
                };
                nodes.iter().map(demoted).collect::<Result<_, _>>()?
            }
            Operation::FreeVotes { nodes } => nodes.iter().map(|id| self.free_vote(*id)).collect::<Result<_, _>>()?,
            Operation::Decommission { node, write_copies, force } => {
                vec![self.leave(*node, Leave::WhenEmpty, *write_copies, *force)?]
            }
            Operation::Remove { node, write_copies, force } => {
                let record = self.node(*node)?;
                if !force && (self.sight)(*node) != Sight::Dead {
                    return Err(Refusal::Lives { node: *node, name: record.name.clone() });
                }
                let leave = if *force { Leave::Now } else { Leave::WhenEmpty };
                vec![self.leave(*node, leave, *write_copies, *force)?]
            }
            Operation::Replace { old, new } => self.replace(*old, *new)?,
        };
        Ok(PlanChange { seen: self.plan.index, nodes })
    }

    fn out(&self, id: NodeId) -> Result<Vec<NodeChange>, Refusal> {
        let state = self.node(id)?.state;
        let others = self.topology.nodes.values().any(|node| node.id != id && node.state == NodeState::In);
        if !others {
            return Err(Refusal::LastNode);
        }
        // One that is being emptied goes on being emptied.
        let state = if state == NodeState::Decommissioned { state } else { NodeState::Out };
        Ok(vec![self.change(id, state, |plan| plan.held_out = true)])
    }

    fn back(&self, id: NodeId) -> Result<NodeChange, Refusal> {
        self.node(id)?;
        Ok(self.change(id, NodeState::In, |plan| {
            if plan.leave != Leave::Stays {
                plan.vote = Vote::Auto;
            }
            (plan.held_out, plan.leave) = (false, Leave::Stays);
        }))
    }

    fn add_voters(&self, nodes: &BTreeSet<NodeId>, force: bool) -> Result<Vec<NodeChange>, Refusal> {
        for id in nodes {
            self.require_fit(*id)?;
        }
        let keeps = |id: &NodeId| {
            self.topology.node(*id).is_some_and(|node| self.is_fit(node)) && self.plan.node(*id).vote != Vote::Never
        };
        let mut after: BTreeSet<NodeId> = self.voters.iter().filter(|id| keeps(id)).copied().collect();
        after.extend(nodes);
        if after.len().is_multiple_of(2) && after.len() > self.voters.len() && !force {
            return Err(Refusal::EvenVoters { count: after.len() });
        }
        Ok(nodes.iter().map(|id| self.change(*id, NodeState::In, |plan| plan.vote = Vote::Always)).collect())
    }

    fn free_vote(&self, id: NodeId) -> Result<NodeChange, Refusal> {
        let node = self.node(id)?;
        if self.plan.node(id).leave != Leave::Stays {
            return Err(Refusal::Unfit { node: id, name: node.name.clone() });
        }
        Ok(self.change(id, node.state, |plan| plan.vote = Vote::Auto))
    }

    /// Refuses if fewer than three voters were left of three or more, those counted who would take over a vote.
    fn require_voters_without(&self, nodes: &BTreeSet<NodeId>, force: bool) -> Result<(), Refusal> {
        for id in nodes {
            self.node(*id)?;
        }
        let left = self.voters.difference(nodes).count();
        let takes_over = |node: &&NodeRecord| {
            let id = node.id;
            let may = self.plan.node(id).vote != Vote::Never && self.is_fit(node);
            may && !self.voters.contains(&id) && !nodes.contains(&id)
        };
        let spare = self.topology.nodes.values().filter(takes_over).count();
        let after = left + spare.min(self.voters.len() - left);
        if after == 0 {
            return Err(Refusal::LastNode);
        }
        if after < 3 && after < self.voters.len() && !force {
            return Err(Refusal::TooFewVoters { left: after });
        }
        Ok(())
    }

    fn leave(&self, id: NodeId, leave: Leave, write_copies: usize, force: bool) -> Result<NodeChange, Refusal> {
        let node = self.node(id)?;
        let counts = |other: &&NodeRecord| other.id != id && other.state != NodeState::Decommissioned;
        let left = self.topology.nodes.values().filter(counts).count();
        if left == 0 {
            return Err(Refusal::LastNode);
        }
        if left < write_copies && node.state != NodeState::Decommissioned && !force {
            return Err(Refusal::TooFewNodes { left, write_copies });
        }
        self.require_voters_without(&BTreeSet::from([id]), force)?;
        Ok(self.change(id, NodeState::Decommissioned, |plan| (plan.vote, plan.leave) = (Vote::Never, leave)))
    }

    fn replace(&self, old: NodeId, new: NodeId) -> Result<Vec<NodeChange>, Refusal> {
        self.node(old)?;
        if old == new {
            return Err(Refusal::SameNode);
        }
        self.require_fit(new)?;
        let mut changes = vec![self.change(old, NodeState::Decommissioned, |plan| {
            (plan.vote, plan.leave) = (Vote::Never, Leave::WhenEmpty);
        })];
        if self.voters.contains(&old) && !self.voters.contains(&new) {
            changes.push(self.change(new, NodeState::In, |plan| plan.vote = Vote::Always));
        }
        Ok(changes)
    }
}

impl Core {
    /// Decides and has it agreed on; returns the log index of the decision.
    pub(in crate::meta) async fn operate(&self, operation: Operation, limit: Duration) -> Result<u64, Refusal> {
        let view = self.view_confirmed().await;
        if !view.fresh {
            return Err(Refusal::Unavailable { outcome: Outcome::None });
        }
        let change = self.decide(&view.state, &operation)?;
        let first = change.nodes.first().map(|change| change.node).unwrap_or_default();
        match self.propose(Command::ChangePlan(change), limit).await {
            Ok(applied) => match applied.response {
                Response::Rejected(Rejection::PlanChanged) => Err(Refusal::Conflict),
                Response::Rejected(Rejection::NodeUnknown) => Err(Refusal::NodeUnknown(first)),
                Response::Rejected(Rejection::NameTaken) => Err(Refusal::NameTaken(first)),
                Response::Rejected(Rejection::FeatureLevel { agreed }) => Err(Refusal::Level { agreed }),
                Response::Rejected(_) => Err(Refusal::Unavailable { outcome: Outcome::None }),
                _ => {
                    tracing::info!(?operation, log_index = applied.index, "an operator has decided");
                    Ok(applied.index)
                }
            },
            Err(ProposeError::Unavailable { outcome }) => Err(Refusal::Unavailable { outcome }),
            Err(ProposeError::Stopped) => Err(Refusal::Unavailable { outcome: Outcome::None }),
        }
    }

    fn decide(&self, state: &State, operation: &Operation) -> Result<PlanChange, Refusal> {
        let (topology, plan) = (state.topology(), state.plan());
        let voters = all_voters(&self.raft_metrics()).into_iter().map(NodeId).collect();
        let sight = |node| if node == self.me { Sight::Live } else { (self.hooks.sight)(node) };
        Ground { topology: &topology, plan: &plan, voters, sight: &sight }.decide(operation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::testing;

    struct Table {
        topology: Topology,
        plan: Plan,
        voters: BTreeSet<NodeId>,
        dead: BTreeSet<NodeId>,
    }

    fn ids(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    /// So many nodes, of which the first few vote.
    fn table(nodes: u64, voters: u64) -> Table {
        Table {
            topology: testing::topology((1..=nodes).map(testing::record)),
            plan: Plan::default(),
            voters: (1..=voters).map(NodeId).collect(),
            dead: BTreeSet::new(),
        }
    }

    impl Table {
        fn decide(&self, operation: &Operation) -> Result<Vec<NodeChange>, Refusal> {
            let sight = |node: NodeId| if self.dead.contains(&node) { Sight::Dead } else { Sight::Live };
            let ground =
                Ground { topology: &self.topology, plan: &self.plan, voters: self.voters.clone(), sight: &sight };
            ground.decide(operation).map(|change| change.nodes)
        }
    }

    fn demote(nodes: &[u64], force: bool) -> Operation {
        Operation::Demote { nodes: ids(nodes), force }
    }

    fn decommission(node: u64, force: bool) -> Operation {
        Operation::Decommission { node: NodeId(node), write_copies: 2, force }
    }

    fn remove(node: u64, force: bool) -> Operation {
        Operation::Remove { node: NodeId(node), write_copies: 2, force }
    }

    #[test]
    fn three_voters_do_not_become_two_unless_forced() {
        let table = table(3, 3);
        assert_eq!(table.decide(&demote(&[2], false)), Err(Refusal::TooFewVoters { left: 2 }));
        assert_eq!(table.decide(&decommission(2, false)), Err(Refusal::TooFewVoters { left: 2 }));
        assert!(table.decide(&demote(&[2], true)).is_ok());
        assert!(table.decide(&decommission(2, true)).is_ok());
        assert_eq!(table.decide(&demote(&[1, 2, 3], true)), Err(Refusal::LastNode));
    }

    #[test]
    fn a_learner_that_lives_takes_over_a_vote_and_a_dead_one_does_not() {
        let mut table = table(4, 3);
        assert!(table.decide(&demote(&[2], false)).is_ok());
        table.dead = ids(&[4]);
        assert_eq!(table.decide(&demote(&[2], false)), Err(Refusal::TooFewVoters { left: 2 }));
        let five = self::table(5, 5);
        assert!(five.decide(&demote(&[4, 5], false)).is_ok());
        assert_eq!(five.decide(&demote(&[3, 4, 5], false)), Err(Refusal::TooFewVoters { left: 2 }));
    }

    #[test]
    fn fewer_nodes_than_a_push_waits_for_are_not_left_unless_forced() {
        let table = table(2, 1);
        assert_eq!(table.decide(&decommission(2, false)), Err(Refusal::TooFewNodes { left: 1, write_copies: 2 }));
        assert!(table.decide(&decommission(2, true)).is_ok());
        assert_eq!(self::table(1, 1).decide(&decommission(1, true)), Err(Refusal::LastNode));
        assert_eq!(table.decide(&decommission(9, true)), Err(Refusal::NodeUnknown(NodeId(9))));
    }

    #[test]
    fn only_the_dead_are_removed_unless_forced() {
        let mut table = table(4, 3);
        assert!(matches!(table.decide(&remove(3, false)), Err(Refusal::Lives { .. })));
        assert_eq!(table.decide(&remove(3, true)).unwrap()[0].plan.leave, Leave::Now);
        table.dead = ids(&[3]);
        assert_eq!(table.decide(&remove(3, false)).unwrap()[0].plan.leave, Leave::WhenEmpty);
    }

    #[test]
    fn voters_are_added_to_an_odd_number_unless_forced() {
        let table = table(6, 3);
        let add = |nodes: &[u64], force| Operation::AddVoters { nodes: ids(nodes), force };
        assert_eq!(table.decide(&add(&[4], false)), Err(Refusal::EvenVoters { count: 4 }));
        assert!(table.decide(&add(&[4], true)).is_ok() && table.decide(&add(&[4, 5], false)).is_ok());
        // In the place of a dead one it stays odd.
        let mut dead = self::table(4, 3);
        dead.dead = ids(&[2]);
        assert!(dead.decide(&add(&[4], false)).is_ok());
        assert!(matches!(dead.decide(&add(&[2], true)), Err(Refusal::Unfit { .. })));
    }

    #[test]
    fn whether_a_node_votes_is_left_to_the_cluster_again_unless_it_leaves() {
        let mut table = table(4, 3);
        let free = |node| Operation::FreeVotes { nodes: ids(&[node]) };
        let demoted = table.decide(&demote(&[2], false)).unwrap().remove(0);
        table.plan.nodes.insert(demoted.node, demoted.plan);
        let freed = table.decide(&free(2)).unwrap().remove(0);
        assert_eq!((freed.state, freed.plan), (NodeState::In, NodePlan::default()));
        let leaving = table.decide(&decommission(3, false)).unwrap().remove(0);
        table.plan.nodes.insert(leaving.node, leaving.plan);
        assert!(matches!(table.decide(&free(3)), Err(Refusal::Unfit { .. })));
        assert_eq!(table.decide(&free(9)), Err(Refusal::NodeUnknown(NodeId(9))));
    }

    #[test]
    fn a_node_that_was_to_leave_may_stay_after_all() {
        let mut table = table(4, 3);
        let gone = table.decide(&decommission(2, false)).unwrap().remove(0);
        table.plan.nodes.insert(gone.node, gone.plan);
        table.topology.nodes.get_mut(&gone.node).unwrap().state = gone.state;
        let back = table.decide(&Operation::In { node: NodeId(2) }).unwrap().remove(0);
        assert_eq!((back.state, back.plan), (NodeState::In, NodePlan::default()));
    }

    #[test]
    fn a_new_node_takes_the_vote_and_the_place_of_an_old_one() {
        let mut table = table(4, 3);
        table.dead = ids(&[2]);
        let changes = table.decide(&Operation::Replace { old: NodeId(2), new: NodeId(4) }).unwrap();
        assert_eq!(changes[0].plan, NodePlan { vote: Vote::Never, held_out: false, leave: Leave::WhenEmpty });
        assert_eq!((changes[1].node, changes[1].plan.vote), (NodeId(4), Vote::Always));
        let same = Operation::Replace { old: NodeId(2), new: NodeId(2) };
        assert_eq!(table.decide(&same), Err(Refusal::SameNode));
        let dead = Operation::Replace { old: NodeId(1), new: NodeId(2) };
        assert!(matches!(table.decide(&dead), Err(Refusal::Unfit { .. })));
    }

    #[test]
    fn the_last_node_that_counts_is_not_held_out() {
        assert_eq!(table(1, 1).decide(&Operation::Out { node: NodeId(1) }), Err(Refusal::LastNode));
        assert!(table(2, 1).decide(&Operation::Out { node: NodeId(1) }).unwrap()[0].plan.held_out);
    }
}
