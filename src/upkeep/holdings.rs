//! What the nodes say to hold of a page of contents, and which of them should.

use std::collections::BTreeMap;

use futures::StreamExt;

use crate::meta::Content;
use crate::oci::Digest;
use crate::topology::{NodeId, NodeState, Topology};

use super::Upkeep;

/// Contents asked about in one question.
pub(super) const PAGE: usize = 500;

/// Nodes asked at once.
const QUESTIONS_MAX: usize = 8;

/// What one node says about a page.
#[derive(Debug)]
pub(super) struct Answer {
    /// Which of it the node has, in the page's order.
    pub(super) present: Vec<bool>,
    /// Whether it has nothing else: before its index is whole a node may hold more than it knows of.
    pub(super) is_sure: bool,
}

/// What each member says about a page; `None` of those that did not answer.
#[derive(Debug)]
pub(super) struct Holdings(pub(super) BTreeMap<NodeId, Option<Answer>>);

impl Holdings {
    /// Whether the node says to have it.
    pub(super) fn has(&self, node: NodeId, n: usize) -> bool {
        self.0.get(&node).is_some_and(|answer| says(answer, n))
    }

    /// Whether the node says to have it, and knows all it has.
    pub(super) fn surely_has(&self, node: NodeId, n: usize) -> bool {
        self.is_sure_of(node) && self.has(node, n)
    }

    /// Whether the node may have it: it says so, or did not answer for certain.
    pub(super) fn may_have(&self, node: NodeId, n: usize) -> bool {
        !self.is_sure_of(node) || self.has(node, n)
    }

    /// Whether a node other than this one surely has it.
    pub(super) fn is_beside(&self, node: NodeId, n: usize) -> bool {
        self.0.keys().any(|other| *other != node && self.surely_has(*other, n))
    }

    /// Whether every member says for certain not to have it (P19).
    pub(super) fn is_nowhere(&self, n: usize) -> bool {
        !self.0.keys().any(|node| self.may_have(*node, n))
    }

    fn is_sure_of(&self, node: NodeId) -> bool {
        self.0.get(&node).is_some_and(|answer| answer.as_ref().is_some_and(|answer| answer.is_sure))
    }
}

fn says(answer: &Option<Answer>, n: usize) -> bool {
    answer.as_ref().is_some_and(|answer| answer.present.get(n) == Some(&true))
}

/// The nodes that hold copies and are not emptied.
pub(super) fn all_in(topology: &Topology) -> Vec<NodeId> {
    topology.nodes.values().filter(|node| node.state == NodeState::In).map(|node| node.id).collect()
}

impl Upkeep {
    /// The next of all that is linked, from the latest state; nothing at the end.
    pub(super) fn next_page(&self, after: &mut Option<Digest>) -> Option<Vec<Content>> {
        let page = self.0.parts.meta.local().contents(after.as_ref(), PAGE);
        *after = Some(page.last()?.digest.clone());
        Some(page)
    }

    /// Asks every member what it holds of a page.
    pub(super) async fn ask_all(&self, page: &[Content]) -> Holdings {
        let replicas = &self.0.parts.replicas;
        let question: Vec<(Digest, u64)> = page.iter().map(|content| (content.digest.clone(), content.size)).collect();
        let question = question.as_slice();
        let ask = |node| async move {
            let answer = replicas.presence(node, question).await;
            (node, answer.map(|(present, is_sure)| Answer { present, is_sure }))
        };
        let nodes: Vec<NodeId> = replicas.topology().nodes.keys().copied().collect();
        Holdings(futures::stream::iter(nodes.into_iter().map(ask)).buffer_unordered(QUESTIONS_MAX).collect().await)
    }

    /// The nodes that should hold a content: a manifest body belongs on every node that is in (P18).
    pub(super) fn wanted(&self, content: &Content) -> Vec<NodeId> {
        let replicas = &self.0.parts.replicas;
        if content.body { all_in(&replicas.topology()) } else { replicas.wanted_holders(&content.digest) }
    }
}
