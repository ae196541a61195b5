//! Settings of `gossip`.

use std::time::Duration;

/// How often nodes ask each other, and when silence counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Between two rounds.
    pub interval: Duration,
    /// How long a ping may take, connecting included.
    pub ping_timeout: Duration,
    /// Silence after which a node is avoided.
    pub suspect_after: Duration,
    /// Silence after which a node is taken for dead.
    pub dead_after: Duration,
    /// Digests whose holders are remembered.
    pub hints_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            interval: Duration::from_millis(500),
            ping_timeout: Duration::from_secs(1),
            suspect_after: Duration::from_millis(1500),
            dead_after: Duration::from_secs(5),
            hints_max: 32_768,
        }
    }
}
