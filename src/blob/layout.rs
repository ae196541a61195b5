//! Where everything lies on disk.
//!
//! ```text
//! <data_dir>/
//! ├── blobs/<algorithm>/<2 hex>/<hex>   verified, synced bytes; a name here is a promise that they survive a power cut
//! ├── sums/<algorithm>/<2 hex>/<hex>    CRC32C per 256 KiB block of a blob beyond 64 KiB; written before the blob's name
//! ├── extents/<id>                      bytes of one attempt to upload a run of a session; may be growing
//! ├── extents/<id>.record               length, hash state, checkpoints, block sums: there only once the bytes are synced
//! ├── tmp/<n>                           files on their way to a name above; cleared at start
//! └── quarantine/<algorithm>-<hex>.<n>  damaged copies, the newest few, for a look
//! ```
//!
//! A single extent that becomes a blob gets a second name (hard link), so that it stays an extent until its session is
//! closed. Blobs of at most [`SUMLESS_BYTES_MAX`] have no sums: they are checked whole, against their digest.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::oci::{Algorithm, Digest, ExtentId};

/// The largest blob without a file of sums: hashing it whole takes less than finding its sums.
pub(super) const SUMLESS_BYTES_MAX: u64 = 64 * 1024;

pub(super) const ALGORITHMS: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

pub(super) const RECORD_SUFFIX: &str = ".record";

#[derive(Debug)]
pub(super) struct Layout {
    root: PathBuf,
    temporaries: AtomicU64,
}

impl Layout {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.into(), temporaries: AtomicU64::new(0) }
    }

    /// Every directory that is there from the start.
    pub(super) fn directories(&self) -> Vec<PathBuf> {
        let mut directories = vec![self.extents(), self.temporary_dir(), self.quarantine()];
        for algorithm in ALGORITHMS {
            directories.push(self.blobs_of(algorithm));
            directories.push(self.sums_of(algorithm));
        }
        directories
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn blobs_of(&self, algorithm: Algorithm) -> PathBuf {
        self.root.join("blobs").join(algorithm.as_str())
    }

    pub(super) fn sums_of(&self, algorithm: Algorithm) -> PathBuf {
        self.root.join("sums").join(algorithm.as_str())
    }

    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        fanned(self.blobs_of(digest.algorithm()), digest)
    }

    pub(super) fn sums(&self, digest: &Digest) -> PathBuf {
        fanned(self.sums_of(digest.algorithm()), digest)
    }

    pub(super) fn extents(&self) -> PathBuf {
        self.root.join("extents")
    }

    pub(super) fn extent(&self, id: ExtentId) -> PathBuf {
        self.extents().join(id.to_string())
    }

    pub(super) fn record(&self, id: ExtentId) -> PathBuf {
        self.extents().join(format!("{id}{RECORD_SUFFIX}"))
    }

    pub(super) fn temporary_dir(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// Names a new temporary file: the counter is enough, for `tmp/` is cleared at start and the data directory locked.
    pub(super) fn temporary(&self) -> PathBuf {
        self.temporary_dir().join(self.temporaries.fetch_add(1, Ordering::Relaxed).to_string())
    }

    pub(super) fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }
}

fn fanned(mut path: PathBuf, digest: &Digest) -> PathBuf {
    let hex = digest.hex();
    path.push(&hex[..2]);
    path.push(hex);
    path
}

/// The digest whose blob or sums a file of that name in an algorithm's folder is.
pub(super) fn digest_of_name(algorithm: Algorithm, name: &str) -> Option<Digest> {
    format!("{}:{name}", algorithm.as_str()).parse().ok()
}
