//! Who is alive, from when each peer last answered, and what others say of those that do not. Pure: the time is handed in.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::topology::NodeId;

use super::{Config, Liveness, Member, Members};

/// Silent nodes about which others are asked in one round.
const SUSPECTS_MAX: usize = 3;
/// Others that are asked about one silent node at once.
const HELPERS_MAX: usize = 3;

/// Keeps, for each peer, when it last answered, what went wrong since, and whom else it answers.
///
/// Only answers to this node's own pings make a peer live: one whose pings come in but who cannot be reached is of no use
/// to this node. But it is not dead while others reach it.
#[derive(Debug)]
pub(super) struct Detector {
    me: NodeId,
    config: Config,
    peers: BTreeMap<NodeId, Peer>,
    last_turn: Instant,
    /// Whose turn it is to help.
    next_helper: usize,
}

#[derive(Debug)]
struct Peer {
    known_since: Instant,
    answered: Option<Instant>,
    problem: Option<String>,
    /// A call to it failed since it last answered.
    avoided: bool,
    /// It said that this incarnation of it ends.
    left: Option<u64>,
    /// When it last called this node.
    called: Option<Instant>,
    /// When others were last asked about it.
    probed: Option<Instant>,
    /// What others found since it last answered.
    found: BTreeMap<NodeId, Finding>,
}

#[derive(Debug)]
struct Finding {
    at: Instant,
    /// Why the other one could not reach it, if so.
    problem: Option<String>,
}

/// A silent node, and who is to be asked about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Probe {
    pub(super) suspect: NodeId,
    pub(super) helpers: Vec<NodeId>,
}

impl Peer {
    fn new(now: Instant) -> Self {
        Self {
            known_since: now,
            answered: None,
            problem: None,
            avoided: false,
            left: None,
            called: None,
            probed: None,
            found: BTreeMap::new(),
        }
    }

    fn silence(&self, now: Instant) -> Duration {
        now.duration_since(self.answered.unwrap_or(self.known_since))
    }

    fn reached_by(&self, now: Instant, within: Duration) -> impl Iterator<Item = (NodeId, Duration)> {
        self.found.iter().filter_map(move |(node, finding)| {
            let ago = now.duration_since(finding.at);
            (finding.problem.is_none() && ago < within).then_some((*node, ago))
        })
    }

    fn missed_by(&self, now: Instant, within: Duration) -> impl Iterator<Item = (NodeId, &str)> {
        let fresh = self.found.iter().filter(move |(_, finding)| now.duration_since(finding.at) < within);
        fresh.filter_map(|(node, finding)| Some((*node, finding.problem.as_deref()?)))
    }

    fn called_ago(&self, now: Instant) -> Option<Duration> {
        self.called.map(|called| now.duration_since(called))
    }
}

impl Detector {
    pub(super) fn new(me: NodeId, config: Config, now: Instant) -> Self {
        Self { me, config, peers: BTreeMap::new(), last_turn: now, next_helper: 0 }
    }

    /// Follows the agreed set of nodes.
    pub(super) fn set_nodes(&mut self, nodes: &BTreeSet<NodeId>, now: Instant) {
        self.peers.retain(|node, _| nodes.contains(node));
        for node in nodes.iter().filter(|node| **node != self.me) {
            self.peers.entry(*node).or_insert_with(|| Peer::new(now));
        }
        for peer in self.peers.values_mut() {
            peer.found.retain(|node, _| nodes.contains(node));
        }
    }

    pub(super) fn peers(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.peers.keys().copied()
    }

    /// Notes that the process runs: time in which it did not (paused, starved) is nobody else's silence.
    pub(super) fn turn(&mut self, now: Instant) {
        let slept = now.duration_since(self.last_turn).saturating_sub(self.config.interval * 2);
        self.last_turn = now;
        if slept.is_zero() {
            return;
        }
        for peer in self.peers.values_mut() {
            peer.known_since += slept;
            let times = peer.answered.iter_mut().chain(&mut peer.called);
            for at in times.chain(peer.found.values_mut().map(|finding| &mut finding.at)) {
                *at = (*at + slept).min(now);
            }
        }
    }

