//! Records as bytes, and a state from records: what snapshots are written and read with.
//!
//! A record is one version byte, then postcard. How records are framed, checksummed and laid in files is the business of
//! the snapshot's writer.

use std::sync::Arc;

use super::plan::Plan;
use super::query::Upload;
use super::rows::LinkKind;
use super::state::State;
use super::state_hash::HashSum;
use super::tables::{OutcomeRow, Record};

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
    head_seen: bool,
}

impl StateBuilder {
    /// Starts with nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts with nothing, for a caller who adds up the hashes of the records meanwhile.
    pub(super) fn unhashed() -> Self {
        Self { state: State { sum: HashSum::kept_elsewhere(), ..State::default() }, head_seen: false }
    }

    /// Adds a record.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Inconsistent`] if the record contradicts those before it; the builder is then of no use.
    pub fn push(&mut self, record: Record) -> Result<(), SnapshotError> {
        let number = record.number();
        let fits = self.try_push(record);
        fits.map_err(|reason| SnapshotError::Inconsistent { number, reason })
    }

    /// Decodes a record and adds it.
    ///
    /// # Errors
    ///
    /// As [`decode_record`] and [`StateBuilder::push`].
    pub fn add(&mut self, record: &[u8]) -> Result<(), SnapshotError> {
        self.push(decode_record(record)?)
    }

    fn try_push(&mut self, record: Record) -> Result<(), &'static str> {
        let state = &mut self.state;
        match record {
            Record::Head(head) => {
                expect(!self.head_seen, "a second one")?;
                self.head_seen = true;
                state.head = head;
            }
            Record::Node(row) => {
                expect(self.head_seen && row.id().0 < state.head.next_node, "its id was never given out")?;
                expect(!state.nodes.contains(&row.id()), "a second one")?;
                state.put_node(row);
            }
            Record::Content(digest, row) => {
                expect(!state.contents.contains(&digest), "a second one")?;
                state.put_content(&digest, row);
            }
            Record::Repository(name, row) => {
                expect(!state.repositories.contains(&name), "a second one")?;
                state.put_repository(&name, row);
            }
            link @ (Record::Blob(..)
            | Record::Manifest(..)
            | Record::Lease(..)
            | Record::UploadEnd(..)
            | Record::Tag(..)
            | Record::TagEvent(..)) => self.try_push_link(link)?,
            Record::Upload(id, upload) => {
                expect(!state.uploads.contains(&id), "a second one")?;
                let mut upload = Arc::unwrap_or_clone(upload);
                upload.extents.clear();
                state.put_upload(id, upload);
            }
            Record::Extent(id, extent) => {
                let upload = state.uploads.get(&id).ok_or("its session is missing")?;
                expect(upload.closed.is_none(), "its session is closed")?;
                expect(extent_end(upload) == Some(extent.offset), "not where the last one ends")?;
                expect(!state.extents.contains(&extent.id), "a second one")?;
                state.put_extent(id, &extent);
            }
            Record::Outcome(id, row) => {
                expect(!state.outcomes.contains(&id), "a second one")?;
                state.put_outcome(id, OutcomeRow::clone(&row));
            }
            Record::Plan(plan) => {
                expect(*state.plan == Plan::default(), "a second one")?;
                expect(plan != Plan::default(), "it says nothing")?;
                expect(plan.nodes.keys().all(|node| state.nodes.contains(node)), "it names no node")?;
                state.put_plan(plan);
            }
            Record::Token(token, row) => {
                expect(!state.tokens.contains(&token), "a second one")?;
                state.put_token(token, row);
            }
            Record::Policy(policy) => {
                expect(state.policy.is_none(), "a second one")?;
                expect(policy.validate().is_ok(), "no such policy")?;
                state.put_policy(policy);
            }
        }
        Ok(())
    }

    /// Takes what lies in a repository.
    fn try_push_link(&mut self, record: Record) -> Result<(), &'static str> {
        let state = &mut self.state;
        match record {
            Record::Blob(name, digest, link) => {
                let repository = state.repositories.get(&name).ok_or("its repository is missing")?;
                expect(!repository.blobs.contains(&digest), "a second one")?;
                expect(state.recount_link(&digest, link.size, LinkKind::Blob), "no content of that size")?;
                state.put_counted_blob(&name, &digest, link);
            }
            Record::Manifest(name, digest, record) => {
                let repository = state.repositories.get(&name).ok_or("its repository is missing")?;
                expect(!repository.manifests.contains(&digest), "a second one")?;
                expect(state.recount_link(&digest, record.size, LinkKind::Manifest), "no content of that size")?;
                state.put_counted_manifest(&name, &digest, Arc::unwrap_or_clone(record));
            }
            Record::Lease(name, digest, lease) => {
                let repository = state.repositories.get(&name).ok_or("its repository is missing")?;
                expect(repository.manifests.contains(&digest), "its manifest is missing")?;
                expect(!repository.leases.contains(&digest), "a second one")?;
                state.put_lease(&name, &digest, lease);
            }
            Record::UploadEnd(name, end) => {
                let repository = state.repositories.get(&name).ok_or("its repository is missing")?;
                expect(repository.upload_end.is_none(), "a second one")?;
                state.put_upload_end(&name, end);
            }
            Record::Tag(name, tag, record) => {
                let repository = state.repositories.get(&name).ok_or("its repository is missing")?;
                expect(repository.manifests.contains(&record.digest), "its manifest is missing")?;
                expect(state.put_tag(&name, &tag, record).is_none(), "a second one")?;
            }
            Record::TagEvent(name, tag, event) => {
                let repository = state.repositories.get(&name).ok_or("its repository is missing")?;
                let last = repository.history.get(&tag).and_then(|events| events.last());
                expect(last.is_none_or(|last| last.index <= event.index), "out of order")?;
                state.push_history(&name, &tag, event);
            }
            other => unreachable!("{other:?} lies in no repository"),
        }
        Ok(())
    }

    /// Returns the state, complete with its derived tables; `sum` is that of all its records but the head.
    ///
    /// # Errors
    ///
    /// As [`StateBuilder::finish`].
    pub(super) fn finish_with(mut self, sum: HashSum) -> Result<State, SnapshotError> {
        self.state.sum = sum;
        self.finish()
    }

    /// Returns the state, complete with its derived tables.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Inconsistent`] if something is missing.
    pub fn finish(mut self) -> Result<State, SnapshotError> {
        let check = |fits, number, reason| {
            if fits { Ok(()) } else { Err(SnapshotError::Inconsistent { number, reason }) }
        };
        check(self.head_seen, 0, "missing")?;
        let linked = self.state.contents.iter().all(|(_, entry)| entry.blobs + entry.manifests > 0);
        check(linked, 2, "nothing links it")?;
        let mut uploads = self.state.uploads.iter().map(|(_, upload)| upload);
        let whole = uploads.all(|upload| upload.closed.is_some() || extent_end(upload) == Some(upload.length));
        check(whole, 8, "its extents are not its length")?;
        self.state.rebuild_topology();
        Ok(self.state)
    }
}

/// Where the listed extents of a session end; `None` if that is no number.
fn extent_end(upload: &Upload) -> Option<u64> {
    upload.extents.last().map_or(Some(0), |last| last.offset.checked_add(last.length))
}

fn expect(fits: bool, reason: &'static str) -> Result<(), &'static str> {
    if fits { Ok(()) } else { Err(reason) }
}

/// Encodes a record: the version byte, then postcard.
///
/// # Panics
///
/// Never: a record is of plain values, which postcard always encodes.
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
