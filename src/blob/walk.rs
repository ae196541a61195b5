//! Background work: the index is checked against the disk, free space is watched, the index is flushed.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::error::{Error, Result};
use super::index::BlobEntry;
use super::layout::{ALGORITHMS, SUMLESS_BYTES_MAX, digest_of_name};
use super::locks::Item;
use super::store::{BlobStore, Event, Shared, blocking, remove_quietly};
use super::sums::is_damage;
use crate::oci::{Algorithm, Digest};

const FLUSH_EVERY: Duration = Duration::from_secs(5);
const RETRY_AFTER: Duration = Duration::from_secs(10);
const WATCH_EVERY: Duration = Duration::from_secs(1);
const LIST_PAGE: usize = 1024;

impl BlobStore {
    /// Does this module's background work; never returns. The node supervises it.
    ///
    /// Walks the disk once at the start, and again whenever the index had to start over, until index and disk agree.
    pub async fn run(self) {
        tokio::join!(self.run_index(), self.run_watch());
    }

    /// Brings the index in line with the disk, then flushes it from time to time; never returns.
    async fn run_index(&self) {
        let shared = Arc::clone(&self.shared);
        let (files_max, bytes_max) = (shared.config.quarantine_files_max, shared.config.quarantine_bytes_max);
        let ready =
            blocking(move || shared.trim_quarantine(files_max, bytes_max).and_then(|()| shared.ready_all_dirs()));
        if let Err(error) = ready.await {
            tracing::warn!(%error, "directories could not be made ahead");
        }
        let mut walked = None;
        loop {
            let generation = self.shared.index.db.generation();
            if self.shared.walk_again.swap(false, Ordering::Relaxed) || walked != Some(generation) {
                if walked.is_some() {
                    self.shared.index.set_complete(false);
                }
                match self.walk().await {
                    Ok(()) => walked = Some(generation),
                    Err(Error::Stopped) => return std::future::pending().await,
                    Err(error) => {
                        walked = None;
                        tracing::warn!(%error, "index could not be checked against the disk, trying again");
                        tokio::time::sleep(RETRY_AFTER).await;
                        continue;
                    }
                }
            }
            tokio::time::sleep(FLUSH_EVERY).await;
            let shared = Arc::clone(&self.shared);
            let flushed = blocking(move || {
                shared.index.db.flush();
                shared.pins.drop_expired();
                Ok(())
            });
            if flushed.await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Checks the index against the disk once: bad files are set aside, found ones entered, missing ones struck out.
    pub(super) async fn walk(&self) -> Result<()> {
        let generation = self.shared.index.db.generation();
        for algorithm in ALGORITHMS {
            for dir in self.list(self.shared.layout.blobs_of(algorithm)).await? {
                let shared = Arc::clone(&self.shared);
                blocking(move || shared.walk_blobs(algorithm, &dir)).await?;
            }
            for dir in self.list(self.shared.layout.sums_of(algorithm)).await? {
                let shared = Arc::clone(&self.shared);
                blocking(move || shared.walk_sums(algorithm, &dir)).await?;
            }
        }
        let mut after = None;
        loop {
            let entries = self.list_blobs(after.clone(), LIST_PAGE).await?;
            let Some(last) = entries.last() else { break };
            after = Some(last.digest.clone());
            let shared = Arc::clone(&self.shared);
            blocking(move || {
                entries.iter().for_each(|entry| shared.strike_if_missing(&entry.digest));
                Ok(())
            })
            .await?;
        }
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            shared.walk_extents()?;
            shared.index.recount();
            // An index that started over meanwhile is walked again.
            if shared.index.db.generation() == generation {
                shared.index.set_complete(true);
            }
            Ok(())
        })
        .await
    }

    async fn list(&self, dir: PathBuf) -> Result<Vec<PathBuf>> {
        blocking(move || names_in(&dir)).await
    }

    /// Watches free space, and probes a disk that failed a write; never returns.
    async fn run_watch(&self) {
        loop {
            let shared = Arc::clone(&self.shared);
            match blocking(move || shared.watch()).await {
                Err(Error::Stopped) => return std::future::pending().await,
                Err(error) => tracing::warn!(%error, "disk could not be watched"),
                Ok(()) => {}
            }
            tokio::time::sleep(WATCH_EVERY).await;
        }
    }
}

fn names_in(dir: &Path) -> Result<Vec<PathBuf>> {
    let failed = |source: io::Error| Error::Io { doing: "list", path: dir.into(), source };
    let entries = match fs::read_dir(dir) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        other => other.map_err(failed)?,
    };
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(failed)).collect()
}

fn digest_of(algorithm: Algorithm, path: &Path) -> Option<Digest> {
    let digest = path.file_name().and_then(|name| digest_of_name(algorithm, name.to_str()?));
    if digest.is_none() {
        tracing::warn!(path = %path.display(), "file in the blob store is not named by a digest, leaving it alone");
    }
    digest
}

