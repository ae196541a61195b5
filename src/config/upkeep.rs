//! What keeps copies and disks in order.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::units;

/// Copies that are missing on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Repair {
    /// Bytes per second fetched to this node while no client moves any; 0 for no limit.
    #[serde(with = "units::size")]
    pub bandwidth: u64,
    /// Percent of that which are left, for fetching and for serving other nodes' fetches, while clients move bytes.
    pub busy_percent: u32,
    /// Blobs fetched at once; a quarter of it while clients move bytes.
    pub fetches: u32,
    /// How often everything is compared with this disk, besides at start and after changes.
    #[serde(with = "units::duration")]
    pub compare_every: Duration,
    /// How often the copies on all nodes are counted, and surplus ones looked for.
    #[serde(with = "units::duration")]
    pub survey_every: Duration,
}

impl Default for Repair {
    fn default() -> Self {
        Self {
            bandwidth: 128 << 20,
            busy_percent: 20,
            fetches: 8,
            compare_every: Duration::from_secs(600),
            survey_every: Duration::from_secs(15),
        }
    }
}

/// Hashing again what lies on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scrub {
    /// How old the last check of a copy may become.
    #[serde(with = "units::duration")]
    pub period: Duration,
    /// Bytes per second read at most; it goes slower where the period allows.
    #[serde(with = "units::size")]
    pub bandwidth: u64,
}

impl Default for Scrub {
    fn default() -> Self {
        Self { period: Duration::from_secs(14 * 86_400), bandwidth: 32 << 20 }
    }
}
