//! What a crash or damage does to the log: acknowledged writes survive, damage to them is never passed over.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::mpsc::sync_channel;

use proptest::prelude::*;
use tempfile::TempDir;

use crate::disk::faults::{Step as DiskStep, inject};

use super::*;

const SIZES: Sizes = Sizes { segment_bytes: 4096 };

fn id(term: u64, index: u64) -> EntryId {
    EntryId { term, node: 1, index }
}

fn hooks() -> Hooks {
    Hooks {
        files: Files::default(),
        placed: Box::new(|_| {}),
        synced: Box::new(|_| {}),
        relieve: Box::new(|| false),
        starving: Box::new(|_| {}),
    }
}

fn body(id: EntryId) -> Vec<u8> {
    format!("entry {} of term {}", id.index, id.term).into_bytes()
}

/// A log whose every write is waited for.
struct Log {
    wal: Wal,
    runtime: tokio::runtime::Runtime,
}

impl Log {
    fn open(dir: &Path) -> Result<Self, Error> {
        Self::open_with(dir, hooks())
    }

    fn open_with(dir: &Path, hooks: Hooks) -> Result<Self, Error> {
        let recovered = recover(dir)?;
        let wal = Wal::start(dir, &recovered, SIZES, hooks).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        Ok(Self { wal, runtime })
    }

    fn write(&self, write: impl FnOnce(Done) -> Write) {
        self.try_write(write).unwrap();
    }

    fn try_write(&self, write: impl FnOnce(Done) -> Write) -> io::Result<()> {
        let (sender, receiver) = sync_channel(1);
        let done: Done = Box::new(move |result: io::Result<()>| sender.send(result).unwrap());
        self.runtime.block_on(self.wal.submit(write(done))).unwrap();
        receiver.recv().unwrap()
    }

    fn append(&self, ids: impl IntoIterator<Item = EntryId>) {
        let entries = ids.into_iter().map(|id| (id, body(id))).collect();
        self.write(|done| Write::Append { entries, done });
    }

    fn vote(&self, term: u64) {
        let ballot = Ballot { term, node: 2, granted: false };
        self.write(|done| Write::Ballot { ballot, done });
    }

    fn commit(&self, committed: EntryId) {
        self.runtime.block_on(self.wal.submit(Write::Committed { committed: Some(committed) })).unwrap();
    }
}

type Entries = Vec<(EntryId, Vec<u8>)>;

/// Reads the log as a fresh process would: the bounds, and every entry's bytes.
fn read(dir: &Path) -> Result<(Recovered, Entries), Error> {
    let recovered = recover(dir)?;
    let entries = recovered.entries.iter().map(|(id, place)| {
        let file = fs::File::open(segment_path(dir, place.segment)).unwrap();
        (*id, read_entry(&file, *place).unwrap())
    });
    let entries = entries.collect();
    Ok((recovered, entries))
}

fn copy(from: &Path) -> TempDir {
    let to = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.path().join(entry.file_name())).unwrap();
    }
    to
}

fn last_segment(dir: &Path) -> std::path::PathBuf {
    segment::list(dir).unwrap().pop().unwrap().1
}

#[test]
fn a_log_comes_back_as_it_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path()).unwrap();
    log.vote(3);
    log.append([id(1, 0)]);
    log.append((1..10).map(|index| id(3, index)));
    log.write(|done| Write::Truncate { after: Some(id(3, 6)), done });
    log.append([id(4, 7), id(4, 8)]);
    log.write(|done| Write::Purge { upto: id(3, 2), done });
    log.commit(id(3, 6));
    drop(log);
    let (recovered, entries) = read(dir.path()).unwrap();
    assert_eq!(recovered.ballot, Some(Ballot { term: 3, node: 2, granted: false }));
    assert_eq!((recovered.purged, recovered.committed), (Some(id(3, 2)), Some(id(3, 6))));
    let expected: Vec<_> = (3..7).map(|index| id(3, index)).chain([id(4, 7), id(4, 8)]).collect();
    assert_eq!(entries, expected.iter().map(|id| (*id, body(*id))).collect::<Vec<_>>());
}

