//! The nightly full mark: each node counts its own copy of the agreed state anew, and alarms where a count is wrong (G18).

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::meta::Recount;

use super::Upkeep;

/// Rows looked at in one go.
const STEP: usize = 4000;
/// Pause between two steps: a mark of millions of rows takes a minute and a few per cent of one core.
const PAUSE: Duration = Duration::from_millis(10);
/// How soon after the start the first mark is made.
const FIRST: Duration = Duration::from_secs(600);

/// What the last full mark found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Audit {
    /// Contradictions between what is counted and what is there.
    pub problems: u64,
    /// The first of them.
    pub first: Option<String>,
    /// When it ended; `None` before the first.
    pub ended: Option<Instant>,
}

impl Audit {
    /// Whether the counts can not be trusted, so that nothing may be collected by them.
    #[must_use]
    pub const fn is_wrong(&self) -> bool {
        self.problems > 0
    }
}

impl Upkeep {
    /// Marks the whole agreed state once a night and compares the counts that collection goes by. Never ends.
    pub async fn audit(self) {
        sleep(FIRST.min(self.0.config.audit_every)).await;
        loop {
            self.audit_once().await;
            sleep(self.0.config.audit_every).await;
        }
    }

    pub(super) async fn audit_once(&self) {
        let began = Instant::now();
        // One state for the whole mark: what changes meanwhile is the next one's business.
        let mut recount = Recount::new(self.0.parts.meta.local());
        while !recount.step(STEP) {
            sleep(PAUSE).await;
        }
        let (problems, told) = recount.found();
        for problem in told {
            tracing::error!(error = %problem, "full mark found a wrong count, nothing is collected");
        }
        let audit = Audit { problems, first: told.first().map(ToString::to_string), ended: Some(Instant::now()) };
        tracing::info!(problems, duration_ms = began.elapsed().as_millis(), "full mark of the agreed state");
        self.0.gc_metrics.audited(&audit);
        self.0.audit.send_replace(audit);
    }
}
