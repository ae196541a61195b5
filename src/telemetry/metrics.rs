//! The registry that modules put their metrics on.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::Registry;

use super::counts;

/// The process's metrics; cheap to clone.
///
/// Names are `rafthold_<module>_<what>_<unit>`, base units, `_total` for counters (added by the encoder); labels are
/// bounded: never a repository or a digest.
#[derive(Clone)]
pub struct Metrics(Arc<Mutex<Registry>>);

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("rafthold");
        registry.register_collector(Box::new(Lines));
        Self(Arc::new(Mutex::new(registry)))
    }
}

/// What this process logged that should be rare.
#[derive(Debug)]
struct Lines;

impl Collector for Lines {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let counts = counts();
        for (name, help, count) in [
            ("log_errors", "ERROR lines logged", counts.errors),
            ("log_warnings", "WARN lines logged", counts.warnings),
            ("panics", "Panics, wherever they ended", counts.panics),
        ] {
            let counter = ConstCounter::new(count);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// Lets a module put its metrics on the registry; names get the prefix `rafthold_`.
    pub fn register<T>(&self, register: impl FnOnce(&mut Registry) -> T) -> T {
        register(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Prints all metrics in the `OpenMetrics` text format.
    ///
    /// # Panics
    ///
    /// Never: a string takes every text.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        let registry = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("a string takes every text");
        text
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn log_lines_are_counted_under_the_common_prefix() {
        let text = super::Metrics::default().encode();
        assert!(text.contains("rafthold_log_errors_total "), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
