//! Manifest bodies: small, wanted on every node (P18).

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::oci::Digest;
use crate::topology::NodeId;
use crate::transfer::BlobSource;

use super::{Error, Replicas, Result};

/// The largest body that is ever collected in memory.
const BODY_BYTES_MAX: u64 = 16 * 1024 * 1024;

impl Replicas {
    /// Puts a small body on every node that is not known dead, all at once; it is synced where it says so (P18).
    ///
    /// Returns the nodes that have it as soon as `enough(nodes so far)` holds or all have answered, at the latest after
    /// `deadline`; the rest goes on in the background within that time. The caller decides whether they are enough.
    ///
    /// # Errors
    ///
    /// [`Error::Blob`] if the body is not the digest's, or nobody took it because this disk failed.
    pub async fn put_body(
        &self,
        digest: &Digest,
        body: Bytes,
        enough: &(dyn Fn(&[NodeId]) -> bool + Sync),
        deadline: Duration,
    ) -> Result<Vec<NodeId>> {
        let until = Instant::now() + deadline;
        let targets: Vec<NodeId> = self.topology().nodes.keys().copied().chain([self.me()]).collect();
        let (answers, mut inbox) = mpsc::channel(targets.len());
        let (this, wanted) = (self.clone(), digest.clone());
        let spread = async move {
            let mut puts = JoinSet::new();
            let mut seen = std::collections::BTreeSet::new();
            for node in targets.into_iter().filter(|node| seen.insert(*node)) {
                if node != this.me() && this.0.parts.sight.is_dead(node) {
                    continue;
                }
                let (this, digest, body, answers) = (this.clone(), wanted.clone(), body.clone(), answers.clone());
                puts.spawn(async move {
                    let put = this.put_body_on(node, &digest, body, until).await;
                    let _gone = answers.send((node, put)).await;
                });
            }
            drop(answers);
            while puts.join_next().await.is_some() {}
        };
        self.spawn("spread body", Box::pin(spread));
        let mut holders = Vec::new();
        let mut failure = None;
        while let Ok(Some((node, put))) = timeout_at(until, inbox.recv()).await {
            match put {
                Ok(()) => holders.push(node),
                Err(Some(error)) => failure = Some(error),
                Err(None) => {}
            }
            if enough(&holders) {
                break;
            }
        }
        match failure {
            Some(error) if holders.is_empty() => Err(error.into()),
            _ => Ok(holders),
        }
    }

    /// Puts the body on one node; an error of this node's own disk is told.
    async fn put_body_on(
        &self,
        node: NodeId,
        digest: &Digest,
        body: Bytes,
        until: Instant,
    ) -> Result<(), Option<crate::blob::Error>> {
        let local = self.local();
        if node == self.me() {
            return local.blobs.put(digest, body).await.map_err(Some);
        }
        let left = until.saturating_duration_since(Instant::now());
        local.client.put_body(node, digest, body, left).await.map_err(|error| {
            self.note(node, &error);
            None
        })
    }

    /// Reads a whole small body (a manifest's), from here or a peer; one that was missing here is kept.
    ///
    /// # Errors
    ///
    /// [`Error::NoHolder`] if no node in reach has it.
    pub async fn read_all(&self, digest: &Digest, size: u64) -> Result<Bytes> {
        self.0.activity.moved(usize::try_from(size).unwrap_or(0));
        let blobs = &self.local().blobs;
        match blobs.read_all(digest, size).await {
            Ok(Some(bytes)) => return Ok(bytes),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%digest, %error, "body here cannot be read, asking the others");
                self.set_aside(digest, &error).await;
            }
        }
        let body = self.collect(digest, size).await?;
        // Wanted on every node, so on this one (P18); a disk that takes nothing does not stop the answer.
        let (this, wanted, copy) = (self.clone(), digest.clone(), body.clone());
        let keep = async move {
            if let Err(error) = this.local().blobs.put(&wanted, copy).await {
                tracing::warn!(digest = %wanted, %error, "fetched body could not be kept");
            }
        };
        self.spawn("keep fetched body", Box::pin(keep));
        Ok(body)
    }

    /// Makes sure this node itself has a manifest body, also when the disk takes no more blobs (catch-up).
    ///
    /// # Errors
    ///
    /// [`Error::NoHolder`] if no node in reach delivered it, [`Error::Blob`] if this disk does not take it.
    pub async fn ensure_body(&self, digest: &Digest, size: u64) -> Result<()> {
        if size > BODY_BYTES_MAX {
            return self.ensure_local(digest, size).await;
        }
        if self.local().blobs.hold(digest, size).await? {
            return Ok(());
        }
        let body = self.collect(digest, size).await?;
        Ok(self.local().blobs.put(digest, body).await?)
    }

    /// Reads a small body from peers, one after the other until the bytes are right.
    async fn collect(&self, digest: &Digest, size: u64) -> Result<Bytes> {
        if size > BODY_BYTES_MAX {
            return Err(Error::NoHolder { digest: digest.clone(), lost: false });
        }
        let mut candidates = self.sources(digest);
        loop {
            let client = self.local().client.clone();
            let mut source = BlobSource::new(client, digest.clone(), size, 0..size, candidates.clone());
            let mut body = BytesMut::new();
            loop {
                match source.next().await {
                    Ok(Some(bytes)) => body.extend_from_slice(&bytes),
                    Ok(None) => break,
                    Err(_) => {
                        self.note_failures(&mut source);
                        return Err(self.no_holder(digest, size).await);
                    }
                }
            }
            self.note_failures(&mut source);
            if Digest::of(digest.algorithm(), &body) == *digest {
                return Ok(body.freeze());
            }
            let senders: Vec<NodeId> = source.senders().collect();
            if senders.is_empty() {
                return Err(Error::DigestMismatch { digest: digest.clone() }); // empty, and not the empty body's digest
            }
            self.accuse(digest, size, &senders);
            candidates.retain(|node| !senders.contains(node));
        }
    }
}
