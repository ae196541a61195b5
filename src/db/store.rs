//! The index as its users see it: tables of small entries that never fail, only start empty again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use super::engine::{Changes, Engine, Failure};
use crate::disk;

/// The largest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 64 * 1024;

// The version of the entries; an index of another version is set aside and rebuilt.
const FORMAT: &[u8] = b"1\n";

/// A table of the index. Keys are ordered bytes, unique in their table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Table {
    /// Blobs that lie here: written by `blob`.
    Blobs = 1,
    /// Synced extents that lie here: written by `blob`.
    Extents = 2,
    /// Blobs to be repaired: written by `upkeep`.
    Repairs = 3,
    /// Where loops go on after a restart: written by `upkeep`.
    Cursors = 4,
}

/// Changes that are committed together.
#[derive(Debug, Default)]
pub struct Batch(Changes);

impl Batch {
    /// Puts an entry, in place of one with the same key.
    ///
    /// # Panics
    ///
    /// If `value` is longer than [`VALUE_BYTES_MAX`].
    pub fn put(&mut self, table: Table, key: &[u8], value: &[u8]) {
        assert!(value.len() <= VALUE_BYTES_MAX, "index values are small, this one has {} bytes", value.len());
        self.0.push((full_key(table, key), Some(value.to_vec())));
    }

    /// Removes an entry if it is there.
    pub fn remove(&mut self, table: Table, key: &[u8]) {
        self.0.push((full_key(table, key), None));
    }

    /// Whether there is nothing to commit.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// This node's index. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Db(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: Option<PathBuf>,
    engine: RwLock<Engine>,
    generation: AtomicU64,
    clean: AtomicBool,
}

impl Db {
    /// Opens the index in `index/` of the data directory, whatever state it is in.
    ///
    /// An index that is damaged or of another format is set aside and an empty one begun; if that fails too, the index is
    /// kept in memory. The caller holds the lock of the data directory.
    #[must_use]
    pub fn open(data_dir: &Path) -> Self {
        let dir = data_dir.join("index");
        let (engine, clean) = match open_guarded(&dir) {
            Ok(opened) => opened,
            Err(failure) => {
                tracing::warn!(error = %failure, "index cannot be kept on disk, keeping it in memory until the next start");
                (Engine::memory(), false)
            }
        };
        Self::with(Some(dir), engine, clean)
    }

    /// Makes an empty index in memory.
    #[must_use]
    pub fn in_memory() -> Self {
        Self::with(None, Engine::memory(), false)
    }

    fn with(dir: Option<PathBuf>, engine: Engine, clean: bool) -> Self {
        let (engine, generation, clean) = (RwLock::new(engine), AtomicU64::new(0), AtomicBool::new(clean));
        Self(Arc::new(Inner { dir, engine, generation, clean }))
    }

    /// Commits all changes of `batch`, or (if the engine fails) starts over empty and commits them there.
    pub fn commit(&self, batch: &Batch) {
        self.run(|engine| engine.commit(&batch.0));
    }

    /// Returns the value at `key`.
    #[must_use]
    pub fn get(&self, table: Table, key: &[u8]) -> Option<Vec<u8>> {
        let key = full_key(table, key);
        self.run(|engine| engine.get(&key))
    }

    /// Returns up to `limit` entries of a table in order of their keys, beginning after the key `after`.
    #[must_use]
    pub fn scan(&self, table: Table, after: Option<&[u8]>, limit: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
        let after = full_key(table, after.unwrap_or_default());
        let end = [table as u8 + 1];
        let mut entries = self.run(|engine| engine.scan(&after, &end, limit));
        for (key, _) in &mut entries {
            drop(key.drain(..1));
        }
        entries
    }

    /// Removes all entries of all tables.
    pub fn wipe(&self) {
        self.run(Engine::clear);
    }

    /// Makes durable what was committed before the call.
    pub fn flush(&self) {
        self.run(Engine::sync);
    }

