//! Which nodes said that they hold a blob: a bounded memory of hints.

use std::collections::{BTreeMap, HashMap};

use crate::oci::Digest;
use crate::topology::NodeId;

/// Holders remembered per digest; more help nobody.
const HOLDERS_MAX: usize = 8;

/// Remembers the holders of the digests last heard of or asked for.
#[derive(Debug)]
pub(super) struct Locations {
    digests_max: usize,
    by_digest: HashMap<Digest, Entry>,
    by_use: BTreeMap<u64, Digest>,
    uses: u64,
}

#[derive(Debug)]
struct Entry {
    last_use: u64,
    /// The latest news last.
    holders: Vec<NodeId>,
}

impl Locations {
    pub(super) fn new(digests_max: usize) -> Self {
        Self { digests_max, by_digest: HashMap::new(), by_use: BTreeMap::new(), uses: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.by_digest.len()
    }

    /// Remembers one holder, forgetting the digest unused for longest when there is no room.
    pub(super) fn learn(&mut self, digest: &Digest, node: NodeId) {
        self.touch(digest);
        let last_use = self.uses;
        let entry =
            self.by_digest.entry(digest.clone()).or_insert_with(|| Entry { last_use, holders: Vec::with_capacity(3) });
        entry.last_use = last_use;
        entry.holders.retain(|holder| *holder != node);
        if entry.holders.len() == HOLDERS_MAX {
            entry.holders.remove(0);
        }
        entry.holders.push(node);
        self.by_use.insert(last_use, digest.clone());
        while self.by_digest.len() > self.digests_max {
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            self.by_digest.remove(&oldest);
        }
    }

    /// Forgets one holder.
    pub(super) fn forget(&mut self, digest: &Digest, node: NodeId) {
        let Some(entry) = self.by_digest.get_mut(digest) else { return };
        entry.holders.retain(|holder| *holder != node);
        if entry.holders.is_empty() {
            self.by_use.remove(&entry.last_use);
            self.by_digest.remove(digest);
        }
    }

    /// Forgets holders that are no nodes any more.
    pub(super) fn keep_only(&mut self, nodes: &std::collections::BTreeSet<NodeId>) {
        let by_use = &mut self.by_use;
        self.by_digest.retain(|_, entry| {
            entry.holders.retain(|holder| nodes.contains(holder));
            if entry.holders.is_empty() {
                by_use.remove(&entry.last_use);
            }
            !entry.holders.is_empty()
        });
    }

    /// Returns the remembered holders, latest news first.
    pub(super) fn holders(&mut self, digest: &Digest) -> Vec<NodeId> {
        self.touch(digest);
        let last_use = self.uses;
        let Some(entry) = self.by_digest.get_mut(digest) else { return Vec::new() };
        entry.last_use = last_use;
        self.by_use.insert(last_use, digest.clone());
        entry.holders.iter().rev().copied().collect()
    }

    /// Takes the digest out of its place in the order of use and draws the next place.
    fn touch(&mut self, digest: &Digest) {
        self.uses += 1;
        if let Some(entry) = self.by_digest.get(digest) {
            self.by_use.remove(&entry.last_use);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;
    use proptest::prelude::*;

    fn digest(n: u8) -> Digest {
        Digest::of(Algorithm::Sha256, &[n])
    }

    #[test]
    fn the_latest_holder_comes_first_and_each_once() {
        let mut locations = Locations::new(10);
        for node in [1, 2, 1] {
            locations.learn(&digest(1), NodeId(node));
        }
        assert_eq!(locations.holders(&digest(1)), [NodeId(1), NodeId(2)]);
        locations.forget(&digest(1), NodeId(1));
        assert_eq!(locations.holders(&digest(1)), [NodeId(2)]);
        assert_eq!(locations.holders(&digest(2)), []);
    }

    #[test]
    fn what_is_asked_for_stays() {
        let mut locations = Locations::new(2);
        locations.learn(&digest(1), NodeId(1));
        locations.learn(&digest(2), NodeId(1));
        assert_eq!(locations.holders(&digest(1)).len(), 1);
        locations.learn(&digest(3), NodeId(1));
        assert_eq!(locations.holders(&digest(2)), []);
        assert_eq!(locations.holders(&digest(1)).len(), 1);
    }

    proptest! {
        #[test]
        fn memory_is_bounded_and_both_maps_agree(steps in proptest::collection::vec((0u8..12, 0u64..12, 0u8..4), 0..200)) {
            let mut locations = Locations::new(5);
            for (n, node, what) in steps {
                match what {
                    0 | 1 => locations.learn(&digest(n), NodeId(node)),
                    2 => locations.forget(&digest(n), NodeId(node)),
                    _ => drop(locations.holders(&digest(n))),
                }
                prop_assert!(locations.len() <= 5);
                prop_assert_eq!(locations.by_use.len(), locations.len());
                for (place, digest) in &locations.by_use {
                    prop_assert_eq!(locations.by_digest[digest].last_use, *place);
                    prop_assert!(locations.by_digest[digest].holders.len() <= HOLDERS_MAX);
                }
            }
        }
    }
}
