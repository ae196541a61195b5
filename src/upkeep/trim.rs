//! Copies that placement does not want here go once every node that should hold one has confirmed it (P22).

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use tokio::time::{Instant, sleep, timeout};

use crate::blob::{BlobEntry, BlobStore, DeletePermit, Item};
use crate::meta::State;
use crate::oci::Digest;
use crate::replica::Replicas;
use crate::topology::{NodeId, NodeState, Topology};

use super::Upkeep;

/// Copies looked at in one go.
const PAGE: usize = 256;

/// Surplus copies for which the others are asked at once: while one round lasts, their locks are held.
const BATCH: usize = 64;

/// Pause between two pages.
const PAUSE: Duration = Duration::from_millis(20);

/// How long somebody else's work on a blob is waited for.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// Nodes asked at once.
const QUESTIONS_MAX: usize = 8;

/// What trimming stands on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trim<'a> {
    pub(super) replicas: &'a Replicas,
    pub(super) blobs: &'a BlobStore,
}

/// Copies that went from this disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Trimmed {
    pub(super) copies: u64,
    pub(super) bytes: u64,
}

/// A surplus copy that every node that should hold the blob has confirmed, by the topology of `index`.
struct Confirmed {
    entry: BlobEntry,
    permit: DeletePermit,
    index: u64,
}

impl Upkeep {
    /// Looks for surplus copies on this disk after each change of the topology, while a survey finds any, and now and then.
    /// Never ends.
    pub async fn trim(self) {
        let mut topology = self.0.parts.meta.topology();
        let mut survey = self.survey();
        let mut looked_at = Instant::now();
        loop {
            tokio::select! {
                Ok(()) = topology.changed() => {}
                Ok(()) = survey.changed() => {
                    let surplus = survey.borrow_and_update().over_replicated > 0;
                    if !surplus && looked_at.elapsed() < self.0.config.compare_every {
                        continue;
                    }
                }
            }
            looked_at = Instant::now();
            if let Err(error) = self.trim_once().await {
                tracing::warn!(%error, "surplus copies could not be trimmed");
            }
        }
    }

    async fn trim_once(&self) -> Result<(), crate::blob::Error> {
        let parts = &self.0.parts;
        let work = Trim { replicas: &parts.replicas, blobs: &parts.blobs };
        let mut after: Option<Digest> = None;
        loop {
            let page = parts.blobs.list_blobs(after, PAGE).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.digest.clone());
            let surplus = work.surplus(page, &parts.meta.local());
            for batch in surplus.chunks(BATCH) {
                let confirmed = work.confirm(batch).await;
                if confirmed.is_empty() {
                    continue;
                }
                // Asked for with the locks held: whoever wants one of these here must ask this node again first.
                let view = parts.meta.confirm().await;
                if view.fresh {
                    let trimmed = work.delete(confirmed, &view.state).await?;
                    self.0.metrics.trimmed(trimmed);
                }
            }
            sleep(PAUSE).await;
        }
    }
}

impl Trim<'_> {
    /// Those of the copies here that are linked and that placement does not want here.
    ///
    /// A node that is out counts for nothing and will be back: it keeps what it has.
    pub(super) fn surplus(&self, here: Vec<BlobEntry>, state: &State) -> Vec<BlobEntry> {
        let topology = self.replicas.topology();
        if topology.node(self.replicas.me()).is_none_or(|node| node.state == NodeState::Out) {
            return Vec::new();
        }
        let is_surplus = |entry: &BlobEntry| is_surplus(self.replicas, entry, state);
        here.into_iter().filter(is_surplus).collect()
    }

    /// Takes the locks of the surplus copies that are not pinned here, and keeps those that every node that should hold one
    /// has confirmed.
    async fn confirm(&self, surplus: &[BlobEntry]) -> Vec<Confirmed> {
        let topology = self.replicas.topology();
        let confirmed = self.confirmed(surplus, &topology).await;
        let mut held = Vec::new();
        // In order of the digests, so that two that take several locks do not wait for each other.
        for entry in confirmed {
            let permit = timeout(LOCK_WAIT, self.blobs.permit_delete(Item::Blob(entry.digest.clone()))).await;
            if let Ok(Some(permit)) = permit {
                held.push(Confirmed { entry, permit, index: topology.index });
            }
        }
        held
    }

    /// The copies that every node that should hold one has confirmed and pinned.
    pub(super) async fn confirmed(&self, surplus: &[BlobEntry], topology: &Topology) -> Vec<BlobEntry> {
        let mut questions: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
        let mut missing = vec![0usize; surplus.len()];
        for (n, entry) in surplus.iter().enumerate() {
            let wanted = self.replicas.wanted_holders(&entry.digest);
            // Nobody wants it: then there is nobody to trust it to.
            missing[n] = wanted.len().max(1);
            for node in wanted {
                questions.entry(node).or_default().push(n);
            }
        }
        let ask = |(node, asked): (NodeId, Vec<usize>)| async move {
            let question: Vec<(Digest, u64)> =
                asked.iter().map(|n| (surplus[*n].digest.clone(), surplus[*n].size)).collect();
            let held = self.replicas.confirm_copies(node, &question, topology.index).await;
            (asked, held.unwrap_or_default())
        };
        let mut answers = futures::stream::iter(questions.into_iter().map(ask)).buffer_unordered(QUESTIONS_MAX);
        while let Some((asked, held)) = answers.next().await {
            for (n, held) in asked.into_iter().zip(held) {
                missing[n] -= usize::from(held);
            }
        }
        surplus.iter().zip(missing).filter(|(_, missing)| *missing == 0).map(|(entry, _)| entry.clone()).collect()
    }

    /// Deletes what is still surplus in a state that was read after the locks were taken.
    async fn delete(&self, confirmed: Vec<Confirmed>, state: &State) -> Result<Trimmed, crate::blob::Error> {
        let mut trimmed = Trimmed::default();
        for Confirmed { entry, permit, index } in confirmed {
            let unchanged = state.topology().index == index && self.replicas.topology().index == index;
            if !unchanged || !is_surplus(self.replicas, &entry, state) {
                continue;
            }
            self.blobs.delete(permit).await?;
            tracing::debug!(digest = %entry.digest, "surplus copy trimmed");
            trimmed.copies += 1;
            trimmed.bytes += entry.size;
        }
        if trimmed.copies > 0 {
            tracing::info!(copies = trimmed.copies, size_bytes = trimmed.bytes, "surplus copies trimmed");
        }
        Ok(trimmed)
    }

    /// All of it at once, for tests.
    #[cfg(test)]
    pub(super) async fn turn(&self, state: &State) -> Trimmed {
        let here = self.blobs.list_blobs(None, PAGE).await.unwrap();
        let surplus = self.surplus(here, state);
        let confirmed = self.confirm(&surplus).await;
        self.delete(confirmed, state).await.unwrap()
    }
}

/// Whether a copy here is linked, of the agreed size, and not wanted here. What is not linked is for the reaper.
fn is_surplus(replicas: &Replicas, entry: &BlobEntry, state: &State) -> bool {
    let linked = state.content(&entry.digest).is_some_and(|content| !content.body && content.size == entry.size);
    linked && !replicas.is_wanted_here(&entry.digest)
}
