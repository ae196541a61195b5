//! Brings bytes that other nodes hold to this node's disk.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::blob::{BlobStore, Error as BlobError, ExtentPart, ExtentWriter};
use crate::oci::{Algorithm, Digest, ExtentId, HashState, Hasher};
use crate::topology::NodeId;

use super::{BlobSource, Client, Error, HeldPart, OpenExtents, Result};

/// How long somebody else's writing of an extent is waited for.
const WRITER_WAIT: Duration = Duration::from_secs(10);

/// How often an extent that proves damaged is taken anew.
const MENDS_MAX: usize = 4;

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

    /// Makes sure that an extent's bytes lie synced here, copying them from one of its holders if need be; those that
    /// were silent before are asked last.
    async fn fetch_extent(&self, held: &HeldPart, algorithm: Algorithm, silent: &mut BTreeSet<NodeId>) -> Result<()> {
        let (id, length, me) = (held.part.id, held.part.length, self.client.me());
        let until = Instant::now() + WRITER_WAIT;
        let _open = loop {
            if timeout_at(until, self.open.closed(id)).await.is_err() {
                return Err(Error::Busy { node: me });
            }
            if self.has_extent(&held.part).await? {
                return Ok(());
            }
            if let Some(guard) = self.open.open(id) {
                break guard;
            }
        };
        let mut outcome = Err(Error::NotHere { node: me });
        let mut holders: Vec<NodeId> = held.holders.iter().copied().filter(|node| *node != me).collect();
        holders.sort_by_key(|node| silent.contains(node));
        for holder in holders {
            outcome = self.copy_extent(holder, id, length, algorithm).await;
            match &outcome {
                // The fault is here: another holder would not help.
                Ok(()) | Err(Error::Blob(_)) => return outcome,
                Err(error) if error.is_silence() => {
                    silent.insert(holder);
                }
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
    /// - [`Error::NotHere`] if no holder gave an extent, or what the last one said; [`Error::Busy`] if somebody keeps
    ///   writing it here.
    pub async fn assemble(&self, digest: &Digest, size: u64, parts: &[HeldPart]) -> Result<()> {
        if size == 0 {
            return Ok(self.blobs.put(digest, bytes::Bytes::new()).await?);
        }
        let runs: Vec<ExtentPart> = parts.iter().map(|held| held.part.clone()).collect();
        let mut silent = BTreeSet::new();
        // A file of the right size is no copy yet: the store reads it through and syncs it, or makes another.
        if self.blobs.has(digest, size).await? && self.blobs.assemble(digest, size, &runs).await.is_ok() {
            return Ok(());
        }
        for _ in 0..MENDS_MAX {
            self.fetch_extents(digest, parts, &mut silent).await?;
            match self.blobs.assemble(digest, size, &runs).await {
                Ok(()) => return Ok(()),
                // Damaged here, and gone with that: only this one is fetched anew.
                Err(BlobError::ExtentUnknown { id }) => tracing::warn!(extent = %id, "extent is taken anew"),
                // The running hash of the session was right, so a copy here must be wrong, and nothing says which.
                Err(error @ BlobError::DigestMismatch { .. }) => {
                    let elsewhere = self.confirmed_elsewhere(parts).await;
                    if elsewhere.is_empty() {
                        return Err(error.into());
                    }
                    self.blobs.remove_extents(&elsewhere).await?;
                    self.fetch_extents(digest, parts, &mut silent).await?;
                    return Ok(self.blobs.assemble(digest, size, &runs).await?);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(self.blobs.assemble(digest, size, &runs).await?)
    }

    /// Which extents another holder says it has whole: only those may go from here.
    async fn confirmed_elsewhere(&self, parts: &[HeldPart]) -> Vec<ExtentId> {
        let me = self.client.me();
        let mut silent = BTreeSet::new();
        let mut confirmed = Vec::new();
        for held in parts {
            for holder in held.holders.iter().copied().filter(|node| *node != me) {
                if silent.contains(&holder) {
                    continue;
                }
                match self.client.extent_info(holder, held.part.id).await {
                    Ok(Some(stored)) if stored.length >= held.part.length => {
                        confirmed.push(held.part.id);
                        break;
                    }
                    Err(error) if error.is_silence() => {
                        silent.insert(holder);
                    }
                    Ok(_) | Err(_) => {}
                }
            }
        }
        confirmed
    }

    async fn fetch_extents(&self, digest: &Digest, parts: &[HeldPart], silent: &mut BTreeSet<NodeId>) -> Result<()> {
        for held in parts {
            self.fetch_extent(held, digest.algorithm(), silent).await?;
        }
        Ok(())
    }
}
