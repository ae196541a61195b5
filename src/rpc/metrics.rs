//! What this module counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::Lane;

type ByText = Family<[(&'static str, &'static str); 1], Counter>;

/// Counters of connections between nodes; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    accepted: Counter,
    refused: ByText,
    open: Family<[(&'static str, &'static str); 1], Gauge>,
    connects: ByText,
    panics: Counter,
}

impl Metrics {
    /// Registers the counters under `rafthold_rpc_`.
    #[must_use]
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let mut add = |name: &str, help: &str, counter: ByText| registry.register(name, help, counter);
        add("rpc_connects", "Connections tried to peers, by outcome", metrics.connects.clone());
        add("rpc_refused", "Connections and calls refused, by reason", metrics.refused.clone());
        registry.register("rpc_accepted", "Connections accepted", metrics.accepted.clone());
        registry.register("rpc_open_connections", "Connections open to this node, by lane", metrics.open.clone());
        registry.register("rpc_panics", "Calls ended by a panic", metrics.panics.clone());
        metrics
    }

    pub(super) fn accepted(&self) {
        self.accepted.inc();
    }

    pub(super) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&[("reason", reason)]).inc();
    }

    pub(super) fn connected(&self, outcome: &'static str) {
        self.connects.get_or_create(&[("outcome", outcome)]).inc();
    }

    pub(super) fn panicked(&self) {
        self.panics.inc();
    }

    /// Counts an open connection until the returned guard is dropped.
    pub(super) fn open(&self, lane: Option<Lane>) -> OpenGuard {
        let lane = lane.map_or("stranger", Lane::name);
        let gauge = self.open.get_or_create(&[("lane", lane)]).clone();
        gauge.inc();
        OpenGuard(gauge)
    }
}

#[derive(Debug)]
pub(super) struct OpenGuard(Gauge);

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}
