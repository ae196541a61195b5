//! Records as bytes, and a state from records: what snapshots are written and read with.
//!
//! A record is one version byte, then postcard. How records are framed, checksummed and laid in files is the business of
//! the snapshot's writer.

use super::State;
use super::tables::Record;

/// The version byte of the records this binary writes.
pub const RECORD_VERSION: u8 = 1;

/// Says why bytes or records are not a state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// The record has a version this binary does not know.
    #[error("record version {version} is not known, this binary writes {RECORD_VERSION}")]
    Version {
        /// What the record says.
        version: u8,
    },
    /// The bytes are not one whole record of a known kind.
    #[error("record is malformed: {reason}")]
    Malformed {
        /// What the decoder says.
        reason: String,
    },
    /// A record of this kind contradicts those before it, or one is missing.
    #[error("record of kind {number} does not fit the records before it: {reason}")]
    Inconsistent {
        /// The kind, as `tables.rs` numbers it.
        number: u8,
        /// What does not fit.
        reason: &'static str,
    },
}

/// Builds a [`State`] from the records of a snapshot, in the order in which [`State::records`] gives them.
#[derive(Debug, Default)]
pub struct StateBuilder {
    state: State,
}

impl StateBuilder {
    /// Starts with nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a record.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Inconsistent`] if the record contradicts those before it; the builder is then of no use.
    pub fn push(&mut self, record: Record) -> Result<(), SnapshotError> {
        let _ = record;
        todo!()
    }

    /// Returns the state, complete with its derived tables.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Inconsistent`] if something is missing.
    pub fn finish(self) -> Result<State, SnapshotError> {
        Ok(self.state)
    }
}

/// Encodes a record: the version byte, then postcard.
#[must_use]
pub fn encode_record(record: &Record) -> Vec<u8> {
    postcard::to_extend(record, vec![RECORD_VERSION]).expect("a record of plain values always encodes")
}

/// Decodes one record, which must take all of `bytes`.
///
/// # Errors
///
/// - [`SnapshotError::Version`] if a newer binary wrote it.
/// - [`SnapshotError::Malformed`] if the bytes are no such record.
pub fn decode_record(bytes: &[u8]) -> Result<Record, SnapshotError> {
    let malformed = |reason: &str| SnapshotError::Malformed { reason: reason.to_owned() };
    let (&version, rest) = bytes.split_first().ok_or_else(|| malformed("empty"))?;
    if version != RECORD_VERSION {
        return Err(SnapshotError::Version { version });
    }
    match postcard::take_from_bytes(rest) {
        Ok((record, [])) => Ok(record),
        Ok(_) => Err(malformed("bytes after its end")),
        Err(error) => Err(malformed(&error.to_string())),
    }
}
