//! What the leader knows of the other nodes: when each asked for a read index, what it has applied, how its state looks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use super::boot_clock::BootTime;

/// How long a read index makes a node fresh, counted from before it asked (P5).
pub(super) const FRESH_FOR: Duration = Duration::from_secs(2);
/// The same on the leader's clock, with 10 % for its error (P6).
const FRESH_FOR_ELSEWHERE: Duration = Duration::from_millis(2200);
/// A report older than this says nothing.
const REPORT_LIFE: Duration = Duration::from_secs(2);
/// How long the best that a node said of its bodies stands beside worse.
const BODIES_LIFE: Duration = Duration::from_secs(10);

/// What a node says of itself when it asks for a read index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) applied: u64,
    pub(super) state_hash: u128,
    pub(super) bodies_complete: bool,
    /// Up to which log index every manifest body that was put lies there; 0 if that is not known.
    pub(super) bodies_to: u64,
}

/// Kept by every node, of use to the leader.
#[derive(Debug, Default)]
pub(super) struct Followers(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    reign: Option<(u64, BootTime)>,
    nodes: BTreeMap<u64, Follower>,
}

#[derive(Debug)]
struct Follower {
    asked: BootTime,
    report: Report,
    /// Whether its state's hash was the leader's at the same index; `None` if that was not known.
    agrees: Option<bool>,
    /// The best it has said of its bodies, and when: a body that is on its way just now makes it say less for a moment.
    bodies: (u64, BootTime),
}

impl Inner {
    /// A new leader knows of no confirmation that earlier ones gave: each node may just have got one.
    fn enter(&mut self, term: u64, now: BootTime) -> BootTime {
        match self.reign {
            Some((known, since)) if known == term => since,
            _ => {
                self.nodes.clear();
                self.reign = Some((term, now));
                now
            }
        }
    }
}

impl Followers {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().expect("no panic while held")
    }

    /// Notes that this node leads in `term`.
    pub(super) fn lead(&self, term: u64) {
        self.lock().enter(term, BootTime::now());
    }

    /// Notes a request before its read index is determined. Must be called at arrival: whatever freshness the answer will
    /// give counts from before that (P6).
    pub(super) fn asked(&self, term: u64, node: u64, report: Report, agrees: Option<bool>) {
        let now = BootTime::now();
        let mut inner = self.lock();
        inner.enter(term, now);
        let before = inner.nodes.get(&node).map(|follower| follower.bodies);
        let bodies = match before {
            Some((best, at)) if best > report.bodies_to && now.since(at) < BODIES_LIFE => (best, at),
            _ => (report.bodies_to, now),
        };
        inner.nodes.insert(node, Follower { asked: now, report, agrees, bodies });
    }

    /// Returns until when `node` may hold itself fresh on a confirmation given up to now.
    pub(super) fn fresh_until(&self, term: u64, node: u64) -> BootTime {
        let now = BootTime::now();
        let mut inner = self.lock();
        let since = inner.enter(term, now);
        let asked = inner.nodes.get(&node).map_or(since, |follower| follower.asked.max(since));
        asked + FRESH_FOR_ELSEWHERE
    }

    /// Returns the node's report, unless it is old.
    pub(super) fn report(&self, node: u64) -> Option<Report> {
        let now = BootTime::now();
        let inner = self.lock();
        let follower = inner.nodes.get(&node)?;
        (now.since(follower.asked) < REPORT_LIFE).then_some(follower.report)
    }

    /// Returns up to which log index the node has every body, as it said lately; nothing if it is silent.
    pub(super) fn bodies_to(&self, node: u64) -> Option<u64> {
        let now = BootTime::now();
        let inner = self.lock();
        let follower = inner.nodes.get(&node)?;
        (now.since(follower.asked) < REPORT_LIFE).then_some(follower.bodies.0)
    }

    /// Returns which of `voters` agree with the leader's state, itself included, and which do not.
    pub(super) fn verdicts(&self, me: u64, voters: &BTreeSet<u64>) -> (usize, usize) {
        let now = BootTime::now();
        let inner = self.lock();
        let count = |wanted: bool| {
            let of = |voter: &&u64| {
                let follower = inner.nodes.get(voter);
                follower.is_some_and(|it| it.agrees == Some(wanted) && now.since(it.asked) < REPORT_LIFE)
            };
            voters.iter().filter(|voter| **voter != me).filter(of).count()
        };
        (count(true) + usize::from(voters.contains(&me)), count(false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: Report = Report { applied: 1, state_hash: 2, bodies_complete: true, bodies_to: 1 };

    #[test]
    fn a_new_leader_counts_everyone_as_just_confirmed() {
        let followers = Followers::default();
        followers.lead(1);
        assert!(followers.fresh_until(1, 2) > BootTime::now());
        followers.asked(1, 2, REPORT, None);
        let before = BootTime::now();
        assert!(followers.fresh_until(2, 2) >= before + FRESH_FOR_ELSEWHERE);
        assert_eq!(followers.report(2), None);
    }

    #[test]
    fn the_best_that_a_node_said_of_its_bodies_stands_for_a_while() {
        let followers = Followers::default();
        for bodies_to in [7, 0, 5] {
            followers.asked(1, 2, Report { bodies_to, ..REPORT }, None);
        }
        assert_eq!((followers.bodies_to(2), followers.bodies_to(3)), (Some(7), None));
    }

    #[test]
    fn verdicts_count_voters_only() {
        let followers = Followers::default();
        for (node, agrees) in [(2, Some(true)), (3, Some(false)), (4, Some(false)), (5, None)] {
            followers.asked(1, node, REPORT, agrees);
        }
        assert_eq!(followers.verdicts(1, &BTreeSet::from([1, 2, 3, 5])), (2, 1));
    }
}
