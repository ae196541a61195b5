//! Everything this node knows from gossip, behind one lock that is never held across a wait.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::oci::Digest;
use crate::topology::NodeId;

use super::detector::Detector;
use super::journal::Journal;
use super::locations::Locations;
use super::{Config, Liveness, Members};

/// How fresh another node's word must be to be worth repeating in a reason.
const HEARSAY_FRESH: Duration = Duration::from_secs(2);

pub(super) struct State {
    pub(super) detector: Detector,
    pub(super) journal: Journal,
    pub(super) locations: Locations,
    /// What each peer last said of the others, and when.
    hearsay: BTreeMap<NodeId, (Instant, Vec<View>)>,
    me: NodeId,
}

/// What one node says of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct View {
    pub(super) node: NodeId,
    pub(super) heard_ago: Option<Duration>,
}

impl State {
    pub(super) fn new(me: NodeId, config: &Config, now: Instant) -> Self {
        Self {
            detector: Detector::new(me, config.clone(), now),
            journal: Journal::default(),
            locations: Locations::new(config.hints_max),
            hearsay: BTreeMap::new(),
            me,
        }
    }

    /// Follows the agreed set of nodes.
    pub(super) fn set_nodes(&mut self, nodes: &BTreeSet<NodeId>, now: Instant) {
        self.detector.set_peers(nodes.iter().copied(), now);
        self.journal.keep_only(nodes);
        self.locations.keep_only(nodes);
        self.hearsay.retain(|node, _| nodes.contains(node));
    }

    /// Takes in what a peer said by itself.
    pub(super) fn heard(&mut self, from: NodeId, gained: &[Digest], views: Vec<View>, now: Instant) {
        for digest in gained {
            self.locations.learn(digest, from);
        }
        if !views.is_empty() {
            self.hearsay.insert(from, (now, views));
        }
    }

    /// Says how this node sees the others, for them to show.
    pub(super) fn views(&self, now: Instant) -> Vec<View> {
        let peers = self.detector.peers();
        peers.map(|node| View { node, heard_ago: self.detector.silence(node, now) }).collect()
    }

    /// Says how everyone stands; a reason also tells when others do hear the silent node.
    pub(super) fn members(&self, now: Instant) -> Members {
        let mut members = self.detector.members(now);
        for (node, member) in &mut members {
            if member.liveness == Liveness::Live || *node == self.me || self.detector.has_left(*node) {
                continue;
            }
            let Some((witness, ago)) = self.heard_by_another(*node, now) else { continue };
            if let Some(reason) = &mut member.reason {
                reason.push_str(&format!("; node {witness} heard it {:.1} s ago", ago.as_secs_f64()));
            }
        }
        members
    }

    fn heard_by_another(&self, node: NodeId, now: Instant) -> Option<(NodeId, Duration)> {
        let told = self.hearsay.iter().filter(|(witness, _)| **witness != node);
        told.filter_map(|(witness, (at, views))| {
            let heard_ago = views.iter().find(|view| view.node == node)?.heard_ago?;
            Some((*witness, heard_ago + now.duration_since(*at)))
        })
        .filter(|(_, ago)| *ago < HEARSAY_FRESH)
        .min_by_key(|(_, ago)| *ago)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_tells_who_still_hears_the_silent_node() {
        let start = Instant::now();
        let mut state = State::new(NodeId(1), &Config::default(), start);
        state.set_nodes(&[1, 2, 3].map(NodeId).into(), start);
        state.detector.answered(NodeId(2), 1, start);
        let view = View { node: NodeId(3), heard_ago: Some(Duration::from_millis(300)) };
        state.heard(NodeId(2), &[], vec![view], start);
        let reason = state.members(start)[&NodeId(3)].reason.clone().unwrap();
        assert_eq!(reason, "no answer yet, for 0.0 s; node 2 heard it 0.3 s ago");
        let reason = state.members(start + Duration::from_secs(3))[&NodeId(3)].reason.clone().unwrap();
        assert_eq!(reason, "no answer yet, for 3.0 s", "old word is not repeated");
    }
}
