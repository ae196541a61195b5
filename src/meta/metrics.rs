//! What this module counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use openraft::ServerState;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::types::Metrics as RaftMetrics;

/// Gauges and counters of consensus; cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    term: Gauge,
    leads: Gauge,
    applied: Gauge,
    last_log: Gauge,
    elections: Counter,
    proposals: Counter,
    proposals_unavailable: Counter,
    log_sync_seconds: Histogram,
    snapshots: Counter,
    snapshot_seconds: Gauge<f64, AtomicU64>,
    snapshot_bytes: Gauge,
    last_term: Arc<AtomicU64>,
    last_leads: Arc<AtomicI64>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            term: Gauge::default(),
            leads: Gauge::default(),
            applied: Gauge::default(),
            last_log: Gauge::default(),
            elections: Counter::default(),
            proposals: Counter::default(),
            proposals_unavailable: Counter::default(),
            log_sync_seconds: Histogram::new(exponential_buckets(0.000_1, 2.0, 16)),
            snapshots: Counter::default(),
            snapshot_seconds: Gauge::default(),
            snapshot_bytes: Gauge::default(),
            last_term: Arc::default(),
            last_leads: Arc::default(),
        }
    }
}

impl Metrics {
    /// Registers everything under `rafthold_meta_`.
    #[must_use]
    pub fn new(registry: &mut Registry) -> Self {
        let it = Self::default();
        registry.register("meta_term", "Raft term", it.term.clone());
        registry.register("meta_leader", "1 while this node leads", it.leads.clone());
        registry.register("meta_applied_index", "Last applied log index", it.applied.clone());
        registry.register("meta_last_log_index", "Last log index", it.last_log.clone());
        registry.register("meta_elections", "Terms that began as seen here", it.elections.clone());
        registry.register("meta_proposals", "Commands proposed by this node", it.proposals.clone());
        registry.register(
            "meta_proposals_unavailable",
            "Commands that no leader took in time",
            it.proposals_unavailable.clone(),
        );
        registry.register_with_unit(
            "meta_log_sync",
            "Time of one sync of the log",
            Unit::Seconds,
            it.log_sync_seconds.clone(),
        );
        registry.register("meta_snapshots", "Snapshots written by this node", it.snapshots.clone());
        registry.register_with_unit(
            "meta_snapshot",
            "Time that writing the last snapshot took",
            Unit::Seconds,
            it.snapshot_seconds.clone(),
        );
        registry.register_with_unit(
            "meta_snapshot",
            "Size of the last snapshot written",
            Unit::Bytes,
            it.snapshot_bytes.clone(),
        );
        it
    }

    pub(super) fn proposed(&self) {
        self.proposals.inc();
    }

    pub(super) fn unavailable(&self) {
        self.proposals_unavailable.inc();
    }

    pub(super) fn synced(&self, took: Duration) {
        self.log_sync_seconds.observe(took.as_secs_f64());
    }

    pub(super) fn snapshot_written(&self, took: Duration, size_bytes: u64) {
        self.snapshots.inc();
        self.snapshot_seconds.set(took.as_secs_f64());
        self.snapshot_bytes.set(i64::try_from(size_bytes).unwrap_or(i64::MAX));
    }

    pub(super) fn observe(&self, raft: &RaftMetrics, me: u64) {
        let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let leads = i64::from(raft.state == ServerState::Leader);
        self.term.set(signed(raft.current_term));
        self.leads.set(leads);
        self.applied.set(raft.last_applied.map_or(0, |id| signed(id.index)));
        self.last_log.set(raft.last_log_index.map_or(0, signed));
        if self.last_term.swap(raft.current_term, Ordering::Relaxed) != raft.current_term {
            self.elections.inc();
            tracing::info!(node = me, term = raft.current_term, leader = raft.current_leader, "new term");
        }
        if self.last_leads.swap(leads, Ordering::Relaxed) != leads {
            let event = if leads == 1 { "this node leads" } else { "this node leads no more" };
            tracing::info!(node = me, term = raft.current_term, "{event}");
        }
    }
}
