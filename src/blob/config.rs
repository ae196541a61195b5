//! Settings of this node's bytes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Settings of this node's bytes. Sizes read as `"64MiB"` or a number of bytes, durations as `"5s"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Free bytes below which uploads and copies from peers are refused; at most 5 % of the filesystem.
    #[serde(with = "size")]
    pub refuse_free_bytes: u64,
    /// Free bytes below which nothing is written at all, so that deletes and raft go on; at most 2 % of the filesystem.
    #[serde(with = "size")]
    pub reserve_free_bytes: u64,
    /// How many damaged copies are kept for a look; the newest stay.
    pub quarantine_files_max: usize,
    /// How many bytes of damaged copies are kept for a look; the newest stay.
    #[serde(with = "size")]
    pub quarantine_bytes_max: u64,
    /// How long after this node said "I hold it", and after its start, a file is not deleted (P21). Longer than any
    /// command can live.
    #[serde(with = "duration")]
    pub pin: Duration,
    /// Memory for whole bodies of manifests that are read often.
    #[serde(with = "size")]
    pub hot_bytes_max: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            refuse_free_bytes: 2 << 30,
            reserve_free_bytes: 512 << 20,
            quarantine_files_max: 16,
            quarantine_bytes_max: 4 << 30,
            pin: Duration::from_secs(3600),
            hot_bytes_max: 32 << 20,
        }
    }
}

/// Says why settings cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The watermarks are the wrong way round.
    #[error("refuse_free_bytes is below reserve_free_bytes")]
    Watermarks,
}

impl Config {
    /// Checks relations between the settings.
    ///
    /// # Errors
    ///
    /// The first relation that does not hold.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.refuse_free_bytes < self.reserve_free_bytes { Err(ConfigError::Watermarks) } else { Ok(()) }
    }
}

/// Reads the number before a unit and multiplies it; a bare number counts in `units[0]`.
fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim() {
        "" => units.first()?.1,
        unit => units.iter().find(|(name, _)| *name == unit)?.1,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

fn print(amount: u64, units: &[(&str, u64)]) -> String {
    let largest = units.iter().rev().find(|(_, factor)| amount.is_multiple_of(*factor) && amount >= *factor);
    let (name, factor) = largest.unwrap_or(&units[0]);
    format!("{}{name}", amount / factor)
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Amount {
    Number(u64),
    Text(String),
}

mod size {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) const UNITS: [(&str, u64); 5] =
        [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
    pub(super) fn serialize<S: Serializer>(bytes: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&super::print(*bytes, &UNITS))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        match super::Amount::deserialize(deserializer)? {
            super::Amount::Number(bytes) => Ok(bytes),
            super::Amount::Text(text) => super::parse(&text, &UNITS)
                .ok_or_else(|| D::Error::custom(format!("\"{text}\" is not a size such as \"64MiB\""))),
        }
    }
}

mod duration {
    use std::time::Duration;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) const UNITS: [(&str, u64); 5] =
        [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        serializer.collect_str(&super::print(millis, &UNITS))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        let unit = text.bytes().any(|byte| byte.is_ascii_alphabetic());
        super::parse(&text, &UNITS)
            .filter(|_| unit)
            .map(Duration::from_millis)
            .ok_or_else(|| D::Error::custom(format!("\"{text}\" is not a duration such as \"5s\"")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_print_and_read_back() {
        let config = Config { pin: Duration::from_millis(1500), refuse_free_bytes: 3 << 20, ..Config::default() };
        let text = toml::to_string(&config).unwrap();
        assert!(text.contains("refuse_free_bytes = \"3MiB\"") && text.contains("pin = \"1500ms\""), "{text}");
        assert_eq!(toml::from_str::<Config>(&text).unwrap(), config);
        assert_eq!(toml::from_str::<Config>("").unwrap(), Config::default());
    }

    #[test]
    fn unknown_keys_and_wrong_units_are_refused() {
        for text in
            ["unknown = 1", "pin = \"5\"", "pin = \"5 parsecs\"", "hot_bytes_max = \"1MB\"", "hot_bytes_max = -1"]
        {
            assert!(toml::from_str::<Config>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn watermarks_the_wrong_way_round_are_refused() {
        let config = Config { refuse_free_bytes: 1, ..Config::default() };
        assert_eq!(config.validate(), Err(ConfigError::Watermarks));
        assert_eq!(Config::default().validate(), Ok(()));
    }
}
