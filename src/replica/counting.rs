//! Which copies count towards the answer to a push: those on nodes that stay, and that the holder still stands by.

use std::time::Duration;

use futures::future::join_all;
use tokio::time::Instant;

use crate::blob::StoredExtent;
use crate::oci::Digest;
use crate::topology::{NodeId, NodeState};

use super::fan_out::FanOut;
use super::locate::Then;
use super::{Error, Replicas};

/// A holder's word is asked for again once this part of the period is over for which it pins what it said it holds.
const PIN_PARTS: u32 = 12;

impl Replicas {
    /// Counts the nodes whose copies count towards `write_copies` now: copies on nodes that are out or leaving do not,
    /// wherever they came from (P14).
    #[must_use]
    pub fn counted(&self, nodes: &[NodeId]) -> usize {
        nodes.iter().filter(|node| self.counts(**node)).count()
    }

    /// Adds to the reason why there are too few copies which nodes' copies would not have counted.
    #[must_use]
    pub fn with_uncounted(&self, reason: String) -> String {
        let topology = self.topology();
        let away: Vec<String> = topology
            .nodes
            .values()
            .filter(|node| node.state != NodeState::In)
            .map(|node| node.id.to_string())
            .collect();
        if away.is_empty() {
            return reason;
        }
        format!("{reason}; copies on nodes that are out or leaving do not count: {}", away.join(", "))
    }

    /// Whether a copy on this node counts. This node itself counts while it is in no agreed topology yet.
    pub(super) fn counts(&self, node: NodeId) -> bool {
        match self.topology().node(node) {
            Some(record) => record.state == NodeState::In,
            None => node == self.me(),
        }
    }

    /// How many copies are needed beside the one here.
    pub(super) fn needed_elsewhere(&self) -> usize {
        self.write_copies() - usize::from(self.counts(self.me()))
    }

    /// Has only nodes count that stay.
    pub(super) fn counting<T: Send + 'static>(&self, fan_out: FanOut<T>) -> FanOut<T> {
        let this = self.clone();
        fan_out.counting(move |node| this.counts(node))
    }

    /// The error for too few copies, of which `made` count.
    pub(super) fn too_few_copies(&self, made: usize, reason: String) -> Error {
        Error::TooFewCopies { made, needed: self.write_copies(), reason: self.with_uncounted(reason) }
    }

    /// How long a holder's word is taken without asking again: well below the period of its pin, so that it lasts longer
    /// than any command lives (P21).
    pub(super) fn word_holds_for(&self) -> Duration {
        self.local().blobs.pin_period() / PIN_PARTS
    }

    /// Asks those that said long ago that they hold a blob once more, which pins it anew.
    pub(super) async fn renew_blob(&self, fan_out: &mut FanOut<()>, digest: &Digest, size: u64) {
        self.renew(fan_out, |node, ()| self.stands_by(node, digest, size)).await;
    }

    /// Asks those that stored an extent long ago once more, which pins it anew.
    pub(super) async fn renew_extent(&self, fan_out: &mut FanOut<StoredExtent>) {
        let ask = |node, stored: StoredExtent| async move {
            match self.local().client.extent_info(node, stored.id).await {
                Ok(found) => found.as_ref() == Some(&stored),
                Err(error) => {
                    self.note(node, &error);
                    false
                }
            }
        };
        self.renew(fan_out, ask).await;
    }

    /// Whether a node, this one too, says it holds the blob, and pins it.
    pub(super) async fn stands_by(&self, node: NodeId, digest: &Digest, size: u64) -> bool {
        if node == self.me() {
            return self.holds_here(digest, size, Then::Keep).await == Some(true);
        }
        match self.local().client.has_blobs(node, &[(digest.clone(), size)], true).await {
            Ok(presence) => presence.present.first() == Some(&true),
            Err(error) => {
                self.note(node, &error);
                false
            }
        }
    }

    async fn renew<T, F>(&self, fan_out: &mut FanOut<T>, ask: impl Fn(NodeId, T) -> F)
    where
        T: Clone + Send + 'static,
        F: Future<Output = bool>,
    {
        let old = fan_out.said_before(self.word_holds_for());
        if old.is_empty() {
            return;
        }
        let asked = Instant::now();
        let answers = old.into_iter().map(|(node, value)| {
            let answer = ask(node, value);
            async move { (node, answer.await) }
        });
        for (node, still) in join_all(answers).await {
            if !still {
                tracing::warn!(peer = %node, "node did not confirm the copy it had made");
            }
            fan_out.said_again(node, still, asked);
        }
    }
}