    /// Notes an answer to a ping.
    pub(super) fn answered(&mut self, node: NodeId, incarnation: u64, now: Instant) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if peer.left == Some(incarnation) {
            return; // a last word after the goodbye
        }
        *peer = Peer { known_since: peer.known_since, answered: Some(now), called: peer.called, ..Peer::new(now) };
    }

    /// Notes that a ping did not come back.
    pub(super) fn failed(&mut self, node: NodeId, problem: String) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.problem = Some(problem);
        }
    }

    /// Notes that some other call did not go through.
    pub(super) fn unreachable(&mut self, node: NodeId) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.avoided = true;
        }
    }

    /// Notes that the peer called this node.
    pub(super) fn called(&mut self, node: NodeId, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.called = Some(now);
        }
    }

    /// Notes that the peer ends on purpose.
    pub(super) fn left(&mut self, node: NodeId, incarnation: u64) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.left = Some(incarnation);
        }
    }

    /// Notes what `helper` found when it was asked to call a silent node: why it could not reach it, or nothing.
    pub(super) fn found(&mut self, suspect: NodeId, helper: NodeId, problem: Option<String>, now: Instant) {
        let known = self.peers.contains_key(&helper);
        if let Some(peer) = self.peers.get_mut(&suspect).filter(|_| known) {
            peer.found.insert(helper, Finding { at: now, problem });
        }
    }

    /// Says about whom which others are to be asked now: about the silent ones, those not asked about for longest first,
    /// before any of them is a suspect, and then again and again, ever more seldom. Each peer that answers helps in turn.
    pub(super) fn probes(&mut self, now: Instant) -> Vec<Probe> {
        let able =
            |peer: &Peer| peer.answered.is_some() && peer.silence(now) < self.config.probe_after && !peer.avoided;
        let helpers: Vec<NodeId> = self.peers.iter().filter(|(_, peer)| able(peer)).map(|(node, _)| *node).collect();
        if helpers.is_empty() {
            return Vec::new();
        }
        let config = &self.config;
        let is_due = |peer: &Peer| {
            let silence = peer.silence(now);
            let every = if silence < config.dead_after { config.probe_after } else { config.dead_after / 2 };
            let waited = peer.probed.is_none_or(|probed| now.duration_since(probed) >= every);
            peer.left.is_none() && silence >= config.probe_after && waited
        };
        let mut due: Vec<(&NodeId, &mut Peer)> = self.peers.iter_mut().filter(|(_, peer)| is_due(peer)).collect();
        due.sort_by_key(|(_, peer)| peer.probed);
        let mut probes = Vec::new();
        for (suspect, peer) in due.into_iter().take(SUSPECTS_MAX) {
            peer.probed = Some(now);
            let turn = helpers.iter().cycle().skip(self.next_helper % helpers.len());
            let helpers: Vec<NodeId> = turn.copied().take(HELPERS_MAX.min(helpers.len())).collect();
            self.next_helper = self.next_helper.wrapping_add(helpers.len());
            probes.push(Probe { suspect: *suspect, helpers });
        }
        probes
    }

    /// Says how everyone stands.
    pub(super) fn members(&self, now: Instant) -> Members {
        let own = Member { since_heard: Some(Duration::ZERO), ..Member::live() };
        let others = self.peers.iter().map(|(node, peer)| (*node, self.judge(peer, now)));
        std::iter::once((self.me, own)).chain(others).collect()
    }

    fn judge(&self, peer: &Peer, now: Instant) -> Member {
        let silence = peer.silence(now);
        let dead_after = self.config.dead_after;
        let reached_by: Vec<NodeId> = peer.reached_by(now, dead_after).map(|(node, _)| node).collect();
        // One that calls and whom nobody can call is of no use to anybody.
        let liveness = if peer.left.is_some() || (silence >= dead_after && reached_by.is_empty()) {
            Liveness::Dead
        } else if silence >= self.config.suspect_after || peer.avoided || peer.answered.is_none() {
            Liveness::Suspect
        } else {
            Liveness::Live
        };
        let since_heard = peer.answered.map(|answered| now.duration_since(answered));
        if liveness == Liveness::Live {
            return Member { since_heard, ..Member::live() };
        }
        let missed_by = peer.missed_by(now, dead_after * 4).map(|(node, _)| node).collect();
        Member { liveness, since_heard, reason: Some(self.reason(peer, now)), reached_by, missed_by }
    }

    fn reason(&self, peer: &Peer, now: Instant) -> String {
        if peer.left.is_some() {
            return "it said that it stops".to_owned();
        }
        let dead_after = self.config.dead_after;
        let seconds = peer.silence(now).as_secs_f64();
        let mut text = match peer.answered {
            None => format!("no answer yet, for {seconds:.1} s"),
            Some(_) if peer.avoided && peer.problem.is_none() => "a call to it did not go through".to_owned(),
            Some(_) => format!("no answer for {seconds:.1} s"),
        };
        let mut add = |more: String| {
            text.push_str("; ");
            text.push_str(&more);
        };
        if let Some(ago) = peer.called_ago(now).filter(|ago| *ago < dead_after) {
            add(format!("its own calls arrive, the last {:.1} s ago", ago.as_secs_f64()));
        }
        if let Some((node, ago)) = peer.reached_by(now, dead_after).min_by_key(|(_, ago)| *ago) {
            add(format!("reached by node {node} {:.1} s ago", ago.as_secs_f64()));
        }
        for (node, problem) in peer.missed_by(now, dead_after * 4) {
            add(format!("node {node} cannot reach it either: {problem}"));
        }
        if let Some(problem) = &peer.problem {
            add(format!("last error: {problem}"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: NodeId = NodeId(1);
    const A: NodeId = NodeId(2);
    const B: NodeId = NodeId(3);
    const C: NodeId = NodeId(4);

    /// A detector at work, and the time as it sees it.
    struct Lab {
        detector: Detector,
        now: Instant,
    }

    impl Lab {
        fn new() -> Self {
            let now = Instant::now();
            let mut detector = Detector::new(ME, Config::default(), now);
            detector.set_nodes(&[ME, A, B, C].into(), now);
            Self { detector, now }
        }

        /// Lets time go by in steps as the rounds do, so that it does not look like a pause of this process.
        fn pass(&mut self, ms: u64, answering: &[NodeId]) {
            let end = self.now + Duration::from_millis(ms);
            while self.now < end {
                self.now = end.min(self.now + Duration::from_millis(500));
                self.detector.turn(self.now);
                for node in answering {
                    self.answered(*node, 7);
                }
            }
        }

        fn answered(&mut self, node: NodeId, incarnation: u64) {
            self.detector.answered(node, incarnation, self.now);
        }

        fn found(&mut self, suspect: NodeId, helper: NodeId, problem: Option<&str>) {
            self.detector.found(suspect, helper, problem.map(str::to_owned), self.now);
        }

        fn member(&self, node: NodeId) -> Member {
            self.detector.members(self.now)[&node].clone()
        }

        fn liveness(&self, node: NodeId) -> Liveness {
            self.member(node).liveness
        }
    }

    #[test]
    fn silence_makes_suspect_then_dead_and_an_answer_makes_live() {
        let mut lab = Lab::new();
        assert_eq!(lab.liveness(A), Liveness::Suspect, "never heard");
        lab.answered(A, 7);
        assert_eq!(lab.liveness(A), Liveness::Live);
        lab.pass(1499, &[]);
        assert_eq!(lab.liveness(A), Liveness::Live);
        lab.pass(1, &[]);
        assert_eq!(lab.liveness(A), Liveness::Suspect);
        lab.detector.failed(A, "connection refused".to_owned());
        lab.pass(3499, &[]);
        assert_eq!(lab.liveness(A), Liveness::Suspect);
        lab.pass(1, &[]);
        let member = lab.member(A);
        assert_eq!(member.liveness, Liveness::Dead);
        assert_eq!(member.reason.as_deref(), Some("no answer for 5.0 s; last error: connection refused"));
        assert_eq!(lab.liveness(B), Liveness::Dead, "silent from the start");
        lab.answered(A, 8);
        assert_eq!(lab.member(A).reason, None);
    }

    #[test]
    fn a_failed_call_makes_suspect_until_the_next_answer() {
        let mut lab = Lab::new();
        lab.answered(A, 7);
        lab.detector.unreachable(A);
        assert_eq!(lab.liveness(A), Liveness::Suspect);
        lab.answered(A, 7);
        assert_eq!(lab.liveness(A), Liveness::Live);
    }

    #[test]
    fn a_goodbye_holds_until_another_incarnation_answers() {
        let mut lab = Lab::new();
        lab.answered(A, 7);
        lab.detector.left(A, 7);
        assert_eq!(lab.liveness(A), Liveness::Dead);
        lab.answered(A, 7);
        assert_eq!(lab.liveness(A), Liveness::Dead, "a late answer of the one that left");
        lab.answered(A, 8);
        assert_eq!(lab.liveness(A), Liveness::Live);
    }

    #[test]
    fn a_pause_of_this_process_is_nobodys_silence() {
        let mut lab = Lab::new();
        lab.answered(A, 7);
        lab.pass(500, &[]);
        lab.now += Duration::from_secs(60);
        lab.detector.turn(lab.now);
        assert_eq!(lab.liveness(A), Liveness::Suspect, "not dead, and not taken for live either");
        lab.pass(5000, &[]);
        assert_eq!(lab.liveness(A), Liveness::Dead, "silence after the pause counts");
    }

    #[test]
    fn a_removed_node_is_no_member() {
        let mut lab = Lab::new();
        lab.detector.set_nodes(&[ME, B].into(), lab.now);
        lab.answered(A, 7);
        lab.found(B, A, None);
        assert_eq!(lab.detector.members(lab.now).into_keys().collect::<Vec<_>>(), [ME, B]);
        assert_eq!(lab.member(B).reached_by, []);
    }

    #[test]
    fn others_are_asked_about_a_silent_node_before_it_is_a_suspect() {
        let mut lab = Lab::new();
        [A, B, C].into_iter().for_each(|node| lab.answered(node, 7));
        lab.pass(500, &[B, C]);
        assert_eq!(lab.detector.probes(lab.now), [], "one beat late");
        lab.pass(500, &[B, C]);
        assert_eq!(lab.liveness(A), Liveness::Live);
        assert_eq!(lab.detector.probes(lab.now), [Probe { suspect: A, helpers: vec![B, C] }]);
        assert_eq!(lab.detector.probes(lab.now), [], "asked a moment ago");
        lab.pass(1000, &[B, C]);
        assert_eq!(lab.detector.probes(lab.now).len(), 1);
    }

    #[test]
    fn probes_are_few_and_every_silent_node_has_its_turn() {
        let now = Instant::now();
        let mut detector = Detector::new(ME, Config::default(), now);
        detector.set_nodes(&(1..=20).map(NodeId).collect(), now);
        let now = now + Duration::from_secs(1);
        let helpers: BTreeSet<NodeId> = (11..=20).map(NodeId).collect();
        helpers.iter().for_each(|node| detector.answered(*node, 7, now));
        let rounds: Vec<Vec<Probe>> = (0..3).map(|_| detector.probes(now)).collect();
        assert!(rounds.iter().flatten().all(|probe| probe.helpers.len() == HELPERS_MAX));
        assert!(rounds.iter().all(|probes| probes.len() == SUSPECTS_MAX));
        let asked: BTreeSet<NodeId> = rounds.iter().flatten().map(|probe| probe.suspect).collect();
        assert_eq!(asked.len(), 9, "nobody twice");
        let helped: BTreeSet<NodeId> = rounds.into_iter().flatten().flat_map(|probe| probe.helpers).collect();
        assert_eq!(helped, helpers, "all of them helped");
    }

    #[test]
    fn who_is_reached_by_another_is_suspect_and_not_dead() {
        let mut lab = Lab::new();
        [A, B, C].into_iter().for_each(|node| lab.answered(node, 7));
        lab.pass(5000, &[B, C]);
        lab.found(A, B, None);
        lab.found(A, C, Some("connection refused"));
        lab.detector.failed(A, "not within 1 s".to_owned());
        lab.pass(300, &[]);
        let member = lab.member(A);
        assert_eq!((member.liveness, &*member.reached_by, &*member.missed_by), (Liveness::Suspect, &[B][..], &[C][..]));
        let reason = "no answer for 5.3 s; reached by node 3 0.3 s ago; \
                      node 4 cannot reach it either: connection refused; last error: not within 1 s";
        assert_eq!(member.reason.as_deref(), Some(reason));
        lab.pass(5000, &[]);
        assert_eq!(lab.liveness(A), Liveness::Dead, "an old word does not count");
    }

    #[test]
    fn who_calls_and_cannot_be_called_by_anybody_is_dead_and_the_reason_says_so() {
        let mut lab = Lab::new();
        lab.answered(A, 7);
        lab.pass(6000, &[]);
        lab.detector.called(A, lab.now);
        let member = lab.member(A);
        assert_eq!(member.liveness, Liveness::Dead);
        let reason = "no answer for 6.0 s; its own calls arrive, the last 0.0 s ago";
        assert_eq!(member.reason.as_deref(), Some(reason));
    }

    #[test]
    fn a_goodbye_is_not_undone_by_the_word_of_others() {
        let mut lab = Lab::new();
        lab.answered(A, 7);
        lab.detector.left(A, 7);
        lab.found(A, B, None);
        lab.detector.called(A, lab.now);
        assert_eq!(lab.liveness(A), Liveness::Dead);
    }
}
