//! The same work on several nodes at once; a node that fails is replaced by the next candidate.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::env::BoxFuture;
use crate::topology::NodeId;
use crate::transfer::{Error, Pace, Result};

/// How long a node that failed is left alone before it may be a candidate again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A node that failed before is in reach again once it has been at it for so long: longer than silence is told from life.
const PROVEN_AFTER: Duration = Duration::from_millis(2500);

/// Work that is running on some nodes and done on others.
pub(super) struct FanOut<T> {
    start: Box<dyn Fn(NodeId, Pace) -> BoxFuture<'static, Result<T>> + Send + Sync>,
    tasks: JoinSet<(NodeId, Result<T>, Instant)>,
    running: BTreeMap<NodeId, Running>,
    /// How long a node may be at it before another is wanted beside it.
    patience: Option<Duration>,
    done: Vec<Done<T>>,
    failures: BTreeMap<NodeId, Failure>,
    /// Which nodes' copies count; those of others are made for nothing.
    counts: Box<dyn Fn(NodeId) -> bool + Send + Sync>,
}

struct Done<T> {
    node: NodeId,
    value: T,
    /// When the node last said so.
    said: Instant,
}

struct Running {
    pace: Pace,
    since: Instant,
}

struct Failure {
    reason: String,
    at: Instant,
    /// The node answered in a way that another try would not change.
    is_final: bool,
}

