//! The holders turn a session's extents into the blob (P25).

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

use crate::blob::Error as BlobError;
use crate::oci::{Algorithm, Digest, Hasher};
use crate::topology::{NodeId, placement_order};
use crate::transfer::Error as TransferError;

use super::fan_out::FanOut;
use super::{Error, HeldPart, LOOK, Replicas, Result, TARGETS_WAIT};

/// How long the chosen holders are waited for when enough others have the blob.
const STRAGGLERS_WAIT: Duration = Duration::from_secs(1);

/// A node that takes longer than this, and the time for the bytes at [`FAST_BYTES`], gets another beside it.
const SLOW_AFTER: Duration = Duration::from_secs(2);

/// Bytes per second below which a node is slow.
const FAST_BYTES: u64 = 50_000_000;

/// Nobody waits for copies longer than this, and the time for the bytes at [`SLOW_BYTES`].
const COPIES_WAIT: Duration = Duration::from_secs(60);

/// Bytes per second that any node in order manages.
const SLOW_BYTES: u64 = 5_000_000;

/// A blob that is to be had by enough nodes.
struct Copies<'a> {
    digest: &'a Digest,
    size: u64,
    /// The nodes to begin with.
    first: &'a [NodeId],
}

/// How long `size` bytes take.
const fn at_pace(size: u64, bytes_per_second: u64) -> Duration {
    Duration::from_millis(size.saturating_mul(1000) / bytes_per_second)
}

impl Replicas {
    /// Has the holders put the blob together from its extents (each fetches what it lacks), verified and synced (P25).
    ///
    /// Returns the nodes that hold the blob now, at least `write_copies`; a dead holder is replaced by another live node,
    /// which fetches every extent. No parts and size 0 make the empty blob. Idempotent.
    ///
    /// # Errors
    ///
    /// [`Error::TooFewCopies`] if for 5 s too few nodes were in reach, or those in reach take beyond all measure.
    pub async fn assemble(
        &self,
        digest: &Digest,
        size: u64,
        parts: &[HeldPart],
        holders: &[NodeId],
    ) -> Result<Vec<NodeId>> {
        let (local, wanted, parts) = (self.local().clone(), digest.clone(), self.live_first(parts));
        let me = self.me();
        let fan_out = FanOut::new(move |node, _| {
            let (local, digest, parts) = (local.clone(), wanted.clone(), parts.clone());
            Box::pin(async move {
                if node == me {
                    Box::pin(local.assemble(&digest, size, &parts)).await
                } else {
                    local.client.assemble(node, &digest, size, &parts).await
                }
            })
        });
        self.copy_everywhere(Copies { digest, size, first: holders }, fan_out).await
    }

    /// Brings the copies of a linked blob up to `write_copies` (P19: a re-push heals); returns the holders known.
    ///
    /// # Errors
    ///
    /// - [`Error::NoHolder`] if there is no copy to take more from.
    /// - [`Error::TooFewCopies`] if too few nodes in reach took one.
    pub async fn ensure_copies(&self, digest: &Digest, size: u64) -> Result<Vec<NodeId>> {
        let sources = self.find_all(digest, size).await?;
        let counted: Vec<NodeId> = sources.iter().copied().filter(|node| self.counts(*node)).collect();
        if counted.len() >= self.write_copies() {
            return Ok(counted);
        }
        let (this, wanted, from) = (self.clone(), digest.clone(), sources.clone());
        let me = self.me();
        let fan_out = FanOut::new(move |node, _| {
            let (this, digest, from) = (this.clone(), wanted.clone(), from.clone());
            Box::pin(async move {
                // Asked anew: a source may have taken its word back since it was found.
                if from.contains(&node) && this.stands_by(node, &digest, size).await {
                    return Ok(());
                }
                if node != me {
                    let others: Vec<NodeId> = from.into_iter().filter(|other| *other != node).collect();
                    return this.local().client.pull_blob(node, &digest, size, &others).await;
                }
                this.ensure_local(&digest, size).await.map_err(|error| match error {
                    Error::Blob(error) => TransferError::Blob(error),
                    _ => TransferError::NoHolder,
                })
            })
        });
        self.copy_everywhere(Copies { digest, size, first: &sources }, fan_out).await
    }

