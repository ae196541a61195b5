//! Each node compares what it should hold with what lies on its disk, and fetches what it lacks from a holder.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::blob::{BlobStore, Event};
use crate::meta::{Content, State};
use crate::oci::Digest;
use crate::replica::{Error, Replicas, Result, Throttle};

use super::backlog::{Backlog, Want};
use super::pace::Pace;
use super::{Progress, Upkeep};

/// Contents compared in one go.
const PAGE: usize = 256;

/// How long to wait at most for something to happen.
const NAP: Duration = Duration::from_secs(5);

/// Of the fetches that may run at once, one in so many does while clients move bytes.
const BUSY_FETCHES: usize = 4;

impl Upkeep {
    /// Compares everything linked with this disk, then follows what is linked anew, and fetches what is missing here:
    /// manifest bodies on every node, blobs where placement wants them. Never ends.
    pub async fn catch_up(self) {
        let parts = &self.0.parts;
        let mut work = CatchUp::new(parts.replicas.clone(), parts.blobs.clone(), Arc::clone(&self.0.pace));
        let mut applied = parts.meta.applied();
        let mut topology = parts.meta.topology();
        let mut events = parts.blobs.events();
        let mut compared_at = Instant::now();
        loop {
            let index = *applied.borrow_and_update();
            let state = parts.meta.local();
            work.follow(&state, index).await;
            work.compare(&state).await;
            let fetches_max = work.fetches_max(self.0.config.fetches_max);
            work.begin(&state, fetches_max);
            self.publish(&work);
            if work.is_comparing() {
                while let Some(ended) = work.fetches.try_join_next() {
                    work.end(unwind(ended));
                }
                // News of copies that went must not be lost while a long comparison runs.
                for _ in 0..PAGE {
                    match events.try_recv() {
                        Ok(event) => work.take(&parts.meta.local(), event).await,
                        Err(TryRecvError::Lagged(_)) => work.lose_track(),
                        Err(TryRecvError::Empty) => break,
                        Err(TryRecvError::Closed) => return,
                    }
                }
                tokio::task::yield_now().await;
                continue;
            }
            // While all fetches are taken, nothing that is due could begin.
            let due = (work.fetches.len() < fetches_max).then(|| work.backlog.next_due()).flatten();
            let due = due.unwrap_or_else(|| Instant::now() + NAP);
            tokio::select! {
                Some(ended) = work.fetches.join_next() => work.end(unwind(ended)),
                Ok(()) = applied.changed() => {}
                Ok(()) = topology.changed() => {
                    work.compare_again();
                    work.backlog.hasten();
                }
                event = events.recv() => match event {
                    Ok(event) => work.take(&parts.meta.local(), event).await,
                    Err(RecvError::Lagged(_)) => work.lose_track(),
                    Err(RecvError::Closed) => return,
                },
                () = sleep_until(due) => {}
            }
            if compared_at.elapsed() > self.0.config.compare_every {
                compared_at = Instant::now();
                work.compare_again();
            }
        }
    }

    fn publish(&self, work: &CatchUp) {
        self.0.progress.send_if_modified(|progress| {
            let now = work.progress();
            let is_news = *progress != now;
            self.0.metrics.set_progress(&now);
            *progress = now;
            is_news
        });
    }
}

/// The state of the loop.
pub(super) struct CatchUp {
    replicas: Replicas,
    blobs: BlobStore,
    pace: Arc<Pace>,
    pub(super) backlog: Backlog,
    fetches: JoinSet<(Digest, Result<()>)>,
    /// Content linked up to this log index has been looked at, or is covered by the comparison under way.
    followed: Option<u64>,
    comparison: Comparison,
    /// Whether another comparison is due after the one under way: none is cut short, so each comes to its end.
    again: bool,
    /// Whether the comparison under way may have passed over what nothing else finds.
    doubt: bool,
    /// Whether the comparison under way waits for room in the queue instead of passing over what it finds. The first one
    /// does not, so that the most urgent is found and everything counted; did it leave out much, the one after it goes
    /// through the rest once, as the queue takes it, and not once for each time that the queue is full.
    patient: bool,
    /// Whether the next one is to be patient.
    next_patient: bool,
    /// Whether it waits for room now.
    waits: bool,
    /// Comparisons that have begun.
    pub(super) passes: u64,
    /// What the comparison under way found and the queue had no room for; the next one finds it again.
    passed_over: LeftOut,
    /// The same of the last comparison that ended.
    left_out: LeftOut,
    done: u64,
    /// Whether a comparison has ended since track was last lost.
    compared: bool,
    last_error: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Comparison {
    /// Everything after this digest is still to be compared.
    At(Option<Digest>),
    Idle,
}

/// Missing contents that are not in the queue.
#[derive(Debug, Clone, Copy, Default)]
struct LeftOut {
    contents: usize,
    bytes: u64,
}

impl CatchUp {
    pub(super) fn new(replicas: Replicas, blobs: BlobStore, pace: Arc<Pace>) -> Self {
        Self {
            replicas,
            blobs,
            pace,
            backlog: Backlog::default(),
            fetches: JoinSet::new(),
            followed: None,
            comparison: Comparison::At(None),
            again: false,
            doubt: false,
            patient: false,
            next_patient: false,
            waits: false,
            passes: 1,
            passed_over: LeftOut::default(),
            left_out: LeftOut::default(),
            done: 0,
            compared: false,
            last_error: None,
        }
    }

