//! The `Content-Range` of an upload's chunk.

use std::fmt;
use std::str::FromStr;

/// Says where in the blob a chunk lies: first and last byte, both inclusive.
///
/// Not the header of RFC 9110: no unit, no total, `^[0-9]+-[0-9]+$`.
///
/// ```
/// use rafthold::oci::ContentRange;
/// let range: ContentRange = "100-199".parse().unwrap();
/// assert_eq!((range.start(), range.length()), (100, 100));
/// assert!("bytes 0-9/10".parse::<ContentRange>().is_err());
/// ```
///
/// Spec: distribution-spec v1.1.1, "Pushing a blob in chunks".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentRange {
    start: u64,
    last: u64,
}

/// Says that a text is not `<first>-<last>` with `first <= last < 2^63`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("content range is not <first>-<last>")]
pub struct ParseContentRangeError;

impl ContentRange {
    /// Returns the offset of the first byte.
    #[must_use]
    pub const fn start(self) -> u64 {
        self.start
    }

    /// Returns the number of bytes, at least one.
    #[must_use]
    pub const fn length(self) -> u64 {
        self.last - self.start + 1
    }
}

impl FromStr for ContentRange {
    type Err = ParseContentRangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (start, last) = text.split_once('-').ok_or(ParseContentRangeError)?;
        let start = decimal(start).ok_or(ParseContentRangeError)?;
        let last = decimal(last).ok_or(ParseContentRangeError)?;
        // No file is longer than i64 says, and sums of offsets below it cannot wrap.
        if start > last || i64::try_from(last).is_err() {
            return Err(ParseContentRangeError);
        }
        Ok(Self { start, last })
    }
}

impl fmt::Display for ContentRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.last)
    }
}

/// Parses digits only: `u64::from_str` would take a sign.
pub(super) fn decimal(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_round_trip(start in 0..u64::MAX >> 1, length in 1..1_u64 << 40) {
            let last = (start + length - 1).min(u64::MAX >> 1);
            let text = format!("{start}-{last}");
            let range: ContentRange = text.parse().unwrap();
            prop_assert_eq!(range.to_string(), text);
            prop_assert_eq!(range.start() + range.length(), last + 1);
        }
    }

    #[test]
    fn anything_but_two_numbers_in_order_is_refused() {
        for text in [
            "",
            "-",
            "5-",
            "-5",
            "5",
            "5-3",
            "bytes 0-9/10",
            "bytes=0-9",
            "0-9/10",
            "0--1",
            "+0-9",
            "0-+9",
            " 0-9",
            "0-9 ",
            "0-18446744073709551615",
            "0-9223372036854775808",
            "99999999999999999999-1",
            "0-9-9",
            "a-b",
            "٠-٩",
        ] {
            assert!(text.parse::<ContentRange>().is_err(), "{text:?}");
        }
        assert!("0-9223372036854775807".parse::<ContentRange>().is_ok());
    }
}
