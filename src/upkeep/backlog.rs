//! What this node should hold and does not: a bounded queue with back-off (pure but for tokio's clock).

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::oci::Digest;

/// Contents queued at most; a comparison waits when it is full, and begins anew when news had to be dropped.
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
}

#[derive(Debug)]
struct Entry {
    want: Want,
    state: EntryState,
    failures: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EntryState {
    Queued,
    Running,
    Waiting { until: Instant },
}

/// The queue: bodies before blobs, news before the old, failures later and later.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    entries: BTreeMap<Digest, Entry>,
    bodies: VecDeque<Digest>,
    blobs: VecDeque<Digest>,
    missing_bodies: usize,
}

impl Backlog {
    /// Adds content unless it is known; news go first, and what was a blob may turn out to be a body too. False if the
    /// queue is full.
    pub(super) fn add(&mut self, want: Want, news: bool) -> bool {
        if let Some(entry) = self.entries.get_mut(&want.digest) {
            if want.body && !entry.want.body {
                entry.want.body = true;
                self.missing_bodies += 1;
                // Its place among the blobs is passed over once it runs.
                if entry.state == EntryState::Queued {
                    self.bodies.push_front(want.digest);
                }
            }
            return true;
        }
        if self.entries.len() >= BACKLOG_MAX {
            return false;
        }
        self.missing_bodies += usize::from(want.body);
        let queue = if want.body { &mut self.bodies } else { &mut self.blobs };
        if news {
            queue.push_front(want.digest.clone());
        } else {
            queue.push_back(want.digest.clone());
        }
        self.entries.insert(want.digest.clone(), Entry { want, state: EntryState::Queued, failures: 0 });
        true
    }

    /// Takes what is to be fetched next.
    pub(super) fn take(&mut self, now: Instant) -> Option<Want> {
        let due = |entry: &Entry| matches!(entry.state, EntryState::Waiting { until } if until <= now);
        for queue in [&mut self.bodies, &mut self.blobs] {
            while let Some(digest) = queue.pop_front() {
                if let Some(entry) = self.entries.get_mut(&digest).filter(|entry| entry.state == EntryState::Queued) {
                    entry.state = EntryState::Running;
                    return Some(entry.want.clone());
                }
            }
        }
        let entry = self.entries.values_mut().find(|entry| due(entry))?;
        entry.state = EntryState::Running;
        Some(entry.want.clone())
    }

    /// Forgets content that is here now, or is wanted no more.
    pub(super) fn settle(&mut self, digest: &Digest) {
        if let Some(entry) = self.entries.remove(digest) {
            self.missing_bodies -= usize::from(entry.want.body);
        }
    }

    /// Puts content back that could not be fetched.
    pub(super) fn postpone(&mut self, digest: &Digest, now: Instant) {
        if let Some(entry) = self.entries.get_mut(digest) {
            let backoff = BACKOFF_MIN.saturating_mul(1 << entry.failures.min(10)).min(BACKOFF_MAX);
            entry.failures += 1;
            entry.state = EntryState::Waiting { until: now + backoff };
        }
    }

    /// Lets everything that waits after a failure be tried at once: a node came back.
    pub(super) fn hasten(&mut self, now: Instant) {
        for entry in self.entries.values_mut() {
            if matches!(entry.state, EntryState::Waiting { .. }) {
                entry.state = EntryState::Waiting { until: now };
            }
        }
    }

    /// When the next postponed content is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let until = |entry: &Entry| match entry.state {
            EntryState::Waiting { until } => Some(until),
            EntryState::Queued | EntryState::Running => None,
        };
        self.entries.values().filter_map(until).min()
    }

    /// Whether a comparison may add more.
    pub(super) fn has_room(&self) -> bool {
        self.entries.len() < BACKLOG_MAX / 2
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) const fn missing_bodies(&self) -> usize {
        self.missing_bodies
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    fn want(name: &str, body: bool) -> Want {
        Want { digest: Digest::of(Algorithm::Sha256, name.as_bytes()), size: 1, body }
    }

    #[test]
    fn bodies_go_before_blobs_and_news_before_the_old() {
        let mut backlog = Backlog::default();
        for (name, body, news) in [("old", false, false), ("new", false, true), ("body", true, false)] {
            assert!(backlog.add(want(name, body), news));
        }
        let now = Instant::now();
        let order: Vec<_> = std::iter::from_fn(|| backlog.take(now)).collect();
        assert_eq!(order, [want("body", true), want("new", false), want("old", false)]);
    }

    #[test]
    fn a_failure_waits_longer_each_time_and_success_settles_it() {
        let mut backlog = Backlog::default();
        let body = want("body", true);
        backlog.add(body.clone(), false);
        let mut now = Instant::now();
        for wait in [1, 2, 4] {
            assert_eq!(backlog.take(now), Some(body.clone()));
            backlog.postpone(&body.digest, now);
            assert_eq!(backlog.take(now), None);
            assert_eq!(backlog.next_due(), Some(now + Duration::from_secs(wait)));
            now += Duration::from_secs(wait);
        }
        assert_eq!((backlog.len(), backlog.missing_bodies()), (1, 1));
        backlog.settle(&body.digest);
        assert_eq!((backlog.len(), backlog.missing_bodies(), backlog.take(now)), (0, 0, None));
    }

    #[test]
    fn a_queued_blob_that_is_wanted_as_a_body_becomes_one() {
        let mut backlog = Backlog::default();
        let now = Instant::now();
        backlog.add(want("other", false), true);
        backlog.add(want("both", false), false);
        backlog.add(want("both", true), false);
        assert_eq!(backlog.missing_bodies(), 1);
        let order: Vec<_> = std::iter::from_fn(|| backlog.take(now)).collect();
        assert_eq!(order, [want("both", true), want("other", false)]);
        backlog.settle(&want("both", true).digest);
        assert_eq!((backlog.len(), backlog.missing_bodies()), (1, 0));
    }

    #[test]
    fn what_is_being_fetched_is_not_queued_again() {
        let mut backlog = Backlog::default();
        let now = Instant::now();
        backlog.add(want("blob", false), false);
        assert!(backlog.take(now).is_some());
        assert!(backlog.add(want("blob", false), true));
        assert_eq!(backlog.take(now), None);
    }
}
