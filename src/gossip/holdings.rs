//! What every node holds, as far as this node has heard: one book a node, and how books catch up with each other. Pure.
//!
//! Any node passes on any book, so news goes round although its origin is out of reach. Who lags by a few steps is told the
//! steps; who lags by more, or knows nothing, compares sums over ranges and goes down only into those that differ: the cost
//! follows the difference (`exchange.rs`).

use std::collections::{BTreeMap, BTreeSet};

use crate::topology::NodeId;

use super::book::{Book, News, Step, Version};
use super::keys::{Key, KeySet};

/// Books about which one message speaks; those of a larger cluster take turns.
pub(super) const BOOKS_MAX: usize = 64;
/// Steps told in one answer, of all books together.
pub(super) const STEPS_MAX: usize = 2048;

/// Where a book stands at some node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) node: NodeId,
    pub(super) version: Version,
    /// The sum over what is held, to find books that differ although they should not.
    pub(super) sum: u64,
}

/// News of one book.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) node: NodeId,
    pub(super) news: News,
}

/// What is known of one node's book, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Blobs it is said to hold.
    pub blobs: u64,
    /// Whether it says everything: not while that node's index is being rebuilt, nor while this node catches up.
    pub whole: bool,
}

/// All books.
#[derive(Debug)]
pub(super) struct Holdings {
    me: NodeId,
    nodes: BTreeSet<NodeId>,
    pub(super) books: BTreeMap<NodeId, Book>,
    /// Where books stand elsewhere, as each peer last said.
    heard: BTreeMap<NodeId, Vec<Standing>>,
    /// (Blob, holder) pairs that may be noted of others, shared out evenly.
    entries_max: u64,
    /// The books that take their turn next.
    turn: usize,
}

impl Holdings {
    /// Knows nothing; `epoch` should be above those of this node's earlier starts.
    pub(super) fn new(me: NodeId, epoch: u64, entries_max: u64) -> Self {
        let books = BTreeMap::from([(me, Book::new(epoch))]);
        Self { me, nodes: BTreeSet::from([me]), books, heard: BTreeMap::new(), entries_max, turn: 0 }
    }

    /// Follows the agreed set of nodes; what those held that are none any more is forgotten.
    pub(super) fn set_nodes(&mut self, nodes: &BTreeSet<NodeId>) {
        self.nodes.clone_from(nodes);
        self.nodes.insert(self.me);
        let nodes = &self.nodes;
        self.books.retain(|node, _| nodes.contains(node));
        self.heard.retain(|node, _| nodes.contains(node));
        let (me, share) = (self.me, self.share());
        for (_, book) in self.books.iter_mut().filter(|(node, _)| **node != me) {
            book.held_mut().limit(share);
        }
    }

    fn share(&self) -> u64 {
        self.entries_max / (self.nodes.len() as u64 - 1).max(1)
    }

    fn own(&mut self) -> &mut Book {
        self.books.get_mut(&self.me).expect("made with the rest and never dropped")
    }

    /// The book of another node, a new one if need be; nothing if there is no such node.
    pub(super) fn other(&mut self, node: NodeId) -> Option<&mut Book> {
        if node == self.me || !self.nodes.contains(&node) {
            return None;
        }
        let share = self.share();
        Some(self.books.entry(node).or_insert_with(|| {
            let mut book = Book::default();
            book.held_mut().limit(share);
            book
        }))
    }

    /// Notes that this node gained or lost a blob.
    pub(super) fn write(&mut self, step: Step) {
        self.own().write(step);
    }

    /// Notes that this node holds exactly these blobs.
    pub(super) fn rewrite(&mut self, held: KeySet) {
        self.own().rewrite(held);
    }

    /// Counts the (blob, holder) pairs noted, this node's own too.
    pub(super) fn len(&self) -> u64 {
        self.books.values().map(|book| book.held().all().count).sum()
    }

    /// The other nodes that are said to hold a blob.
    pub(super) fn holders(&self, key: Key) -> impl Iterator<Item = NodeId> {
        let others = self.books.iter().filter(|(node, _)| **node != self.me);
        others.filter(move |(_, book)| book.held().contains(key)).map(|(node, _)| *node)
    }

    /// What is known of every book.
    pub(super) fn known(&self) -> BTreeMap<NodeId, Known> {
        let known = |book: &Book| Known {
            blobs: book.held().all().count,
            whole: book.version().whole && !book.held().has_overflowed(),
        };
        self.books.iter().map(|(node, book)| (*node, known(book))).collect()
    }

