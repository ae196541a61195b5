//! Leases of what a client is told is there although nothing names it (P23): renewed before the answer, many in one entry.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};

use crate::meta::State;
use crate::meta::command::{Command, LogTime, Rejection, Response};
use crate::oci::{Digest, RepositoryName};

use super::{Registry, Result};

/// Links renewed by one entry.
const BATCH: usize = 512;
/// Between two entries of one node: a storm of questions costs four entries a second, a single question waits for nothing.
const BETWEEN: Duration = Duration::from_millis(250);
/// Links that may wait for their entry; beyond it clients are answered without a promise.
const WAITING_MAX: usize = 16 * BATCH;
/// How long a client waits for its entry.
const WAIT_MAX: Duration = Duration::from_secs(4);
/// How long an entry may take, and its way to this node.
const PROPOSE_MAX: Duration = Duration::from_secs(3);

type Link = (RepositoryName, Digest);
type Waiters = Vec<oneshot::Sender<bool>>;

/// The links whose leases this node is to renew.
#[derive(Debug, Default)]
pub(super) struct Leases(Mutex<Pending>);

#[derive(Debug, Default)]
struct Pending {
    links: BTreeMap<Link, Waiters>,
    /// A task takes them out until none is left.
    running: bool,
    /// When the last entry was proposed.
    last: Option<Instant>,
}

impl Leases {
    /// Adds a link; says whether a task must be begun. `None` if too many wait.
    fn add(&self, link: Link) -> Option<(oneshot::Receiver<bool>, bool)> {
        let mut pending = self.0.lock().expect("no panic under this lock");
        if pending.links.len() >= WAITING_MAX && !pending.links.contains_key(&link) {
            return None;
        }
        let (waiter, renewed) = oneshot::channel();
        pending.links.entry(link).or_default().push(waiter);
        Some((renewed, !std::mem::replace(&mut pending.running, true)))
    }

    /// Returns when the next entry may be proposed.
    fn next_at(&self) -> Instant {
        let last = self.0.lock().expect("no panic under this lock").last;
        last.map_or_else(Instant::now, |last| last + BETWEEN)
    }

    /// Takes the next batch out; `None` ends the task.
    fn take(&self) -> Option<BTreeMap<Link, Waiters>> {
        let mut pending = self.0.lock().expect("no panic under this lock");
        if pending.links.is_empty() {
            pending.running = false;
            return None;
        }
        pending.last = Some(Instant::now());
        let mut batch = BTreeMap::new();
        while batch.len() < BATCH
            && let Some((link, waiters)) = pending.links.pop_first()
        {
            batch.insert(link, waiters);
        }
        Some(batch)
    }
}

impl Registry {
    /// Renews the lease of a link that `is_short` says may soon be over, before a client is told that it is there.
    ///
    /// False: it could not be renewed, so the answer is no promise. Whether the link is still there is the caller's to see
    /// again afterwards.
    ///
    /// # Cancel safety
    ///
    /// A dropped call may or may not renew the lease.
    pub(super) async fn keep_leased(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        is_short: impl Fn(&State, LogTime) -> bool,
    ) -> bool {
        if !is_short(&self.0.meta.local(), self.0.meta.log_time()) {
            return true;
        }
        let Some((renewed, is_first)) = self.0.leases.add((repository.clone(), digest.clone())) else { return false };
        if is_first {
            let this = self.clone();
            self.0.env.spawner.spawn("renew leases", Box::pin(async move { this.renew_leases().await }));
        }
        matches!(timeout(WAIT_MAX, renewed).await, Ok(Ok(true)))
    }

    /// Sees to it that a blob is there a while yet that a client is told of.
    ///
    /// Returns whether that is promised.
    ///
    /// # Errors
    ///
    /// [`super::Error::BlobUnknown`] if it was collected a moment ago.
    pub(super) async fn promise_blob(&self, repository: &RepositoryName, digest: &Digest) -> Result<bool> {
        let rules = self.0.config.rules;
        let is_short = |state: &State, now| state.blob_lease_is_short(repository, digest, &rules, now);
        let promised = self.keep_leased(repository, digest, is_short).await;
        match self.0.meta.local().blob(repository, digest) {
            None if promised => Err(super::Error::BlobUnknown),
            _ => Ok(promised),
        }
    }

    /// Proposes what waits, batch by batch, until nothing does.
    async fn renew_leases(self) {
        loop {
            sleep_until(self.0.leases.next_at()).await;
            let Some(batch) = self.0.leases.take() else { return };
            let links = batch.keys().cloned().collect();
            // Boxed: a proposal is deep enough as it is.
            let renewed = Box::pin(self.propose_leases(links)).await;
            for waiter in batch.into_values().flatten() {
                // A client may have gone.
                waiter.send(renewed).ok();
            }
        }
    }

    async fn propose_leases(&self, links: Vec<Link>) -> bool {
        let meta = &self.0.meta;
        match meta.propose(Command::RenewLeases { links }, PROPOSE_MAX).await {
            Ok(applied) => match applied.response {
                Response::Done => meta.wait_applied(applied.index, PROPOSE_MAX).await,
                // Nothing is collected either, below that level.
                Response::Rejected(Rejection::FeatureLevel { .. }) => true,
                other => {
                    tracing::debug!(?other, "leases not renewed");
                    false
                }
            },
            Err(error) => {
                tracing::debug!(%error, "leases not renewed");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    fn link(n: usize) -> Link {
        ("r".parse().unwrap(), Digest::of(Algorithm::Sha256, &n.to_le_bytes()))
    }

    #[test]
    fn one_task_takes_all_links_in_batches_and_the_next_entry_waits_a_little() {
        let leases = Leases::default();
        let waits: Vec<_> = (0..=BATCH).map(|n| leases.add(link(n)).unwrap()).collect();
        assert_eq!(waits.iter().filter(|(_, is_first)| *is_first).count(), 1);
        let (_, is_first) = leases.add(link(0)).unwrap();
        assert!(!is_first && leases.next_at() <= Instant::now());
        assert_eq!(leases.take().unwrap().len(), BATCH);
        assert!(leases.next_at() > Instant::now());
        assert_eq!(leases.take().unwrap().len(), 1);
        assert!(leases.take().is_none());
        let (_, is_first) = leases.add(link(7)).unwrap();
        assert!(is_first && leases.next_at() > Instant::now(), "another task waits for its turn as well");
    }

    #[test]
    fn a_queue_that_is_full_takes_no_new_link_but_more_who_wait_for_one() {
        let leases = Leases::default();
        let _waits: Vec<_> = (0..WAITING_MAX).map(|n| leases.add(link(n)).unwrap()).collect();
        assert!(leases.add(link(usize::MAX)).is_none());
        assert!(leases.add(link(3)).is_some());
    }
}
