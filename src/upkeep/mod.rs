//! Keeps copies, disks and metadata in the state the rules demand, slowly and visibly.
//!
//! Owns cursors, the repair queue and the last survey, all in memory: after a start everything is compared anew.
//! Invariants: work is bounded (a few fetches at once, a queue with a limit, pages); nothing is deleted except at a read
//! index that was asked for afterwards and confirmed (P21), so never without a quorum. No loop has a coordinator: each node
//! does its part from the agreed state, placement and its own disk.
//! Does not decide what is linked (`meta`) nor where copies belong (`topology`).
//! Start reading at `catch_up.rs` for copies that are missing, at `collect.rs` for what nothing needs; the loops are
//! futures that `node` supervises.

mod audit;
mod backlog;
mod catch_up;
mod collect;
mod drain;
mod gc_metrics;
mod holdings;
mod metrics;
mod pace;
mod reap;
mod remove;
mod scrub;
mod survey;
mod trim;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::blob::BlobStore;
use crate::db::Db;
use crate::env::Env;
use crate::meta::Meta;
use crate::meta::command::CollectionRules;
use crate::replica::{Replicas, Throttle};

pub use audit::Audit;
pub use collect::{Collection, Explanation, Plan};
pub use drain::{Drain, Drains};
pub use pace::{Limits, Pace};
pub use reap::Reaped;
pub use scrub::ScrubProgress;
pub use survey::Survey;

/// How fast upkeep goes.
#[derive(Debug, Clone)]
pub struct Config {
    /// Blobs fetched to this disk at once.
    pub fetches_max: usize,
    /// How fast they are fetched.
    pub repair: Limits,
    /// How old the last check of a copy may become.
    pub scrub_period: Duration,
    /// Bytes per second hashed again at most; 0 for no limit.
    pub scrub_bandwidth: u64,
    /// How often everything linked is compared with this disk, besides at start and after changes of the topology.
    pub compare_every: Duration,
    /// How often files that nothing links are looked for.
    pub reap_every: Duration,
    /// How long a file must have been unlinked before it goes; longer than any command can live.
    pub reap_grace: Duration,
    /// How long collection spares what nothing names (P23).
    pub rules: CollectionRules,
    /// How often the leader collects; `None`: only when asked to.
    pub collect_every: Option<Duration>,
    /// How often the counts that collection goes by are checked.
    pub audit_every: Duration,
    /// How long the copies are left alone between two surveys.
    pub survey_every: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            fetches_max: 8,
            repair: Limits::new(128 << 20, 20),
            scrub_period: Duration::from_secs(14 * 86_400),
            scrub_bandwidth: 32 << 20,
            compare_every: Duration::from_secs(600),
            reap_every: Duration::from_secs(60),
            reap_grace: Duration::from_secs(3600),
            rules: CollectionRules { lease_ms: 3_600_000, untagged_ms: None },
            collect_every: Some(Duration::from_secs(3600)),
            audit_every: Duration::from_secs(24 * 3600),
            survey_every: Duration::from_secs(15),
        }
    }
}

/// How far this node is with fetching what it should hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Progress {
    /// Contents known to be missing here.
    pub missing: usize,
    /// Of those, manifest bodies.
    pub missing_bodies: usize,
    /// The log index up to which every manifest body that is linked lies here; 0 while that is not known.
    pub bodies_to: u64,
    /// All bytes of those that are known to be missing.
    pub bytes_left: u64,
    /// Bytes fetched per second, lately.
    pub bytes_per_second: u64,
    /// How long the rest takes at that pace; nothing while none is fetched.
    pub seconds_left: Option<u64>,
    /// Contents being fetched now.
    pub running: usize,
    /// Contents fetched since the start of the process.
    pub done: u64,
    /// Whether everything linked up to `followed` has been compared with this disk since the start of the process.
    pub compared: bool,
    /// The log index up to which what was linked has been looked at.
    pub followed: u64,
    /// What the last failed fetch said.
    pub last_error: Option<String>,
}

