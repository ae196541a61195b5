//! Durations as `"5s"` and sizes as `"64MiB"` in configuration files.

/// Durations: an integer with `ms`, `s`, `m`, `h` or `d`.
pub(super) mod duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

    /// Reads a duration; `None` if the text is not one.
    pub(crate) fn parse(text: &str) -> Option<Duration> {
        let (number, unit) = super::split(text)?;
        let (_, millis) = UNITS.iter().find(|(name, _)| *name == unit)?;
        number.checked_mul(*millis).map(Duration::from_millis)
    }

    /// Prints a duration in the largest unit that leaves no rest.
    pub(crate) fn print(duration: Duration) -> String {
        let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let (name, unit) = UNITS.iter().find(|(_, unit)| millis != 0 && millis % unit == 0).unwrap_or(&("s", 1000));
        format!("{}{name}", millis / unit)
    }

    pub(crate) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&print(*duration))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse(&text).ok_or_else(|| {
            serde::de::Error::custom(format!(
                "`{text}` is not a duration like \"500ms\", \"5s\", \"2m\", \"1h\" or \"7d\""
            ))
        })
    }
}

/// Sizes in bytes: an integer with `B`, `KiB`, `MiB`, `GiB` or `TiB`.
pub(super) mod size {
    use serde::{Deserialize, Deserializer, Serializer};

    const UNITS: [(&str, u64); 5] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

    /// Reads a size in bytes; `None` if the text is not one.
    pub(crate) fn parse(text: &str) -> Option<u64> {
        let (number, unit) = super::split(text)?;
        let (_, bytes) = UNITS.iter().find(|(name, _)| *name == unit)?;
        number.checked_mul(*bytes)
    }

    /// Prints a size in the largest unit that leaves no rest.
    pub(crate) fn print(bytes: u64) -> String {
        let (name, unit) =
            UNITS.iter().find(|(_, unit)| bytes != 0 && bytes.is_multiple_of(*unit)).unwrap_or(&("B", 1));
        format!("{}{name}", bytes / unit)
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
    pub(crate) fn serialize<S: Serializer>(bytes: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&print(*bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse(&text).ok_or_else(|| {
            serde::de::Error::custom(format!("`{text}` is not a size like \"512KiB\", \"64MiB\" or \"2GiB\""))
        })
    }
}

/// Splits `"64MiB"` into its number and its unit.
fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    Some((text[..end].parse().ok()?, text[end..].trim()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{duration, size};

    #[test]
    fn durations_read_and_print() {
        for (text, millis) in [("500ms", 500), ("5s", 5000), ("90s", 90_000), ("2m", 120_000), ("1h", 3_600_000)] {
            assert_eq!(duration::parse(text), Some(Duration::from_millis(millis)), "{text}");
            assert_eq!(duration::parse(&duration::print(Duration::from_millis(millis))), duration::parse(text));
        }
        for text in ["", "5", "s", "5 weeks", "-5s", "1.5s", "99999999999999999999s"] {
            assert_eq!(duration::parse(text), None, "{text}");
        }
        assert_eq!(duration::print(Duration::ZERO), "0s");
    }

    #[test]
    fn sizes_read_and_print() {
        for (text, bytes) in [("0B", 0), ("512KiB", 512 << 10), ("64MiB", 64 << 20), ("2GiB", 2 << 30)] {
            assert_eq!(size::parse(text), Some(bytes), "{text}");
            assert_eq!(size::print(bytes), text);
        }
        for text in ["", "64", "64MB", "MiB", "99999999TiB"] {
            assert_eq!(size::parse(text), None, "{text}");
        }
    }
}
