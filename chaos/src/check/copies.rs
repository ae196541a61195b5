//! Whether each content has its copies, where they should be (I8): by listing the data directories.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Result;
use rafthold::oci::Digest;

use super::orphans::blobs;

/// What one node's disk holds.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    pub(crate) zone: usize,
    held: BTreeSet<Digest>,
}

impl Disk {
    /// Lists a data directory.
    pub(crate) fn list(zone: usize, data_dir: &Path) -> Result<Self> {
        Ok(Self { zone, held: blobs(data_dir)? })
    }

    pub(crate) fn holds(&self, digest: &Digest) -> bool {
        self.held.contains(digest)
    }
}

/// Contents that are not where they should be.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) too_few: Vec<Digest>,
    pub(crate) too_many: Vec<Digest>,
    /// In fewer zones than their copies could be in.
    pub(crate) crowded: Vec<Digest>,
}

impl Found {
    pub(crate) fn is_clean(&self) -> bool {
        *self == Self::default()
    }
}

/// Counts the copies of `blobs`, of which there should be `copies` in as many zones as there are, and of `bodies`, which
/// belong on every disk.
pub(crate) fn find<'a>(
    disks: &[Disk],
    copies: usize,
    blobs: impl Iterator<Item = &'a Digest>,
    bodies: impl Iterator<Item = &'a Digest>,
) -> Found {
    let zones = disks.iter().map(|disk| disk.zone).collect::<BTreeSet<_>>().len();
    let mut found = Found::default();
    let mut wanted: BTreeMap<&Digest, usize> = blobs.map(|digest| (digest, copies.min(disks.len()))).collect();
    wanted.extend(bodies.map(|digest| (digest, disks.len())));
    for (digest, wanted) in wanted {
        let holders: Vec<&Disk> = disks.iter().filter(|disk| disk.holds(digest)).collect();
        let in_zones = holders.iter().map(|disk| disk.zone).collect::<BTreeSet<_>>().len();
        for (wrong, list) in [
            (holders.len() < wanted, &mut found.too_few),
            (holders.len() > wanted, &mut found.too_many),
            (in_zones < wanted.min(zones), &mut found.crowded),
        ] {
            if wrong {
                list.push(digest.clone());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use rafthold::oci::Algorithm;

    use super::*;

    fn digest(n: u8) -> Digest {
        Digest::of(Algorithm::Sha256, &[n])
    }

    fn disk(zone: usize, held: &[u8]) -> Disk {
        Disk { zone, held: held.iter().map(|n| digest(*n)).collect() }
    }

    #[test]
    fn too_few_too_many_and_crowded_copies_are_told_apart() {
        // 1 is right, 2 lacks a copy, 3 has one too many, both copies of 4 are in one zone; 9 is a body.
        let disks = [disk(1, &[1, 2, 3, 4, 9]), disk(1, &[3, 4, 9]), disk(2, &[1, 3, 9])];
        let blobs: Vec<Digest> = (1..=4).map(digest).collect();
        let found = find(&disks, 2, blobs.iter(), [digest(9)].iter());
        assert_eq!(found.too_few, [digest(2)]);
        assert_eq!(found.too_many, [digest(3)]);
        assert_eq!(found.crowded.iter().collect::<BTreeSet<_>>(), [&digest(2), &digest(4)].into_iter().collect());
        assert!(!found.is_clean());
        let lacking = find(&disks, 2, [].iter(), [digest(4)].iter());
        assert_eq!(lacking.too_few, [digest(4)]);
        assert!(find(&disks, 2, [digest(1)].iter(), [digest(9)].iter()).is_clean());
    }
}