impl<T: Send + 'static> FanOut<T> {
    /// Prepares work that `start` begins on one node, and whose pace it reports; nothing runs yet.
    pub(super) fn new(start: impl Fn(NodeId, Pace) -> BoxFuture<'static, Result<T>> + Send + Sync + 'static) -> Self {
        Self {
            start: Box::new(start),
            tasks: JoinSet::new(),
            running: BTreeMap::new(),
            patience: None,
            done: Vec::new(),
            failures: BTreeMap::new(),
            counts: Box::new(|_| true),
        }
    }

    /// Has only some nodes count, as `counts` says whenever somebody counts.
    pub(super) fn counting(self, counts: impl Fn(NodeId) -> bool + Send + Sync + 'static) -> Self {
        Self { counts: Box::new(counts), ..self }
    }

    /// Has nodes that are at it for longer count as slow.
    pub(super) fn with_patience(self, patience: Duration) -> Self {
        Self { patience: Some(patience), ..self }
    }

    /// Begins the work on a node, unless it is at it or has done it.
    pub(super) fn begin(&mut self, node: NodeId) {
        if self.is_done(node) || self.running.contains_key(&node) {
            return;
        }
        let pace = Pace::default();
        self.running.insert(node, Running { pace: pace.clone(), since: Instant::now() });
        let work = (self.start)(node, pace);
        self.tasks.spawn(async move { (node, work.await, Instant::now()) });
    }

    /// Begins on as many candidates as are missing to `needed`: untried ones first, then those whose failure is past.
    ///
    /// A node that is slow or silent does not count, and is not stopped either: it may still be the last good one.
    pub(super) fn fill(&mut self, needed: usize, candidates: &[NodeId]) {
        let mut order: Vec<NodeId> = candidates.iter().copied().filter(|node| self.may_try(*node)).collect();
        order.sort_by_key(|node| self.failures.get(node).map(|failure| failure.at));
        for node in order {
            if self.hopeful() >= needed {
                return;
            }
            self.begin(node);
        }
    }

    fn may_try(&self, node: NodeId) -> bool {
        let idle = !self.running.contains_key(&node) && !self.is_done(node);
        let past = |failure: &Failure| !failure.is_final && failure.at.elapsed() >= RETRY_AFTER;
        idle && self.failures.get(&node).is_none_or(past)
    }

    fn is_done(&self, node: NodeId) -> bool {
        self.done.iter().any(|done| done.node == node)
    }

    /// Waits for the next node to end its work; for ever if none is at it.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when dropped.
    pub(super) async fn next(&mut self) -> (NodeId, Option<Error>) {
        let (node, result, said) = match self.tasks.join_next().await {
            Some(Ok(ended)) => ended,
            Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
            None => std::future::pending().await,
        };
        self.running.remove(&node);
        match result {
            Ok(value) => {
                self.failures.remove(&node);
                self.done.push(Done { node, value, said });
                (node, None)
            }
            Err(error) => {
                let is_final = matches!(error, Error::NoSpace { .. } | Error::Refused { .. });
                self.failures.insert(node, Failure { reason: error.to_string(), at: Instant::now(), is_final });
                (node, Some(error))
            }
        }
    }

    /// Who is at it.
    pub(super) fn running(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.running.keys().copied()
    }

    /// Counts who has done it or is at it without standing still.
    pub(super) fn hopeful(&self) -> usize {
        let in_time = |running: &Running| self.patience.is_none_or(|patience| running.since.elapsed() < patience);
        let hopeful = |(node, it): &(&NodeId, &Running)| (self.counts)(**node) && it.pace.is_fine() && in_time(it);
        self.made() + self.running.iter().filter(hopeful).count()
    }

    /// Counts who has done it or is at it and shows life; that a node which failed is tried again is no life yet.
    pub(super) fn in_reach(&self) -> usize {
        let lives = |(node, running): &(&NodeId, &Running)| {
            let proven = !self.failures.contains_key(*node) || running.since.elapsed() >= PROVEN_AFTER;
            (self.counts)(**node) && proven && !running.pace.is_silent()
        };
        self.made() + self.running.iter().filter(lives).count()
    }

    /// Who has done it and counts, with what came out.
    pub(super) fn done(&self) -> impl Iterator<Item = (NodeId, &T)> + '_ {
        self.done.iter().filter(|done| (self.counts)(done.node)).map(|done| (done.node, &done.value))
    }

    /// How many have done it and count.
    pub(super) fn made(&self) -> usize {
        self.done().count()
    }

    /// Who has done it and counts, but said so at least `age` ago.
    pub(super) fn said_before(&self, age: Duration) -> Vec<(NodeId, T)>
    where
        T: Clone,
    {
        let old = self.done.iter().filter(|done| done.said.elapsed() >= age && (self.counts)(done.node));
        old.map(|done| (done.node, done.value.clone())).collect()
    }

    /// Takes note of what a node that had done it said when it was asked again at `asked`: one that did not confirm it
    /// counts no more, and may be tried again.
    pub(super) fn said_again(&mut self, node: NodeId, still: bool, asked: Instant) {
        if still {
            self.done.iter_mut().filter(|done| done.node == node).for_each(|done| done.said = asked);
            return;
        }
        self.done.retain(|done| done.node != node);
        let reason = format!("node {node} did not confirm what it had stored");
        self.failures.insert(node, Failure { reason, at: Instant::now(), is_final: false });
    }

    /// Counts nodes out again that had done it, but wrongly.
    pub(super) fn discard(&mut self, wrong: impl Fn(NodeId, &T) -> bool) -> Vec<NodeId> {
        let (bad, good): (Vec<_>, Vec<_>) = self.done.drain(..).partition(|done| wrong(done.node, &done.value));
        self.done = good;
        let bad: Vec<NodeId> = bad.into_iter().map(|done| done.node).collect();
        for node in &bad {
            let failure = Failure { reason: "stored other bytes".to_owned(), at: Instant::now(), is_final: true };
            self.failures.insert(*node, failure);
        }
        bad
    }

    /// Who failed last time.
    pub(super) fn failed(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.failures.keys().copied()
    }

    /// What went wrong, for a human.
    pub(super) fn reason(&self) -> String {
        let reasons: Vec<&str> = self.failures.values().map(|failure| failure.reason.as_str()).collect();
        if reasons.is_empty() { "no other node is in reach".to_owned() } else { reasons.join("; ") }
    }

    /// Lets those that are still at it end their work.
    pub(super) async fn finish(mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes all failures, and all that runs, so much older.
    fn age<T>(fan_out: &mut FanOut<T>, by: Duration) {
        for failure in fan_out.failures.values_mut() {
            failure.at -= by;
        }
        for running in fan_out.running.values_mut() {
            running.since -= by;
        }
    }

    fn node(id: u64) -> NodeId {
        NodeId(id)
    }

    #[tokio::test]
    async fn a_failed_node_is_replaced_and_may_be_tried_again_later() {
        let mut fan_out = FanOut::new(|id, _| {
            Box::pin(async move { if id == node(3) { Ok(()) } else { Err(Error::Stalled { node: id }) } })
        });
        let candidates = [node(1), node(2)];
        fan_out.fill(1, &candidates);
        assert_eq!(fan_out.next().await.0, node(1));
        fan_out.fill(1, &candidates);
        assert_eq!(fan_out.next().await.0, node(2));
        fan_out.fill(1, &candidates);
        assert!(fan_out.running().next().is_none(), "both failed a moment ago");
        age(&mut fan_out, RETRY_AFTER);
        fan_out.fill(1, &candidates);
        assert_eq!(fan_out.running().count(), 1);
        fan_out.begin(node(3));
        while fan_out.made() == 0 {
            fan_out.next().await;
        }
        fan_out.fill(1, &candidates);
        assert!(!fan_out.running().any(|id| id == node(2)), "one is enough and done");
    }

    #[tokio::test]
    async fn a_node_that_is_at_it_for_too_long_gets_another_beside_it() {
        let mut fan_out: FanOut<()> =
            FanOut::new(|_, _| Box::pin(std::future::pending())).with_patience(Duration::from_secs(2));
        let candidates = [node(1), node(2)];
        fan_out.fill(1, &candidates);
        age(&mut fan_out, Duration::from_secs(1));
        fan_out.fill(1, &candidates);
        assert_eq!(fan_out.running().count(), 1);
        age(&mut fan_out, Duration::from_secs(1));
        fan_out.fill(1, &candidates);
        assert_eq!((fan_out.running().count(), fan_out.in_reach()), (2, 2), "the slow one may yet do");
    }

    #[tokio::test]
    async fn another_try_at_a_failed_node_is_not_reach_until_it_lasts() {
        let tries = std::sync::atomic::AtomicU32::new(0);
        let mut fan_out: FanOut<()> = FanOut::new(move |id, _| {
            let first = tries.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0;
            Box::pin(async move { if first { Err(Error::Stalled { node: id }) } else { std::future::pending().await } })
        });
        fan_out.begin(node(1));
        assert_eq!(fan_out.in_reach(), 1);
        fan_out.next().await;
        age(&mut fan_out, RETRY_AFTER);
        fan_out.fill(1, &[node(1)]);
        assert_eq!((fan_out.running().count(), fan_out.in_reach()), (1, 0));
        age(&mut fan_out, PROVEN_AFTER);
        assert_eq!(fan_out.in_reach(), 1);
    }

    #[tokio::test]
    async fn only_nodes_that_count_make_it_enough() {
        let mut fan_out: FanOut<()> =
            FanOut::new(|_, _| Box::pin(async move { Ok(()) })).counting(|id| id != NodeId(1));
        fan_out.begin(node(1));
        assert_eq!((fan_out.hopeful(), fan_out.in_reach()), (0, 0));
        fan_out.next().await;
        assert_eq!((fan_out.made(), fan_out.hopeful(), fan_out.in_reach()), (0, 0, 0));
        fan_out.fill(1, &[node(1), node(2)]);
        fan_out.next().await;
        assert_eq!(fan_out.done().map(|(id, ())| id).collect::<Vec<_>>(), [node(2)]);
    }

    #[tokio::test]
    async fn a_node_that_takes_its_word_back_counts_no_more_and_is_tried_again() {
        let mut fan_out: FanOut<()> = FanOut::new(|_, _| Box::pin(async move { Ok(()) }));
        fan_out.begin(node(1));
        fan_out.begin(node(2));
        fan_out.next().await;
        fan_out.next().await;
        assert!(fan_out.said_before(Duration::from_secs(60)).is_empty());
        fan_out.done.iter_mut().for_each(|done| done.said -= Duration::from_secs(60));
        assert_eq!(fan_out.said_before(Duration::from_secs(60)).len(), 2);
        let now = Instant::now();
        fan_out.said_again(node(1), true, now);
        fan_out.said_again(node(2), false, now);
        assert!(fan_out.said_before(Duration::from_secs(60)).is_empty());
        assert_eq!(fan_out.done().map(|(id, ())| id).collect::<Vec<_>>(), [node(1)]);
        age(&mut fan_out, RETRY_AFTER);
        fan_out.fill(2, &[node(1), node(2)]);
        fan_out.next().await;
        assert_eq!(fan_out.made(), 2);
    }

    #[tokio::test]
    async fn a_full_node_is_not_tried_again() {
        let mut fan_out: FanOut<()> = FanOut::new(|id, _| Box::pin(async move { Err(Error::NoSpace { node: id }) }));
        fan_out.fill(1, &[node(1)]);
        fan_out.next().await;
        age(&mut fan_out, RETRY_AFTER * 10);
        fan_out.fill(1, &[node(1)]);
        assert!(fan_out.running().next().is_none());
        assert!(fan_out.reason().contains("takes no writes"));
    }
}
