//! How one node takes books over from another: questions and answers, without the wire. Pure.

use crate::topology::NodeId;

use super::book::{News, Version};
use super::holdings::{Holdings, Part};
use super::keys::{Key, Range, Summary};

/// Ranges compared in one message.
pub(super) const RANGES_MAX: usize = 64;
/// Keys told in one answer, of all ranges together, beyond which no further range is looked at.
pub(super) const KEYS_MAX: usize = 8192;
/// A range with fewer keys is told whole to somebody who has much of it already.
const WHOLE_MAX: usize = 64;
/// A range with fewer keys is told whole to somebody who has little of it.
pub(super) const FRESH_WHOLE_MAX: usize = 1024;
/// Questions of one exchange: enough for tens of millions of keys, and an end to one that nobody honest causes.
const QUESTIONS_MAX: u32 = 20_000;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Question {
    /// What is new in some books, after the versions known.
    Pull(Vec<(NodeId, Version)>),
    /// Where the book of one node differs from these sums.
    Compare(NodeId, Vec<(Range, Summary)>),
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// News of the books asked about.
    News(Vec<Part>),
    /// The differing ranges; nothing if there is no such book to compare with.
    Differences(Option<Comparison>),
}

/// How a range differs from what was asked about, as the answering node has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Difference {
    /// All its keys.
    Keys(Vec<Key>),
    /// The sums of its parts.
    Parts(Vec<Summary>),
}

/// The ranges in which a book differs, and where that book stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Comparison {
    pub(super) version: Version,
    /// How many of the ranges were looked at, from the first on; the others are to be asked about again.
    pub(super) looked_at: usize,
    /// By place in the question.
    pub(super) differing: Vec<(usize, Difference)>,
}

impl Holdings {
    /// Says where the book of one node differs from some sums; nothing if there is no whole book to compare with.
    pub(super) fn compare(&self, node: NodeId, ranges: &[(Range, Summary)]) -> Option<Comparison> {
        let book = self.books.get(&node).filter(|book| book.version().whole && !book.held().has_overflowed())?;
        let held = book.held();
        let mut comparison = Comparison { version: book.version(), looked_at: 0, differing: Vec::new() };
        let mut told = 0;
        for (place, (range, theirs)) in ranges.iter().take(RANGES_MAX).enumerate() {
            if told >= KEYS_MAX {
                break;
            }
            comparison.looked_at = place + 1;
            let ours = held.summary(*range);
            if ours == *theirs {
                continue;
            }
            let whole_max = if theirs.count < ours.count / 2 { FRESH_WHOLE_MAX } else { WHOLE_MAX };
            let difference = match ours.count <= whole_max as u64 {
                true => Difference::Keys(held.keys_in(*range).collect()),
                false => Difference::Parts(range.parts().map(|part| held.summary(part)).collect()),
            };
            if let Difference::Keys(keys) = &difference {
                told += keys.len();
            }
            comparison.differing.push((place, difference));
        }
        Some(comparison)
    }
}

/// What an exchange came to, for the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Outcome {
    /// Runs of steps that were taken over.
    pub(super) followed: u64,
    /// Books that had to be compared.
    pub(super) compared: u64,
    /// Questions put.
    pub(super) questions: u32,
}

/// One exchange with one peer, as the asking side sees it: at most one question is open at a time.
#[derive(Debug)]
pub(super) struct Exchange {
    pulling: Vec<NodeId>,
    /// Whether news was asked for already.
    pulled: bool,
    comparing: Vec<NodeId>,
    descent: Option<Descent>,
    asked: Option<Question>,
    pub(super) outcome: Outcome,
}

impl Exchange {
    /// Begins an exchange about some books.
    pub(super) fn new(books: Vec<NodeId>) -> Self {
        Self {
            pulling: books,
            pulled: false,
            comparing: Vec::new(),
            descent: None,
            asked: None,
            outcome: Outcome::default(),
        }
    }

    /// What to ask next; nothing at the end.
    pub(super) fn question(&mut self, holdings: &mut Holdings) -> Option<Question> {
        if self.outcome.questions == QUESTIONS_MAX {
            return None;
        }
        let question = match self.pulling.is_empty() {
            false => Some(Question::Pull(self.pulling.iter().map(|node| (*node, holdings.version(*node))).collect())),
            true => self.compare(holdings),
        };
        self.outcome.questions += u32::from(question.is_some());
        self.asked.clone_from(&question);
        question
    }

