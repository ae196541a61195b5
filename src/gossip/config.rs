//! Settings of `gossip`.

use std::time::Duration;

/// How often nodes ask each other, when silence counts, and how much is remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Between two rounds.
    pub interval: Duration,
    /// How long a ping may take, connecting included.
    pub ping_timeout: Duration,
    /// Silence after which others are asked about a node.
    pub probe_after: Duration,
    /// Silence after which a node is avoided.
    pub suspect_after: Duration,
    /// Silence after which a node that nobody else reaches is taken for dead.
    pub dead_after: Duration,
    /// (Blob, holder) pairs that are remembered of all other nodes together, at some 25 bytes each; shared out evenly.
    pub entries_max: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            interval: Duration::from_millis(500),
            ping_timeout: Duration::from_secs(1),
            probe_after: Duration::from_secs(1),
            suspect_after: Duration::from_millis(1500),
            dead_after: Duration::from_secs(5),
            entries_max: 64_000_000,
        }
    }
}
