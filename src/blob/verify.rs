//! Hashing a copy again, slowly (scrub).

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::error::{Error, Result};
use super::index::BlobEntry;
use super::locks::Item;
use super::quarantine::Identity;
use super::store::{BlobStore, blocking};
use super::sums::{Summer, is_damage};
use crate::disk;
use crate::oci::{Digest, Hasher};

const STEP_BYTES: u64 = 1 << 20;

// Whoever gives up a copy because of this one wants to know that it was good not long ago.
const CHECKED_WITHIN_SECONDS: u64 = 86_400;

/// Says how many bytes per second may be read now.
pub type Rate<'a> = &'a (dyn Fn() -> u64 + Send + Sync);

/// What hashing a copy again showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The bytes are the digest's, and its block sums are in order.
    Good,
    /// No copy lies here.
    Missing,
    /// The copy was damaged and has been set aside.
    Quarantined,
}

impl BlobStore {
    /// Hashes a copy again and sets it aside if it is not `digest` with `size` bytes; mends missing block sums.
    ///
    /// Reads from the disk itself, and after each MiB asks `pace` how many bytes per second it may be, if there is one. The
    /// index remembers when it was.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the disk cannot be read or the copy not be moved.
    pub async fn verify(&self, digest: &Digest, size: u64, pace: Option<Rate<'_>>) -> Result<Verdict> {
        let path = self.shared.layout.blob(digest);
        let (shared, wanted) = (Arc::clone(&self.shared), digest.clone());
        let opened = blocking(move || match File::open(&path).and_then(|file| file.metadata().map(|m| (file, m))) {
            Ok(opened) => Ok(Ok(opened)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                shared.strike_if_missing(&wanted);
                Ok(Err(Verdict::Missing))
            }
            Err(error) if is_damage(&error) => {
                let held = shared.locks.lock_blocking(Item::Blob(wanted.clone()));
                shared.set_aside_or_log(&held, &wanted);
                Ok(Err(Verdict::Quarantined))
            }
            Err(source) => Err(Error::Io { doing: "open", path, source }),
        });
        let (file, metadata) = match opened.await? {
            Ok(opened) => opened,
            Err(verdict) => return Ok(verdict),
        };
        let identity = Identity::of(&metadata);
        let hashed = if metadata.len() == size { self.hash_slowly(file, digest, size, pace).await? } else { None };
        let held = self.shared.locks.lock(Item::Blob(digest.clone())).await;
        let (shared, digest) = (Arc::clone(&self.shared), digest.clone());
        blocking(move || {
            let path = shared.layout.blob(&digest);
            let there = path.metadata().ok().map(|metadata| Identity::of(&metadata));
            let Some(sums) = hashed.filter(|(actual, _)| *actual == digest).map(|(_, sums)| sums) else {
                // Another copy may have taken its place meanwhile, a verified one.
                if there == Some(identity) {
                    shared.set_aside(&held, &digest)?;
                }
                return Ok(if there.is_none() { Verdict::Missing } else { Verdict::Quarantined });
            };
            if there != Some(identity) {
                return Ok(if there.is_none() { Verdict::Missing } else { Verdict::Good });
            }
            if !shared.has_sums(&digest, size) || shared.read_sums(&digest).is_some_and(|(_, there)| there != sums) {
                shared.write_sums(&digest, size, &sums)?;
            }
            shared.index.put_blob(&BlobEntry { digest, size, verified_at: shared.now() });
            Ok(Verdict::Good)
        })
        .await
    }

    /// Says "I hold it", as [`Self::hold`] does, of a copy that was hashed within the last day; false if it was not, and
    /// `None` if there is none.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the disk cannot be asked or synced.
    pub async fn hold_checked(&self, digest: &Digest, size: u64) -> Result<Option<bool>> {
        let held = self.shared.locks.lock(Item::Blob(digest.clone())).await;
        let (shared, digest) = (Arc::clone(&self.shared), digest.clone());
        blocking(move || {
            if !shared.look(&held, &digest, size)? {
                return Ok(None);
            }
            let checked_at = shared.index.blob(&digest).map_or(0, |entry| entry.verified_at);
            // A check in the future was before the clock was set back, nobody knows how long.
            if shared.now().checked_sub(checked_at).is_none_or(|since| since > CHECKED_WITHIN_SECONDS) {
                return Ok(Some(false));
            }
            shared.make_durable(&digest, size)?;
            Ok(Some(true))
        })
        .await
    }

    /// The digest and sums of a file; `None` if it cannot be read to its end.
    async fn hash_slowly(
        &self,
        file: File,
        digest: &Digest,
        size: u64,
        pace: Option<Rate<'_>>,
    ) -> Result<Option<(Digest, Vec<u32>)>> {
        let file = Arc::new(file);
        let mut state = (Hasher::new(digest.algorithm()), Summer::default());
        let mut position = 0;
        while position < size {
            let step = STEP_BYTES.min(size - position);
            let (file, path) = (Arc::clone(&file), self.shared.layout.blob(digest));
            let (mut hasher, mut summer) = state;
            let hashed = blocking(move || {
                // What lies in memory says nothing of what lies on the disk.
                disk::forget_cached(&file, position, step);
                let bytes = match disk::read_exact_at(&file, position, usize::try_from(step).expect("at most 1 MiB")) {
                    Ok(bytes) => bytes,
                    Err(error) if is_damage(&error) => return Ok(None),
                    Err(source) => return Err(Error::Io { doing: "read", path, source }),
                };
                hasher.update(&bytes);
                summer.update(&bytes);
                Ok(Some((hasher, summer)))
            });
            let Some(hashed) = hashed.await? else { return Ok(None) };
            state = hashed;
            position += step;
            if let Some(pace) = pace {
                #[expect(clippy::cast_precision_loss, reason = "a pause need not be exact")]
                tokio::time::sleep(Duration::from_secs_f64(step as f64 / pace().max(1) as f64)).await;
            }
        }
        Ok(Some((state.0.finish(), state.1.finish())))
    }
}
