//! Settings of consensus and its log.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Says why settings cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A follower would campaign although the leader lives.
    #[error("election_min_ms must be at least 3 times heartbeat_ms")]
    ElectionTooShort,
    /// Two nodes would often campaign at once.
    #[error("election_max_ms must be at least 1.2 times election_min_ms")]
    ElectionTooNarrow,
    /// The log could not hold a batch.
    #[error("segment_bytes must be at least 65536")]
    SegmentTooSmall,
    /// There would be nothing to purge to.
    #[error("snapshot_entries must be at least 1")]
    NoSnapshots,
}

/// Settings of consensus. The defaults are for a LAN; over a WAN of 80 to 150 ms: 500, 2000 and 4000 ms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How often the leader says that it lives, in milliseconds.
    pub heartbeat_ms: u64,
    /// The shortest draw of an election timeout, in milliseconds.
    pub election_min_ms: u64,
    /// The longest draw, in milliseconds; also how long followers trust a silent leader before they draw.
    pub election_max_ms: u64,
    /// Bytes of a log segment.
    pub segment_bytes: u64,
    /// Bytes put by on the disk for the log and snapshots, should it be full otherwise; at most a sixteenth of the disk.
    pub reserve_bytes: u64,
    /// Log entries between two snapshots.
    pub snapshot_entries: u64,
    /// Log entries kept at least, so that a short absence costs no snapshot.
    pub log_entries_kept: u64,
    /// Newest log entries kept decoded in memory.
    pub log_cache_entries: usize,
    /// Bytes of them at most.
    pub log_cache_bytes: usize,
    /// How long a node may be away before the leader counts it out, in milliseconds (P13).
    pub out_after_ms: u64,
    /// Copies of each blob that this node proposes, if it leads when none are agreed on yet.
    pub copies: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            heartbeat_ms: 100,
            election_min_ms: 400,
            election_max_ms: 700,
            segment_bytes: 16 << 20,
            reserve_bytes: 64 << 20,
            snapshot_entries: 10_000,
            log_entries_kept: 20_000,
            log_cache_entries: 4096,
            log_cache_bytes: 8 << 20,
            out_after_ms: 600_000,
            copies: 3,
        }
    }
}

impl Config {
    /// Checks that the settings can work together.
    ///
    /// # Errors
    ///
    /// See [`ConfigError`].
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.election_min_ms < self.heartbeat_ms.saturating_mul(3) || self.heartbeat_ms == 0 {
            return Err(ConfigError::ElectionTooShort);
        }
        if self.election_max_ms.saturating_mul(10) < self.election_min_ms.saturating_mul(12) {
            return Err(ConfigError::ElectionTooNarrow);
        }
        if self.segment_bytes < 64 << 10 {
            return Err(ConfigError::SegmentTooSmall);
        }
        if self.snapshot_entries == 0 {
            return Err(ConfigError::NoSnapshots);
        }
        Ok(())
    }

    /// Turns the settings into openraft's. What P1 fixes is not a setting.
    pub(super) fn raft(&self, cluster: &str) -> openraft::Config {
        openraft::Config {
            cluster_name: cluster.to_owned(),
            heartbeat_interval: self.heartbeat_ms,
            election_timeout_min: self.election_min_ms,
            election_timeout_max: self.election_max_ms,
            // A candidate must not disturb a leader that lives.
            enable_pre_vote: Some(true),
            // A restarted leader must be elected again: its read index could lie below acknowledged writes.
            enable_leader_restore: Some(false),
            allow_log_reversion: Some(false),
            max_payload_entries: 256,
            max_append_entries: Some(1024),
            // A follower gets a snapshot only when the log it needs is purged.
            replication_lag_threshold: u64::MAX / 4,
            // `maintenance.rs` says when one is due: openraft would write all of a large state again and again.
            snapshot_policy: openraft::SnapshotPolicy::Never,
            // The log is purged by `maintenance.rs`, to the older of two snapshots (P9).
            max_in_snapshot_log_to_keep: u64::MAX / 4,
            // A WAN link of 1 MiB/s moves a GiB in this time; progress is watched beside it.
            install_snapshot_timeout: 20 * 60 * 1000,
            api_channel_size: Some(4096),
            backoff: "100ms 200ms 400ms ...500ms".to_owned(),
            ..openraft::Config::default()
        }
    }

    /// How long a call between nodes for consensus may take: beyond it the answer is of no use.
    pub(super) fn append_deadline(&self) -> Duration {
        Duration::from_millis(self.election_max_ms * 3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_here_and_for_openraft() {
        let config = Config::default();
        config.validate().unwrap();
        config.raft("c").validate().unwrap();
    }

    #[test]
    fn timeouts_that_would_depose_living_leaders_are_refused() {
        let config = Config { heartbeat_ms: 200, election_min_ms: 400, ..Config::default() };
        assert_eq!(config.validate(), Err(ConfigError::ElectionTooShort));
    }
}
