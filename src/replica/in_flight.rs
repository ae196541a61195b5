//! One fetch per blob on this node: it writes to a staging file, which any number of readers follow (P17).

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::env::BoxFuture;
use crate::oci::{Digest, ExtentId, HashState};
use crate::topology::NodeId;
use crate::transfer::{BlobSource, Error as TransferError, Throttle};

use super::{Error, Replicas, Result};

/// Fetches to this disk that run at once; beyond it readers are served without keeping a copy.
const FETCHES_MAX: usize = 32;

/// How long a node that sent wrong bytes is asked last.
const ACCUSED_FOR: Duration = Duration::from_secs(600);

/// Accusations remembered; the oldest go first.
const ACCUSED_MAX: usize = 1024;

/// The fetches of this node.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    running: Mutex<HashMap<Digest, Arc<Fetch>>>,
    accused: Mutex<BTreeMap<(Digest, NodeId), Instant>>,
    /// How many fetches began at each node and still run.
    begun_at: Arc<Mutex<BTreeMap<NodeId, usize>>>,
}

/// One running or just ended fetch.
#[derive(Debug)]
pub(super) struct Fetch {
    /// The staging file.
    pub(super) id: ExtentId,
    state: watch::Sender<FetchState>,
    /// A client waits for it: nothing may hold it back.
    hurried: watch::Sender<bool>,
}

/// How far a fetch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FetchState {
    /// The staging file is not there yet.
    Opening,
    /// Bytes arrive, or will.
    Running,
    /// The blob lies here, verified.
    Done,
    /// No holder delivered all of it.
    NoHolder,
    /// All bytes came and were not the blob.
    NotTheBlob,
    /// This disk did not take it, or the node is stopping.
    NotKept,
}

/// Counts a fetch at the node where it begins, until dropped.
struct BegunAt {
    node: NodeId,
    counts: Arc<Mutex<BTreeMap<NodeId, usize>>>,
}

impl Drop for BegunAt {
    fn drop(&mut self) {
        if let Some(count) = self.counts.lock().expect("no panic under this lock").get_mut(&self.node) {
            *count = count.saturating_sub(1);
        }
    }
}

/// Holds a fetch back until somebody waits for it.
#[derive(Debug)]
struct Brake {
    throttle: Arc<dyn Throttle>,
    fetch: Arc<Fetch>,
}

impl Throttle for Brake {
    fn take(&self, bytes: u64) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let mut hurried = self.fetch.hurried.subscribe();
            tokio::select! {
                () = self.throttle.take(bytes) => {}
                _ = hurried.wait_for(|hurried| *hurried) => {}
            }
        })
    }

    fn is_lifted(&self) -> bool {
        *self.fetch.hurried.borrow()
    }
}

impl InFlight {
    /// How many running fetches began at a node.
    pub(super) fn load(&self, node: NodeId) -> usize {
        self.begun_at.lock().expect("no panic under this lock").get(&node).copied().unwrap_or(0)
    }

    fn begin_at(&self, node: NodeId) -> BegunAt {
        *self.begun_at.lock().expect("no panic under this lock").entry(node).or_default() += 1;
        BegunAt { node, counts: Arc::clone(&self.begun_at) }
    }

    /// Whether a node sent wrong bytes as this blob lately.
    pub(super) fn is_accused(&self, digest: &Digest, node: NodeId) -> bool {
        let accused = self.accused.lock().expect("no panic under this lock");
        accused.get(&(digest.clone(), node)).is_some_and(|since| since.elapsed() < ACCUSED_FOR)
    }

    /// Remembers that a node sent wrong bytes as this blob.
    pub(super) fn accuse(&self, digest: &Digest, node: NodeId) {
        let mut accused = self.accused.lock().expect("no panic under this lock");
        if accused.len() >= ACCUSED_MAX {
            accused.retain(|_, since| since.elapsed() < ACCUSED_FOR);
        }
        if accused.len() < ACCUSED_MAX {
            accused.insert((digest.clone(), node), Instant::now());
        }
    }
}

impl Fetch {
    /// Waits until the staging file is there or the fetch has ended.
    pub(super) async fn opened(&self) -> FetchState {
        self.wait(|state| *state != FetchState::Opening).await
    }

    /// Waits for the end.
    pub(super) async fn ended(&self) -> FetchState {
        self.wait(|state| !matches!(state, FetchState::Opening | FetchState::Running)).await
    }

    async fn wait(&self, until: impl FnMut(&FetchState) -> bool) -> FetchState {
        let mut states = self.state.subscribe();
        states.wait_for(until).await.map_or(FetchState::NotKept, |state| *state)
    }
}

/// Ends a fetch for its readers whatever happens to its task.
struct Ending {
    replicas: Replicas,
    digest: Digest,
    fetch: Arc<Fetch>,
    state: FetchState,
}

impl Drop for Ending {
    fn drop(&mut self) {
        // Gone from the table first: who comes now begins anew instead of joining the end.
        let in_flight = &self.replicas.0.in_flight;
        in_flight.running.lock().expect("no panic under this lock").remove(&self.digest);
        self.fetch.state.send_replace(self.state);
    }
}

