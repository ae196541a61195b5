//! Who is alive, from when each peer last answered. Pure: the time is handed in.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::topology::NodeId;

use super::{Config, Liveness, Member, Members};

/// Keeps, for each peer, when it last answered and what went wrong since.
///
/// Only answers to this node's own pings count: a peer whose pings come in but who cannot be reached is of no use to this
/// node.
#[derive(Debug)]
pub(super) struct Detector {
    me: NodeId,
    config: Config,
    peers: BTreeMap<NodeId, Peer>,
    last_turn: Instant,
}

#[derive(Debug)]
struct Peer {
    known_since: Instant,
    answered: Option<Instant>,
    incarnation: Option<u64>,
    problem: Option<String>,
    /// A call to it failed since it last answered.
    avoided: bool,
    /// It said that this incarnation of it ends.
    left: Option<u64>,
}

impl Detector {
    pub(super) fn new(me: NodeId, config: Config, now: Instant) -> Self {
        Self { me, config, peers: BTreeMap::new(), last_turn: now }
    }

    /// Follows the agreed set of nodes.
    pub(super) fn set_peers(&mut self, nodes: impl IntoIterator<Item = NodeId>, now: Instant) {
        let nodes: BTreeSet<_> = nodes.into_iter().filter(|node| *node != self.me).collect();
        self.peers.retain(|node, _| nodes.contains(node));
        for node in nodes {
            self.peers.entry(node).or_insert_with(|| Peer {
                known_since: now,
                answered: None,
                incarnation: None,
                problem: None,
                avoided: false,
                left: None,
            });
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
            if let Some(answered) = &mut peer.answered {
                *answered = (*answered + slept).min(now);
            }
        }
    }

    /// Notes an answer to a ping; says whether the peer was restarted since the last.
    pub(super) fn answered(&mut self, node: NodeId, incarnation: u64, now: Instant) -> bool {
        let Some(peer) = self.peers.get_mut(&node) else { return false };
        if peer.left == Some(incarnation) {
            return false; // a last word after the goodbye
        }
        let restarted = peer.incarnation.is_some_and(|known| known != incarnation);
        *peer = Peer {
            known_since: peer.known_since,
            answered: Some(now),
            incarnation: Some(incarnation),
            problem: None,
            avoided: false,
            left: None,
        };
        restarted
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

    /// Notes that the peer ends on purpose.
    pub(super) fn left(&mut self, node: NodeId, incarnation: u64) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.left = Some(incarnation);
        }
    }

    /// Says whether the peer said goodbye and has not come back.
    pub(super) fn has_left(&self, node: NodeId) -> bool {
        self.peers.get(&node).is_some_and(|peer| peer.left.is_some())
    }

    /// Returns how long ago a peer last answered; nothing if it never did.
    pub(super) fn silence(&self, node: NodeId, now: Instant) -> Option<Duration> {
        self.peers.get(&node)?.answered.map(|answered| now.duration_since(answered))
    }

    /// Says how everyone stands.
    pub(super) fn members(&self, now: Instant) -> Members {
        let own = Member { liveness: Liveness::Live, since_heard: Some(Duration::ZERO), reason: None };
        let others = self.peers.iter().map(|(node, peer)| (*node, self.judge(peer, now)));
        std::iter::once((self.me, own)).chain(others).collect()
    }

    fn judge(&self, peer: &Peer, now: Instant) -> Member {
        let since_heard = peer.answered.map(|answered| now.duration_since(answered));
        let silence = since_heard.unwrap_or_else(|| now.duration_since(peer.known_since));
        let liveness = if peer.left.is_some() || silence >= self.config.dead_after {
            Liveness::Dead
        } else if silence >= self.config.suspect_after || peer.avoided || peer.answered.is_none() {
            Liveness::Suspect
        } else {
            Liveness::Live
        };
        let reason = (liveness != Liveness::Live).then(|| reason(peer, silence));
        Member { liveness, since_heard, reason }
    }
}

