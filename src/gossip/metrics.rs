//! What this module counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::{Liveness, Members};

/// Counters of the rounds; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    pings: Family<[(&'static str, &'static str); 1], Counter>,
    members: Family<[(&'static str, &'static str); 1], Gauge>,
    hints: Gauge,
}

impl Metrics {
    /// Registers the counters under `rafthold_gossip_`.
    #[must_use]
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("rafthold_gossip_pings", "Pings sent, by outcome", metrics.pings.clone());
        registry.register("rafthold_gossip_members", "Nodes as this node sees them", metrics.members.clone());
        registry.register("rafthold_gossip_hints", "Digests whose holders are remembered", metrics.hints.clone());
        metrics
    }

    pub(super) fn pinged(&self, ok: bool) {
        self.pings.get_or_create(&[("outcome", if ok { "ok" } else { "failed" })]).inc();
    }

    pub(super) fn publish(&self, members: &Members, hints: usize) {
        for (name, liveness) in [("live", Liveness::Live), ("suspect", Liveness::Suspect), ("dead", Liveness::Dead)] {
            let count = members.values().filter(|member| member.liveness == liveness).count();
            self.members.get_or_create(&[("liveness", name)]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        self.hints.set(i64::try_from(hints).unwrap_or(i64::MAX));
    }
}
