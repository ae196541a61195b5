//! Sets up logs, traces and the metrics registry, and fixes the field names.
//!
//! Owns the process's log subscriber and the hook that logs panics. Field names, one meaning each: `node`, `peer`, `zone`,
//! `repository`, `reference`, `digest`, `upload`, `term`, `log_index`, `copies`, `size_bytes`, `duration_ms`, `error`; besides
//! them `task`, `step`, `address` (of a listener, never of a client), `request`, `method`, `status`. Messages are constant
//! lower-case texts. ERROR: a human must act; WARN: it went on, worse; INFO: a change of state; DEBUG: per request. Never
//! tokens, bodies or client addresses. Start reading at [`init`].

mod metrics;

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

pub use metrics::Metrics;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For machines: one JSON document per line.
    Json,
}

/// Says that a log filter cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("log filter `{filter}`: {source}")]
pub struct FilterError {
    filter: String,
    source: tracing_subscriber::filter::ParseError,
}

static ERRORS: AtomicU64 = AtomicU64::new(0);
static WARNINGS: AtomicU64 = AtomicU64::new(0);
static PANICS: AtomicU64 = AtomicU64::new(0);

/// How often this process logged what should be rare, since it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// ERROR lines.
    pub errors: u64,
    /// WARN lines.
    pub warnings: u64,
    /// Panics, wherever they ended.
    pub panics: u64,
}

/// Returns how often this process logged what should be rare.
#[must_use]
pub fn counts() -> Counts {
    Counts {
        errors: ERRORS.load(Ordering::Relaxed),
        warnings: WARNINGS.load(Ordering::Relaxed),
        panics: PANICS.load(Ordering::Relaxed),
    }
}

struct CountLines;

impl<S: Subscriber> Layer<S> for CountLines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        match *event.metadata().level() {
            Level::ERROR => ERRORS.fetch_add(1, Ordering::Relaxed),
            Level::WARN => WARNINGS.fetch_add(1, Ordering::Relaxed),
            _ => 0,
        };
    }
}

/// Checks a log filter without using it.
///
/// # Errors
///
/// [`FilterError`] with what is wrong.
pub fn check_filter(filter: &str) -> Result<(), FilterError> {
    parse_filter(filter).map(drop)
}

fn parse_filter(filter: &str) -> Result<Targets, FilterError> {
    // openraft complains of every lost heartbeat; what matters of it, `meta` says in its own words
    let quiet = "openraft=off,h2=warn,hyper=warn,tonic=warn,rustls=warn,sled=warn";
    format!("{quiet},{filter}").parse().map_err(|source| FilterError { filter: filter.to_owned(), source })
}

/// Starts logging on standard error and logs panics from now on.
///
/// A second call in one process changes nothing (tests start several nodes).
///
/// # Errors
///
/// [`FilterError`] if the filter cannot be read.
pub fn init(format: Format, filter: &str) -> Result<(), FilterError> {
    let filter = parse_filter(filter)?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        Format::Text => lines.with_ansi(false).boxed(),
        Format::Json => lines.json().flatten_event(true).boxed(),
    };
    let registry = tracing_subscriber::registry().with(filter).with(CountLines).with(lines);
    if registry.try_init().is_ok() {
        log_panics();
    }
    Ok(())
}

fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        let payload = panic.payload();
        let text = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("a panic without a text");
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(error = text, place, "panic");
    }));
}
