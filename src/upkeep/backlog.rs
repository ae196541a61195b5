//! What this node should hold and does not: a bounded queue by urgency, with back-off (pure: it is told the time).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::oci::Digest;

/// Contents queued at most; what is more urgent pushes out what is less, which the next comparison finds again.
const BACKLOG_MAX: usize = 20_000;

const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// Content that is missing here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Want {
    pub(super) digest: Digest,
    pub(super) size: u64,
    /// A manifest body: wanted first.
    pub(super) body: bool,
    /// Live copies elsewhere, as far as is known: fewest first, but none last, for there is nothing to fetch.
    pub(super) copies: u8,
    /// The log index at which it was linked.
    pub(super) index: u64,
}

/// In which order contents are fetched: the smallest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    blob: bool,
    copies: u8,
    old: bool,
    place: u64,
}

#[derive(Debug)]
struct Entry {
    want: Want,
    rank: Rank,
    state: EntryState,
    failures: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EntryState {
    Queued,
    Running,
    Waiting { until: Instant },
}

/// The queue: bodies before blobs, those with fewest copies first, news before the old, failures later and later.
#[derive(Debug)]
pub(super) struct Backlog {
    max: usize,
    entries: BTreeMap<Digest, Entry>,
    queued: BTreeMap<Rank, Digest>,
    waiting: BTreeSet<(Instant, Digest)>,
    /// Missing bodies that somebody may have.
    bodies: BTreeSet<(u64, Digest)>,
    /// Entries that could not be fetched when they were tried.
    failed: usize,
    bytes: u64,
    places: u64,
}

impl Default for Backlog {
    fn default() -> Self {
        Self::with_max(BACKLOG_MAX)
    }
}

impl Backlog {
    /// A queue of at most `max` contents.
    pub(super) fn with_max(max: usize) -> Self {
        Self {
            max,
            entries: BTreeMap::new(),
            queued: BTreeMap::new(),
            waiting: BTreeSet::new(),
            bodies: BTreeSet::new(),
            bytes: 0,
            places: 0,
            failed: 0,
        }
    }

    fn rank(&mut self, want: &Want, news: bool) -> Rank {
        self.places += 1;
        let copies = if want.copies == 0 { u8::MAX } else { want.copies };
        // The latest news first, the old in the order in which it was found.
        let place = if news { u64::MAX - self.places } else { self.places };
        Rank { blob: !want.body, copies, old: !news, place }
    }

    /// Adds content, or notes what is newly known of it. Returns what there is no room for: the content itself, or what is
    /// less urgent.
    pub(super) fn add(&mut self, want: Want, news: bool) -> Option<Want> {
        if let Some(entry) = self.entries.get(&want.digest) {
            let body = entry.want.body || want.body;
            let same = (entry.want.body, entry.want.copies) == (body, want.copies);
            if !same {
                self.amend(&Want { body, ..want }, news);
            }
            return None;
        }
        let rank = self.rank(&want, news);
        let mut dropped = None;
        if self.entries.len() >= self.max {
            match self.least(rank) {
                Some(digest) => dropped = self.settle(&digest),
                None => return Some(want),
            }
        }
        if want.body {
            self.bodies.insert((want.index, want.digest.clone()));
        }
        self.bytes += want.size;
        self.queued.insert(rank, want.digest.clone());
        self.entries.insert(want.digest.clone(), Entry { want, rank, state: EntryState::Queued, failures: 0 });
        dropped
    }

    /// What makes room for content of this rank: what failed and waits longest, else what is less urgent.
    fn least(&self, rank: Rank) -> Option<Digest> {
        let waiting = self.waiting.last().map(|(_, digest)| digest);
        let less_urgent = || self.queued.last_key_value().filter(|(last, _)| rank < **last).map(|(_, digest)| digest);
        waiting.or_else(less_urgent).cloned()
    }

    /// What was a blob may turn out to be a body too, and copies come and go.
    fn amend(&mut self, want: &Want, news: bool) {
        let rank = self.rank(want, news);
        let Some(entry) = self.entries.get_mut(&want.digest) else { return };
        self.bodies.remove(&(entry.want.index, want.digest.clone()));
        if want.body {
            self.bodies.insert((want.index, want.digest.clone()));
        }
        entry.want = Want { size: entry.want.size, ..want.clone() };
        if entry.state == EntryState::Queued {
            self.queued.remove(&entry.rank);
            self.queued.insert(rank, want.digest.clone());
        }
        entry.rank = rank;
    }

