//! Which single change of consensus' membership comes next, if any. Pure.
//!
//! Nothing but an operator's decision makes the voter set smaller: whoever is merely away keeps its vote until another takes
//! it (P12).

use std::collections::{BTreeMap, BTreeSet};

use crate::meta::plan::{Leave, NodePlan, Vote};
use crate::topology::NodeState;

/// One change to the membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    AddLearner(u64),
    RemoveLearners(BTreeSet<u64>),
    SetVoters(BTreeSet<u64>),
    /// Takes a node that leaves out of the agreed table; consensus follows.
    RemoveNode(u64),
}

/// What is agreed about one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) state: NodeState,
    pub(super) zone: String,
    pub(super) plan: NodePlan,
}

impl Member {
    /// Whether it may be given a vote.
    fn may_vote(&self) -> bool {
        self.state == NodeState::In && self.keeps_vote()
    }

    /// Whether it keeps the vote it has, as far as it alone is concerned.
    fn keeps_vote(&self) -> bool {
        // Whoever an operator holds out of placement for a while lives and votes.
        let away = self.state == NodeState::Out && !self.plan.held_out;
        !away && !self.must_give_up_vote()
    }

    /// Whether an operator has decided that it shall have no vote, were the set smaller for it.
    fn must_give_up_vote(&self) -> bool {
        self.plan.vote == Vote::Never || self.plan.leave != Leave::Stays || self.state == NodeState::Decommissioned
    }
}

/// What the next step is decided from.
#[derive(Debug, Default)]
pub(super) struct Situation {
    /// The voter sets in force, two while a change is joint.
    pub(super) voters: Vec<BTreeSet<u64>>,
    pub(super) members: BTreeSet<u64>,
    pub(super) nodes: BTreeMap<u64, Member>,
    /// Nodes that this leader has lately heard from, itself included.
    pub(super) heard: BTreeSet<u64>,
    /// Learners whose log and bodies are caught up.
    pub(super) ready: BTreeSet<u64>,
    /// Nodes that have every body which was put before the last decision and the last change (P18).
    pub(super) complete: BTreeSet<u64>,
    /// Nodes of which nothing lies only with them any more, that were asked to leave.
    pub(super) empty: BTreeSet<u64>,
}

impl Situation {
    /// Decides on one change, or none.
    pub(super) fn step(&self) -> Option<Step> {
        let voters = self.voters.last()?;
        if self.voters.len() > 1 {
            // A dead leader left its change half done: go on to the set it wanted.
            return Some(Step::SetVoters(voters.clone()));
        }
        let stays = |member: &Member| member.plan.leave != Leave::Now;
        let new = |(id, member): &(&u64, &Member)| stays(member) && !self.members.contains(id);
        if let Some((new, _)) = self.nodes.iter().find(new) {
            return Some(Step::AddLearner(*new));
        }
        let gone: BTreeSet<u64> =
            self.members.iter().filter(|id| !self.nodes.contains_key(id) && !voters.contains(id)).copied().collect();
        if !gone.is_empty() && !self.nodes.is_empty() {
            return Some(Step::RemoveLearners(gone));
        }
        let change = self.swap(voters).or_else(|| self.shrink(voters)).or_else(|| self.grow(voters));
        change.map(Step::SetVoters).or_else(|| self.remove(voters))
    }

    fn keeps_vote(&self, id: u64) -> bool {
        self.nodes.get(&id).is_some_and(Member::keeps_vote)
    }

    fn is_wished(&self, id: u64) -> bool {
        self.nodes.get(&id).is_some_and(|member| member.plan.vote == Vote::Always)
    }

    /// Who can be made a voter of `set`, best first: those an operator named, then zones that have few voters.
    fn candidate(&self, set: &BTreeSet<u64>) -> Option<u64> {
        let zone = |id: &u64| self.nodes.get(id).map(|member| member.zone.as_str());
        let crowd = |id: &u64| set.iter().filter(|voter| zone(voter) == zone(id)).count();
        let fit = |id: &u64| !set.contains(id) && self.nodes.get(id).is_some_and(Member::may_vote);
        let rank = |id: &u64| (!self.is_wished(*id), crowd(id), *id);
        self.ready.iter().copied().filter(fit).min_by_key(rank)
    }