#[test]
fn segments_are_deleted_only_when_everything_in_them_is_purged() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path()).unwrap();
    log.vote(1);
    for index in 0..400 {
        log.append([id(1, index)]);
    }
    let before = segment::list(dir.path()).unwrap().len();
    assert!(before > 3);
    log.write(|done| Write::Purge { upto: id(1, 300), done });
    // The answer comes before the deletion; the next write after it.
    log.vote(2);
    assert!(segment::list(dir.path()).unwrap().len() < before);
    drop(log);
    let (recovered, entries) = read(dir.path()).unwrap();
    assert_eq!(recovered.purged, Some(id(1, 300)));
    assert_eq!(recovered.ballot.unwrap().term, 2);
    assert_eq!(entries.iter().map(|(id, _)| id.index).collect::<Vec<_>>(), (301..400).collect::<Vec<_>>());
}

#[test]
fn a_segment_that_cannot_be_removed_keeps_those_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path()).unwrap();
    for index in 0..400 {
        log.append([id(1, index)]);
    }
    let before = segment::list(dir.path()).unwrap();
    // A directory in the second segment's place: nobody can unlink it.
    let (_, second) = &before[1];
    let aside = dir.path().join("aside");
    crate::disk::rename_durable(second, &aside).unwrap();
    fs::create_dir(second).unwrap();
    log.write(|done| Write::Purge { upto: id(1, 300), done });
    log.vote(2);
    let first = || segment::list(dir.path()).unwrap()[0].0;
    assert_eq!(first(), before[1].0);
    // Once it can be, the next purge removes all of them.
    fs::remove_dir(second).unwrap();
    crate::disk::rename_durable(&aside, second).unwrap();
    log.write(|done| Write::Purge { upto: id(1, 301), done });
    log.vote(3);
    assert!(first() > before[2].0);
    drop(log);
    read(dir.path()).unwrap();
}

/// A file cut anywhere after what was acknowledged is a torn tail: everything acknowledged is there, and the log goes on.
#[test]
fn acknowledged_entries_survive_a_cut_at_any_byte_after_them() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path()).unwrap();
    log.vote(1);
    log.append((0..5).map(|index| id(1, index)));
    drop(log);
    let acknowledged = recover(dir.path()).unwrap().last.unwrap().1;
    let log = Log::open(dir.path()).unwrap();
    log.append((5..8).map(|index| id(1, index)));
    drop(log);
    let end = recover(dir.path()).unwrap().last.unwrap().1;
    for cut in acknowledged..=end {
        let crashed = copy(dir.path());
        let path = last_segment(crashed.path());
        fs::File::options().write(true).open(&path).unwrap().set_len(cut).unwrap();
        let (_, entries) = read(crashed.path()).unwrap();
        assert!(entries.len() == 5 || (entries.len() == 8 && cut > acknowledged), "cut at {cut}: {}", entries.len());
        let log = Log::open(crashed.path()).unwrap();
        let next = entries.len() as u64;
        log.append([id(2, next)]);
        drop(log);
        let (_, again) = read(crashed.path()).unwrap();
        assert_eq!(again.len() as u64, next + 1, "cut at {cut}");
    }
}

/// Every bit of what was acknowledged, once something was written after it, is guarded.
#[test]
fn any_bit_flipped_below_what_was_durable_stops_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path()).unwrap();
    log.vote(1);
    log.append((0..3).map(|index| id(1, index)));
    let durable = 200;
    drop(log);
    let path = last_segment(dir.path());
    let bytes = fs::read(&path).unwrap();
    let end = recover(dir.path()).unwrap().last.unwrap().1;
    // The last batch is the writer's note of how far everything before it is durable.
    let noted = (0..end).rev().find(|offset| record::decode_batch(&bytes, 1, *offset).is_ok()).unwrap();
    assert!(noted > durable);
    for bit in 0..noted * 8 {
        let mut damaged = bytes.clone();
        damaged[usize::try_from(bit / 8).unwrap()] ^= 1 << (bit % 8);
        fs::write(&path, &damaged).unwrap();
        match recover(dir.path()) {
            Err(Error::Damaged { .. } | Error::Version { .. }) => {}
            other => panic!("bit {bit} of {}: {other:?}", noted * 8),
        }
    }
}