    /// Flushes and notes that the stop was orderly; nothing may be committed afterwards.
    ///
    /// # Errors
    ///
    /// If the note cannot be written: the next start then checks the index against the disk before it trusts it.
    pub fn close(&self) -> io::Result<()> {
        self.flush();
        match &self.0.dir {
            Some(dir) if !self.engine().is_memory() => disk::write_durable(&dir.join("clean"), b""),
            _ => Ok(()),
        }
    }

    /// Whether the entries are those of an orderly stop, so that they may be trusted before they are checked.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.0.clean.load(Ordering::Acquire)
    }

    /// Counts how often the index had to start over empty since it was opened.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    fn engine(&self) -> std::sync::RwLockReadGuard<'_, Engine> {
        self.0.engine.read().expect("no panic while an engine is replaced")
    }

    // Memory does not fail, so the loop ends: an engine is replaced at most by sled and then by memory.
    fn run<T>(&self, call: impl Fn(&Engine) -> Result<T, Failure>) -> T {
        loop {
            let seen = self.generation();
            let outcome = call(&self.engine());
            match outcome {
                Ok(value) => return value,
                Err(failure) => self.start_over(seen, &failure),
            }
        }
    }

    fn start_over(&self, seen: u64, failure: &Failure) {
        let mut engine = self.0.engine.write().expect("no panic while an engine is replaced");
        if self.generation() != seen {
            return;
        }
        tracing::warn!(error = %failure, "index failed, starting over with an empty one");
        self.0.clean.store(false, Ordering::Release);
        std::mem::replace(&mut *engine, Engine::memory()).abandon();
        // Only the first failure tries the disk again; an engine that fails twice is not worth a third file.
        if seen == 0
            && let Some(dir) = &self.0.dir
        {
            match set_aside(dir).map_err(Failure::Sync).and_then(|()| open_guarded(dir)) {
                Ok((fresh, _)) => *engine = fresh,
                Err(failure) => tracing::warn!(error = %failure, "index is kept in memory until the next start"),
            }
        }
        self.0.generation.store(seen + 1, Ordering::Release);
    }
}

fn full_key(table: Table, key: &[u8]) -> Vec<u8> {
    let mut full = Vec::with_capacity(1 + key.len());
    full.push(table as u8);
    full.extend_from_slice(key);
    full
}

/// Opens what is there, or sets it aside and begins anew; says also whether the last stop was orderly.
fn open_guarded(dir: &Path) -> Result<(Engine, bool), Failure> {
    let format = dir.join("format");
    if dir.exists() && fs::read(&format).ok().as_deref() != Some(FORMAT) {
        set_aside(dir)?;
    }
    if !dir.exists() {
        begin(dir)?;
    }
    // Gone before the first change, so that a crash from here on is not taken for an orderly stop.
    let clean = dir.join("clean").exists();
    disk::remove_durable(&dir.join("clean"))?;
    match Engine::open_sled(dir) {
        Ok(engine) => Ok((engine, clean)),
        Err(failure) if failure.is_damage() => {
            tracing::warn!(error = %failure, "index is damaged, setting it aside");
            set_aside(dir)?;
            begin(dir)?;
            Ok((Engine::open_sled(dir)?, false))
        }
        Err(failure) => Err(failure),
    }
}

fn begin(dir: &Path) -> io::Result<()> {
    disk::create_dir_durable(dir)?;
    disk::write_durable(&dir.join("format"), FORMAT)
}

/// Renames the index directory to `index.bad-<n>` and removes those set aside before.
fn set_aside(dir: &Path) -> io::Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    let parent = dir.parent().unwrap_or_else(|| Path::new("."));
    let mut older = Vec::new();
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let number = entry.file_name().to_str().and_then(|name| name.strip_prefix("index.bad-")?.parse::<u64>().ok());
        older.extend(number.map(|number| (number, entry.path())));
    }
    let next = older.iter().map(|(number, _)| number + 1).max().unwrap_or(1);
    disk::rename_durable(dir, &parent.join(format!("index.bad-{next}")))?;
    for (_, path) in older {
        fs::remove_dir_all(path)?;
    }
    Ok(())
}