impl Replicas {
    /// Joins the running fetch of a blob to this disk or begins one; `None` if too many run.
    ///
    /// Without a throttle somebody waits for it: one that was begun as background work is held back no more.
    pub(super) fn fetch(&self, digest: &Digest, size: u64, throttle: Option<Arc<dyn Throttle>>) -> Option<Arc<Fetch>> {
        let mut running = self.0.in_flight.running.lock().expect("no panic under this lock");
        if let Some(fetch) = running.get(digest) {
            if throttle.is_none() {
                fetch.hurried.send_replace(true);
            }
            return Some(Arc::clone(fetch));
        }
        if running.len() >= FETCHES_MAX {
            return None;
        }
        let fetch = Arc::new(Fetch {
            id: ExtentId::from_random(self.0.parts.env.seed.draw_u128()),
            state: watch::Sender::new(FetchState::Opening),
            hurried: watch::Sender::new(throttle.is_none()),
        });
        running.insert(digest.clone(), Arc::clone(&fetch));
        drop(running);
        let (this, replicas) = (self.clone(), self.clone());
        let ending = Ending { replicas, digest: digest.clone(), fetch: Arc::clone(&fetch), state: FetchState::NotKept };
        self.spawn("fetch blob", Box::pin(async move { Box::pin(this.run_fetch(ending, size, throttle)).await }));
        Some(fetch)
    }

    async fn run_fetch(&self, mut ending: Ending, size: u64, throttle: Option<Arc<dyn Throttle>>) {
        let (local, id, digest) = (self.local(), ending.fetch.id, ending.digest.clone());
        let Some(_open) = local.open.open(id) else { return };
        let writer = match local.blobs.stage(id, HashState::initial(digest.algorithm())).await {
            Ok(writer) => writer,
            Err(error) => {
                tracing::warn!(%digest, %error, "blob cannot be fetched to the disk here");
                return;
            }
        };
        ending.fetch.state.send_replace(FetchState::Running);
        let candidates = self.sources(&digest);
        let _begun = candidates.first().map(|node| self.0.in_flight.begin_at(*node));
        let mut source = BlobSource::new(local.client.clone(), digest.clone(), size, 0..size, candidates);
        if let Some(throttle) = throttle {
            source = source.throttled(Arc::new(Brake { throttle, fetch: Arc::clone(&ending.fetch) }));
        }
        let result = Box::pin(local.fetch_blob(id, writer, &mut source)).await;
        self.note_failures(&mut source);
        ending.state = match result {
            Ok(()) => FetchState::Done,
            Err(TransferError::NoHolder) => FetchState::NoHolder,
            Err(TransferError::NotTheBlob) => {
                self.accuse(&digest, size, &source.senders().collect::<Vec<_>>());
                FetchState::NotTheBlob
            }
            Err(error) => {
                tracing::warn!(%digest, %error, "fetched blob could not be kept");
                FetchState::NotKept
            }
        };
    }

    /// Makes sure this node itself holds the blob, fetching it if need be.
    ///
    /// # Errors
    ///
    /// - [`Error::NoHolder`] if no node in reach delivered it.
    /// - [`Error::DigestMismatch`] if what was delivered is not the blob; the senders are told.
    /// - [`Error::Blob`] if this disk does not take it, [`Error::Stopped`] if it failed or the node stops.
    ///
    /// # Cancel safety
    ///
    /// A dropped call lets the fetch go on.
    pub async fn ensure_local(&self, digest: &Digest, size: u64) -> Result<()> {
        self.ensure_here(digest, size, None).await
    }

    /// The same as background work, as fast as `throttle` allows until a client waits for the bytes (repair).
    ///
    /// # Errors
    ///
    /// As [`Self::ensure_local`].
    pub async fn repair(&self, digest: &Digest, size: u64, throttle: Arc<dyn Throttle>) -> Result<()> {
        self.ensure_here(digest, size, Some(throttle)).await
    }

    async fn ensure_here(&self, digest: &Digest, size: u64, throttle: Option<Arc<dyn Throttle>>) -> Result<()> {
        let blobs = &self.local().blobs;
        if blobs.hold(digest, size).await? {
            return Ok(());
        }
        if size == 0 {
            return Ok(blobs.put(digest, bytes::Bytes::new()).await?);
        }
        if blobs.refuses_writes() {
            return Err(crate::blob::Error::NoSpace.into());
        }
        let fetch = self.fetch(digest, size, throttle).ok_or(Error::Stopped)?;
        match fetch.ended().await {
            FetchState::Done => Ok(()),
            FetchState::NotTheBlob => Err(Error::DigestMismatch { digest: digest.clone() }),
            FetchState::NoHolder => Err(self.no_holder(digest, size).await),
            FetchState::NotKept | FetchState::Opening | FetchState::Running => Err(Error::Stopped),
        }
    }
}