impl Progress {
    /// Whether every manifest body that is linked up to the log index `applied` is here (P12); never so of an empty log.
    #[must_use]
    pub const fn bodies_are_complete(&self, applied: u64) -> bool {
        self.compared && self.missing_bodies == 0 && self.followed > 0 && self.followed >= applied
    }
}

/// What upkeep is built on.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The outer world.
    pub env: Env,
    /// This node's index, for cursors.
    pub db: Db,
    /// All copies.
    pub replicas: Replicas,
    /// This disk.
    pub blobs: BlobStore,
    /// The agreed state.
    pub meta: Meta,
}

/// The loops of this node and what they have found; cheap to clone.
#[derive(Debug, Clone)]
pub struct Upkeep(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Config,
    parts: Parts,
    pace: Arc<Pace>,
    /// Holds back what other nodes fetch here while this node's clients move bytes.
    serving: Arc<Pace>,
    progress: watch::Sender<Progress>,
    survey: watch::Sender<Survey>,
    drains: watch::Sender<Arc<Drains>>,
    scrub: watch::Sender<ScrubProgress>,
    metrics: metrics::Metrics,
    reaped: watch::Sender<Reaped>,
    collection: watch::Sender<Collection>,
    /// Somebody asks for a pass of collection.
    asked: Notify,
    audit: watch::Sender<Audit>,
    gc_metrics: gc_metrics::GcMetrics,
}

impl Upkeep {
    /// Wires the parts together; the loops run when their futures are polled.
    #[must_use]
    pub fn new(config: Config, parts: Parts) -> Self {
        let activity = parts.replicas.activity();
        let pace = Arc::new(Pace::new(config.repair, Arc::clone(&activity)));
        let serving = Arc::new(Pace::new(Limits { idle: 0, ..config.repair }, activity));
        Self(Arc::new(Inner {
            config,
            parts,
            pace,
            serving,
            progress: watch::Sender::default(),
            survey: watch::Sender::default(),
            drains: watch::Sender::default(),
            scrub: watch::Sender::default(),
            metrics: metrics::Metrics::default(),
            reaped: watch::Sender::default(),
            collection: watch::Sender::default(),
            asked: Notify::new(),
            audit: watch::Sender::default(),
            gc_metrics: gc_metrics::GcMetrics::default(),
        }))
    }

    /// Returns what holds back the bytes that other nodes fetch here and no client waits for.
    #[must_use]
    pub fn serving_throttle(&self) -> Arc<dyn Throttle> {
        Arc::clone(&self.0.serving) as Arc<dyn Throttle>
    }

    /// Registers this module's metrics.
    pub fn register_metrics(&self, registry: &mut prometheus_client::registry::Registry) {
        self.0.metrics.register(registry);
        self.0.gc_metrics.register(registry);
    }

    /// Returns what this node removed from its disk, and what waits for its grace.
    #[must_use]
    pub fn reaped(&self) -> Reaped {
        *self.0.reaped.borrow()
    }

    /// Returns what the last full mark on this node found.
    #[must_use]
    pub fn last_audit(&self) -> Audit {
        self.0.audit.borrow().clone()
    }

    /// Follows how far this node is with fetching what it should hold.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.0.progress.subscribe()
    }

    /// Follows what the last survey of all copies found.
    #[must_use]
    pub fn survey(&self) -> watch::Receiver<Survey> {
        self.0.survey.subscribe()
    }

    /// Says how far this node is with hashing again what it holds.
    #[must_use]
    pub fn scrub_progress(&self) -> ScrubProgress {
        *self.0.scrub.borrow()
    }

    /// The nodes that should hold a linked blob.
    #[must_use]
    pub fn wanted_holders(&self, digest: &crate::oci::Digest) -> Vec<crate::topology::NodeId> {
        self.0.parts.replicas.wanted_holders(digest)
    }
}
