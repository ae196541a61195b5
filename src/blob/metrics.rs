//! Counters of this node's bytes.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone)]
pub(super) struct Metrics {
    pub(super) written_bytes: Counter,
    pub(super) quarantined: Counter,
    pub(super) damaged_blocks: Counter,
    pub(super) no_space: Counter,
    pub(super) sync_failures: Counter,
    pub(super) sync_seconds: Histogram,
    pub(super) blobs: Gauge,
    pub(super) blob_bytes: Gauge,
    pub(super) extents: Gauge,
    pub(super) free_bytes: Gauge,
    pub(super) index_complete: Gauge,
}

impl Metrics {
    pub(super) fn new() -> Self {
        const SECONDS: [f64; 12] = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0];
        Self {
            written_bytes: Counter::default(),
            quarantined: Counter::default(),
            damaged_blocks: Counter::default(),
            no_space: Counter::default(),
            sync_failures: Counter::default(),
            sync_seconds: Histogram::new(SECONDS),
            blobs: Gauge::default(),
            blob_bytes: Gauge::default(),
            extents: Gauge::default(),
            free_bytes: Gauge::default(),
            index_complete: Gauge::default(),
        }
    }

    // The registry adds `_total` to counters.
    pub(super) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("blob");
        registry.register("written_bytes", "Bytes staged or received", self.written_bytes.clone());
        registry.register("quarantined", "Copies set aside as damaged", self.quarantined.clone());
        registry.register("damaged_blocks", "Blocks that differed from their checksum", self.damaged_blocks.clone());
        registry.register("no_space", "Writes refused or broken off for want of space", self.no_space.clone());
        registry.register("sync_failures", "Files dropped because a sync failed", self.sync_failures.clone());
        registry.register("sync_seconds", "Time of one file or directory sync", self.sync_seconds.clone());
        registry.register("blobs", "Blobs on this node", self.blobs.clone());
        registry.register("blob_bytes", "Bytes of the blobs on this node", self.blob_bytes.clone());
        registry.register("extents", "Synced extents on this node", self.extents.clone());
        registry.register("free_bytes", "Free bytes of the filesystem", self.free_bytes.clone());
        registry.register("index_complete", "1 once the index agrees with the disk", self.index_complete.clone());
    }
}
