//! Gauges of what is missing and of how many copies there are.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::trim::Trimmed;
use super::{Progress, ScrubProgress, Survey};

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
    trimmed: Counter,
    trimmed_bytes: Counter,
    scrubbed: Gauge,
    scrub_bad: Gauge,
    scrub_ended: Gauge,
}

impl Metrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("upkeep");
        registry.register("missing", "Contents this node should hold and does not", self.missing.clone());
        registry.register("missing_bodies", "Manifest bodies among the missing", self.missing_bodies.clone());
        registry.register("fetches", "Contents being fetched", self.fetches.clone());
        registry.register("fetched", "Contents fetched since the start", self.fetched.clone());
        registry.register("left_bytes", "Bytes that this node should hold and does not", self.bytes_left.clone());
        registry.register("fetched_bytes_per_second", "Bytes fetched lately", self.bytes_per_second.clone());
        registry.register("misplaced", "Contents with enough copies in the wrong places", self.misplaced.clone());
        registry.register("under_replicated", "Contents with too few copies in reach", self.under_replicated.clone());
        registry.register("over_replicated", "Blobs with too many copies", self.over_replicated.clone());
        registry.register("trimmed", "Surplus copies removed from this disk", self.trimmed.clone());
        registry.register("trimmed_bytes", "Bytes of those", self.trimmed_bytes.clone());
        registry.register("scrubbed", "Copies hashed again since the start", self.scrubbed.clone());
        registry.register("scrub_bad", "Of those, bad ones, set aside", self.scrub_bad.clone());
        registry.register("scrub_ended_seconds", "When the last pass ended, Unix time", self.scrub_ended.clone());
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

    pub(super) fn trimmed(&self, trimmed: Trimmed) {
        self.trimmed.inc_by(trimmed.copies);
        self.trimmed_bytes.inc_by(trimmed.bytes);
    }

    pub(super) fn set_scrub(&self, progress: &ScrubProgress) {
        set(&self.scrubbed, progress.checked);
        set(&self.scrub_bad, progress.bad);
        set(&self.scrub_ended, progress.ended_at);
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
