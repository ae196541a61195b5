//! How many copies of a blob there should be, and in which regions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Region;

/// The agreed number of copies of each blob; part of the topology, so that placement is the same on every node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Copies wanted of each blob in all.
    pub copies: u32,
    /// Copies wanted in each named region at least; what they leave of `copies` goes wherever it spreads best.
    pub regions: BTreeMap<Region, u32>,
}

/// Says why a policy makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// No copies, or more than anybody needs.
    #[error("copies must be from 1 to {COPIES_MAX}, in each region and in all; this asks for {copies}")]
    Copies {
        /// What was asked for.
        copies: u32,
    },
}

/// The most copies of one blob.
const COPIES_MAX: u32 = 16;

impl Policy {
    /// Wants `copies` of each blob, in whatever regions.
    #[must_use]
    pub const fn of_copies(copies: u32) -> Self {
        Self { copies, regions: BTreeMap::new() }
    }

    /// Returns how many copies of each blob there are where enough nodes are.
    #[must_use]
    pub fn total(&self) -> u32 {
        let regional = self.regions.values().fold(0, |sum: u32, copies| sum.saturating_add(*copies));
        self.copies.max(regional)
    }

    /// Checks the numbers; regions need not have a node yet.
    ///
    /// # Errors
    ///
    /// See [`PolicyError`].
    pub fn validate(&self) -> Result<(), PolicyError> {
        let counts = self.regions.values().chain([&self.copies]);
        match counts.copied().chain([self.total()]).find(|copies| !(1..=COPIES_MAX).contains(copies)) {
            Some(copies) => Err(PolicyError::Copies { copies }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_of_all_and_of_the_regions_together_counts() {
        let region = |name: &str, copies| (Region(name.to_owned()), copies);
        let policy = |copies, regions: &[(Region, u32)]| Policy { copies, regions: regions.iter().cloned().collect() };
        assert_eq!(policy(3, &[]).total(), 3);
        assert_eq!(policy(3, &[region("eu", 2)]).total(), 3);
        assert_eq!(policy(3, &[region("eu", 2), region("us", 2)]).total(), 4);
        assert_eq!(policy(3, &[region("eu", 2), region("us", 2)]).validate(), Ok(()));
        for bad in [policy(0, &[]), policy(17, &[]), policy(3, &[region("eu", 0)])] {
            assert!(bad.validate().is_err(), "{bad:?}");
        }
        let many = policy(1, &[region("eu", 9), region("us", u32::MAX)]);
        assert!(many.validate().is_err());
        assert_eq!(policy(1, &[region("eu", 9), region("us", 9)]).validate(), Err(PolicyError::Copies { copies: 18 }));
    }
}
