//! A blob's bytes for a client: from here, from a fetch that is running, or passed on from a holder (P16, P17).

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::blob::{BlobReader, Error as BlobError, ExtentFollower};
use crate::oci::{Digest, Hasher};
use crate::transfer::{BlobSource, Error as TransferError};

use super::in_flight::{Fetch, FetchState};
use super::tail::Tail;
use super::{Error, Replicas, Result};

/// A reader this far ahead of a fetch does not wait for it.
const NEAR_BYTES: u64 = 8 * 1024 * 1024;

/// Blocks read ahead of a slow client.
const BLOCKS_AHEAD: usize = 1;

/// How often a read begins anew at the holders after all of them gave out.
const RELAYS_MAX: u32 = 2;

/// How often a read looks for a source at all: a copy that is damaged as often as it is fetched ends it.
const CHOICES_MAX: u32 = 8;

impl Replicas {
    /// Opens the bytes [start, end) of a linked blob of `size` bytes, from here or from the nearest live holder; every
    /// block is checked (P16, P17).
    ///
    /// Errors come before the first byte; later damage or loss moves on to another holder unseen, or ends the stream with
    /// an error. A stream that ends without one delivered the right bytes.
    ///
    /// # Errors
    ///
    /// - [`Error::NoHolder`] if no node in reach delivered the first byte (P19).
    /// - [`Error::DigestMismatch`] if what a holder delivered is not the blob.
    pub async fn read(
        &self,
        digest: &Digest,
        size: u64,
        start: u64,
        end: u64,
    ) -> Result<BoxStream<'static, Result<Bytes>>> {
        let mut reading = Reading {
            replicas: self.clone(),
            digest: digest.clone(),
            size,
            start,
            position: start,
            end: end.min(size),
            source: None,
            tail: None,
            verdict: Verdict::None,
            here: true,
            fetches: true,
            relays: 0,
            choices: 0,
        };
        if size == 0 && *digest != Digest::of(digest.algorithm(), b"") {
            return Err(Error::NoHolder { digest: digest.clone(), lost: false });
        }
        let Some(first) = Box::pin(reading.next()).await? else { return Ok(futures::stream::empty().boxed()) };
        let rest = futures::stream::try_unfold(reading, |mut reading| async move {
            Ok(reading.next().await?.map(|bytes| (bytes, reading)))
        });
        let activity = self.activity();
        let count = move |bytes: &Result<Bytes>| activity.moved(bytes.as_ref().map_or(0, Bytes::len));
        Ok(futures::stream::once(async { Ok(first) }).chain(rest).inspect(count).boxed())
    }
}

/// A read on its way.
struct Reading {
    replicas: Replicas,
    digest: Digest,
    size: u64,
    start: u64,
    /// The next byte to ask a source for; bytes before it are with the client or in `tail`.
    position: u64,
    end: u64,
    source: Option<Source>,
    /// Set while the source is not this node's own verified copy and the body's end is wanted.
    tail: Option<Tail>,
    verdict: Verdict,
    /// Whether this node's own copy is still worth a try.
    here: bool,
    /// Whether a fetch to this disk is still worth a try.
    fetches: bool,
    relays: u32,
    choices: u32,
}

enum Source {
    Here(Blocks),
    Following(ExtentFollower, Arc<Fetch>),
    Relay(Box<BlobSource>),
}

/// What decides whether the tail of a relayed body may go out.
enum Verdict {
    /// Nothing but the block sums: a range, or a body whose beginning came from the copy here.
    None,
    /// The hash of the whole, which passes through here.
    Hash(Box<Hasher>),
    /// The fetch to this disk that runs beside.
    Fetch(Arc<Fetch>),
}

