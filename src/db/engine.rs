//! The engines behind the index: sled, or memory where sled cannot be had. The only file that names sled.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::RwLock;

use crate::disk;

// sled takes up to ten times this; the index is small and mostly written.
const CACHE_BYTES: u64 = 16 << 20;

/// Says that an engine can no longer be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("index panicked")]
    Panicked,
    #[error("index failed: {0}")]
    Sled(#[from] sled::Error),
    #[error("index could not be synced: {0}")]
    Sync(#[from] io::Error),
}

impl Failure {
    /// Whether the files themselves may be bad, as opposed to a disk that is full or read-only.
    pub(super) fn is_damage(&self) -> bool {
        use io::ErrorKind::{InvalidData, InvalidInput, NotFound, UnexpectedEof};
        match self {
            Self::Sled(sled::Error::Io(error)) => {
                matches!(error.kind(), InvalidData | InvalidInput | NotFound | UnexpectedEof)
            }
            Self::Sync(_) => false,
            Self::Panicked | Self::Sled(_) => true,
        }
    }
}

pub(super) type Entry = (Vec<u8>, Vec<u8>);
/// Changes to one key each: a value, or `None` to remove it.
pub(super) type Changes = Vec<(Vec<u8>, Option<Vec<u8>>)>;

#[derive(Debug)]
pub(super) enum Engine {
    Sled { db: sled::Db, dir: PathBuf },
    Memory(RwLock<BTreeMap<Vec<u8>, Vec<u8>>>),
}

// sled 0.34 panics where it should return errors; its structures are dropped for good after that.
fn guarded<T>(call: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or(Err(Failure::Panicked))
}

impl Engine {
    pub(super) fn memory() -> Self {
        Self::Memory(RwLock::default())
    }

    pub(super) fn open_sled(dir: &Path) -> Result<Self, Failure> {
        guarded(|| {
            let db = sled::Config::new().path(dir).cache_capacity(CACHE_BYTES).flush_every_ms(None).open()?;
            // A first read walks the file: better to panic here than in the middle of a request.
            drop(db.iter().next().transpose()?);
            let engine = Self::Sled { db, dir: dir.into() };
            engine.sync()?;
            Ok(engine)
        })
    }

    pub(super) fn commit(&self, changes: &Changes) -> Result<(), Failure> {
        match self {
            Self::Sled { db, .. } => guarded(|| {
                let mut batch = sled::Batch::default();
                for (key, value) in changes {
                    match value {
                        Some(value) => batch.insert(key.as_slice(), value.as_slice()),
                        None => batch.remove(key.as_slice()),
                    }
                }
                Ok(db.apply_batch(batch)?)
            }),
            Self::Memory(map) => {
                let mut map = map.write().expect("no panic while writing");
                for (key, value) in changes {
                    match value {
                        Some(value) => drop(map.insert(key.clone(), value.clone())),
                        None => drop(map.remove(key)),
                    }
                }
                Ok(())
            }
        }
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
        match self {
            Self::Sled { db, .. } => guarded(|| Ok(db.get(key)?.map(|value| value.to_vec()))),
            Self::Memory(map) => Ok(map.read().expect("no panic while writing").get(key).cloned()),
        }
    }

    /// Returns up to `limit` entries with `after < key < end`, in order.
    pub(super) fn scan(&self, after: &[u8], end: &[u8], limit: usize) -> Result<Vec<Entry>, Failure> {
        let range = (Bound::Excluded(after), Bound::Excluded(end));
        match self {
            Self::Sled { db, .. } => guarded(|| {
                db.range::<&[u8], _>(range)
                    .take(limit)
                    .map(|entry| entry.map(|(key, value)| (key.to_vec(), value.to_vec())).map_err(Failure::from))
                    .collect()
            }),
            Self::Memory(map) => {
                let map = map.read().expect("no panic while writing");
                Ok(map.range::<[u8], _>(range).take(limit).map(|(key, value)| (key.clone(), value.clone())).collect())
            }
        }
    }

    pub(super) fn clear(&self) -> Result<(), Failure> {
        match self {
            Self::Sled { db, .. } => guarded(|| Ok(db.clear()?)),
            Self::Memory(map) => {
                map.write().expect("no panic while writing").clear();
                Ok(())
            }
        }
    }

    /// Makes everything committed so far durable.
    pub(super) fn sync(&self) -> Result<(), Failure> {
        match self {
            // sled only asks the kernel to start writing; without a sync of our own a power cut takes what was flushed.
            Self::Sled { db, dir } => guarded(|| {
                db.flush()?;
                File::open(dir.join("db"))?.sync_data()?;
                File::open(dir.join("conf"))?.sync_data()?;
                Ok(disk::sync_dir(dir)?)
            }),
            Self::Memory(_) => Ok(()),
        }
    }

    pub(super) fn is_memory(&self) -> bool {
        matches!(self, Self::Memory(_))
    }

    /// Lets go of an engine that has failed, whatever its destructor does.
    pub(super) fn abandon(self) {
        if let Self::Sled { db, .. } = self {
            let dropped = catch_unwind(AssertUnwindSafe(|| drop(db)));
            if dropped.is_err() {
                tracing::debug!("dropping a failed index panicked");
            }
        }
    }
}
