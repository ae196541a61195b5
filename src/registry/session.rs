//! Upload sessions: finding one, and what may be decided about it without asking anybody (P24–P28).

use crate::auth::Principal;
use crate::blob::ExtentPart;
use crate::meta::command::HeldExtent;
use crate::meta::{State, Upload};
use crate::oci::{RepositoryName, UploadId};
use crate::replica::HeldPart;

use super::error::CHUNK_BYTES_MIN;
use super::{Caller, Error, Registry, Result};

/// A session of fewer extents is never asked for larger chunks.
const EXTENTS_FREE: usize = 1024;

/// The average below which a session of many extents takes no more: a million chunks of one byte are no upload.
const EXTENT_BYTES_AVERAGE_MIN: u64 = 64 << 10;

impl Registry {
    /// Returns a session of this caller and repository, open or closed.
    ///
    /// A node that has applied nothing of it yet asks for a read index, and so does one whose view is not at `offset`,
    /// where the client believes the session ends: the client may have heard so from another node. A session at that
    /// length is the session: bytes are only ever appended. Somebody else's session looks like none, and takes as long.
    ///
    /// # Errors
    ///
    /// [`Error::UploadUnknown`], [`Error::NoQuorum`].
    pub(super) async fn session(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        id: UploadId,
        offset: Option<u64>,
    ) -> Result<Upload> {
        let here = self.0.meta.view_local();
        let current = |upload: &&Upload| upload.closed.is_none() && offset == Some(upload.length);
        if here.fresh
            && let Some(upload) = theirs(&here.state, &caller.principal, repository, id).filter(current)
        {
            return Ok(upload.clone());
        }
        let view = self.fresh().await?;
        theirs(&view.state, &caller.principal, repository, id).cloned().ok_or(Error::UploadUnknown)
    }

    /// Returns a session as it is known here, be it long out of date.
    pub(super) fn session_here(&self, caller: &Caller, repository: &RepositoryName, id: UploadId) -> Option<Upload> {
        theirs(&self.0.meta.local(), &caller.principal, repository, id).cloned()
    }
}

/// Finds a session only for the repository and the principal that opened it (I10).
fn theirs<'a>(
    state: &'a State,
    principal: &Principal,
    repository: &RepositoryName,
    id: UploadId,
) -> Option<&'a Upload> {
    state
        .upload(repository, id)
        .filter(|upload| upload.repository == *repository && *upload.principal == *principal.as_str())
}

/// Says whether a chunk may begin at `offset` and go on for `length` bytes, as far as the client said either.
///
/// # Errors
///
/// - [`Error::UploadUnknown`] if the session is closed.
/// - [`Error::RangeInvalid`] with the true length if the chunk begins elsewhere or ends beyond any blob.
/// - [`Error::ChunkTooSmall`] if the session is made of a great many tiny extents.
pub(super) fn check_chunk(session: &Upload, offset: Option<u64>, length: Option<u64>) -> Result<()> {
    if session.closed.is_some() {
        return Err(Error::UploadUnknown);
    }
    let length_now = session.length;
    if offset.is_some_and(|offset| offset != length_now) || length_now.checked_add(length.unwrap_or(0)).is_none() {
        return Err(Error::RangeInvalid { length: length_now });
    }
    let extents = session.extents.len();
    if extents >= EXTENTS_FREE && length_now / extents as u64 <= EXTENT_BYTES_AVERAGE_MIN {
        return Err(Error::ChunkTooSmall { min: CHUNK_BYTES_MIN });
    }
    Ok(())
}

/// Says whether a body that ended has the length it promised; a cut body may be shorter, none may be longer.
///
/// # Errors
///
/// [`Error::SizeInvalid`].
pub(super) fn check_length(promised: Option<u64>, received: u64, complete: bool) -> Result<()> {
    match promised {
        Some(expected) if received > expected || (complete && received < expected) => {
            Err(Error::SizeInvalid { expected, actual: received })
        }
        _ => Ok(()),
    }
}

/// The form in which `replica` takes an extent.
pub(super) fn part(extent: &HeldExtent) -> HeldPart {
    let HeldExtent { id, offset, length, ref holders } = *extent;
    HeldPart { part: ExtentPart { id, offset, length }, holders: holders.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::command::LogTime;
    use crate::oci::{Algorithm, Digest, ExtentId, HashState};
    use crate::topology::NodeId;

    fn session(extents: usize, extent_bytes: u64) -> Upload {
        let extent = |n: usize| HeldExtent {
            id: ExtentId::from_random(n as u128),
            offset: n as u64 * extent_bytes,
            length: extent_bytes,
            holders: vec![NodeId(1)],
        };
        Upload {
            repository: "a/b".parse().unwrap(),
            algorithm: Algorithm::Sha256,
            hash_state: HashState::initial(Algorithm::Sha256),
            length: extents as u64 * extent_bytes,
            extents: (0..extents).map(extent).collect(),
            holders: vec![NodeId(1), NodeId(2)],
            principal: "".into(),
            ttl_ms: 1000,
            expires: LogTime(1000),
            closed: None,
        }
    }

    #[test]
    fn a_chunk_begins_where_the_session_ends() {
        let session = session(2, 50);
        assert!(check_chunk(&session, None, None).is_ok());
        assert!(check_chunk(&session, Some(100), Some(1)).is_ok());
        for offset in [0, 99, 101, u64::MAX] {
            let refused = check_chunk(&session, Some(offset), None);
            assert!(matches!(refused, Err(Error::RangeInvalid { length: 100 })), "{offset}");
        }
        assert!(matches!(check_chunk(&session, None, Some(u64::MAX)), Err(Error::RangeInvalid { length: 100 })));
    }

    #[test]
    fn a_closed_session_takes_no_chunk() {
        let mut session = session(1, 10);
        session.closed = Some(Digest::of(Algorithm::Sha256, b""));
        assert!(matches!(check_chunk(&session, Some(10), None), Err(Error::UploadUnknown)));
    }

    #[test]
    fn a_session_of_many_tiny_extents_takes_no_more() {
        assert!(check_chunk(&session(EXTENTS_FREE - 1, 1), None, None).is_ok());
        assert!(check_chunk(&session(EXTENTS_FREE, 1 << 20), None, None).is_ok());
        assert!(matches!(check_chunk(&session(EXTENTS_FREE, 1), None, None), Err(Error::ChunkTooSmall { .. })));
    }

    #[test]
    fn a_body_is_as_long_as_it_promised_or_was_cut() {
        assert!(check_length(None, 7, true).is_ok());
        assert!(check_length(Some(7), 7, true).is_ok());
        assert!(check_length(Some(7), 3, false).is_ok());
        for (received, complete) in [(3, true), (8, true), (8, false)] {
            assert!(matches!(
                check_length(Some(7), received, complete),
                Err(Error::SizeInvalid { expected: 7, actual }) if actual == received
            ));
        }
    }
}