    /// Whether `rest` can go on without the others: those of it that keep their votes have all bodies (P18), and a
    /// majority of it answers.
    fn can_go_on(&self, rest: &BTreeSet<u64>) -> bool {
        let complete = rest.iter().all(|id| !self.keeps_vote(*id) || self.complete.contains(id));
        let heard = rest.iter().filter(|id| self.heard.contains(id)).count();
        complete && heard * 2 > rest.len()
    }

    /// Replaces one voter that no longer counts by a learner that is ready.
    fn swap(&self, voters: &BTreeSet<u64>) -> Option<BTreeSet<u64>> {
        let old = voters.iter().find(|id| !self.keeps_vote(**id))?;
        let mut rest = voters.clone();
        rest.remove(old);
        let new = self.candidate(voters)?;
        let mut swapped = rest.clone();
        swapped.insert(new);
        if rest.is_empty() {
            // The only voter leads, and can hand over to a voter alone: the new one votes beside it first.
            swapped.insert(*old);
        }
        let heard = swapped.iter().filter(|id| self.heard.contains(id)).count();
        let complete = rest.iter().all(|id| !self.keeps_vote(*id) || self.complete.contains(id));
        (complete && heard * 2 > swapped.len()).then_some(swapped)
    }

    /// Lets those go that an operator has decided about, if nobody can take their votes.
    fn shrink(&self, voters: &BTreeSet<u64>) -> Option<BTreeSet<u64>> {
        let must = |id: &&u64| self.nodes.get(id).is_none_or(Member::must_give_up_vote);
        let unwanted: BTreeSet<u64> = voters.iter().filter(must).copied().collect();
        if unwanted.is_empty() {
            return None;
        }
        // A learner that is not ready yet is waited for.
        let spare = |id: &&u64| !voters.contains(id) && self.nodes.get(id).is_some_and(Member::may_vote);
        let coming = self.heard.iter().filter(spare).count();
        let rest: BTreeSet<u64> = voters.difference(&unwanted).copied().collect();
        (coming == 0 && !rest.is_empty() && self.can_go_on(&rest)).then_some(rest)
    }

    /// Goes to 3 and to 5 voters, and beyond if an operator named more.
    fn grow(&self, voters: &BTreeSet<u64>) -> Option<BTreeSet<u64>> {
        let wished = self.nodes.iter().filter(|(id, member)| self.is_wished(**id) && member.may_vote());
        let wished: BTreeSet<u64> = wished.map(|(id, _)| *id).collect();
        let missing: Vec<u64> = wished.difference(voters).copied().collect();
        if !missing.is_empty() && missing.iter().all(|id| self.ready.contains(id)) {
            let grown: BTreeSet<u64> = voters.union(&wished).copied().collect();
            // An even number is never more than a stage, unless an operator named it.
            return Some(self.odd(grown));
        }
        let target = match voters.len() {
            1 | 2 => 3,
            3 | 4 => 5,
            _ => return None,
        };
        let mut grown = voters.clone();
        while grown.len() < target {
            grown.insert(self.candidate(&grown)?);
        }
        Some(grown)
    }

    /// Adds one more where there would be an even number, if somebody is ready.
    fn odd(&self, mut set: BTreeSet<u64>) -> BTreeSet<u64> {
        if set.len().is_multiple_of(2)
            && let Some(one_more) = self.candidate(&set)
        {
            set.insert(one_more);
        }
        set
    }

    /// Takes a node that leaves out of the table once it has no vote.
    fn remove(&self, voters: &BTreeSet<u64>) -> Option<Step> {
        let goes = |(id, member): &(&u64, &Member)| match member.plan.leave {
            Leave::Stays => false,
            _ if voters.contains(id) => false,
            Leave::Now => true,
            Leave::WhenEmpty => {
                self.empty.contains(id)
                    && voters.iter().all(|voter| !self.keeps_vote(*voter) || self.complete.contains(voter))
            }
        };
        self.nodes.iter().find(goes).map(|(id, _)| Step::RemoveNode(*id))
    }
}