impl Reading {
    /// The next bytes for the client, or `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            if self.position >= self.end {
                return self.release().await;
            }
            if self.source.is_none() {
                self.source = Some(Box::pin(self.choose()).await?);
            }
            if let Some(bytes) = self.read_source().await? {
                let position = self.position;
                self.position += bytes.len() as u64;
                let free = match &mut self.tail {
                    Some(tail) => tail.pass(position, bytes),
                    None => Some(bytes),
                };
                if free.is_some() {
                    return Ok(free);
                }
            }
        }
    }

    /// Bytes from the current source; `None` if it gave out and another must be chosen.
    async fn read_source(&mut self) -> Result<Option<Bytes>> {
        let Some(source) = &mut self.source else { return Ok(None) };
        match source {
            Source::Here(blocks) => match blocks.next().await {
                Some(Ok(bytes)) => return Ok(Some(bytes)),
                Some(Err(error)) => {
                    tracing::warn!(digest = %self.digest, %error, "copy here cannot be read, going on elsewhere");
                    self.replicas.set_aside(&self.digest, &error).await;
                }
                None => {}
            },
            Source::Following(follower, fetch) => match follower.next().await {
                Ok(Some(mut bytes)) => {
                    let left = usize::try_from(self.end - self.position).unwrap_or(usize::MAX);
                    bytes.truncate(left);
                    return Ok(Some(bytes));
                }
                Ok(None) | Err(_) => {
                    let fetch = Arc::clone(fetch);
                    self.fetch_failed(fetch.ended().await)?;
                }
            },
            Source::Relay(source) => {
                let bytes = source.next().await;
                match bytes {
                    Ok(Some(bytes)) => {
                        if let Verdict::Hash(hasher) = &mut self.verdict {
                            hasher.update(&bytes);
                        }
                        return Ok(Some(bytes));
                    }
                    Ok(None) => {}
                    Err(TransferError::NoHolder) => self.replicas.note_failures(source),
                    Err(error) => {
                        tracing::warn!(digest = %self.digest, %error, "relayed read broke off");
                        self.replicas.note_failures(source);
                    }
                }
            }
        }
        self.rewind();
        Ok(None)
    }

    /// Takes back what no source vouches for any more.
    fn rewind(&mut self) {
        if let Some(tail) = &mut self.tail {
            self.position -= tail.kept_bytes();
            tail.clear();
        }
        self.tail = None;
        self.source = None;
        self.verdict = Verdict::None;
    }

    fn fetch_failed(&mut self, state: FetchState) -> Result<()> {
        match state {
            FetchState::NotTheBlob => Err(Error::DigestMismatch { digest: self.digest.clone() }),
            FetchState::Done => {
                self.here = true; // a reader that began after the end, or lost the staging file: the blob is here
                Ok(())
            }
            _ => {
                self.fetches = false;
                Ok(())
            }
        }
    }

    async fn choose(&mut self) -> Result<Source> {
        loop {
            self.choices += 1;
            if self.choices > CHOICES_MAX {
                return Err(self.replicas.no_holder(&self.digest, self.size).await);
            }
            if std::mem::take(&mut self.here) {
                let local = self.replicas.local();
                match local.blobs.open_blob(&self.digest, self.size).await {
                    Ok(Some(reader)) => return Ok(Source::Here(Blocks::read(reader, self.position, self.end))),
                    Ok(None) => {}
                    Err(error) => tracing::warn!(digest = %self.digest, %error, "copy here cannot be opened"),
                }
            }
            let refuses = self.replicas.local().blobs.refuses_writes();
            let wanted = self.fetches && !refuses && self.replicas.is_wanted_here(&self.digest);
            let Some(fetch) = wanted.then(|| self.replicas.fetch(&self.digest, self.size, None)).flatten() else {
                return self.relay(None).await;
            };
            match fetch.opened().await {
                FetchState::Running => match self.replicas.local().blobs.follow(fetch.id, self.position).await {
                    Ok(follower) => return self.follow(follower, fetch).await,
                    // The staging file goes just before the fetch ends.
                    Err(_) => self.fetch_failed(fetch.ended().await)?,
                },
                state => self.fetch_failed(state)?,
            }
        }
    }

    /// Follows a fetch, unless it is far behind.
    async fn follow(&mut self, follower: ExtentFollower, fetch: Arc<Fetch>) -> Result<Source> {
        let written = follower.progress().borrow().written;
        if self.position > written.saturating_add(NEAR_BYTES) {
            return self.relay(Some(fetch)).await;
        }
        if self.end == self.size {
            self.tail = Some(Tail::new(self.size));
            self.verdict = Verdict::Fetch(Arc::clone(&fetch));
        }
        Ok(Source::Following(follower, fetch))
    }

    async fn relay(&mut self, fetch: Option<Arc<Fetch>>) -> Result<Source> {
        self.relays += 1;
        if self.relays > RELAYS_MAX {
            return Err(self.replicas.no_holder(&self.digest, self.size).await);
        }
        if self.start == 0 && self.end == self.size {
            self.verdict = match fetch {
                Some(fetch) => Verdict::Fetch(fetch),
                None if self.position == 0 => Verdict::Hash(Box::new(Hasher::new(self.digest.algorithm()))),
                None => Verdict::None,
            };
            let judged = !matches!(self.verdict, Verdict::None);
            self.tail = judged.then(|| Tail::new(self.size));
        }
        let client = self.replicas.local().client.clone();
        let candidates = self.replicas.sources(&self.digest);
        let range = self.position..self.end;
        let source = BlobSource::new(client, self.digest.clone(), self.size, range, candidates);
        Ok(Source::Relay(Box::new(source)))
    }

    /// Gives out the tail once the body is known to be right.
    async fn release(&mut self) -> Result<Option<Bytes>> {
        let wrong = Error::DigestMismatch { digest: self.digest.clone() };
        match std::mem::replace(&mut self.verdict, Verdict::None) {
            Verdict::Hash(hasher) => {
                if hasher.finish() != self.digest {
                    if let Some(Source::Relay(source)) = &self.source {
                        self.replicas.accuse(&self.digest, self.size, &source.senders().collect::<Vec<_>>());
                    }
                    return Err(wrong);
                }
            }
            // Only a fetch that ended well has hashed every byte.
            Verdict::Fetch(fetch) => match fetch.ended().await {
                FetchState::Done => {}
                FetchState::NotTheBlob => return Err(wrong),
                _ => return Err(Error::NoHolder { digest: self.digest.clone(), lost: false }),
            },
            Verdict::None => {}
        }
        if let Some(Source::Relay(source)) = &mut self.source {
            self.replicas.note_failures(source);
        }
        self.source = None;
        Ok(self.tail.as_mut().and_then(Tail::release))
    }
}

/// The checked blocks of this node's own copy, one read ahead of the client.
struct Blocks {
    inbox: mpsc::Receiver<Result<Bytes, BlobError>>,
    /// Dies with the read.
    _reader: JoinSet<()>,
}

impl Blocks {
    fn read(mut reader: BlobReader, start: u64, end: u64) -> Self {
        let (outbox, inbox) = mpsc::channel(BLOCKS_AHEAD);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut position = start;
            while position < end {
                let block = reader.read(position, end).await;
                position += block.as_ref().map_or(0, |bytes| bytes.len() as u64);
                let failed = block.is_err();
                if outbox.send(block).await.is_err() || failed {
                    return;
                }
            }
        });
        Self { inbox, _reader: task }
    }

    async fn next(&mut self) -> Option<Result<Bytes, BlobError>> {
        self.inbox.recv().await
    }
}
