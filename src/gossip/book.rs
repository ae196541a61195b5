//! What one node holds, at a version, with the last steps that led there: the node's own account of itself, or another's
//! copy of it.

use std::collections::VecDeque;

use super::keys::{Key, KeySet};

/// Steps kept for those who lag; who lags by more compares.
pub(super) const TAIL_MAX: usize = 4096;

/// Names one state of a book. Only the node that a book is about makes new ones, and never two of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Version {
    /// Grows with each start of the node.
    pub(super) epoch: u64,
    /// Whether the book says everything; from its start until its index is complete a node knows only what came and went
    /// since, and nobody reads that as the absence of anything else.
    pub(super) whole: bool,
    /// Grows by one with each step.
    pub(super) sequence: u64,
}

/// One blob that came or went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) key: Key,
    pub(super) gained: bool,
}

/// What a book says to somebody who has an older version of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum News {
    /// The steps that follow a version, perhaps not all: the version asked for, or where this book's memory begins.
    Steps(Version, Vec<Step>),
    /// They are not kept any more: compare.
    Compare,
}

/// A book.
#[derive(Debug, Clone, Default)]
pub(super) struct Book {
    version: Version,
    held: KeySet,
    /// Oldest first; the last one led to `version`.
    tail: VecDeque<Step>,
}

impl Book {
    /// A node's own book of nothing, which is not whole.
    pub(super) fn new(epoch: u64) -> Self {
        Self { version: Version { epoch, ..Version::default() }, ..Self::default() }
    }

    pub(super) const fn version(&self) -> Version {
        self.version
    }

    pub(super) const fn held(&self) -> &KeySet {
        &self.held
    }

    /// For whoever brings the held keys in line range by range; it says so by [`Book::reached`] in the end.
    pub(super) const fn held_mut(&mut self) -> &mut KeySet {
        &mut self.held
    }

    /// Writes down what the node itself gained or lost, unless the book says so already.
    pub(super) fn write(&mut self, step: Step) {
        let changed = match step.gained {
            true => self.held.insert(step.key),
            false => self.held.remove(step.key),
        };
        // While the book is not whole, a loss may be of something it never named.
        if changed || (!self.version.whole && !step.gained) {
            self.push(step);
        }
    }

    fn push(&mut self, step: Step) {
        self.version.sequence += 1;
        if self.tail.len() == TAIL_MAX {
            self.tail.pop_front();
        }
        self.tail.push_back(step);
    }

    /// Makes the node's own book say that it holds exactly `held`.
    pub(super) fn rewrite(&mut self, held: KeySet) {
        if self.version.whole {
            let gone = self.held.keys().filter(|key| !held.contains(*key)).map(|key| Step { key, gained: false });
            let new = held.keys().filter(|key| !self.held.contains(*key)).map(|key| Step { key, gained: true });
            let steps: Vec<Step> = gone.chain(new).take(TAIL_MAX + 1).collect();
            if steps.len() <= TAIL_MAX {
                steps.into_iter().for_each(|step| self.write(step));
                return;
            }
        }
        self.held = held;
        self.version = Version { whole: true, sequence: self.version.sequence + 1, ..self.version };
        self.tail.clear();
    }

    /// Begins a new epoch with what is held.
    pub(super) fn renew(&mut self, epoch: u64) {
        self.version = Version { epoch, sequence: 0, ..self.version };
        self.tail.clear();
    }

    /// The version that the kept steps follow.
    fn tail_begins(&self) -> Version {
        Version { sequence: self.version.sequence - self.tail.len() as u64, ..self.version }
    }

    /// What somebody at version `have` lacks; nothing if that is not older.
    pub(super) fn news(&self, have: Version, steps_max: usize) -> Option<News> {
        if have >= self.version {
            return None;
        }
        let begins = self.tail_begins();
        let follows = have.epoch == begins.epoch && have.whole == begins.whole && have >= begins;
        let after = match follows {
            true => have,
            // Nothing can be compared with a book that is not whole: what is kept must do.
            false if !self.version.whole => begins,
            false => return Some(News::Compare),
        };
        let skip = usize::try_from(after.sequence - begins.sequence).unwrap_or(usize::MAX);
        Some(News::Steps(after, self.tail.iter().skip(skip).take(steps_max).copied().collect()))
    }

    /// Takes over steps that follow version `after`, as far as they are new here; says whether any were.
    pub(super) fn follow(&mut self, after: Version, steps: &[Step]) -> bool {
        let same = after.epoch == self.version.epoch && after.whole == self.version.whole;
        let known = match usize::try_from(self.version.sequence.saturating_sub(after.sequence)) {
            Ok(known) if same && after <= self.version => known,
            // A new epoch begins without a whole book, or some of its steps are forgotten everywhere: what was known
            // before stays until there is a whole book to compare with.
            _ if !after.whole && after > self.version => {
                self.version = after;
                self.tail.clear();
                0
            }
            // A gap: somebody else's comparison took the book elsewhere. Nothing is lost, it is asked for again.
            _ => return false,
        };
        for step in steps.iter().skip(known) {
            // A comparison may have been ahead of its steps: they count as steps all the same.
            match step.gained {
                true => self.held.insert(step.key),
                false => self.held.remove(step.key),
            };
            self.push(*step);
        }
        steps.len() > known
    }

    /// Notes that the held keys were brought in line with a book that stood at `version` or later.
    pub(super) fn reached(&mut self, version: Version) {
        if version > self.version {
            self.version = version;
            self.tail.clear();
        }
    }
}
