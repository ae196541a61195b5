//! Whole blobs that arrive at once: copies from peers and small bodies.

use std::fs;
use std::sync::Arc;

use bytes::Bytes;

use super::error::{Error, Result};
use super::locks::Item;
use super::pump::Pump;
use super::sink::{Sink, SinkOptions, expect_length};
use super::space::Demand;
use super::store::{BlobStore, Shared, blocking};
use crate::oci::{Digest, Hasher};

/// Receives a blob's bytes in order. Dropped before [`Self::finish`], it leaves nothing.
#[derive(Debug)]
pub struct BlobWriter {
    shared: Arc<Shared>,
    digest: Digest,
    size: u64,
    taken: u64,
    pump: Pump,
}

impl BlobStore {
    /// Starts receiving a blob from a peer: hashes as it writes, publishes under `digest` only if the whole matches.
    ///
    /// # Errors
    ///
    /// - [`Error::NoSpace`] if the blob would take the disk past its high watermark.
    /// - [`Error::DiskUnwritable`] if the disk failed a moment ago.
    pub async fn receive(&self, digest: &Digest, size: u64) -> Result<BlobWriter> {
        let (shared, digest) = (Arc::clone(&self.shared), digest.clone());
        blocking(move || {
            shared.space.admit(Demand::Copy(size))?;
            let options = SinkOptions { hasher: Hasher::new(digest.algorithm()), checkpoints: false, progress: None };
            let sink = Sink::create(Arc::clone(&shared), shared.layout.temporary(), options)?;
            Ok(BlobWriter { shared, digest, size, taken: 0, pump: Pump::new(sink) })
        })
        .await
    }

    /// Stores a small body (manifest): verified against `digest`, synced, durable and pinned on return. Idempotent.
    ///
    /// # Errors
    ///
    /// - [`Error::DigestMismatch`] if the body is another; nothing is kept.
    /// - [`Error::NoSpace`] if the disk is down to its reserve.
    ///
    /// # Cancel safety
    ///
    /// The work goes on to its end.
    pub async fn put(&self, digest: &Digest, body: Bytes) -> Result<()> {
        let held = self.shared.locks.lock(Item::Blob(digest.clone())).await;
        let (shared, digest) = (Arc::clone(&self.shared), digest.clone());
        blocking(move || {
            let _held = held;
            shared.put(&digest, body)
        })
        .await
    }
}

impl Shared {
    fn put(self: &Arc<Self>, digest: &Digest, body: Bytes) -> Result<()> {
        let size = body.len() as u64;
        let actual = Digest::of(digest.algorithm(), &body);
        if actual != *digest {
            return Err(Error::DigestMismatch { expected: digest.clone(), actual });
        }
        // Comparing the bytes also finds a copy that has rotted; a good one is written over it.
        if fs::read(self.layout.blob(digest)).is_ok_and(|there| there == body) && self.has_sums(digest, size) {
            self.make_durable(digest, size)?;
        } else {
            self.space.admit(Demand::Reserved(size))?;
            let options = SinkOptions { hasher: Hasher::new(digest.algorithm()), checkpoints: false, progress: None };
            let mut sink = Sink::create(Arc::clone(self), self.layout.temporary(), options)?;
            let stored =
                sink.write(std::slice::from_ref(&body)).and_then(|()| self.publish_sink(digest, size, &mut sink));
            if let Err(error) = stored {
                sink.discard();
                return Err(error);
            }
        }
        self.hot.put(digest, &body);
        Ok(())
    }
}

impl BlobWriter {
    /// Takes the next bytes, of any length; batches as [`super::ExtentWriter::write`] does.
    ///
    /// # Errors
    ///
    /// - [`Error::SizeMismatch`] at the first byte too many.
    /// - [`Error::NoSpace`] if the disk is full; the file is gone.
    pub async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.taken += bytes.len() as u64;
        if self.taken > self.size {
            return Err(Error::SizeMismatch { expected: self.size, actual: self.taken });
        }
        self.pump.write(bytes).await
    }

    /// Verifies, syncs, publishes and pins.
    ///
    /// # Errors
    ///
    /// - [`Error::SizeMismatch`], [`Error::DigestMismatch`] if the bytes are not the blob's; nothing is kept.
    /// - [`Error::NoSpace`], [`Error::Io`]: nothing is kept.
    pub async fn finish(mut self) -> Result<()> {
        expect_length(self.size, self.taken)?;
        let mut sink = self.pump.take().await?;
        let held = self.shared.locks.lock(Item::Blob(self.digest.clone())).await;
        let (shared, digest, size) = (self.shared, self.digest, self.size);
        blocking(move || {
            let _held = held;
            let published = shared.publish_sink(&digest, size, &mut sink);
            if published.is_err() {
                sink.discard();
            }
            published
        })
        .await
    }
}
