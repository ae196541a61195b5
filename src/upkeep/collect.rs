//! Collection: links that nothing names leave the agreed state (P23); their files follow by `reap.rs`.
//!
//! The leader does it on a schedule, any node when an operator asks. A pass goes through all links in pages on whatever
//! state is applied then, and proposes what may go in bounded entries; `apply` judges each link again at the entry's place,
//! so a pass may be late, run twice at once or stop half-way, and never takes what was pushed, mounted, named or asked for
//! meanwhile. Nobody waits for such an entry as for a delete (P6): no client was ever told that the link is gone, and a
//! client that is told it is there has half a lease left at least.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::meta::command::{Command, LogTime, Rejection, Response};
use crate::meta::{Fate, ProposeError, State, Unnamed};
use crate::oci::{Digest, RepositoryName};

use super::Upkeep;

/// Links looked at in one go.
const PAGE: usize = 2000;
/// Links named by one entry of the log.
const BATCH: usize = 256;
/// Pause between two entries, so that clients' writes go between them.
const PAUSE: Duration = Duration::from_millis(5);
/// How often it is looked whether a pass is due.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long an entry may take.
const PROPOSE_MAX: Duration = Duration::from_secs(5);

/// One pass of collection, under way or the last one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collection {
    /// How many passes this process has begun, this one included; 0 before the first.
    pub pass: u64,
    /// Whether it is under way.
    pub running: bool,
    /// Links looked at.
    pub links: u64,
    /// Blob links that went.
    pub blobs: u64,
    /// Manifests that went.
    pub manifests: u64,
    /// Bytes of content that nothing links any more because of it; the files follow after their grace.
    pub bytes: u64,
    /// When it ended.
    pub ended: Option<Instant>,
    /// Why it stopped before its end.
    pub failed: Option<String>,
}

/// What a pass would do now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Links looked at.
    pub links: u64,
    /// Blob links that would go.
    pub blobs: u64,
    /// Manifests that would go.
    pub manifests: u64,
    /// Bytes of content that nothing would link any more.
    pub bytes: u64,
    /// Links that nothing names and that are spared for now.
    pub spared: u64,
    /// When the first of those may go, and the last, in log time.
    pub spared_until: Option<(LogTime, LogTime)>,
    /// The first links that would go, or are spared for now.
    pub listed: Vec<Unnamed>,
    /// The log time at which this was so.
    pub now: LogTime,
    /// Whether it is so by the word of a quorum.
    pub fresh: bool,
}

/// What keeps one link, or that nothing does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// Where.
    pub repository: RepositoryName,
    /// Whether it is about a manifest, else a blob.
    pub manifest: bool,
    /// What becomes of it.
    pub fate: Fate,
}

/// Says why a pass stopped.
#[derive(Debug, thiserror::Error)]
enum Stopped {
    #[error("no quorum: {0}")]
    Propose(#[from] ProposeError),
    #[error("not every node knows how to collect yet: the agreed feature level is {agreed}")]
    FeatureLevel { agreed: u32 },
    #[error("the counts of links were found wrong: nothing is collected until they are right")]
    Audit,
}

/// Since when this node leads, or when it last began a pass as the leader.
#[derive(Debug, Default)]
struct Schedule(Option<(u64, Instant)>);

impl Schedule {
    /// Whether a pass is due; timers begin anew with each leader.
    fn is_due(&mut self, leads_in: Option<u64>, every: Duration, now: Instant) -> bool {
        let Some(term) = leads_in else {
            self.0 = None;
            return false;
        };
        match self.0.filter(|(since, _)| *since == term) {
            Some((_, at)) if now.saturating_duration_since(at) >= every => {
                self.0 = Some((term, now));
                true
            }
            Some(_) => false,
            None => {
                self.0 = Some((term, now));
                false
            }
        }
    }
}

impl Upkeep {
    /// Collects on schedule while this node leads, and whenever [`Self::collect_now`] asks. Never ends.
    pub async fn collect(self) {
        let mut schedule = Schedule::default();
        loop {
            let asked = timeout(LOOK_EVERY, self.0.asked.notified()).await.is_ok();
            let status = self.0.parts.meta.status();
            let leads_in = (status.leader == Some(status.me)).then_some(status.term);
            let every = self.0.config.collect_every;
            if asked || every.is_some_and(|every| schedule.is_due(leads_in, every, Instant::now())) {
                self.collect_once().await;
            }
        }
    }

