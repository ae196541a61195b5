//! The hash of the agreed state: a sum, so that a change costs only the rows it touches (P8).
//!
//! Each row's hash is the first 128 bits of the SHA-256 of its snapshot record; the state's hash is their wrapping sum.
//! The order of changes does not show, and a removed row leaves no trace. It finds divergence between nodes that run the
//! same log; it is no proof against somebody who chooses rows.

use crate::oci::{Algorithm, Digest};

use super::snapshot_codec::encode_record;
use super::tables::Record;

/// The running sum over the rows of a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct HashSum(u128);

impl HashSum {
    /// Adds a row.
    pub(super) fn add(&mut self, record: &Record) {
        self.0 = self.0.wrapping_add(record_hash(record));
    }

    /// Takes a row away that was added before.
    pub(super) fn subtract(&mut self, record: &Record) {
        self.0 = self.0.wrapping_sub(record_hash(record));
    }

    /// Returns the sum.
    pub(super) const fn value(self) -> u128 {
        self.0
    }
}

/// The hash of one row.
fn record_hash(record: &Record) -> u128 {
    let digest = Digest::of(Algorithm::Sha256, &encode_record(record));
    let half = digest.hash()[..16].try_into().expect("SHA-256 has 32 bytes");
    u128::from_be_bytes(half)
}
