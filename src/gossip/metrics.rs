//! What this module counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::exchange::Outcome;
use super::{Liveness, Members};

type Labelled<M> = Family<[(&'static str, &'static str); 1], M>;

/// Counters of the rounds; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    pings: Labelled<Counter>,
    probes: Labelled<Counter>,
    members: Labelled<Gauge>,
    message_bytes: Labelled<Counter>,
    locations: Gauge,
    exchanges: Labelled<Counter>,
    books: Labelled<Counter>,
    questions: Counter,
}

impl Metrics {
    /// Registers the counters under `rafthold_gossip_`.
    #[must_use]
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("gossip");
        registry.register("pings", "Pings sent, by outcome", metrics.pings.clone());
        registry.register("probes", "Others asked about silent nodes, by what they found", metrics.probes.clone());
        registry.register("members", "Nodes as this node sees them", metrics.members.clone());
        registry.register("message_bytes", "Bytes of messages, without framing", metrics.message_bytes.clone());
        registry.register("locations", "Pairs of a blob and a node said to hold it", metrics.locations.clone());
        registry.register("exchanges", "Exchanges about who holds what, by outcome", metrics.exchanges.clone());
        registry.register("books", "Nodes' accounts taken over, by way", metrics.books.clone());
        registry.register("questions", "Questions put in exchanges", metrics.questions.clone());
        metrics
    }

    pub(super) fn pinged(&self, ok: bool) {
        self.pings.get_or_create(&[("outcome", if ok { "ok" } else { "failed" })]).inc();
    }

    /// Counts what a helper found: reached, not reached, or it did not say.
    pub(super) fn probed(&self, outcome: &'static str) {
        self.probes.get_or_create(&[("outcome", outcome)]).inc();
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.message_bytes.get_or_create(&[("direction", "sent")]).inc_by(bytes as u64);
    }

    pub(super) fn received(&self, bytes: usize) {
        self.message_bytes.get_or_create(&[("direction", "received")]).inc_by(bytes as u64);
    }

    pub(super) fn exchanged(&self, ok: bool, outcome: Outcome) {
        self.exchanges.get_or_create(&[("outcome", if ok { "ok" } else { "failed" })]).inc();
        self.books.get_or_create(&[("way", "steps")]).inc_by(outcome.followed);
        self.books.get_or_create(&[("way", "comparison")]).inc_by(outcome.compared);
        self.questions.inc_by(outcome.questions.into());
    }

    pub(super) fn locations(&self, count: u64) {
        self.locations.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(super) fn publish(&self, members: &Members) {
        for (name, liveness) in [("live", Liveness::Live), ("suspect", Liveness::Suspect), ("dead", Liveness::Dead)] {
            let count = members.values().filter(|member| member.liveness == liveness).count();
            self.members.get_or_create(&[("liveness", name)]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Bytes sent and received so far, and pings that were answered.
    #[cfg(test)]
    pub(super) fn traffic(&self) -> (u64, u64) {
        let bytes = ["sent", "received"].map(|way| self.message_bytes.get_or_create(&[("direction", way)]).get());
        (bytes.iter().sum(), self.pings.get_or_create(&[("outcome", "ok")]).get())
    }

    /// Books taken over by steps and by comparison, and questions put.
    #[cfg(test)]
    pub(super) fn work(&self) -> (u64, u64, u64) {
        let books = |way| self.books.get_or_create(&[("way", way)]).get();
        (books("steps"), books("comparison"), self.questions.get())
    }
}