    /// Begins a pass on this node and waits until it has ended, at most `limit`; returns it as it stands then.
    pub async fn collect_now(&self, limit: Duration) -> Collection {
        let mut passes = self.0.collection.subscribe();
        let wanted = passes.borrow_and_update().pass + 1;
        self.0.asked.notify_one();
        let ended = passes.wait_for(|collection| collection.pass >= wanted && !collection.running);
        // Not yet at its end: what it has done so far is shown.
        drop(timeout(limit, ended).await);
        self.collection()
    }

    /// Returns the pass under way here, or the last one.
    #[must_use]
    pub fn collection(&self) -> Collection {
        self.0.collection.borrow().clone()
    }

    async fn collect_once(&self) {
        let began = Instant::now();
        self.0.collection.send_modify(|collection| {
            *collection = Collection { pass: collection.pass + 1, running: true, ..Collection::default() };
        });
        let outcome = self.pass().await;
        self.0.collection.send_modify(|collection| {
            collection.running = false;
            collection.ended = Some(Instant::now());
            collection.failed = outcome.as_ref().err().map(ToString::to_string);
        });
        let collection = self.collection();
        self.0.gc_metrics.collected(&collection, began.elapsed());
        match outcome {
            Ok(()) => tracing::info!(
                links = collection.links,
                blobs = collection.blobs,
                manifests = collection.manifests,
                size_bytes = collection.bytes,
                duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
                "collected links that nothing names"
            ),
            Err(error) => tracing::warn!(%error, "collection stopped before its end"),
        }
    }

    async fn pass(&self) -> Result<(), Stopped> {
        let (meta, rules) = (&self.0.parts.meta, &self.0.config.rules);
        let mut place = None;
        loop {
            if self.0.audit.borrow().is_wrong() {
                return Err(Stopped::Audit);
            }
            let page = meta.local().unnamed_links(place.as_ref(), PAGE, (rules, meta.log_time()));
            self.0.collection.send_modify(|collection| collection.links += page.seen as u64);
            let going: Vec<Unnamed> = page.unnamed.into_iter().filter(|link| link.until.is_none()).collect();
            for command in going.chunk_by(|a, b| a.repository == b.repository).flat_map(|links| links.chunks(BATCH)) {
                self.take(command).await?;
                sleep(PAUSE).await;
            }
            place = page.next;
            if place.is_none() {
                return Ok(());
            }
            tokio::task::yield_now().await;
        }
    }

    /// Proposes that these links of one repository go.
    async fn take(&self, links: &[Unnamed]) -> Result<(), Stopped> {
        let Some(first) = links.first() else { return Ok(()) };
        let digests = |manifest: bool| {
            links.iter().filter(|link| link.manifest == manifest).map(|link| link.digest.clone()).collect()
        };
        let command = Command::Collect {
            repository: first.repository.clone(),
            blobs: digests(false),
            manifests: digests(true),
            rules: self.0.config.rules,
        };
        match self.0.parts.meta.propose(command, PROPOSE_MAX).await?.response {
            Response::Collected { blobs, manifests, bytes } => {
                tracing::debug!(repository = %first.repository, blobs, manifests, size_bytes = bytes, "links collected");
                self.0.collection.send_modify(|collection| {
                    collection.blobs += u64::from(blobs);
                    collection.manifests += u64::from(manifests);
                    collection.bytes += bytes;
                });
            }
            Response::Rejected(Rejection::FeatureLevel { agreed }) => return Err(Stopped::FeatureLevel { agreed }),
            // Gone, or busy: the next pass sees what is left.
            other => tracing::debug!(repository = %first.repository, ?other, "links not collected"),
        }
        Ok(())
    }

