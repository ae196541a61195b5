//! Records framed by length and checksum.

/// The bytes before each record: length (u32, little endian), then CRC32C of the length and the record (u32).
pub const FRAME_HEADER_BYTES: usize = 8;

/// Says why bytes are not a whole, undamaged record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Fewer bytes than the header or the length demand.
    #[error("record is cut short")]
    Short,
    /// The checksum differs, or the length is beyond the caller's limit.
    #[error("record is damaged")]
    Damaged,
}

/// Appends `record` with its header to `out`.
///
/// # Panics
///
/// If the record is longer than `u32::MAX`; callers cap far below.
pub fn encode_frame(out: &mut Vec<u8>, record: &[u8]) {
    let length = u32::try_from(record.len()).expect("records are capped far below 4 GiB").to_le_bytes();
    out.extend_from_slice(&length);
    out.extend_from_slice(&checksum(length, record).to_le_bytes());
    out.extend_from_slice(record);
}

/// Returns the record at the start of `bytes` and the number of bytes its frame takes.
///
/// # Errors
///
/// - [`FrameError::Short`] if the frame goes on past the end of `bytes`.
/// - [`FrameError::Damaged`] if the checksum differs or the record is longer than `record_bytes_max`.
pub fn decode_frame(bytes: &[u8], record_bytes_max: usize) -> Result<(&[u8], usize), FrameError> {
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or(FrameError::Short)?;
    let (expected, rest) = rest.split_first_chunk::<4>().ok_or(FrameError::Short)?;
    let expected = u32::from_le_bytes(*expected);
    let record_bytes = u32::from_le_bytes(*length) as usize;
    if record_bytes > record_bytes_max {
        return Err(FrameError::Damaged);
    }
    let record = rest.get(..record_bytes).ok_or(FrameError::Short)?;
    if checksum(*length, record) == expected {
        Ok((record, FRAME_HEADER_BYTES + record_bytes))
    } else {
        Err(FrameError::Damaged)
    }
}

// The length is under the checksum too: eight zero bytes are not an empty record.
fn checksum(length: [u8; 4], record: &[u8]) -> u32 {
    !crc32c::crc32c_append(crc32c::crc32c(&length), record)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_and_any_flipped_bit_is_seen() {
        let mut bytes = Vec::new();
        encode_frame(&mut bytes, b"record");
        assert_eq!(decode_frame(&bytes, 64), Ok((&b"record"[..], bytes.len())));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_frame(&damaged, 64).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn preallocated_zeros_are_not_a_record() {
        assert_eq!(decode_frame(&[0; 64], 64), Err(FrameError::Damaged));
    }
}