#[test]
fn damage_in_a_sealed_segment_stops_the_node_wherever_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path()).unwrap();
    for index in 0..200 {
        log.append([id(1, index)]);
    }
    drop(log);
    let (_, first) = segment::list(dir.path()).unwrap().remove(0);
    let bytes = fs::read(&first).unwrap();
    for at in (0..bytes.len()).step_by(7) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        fs::write(&first, &damaged).unwrap();
        assert!(recover(dir.path()).is_err(), "byte {at}");
    }
    fs::remove_file(&first).unwrap();
    assert!(matches!(recover(dir.path()), Err(Error::SegmentMissing { segment: 1 })));
}

/// Bytes of an unsynced batch that reached the disk without the batch before it never come back as entries.
#[test]
fn leftovers_behind_a_torn_batch_are_erased_before_the_log_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path()).unwrap();
    log.append([id(1, 0)]);
    drop(log);
    let path = last_segment(dir.path());
    let end = recover(dir.path()).unwrap().last.unwrap().1;
    // A batch as it would lie behind a hole of one batch's length that never reached the disk.
    let mut leftover = record::Records::default();
    leftover.entry(&id(1, 2), b"leftover");
    let bytes = leftover.into_batch(1, end + 90, end);
    let file = fs::File::options().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes, end + 90).unwrap();
    drop(file);
    let log = Log::open(dir.path()).unwrap();
    drop(log);
    let bytes = fs::read(&path).unwrap();
    assert!(bytes[usize::try_from(end + 80).unwrap()..].iter().all(|byte| *byte == 0));
}

/// What recovery read may have been in memory only: opening writes it again, and notices if it is no longer there.
#[test]
fn opening_writes_the_kept_bytes_again_and_refuses_others_than_recovery_read() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path()).unwrap();
    log.append((0..3).map(|index| id(1, index)));
    drop(log);
    let path = last_segment(dir.path());
    let end = recover(dir.path()).unwrap().last.unwrap().1;
    let before = fs::read(&path).unwrap();
    let written = fs::metadata(&path).unwrap().modified().unwrap();
    segment::Segment::reopen(dir.path(), 1, end, SIZES.segment_bytes).unwrap();
    assert_eq!(fs::read(&path).unwrap(), before);
    assert!(fs::metadata(&path).unwrap().modified().unwrap() > written);
    let mut changed = before;
    changed[usize::try_from(end).unwrap() - 1] ^= 1;
    fs::write(&path, &changed).unwrap();
    let error = segment::Segment::reopen(dir.path(), 1, end, SIZES.segment_bytes).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
}

#[test]
fn an_unknown_format_stops_the_node() {
    let dir = tempfile::tempdir().unwrap();
    drop(Log::open(dir.path()).unwrap());
    let path = last_segment(dir.path());
    let mut bytes = fs::read(&path).unwrap();
    let mut body = vec![99u8];
    body.extend_from_slice(&[0; 24]);
    let mut batch = b"RfB1".to_vec();
    crate::disk::encode_frame(&mut batch, &body);
    bytes.splice(0..batch.len(), batch);
    fs::write(&path, bytes).unwrap();
    assert!(matches!(recover(dir.path()), Err(Error::Version { version: 99, .. })));
}

/// What the log should hold, as plain values.
#[derive(Debug, Default, Clone)]
struct Model {
    ballot: u64,
    purged: Option<EntryId>,
    entries: VecDeque<EntryId>,
    term: u64,
}

impl Model {
    fn next(&self) -> u64 {
        self.entries.back().or(self.purged.as_ref()).map_or(0, |last| last.index + 1)
    }
}

#[derive(Debug, Clone)]
enum Step {
    Append(u8),
    Vote,
    Truncate(u8),
    Purge(u8),
    Jump(u8),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..20u8).prop_map(Step::Append),
        1 => Just(Step::Vote),
        1 => (0..8u8).prop_map(Step::Truncate),
        2 => (0..30u8).prop_map(Step::Purge),
        1 => (1..9u8).prop_map(Step::Jump),
        1 => Just(Step::Reopen),
    ]
}

