//! Between the messages of `transfer.proto` and the types of this node.

use bytes::Bytes;

use crate::blob::{ExtentPart, StoredExtent};
use crate::oci::{Algorithm, Digest, ExtentId, HashState, Hasher};
use crate::rpc::proto;
use crate::topology::NodeId;

use super::{EXTENTS_MAX, FRAME_BYTES_MAX, HeldPart, PRESENCE_MAX};

/// The version of the hash state's encoding.
const HASH_STATE_VERSION: u8 = 1;

/// Says which part of a message a peer got wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} is malformed")]
pub(super) struct Malformed(pub(super) &'static str);

impl From<Malformed> for tonic::Status {
    fn from(malformed: Malformed) -> Self {
        Self::invalid_argument(malformed.to_string())
    }
}

pub(super) fn digest_to_wire(digest: &Digest) -> proto::Digest {
    proto::Digest { algorithm: digest.algorithm().as_str().to_owned(), hash: Bytes::copy_from_slice(digest.hash()) }
}

pub(super) fn digest_from_wire(digest: Option<proto::Digest>) -> Result<Digest, Malformed> {
    let digest = digest.ok_or(Malformed("digest"))?;
    let algorithm: Algorithm = digest.algorithm.parse().map_err(|_| Malformed("digest"))?;
    Digest::from_hash(algorithm, &digest.hash).ok_or(Malformed("digest"))
}

pub(super) fn sized_to_wire(blobs: &[(Digest, u64)]) -> Vec<proto::SizedDigest> {
    let wire = |(digest, size): &(Digest, u64)| (Some(digest_to_wire(digest)), *size);
    blobs.iter().map(wire).map(|(digest, size)| proto::SizedDigest { digest, size }).collect()
}

/// Reads at most [`PRESENCE_MAX`] digests with their sizes.
pub(super) fn sized_from_wire(blobs: Vec<proto::SizedDigest>) -> Result<Vec<(Digest, u64)>, Malformed> {
    if blobs.len() > PRESENCE_MAX {
        return Err(Malformed("list of blobs"));
    }
    blobs.into_iter().map(|blob| Ok((digest_from_wire(blob.digest)?, blob.size))).collect()
}

pub(super) fn id_to_wire(id: ExtentId) -> Bytes {
    Bytes::copy_from_slice(id.as_bytes())
}

pub(super) fn id_from_wire(id: &[u8]) -> Result<ExtentId, Malformed> {
    ExtentId::from_slice(id).ok_or(Malformed("extent id"))
}

pub(super) fn ids_from_wire(ids: &[Bytes]) -> Result<Vec<ExtentId>, Malformed> {
    if ids.len() > EXTENTS_MAX {
        return Err(Malformed("list of extents"));
    }
    ids.iter().map(|id| id_from_wire(id)).collect()
}

pub(super) fn state_to_wire(state: &HashState) -> Bytes {
    postcard::to_extend(state, vec![HASH_STATE_VERSION]).expect("a hash state has no unserialisable part").into()
}

pub(super) fn state_from_wire(bytes: &[u8]) -> Result<HashState, Malformed> {
    let malformed = Malformed("hash state");
    let (&HASH_STATE_VERSION, rest) = bytes.split_first().ok_or(malformed)? else { return Err(malformed) };
    let state: HashState = postcard::from_bytes(rest).map_err(|_| malformed)?;
    // A state that cannot be resumed would only fail later, with bytes already on their way.
    Hasher::resume(&state).map_err(|_| malformed)?;
    Ok(state)
}

pub(super) fn stored_to_wire(stored: &StoredExtent) -> proto::ExtentStored {
    proto::ExtentStored {
        id: id_to_wire(stored.id),
        length: stored.length,
        hash_state: state_to_wire(&stored.hash_state),
    }
}

pub(super) fn stored_from_wire(stored: &proto::ExtentStored) -> Result<StoredExtent, Malformed> {
    Ok(StoredExtent {
        id: id_from_wire(&stored.id)?,
        length: stored.length,
        hash_state: state_from_wire(&stored.hash_state)?,
    })
}

pub(super) fn frame_to_wire(data: Bytes) -> proto::Frame {
    proto::Frame { crc32c: crc32c::crc32c(&data), data }
}

/// Returns the bytes of a frame if they match their checksum.
pub(super) fn frame_from_wire(frame: proto::Frame) -> Result<Bytes, Malformed> {
    if frame.data.is_empty() || frame.data.len() > FRAME_BYTES_MAX || crc32c::crc32c(&frame.data) != frame.crc32c {
        return Err(Malformed("frame"));
    }
    Ok(frame.data)
}

pub(super) fn part_to_wire(held: &HeldPart) -> proto::HeldExtentPart {
    proto::HeldExtentPart {
        id: id_to_wire(held.part.id),
        offset: held.part.offset,
        length: held.part.length,
        holders: held.holders.iter().map(|node| node.0).collect(),
    }
}

/// Reads the parts of a blob; they must follow each other without a gap and add up to `size`.
pub(super) fn parts_from_wire(parts: Vec<proto::HeldExtentPart>, size: u64) -> Result<Vec<HeldPart>, Malformed> {
    let malformed = Malformed("list of extents");
    if parts.len() > EXTENTS_MAX {
        return Err(malformed);
    }
    let mut position = 0u64;
    let mut held = Vec::with_capacity(parts.len());
    for part in parts {
        if part.offset != position || part.length == 0 {
            return Err(malformed);
        }
        position = position.checked_add(part.length).ok_or(malformed)?;
        held.push(HeldPart {
            part: ExtentPart { id: id_from_wire(&part.id)?, offset: part.offset, length: part.length },
            holders: part.holders.into_iter().map(NodeId).collect(),
        });
    }
    if position == size { Ok(held) } else { Err(malformed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_state_comes_back_and_a_foreign_version_is_refused() {
        let mut hasher = Hasher::new(Algorithm::Sha512);
        hasher.update(b"some bytes");
        let wire = state_to_wire(&hasher.state());
        assert_eq!(state_from_wire(&wire), Ok(hasher.state()));
        let mut foreign = wire.to_vec();
        foreign[0] = 2;
        assert!(state_from_wire(&foreign).is_err());
        assert!(state_from_wire(&wire[..wire.len() - 1]).is_err());
        assert!(state_from_wire(&[]).is_err());
    }

    #[test]
    fn a_frame_with_a_flipped_bit_is_refused() {
        let mut frame = frame_to_wire(Bytes::from_static(b"bytes"));
        assert!(frame_from_wire(frame.clone()).is_ok());
        frame.data = Bytes::from_static(b"bytez");
        assert!(frame_from_wire(frame).is_err());
    }

    #[test]
    fn parts_with_a_gap_an_overlap_or_another_sum_are_refused() {
        let part = |offset, length| proto::HeldExtentPart {
            id: Bytes::from_static(&[7; 16]),
            offset,
            length,
            holders: vec![1],
        };
        let check = |parts: Vec<_>, size, good: bool| assert_eq!(parts_from_wire(parts, size).is_ok(), good);
        check(vec![], 0, true);
        check(vec![part(0, 5), part(5, 5)], 10, true);
        check(vec![part(0, 5), part(6, 5)], 11, false);
        check(vec![part(0, 5), part(4, 5)], 9, false);
        check(vec![part(0, 5)], 6, false);
        check(vec![part(0, u64::MAX), part(u64::MAX, 5)], 4, false);
    }
}
