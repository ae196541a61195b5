//! Gauges of what is missing and of how many copies there are.

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::{Progress, Survey};

/// What upkeep shows of itself.
#[derive(Debug, Clone, Default)]
pub(super) struct Metrics {
    missing: Gauge,
    missing_bodies: Gauge,
    fetches: Gauge,
    fetched: Gauge,
    bytes_left: Gauge,
    bytes_per_second: Gauge,
    misplaced: Gauge,
    under_replicated: Gauge,
    over_replicated: Gauge,
    lost: Gauge,
}

impl Metrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("rafthold_upkeep");
        registry.register("missing", "Contents this node should hold and does not", self.missing.clone());
        registry.register("missing_bodies", "Manifest bodies among the missing", self.missing_bodies.clone());
        registry.register("fetches", "Contents being fetched", self.fetches.clone());
        registry.register("fetched", "Contents fetched since the start", self.fetched.clone());
        registry.register("left_bytes", "Bytes that this node should hold and does not", self.bytes_left.clone());
        registry.register("fetched_bytes_per_second", "Bytes fetched lately", self.bytes_per_second.clone());
        registry.register("misplaced", "Contents with enough copies in the wrong places", self.misplaced.clone());
        registry.register("under_replicated", "Contents with too few copies in reach", self.under_replicated.clone());
        registry.register("over_replicated", "Blobs with too many copies", self.over_replicated.clone());
        registry.register("lost", "Contents that no member has", self.lost.clone());
    }

    pub(super) fn set_progress(&self, progress: &Progress) {
        set(&self.missing, progress.missing as u64);
        set(&self.missing_bodies, progress.missing_bodies as u64);
        set(&self.fetches, progress.running as u64);
        set(&self.fetched, progress.done);
        set(&self.bytes_left, progress.bytes_left);
        set(&self.bytes_per_second, progress.bytes_per_second);
    }

    pub(super) fn set_survey(&self, survey: &Survey) {
        set(&self.under_replicated, survey.under_replicated);
        set(&self.over_replicated, survey.over_replicated);
        set(&self.lost, survey.lost);
        set(&self.misplaced, survey.misplaced);
    }
}

fn set(gauge: &Gauge, value: u64) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}
