//! The log as readers see it: the newest entries in memory, the place of each older one on disk.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex};

use super::types::{Entry, decode_entry};
use super::wal::{Ballot, EntryId, Files, Place, Recovered, read_entry};

/// How much of the log stays decoded in memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct CacheLimits {
    pub(super) entries: usize,
    pub(super) bytes: usize,
}

/// Shared by the log store, its readers and the writer's callbacks.
#[derive(Debug)]
pub(super) struct LogMemory {
    limits: CacheLimits,
    pub(super) files: Files,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    ballot: Option<Ballot>,
    purged: Option<EntryId>,
    committed: Option<EntryId>,
    slots: VecDeque<Slot>,
    cached_entries: usize,
    cached_bytes: usize,
    /// No entry with an index below this is cached.
    evicted_below: u64,
}

#[derive(Debug)]
struct Slot {
    id: EntryId,
    place: Option<Place>,
    cached: Option<(Entry, usize)>,
}

impl Inner {
    fn slot(&mut self, index: u64) -> Option<&mut Slot> {
        let first = self.slots.front()?.id.index;
        let at = usize::try_from(index.checked_sub(first)?).ok()?;
        self.slots.get_mut(at)
    }

    fn forget(&mut self, slot: &Slot) {
        if let Some((_, bytes)) = &slot.cached {
            self.cached_entries -= 1;
            self.cached_bytes -= bytes;
        }
    }

    /// Drops the oldest decoded entries beyond the limits, as far as they lie durable on disk.
    fn evict(&mut self, limits: CacheLimits) {
        while self.cached_entries > limits.entries || self.cached_bytes > limits.bytes {
            let Some(first) = self.slots.front().map(|slot| slot.id.index) else { return };
            let index = self.evicted_below.max(first);
            let Some(slot) = self.slot(index) else { return };
            if slot.place.is_none() {
                return;
            }
            if let Some((_, bytes)) = slot.cached.take() {
                self.cached_entries -= 1;
                self.cached_bytes -= bytes;
            }
            self.evicted_below = index + 1;
        }
    }
}