    fn compare(&mut self, holdings: &mut Holdings) -> Option<Question> {
        loop {
            let Some(descent) = &mut self.descent else {
                let node = self.comparing.pop()?;
                self.outcome.compared += 1;
                self.descent = Some(Descent::new(node));
                continue;
            };
            if let Some(ranges) = descent.question(holdings) {
                return Some(Question::Compare(descent.node, ranges));
            }
            self.descent = None;
        }
    }

    /// Takes in the answer to the last question.
    pub(super) fn take(&mut self, holdings: &mut Holdings, answer: Answer) {
        match (self.asked.take(), answer) {
            (Some(Question::Pull(positions)), Answer::News(parts)) => self.take_news(holdings, &positions, parts),
            (Some(Question::Compare(_, asked)), Answer::Differences(Some(comparison))) => {
                if let Some(descent) = &mut self.descent {
                    descent.take(holdings, &asked, comparison);
                }
            }
            // Nothing to compare with, or no answer to the question: this book another time.
            _ => {
                self.pulling.clear();
                self.descent = None;
            }
        }
    }

    fn take_news(&mut self, holdings: &mut Holdings, positions: &[(NodeId, Version)], parts: Vec<Part>) {
        let told = |node: &NodeId| parts.iter().any(|part| part.node == *node);
        if !self.pulled {
            // Equal versions and unequal sums: there is no news, and yet something to compare.
            self.comparing = self.pulling.iter().copied().filter(|node| !told(node)).collect();
        }
        self.pulled = true;
        self.pulling.clear();
        for Part { node, news } in parts {
            if !positions.iter().any(|(asked, _)| *asked == node) {
                continue;
            }
            match news {
                News::Compare => self.comparing.push(node),
                News::Steps(after, steps) => {
                    if holdings.other(node).is_some_and(|book| book.follow(after, &steps)) {
                        self.outcome.followed += 1;
                        self.pulling.push(node); // there may be more
                    }
                }
            }
        }
    }
}

/// One book being brought in line with another node's copy of it, range by range.
#[derive(Debug)]
struct Descent {
    node: NodeId,
    /// Ranges that differ and were not looked into yet; a stack, so that it stays short.
    pending: Vec<Range>,
    /// Where the other's book stood in its first answer: steps after that are told by the journal.
    reached: Option<Version>,
}

impl Descent {
    /// Begins with everything.
    fn new(node: NodeId) -> Self {
        Self { node, pending: vec![Range::ALL], reached: None }
    }

    /// What to ask next; at the end nothing, and the book has reached the other's version.
    fn question(&mut self, holdings: &mut Holdings) -> Option<Vec<(Range, Summary)>> {
        let book = holdings.other(self.node)?;
        if self.reached.is_some() && book.held().has_overflowed() {
            self.pending.clear();
        }
        if self.pending.is_empty() {
            if let Some(version) = self.reached {
                book.reached(version);
            }
            return None;
        }
        let from = self.pending.len().saturating_sub(RANGES_MAX);
        Some(self.pending.drain(from..).map(|range| (range, book.held().summary(range))).collect())
    }

    fn take(&mut self, holdings: &mut Holdings, asked: &[(Range, Summary)], answer: Comparison) {
        let Some(book) = holdings.other(self.node) else { return };
        self.reached.get_or_insert(answer.version);
        // Without a look at any nothing would be left to end with; honest peers look at one at least.
        let left = asked.get(answer.looked_at.max(1)..).unwrap_or_default();
        self.pending.extend(left.iter().map(|(range, _)| *range));
        for (place, difference) in answer.differing {
            let Some((range, _)) = asked.get(place) else { continue };
            match difference {
                Difference::Keys(keys) => book.held_mut().replace(*range, keys),
                Difference::Parts(parts) => {
                    for (part, theirs) in range.parts().zip(parts) {
                        if theirs.count == 0 {
                            book.held_mut().replace(part, Vec::new());
                        } else if book.held().summary(part) != theirs {
                            self.pending.push(part);
                        }
                    }
                }
            }
        }
    }
}
