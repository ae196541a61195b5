//! How much clients move through this node, so that background work can make way for them.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts what clients push to and pull from this node.
#[derive(Debug, Default)]
pub struct Activity(AtomicU64);

impl Activity {
    /// Notes bytes that came from a client or went to one.
    pub fn moved(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes moved since the start of the process.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