fn take(log: &Log, model: &mut Model, step: &Step) {
    match step {
        Step::Append(count) => {
            let first = model.next();
            let ids: Vec<_> = (first..first + u64::from(*count)).map(|index| id(model.term, index)).collect();
            log.append(ids.clone());
            model.entries.extend(ids);
        }
        Step::Vote => {
            model.term += 1;
            model.ballot = model.term;
            log.vote(model.term);
        }
        Step::Truncate(count) => {
            model.term += 1;
            let keep = model.entries.len().saturating_sub(usize::from(*count));
            model.entries.truncate(keep);
            let after = model.entries.back().copied().or(model.purged);
            log.write(|done| Write::Truncate { after, done });
        }
        Step::Purge(count) => {
            let count = usize::from(*count).min(model.entries.len());
            if let Some(upto) = model.entries.drain(..count).next_back() {
                model.purged = Some(upto);
                log.write(|done| Write::Purge { upto, done });
            }
        }
        // A snapshot from elsewhere: everything here is older than it.
        Step::Jump(ahead) => {
            let upto = id(model.term, model.next() + u64::from(*ahead));
            model.entries.clear();
            model.purged = Some(upto);
            log.write(|done| Write::Purge { upto, done });
        }
        Step::Reopen => unreachable!("done by the caller"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_replayed_log_is_what_the_writes_say(steps in proptest::collection::vec(step(), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        let mut model = Model { term: 1, ..Model::default() };
        let mut log = Some(Log::open(dir.path()).unwrap());
        for step in &steps {
            match step {
                Step::Reopen => {
                    drop(log.take());
                    log = Some(Log::open(dir.path()).unwrap());
                }
                step => take(log.as_ref().unwrap(), &mut model, step),
            }
        }
        drop(log);
        let (recovered, entries) = read(dir.path()).unwrap();
        prop_assert_eq!(recovered.ballot.map_or(0, |ballot| ballot.term), model.ballot);
        prop_assert_eq!(recovered.purged, model.purged);
        let expected: Vec<_> = model.entries.iter().map(|id| (*id, body(*id))).collect();
        prop_assert_eq!(entries, expected);
    }
}

#[test]
fn a_full_disk_takes_what_was_put_by_and_is_then_waited_for() {
    const ENOSPC: i32 = 28;
    let dir = tempfile::tempdir().unwrap();
    let no_room_for = |number| inject(&segment_path(dir.path(), number).with_extension("new"), DiskStep::Write, ENOSPC);
    let put_by = Mutex::new(Some(no_room_for(2)));
    let full = no_room_for(3);
    let waits = Arc::new(AtomicBool::new(false));
    let waited = waits.clone();
    let hooks = Hooks {
        relieve: Box::new(move || put_by.lock().unwrap().take().is_some()),
        starving: Box::new(move |starving| waits.store(starving, Ordering::Relaxed)),
        ..hooks()
    };
    let log = Log::open_with(dir.path(), hooks).unwrap();
    let last = std::thread::scope(|scope| {
        let frees = scope.spawn(|| {
            while !waited.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            let segments = segment::list(dir.path()).unwrap().len();
            drop(full);
            segments
        });
        let mut index = 0;
        while segment::list(dir.path()).unwrap().len() < 3 {
            log.append([id(1, index)]);
            index += 1;
        }
        assert_eq!(frees.join().unwrap(), 2, "the first time there was something to give back");
        index
    });
    assert!(!waited.load(Ordering::Relaxed));
    drop(log);
    assert_eq!(read(dir.path()).unwrap().1.len() as u64, last, "nothing is lost");
}

#[test]
fn a_log_that_failed_a_sync_acknowledges_nothing_any_more() {
    const EIO: i32 = 5;
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path()).unwrap();
    log.append([id(1, 0)]);
    let broken = inject(&segment_path(dir.path(), 1), DiskStep::Sync, EIO);
    let append = |index| {
        let entries = vec![(id(1, index), body(id(1, index)))];
        log.try_write(|done| Write::Append { entries, done })
    };
    assert!(append(1).is_err());
    drop(broken);
    // The kernel calls the pages clean now: a sync that succeeds says nothing.
    assert!(append(2).is_err());
}
