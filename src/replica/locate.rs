//! Where a blob may be, and whether it is nowhere for certain (P19).

use std::collections::BTreeSet;

use futures::StreamExt;

use crate::oci::Digest;
use crate::topology::{NodeId, nearest_first};
use crate::transfer::BlobSource;

use super::{Error, Replicas, Result};

/// Nodes asked for a blob at once.
const QUESTIONS_MAX: usize = 16;

/// What a node that says it has a blob is to do then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// Nothing: the blob is linked and stays so, and P22 looks after its copies.
    Nothing,
    /// Keep its copy for longer than a command may live that is made for its sake (P21).
    Keep,
}

/// What all nodes in reach said about a blob.
#[derive(Debug)]
struct Answers {
    /// Who has it, nearest first.
    holders: Vec<NodeId>,
    /// Whether every member answered, and for certain.
    all_sure: bool,
}

impl Replicas {
    /// Finds copies in reach of a linked blob: this node alone if it has one, else all others that say they do, nearest first.
    ///
    /// No copy is kept for its sake: else what is pulled often, through whatever node, could never be trimmed anywhere.
    ///
    /// # Errors
    ///
    /// [`Error::NoHolder`], where `lost` says whether the absence is certain (P19).
    pub async fn locate(&self, digest: &Digest, size: u64) -> Result<Vec<NodeId>> {
        if self.holds_here(digest, size, Then::Nothing).await == Some(true) {
            return Ok(vec![self.me()]);
        }
        self.find(digest, size, Then::Nothing).await
    }

    /// Asks every node in reach, this one too; those that have it keep it.
    pub(super) async fn find_all(&self, digest: &Digest, size: u64) -> Result<Vec<NodeId>> {
        self.find(digest, size, Then::Keep).await
    }

    async fn find(&self, digest: &Digest, size: u64, then: Then) -> Result<Vec<NodeId>> {
        let answers = self.ask_everyone(digest, size, then).await;
        if answers.holders.is_empty() {
            return Err(Error::NoHolder { digest: digest.clone(), lost: answers.all_sure });
        }
        Ok(answers.holders)
    }

    /// The error for a blob that nobody delivered: says for certain whether it is lost.
    pub(super) async fn no_holder(&self, digest: &Digest, size: u64) -> Error {
        let answers = self.ask_everyone(digest, size, Then::Nothing).await;
        Error::NoHolder { digest: digest.clone(), lost: answers.all_sure && answers.holders.is_empty() }
    }

    /// Whether a copy lies here; `None` if the disk does not say (I12).
    pub(super) async fn holds_here(&self, digest: &Digest, size: u64, then: Then) -> Option<bool> {
        let blobs = &self.local().blobs;
        let holds = match then {
            Then::Nothing => blobs.has(digest, size).await,
            Then::Keep => blobs.hold(digest, size).await,
        };
        match holds {
            Ok(holds) => Some(holds),
            Err(error) => {
                tracing::warn!(%digest, %error, "the disk here does not say whether it has a blob");
                None
            }
        }
    }

    async fn ask_everyone(&self, digest: &Digest, size: u64, then: Then) -> Answers {
        let topology = self.topology();
        let others: Vec<NodeId> = topology.nodes.keys().copied().filter(|node| *node != self.me()).collect();
        let mut all_sure = self.local().blobs.usage().index_complete;
        let mut holders = Vec::new();
        match self.holds_here(digest, size, then).await {
            Some(true) => holders.push(self.me()),
            Some(false) => {}
            None => all_sure = false,
        }
        let question = &[(digest.clone(), size)];
        // Dead nodes are not asked, and without their answer nothing is certain.
        let ask = |node| async move {
            let answer = match self.0.parts.sight.is_dead(node) {
                true => None,
                false => Some(self.local().client.has_blobs(node, question, then == Then::Keep).await),
            };
            (node, answer)
        };
        let mut asked = futures::stream::iter(others.into_iter().map(ask)).buffer_unordered(QUESTIONS_MAX);
        while let Some((node, answer)) = asked.next().await {
            match answer {
                Some(Ok(presence)) if presence.present.first() == Some(&true) => holders.push(node),
                Some(Ok(presence)) => all_sure &= presence.complete,
                Some(Err(error)) => {
                    self.note(node, &error);
                    all_sure = false;
                }
                None => all_sure = false,
            }
        }
        nearest_first(&topology, self.me(), &mut holders);
        Answers { holders, all_sure }
    }

