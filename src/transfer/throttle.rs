//! How background work is held back for the sake of clients.

use std::fmt;

use crate::env::BoxFuture;

/// Lets bytes of background work pass at some pace.
pub trait Throttle: fmt::Debug + Send + Sync + 'static {
    /// Waits until `bytes` more may be moved.
    fn take(&self, bytes: u64) -> BoxFuture<'_, ()>;

    /// Whether nothing is held back any more: somebody waits for the bytes now.
    fn is_lifted(&self) -> bool {
        false
    }
}
