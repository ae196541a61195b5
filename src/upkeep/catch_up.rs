//! Each node compares what it should hold with what lies on its disk, and fetches what it lacks from a holder.

use std::time::Duration;

use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::blob::{BlobStore, Event};
use crate::meta::{Content, State};
use crate::oci::Digest;
use crate::replica::{Error, Replicas, Result};

use super::backlog::{Backlog, Want};
use super::{Progress, Upkeep};

/// Contents compared in one go.
const PAGE: usize = 256;

/// How long to wait at most for something to happen.
const NAP: Duration = Duration::from_secs(5);

impl Upkeep {
    /// Compares everything linked with this disk, then follows what is linked anew, and fetches what is missing here:
    /// manifest bodies on every node, blobs where placement wants them. Never ends.
    pub async fn catch_up(self) {
        let parts = &self.0.parts;
        let mut work = CatchUp::new(parts.replicas.clone(), parts.blobs.clone());
        let mut applied = parts.meta.applied();
        let mut topology = parts.meta.topology();
        let mut events = parts.blobs.events();
        let mut compared_at = Instant::now();
        loop {
            let index = *applied.borrow_and_update();
            let state = parts.meta.local();
            work.follow(&state, index).await;
            work.compare(&state).await;
            work.begin(&state, self.0.config.fetches_max);
            self.0.progress.send_if_modified(|progress| {
                let now = work.progress();
                let is_news = *progress != now;
                self.0.metrics.set_progress(&now);
                *progress = now;
                is_news
            });
            if work.is_comparing() && work.backlog.has_room() {
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
            let due = (work.fetches.len() < self.0.config.fetches_max).then(|| work.backlog.next_due()).flatten();
            let due = due.unwrap_or_else(|| Instant::now() + NAP);
            tokio::select! {
                Some(ended) = work.fetches.join_next() => work.end(unwind(ended)),
                Ok(()) = applied.changed() => {}
                Ok(()) = topology.changed() => {
                    work.compare_again();
                    work.backlog.hasten(Instant::now());
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
}

/// The state of the loop.
pub(super) struct CatchUp {
    replicas: Replicas,
    blobs: BlobStore,
    pub(super) backlog: Backlog,
    fetches: JoinSet<(Digest, Result<()>)>,
    /// Content linked up to this log index has been looked at, or is covered by the comparison under way.
    followed: Option<u64>,
    comparison: Comparison,
    /// Whether another comparison is due after the one under way: none is cut short, so each comes to its end.
    again: bool,
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

impl CatchUp {
    pub(super) fn new(replicas: Replicas, blobs: BlobStore) -> Self {
        Self {
            replicas,
            blobs,
            backlog: Backlog::default(),
            fetches: JoinSet::new(),
            followed: None,
            comparison: Comparison::At(None),
            again: false,
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
        for content in contents {
            if self.lacks(&content).await && !self.backlog.add(want(&content), true) {
                self.lose_track();
                return;
            }
        }
    }

    /// Compares the next page of everything linked with this disk.
    pub(super) async fn compare(&mut self, state: &State) {
        let Comparison::At(after) = &self.comparison else { return };
        if !self.backlog.has_room() {
            return;
        }
        let page = state.contents(after.as_ref(), PAGE);
        let Some(last) = page.last().map(|content| content.digest.clone()) else {
            if std::mem::take(&mut self.again) {
                self.comparison = Comparison::At(None);
            } else {
                self.comparison = Comparison::Idle;
                self.compared = true;
            }
            return;
        };
        for content in page {
            if self.lacks(&content).await {
                // There was room for a page: this cannot be refused.
                self.backlog.add(want(&content), false);
            }
        }
        self.comparison = Comparison::At(Some(last));
    }

    async fn lacks(&self, content: &Content) -> bool {
        let wanted = content.body || self.replicas.is_wanted_here(&content.digest);
        wanted && !matches!(self.blobs.has(&content.digest, content.size).await, Ok(true))
    }

    /// Starts fetches until `fetches_max` run.
    pub(super) fn begin(&mut self, state: &State, fetches_max: usize) {
        while self.fetches.len() < fetches_max {
            let Some(want) = self.backlog.take(Instant::now()) else { return };
            let linked = state.content(&want.digest).is_some_and(|content| content.size == want.size);
            if !linked {
                self.backlog.settle(&want.digest);
                continue;
            }
            let replicas = self.replicas.clone();
            self.fetches.spawn(async move {
                let result = if want.body {
                    replicas.ensure_body(&want.digest, want.size).await
                } else {
                    replicas.ensure_local(&want.digest, want.size).await
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
                self.backlog.postpone(&digest, Instant::now());
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

    /// This node's copy went: fetches another if it is linked.
    async fn look_again(&mut self, state: &State, digest: &Digest) {
        if let Some(content) = state.content(digest)
            && self.lacks(&content).await
            && !self.backlog.add(want(&content), true)
        {
            self.lose_track();
        }
    }

    /// Takes note of what became of a copy here.
    async fn take(&mut self, state: &State, event: Event) {
        match event {
            Event::Quarantined { digest } | Event::Removed { digest } => self.look_again(state, &digest).await,
            Event::Added { digest, .. } => self.arrived(&digest),
        }
    }

    /// A copy came by another way: a push, or a pull through this node.
    fn arrived(&mut self, digest: &Digest) {
        self.backlog.settle(digest);
    }

    /// Compares everything once more, after the comparison under way.
    fn compare_again(&mut self) {
        match self.comparison {
            Comparison::At(None) => {}
            Comparison::At(Some(_)) => self.again = true,
            Comparison::Idle => self.comparison = Comparison::At(None),
        }
    }

    /// Something that may be missing here was passed over: until it is compared anew, nothing is known to be complete.
    fn lose_track(&mut self) {
        self.compared = false;
        self.compare_again();
    }

    fn is_comparing(&self) -> bool {
        self.comparison != Comparison::Idle
    }

    pub(super) fn progress(&self) -> Progress {
        Progress {
            missing: self.backlog.len(),
            missing_bodies: self.backlog.missing_bodies(),
            running: self.fetches.len(),
            done: self.done,
            compared: self.compared,
            followed: self.followed.unwrap_or(0),
            last_error: self.last_error.clone(),
        }
    }
}

/// A fetch that panicked takes the loop with it, and with that the node.
fn unwind<T>(ended: std::result::Result<T, tokio::task::JoinError>) -> T {
    ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

fn want(content: &Content) -> Want {
    Want { digest: content.digest.clone(), size: content.size, body: content.body }
}
