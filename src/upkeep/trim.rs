//! Copies that placement does not want here go once every node that should hold one has confirmed it (P22).

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use tokio::time::{Instant, sleep};

#[cfg(test)]
use crate::blob::BlobStore;
use crate::blob::{BlobEntry, Item};
use crate::meta::State;
use crate::oci::Digest;
use crate::replica::Replicas;
use crate::topology::{NodeId, NodeState, Topology};

use super::Upkeep;
#[cfg(test)]
use super::remove::Held;

/// Copies looked at in one go.
const PAGE: usize = 256;

/// Surplus copies for which the others are asked at once: while one round lasts, their locks are held.
const BATCH: usize = 64;

/// Pause between two pages.
const PAUSE: Duration = Duration::from_millis(20);

/// Nodes asked at once.
const QUESTIONS_MAX: usize = 8;

/// What trimming stands on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trim<'a> {
    pub(super) replicas: &'a Replicas,
}

/// Copies that went from this disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Trimmed {
    pub(super) copies: u64,
    pub(super) bytes: u64,
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
        let work = Trim { replicas: &parts.replicas };
        let mut after: Option<Digest> = None;
        loop {
            let page = parts.blobs.list_blobs(after, PAGE).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.digest.clone());
            let surplus = work.surplus(page, &parts.meta.local());
            for batch in surplus.chunks(BATCH) {
                let topology = parts.replicas.topology();
                let items = items(work.confirmed(batch, &topology).await);
                let still = |item: &Item, size, state: &State| work.may_go(item, size, state, topology.index);
                let trimmed = Trimmed::of(&self.remove(items, &still).await);
                if trimmed.copies > 0 {
                    tracing::info!(copies = trimmed.copies, size_bytes = trimmed.bytes, "surplus copies trimmed");
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
        let is_surplus = |entry: &BlobEntry| is_surplus(self.replicas, &entry.digest, entry.size, state);
        here.into_iter().filter(is_surplus).collect()
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

    /// Whether what was surplus by the topology of `index` still is.
    fn may_go(&self, item: &Item, size: u64, state: &State, index: u64) -> bool {
        let unchanged = state.topology().index == index && self.replicas.topology().index == index;
        match item {
            Item::Blob(digest) => unchanged && is_surplus(self.replicas, digest, size, state),
            Item::Extent(_) => false,
        }
    }

    /// All of it at once, for tests.
    #[cfg(test)]
    pub(super) async fn turn(&self, blobs: &BlobStore, state: &State) -> Trimmed {
        let here = blobs.list_blobs(None, PAGE).await.unwrap();
        let topology = self.replicas.topology();
        let confirmed = self.confirmed(&self.surplus(here, state), &topology).await;
        let held = Held::take(blobs, items(confirmed));
        let still = |item: &Item, size, state: &State| self.may_go(item, size, state, topology.index);
        Trimmed::of(&held.delete(blobs, state, &still).await)
    }
}

impl Trimmed {
    fn of(removed: &[(Item, u64)]) -> Self {
        Self { copies: removed.len() as u64, bytes: removed.iter().map(|(_, size)| size).sum() }
    }
}

fn items(copies: Vec<BlobEntry>) -> Vec<(Item, u64)> {
    copies.into_iter().map(|entry| (Item::Blob(entry.digest), entry.size)).collect()
}

/// Whether a copy here is linked, of the agreed size, and not wanted here. What is not linked is for the reaper.
fn is_surplus(replicas: &Replicas, digest: &Digest, size: u64, state: &State) -> bool {
    let linked = state.content(digest).is_some_and(|content| !content.body && content.size == size);
    linked && !replicas.is_wanted_here(digest)
}