impl LogMemory {
    pub(super) fn new(recovered: &Recovered, limits: CacheLimits) -> Self {
        let slots = recovered.entries.iter().map(|(id, place)| Slot { id: *id, place: Some(*place), cached: None });
        let slots: VecDeque<_> = slots.collect();
        let evicted_below = slots.back().map_or(0, |slot| slot.id.index + 1);
        let inner = Inner {
            ballot: recovered.ballot,
            purged: recovered.purged,
            committed: recovered.committed,
            slots,
            cached_entries: 0,
            cached_bytes: 0,
            evicted_below,
        };
        Self { limits, files: Files::default(), inner: Mutex::new(inner) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().expect("no panic while held")
    }

    /// The purged id, and the last id (the purged one if there is no entry).
    pub(super) fn bounds(&self) -> (Option<EntryId>, Option<EntryId>) {
        let inner = self.lock();
        (inner.purged, inner.slots.back().map(|slot| slot.id).or(inner.purged))
    }

    pub(super) fn ballot(&self) -> Option<Ballot> {
        self.lock().ballot
    }

    pub(super) fn set_ballot(&self, ballot: Ballot) {
        self.lock().ballot = Some(ballot);
    }

    pub(super) fn committed(&self) -> Option<EntryId> {
        self.lock().committed
    }

    pub(super) fn set_committed(&self, committed: Option<EntryId>) {
        self.lock().committed = committed;
    }

    /// Makes an entry readable.
    ///
    /// # Errors
    ///
    /// If it does not follow the last one: a hole would be silent loss.
    pub(super) fn push(&self, id: EntryId, entry: Entry, bytes: usize) -> io::Result<()> {
        let mut inner = self.lock();
        let last = inner.slots.back().map(|slot| slot.id).or(inner.purged);
        // An empty log that was never purged may begin anywhere; consensus begins at 0.
        if last.is_some_and(|last| last.index + 1 != id.index) {
            return Err(io::Error::other(format!("entry {} does not follow the log's last entry {last:?}", id.index)));
        }
        inner.slots.push_back(Slot { id, place: None, cached: Some((entry, bytes)) });
        inner.cached_entries += 1;
        inner.cached_bytes += bytes;
        inner.evict(self.limits);
        Ok(())
    }

    /// Notes where entries became durable; those truncated meanwhile are passed over.
    pub(super) fn placed(&self, places: &[(EntryId, Place)]) {
        let mut inner = self.lock();
        for (id, place) in places {
            if let Some(slot) = inner.slot(id.index)
                && slot.id == *id
            {
                slot.place = Some(*place);
            }
        }
        inner.evict(self.limits);
    }

    /// Drops the entries after `after`, or all.
    pub(super) fn truncate(&self, after: Option<EntryId>) {
        let mut inner = self.lock();
        while inner.slots.back().is_some_and(|slot| after.is_none_or(|after| slot.id.index > after.index)) {
            let slot = inner.slots.pop_back().expect("just seen");
            inner.forget(&slot);
        }
        let next = inner.slots.back().map_or(0, |slot| slot.id.index + 1);
        inner.evicted_below = inner.evicted_below.min(next);
    }

    /// Drops the entries up to `upto`, inclusive.
    pub(super) fn purge(&self, upto: EntryId) {
        let mut inner = self.lock();
        if inner.purged.is_none_or(|purged| purged.index < upto.index) {
            inner.purged = Some(upto);
        }
        while inner.slots.front().is_some_and(|slot| slot.id.index <= upto.index) {
            let slot = inner.slots.pop_front().expect("just seen");
            inner.forget(&slot);
        }
    }

    /// Reads the entries of a range that the log has: from memory, older ones from disk on a thread for blocking work.
    ///
    /// # Errors
    ///
    /// What the filesystem says; `InvalidData` if a record is damaged or unknown.
    pub(super) async fn read(&self, range: impl RangeBounds<u64>) -> io::Result<Vec<Entry>> {
        load(self.pick(&range, usize::MAX)).await
    }

    /// Like [`Self::read`], but at most about `bytes_max` bytes, and at least one entry.
    pub(super) async fn read_limited(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let wanted = self.pick(&(start..end), bytes_max);
        let entries = load(wanted).await?;
        // A purge may have taken the first ones meanwhile. A run that begins later would not follow what it is sent after;
        // nothing at all is understood as "not now".
        let begins = entries.first().is_some_and(|entry| entry.log_id.index == start);
        Ok(if begins { entries } else { Vec::new() })
    }

    fn pick(&self, range: &impl RangeBounds<u64>, bytes_max: usize) -> Vec<Piece> {
        let inner = self.lock();
        let Some(first) = inner.slots.front().map(|slot| slot.id.index) else { return Vec::new() };
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        let skip = usize::try_from(start.saturating_sub(first)).unwrap_or(usize::MAX);
        let mut bytes = 0;
        let mut pieces = Vec::new();
        for slot in inner.slots.iter().skip(skip).take_while(|slot| slot.id.index < end) {
            if !pieces.is_empty() && bytes >= bytes_max {
                break;
            }
            bytes += match (&slot.cached, slot.place) {
                (Some((_, size)), _) => *size,
                (None, place) => place.map_or(0, |place| place.length as usize),
            };
            pieces.push(match (&slot.cached, slot.place) {
                (Some((entry, _)), _) => Piece::Here(Box::new(entry.clone())),
                // Held open from here on: the purge that deletes the segment first takes its entries out of `slots`.
                (None, Some(place)) => Piece::There(self.files.get(place.segment), place),
                (None, None) => unreachable!("an entry leaves memory only when it lies on disk"),
            });
        }
        pieces
    }
}

enum Piece {
    Here(Box<Entry>),
    There(Option<Arc<File>>, Place),
}

impl Piece {
    fn load(self) -> io::Result<Entry> {
        match self {
            Self::Here(entry) => Ok(*entry),
            Self::There(file, place) => {
                let gone = || io::Error::new(io::ErrorKind::NotFound, format!("log segment {} is gone", place.segment));
                let file = file.ok_or_else(gone)?;
                decode_entry(&read_entry(&file, place)?)
            }
        }
    }
}

/// Decodes what was picked; what lies on disk, on a thread for blocking work.
async fn load(wanted: Vec<Piece>) -> io::Result<Vec<Entry>> {
    if wanted.iter().all(|piece| matches!(piece, Piece::Here(_))) {
        return wanted.into_iter().map(Piece::load).collect();
    }
    let reading = tokio::task::spawn_blocking(move || wanted.into_iter().map(Piece::load).collect());
    reading.await.map_err(io::Error::other)?
}
