//! What this node gained lately, and what of it each peer was told.

use std::collections::{BTreeMap, VecDeque};

use crate::oci::Digest;
use crate::topology::NodeId;

/// Announcements kept for peers that were not told yet; older ones are lost, which costs a peer a question later.
const KEPT_MAX: usize = 8192;
/// Announcements in one beat.
pub(super) const BATCH_MAX: usize = 256;

/// A bounded run of announcements, numbered from the first on.
#[derive(Debug, Default)]
pub(super) struct Journal {
    first: u64,
    kept: VecDeque<Digest>,
    told: BTreeMap<NodeId, u64>,
}

impl Journal {
    pub(super) fn announce(&mut self, digest: &Digest) {
        if self.kept.len() == KEPT_MAX {
            self.kept.pop_front();
            self.first += 1;
        }
        self.kept.push_back(digest.clone());
    }

    /// Returns what `peer` should be told next, and the number to confirm when it has answered.
    pub(super) fn batch(&self, peer: NodeId) -> (Vec<Digest>, u64) {
        let from = self.told.get(&peer).copied().unwrap_or(self.first).max(self.first);
        let skip = usize::try_from(from - self.first).expect("at most what is kept");
        let batch: Vec<_> = self.kept.iter().skip(skip).take(BATCH_MAX).cloned().collect();
        let next = from + batch.len() as u64;
        (batch, next)
    }

    /// Notes that `peer` knows everything below `next`; says whether there is more for it.
    pub(super) fn confirm(&mut self, peer: NodeId, next: u64) -> bool {
        self.told.insert(peer, next);
        next < self.first + self.kept.len() as u64
    }

    /// Forgets what a peer was told: it was restarted and its memory is empty.
    pub(super) fn forget(&mut self, peer: NodeId) {
        self.told.remove(&peer);
    }

    pub(super) fn keep_only(&mut self, nodes: &std::collections::BTreeSet<NodeId>) {
        self.told.retain(|node, _| nodes.contains(node));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    fn digest(n: usize) -> Digest {
        Digest::of(Algorithm::Sha256, &n.to_le_bytes())
    }

    #[test]
    fn each_peer_is_told_everything_once_and_again_after_its_restart() {
        let mut journal = Journal::default();
        (0..BATCH_MAX + 1).for_each(|n| journal.announce(&digest(n)));
        let (first, next) = journal.batch(NodeId(1));
        assert_eq!(first.len(), BATCH_MAX);
        assert_eq!(journal.batch(NodeId(1)).0.len(), BATCH_MAX, "an unconfirmed batch is told again");
        assert!(journal.confirm(NodeId(1), next));
        let (rest, next) = journal.batch(NodeId(1));
        assert_eq!(rest, [digest(BATCH_MAX)]);
        assert!(!journal.confirm(NodeId(1), next));
        assert!(journal.batch(NodeId(1)).0.is_empty());
        journal.forget(NodeId(1));
        assert_eq!(journal.batch(NodeId(1)).0.len(), BATCH_MAX);
    }

    #[test]
    fn what_a_silent_peer_missed_is_bounded() {
        let mut journal = Journal::default();
        journal.announce(&digest(0));
        let (_, next) = journal.batch(NodeId(1));
        journal.confirm(NodeId(1), next);
        (1..KEPT_MAX + 100).for_each(|n| journal.announce(&digest(n)));
        assert_eq!(journal.batch(NodeId(1)).0[0], digest(100));
        assert_eq!(journal.batch(NodeId(2)).0[0], digest(100));
    }
}