impl Shared {
    fn walk_blobs(&self, algorithm: Algorithm, dir: &Path) -> Result<()> {
        for path in names_in(dir)? {
            if let Some(digest) = digest_of(algorithm, &path) {
                // A file that cannot be looked at is found again by whoever wants it; the others are to be found now.
                if let Err(error) = self.walk_blob(&digest, &path) {
                    tracing::warn!(%digest, %error, "blob could not be looked at");
                }
            }
        }
        Ok(())
    }

    fn walk_blob(&self, digest: &Digest, path: &Path) -> Result<()> {
        let size = match fs::metadata(path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if is_damage(&error) => {
                self.set_aside_or_log(&self.locks.lock_blocking(Item::Blob(digest.clone())), digest);
                return Ok(());
            }
            Err(source) => return Err(Error::Io { doing: "look at", path: path.into(), source }),
        };
        let known = self.index.blob(digest);
        let fits = self.size_fits(digest, size, known.as_ref())?;
        if fits && known.is_some_and(|known| known.size == size) {
            return Ok(());
        }
        // Something is to be changed: look again under the lock, for the file may just have been replaced.
        let held = self.locks.lock_blocking(Item::Blob(digest.clone()));
        let Ok(metadata) = fs::metadata(path) else { return Ok(()) };
        let (size, known) = (metadata.len(), self.index.blob(digest));
        if !self.size_fits(digest, size, known.as_ref())? {
            self.set_aside_or_log(&held, digest);
            return Ok(());
        }
        let verified_at = known.map_or(0, |known| known.verified_at);
        self.index.put_blob(&BlobEntry { digest: digest.clone(), size, verified_at });
        self.emit(Event::Added { digest: digest.clone(), size });
        Ok(())
    }

    /// Whether a file of that size can be the blob, as far as this node knows without the agreed size.
    fn size_fits(&self, digest: &Digest, size: u64, known: Option<&BlobEntry>) -> Result<bool> {
        if size == 0 {
            return Ok(*digest == Digest::of(digest.algorithm(), b""));
        }
        // Small ones have no sums: looking for them would double what a walk through millions costs.
        if size <= SUMLESS_BYTES_MAX && known.is_some_and(|known| known.size == size) {
            return Ok(true);
        }
        if let Some((summed, _)) = self.read_sums(digest) {
            return Ok(summed == size);
        }
        // Without sums a large file is checked by whoever opens it first, against the agreed size and the digest.
        if size > SUMLESS_BYTES_MAX {
            return Ok(true);
        }
        self.check_sums(digest, size)
    }

    /// Removes sums whose blob is gone: a crash left them.
    fn walk_sums(&self, algorithm: Algorithm, dir: &Path) -> Result<()> {
        for path in names_in(dir)? {
            let Some(digest) = digest_of(algorithm, &path) else { continue };
            if self.layout.blob(&digest).exists() {
                continue;
            }
            let _held = self.locks.lock_blocking(Item::Blob(digest.clone()));
            if !self.layout.blob(&digest).exists() {
                remove_quietly(&path);
            }
        }
        Ok(())
    }

    fn walk_extents(&self) -> Result<()> {
        let there: HashSet<_> = self.list_extents()?.into_iter().collect();
        let mut after = None;
        loop {
            let listed = self.index.list_extents(after, LIST_PAGE);
            let Some(last) = listed.last() else { break };
            after = Some(*last);
            for id in listed.into_iter().filter(|id| !there.contains(id)) {
                let _held = self.locks.lock_blocking(Item::Extent(id));
                if !self.layout.record(id).exists() {
                    self.index.remove_extent(id);
                }
            }
        }
        for id in there {
            let _held = self.locks.lock_blocking(Item::Extent(id));
            if let Some((record, _)) = self.open_extent(id)? {
                self.index.put_extent(id, record.length);
            }
        }
        Ok(())
    }

    fn watch(&self) -> Result<()> {
        if self.space.is_unwritable() && self.probe() {
            tracing::info!("disk takes writes again");
            self.space.note_probe_passed();
        }
        match self.space.measure() {
            Ok(space) => {
                self.metrics.free_bytes.set(i64::try_from(space.free_bytes).unwrap_or(i64::MAX));
            }
            Err(error) => tracing::warn!(%error, "free space cannot be asked for"),
        }
        self.remake_directories()?;
        // Damaged copies are a curiosity; room is not.
        if self.space.refuses() && !self.space.is_unwritable() {
            self.trim_quarantine(0, 0)?;
        }
        Ok(())
    }

    /// Whether a small file can be written and synced.
    fn probe(&self) -> bool {
        let temporary = self.layout.temporary();
        let probed = crate::disk::create_new(&temporary).and_then(|file| {
            crate::disk::write_all_at(&file, &temporary, &[0x5a; 4096], 0)?;
            crate::disk::sync_file(&file, &temporary)?;
            crate::disk::sync_dir(&self.layout.temporary_dir())
        });
        remove_quietly(&temporary);
        probed.is_ok()
    }
}
