//! Counts what only this module sees.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

/// The module's metrics; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Requests whose handler panicked.
    pub(super) panics: Counter<u64, AtomicU64>,
    /// Downloads that were cut off because no good copy went on.
    pub(super) downloads_cut: Counter<u64, AtomicU64>,
}

impl Metrics {
    /// Makes the metrics and puts them on a registry.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let api = registry.sub_registry_with_prefix("api");
        api.register("panics", "Requests whose handler panicked", metrics.panics.clone());
        api.register("downloads_cut", "Downloads cut off for lack of a good copy", metrics.downloads_cut.clone());
        metrics
    }
}