    /// Looks at what was linked since the last call.
    pub(super) async fn follow(&mut self, state: &State, index: u64) {
        let Some(followed) = self.followed.replace(index).filter(|followed| *followed < index) else { return };
        // What was compared with an empty state says nothing of the one that came in its place.
        let contents = if followed == 0 { None } else { state.contents_since(followed) };
        // After a gap a comparison reads the same in pages, without one queue entry for each.
        let Some(contents) = contents.filter(|contents| contents.len() <= PAGE * 4) else {
            self.lose_track();
            return;
        };
        // So many were made before it was linked.
        let copies = u8::try_from(self.replicas.write_copies()).unwrap_or(u8::MAX);
        for content in contents {
            if self.lacks(&content).await {
                self.add(want(&content, copies), true);
            }
        }
    }

    /// Compares the next page of everything linked with this disk.
    pub(super) async fn compare(&mut self, state: &State) {
        if self.comparison == Comparison::Idle && self.again && self.backlog.has_room() {
            self.comparison = Comparison::At(None);
            (self.again, self.doubt, self.passed_over) = (false, false, LeftOut::default());
            self.patient = self.next_patient;
            self.passes += 1;
        }
        let Comparison::At(after) = &self.comparison else { return };
        let page_max = self.backlog.page(PAGE);
        self.waits =
            self.patient && if self.waits { !self.backlog.has_room() } else { !self.backlog.has_room_for(page_max) };
        if self.waits {
            return;
        }
        let page = state.contents(after.as_ref(), page_max);
        let Some(last) = page.last().map(|content| content.digest.clone()) else {
            self.comparison = Comparison::Idle;
            self.left_out = self.passed_over;
            self.next_patient = self.left_out.contents > 0;
            self.compared = !self.doubt;
            return;
        };
        let lacking = self.lacking(page).await;
        let question: Vec<_> = lacking.iter().map(|content| (content.digest.clone(), content.size)).collect();
        let copies = self.replicas.copies_elsewhere(&question).await;
        for (content, copies) in lacking.iter().zip(copies) {
            self.add(want(content, copies), false);
        }
        self.comparison = Comparison::At(Some(last));
    }

    /// Queues missing content; what there is no room for is found again by another comparison.
    fn add(&mut self, want: Want, news: bool) {
        let (before, bytes) = (self.backlog.len(), self.backlog.bytes());
        let Some(dropped) = self.backlog.add(want, news) else {
            if self.patient && !news {
                // Counted before, and queued only now.
                let (contents, bytes) = (self.backlog.len() - before, self.backlog.bytes() - bytes);
                self.left_out.contents = self.left_out.contents.saturating_sub(contents);
                self.left_out.bytes = self.left_out.bytes.saturating_sub(bytes);
            }
            return;
        };
        self.passed_over.contents += 1;
        self.passed_over.bytes += dropped.size;
        if dropped.body {
            self.lose_track();
        } else if dropped.copies > 0 {
            self.compare_again();
        }
        // What is lost is looked for again when something changes, or at the next full comparison.
    }

    async fn lacks(&self, content: &Content) -> bool {
        let wanted = content.body || self.replicas.is_wanted_here(&content.digest);
        wanted && !matches!(self.blobs.has(&content.digest, content.size).await, Ok(true))
    }

    /// Which of a page should lie here and do not.
    async fn lacking(&self, page: Vec<Content>) -> Vec<Content> {
        let wanted = |content: &Content| content.body || self.replicas.is_wanted_here(&content.digest);
        let mut wanted: Vec<Content> = page.into_iter().filter(wanted).collect();
        let question: Vec<_> = wanted.iter().map(|content| (content.digest.clone(), content.size)).collect();
        let Ok(here) = self.blobs.has_each(&question).await else {
            // One of them cannot be looked at, and is taken for missing: the others are not.
            let mut lacking = Vec::new();
            for content in wanted {
                if self.lacks(&content).await {
                    lacking.push(content);
                }
            }
            return lacking;
        };
        let mut here = here.into_iter();
        wanted.retain(|_| here.next() != Some(true));
        wanted
    }

