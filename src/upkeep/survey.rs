//! Counts the copies of everything linked, for `cluster status`.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use tokio::time::{Instant, sleep};

use crate::meta::Content;
use crate::oci::Digest;
use crate::topology::{NodeId, NodeRecord, NodeState};

use super::Upkeep;

/// Contents asked about in one question.
const PAGE: usize = 500;

/// Pause between two pages, so that a large registry is not one long burst.
const PAUSE: Duration = Duration::from_millis(20);

/// How soon a survey that found gaps is repeated.
const SOON: Duration = Duration::from_secs(2);

/// Of the time, one part in so many at most goes into surveys.
const DUTY: u32 = 10;

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

/// What one node said about a page.
struct Answer {
    present: Vec<bool>,
    is_sure: bool,
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
            sleep(if moves { SOON.min(every).max(took) } else { every.max(took * DUTY) }).await;
        }
    }

    async fn survey_once(&self) -> Survey {
        let mut survey = Survey::default();
        let mut after: Option<Digest> = None;
        loop {
            let state = self.0.parts.meta.local();
            let page = state.contents(after.as_ref(), PAGE);
            let Some(last) = page.last().map(|content| content.digest.clone()) else { break };
            after = Some(last);
            self.survey_page(&page, &mut survey).await;
            sleep(PAUSE).await;
        }
        survey.ended = Some(Instant::now());
        survey
    }

    async fn survey_page(&self, page: &[Content], survey: &mut Survey) {
        let replicas = &self.0.parts.replicas;
        let topology = replicas.topology();
        let question: Vec<(Digest, u64)> = page.iter().map(|content| (content.digest.clone(), content.size)).collect();
        let question = question.as_slice();
        let ask = |node| async move {
            let answer = replicas.presence(node, question).await;
            (node, answer.map(|(present, is_sure)| Answer { present, is_sure }))
        };
        let nodes: Vec<NodeId> = topology.nodes.keys().copied().collect();
        let answers: BTreeMap<NodeId, Option<Answer>> =
            futures::stream::iter(nodes.into_iter().map(ask)).buffer_unordered(8).collect().await;
        let all_sure = answers.values().all(|answer| answer.as_ref().is_some_and(|answer| answer.is_sure));
        let all_in: Vec<NodeId> = topology.nodes.values().filter(|node| is_in(node)).map(|node| node.id).collect();
        for (n, content) in page.iter().enumerate() {
            let holds = |node: &NodeId| answers.get(node).is_some_and(|answer| has(answer, n));
            let wanted = if content.body { all_in.clone() } else { replicas.wanted_holders(&content.digest) };
            let copies = all_in.iter().filter(|node| holds(node)).count();
            survey.contents += 1;
            survey.under_replicated += u64::from(copies < wanted.len());
            survey.misplaced += u64::from(copies >= wanted.len() && !wanted.iter().all(holds));
            survey.over_replicated += u64::from(!content.body && copies > wanted.len());
            survey.lost += u64::from(all_sure && !answers.values().any(|answer| has(answer, n)));
        }
    }
}

fn is_in(node: &NodeRecord) -> bool {
    node.state == NodeState::In
}

fn has(answer: &Option<Answer>, n: usize) -> bool {
    answer.as_ref().is_some_and(|answer| answer.present.get(n) == Some(&true))
}