    /// Takes what is to be fetched next.
    pub(super) fn take(&mut self, now: Instant) -> Option<Want> {
        while self.waiting.first().is_some_and(|(until, _)| *until <= now) {
            let Some((_, digest)) = self.waiting.pop_first() else { break };
            if let Some(entry) = self.entries.get_mut(&digest) {
                entry.state = EntryState::Queued;
                self.queued.insert(entry.rank, digest);
            }
        }
        let (_, digest) = self.queued.pop_first()?;
        let entry = self.entries.get_mut(&digest)?;
        entry.state = EntryState::Running;
        Some(entry.want.clone())
    }

    /// Forgets content that is here now, or is wanted no more.
    pub(super) fn settle(&mut self, digest: &Digest) -> Option<Want> {
        let entry = self.entries.remove(digest)?;
        self.bodies.remove(&(entry.want.index, digest.clone()));
        self.bytes -= entry.want.size;
        self.failed -= usize::from(entry.failures > 0);
        match entry.state {
            EntryState::Queued => drop(self.queued.remove(&entry.rank)),
            EntryState::Waiting { until } => drop(self.waiting.remove(&(until, digest.clone()))),
            EntryState::Running => {}
        }
        Some(entry.want)
    }

    /// Puts content back that could not be fetched; it goes behind what has not failed. What is lost, as every member says
    /// for certain, is tried again too, but nobody waits for it.
    pub(super) fn postpone(&mut self, digest: &Digest, is_lost: bool, now: Instant) {
        self.places += 1;
        let place = self.places;
        if let Some(entry) = self.entries.get_mut(digest).filter(|entry| entry.state == EntryState::Running) {
            let backoff = BACKOFF_MIN.saturating_mul(1 << entry.failures.min(10)).min(BACKOFF_MAX);
            let until = now + backoff;
            self.failed += usize::from(entry.failures == 0);
            entry.failures += 1;
            if is_lost {
                entry.want.copies = 0;
                self.bodies.remove(&(entry.want.index, digest.clone()));
            } else if entry.want.body {
                self.bodies.insert((entry.want.index, digest.clone()));
            }
            entry.rank = Rank { old: true, place, ..entry.rank };
            entry.state = EntryState::Waiting { until };
            self.waiting.insert((until, digest.clone()));
        }
    }

    /// Lets everything that waits after a failure be tried at once: a node came back.
    pub(super) fn hasten(&mut self) {
        for (_, digest) in std::mem::take(&mut self.waiting) {
            if let Some(entry) = self.entries.get_mut(&digest) {
                entry.state = EntryState::Queued;
                self.queued.insert(entry.rank, digest);
            }
        }
    }

    /// When the next postponed content is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.waiting.first().map(|(until, _)| *until)
    }

    /// Whether a comparison finds room for most of what it finds: what failed gives way to it.
    pub(super) fn has_room(&self) -> bool {
        self.entries.len() - self.failed < self.max / 2
    }

    /// Whether there is room for all that a page of so many may lack, and some left for news.
    pub(super) fn has_room_for(&self, page: usize) -> bool {
        self.entries.len() + page <= self.max - self.max / 8
    }

    /// How many contents a page of a comparison may have: so many that it fits at all.
    pub(super) fn page(&self, page: usize) -> usize {
        page.min(self.max / 4).max(1)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// All bytes of what is missing.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn missing_bodies(&self) -> usize {
        self.bodies.len()
    }

