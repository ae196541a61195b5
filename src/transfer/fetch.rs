//! Brings bytes that other nodes hold to this node's disk.

use crate::blob::{BlobStore, Error as BlobError, ExtentPart, ExtentWriter};
use crate::oci::{Algorithm, Digest, ExtentId, HashState, Hasher};
use crate::topology::NodeId;

use super::{BlobSource, Client, Error, HeldPart, OpenExtents, Result};

/// This node's disk and its way to the others.
#[derive(Debug, Clone)]
pub struct Local {
    /// The disk.
    pub blobs: BlobStore,
    /// The extents that are being written on it.
    pub open: OpenExtents,
    /// The way to the others.
    pub client: Client,
}

impl Local {
    /// Writes all that `source` delivers and publishes it, if it is the blob; `writer` writes the fresh extent `id`.
    ///
    /// # Errors
    ///
    /// - [`Error::NotTheBlob`] if the bytes do not hash to the digest; nothing is kept.
    /// - [`Error::NoHolder`] if the holders gave out before the end.
    ///
    /// # Cancel safety
    ///
    /// A dropped call drops the writer, and with it what had arrived.
    pub async fn fetch_blob(&self, id: ExtentId, mut writer: ExtentWriter, source: &mut BlobSource) -> Result<()> {
        while let Some(bytes) = source.next().await? {
            writer.write(bytes).await?;
        }
        let stored = writer.finish().await?;
        let digest = source.digest().clone();
        let hash = Hasher::resume(&stored.hash_state).map(Hasher::finish).ok();
        let published = if hash.as_ref() == Some(&digest) && stored.length == source.size() {
            let part = ExtentPart { id, offset: 0, length: stored.length };
            self.blobs.assemble(&digest, source.size(), &[part]).await.map_err(Error::from)
        } else {
            Err(Error::NotTheBlob)
        };
        // The blob has a name of its own now, and who follows the staging file has it open.
        if let Err(error) = self.blobs.remove_extents(&[id]).await {
            tracing::warn!(extent = %id, %error, "staging file of a fetch could not be removed");
        }
        published
    }

    /// Makes sure that an extent's bytes lie synced here, copying them from one of its holders if need be.
    ///
    /// # Errors
    ///
    /// [`Error::NotHere`] if no holder gave it, or what the last one said.
    pub async fn fetch_extent(&self, held: &HeldPart, algorithm: Algorithm) -> Result<()> {
        let (id, length) = (held.part.id, held.part.length);
        let _open = loop {
            self.open.closed(id).await;
            if self.has_extent(&held.part).await? {
                return Ok(());
            }
            if let Some(guard) = self.open.open(id) {
                break guard;
            }
        };
        let me = self.client.me();
        let mut outcome = Err(Error::NotHere { node: me });
        for holder in held.holders.iter().copied().filter(|node| *node != me) {
            outcome = self.copy_extent(holder, id, length, algorithm).await;
            match &outcome {
                // The fault is here: another holder would not help.
                Ok(()) | Err(Error::Blob(_)) => return outcome,
                Err(_) => {}
            }
        }
        outcome
    }

    async fn has_extent(&self, part: &ExtentPart) -> Result<bool> {
        Ok(self.blobs.extent(part.id).await?.is_some_and(|stored| stored.length >= part.length))
    }

    async fn copy_extent(&self, holder: NodeId, id: ExtentId, length: u64, algorithm: Algorithm) -> Result<()> {
        let mut stream = self.client.read_extent(holder, id, length).await?;
        // The hash of this run alone: the blob is hashed whole when it is put together.
        let mut writer = self.blobs.stage(id, HashState::initial(algorithm)).await?;
        while let Some(bytes) = stream.next().await? {
            writer.write(bytes).await?;
        }
        writer.finish().await?;
        Ok(())
    }

    /// Puts a blob together here, from extents that lie here or at their holders; verified and synced on return.
    ///
    /// # Errors
    ///
    /// - [`Error::Blob`] with a digest mismatch if the extents are not the blob, also when fetched afresh.
    /// - As [`Local::fetch_extent`].
    pub async fn assemble(&self, digest: &Digest, size: u64, parts: &[HeldPart]) -> Result<()> {
        if size == 0 {
            return Ok(self.blobs.put(digest, bytes::Bytes::new()).await?);
        }
        if self.blobs.has(digest, size).await? {
            return Ok(());
        }
        let runs: Vec<ExtentPart> = parts.iter().map(|held| held.part.clone()).collect();
        self.fetch_extents(digest, parts).await?;
        match self.blobs.assemble(digest, size, &runs).await {
            Err(
                BlobError::DigestMismatch { .. } | BlobError::SizeMismatch { .. } | BlobError::ExtentUnknown { .. },
            ) => {}
            other => return Ok(other?),
        }
        // The running hash of the session was right, so a copy here must be wrong: take fresh ones where others have them.
        let me = self.client.me();
        let elsewhere: Vec<ExtentId> =
            parts.iter().filter(|held| held.holders.iter().any(|node| *node != me)).map(|held| held.part.id).collect();
        self.blobs.remove_extents(&elsewhere).await?;
        self.fetch_extents(digest, parts).await?;
        Ok(self.blobs.assemble(digest, size, &runs).await?)
    }

    async fn fetch_extents(&self, digest: &Digest, parts: &[HeldPart]) -> Result<()> {
        for held in parts {
            self.fetch_extent(held, digest.algorithm()).await?;
        }
        Ok(())
    }
}
