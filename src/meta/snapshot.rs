//! The snapshots of a node: written beside, synced, renamed; two are kept, and the log is purged only to the older (P9).
//!
//! What a file looks like, and how it is read, says `snapshot_file.rs`.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::disk::{create_dir_durable, rename_durable, sync_dir};
use crate::topology::ClusterId;

use super::snapshot_file::{Frames, load, write_file};
use super::types::{LogId, Members, SnapshotMeta, StoredMembership};
use super::wal::EntryId;
use super::{SnapshotError, State};

const KEPT: usize = 2;

/// Says why a snapshot cannot be written, or must not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filesystem refused.
    #[error("access snapshot {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// The bytes are damaged or cut short.
    #[error("snapshot {path} is damaged")]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// A newer binary wrote it.
    #[error("snapshot {path} has a format that this binary does not know")]
    Version {
        /// The file.
        path: PathBuf,
    },
    /// Its records are no state.
    #[error("snapshot {path} does not hold a state")]
    Records {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: SnapshotError,
    },
    /// Its state's hash is not the one it says.
    #[error("snapshot {path} has a state with another hash")]
    Hash {
        /// The file.
        path: PathBuf,
    },
    /// It is of another cluster (R8).
    #[error("snapshot {path} is of another cluster")]
    Cluster {
        /// The file.
        path: PathBuf,
    },
}

impl Error {
    /// Whether the disk was full.
    pub(super) fn is_no_space(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull)
    }
}

/// What a snapshot is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) cluster: Option<ClusterId>,
    pub(super) last: Option<EntryId>,
    membership_at: Option<EntryId>,
    members: Members,
    pub(super) state_hash: u128,
}

impl Header {
    pub(super) fn new(state: &State, last: Option<LogId>, membership: &StoredMembership) -> Self {
        Self {
            cluster: state.cluster(),
            last: last.map(EntryId::from),
            membership_at: membership.log_id().map(EntryId::from),
            members: membership.membership().into(),
            state_hash: state.hash(),
        }
    }

    pub(super) fn meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.last.map(LogId::from), last_membership: self.membership() }
    }

    pub(super) fn membership(&self) -> StoredMembership {
        StoredMembership::new(self.membership_at.map(LogId::from), self.members.clone().into())
    }

    fn file_name(&self) -> String {
        let (index, term, node) = self.last.map_or((0, 0, 0), |last| (last.index, last.term, last.node));
        format!("{index:020}-{term}-{node}.snap")
    }
}

/// A whole snapshot file, open for reading even if it is removed meanwhile.
#[derive(Debug, Clone)]
pub(super) struct SnapshotFile {
    pub(super) path: PathBuf,
    pub(super) file: Arc<File>,
    pub(super) size_bytes: u64,
    /// The verified state, when it was just read.
    pub(super) state: Option<Arc<State>>,
}

impl SnapshotFile {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let size_bytes = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file: Arc::new(file), size_bytes, state: None })
    }
}

/// The directory of this node's snapshots.
#[derive(Debug)]
pub(super) struct SnapshotDir {
    dir: PathBuf,
    /// Oldest first.
    kept: Mutex<Vec<(Header, SnapshotFile)>>,
    /// Files received so far by this process.
    attempts: AtomicU64,
    /// The last one this process has written.
    written: Mutex<Option<Written>>,
}

/// A snapshot that was written here, for those who pace and count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Written {
    /// The last log index it holds.
    pub(super) index: u64,
    pub(super) size_bytes: u64,
    pub(super) took: Duration,
    pub(super) ended: Instant,
}

impl SnapshotDir {
    /// Opens the directory and loads the newest valid snapshot; a bad one is set aside, and the one before it is used.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::Version`], and [`Error::Cluster`]: those are no reason to fall back. A snapshot older than a
    /// good one may be unreadable.
    pub(super) fn open(dir: &Path, cluster: ClusterId) -> Result<(Self, Option<(Header, State)>), Error> {
        let at = |source| Error::Io { path: dir.to_owned(), source };
        create_dir_durable(dir).map_err(at)?;
        let mut paths = Vec::new();
        for entry in fs::read_dir(dir).map_err(at)? {
            let path = entry.map_err(at)?.path();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("snap") => paths.push(path),
                Some("new") => fs::remove_file(&path).map_err(at)?,
                _ => {}
            }
        }
        sync_dir(dir).map_err(at)?;
        paths.sort();
        let mut kept = Vec::new();
        let mut newest = None;
        for path in paths.into_iter().rev() {
            // Of those before the newest good one the header is enough: they are loaded only when it is bad.
            let loaded = match newest {
                None => load(&path, cluster).map(|(header, state)| (header, Some(state))),
                Some(_) => Frames::open(&path).and_then(|mut frames| Ok((frames.header(cluster)?, None))),
            };
            let opened = loaded.and_then(|(header, state)| {
                let file = SnapshotFile::open(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
                Ok((header, file, state))
            });
            match opened {
                Ok((header, file, state)) => {
                    kept.insert(0, (header.clone(), file));
                    newest = newest.or(state.map(|state| (header, state)));
                }
                Err(error @ (Error::Damaged { .. } | Error::Records { .. } | Error::Hash { .. })) => {
                    tracing::error!(%error, "snapshot set aside");
                    rename_durable(&path, &path.with_extension("bad")).map_err(at)?;
                }
                // Only the next snapshot needs it, to purge the log; the state does not.
                Err(error @ Error::Io { .. }) if newest.is_some() => {
                    tracing::error!(%error, "older snapshot cannot be read, going on without it");
                }
                Err(error) => return Err(error),
            }
        }
        Ok((
            Self {
                dir: dir.to_owned(),
                kept: Mutex::new(kept),
                attempts: AtomicU64::new(0),
                written: Mutex::default(),
            },
            newest,
        ))
    }

