//! What collection and reaping show of themselves.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::{Audit, Collection};

/// Counters of what went, and gauges of what waits.
#[derive(Debug, Clone, Default)]
pub(super) struct GcMetrics {
    passes: Counter,
    passes_failed: Counter,
    pass_duration_ms: Gauge,
    collected_blobs: Counter,
    collected_manifests: Counter,
    collected_bytes: Counter,
    reaped_blobs: Counter,
    reaped_bytes: Counter,
    reaped_extents: Counter,
    waiting: Gauge,
    waiting_bytes: Gauge,
    audits: Counter,
    audit_problems: Gauge,
}

impl GcMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let it = registry.sub_registry_with_prefix("gc");
        it.register("passes", "Passes of collection by this node", self.passes.clone());
        it.register("passes_failed", "Passes that stopped before their end", self.passes_failed.clone());
        it.register("pass_duration_ms", "Time of the last pass in milliseconds", self.pass_duration_ms.clone());
        it.register("collected_blobs", "Blob links collected by this node", self.collected_blobs.clone());
        it.register("collected_manifests", "Manifests collected by this node", self.collected_manifests.clone());
        let help = "Content that nothing links any more since this node collected its last link";
        it.register_with_unit("collected", help, Unit::Bytes, self.collected_bytes.clone());
        it.register("reaped_blobs", "Unlinked blobs and bodies removed from this disk", self.reaped_blobs.clone());
        it.register_with_unit("reaped", "Bytes of those", Unit::Bytes, self.reaped_bytes.clone());
        it.register("reaped_extents", "Unlisted extents removed from this disk", self.reaped_extents.clone());
        it.register("waiting_blobs", "Unlinked blobs here whose grace is not over", self.waiting.clone());
        it.register_with_unit("waiting", "Bytes of those", Unit::Bytes, self.waiting_bytes.clone());
        it.register("audits", "Full marks of the agreed state by this node", self.audits.clone());
        it.register("audit_problems", "Contradictions the last full mark found", self.audit_problems.clone());
    }

    pub(super) fn collected(&self, pass: &Collection, took: Duration) {
        self.passes.inc();
        self.passes_failed.inc_by(u64::from(pass.failed.is_some()));
        self.pass_duration_ms.set(i64::try_from(took.as_millis()).unwrap_or(i64::MAX));
        self.collected_blobs.inc_by(pass.blobs);
        self.collected_manifests.inc_by(pass.manifests);
        self.collected_bytes.inc_by(pass.bytes);
    }

    pub(super) fn blobs_removed(&self, blobs: u64, bytes: u64) {
        self.reaped_blobs.inc_by(blobs);
        self.reaped_bytes.inc_by(bytes);
    }

    pub(super) fn extents_removed(&self, extents: u64) {
        self.reaped_extents.inc_by(extents);
    }

    pub(super) fn set_waiting(&self, blobs: u64, bytes: u64) {
        self.waiting.set(i64::try_from(blobs).unwrap_or(i64::MAX));
        self.waiting_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    pub(super) fn audited(&self, audit: &Audit) {
        self.audits.inc();
        self.audit_problems.set(i64::try_from(audit.problems).unwrap_or(i64::MAX));
    }
}