fn reason(peer: &Peer, silence: Duration) -> String {
    if peer.left.is_some() {
        return "it said that it stops".to_owned();
    }
    let seconds = silence.as_secs_f64();
    let mut text = match peer.answered {
        None => format!("no answer yet, for {seconds:.1} s"),
        Some(_) if peer.avoided && peer.problem.is_none() => "a call to it did not go through".to_owned(),
        Some(_) => format!("no answer for {seconds:.1} s"),
    };
    if let Some(problem) = &peer.problem {
        text.push_str("; last error: ");
        text.push_str(problem);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(2);
    const B: NodeId = NodeId(3);

    fn detector(now: Instant) -> Detector {
        let mut detector = Detector::new(NodeId(1), Config::default(), now);
        detector.set_peers([NodeId(1), A, B], now);
        detector
    }

    /// Lets time go by in steps as the rounds do, so that it does not look like a pause of this process.
    fn pass(detector: &mut Detector, now: &mut Instant, ms: u64) {
        let end = *now + Duration::from_millis(ms);
        while *now < end {
            *now = end.min(*now + Duration::from_millis(500));
            detector.turn(*now);
        }
    }

    fn liveness(detector: &Detector, node: NodeId, now: Instant) -> Liveness {
        detector.members(now)[&node].liveness
    }

    #[test]
    fn silence_makes_suspect_then_dead_and_an_answer_makes_live() {
        let mut now = Instant::now();
        let mut detector = detector(now);
        assert_eq!(liveness(&detector, A, now), Liveness::Suspect, "never heard");
        assert!(!detector.answered(A, 7, now));
        assert_eq!(liveness(&detector, A, now), Liveness::Live);
        pass(&mut detector, &mut now, 1499);
        assert_eq!(liveness(&detector, A, now), Liveness::Live);
        pass(&mut detector, &mut now, 1);
        assert_eq!(liveness(&detector, A, now), Liveness::Suspect);
        detector.failed(A, "connection refused".to_owned());
        pass(&mut detector, &mut now, 3499);
        assert_eq!(liveness(&detector, A, now), Liveness::Suspect);
        pass(&mut detector, &mut now, 1);
        let member = detector.members(now)[&A].clone();
        assert_eq!(member.liveness, Liveness::Dead);
        assert_eq!(member.reason.as_deref(), Some("no answer for 5.0 s; last error: connection refused"));
        assert_eq!(liveness(&detector, B, now), Liveness::Dead, "silent from the start");
        assert!(detector.answered(A, 8, now), "restarted");
        assert_eq!(detector.members(now)[&A].reason, None);
    }

    #[test]
    fn a_failed_call_makes_suspect_until_the_next_answer() {
        let now = Instant::now();
        let mut detector = detector(now);
        detector.answered(A, 7, now);
        detector.unreachable(A);
        assert_eq!(liveness(&detector, A, now), Liveness::Suspect);
        detector.answered(A, 7, now);
        assert_eq!(liveness(&detector, A, now), Liveness::Live);
    }

    #[test]
    fn a_goodbye_holds_until_another_incarnation_answers() {
        let now = Instant::now();
        let mut detector = detector(now);
        detector.answered(A, 7, now);
        detector.left(A, 7);
        assert_eq!(liveness(&detector, A, now), Liveness::Dead);
        detector.answered(A, 7, now);
        assert_eq!(liveness(&detector, A, now), Liveness::Dead, "a late answer of the one that left");
        detector.answered(A, 8, now);
        assert_eq!(liveness(&detector, A, now), Liveness::Live);
    }

    #[test]
    fn a_pause_of_this_process_is_nobodys_silence() {
        let mut now = Instant::now();
        let mut detector = detector(now);
        detector.answered(A, 7, now);
        pass(&mut detector, &mut now, 500);
        now += Duration::from_secs(60);
        detector.turn(now);
        assert_eq!(liveness(&detector, A, now), Liveness::Suspect, "not dead, and not taken for live either");
        pass(&mut detector, &mut now, 5000);
        assert_eq!(liveness(&detector, A, now), Liveness::Dead, "silence after the pause counts");
    }

    #[test]
    fn a_removed_node_is_no_member() {
        let now = Instant::now();
        let mut detector = detector(now);
        detector.set_peers([NodeId(1), B], now);
        detector.answered(A, 7, now);
        assert_eq!(detector.members(now).into_keys().collect::<Vec<_>>(), [NodeId(1), B]);
    }
}
