//! One blob's bytes from whichever holder delivers them.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::sleep;

use crate::oci::Digest;
use crate::topology::NodeId;

use super::{BlobRange, Client, Error, FrameStream, Result, Throttle};

/// How long an open may stay unanswered before another holder is asked as well (P17).
const HEDGE: Duration = Duration::from_millis(300);

/// How many holders may be asked at once.
const OPENS_MAX: usize = 3;

/// Reads a range of a blob from a list of holders: opens are hedged, and when a holder dies, stalls or finds its copy
/// damaged, the next one goes on at the very byte.
#[derive(Debug)]
pub struct BlobSource {
    client: Client,
    digest: Digest,
    size: u64,
    left: Range<u64>,
    candidates: VecDeque<NodeId>,
    current: Option<FrameStream>,
    /// Who broke off in the middle and has had its second chance.
    forgiven: BTreeSet<NodeId>,
    senders: BTreeSet<NodeId>,
    failures: Vec<(NodeId, Error)>,
    throttle: Option<Arc<dyn Throttle>>,
    /// Whether the current stream was opened as background work.
    in_background: bool,
    /// Bytes returned and not yet accounted for at the throttle.
    owed: u64,
}

impl BlobSource {
    /// Prepares to read `range` of a blob of `size` bytes from `candidates`, best first.
    #[must_use]
    pub fn new(client: Client, digest: Digest, size: u64, range: Range<u64>, candidates: Vec<NodeId>) -> Self {
        Self {
            client,
            digest,
            size,
            left: range,
            candidates: candidates.into(),
            current: None,
            forgiven: BTreeSet::new(),
            senders: BTreeSet::new(),
            failures: Vec::new(),
            throttle: None,
            in_background: false,
            owed: 0,
        }
    }

    /// Makes it background work, here and at the holders, for as long as `throttle` is not lifted.
    #[must_use]
    pub fn throttled(self, throttle: Arc<dyn Throttle>) -> Self {
        Self { throttle: Some(throttle), ..self }
    }

    /// The blob that is read.
    #[must_use]
    pub const fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The blob's size in bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The nodes whose bytes were returned so far.
    pub fn senders(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.senders.iter().copied()
    }

    /// Takes what went wrong with single holders since the last call.
    pub fn take_failures(&mut self) -> Vec<(NodeId, Error)> {
        std::mem::take(&mut self.failures)
    }

    /// The next bytes, or `None` at the end of the range.
    ///
    /// # Errors
    ///
    /// [`Error::NoHolder`] when no candidate is left.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        self.hold_back().await;
        while !self.left.is_empty() {
            let mut stream = match self.current.take() {
                Some(stream) => stream,
                None => self.open().await?,
            };
            let node = stream.node();
            match stream.next().await {
                Ok(Some(bytes)) => {
                    self.left.start += bytes.len() as u64;
                    self.owed += bytes.len() as u64;
                    self.senders.insert(node);
                    self.current = Some(stream);
                    return Ok(Some(bytes));
                }
                Ok(None) => self.failures.push((node, Error::Malformed { node })),
                Err(error) => {
                    // A pause or a restart passes: with few holders, the one that broke off may be the last good one.
                    if error.is_silence() && self.forgiven.insert(node) {
                        self.candidates.push_back(node);
                    }
                    self.failures.push((node, error));
                }
            }
        }
        Ok(None)
    }

    /// Waits for what was moved so far; once somebody waits for the bytes, the holder is asked not to dawdle either.
    async fn hold_back(&mut self) {
        let Some(throttle) = &self.throttle else { return };
        if !throttle.is_lifted() {
            throttle.take(self.owed).await;
        } else if self.in_background
            && let Some(stream) = self.current.take()
        {
            self.candidates.push_front(stream.node());
        }
        self.owed = 0;
    }

    /// Opens the rest of the range at the first candidate that answers with bytes.
    async fn open(&mut self) -> Result<FrameStream> {
        self.in_background = self.throttle.as_ref().is_some_and(|throttle| !throttle.is_lifted());
        let (digest, range) = (self.digest.clone(), self.left.clone());
        let wanted = &BlobRange { digest, size: self.size, range, in_background: self.in_background };
        let client = &self.client;
        let ask = |node| async move { (node, client.read_blob(node, wanted).await) };
        let mut asked = VecDeque::new();
        let mut opening = FuturesUnordered::new();
        loop {
            if opening.is_empty() {
                let node = self.candidates.pop_front().ok_or(Error::NoHolder)?;
                asked.push_back(node);
                opening.push(ask(node));
            }
            let may_hedge = opening.len() < OPENS_MAX && !self.candidates.is_empty();
            tokio::select! {
                Some((node, result)) = opening.next() => {
                    asked.retain(|other| *other != node);
                    match result {
                        Ok(stream) => {
                            drop(opening);
                            // Those that were merely slower stay in reserve.
                            self.candidates.append(&mut asked);
                            return Ok(stream);
                        }
                        Err(error) => self.failures.push((node, error)),
                    }
                }
                () = sleep(HEDGE), if may_hedge => {
                    if let Some(node) = self.candidates.pop_front() {
                        asked.push_back(node);
                        opening.push(ask(node));
                    }
                }
            }
        }
    }
}