    /// Writes a snapshot of `state` and keeps it; blocks.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; nothing is left behind but a file that the next start clears.
    pub(super) fn write(&self, state: &State, header: Header) -> Result<SnapshotFile, Error> {
        let began = Instant::now();
        let path = self.dir.join(header.file_name());
        let beside = path.with_extension("new");
        let at = |source| Error::Io { path: beside.clone(), source };
        let outcome = write_file(&beside, state, &header).and_then(|()| rename_durable(&beside, &path));
        if let Err(error) = outcome {
            // A half-written file is only in the way of space.
            fs::remove_file(&beside).ok();
            return Err(at(error));
        }
        let index = header.last.map_or(0, |last| last.index);
        let file = self.keep(header, &path)?;
        let written = Written { index, size_bytes: file.size_bytes, took: began.elapsed(), ended: Instant::now() };
        *self.written.lock().expect("no panic while held") = Some(written);
        Ok(file)
    }

    /// Returns what is known of the last snapshot that this process wrote.
    pub(super) fn last_written(&self) -> Option<Written> {
        *self.written.lock().expect("no panic while held")
    }

    /// Takes in a received and verified file under its final name; blocks.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub(super) fn adopt(&self, header: Header, received: &Path) -> Result<SnapshotFile, Error> {
        let path = self.dir.join(header.file_name());
        if received != path {
            rename_durable(received, &path).map_err(|source| Error::Io { path: received.to_owned(), source })?;
        }
        self.keep(header, &path)
    }

    fn keep(&self, header: Header, path: &Path) -> Result<SnapshotFile, Error> {
        let file = SnapshotFile::open(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        let mut kept = self.kept.lock().expect("no panic while held");
        kept.retain(|(_, other)| other.path != file.path);
        kept.push((header, file.clone()));
        kept.sort_by_key(|(header, _)| header.last);
        while kept.len() > KEPT {
            let (_, oldest) = kept.remove(0);
            if let Err(error) = fs::remove_file(&oldest.path) {
                tracing::warn!(%error, path = %oldest.path.display(), "old snapshot could not be removed");
            }
        }
        Ok(file)
    }

    /// Returns the newest snapshot.
    pub(super) fn newest(&self) -> Option<(Header, SnapshotFile)> {
        self.kept.lock().expect("no panic while held").last().cloned()
    }

    /// Returns the last log indexes of the older and the newer snapshot, if both are there.
    pub(super) fn bounds(&self) -> Option<(u64, u64)> {
        let kept = self.kept.lock().expect("no panic while held");
        let index = |at: usize| kept.get(at).and_then(|(header, _)| header.last).map(|last| last.index);
        Some((index(0)?, index(1)?))
    }

    /// Returns a path for a file that is being received, another one each time: an attempt whose caller gave up may still be
    /// at work. A crash leaves it for the next start to clear.
    pub(super) fn incoming(&self, from: u64) -> Incoming {
        let attempt = self.attempts.fetch_add(1, Ordering::Relaxed);
        Incoming { path: self.dir.join(format!("incoming-{from}-{attempt}.new")), kept: false }
    }
}

/// A file that is being received; dropped before it is handed on, it is removed.
#[derive(Debug)]
pub(super) struct Incoming {
    path: PathBuf,
    kept: bool,
}

impl Incoming {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the file where it is: somebody else takes it from there.
    pub(super) fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.kept {
            // If it cannot be, the next start clears it.
            fs::remove_file(&self.path).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterId = ClusterId(7);

    #[test]
    fn attempts_to_receive_a_snapshot_never_share_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let (snapshots, _) = SnapshotDir::open(dir.path(), CLUSTER).unwrap();
        let (first, mut second) = (snapshots.incoming(2), snapshots.incoming(2));
        for incoming in [&first, &second] {
            File::create_new(incoming.path()).unwrap();
        }
        let (given_up, handed_on) = (first.path().to_owned(), second.path().to_owned());
        second.keep();
        drop((first, second));
        assert!(!given_up.exists() && handed_on.exists());
        // Whatever was left behind goes at the next start.
        SnapshotDir::open(dir.path(), CLUSTER).unwrap();
        assert!(!handed_on.exists());
    }

    #[test]
    fn an_unreadable_older_snapshot_does_not_stop_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let (snapshots, _) = SnapshotDir::open(dir.path(), CLUSTER).unwrap();
        let state = State::default();
        let mut written = [10, 20].map(|index| {
            let last = EntryId { term: 1, node: 1, index };
            let header = Header::new(&state, Some(last.into()), &StoredMembership::default());
            snapshots.write(&state, header).unwrap().path
        });
        // Reading a directory is an error of the filesystem, as a bad sector is.
        let replace = |path: &Path| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        };
        written.sort();
        replace(&written[0]);
        let (reopened, loaded) = SnapshotDir::open(dir.path(), CLUSTER).unwrap();
        assert_eq!(loaded.unwrap().0.last.unwrap().index, 20);
        assert!(reopened.bounds().is_none());
        // The newest is another matter: it may be readable the next time, and hold what nothing else does.
        replace(&written[1]);
        assert!(matches!(SnapshotDir::open(dir.path(), CLUSTER), Err(Error::Io { .. })));
    }
}
