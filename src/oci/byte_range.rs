//! The `Range` of a download.

use super::content_range::decimal;

/// Bytes of a blob: `start` inclusive, `end` exclusive, never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteRange {
    /// Offset of the first byte.
    pub start: u64,
    /// Offset behind the last byte.
    pub end: u64,
}

impl ByteRange {
    /// Returns the number of bytes, at least one.
    #[must_use]
    pub const fn length(self) -> u64 {
        self.end - self.start
    }
}

/// What a `Range` header asks of a blob of known size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ByteRanges {
    /// Everything: the header is of a unit that this registry does not know, and RFC 9110 says to ignore it.
    Whole,
    /// One run of bytes: 206.
    One(ByteRange),
    /// Two to sixteen runs that do not overlap, in the order asked for: 206 as `multipart/byteranges`.
    Several(Vec<ByteRange>),
}

/// Says why a `Range` header cannot be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ByteRangeError {
    /// Not a list of ranges, too many of them, or overlapping ones: 400.
    #[error("range is malformed, has more than {max} parts, or parts that overlap", max = ByteRanges::PARTS_MAX)]
    Malformed,
    /// No byte of the blob lies in it: 416.
    #[error("range lies outside of the blob")]
    NotSatisfiable,
}

impl ByteRanges {
    /// The most ranges one request may ask for.
    pub const PARTS_MAX: usize = 16;

    /// Parses a header's text against a blob of `size` bytes.
    ///
    /// `first-last` is cut to the end of the blob, `first-` runs to it, `-n` is the last `n` bytes. A range whose last byte
    /// is before its first is not satisfiable rather than ignored: a client that asks for a part must never be sent the whole.
    ///
    /// # Errors
    ///
    /// - [`ByteRangeError::Malformed`] if the text is not a list of ranges, or a list that costs more than it is worth.
    /// - [`ByteRangeError::NotSatisfiable`] if none of the ranges has a byte in the blob.
    ///
    /// Spec: RFC 9110 section 14.
    pub fn parse(header: &str, size: u64) -> Result<Self, ByteRangeError> {
        let Some((unit, list)) = header.split_once('=') else { return Err(ByteRangeError::Malformed) };
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return Ok(Self::Whole);
        }
        let mut ranges = Vec::new();
        for (index, part) in list.split(',').enumerate() {
            if index >= Self::PARTS_MAX {
                return Err(ByteRangeError::Malformed);
            }
            ranges.extend(parse_part(part.trim_matches([' ', '\t']), size)?);
        }
        let mut sorted = ranges.clone();
        sorted.sort_by_key(|range| range.start);
        if sorted.windows(2).any(|pair| pair[0].end > pair[1].start) {
            return Err(ByteRangeError::Malformed);
        }
        match ranges.as_slice() {
            [] => Err(ByteRangeError::NotSatisfiable),
            [range] => Ok(Self::One(*range)),
            _ => Ok(Self::Several(ranges)),
        }
    }
}

/// `None`: well formed, but without a byte in the blob.
fn parse_part(part: &str, size: u64) -> Result<Option<ByteRange>, ByteRangeError> {
    let (first, last) = part.split_once('-').ok_or(ByteRangeError::Malformed)?;
    let range = match (first, last) {
        ("", "") => return Err(ByteRangeError::Malformed),
        ("", suffix) => {
            let length = number(suffix)?;
            ByteRange { start: size.saturating_sub(length), end: size }
        }
        (first, "") => ByteRange { start: number(first)?, end: size },
        (first, last) => ByteRange { start: number(first)?, end: number(last)?.saturating_add(1).min(size) },
    };
    Ok((range.start < range.end).then_some(range))
}

/// A number too large for `u64` lies behind the end of every blob.
fn number(text: &str) -> Result<u64, ByteRangeError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(ByteRangeError::Malformed);
    }
    Ok(decimal(text).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: u64 = 2048;

    fn one(start: u64, end: u64) -> Result<ByteRanges, ByteRangeError> {
        Ok(ByteRanges::One(ByteRange { start, end }))
    }

    fn several(ranges: &[(u64, u64)]) -> Result<ByteRanges, ByteRangeError> {
        Ok(ByteRanges::Several(ranges.iter().map(|&(start, end)| ByteRange { start, end }).collect()))
    }

    #[track_caller]
    fn check(header: &str, expected: Result<ByteRanges, ByteRangeError>) {
        assert_eq!(ByteRanges::parse(header, SIZE), expected, "{header}");
    }

    #[test]
    fn each_form_of_range_is_read_as_the_specification_says() {
        check("bytes=500-1499", one(500, 1500));
        check("bytes=500-", one(500, SIZE));
        check("bytes=-500", one(SIZE - 500, SIZE));
        check("bytes=-5000", one(0, SIZE));
        check("bytes=0-0", one(0, 1));
        check("bytes=2000-5000", one(2000, SIZE));
        check("bytes=0-99999999999999999999999", one(0, SIZE));
        check("Bytes = 1-2", one(1, 3));
        check("bytes=0-0, 5-6 ,-1", several(&[(0, 1), (5, 7), (SIZE - 1, SIZE)]));
        check("bytes=5-6,0-0", several(&[(5, 7), (0, 1)]));
        check("bytes=0-0,5000-6000", one(0, 1));
        check("items=0-5", Ok(ByteRanges::Whole));
    }

    #[test]
    fn ranges_without_a_byte_are_not_satisfiable() {
        for header in ["bytes=500-0", "bytes=5000-10000", "bytes=2048-", "bytes=-0", "bytes=5000-,-0"] {
            check(header, Err(ByteRangeError::NotSatisfiable));
        }
        assert_eq!(ByteRanges::parse("bytes=0-", 0), Err(ByteRangeError::NotSatisfiable));
        assert_eq!(ByteRanges::parse("bytes=-5", 0), Err(ByteRangeError::NotSatisfiable));
    }

    #[test]
    fn malformed_overlapping_or_too_many_ranges_are_refused() {
        let seventeen: Vec<String> = (0..17).map(|index| format!("{0}-{0}", index * 2)).collect();
        for header in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=1",
            "bytes=1-2-3",
            "bytes=0-5,",
            "bytes=+1-2",
            "bytes=0x1-2",
            "bytes=0-5,5-9",
            "bytes=0-,-1",
            "bytes=1 -2",
            &format!("bytes={}", seventeen.join(",")),
        ] {
            check(header, Err(ByteRangeError::Malformed));
        }
        assert!(matches!(
            ByteRanges::parse(&format!("bytes={}", seventeen[..16].join(",")), SIZE),
            Ok(ByteRanges::Several(ranges)) if ranges.len() == 16
        ));
    }

    proptest! {
        #[test]
        fn every_answer_lies_in_the_blob(header in "bytes=([0-9]{0,4}-[0-9]{0,4})(,[0-9]{0,4}-[0-9]{0,4}){0,3}", size in 0..5000_u64) {
            match ByteRanges::parse(&header, size) {
                Ok(ByteRanges::One(range)) => prop_assert!(range.start < range.end && range.end <= size),
                Ok(ByteRanges::Several(ranges)) => {
                    prop_assert!(ranges.iter().all(|range| range.start < range.end && range.end <= size));
                    prop_assert!(ranges.iter().map(|range| range.length()).sum::<u64>() <= size);
                }
                Ok(ByteRanges::Whole) => prop_assert!(false, "bytes are known"),
                Err(_) => {}
            }
        }
    }
}
