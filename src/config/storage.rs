//! Blobs on disk.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::units;

/// Blobs on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Storage {
    /// Copies wanted of each blob.
    pub copies: u32,
    /// Synced and verified copies before a push is answered.
    pub write_copies: u32,
    /// Free space below which uploads and copies from other nodes are refused; at most 5 % of the filesystem.
    #[serde(with = "units::size")]
    pub free_min: u64,
    /// Free space below which nothing but the agreement's own log is written; at most 2 % of the filesystem.
    #[serde(with = "units::size")]
    pub free_reserve: u64,
    /// How long after this node said that it holds something, and after its start, that is not deleted.
    #[serde(with = "units::duration")]
    pub pin: Duration,
    /// How many damaged copies are kept for a look.
    pub quarantine_files: u32,
    /// How many bytes of damaged copies are kept for a look.
    #[serde(with = "units::size")]
    pub quarantine_bytes: u64,
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            copies: 3,
            write_copies: 2,
            free_min: 2 << 30,
            free_reserve: 512 << 20,
            pin: Duration::from_secs(3600),
            quarantine_files: 16,
            quarantine_bytes: 4 << 30,
        }
    }
}