/// The number of voters that `nodes` nodes allow.
pub(super) fn voters_for(nodes: u32) -> usize {
    match nodes {
        0..=2 => 1,
        3 | 4 => 3,
        _ => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IN: NodeState = NodeState::In;

    fn set(ids: &[u64]) -> BTreeSet<u64> {
        ids.iter().copied().collect()
    }

    fn node(state: NodeState, zone: &str) -> Member {
        Member { state, zone: zone.to_owned(), plan: NodePlan::default() }
    }

    /// Nodes 1, 2, … that are *in*, live and complete, each in the zone of its name; `voters` vote, nobody is ready.
    fn situation(zones: &str, voters: &[u64]) -> Situation {
        let nodes: BTreeMap<u64, Member> =
            zones.chars().zip(1..).map(|(zone, id)| (id, node(IN, &zone.to_string()))).collect();
        let all: BTreeSet<u64> = nodes.keys().copied().collect();
        Situation {
            voters: vec![set(voters)],
            members: all.clone(),
            nodes,
            heard: all.clone(),
            ready: BTreeSet::new(),
            complete: all,
            empty: BTreeSet::new(),
        }
    }

    impl Situation {
        fn ready(mut self, ids: &[u64]) -> Self {
            self.ready = set(ids);
            self
        }

        fn plan(mut self, id: u64, change: impl FnOnce(&mut Member)) -> Self {
            change(self.nodes.get_mut(&id).unwrap());
            self
        }

        fn dead(mut self, id: u64) -> Self {
            self.heard.remove(&id);
            self.complete.remove(&id);
            self
        }
    }

    #[track_caller]
    fn check(situation: &Situation, expected: Option<Step>) {
        assert_eq!(situation.step(), expected, "{situation:?}");
    }

    #[track_caller]
    fn check_voters(situation: &Situation, expected: &[u64]) {
        check(situation, Some(Step::SetVoters(set(expected))));
    }

    fn never(member: &mut Member) {
        member.plan.vote = Vote::Never;
    }

    fn leaves(leave: Leave) -> impl Fn(&mut Member) {
        move |member| {
            member.state = NodeState::Decommissioned;
            member.plan.leave = leave;
        }
    }

    #[test]
    fn voters_go_from_one_to_three_when_both_learners_are_ready() {
        check(&situation("abc", &[1]).ready(&[2]), None);
        check_voters(&situation("abc", &[1]).ready(&[2, 3]), &[1, 2, 3]);
    }

    #[test]
    fn zones_without_a_voter_go_first() {
        check_voters(&situation("aabc", &[1]).ready(&[2, 3, 4]), &[1, 3, 4]);
    }

    #[test]
    fn a_change_left_half_done_is_finished_before_anything_else() {
        let mut situation = situation("abcd", &[1]);
        situation.voters.push(set(&[1, 2, 3]));
        situation.members.remove(&4);
        check_voters(&situation, &[1, 2, 3]);
    }

    #[test]
    fn nodes_become_learners_and_removed_learners_go() {
        let mut situation = situation("ab", &[1]);
        situation.members = set(&[1]);
        check(&situation, Some(Step::AddLearner(2)));
        situation.members = set(&[1, 2, 9]);
        check(&situation, Some(Step::RemoveLearners(set(&[9]))));
    }

    #[test]
    fn a_dead_voter_is_replaced_in_one_swap_and_never_just_dropped() {
        let out = |member: &mut Member| member.state = NodeState::Out;
        check(&situation("abcd", &[1, 2, 3]).dead(2).plan(2, out), None);
        check_voters(&situation("abcd", &[1, 2, 3]).dead(2).plan(2, out).ready(&[4]), &[1, 3, 4]);
        // Two of five at once, one after the other.
        let two = situation("abcdef", &[1, 2, 3, 4, 5]).dead(2).dead(3).plan(2, out).plan(3, out).ready(&[6]);
        check_voters(&two, &[1, 3, 4, 5, 6]);
    }

    #[test]
    fn a_node_that_an_operator_holds_out_keeps_its_vote_and_gets_none() {
        let held = |member: &mut Member| {
            member.state = NodeState::Out;
            member.plan.held_out = true;
        };
        check(&situation("abcd", &[1, 2, 3]).plan(2, held).ready(&[4]), None);
        check(&situation("abc", &[1]).plan(2, held).ready(&[2, 3]), None);
    }

    #[test]
    fn a_demoted_voter_is_replaced_if_anybody_is_there_and_dropped_if_not() {
        check_voters(&situation("abcd", &[1, 2, 3]).plan(2, never).ready(&[4]), &[1, 3, 4]);
        check(&situation("abcd", &[1, 2, 3]).plan(2, never), None);
        check_voters(&situation("abc", &[1, 2, 3]).plan(2, never), &[1, 3]);
        // Five to three in one change, and it stays so.
        let three = situation("abcde", &[1, 2, 3, 4, 5]).plan(4, never).plan(5, never);
        check_voters(&three, &[1, 2, 3]);
        check(&situation("abcde", &[1, 2, 3]).plan(4, never).plan(5, never).ready(&[4, 5]), None);
    }

    #[test]
    fn nobody_is_dropped_while_a_remaining_voter_lacks_bodies_or_a_majority_of_them_is_away() {
        let mut lacking = situation("abc", &[1, 2, 3]).plan(2, never);
        lacking.complete.remove(&3);
        check(&lacking, None);
        check(&situation("abcde", &[1, 2, 3, 4, 5]).plan(4, never).plan(5, never).dead(2).dead(3), None);
    }

    #[test]
    fn an_operator_may_name_more_voters_than_five() {
        let always = |member: &mut Member| member.plan.vote = Vote::Always;
        let seven = || situation("abcdefg", &[1, 2, 3, 4, 5]).plan(6, always).plan(7, always);
        check(&seven().ready(&[6]), None);
        check_voters(&seven().ready(&[6, 7]), &[1, 2, 3, 4, 5, 6, 7]);
        // Whoever is named goes before others.
        check_voters(&situation("aabc", &[1]).plan(2, always).ready(&[2, 3, 4]), &[1, 2, 3]);
    }

    #[test]
    fn a_node_that_leaves_gives_up_its_vote_then_its_content_then_its_place() {
        let leaving = || situation("abcd", &[1, 2, 3]).plan(3, leaves(Leave::WhenEmpty));
        check(&leaving(), None);
        check_voters(&leaving().ready(&[4]), &[1, 2, 4]);
        let mut voteless = situation("abcd", &[1, 2, 4]).plan(3, leaves(Leave::WhenEmpty));
        check(&voteless, None);
        voteless.empty.insert(3);
        check(&voteless, Some(Step::RemoveNode(3)));
        voteless.complete.remove(&4);
        check(&voteless, None);
    }

    #[test]
    fn the_only_voter_gives_its_vote_up_by_way_of_two() {
        let alone = situation("ab", &[1]).ready(&[2]).plan(1, leaves(Leave::WhenEmpty));
        check_voters(&alone, &[1, 2]);
        check_voters(&situation("ab", &[1, 2]).plan(1, leaves(Leave::WhenEmpty)), &[2]);
    }

    #[test]
    fn a_node_that_is_forced_out_waits_for_nothing_but_its_vote() {
        check_voters(&situation("abc", &[1, 2, 3]).dead(3).plan(3, leaves(Leave::Now)), &[1, 2]);
        let mut voteless = situation("abc", &[1, 2]).dead(3).plan(3, leaves(Leave::Now));
        voteless.complete.clear();
        check(&voteless, Some(Step::RemoveNode(3)));
        voteless.members.remove(&3);
        check(&voteless, Some(Step::RemoveNode(3)));
    }
}
