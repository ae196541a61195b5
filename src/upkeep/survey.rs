//! Counts the copies of everything linked, for `cluster status`.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::meta::Content;
use crate::topology::NodeId;

use super::Upkeep;
use super::holdings::all_in;

/// Pause between two pages, so that a large registry is not one long burst.
const PAUSE: Duration = Duration::from_millis(20);

/// How soon a survey that found gaps is repeated.
const SOON: Duration = Duration::from_secs(2);

/// Of the time, one part in so many at most goes into surveys.
const DUTY: u32 = 10;

/// The same while anything is out of place.
const BUSY_DUTY: u32 = 3;

/// What a survey of all copies found; a node that does not answer counts as holding nothing, and copies on nodes that are
/// out or being emptied count only against loss (P22).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Survey {
    /// Blobs and manifest bodies that are linked.
    pub contents: u64,
    /// Those with fewer copies in reach than there should be.
    pub under_replicated: u64,
    /// Blobs with more copies than there should be.
    pub over_replicated: u64,
    /// Contents with enough copies, but not on all the nodes that should hold them.
    pub misplaced: u64,
    /// Those that every member says, for certain, not to have (P19).
    pub lost: u64,
    /// When the survey ended; `None` before the first.
    pub ended: Option<Instant>,
}

impl Upkeep {
    /// Asks all nodes, page by page and over again, what they hold of everything linked. Never ends.
    pub async fn survey_copies(self) {
        loop {
            let began = Instant::now();
            let survey = self.survey_once().await;
            let took = began.elapsed();
            self.0.metrics.set_survey(&survey);
            self.0.survey.send_replace(survey);
            // What changes is followed more closely, but a large registry is not asked for ever.
            let moves = survey.under_replicated + survey.misplaced + survey.over_replicated + survey.lost > 0;
            let every = self.0.config.survey_every;
            sleep(if moves { SOON.min(every).max(took * BUSY_DUTY) } else { every.max(took * DUTY) }).await;
        }
    }

    async fn survey_once(&self) -> Survey {
        let mut survey = Survey::default();
        let mut after = None;
        while let Some(page) = self.next_page(&mut after) {
            self.survey_page(&page, &mut survey).await;
            sleep(PAUSE).await;
        }
        survey.ended = Some(Instant::now());
        survey
    }

    async fn survey_page(&self, page: &[Content], survey: &mut Survey) {
        let holdings = self.ask_all(page).await;
        let all_in = all_in(&self.0.parts.replicas.topology());
        for (n, content) in page.iter().enumerate() {
            let holds = |node: &NodeId| holdings.has(*node, n);
            let wanted = self.wanted(content);
            let copies = all_in.iter().filter(|node| holds(node)).count();
            survey.contents += 1;
            survey.under_replicated += u64::from(copies < wanted.len());
            survey.misplaced += u64::from(copies >= wanted.len() && !wanted.iter().all(holds));
            survey.over_replicated += u64::from(!content.body && copies > wanted.len());
            survey.lost += u64::from(holdings.is_nowhere(n));
        }
    }
}
