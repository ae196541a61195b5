//! Counts what comes through the door.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// What a request was and how it ended; both bounded.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    method: &'static str,
    status: u16,
}

/// Metrics of the doors; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    connections: Gauge,
    refused: Counter<u64, AtomicU64>,
    stalled: Counter<u64, AtomicU64>,
    panicked: Counter<u64, AtomicU64>,
    requests: Family<Answered, Counter>,
    seconds: Histogram,
}

/// An open connection, as long as it is kept.
pub(super) struct Open(Metrics);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.0.connections.dec();
    }
}

impl Metrics {
    /// Registers them.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let inner = Inner {
            connections: Gauge::default(),
            refused: Counter::default(),
            stalled: Counter::default(),
            panicked: Counter::default(),
            requests: Family::default(),
            seconds: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
        };
        registry.register("http_connections", "Open connections of clients", inner.connections.clone());
        registry.register("http_connections_refused", "Connections closed at the limit", inner.refused.clone());
        registry.register("http_connections_stalled", "Connections cut for want of progress", inner.stalled.clone());
        registry.register("http_panics", "Requests that ended in a panic", inner.panicked.clone());
        registry.register("http_requests", "Requests answered", inner.requests.clone());
        registry.register("http_head_seconds", "Time until an answer's head", inner.seconds.clone());
        Self(Arc::new(inner))
    }

    pub(super) fn connection(&self) -> Open {
        self.0.connections.inc();
        Open(self.clone())
    }

    pub(super) fn refused(&self) {
        self.0.refused.inc();
    }

    pub(super) fn stalled(&self) {
        self.0.stalled.inc();
    }

    pub(super) fn panicked(&self) {
        self.0.panicked.inc();
    }

    pub(super) fn answered(&self, method: &http::Method, status: http::StatusCode, after: Duration) {
        let known = [http::Method::GET, http::Method::HEAD, http::Method::POST, http::Method::PUT];
        let method = match known.iter().position(|known| known == method) {
            Some(0) => "GET",
            Some(1) => "HEAD",
            Some(2) => "POST",
            Some(3) => "PUT",
            _ if method == http::Method::PATCH => "PATCH",
            _ if method == http::Method::DELETE => "DELETE",
            _ => "other",
        };
        self.0.requests.get_or_create(&Answered { method, status: status.as_u16() }).inc();
        self.0.seconds.observe(after.as_secs_f64());
    }
}