    /// The log index at which the first of the missing bodies was linked.
    pub(super) fn first_body(&self) -> Option<u64> {
        self.bodies.first().map(|(index, _)| *index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    fn want(name: &str, body: bool) -> Want {
        Want { digest: Digest::of(Algorithm::Sha256, name.as_bytes()), size: 1, body, copies: 2, index: 7 }
    }

    fn order(backlog: &mut Backlog) -> Vec<Want> {
        let now = Instant::now();
        std::iter::from_fn(|| backlog.take(now)).collect()
    }

    #[test]
    fn bodies_go_before_blobs_and_news_before_the_old() {
        let mut backlog = Backlog::default();
        for (name, body, news) in [("old", false, false), ("new", false, true), ("body", true, false)] {
            assert_eq!(backlog.add(want(name, body), news), None);
        }
        assert_eq!(order(&mut backlog), [want("body", true), want("new", false), want("old", false)]);
    }

    #[test]
    fn what_has_fewest_copies_goes_first_and_what_has_none_last() {
        let mut backlog = Backlog::default();
        let with = |name, copies| Want { copies, ..want(name, false) };
        for (name, copies) in [("none", 0), ("three", 3), ("one", 1), ("two", 2)] {
            backlog.add(with(name, copies), false);
        }
        // Copies died since.
        backlog.add(with("three", 1), false);
        assert_eq!(order(&mut backlog), [with("one", 1), with("three", 1), with("two", 2), with("none", 0)]);
    }

    #[test]
    fn a_failure_waits_longer_each_time_and_success_settles_it() {
        let mut backlog = Backlog::default();
        let body = want("body", true);
        backlog.add(body.clone(), false);
        let mut now = Instant::now();
        for wait in [1, 2, 4] {
            assert_eq!(backlog.take(now), Some(body.clone()));
            backlog.postpone(&body.digest, false, now);
            assert_eq!(backlog.take(now), None);
            assert_eq!(backlog.next_due(), Some(now + Duration::from_secs(wait)));
            now += Duration::from_secs(wait);
        }
        assert_eq!((backlog.len(), backlog.missing_bodies(), backlog.bytes()), (1, 1, 1));
        backlog.hasten();
        assert_eq!(backlog.take(Instant::now()), Some(body.clone()));
        backlog.settle(&body.digest);
        assert_eq!((backlog.len(), backlog.missing_bodies(), backlog.bytes()), (0, 0, 0));
        assert_eq!(backlog.take(now), None);
    }

    #[test]
    fn nobody_waits_for_a_body_that_is_lost_until_somebody_may_have_it_again() {
        let mut backlog = Backlog::default();
        let (body, now) = (want("body", true), Instant::now());
        backlog.add(body.clone(), false);
        for (is_lost, first) in [(true, None), (false, Some(7))] {
            backlog.hasten();
            assert!(backlog.take(now).is_some_and(|taken| taken.digest == body.digest));
            backlog.postpone(&body.digest, is_lost, now);
            assert_eq!((backlog.len(), backlog.first_body()), (1, first));
        }
    }

    #[test]
    fn what_cannot_be_fetched_gives_way_to_what_may_be() {
        let mut backlog = Backlog::default();
        let now = Instant::now();
        for n in 0..BACKLOG_MAX {
            backlog.add(want(&n.to_string(), false), false);
        }
        assert!(!backlog.has_room());
        while let Some(taken) = backlog.take(now) {
            backlog.postpone(&taken.digest, true, now);
        }
        assert!(backlog.has_room());
        let dropped = backlog.add(want("late", false), false);
        assert!(dropped.is_some_and(|dropped| dropped.copies == 0));
        assert_eq!((backlog.len(), backlog.take(now)), (BACKLOG_MAX, Some(want("late", false))));
        for n in 0..BACKLOG_MAX {
            backlog.settle(&want(&n.to_string(), false).digest);
        }
        assert_eq!((backlog.len(), backlog.failed), (1, 0));
    }

    #[test]
    fn a_queued_blob_that_is_wanted_as_a_body_becomes_one() {
        let mut backlog = Backlog::default();
        backlog.add(want("other", false), true);
        backlog.add(want("both", false), false);
        backlog.add(want("both", true), false);
        assert_eq!((backlog.missing_bodies(), backlog.first_body()), (1, Some(7)));
        assert_eq!(order(&mut backlog), [want("both", true), want("other", false)]);
        backlog.settle(&want("both", true).digest);
        assert_eq!((backlog.len(), backlog.missing_bodies()), (1, 0));
    }

    #[test]
    fn what_is_being_fetched_is_not_queued_again() {
        let mut backlog = Backlog::default();
        let now = Instant::now();
        backlog.add(want("blob", false), false);
        assert!(backlog.take(now).is_some());
        assert_eq!(backlog.add(want("blob", false), true), None);
        assert_eq!(backlog.add(Want { copies: 1, ..want("blob", false) }, true), None);
        assert_eq!(backlog.take(now), None);
    }

    #[test]
    fn a_full_queue_keeps_what_is_most_urgent() {
        let mut backlog = Backlog::default();
        for n in 0..BACKLOG_MAX {
            assert_eq!(backlog.add(want(&n.to_string(), false), false), None);
        }
        assert_eq!(backlog.add(want("late", false), false), Some(want("late", false)));
        let last = want(&(BACKLOG_MAX - 1).to_string(), false);
        assert_eq!(backlog.add(want("body", true), false), Some(last));
        assert_eq!((backlog.len(), backlog.take(Instant::now())), (BACKLOG_MAX, Some(want("body", true))));
    }
}
