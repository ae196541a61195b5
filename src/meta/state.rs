//! The agreed state (skeleton: bodies are on their way).

use std::sync::Arc;

use crate::topology::{ClusterId, Topology};

use super::command::{Proposal, Response};
use super::tables::Record;

/// The highest feature level that this binary knows; a state above it must not be applied (P8).
pub const FEATURE_LEVEL_MAX: u32 = 1;

/// The agreed state at one log index; cloning shares structure.
#[derive(Debug, Clone, Default)]
pub struct State {}

impl State {
    /// Applies the command that lies at `index` of the log and returns its answer.
    pub fn apply(&mut self, index: u64, proposal: &Proposal) -> Response {
        let _ = (index, proposal);
        todo!()
    }

    /// Notes that a membership entry was applied at `index` (P18).
    pub fn set_membership(&mut self, index: u64) {
        let _ = index;
        todo!()
    }

    /// Returns the hash over all primary rows: equal states have equal hashes (P8). The empty state has a hash, too.
    #[must_use]
    pub fn hash(&self) -> u128 {
        todo!()
    }

    /// Computes the hash from the rows as they are now, for `fsck` and tests.
    #[must_use]
    pub fn recompute_hash(&self) -> u128 {
        todo!()
    }

    /// Returns the nodes as placement sees them.
    #[must_use]
    pub fn topology(&self) -> Arc<Topology> {
        todo!()
    }

    /// Returns the cluster, once formed.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        todo!()
    }

    /// Returns the agreed feature level; above [`FEATURE_LEVEL_MAX`] the node must stop.
    #[must_use]
    pub fn feature_level(&self) -> u32 {
        todo!()
    }

    /// Goes through every primary row, in the order in which a builder takes them.
    pub fn records(&self) -> impl Iterator<Item = Record> + '_ {
        std::iter::empty()
    }
}