    /// Runs work that leaves the blob on a node: on `first`, then on others until `write_copies` that count have it.
    ///
    /// A holder pins the blob for a while when it has it. Others may take longer than that, so a holder whose word is old
    /// is asked again, which pins anew; one that does not confirm it must do it again.
    async fn copy_everywhere(&self, copies: Copies<'_>, fan_out: FanOut<()>) -> Result<Vec<NodeId>> {
        let Copies { digest, size, first } = copies;
        let mut fan_out = self.counting(fan_out).with_patience(SLOW_AFTER + at_pace(size, FAST_BYTES));
        let begun = Instant::now();
        let give_up = begun + COPIES_WAIT + at_pace(size, SLOW_BYTES);
        let (mut lost, mut stragglers, mut damage) = (Some(begun), None, None);
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let may_begin = |node: &&NodeId| self.counts(**node) && self.may_copy_to(**node);
        first.iter().filter(may_begin).for_each(|node| fan_out.begin(*node));
        loop {
            self.renew_blob(&mut fan_out, digest, size).await;
            let needed = self.write_copies();
            let done = fan_out.made();
            if done >= needed {
                let until = *stragglers.get_or_insert_with(|| Instant::now() + STRAGGLERS_WAIT);
                // The holders that were chosen are waited for a moment: each would have to fetch the blob later.
                let waits = fan_out.running().any(|node| first.contains(&node));
                if waits && let Ok((node, error)) = timeout_at(until, fan_out.next()).await {
                    self.note_end(node, error);
                    continue;
                }
                let holders: Vec<NodeId> = fan_out.done().map(|(node, ())| node).collect();
                self.spawn("finish copies", Box::pin(fan_out.finish()));
                return Ok(holders);
            }
            // Nobody is given up for the last that failed while others are untried.
            let mut order = placement_order(digest, &self.topology());
            order.retain(|node| self.counts(*node) && self.may_copy_to(*node));
            fan_out.fill(needed, &order);
            if fan_out.in_reach() >= needed {
                lost = None;
            }
            let is_lost =
                fan_out.in_reach() < needed && lost.get_or_insert_with(Instant::now).elapsed() >= TARGETS_WAIT;
            if is_lost || Instant::now() >= give_up {
                let error = self.too_few_copies(done, fan_out.reason());
                // Whoever is still at it may end: the same request, sent again, finds its copy.
                self.spawn("finish copies", Box::pin(fan_out.finish()));
                return Err(damage.unwrap_or(error));
            }
            tokio::select! {
                (node, error) = fan_out.next() => {
                    if let Some(TransferError::Blob(error @ BlobError::DigestMismatch { .. })) = error {
                        damage = Some(Error::Blob(error));
                    } else {
                        self.note_end(node, error);
                    }
                }
                _ = look.tick() => {}
            }
        }
    }

    /// The parts with the holders that live before those that are silent.
    fn live_first(&self, parts: &[HeldPart]) -> Vec<HeldPart> {
        let mut parts = parts.to_vec();
        for held in &mut parts {
            held.holders.sort_by_key(|node| !self.may_copy_to(*node));
        }
        parts
    }

    fn may_copy_to(&self, node: NodeId) -> bool {
        node == self.me() || self.0.parts.sight.is_live(node)
    }

    /// Frees the extents of a session that was committed or cancelled, here and at their holders, in the background.
    ///
    /// Best effort: what is out of reach now, the reaper of each node removes later (P21).
    pub fn free_extents(&self, parts: Vec<HeldPart>) {
        let this = self.clone();
        let work = async move {
            let mut by_node = std::collections::BTreeMap::<NodeId, Vec<_>>::new();
            for held in &parts {
                for node in held.holders.iter().copied().chain([this.me()]) {
                    by_node.entry(node).or_default().push(held.part.id);
                }
            }
            for (node, mut ids) in by_node {
                ids.sort_unstable();
                ids.dedup();
                if node == this.me() {
                    if let Err(error) = this.local().blobs.remove_extents(&ids).await {
                        tracing::warn!(%error, "extents could not be removed");
                    }
                } else if !this.0.parts.sight.is_dead(node) {
                    drop(this.local().client.remove_extents(node, &ids).await);
                }
            }
        };
        self.spawn("free extents", Box::pin(work));
    }

    /// Re-hashes a session's bytes under another algorithm (P26).
    ///
    /// # Errors
    ///
    /// [`Error::TooFewCopies`] if an extent has no holder in reach.
    pub async fn hash_parts(&self, parts: &[HeldPart], algorithm: Algorithm) -> Result<Digest> {
        let mut hasher = Hasher::new(algorithm);
        let mut silent = BTreeSet::new();
        for held in &self.live_first(parts) {
            self.hash_part(held, &mut hasher, &mut silent).await?;
        }
        Ok(hasher.finish())
    }

    /// Adds one extent's bytes to a hash, from here or from a holder; a holder that breaks off is replaced by the next,
    /// whose first bytes, hashed before, are skipped.
    async fn hash_part(&self, held: &HeldPart, hasher: &mut Hasher, silent: &mut BTreeSet<NodeId>) -> Result<()> {
        let (id, length, blobs) = (held.part.id, held.part.length, &self.local().blobs);
        let mut hashed = 0;
        let mut add = |position: &mut u64, bytes: &[u8]| {
            let known = usize::try_from(hashed - *position).unwrap_or(usize::MAX).min(bytes.len());
            let room = usize::try_from(length - hashed).unwrap_or(usize::MAX);
            let fresh = &bytes[known..];
            let fresh = &fresh[..fresh.len().min(room)];
            hasher.update(fresh);
            hashed += fresh.len() as u64;
            *position += (known + fresh.len()) as u64;
            hashed == length
        };
        if let Ok(mut follower) = blobs.follow(id, 0).await {
            let mut position = 0;
            // A copy here that is short or damaged ends early; the holders have the rest.
            while let Ok(Some(bytes)) = follower.next().await {
                if add(&mut position, &bytes) {
                    return Ok(());
                }
            }
        }
        let mut reason = "no node named holds the extent".to_owned();
        let mut holders: Vec<NodeId> = held.holders.iter().copied().filter(|node| *node != self.me()).collect();
        holders.sort_by_key(|node| silent.contains(node));
        for node in holders {
            let mut position = 0;
            let outcome = async {
                let mut stream = self.local().client.read_extent(node, id, length).await?;
                while let Some(bytes) = stream.next().await? {
                    add(&mut position, &bytes);
                }
                Ok::<(), TransferError>(())
            };
            match outcome.await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    self.note(node, &error);
                    if error.is_silence() {
                        silent.insert(node);
                    }
                    reason = error.to_string();
                }
            }
        }
        Err(Error::TooFewCopies { made: 0, needed: 1, reason })
    }
}