    /// Where books stand here, this node's own first: all of them, or those whose turn it is.
    pub(super) fn standings(&mut self) -> Vec<Standing> {
        let standing = |(node, book): (&NodeId, &Book)| Standing {
            node: *node,
            version: book.version(),
            sum: book.held().all().sum,
        };
        let own = self.books.get_key_value(&self.me).map(standing);
        // What this node has no room for is not passed on.
        let others = self.books.iter().filter(|(node, book)| **node != self.me && !book.held().has_overflowed());
        let mut others: Vec<Standing> = others.map(standing).collect();
        if others.len() >= BOOKS_MAX {
            self.turn = (self.turn + BOOKS_MAX - 1) % others.len();
            others.rotate_left(self.turn);
        }
        own.into_iter().chain(others).take(BOOKS_MAX).collect()
    }

    /// Takes note of where books stand at `from`; says whether it is ahead of this node in any.
    ///
    /// Hearing that this node's own book stands further elsewhere (its clock went back between two starts), this node
    /// goes beyond that.
    pub(super) fn hear(&mut self, from: NodeId, mut standings: Vec<Standing>) -> bool {
        if from == self.me || !self.nodes.contains(&from) {
            return false;
        }
        standings.truncate(BOOKS_MAX);
        if let Some(own) = standings.iter().find(|standing| standing.node == self.me)
            && own.version > self.own().version()
        {
            self.own().renew(own.version.epoch.saturating_add(1));
        }
        let behind = standings.iter().any(|standing| self.lags(from, standing));
        let heard = self.heard.entry(from).or_default();
        // A part of a large cluster's books: what was said of the others stands.
        let all = standings.len() < BOOKS_MAX;
        heard.retain(|known| {
            !all && standings.iter().all(|new| new.node != known.node) && self.nodes.contains(&known.node)
        });
        heard.append(&mut standings);
        behind
    }

    /// Whether the book should be taken over from `from`, who is taken at its word about itself, even where its book
    /// should be the same.
    fn lags(&self, from: NodeId, theirs: &Standing) -> bool {
        if theirs.node == self.me || !self.nodes.contains(&theirs.node) {
            return false;
        }
        let Some(ours) = self.books.get(&theirs.node) else { return theirs.version > Version::default() };
        let differs = || {
            theirs.node == from
                && ours.version() == theirs.version
                && theirs.version.whole
                && !ours.held().has_overflowed()
                && ours.held().all().sum != theirs.sum
        };
        theirs.version > ours.version() || differs()
    }

    /// From whom to take which books: each from the node it is about if that may be asked and is ahead, else from who is
    /// furthest ahead. Neither peers nor books for which `may` says no are named.
    pub(super) fn plan(
        &self,
        may_ask: impl Fn(NodeId) -> bool,
        may_take: impl Fn(NodeId) -> bool,
    ) -> BTreeMap<NodeId, Vec<NodeId>> {
        let mut best: BTreeMap<NodeId, (bool, Version, NodeId)> = BTreeMap::new();
        for (from, standings) in self.heard.iter().filter(|(from, _)| may_ask(**from)) {
            for standing in standings.iter().filter(|standing| may_take(standing.node) && self.lags(*from, standing)) {
                let offer = (standing.node == *from, standing.version, *from);
                let best = best.entry(standing.node).or_insert(offer);
                *best = offer.max(*best);
            }
        }
        let mut plan: BTreeMap<NodeId, Vec<NodeId>> = BTreeMap::new();
        for (book, (_, _, from)) in best {
            plan.entry(from).or_default().push(book);
        }
        plan
    }

    pub(super) fn version(&self, node: NodeId) -> Version {
        self.books.get(&node).map(Book::version).unwrap_or_default()
    }

    /// Tells what of some books is new to somebody; books that are no newer here are left out.
    pub(super) fn news(&self, positions: &[(NodeId, Version)]) -> Vec<Part> {
        let mut room = STEPS_MAX;
        let mut parts = Vec::new();
        for (node, have) in positions.iter().take(BOOKS_MAX) {
            let Some(news) = self.books.get(node).and_then(|book| book.news(*have, room)) else { continue };
            if let News::Steps(_, steps) = &news {
                room -= steps.len();
            }
            parts.push(Part { node: *node, news });
        }
        parts
    }
}