    /// Peers to read a blob from, best first: who is said to hold it, who should, then everyone else; each group nearest
    /// first, of equally near ones those from which fewest fetches run. After all of them those that are suspect or sent
    /// wrong bytes before, and those that are taken for dead last: that is an opinion, and may be wrong.
    pub(super) fn sources(&self, digest: &Digest) -> Vec<NodeId> {
        let topology = self.topology();
        let sight = &self.0.parts.sight;
        let hinted = sight.holders(digest);
        let wanted = self.wanted_holders(digest);
        let everyone: Vec<NodeId> = topology.nodes.keys().copied().collect();
        let mut seen = BTreeSet::from([self.me()]);
        let (mut order, mut suspects, mut dead) = (Vec::new(), Vec::new(), Vec::new());
        for mut group in [hinted, wanted, everyone] {
            // Of equals not always the same one, or all nodes would ask the first.
            let draw = usize::try_from(self.0.parts.env.seed.draw_u64() % 64).expect("below 64");
            let turn = draw % group.len().max(1);
            group.rotate_left(turn);
            group.sort_by_key(|node| self.0.in_flight.load(*node));
            nearest_first(&topology, self.me(), &mut group);
            for node in group {
                if topology.node(node).is_none() || !seen.insert(node) {
                    continue;
                }
                if sight.is_dead(node) {
                    dead.push(node);
                } else if sight.is_live(node) && !self.0.in_flight.is_accused(digest, node) {
                    order.push(node);
                } else {
                    suspects.push(node);
                }
            }
        }
        order.append(&mut suspects);
        order.append(&mut dead);
        order
    }

    /// Takes note of the holders that failed during a read.
    pub(super) fn note_failures(&self, source: &mut BlobSource) {
        for (node, error) in source.take_failures() {
            self.note(node, &error);
        }
    }

    /// Tells nodes that what they sent is not the blob, and asks them last for a while.
    pub(super) fn accuse(&self, digest: &Digest, size: u64, senders: &[NodeId]) {
        for node in senders.iter().copied() {
            tracing::error!(peer = %node, %digest, "peer sent bytes that are not the blob");
            self.0.in_flight.accuse(digest, node);
            let (client, digest) = (self.local().client.clone(), digest.clone());
            let tell = async move { drop(client.report_damage(node, &digest, size).await) };
            self.spawn("report damage", Box::pin(tell));
        }
    }

    /// Sets this node's copy aside if it is damaged or cannot be read.
    pub(super) async fn set_aside(&self, digest: &Digest, why: &crate::blob::Error) {
        if !matches!(why, crate::blob::Error::BlockDamaged { .. }) {
            return;
        }
        if let Err(error) = self.local().blobs.quarantine(digest).await {
            tracing::warn!(%digest, %error, "damaged copy could not be set aside");
        }
    }
}

impl Replicas {
    /// Whether a node is taken for dead.
    #[must_use]
    pub fn is_dead(&self, node: NodeId) -> bool {
        self.0.parts.sight.is_dead(node)
    }

    /// Asks one node, this one too, which of some blobs it has, and whether a "no" is certain; `None` if it did not answer.
    ///
    /// At most [`crate::transfer::PRESENCE_MAX`] blobs.
    pub async fn presence(&self, node: NodeId, blobs: &[(Digest, u64)]) -> Option<(Vec<bool>, bool)> {
        if node != self.me() {
            if self.0.parts.sight.is_dead(node) {
                return None;
            }
            let presence = self.local().client.has_blobs(node, blobs, false).await.ok()?;
            return Some((presence.present, presence.complete));
        }
        let store = &self.local().blobs;
        Some((store.has_each(blobs).await.ok()?, store.usage().index_complete))
    }

    /// Counts, for each of at most [`crate::transfer::PRESENCE_MAX`] blobs, the other nodes in reach that say they have it.
    pub async fn copies_elsewhere(&self, blobs: &[(Digest, u64)]) -> Vec<u8> {
        let mut copies = vec![0u8; blobs.len()];
        if blobs.is_empty() {
            return copies;
        }
        let topology = self.topology();
        let live = |node: &NodeId| *node != self.me() && self.0.parts.sight.is_live(*node);
        let others: Vec<NodeId> = topology.nodes.keys().copied().filter(live).collect();
        let ask = |node| self.presence(node, blobs);
        let mut asked = futures::stream::iter(others.into_iter().map(ask)).buffer_unordered(QUESTIONS_MAX);
        while let Some(answer) = asked.next().await {
            let Some((present, _)) = answer else { continue };
            for (copies, present) in copies.iter_mut().zip(present) {
                *copies = copies.saturating_add(u8::from(present));
            }
        }
        copies
    }

    /// Asks another node which of at most [`crate::transfer::PRESENCE_MAX`] blobs it holds verified and keeps, by the
    /// topology of that log index (P22); `None` if it is out of reach.
    pub async fn confirm_copies(
        &self,
        node: NodeId,
        blobs: &[(Digest, u64)],
        topology_index: u64,
    ) -> Option<Vec<bool>> {
        if !self.0.parts.sight.is_live(node) {
            return None;
        }
        match self.local().client.confirm_copies(node, blobs, topology_index).await {
            Ok(held) => Some(held),
            Err(error) => {
                self.note(node, &error);
                None
            }
        }
    }
}
