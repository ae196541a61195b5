//! What operators' decisions and join tokens do to the agreed state, one fact a test.

use crate::meta::command::{Command, LogTime, Proposal, Rejection, RequestId, Response};
use crate::meta::plan::{Leave, NodeChange, NodePlan, PlanChange, Vote};
use crate::meta::{State, StateBuilder};
use crate::topology::{ClusterId, NodeId, NodeState};

use super::fixtures::{add_node, join_by_token};

const DAY_MS: u64 = 24 * 3600 * 1000;

struct Fixture {
    state: State,
    index: u64,
    now: u64,
}

impl Fixture {
    /// Two nodes at level 2.
    fn new() -> Self {
        let mut fixture = Self { state: State::default(), index: 0, now: 1_000_000 };
        fixture.run(Command::FormCluster { cluster: ClusterId(1), nodes_expected: 1 });
        fixture.run(Command::RaiseFeatureLevel { level: 2 });
        for id in [1, 2] {
            assert_eq!(fixture.run(add(id)), Response::NodeAdded { node: NodeId(u64::from(id)) });
        }
        fixture
    }

    fn run(&mut self, command: Command) -> Response {
        self.index += 1;
        self.now += 1;
        let at = LogTime(self.now);
        let proposal = Proposal { id: RequestId(self.index.into()), issued: at, at, wall_seconds: 7, command };
        let response = self.state.apply(self.index, &proposal);
        assert_eq!(self.state.check(), vec![], "after {proposal:?}");
        response
    }

    fn plan(&mut self, node: u64, state: NodeState, plan: NodePlan) -> Response {
        let nodes = vec![NodeChange { node: NodeId(node), state, plan }];
        let seen = self.state.plan().index;
        self.run(Command::ChangePlan(PlanChange { seen, nodes }))
    }

    fn state_of(&self, node: u64) -> NodeState {
        self.state.node(NodeId(node)).unwrap().record.state
    }
}

fn add(id: u8) -> Command {
    add_node(&format!("n{id}"), id)
}

fn token(token: u8, ttl_ms: u64, learner: bool) -> Command {
    Command::CreateToken { token: [token; 32], ttl_ms, learner }
}

#[test]
fn below_level_two_nothing_is_planned() {
    let mut state = State::default();
    let change = Command::ChangePlan(PlanChange { seen: 0, nodes: vec![] });
    let at = LogTime(1);
    let proposal = Proposal { id: RequestId(1), issued: at, at, wall_seconds: 0, command: change };
    assert_eq!(state.apply(1, &proposal), Response::Rejected(Rejection::FeatureLevel { agreed: 1 }));
}

#[test]
fn of_two_changes_at_once_one_is_refused() {
    let mut fixture = Fixture::new();
    let change = |node, vote| {
        let plan = NodePlan { vote, ..NodePlan::default() };
        let nodes = vec![NodeChange { node: NodeId(node), state: NodeState::In, plan }];
        Command::ChangePlan(PlanChange { seen: 0, nodes })
    };
    assert_eq!(fixture.run(change(1, Vote::Never)), Response::Done);
    assert_eq!(fixture.run(change(2, Vote::Never)), Response::Rejected(Rejection::PlanChanged));
    assert_eq!(fixture.state.plan().node(NodeId(2)), NodePlan::default());
}

#[test]
fn a_node_that_is_held_out_stays_out_although_the_leader_sees_it_live() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.plan(2, NodeState::Out, NodePlan { held_out: true, ..NodePlan::default() }), Response::Done);
    let back = Command::SetNodeState { node: NodeId(2), state: NodeState::In };
    assert_eq!(fixture.run(back.clone()), Response::Done);
    assert_eq!(fixture.state_of(2), NodeState::Out);
    assert_eq!(fixture.plan(2, NodeState::Out, NodePlan::default()), Response::Done);
    assert_eq!(fixture.run(back), Response::Done);
    assert_eq!(fixture.state_of(2), NodeState::In);
}

#[test]
fn what_was_planned_goes_with_the_node() {
    let mut fixture = Fixture::new();
    let plan = NodePlan { leave: Leave::Now, ..NodePlan::default() };
    assert_eq!(fixture.plan(2, NodeState::Decommissioned, plan), Response::Done);
    assert_eq!(fixture.run(Command::RemoveNode { node: NodeId(2) }), Response::Done);
    assert!(fixture.state.plan().nodes.is_empty());
    assert_eq!(fixture.plan(2, NodeState::In, plan), Response::Rejected(Rejection::NodeUnknown));
}

#[test]
fn a_token_is_good_for_one_key_and_gives_it_the_same_id_again() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.run(join_by_token(1, "a", 7)), Response::Rejected(Rejection::TokenUnknown));
    assert_eq!(fixture.run(token(1, 60_000, false)), Response::Done);
    assert_eq!(
        fixture.run(join_by_token(1, "n1", 7)),
        Response::Rejected(Rejection::NameTaken),
        "and is not used up by that"
    );
    assert_eq!(fixture.run(join_by_token(1, "a", 7)), Response::NodeAdded { node: NodeId(3) });
    assert_eq!(fixture.run(join_by_token(1, "a", 7)), Response::NodeAdded { node: NodeId(3) });
    assert_eq!(fixture.run(join_by_token(1, "b", 8)), Response::Rejected(Rejection::TokenUsed));
    assert_eq!(fixture.run(Command::RemoveNode { node: NodeId(3) }), Response::Done);
    assert_eq!(
        fixture.run(join_by_token(1, "a", 7)),
        Response::Rejected(Rejection::TokenUsed),
        "no id is given out twice"
    );
}

#[test]
fn a_token_expires_by_log_time_and_is_forgotten_a_day_later() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.run(token(1, 1000, false)), Response::Done);
    fixture.now += 1000;
    assert_eq!(fixture.run(join_by_token(1, "a", 7)), Response::Rejected(Rejection::TokenExpired));
    fixture.now += DAY_MS + 1000;
    assert_eq!(fixture.run(token(2, 1000, false)), Response::Done);
    assert_eq!(fixture.run(join_by_token(1, "a", 7)), Response::Rejected(Rejection::TokenUnknown));
    assert_eq!(fixture.run(Command::RevokeToken { token: [2; 32] }), Response::Done);
    assert_eq!(fixture.run(join_by_token(2, "a", 7)), Response::Rejected(Rejection::TokenUnknown));
}

#[test]
fn a_learners_token_gives_no_vote() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.run(token(1, 60_000, true)), Response::Done);
    assert_eq!(fixture.run(join_by_token(1, "a", 7)), Response::NodeAdded { node: NodeId(3) });
    assert_eq!(fixture.state.plan().node(NodeId(3)).vote, Vote::Never);
}

#[test]
fn plan_and_tokens_survive_a_snapshot() {
    let mut fixture = Fixture::new();
    fixture.plan(2, NodeState::Out, NodePlan { held_out: true, ..NodePlan::default() });
    fixture.run(token(1, 60_000, true));
    fixture.run(join_by_token(1, "a", 7));
    let mut builder = StateBuilder::new();
    for record in fixture.state.encoded_records() {
        builder.add(&record).unwrap();
    }
    let restored = builder.finish().unwrap();
    assert_eq!(restored.hash(), fixture.state.hash());
    assert_eq!(restored.plan(), fixture.state.plan());
    assert_eq!(restored.tokens().count(), 1);
}