    /// How many fetches may run now.
    fn fetches_max(&self, most: usize) -> usize {
        if self.pace.is_busy() { (most / BUSY_FETCHES).max(1) } else { most }
    }

    /// Starts fetches until `fetches_max` run.
    pub(super) fn begin(&mut self, state: &State, fetches_max: usize) {
        while self.fetches.len() < fetches_max {
            let Some(want) = self.backlog.take(Instant::now()) else { return };
            let linked = state.content(&want.digest).is_some_and(|content| content.size == want.size);
            if !linked || !(want.body || self.replicas.is_wanted_here(&want.digest)) {
                self.backlog.settle(&want.digest);
                continue;
            }
            let (replicas, pace) = (self.replicas.clone(), Arc::clone(&self.pace));
            self.fetches.spawn(async move {
                let result = if want.body {
                    pace.take(want.size).await;
                    replicas.ensure_body(&want.digest, want.size).await
                } else {
                    replicas.repair(&want.digest, want.size, pace).await
                };
                (want.digest, result)
            });
        }
    }

    /// Takes the outcome of a fetch.
    fn end(&mut self, (digest, result): (Digest, Result<()>)) {
        match result {
            Ok(()) => {
                self.done += 1;
                self.backlog.settle(&digest);
            }
            Err(error) => {
                let is_lost = matches!(error, Error::NoHolder { lost: true, .. });
                tracing::debug!(%digest, %error, is_lost, "content could not be fetched yet");
                self.last_error = Some(format!("{digest}: {error}"));
                self.backlog.postpone(&digest, is_lost, Instant::now());
            }
        }
    }

    /// Waits until all that runs has ended; for tests.
    #[cfg(test)]
    pub(super) async fn settle(&mut self) {
        while let Some(ended) = self.fetches.join_next().await {
            self.end(ended.unwrap());
        }
    }

    /// Takes note of what became of a copy here.
    async fn take(&mut self, state: &State, event: Event) {
        match event {
            // This node's copy went: another is wanted if it is linked, and soon, for who knows what else went.
            Event::Quarantined { digest } | Event::Removed { digest } => {
                if let Some(content) = state.content(&digest)
                    && self.lacks(&content).await
                {
                    self.add(want(&content, 1), true);
                }
            }
            // A copy came by another way: a push, or a pull through this node.
            Event::Added { digest, .. } => drop(self.backlog.settle(&digest)),
        }
    }

    /// Compares everything once more, after the comparison under way, which waits for nothing any more.
    fn compare_again(&mut self) {
        self.again |= self.comparison != Comparison::At(None);
        (self.patient, self.next_patient, self.waits) = (false, false, false);
    }

    /// Something that may be missing here was passed over: until it is compared anew, nothing is known to be complete.
    fn lose_track(&mut self) {
        self.compared = false;
        self.doubt |= self.comparison != Comparison::At(None);
        self.compare_again();
    }

    fn is_comparing(&self) -> bool {
        self.comparison != Comparison::Idle && !self.waits
    }

    pub(super) fn progress(&self) -> Progress {
        let bytes_left = self.backlog.bytes() + self.left_out.bytes;
        let rate = self.pace.rate();
        let followed = self.followed.unwrap_or(0);
        let first_body = self.backlog.first_body().map_or(followed, |first| followed.min(first.saturating_sub(1)));
        Progress {
            missing: self.backlog.len() + self.left_out.contents,
            missing_bodies: self.backlog.missing_bodies(),
            bodies_to: if self.compared { first_body } else { 0 },
            bytes_left,
            bytes_per_second: rate,
            seconds_left: (rate > 0 || bytes_left == 0).then(|| bytes_left.div_ceil(rate.max(1))),
            running: self.fetches.len(),
            done: self.done,
            compared: self.compared,
            followed,
            last_error: self.last_error.clone(),
        }
    }
}

/// A fetch that panicked takes the loop with it, and with that the node.
fn unwind<T>(ended: std::result::Result<T, tokio::task::JoinError>) -> T {
    ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

fn want(content: &Content, copies: u8) -> Want {
    Want { digest: content.digest.clone(), size: content.size, body: content.body, copies, index: content.index }
}