    /// Says what a pass would do now, and lists the first `list_max` links of that; read-only, in pages.
    pub async fn plan_collection(&self, list_max: usize) -> Plan {
        let (meta, rules) = (&self.0.parts.meta, &self.0.config.rules);
        let view = meta.confirm().await;
        let (state, now) = (view.state, meta.log_time());
        let mut plan = Plan { now, fresh: view.fresh, ..Plan::default() };
        let mut shared: BTreeMap<Digest, u32> = BTreeMap::new();
        let mut place = None;
        loop {
            let page = state.unnamed_links(place.as_ref(), PAGE, (rules, now));
            plan.links += page.seen as u64;
            for link in page.unnamed {
                plan.add(&state, &link, &mut shared);
                if plan.listed.len() < list_max {
                    plan.listed.push(link);
                }
            }
            place = page.next;
            if place.is_none() {
                return plan;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Says what keeps a digest, in one repository or wherever it is linked; at most `max` answers.
    pub async fn explain(&self, repository: Option<&RepositoryName>, digest: &Digest, max: usize) -> Vec<Explanation> {
        let (meta, rules) = (&self.0.parts.meta, &self.0.config.rules);
        let (state, now) = (meta.confirm().await.state, meta.log_time());
        let mut found = Vec::new();
        let mut look = |name: &RepositoryName| {
            for (manifest, fate) in [
                (false, state.blob_fate(name, digest, rules, now)),
                (true, state.manifest_fate(name, digest, rules, now)),
            ] {
                if fate != Fate::Absent && found.len() < max {
                    found.push(Explanation { repository: name.clone(), manifest, fate });
                }
            }
            found.len() < max
        };
        if let Some(repository) = repository {
            look(repository);
            return found;
        }
        let mut after: Option<RepositoryName> = None;
        loop {
            let page = state.repositories(after.as_ref().map(RepositoryName::as_str), PAGE);
            if page.is_empty() || !page.iter().all(&mut look) {
                return found;
            }
            after = page.last().cloned();
            tokio::task::yield_now().await;
        }
    }
}

impl Plan {
    /// Adds a link; `shared` counts the links that go of content with more than one.
    fn add(&mut self, state: &State, link: &Unnamed, shared: &mut BTreeMap<Digest, u32>) {
        if let Some(until) = link.until {
            self.spared += 1;
            let (first, last) = self.spared_until.unwrap_or((until, until));
            self.spared_until = Some((first.min(until), last.max(until)));
            return;
        }
        self.blobs += u64::from(!link.manifest);
        self.manifests += u64::from(link.manifest);
        let links = state.content(&link.digest).map_or(1, |content| content.links);
        let going = match links {
            1 => 1,
            _ => {
                let going = shared.entry(link.digest.clone()).or_default();
                *going += 1;
                *going
            }
        };
        if going == links {
            self.bytes += link.size;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_collects_every_period_and_a_new_one_begins_anew() {
        let start = Instant::now();
        let mut schedule = Schedule::default();
        let mut is_due = |leads_in, seconds| {
            schedule.is_due(leads_in, Duration::from_secs(60), start + Duration::from_secs(seconds))
        };
        assert!(!is_due(Some(1), 0) && !is_due(Some(1), 59));
        assert!(is_due(Some(1), 60) && !is_due(Some(1), 61));
        assert!(!is_due(Some(2), 120), "another term");
        assert!(!is_due(None, 180) && !is_due(Some(2), 180), "it did not lead in between");
        assert!(is_due(Some(2), 240));
    }
}
