//! The hash of the agreed state: a sum, so that a change costs only the rows it touches (P8).
//!
//! Each row's hash is the first 128 bits of the SHA-256 of its snapshot record; the state's hash is their wrapping sum.
//! The order of changes does not show, and a removed row leaves no trace. It finds divergence between nodes that run the
//! same log; it is no proof against somebody who chooses rows.

use crate::oci::{Algorithm, Digest};

use super::snapshot_codec::encode_record;
use super::tables::Record;

/// The running sum over the rows of a state; while a snapshot is loaded it is left alone, as its reader adds up the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HashSum(Option<u128>);

impl Default for HashSum {
    fn default() -> Self {
        Self(Some(0))
    }
}

impl HashSum {
    /// A sum that somebody else keeps.
    pub(super) const fn kept_elsewhere() -> Self {
        Self(None)
    }

    /// Adds a row.
    pub(super) fn add(&mut self, record: &Record) {
        if let Some(sum) = &mut self.0 {
            *sum = sum.wrapping_add(hash(&encode_record(record)));
        }
    }

    /// Adds a row as its snapshot record has it.
    pub(super) fn add_encoded(&mut self, record: &[u8]) {
        if let Some(sum) = &mut self.0 {
            *sum = sum.wrapping_add(hash(record));
        }
    }

    /// Takes a row away that was added before.
    pub(super) fn subtract(&mut self, record: &Record) {
        if let Some(sum) = &mut self.0 {
            *sum = sum.wrapping_sub(hash(&encode_record(record)));
        }
    }

    /// Returns the sum.
    pub(super) fn value(self) -> u128 {
        self.0.expect("a state is complete before its hash is asked for")
    }
}

/// The hash of one row.
fn hash(record: &[u8]) -> u128 {
    let digest = Digest::of(Algorithm::Sha256, record);
    let half = digest.hash()[..16].try_into().expect("SHA-256 has 32 bytes");
    u128::from_be_bytes(half)
}
