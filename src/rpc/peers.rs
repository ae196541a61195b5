//! One lazily connected channel per peer and lane.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::env::Env;
use crate::topology::{NodeId, Topology};

use super::dial::Dialer;
use super::lane::On;
use super::{Credentials, Error, Lane, Metrics, Result, Retry, Runtimes};

/// How often a quiet connection is asked whether it lives, and how long the answer may take (R29).
pub(super) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
pub(super) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// The largest HTTP/2 frame taken: bulk frames of this size cost the least CPU per byte.
pub(super) const FRAME_BYTES_MAX: u32 = 1 << 20;
/// Calls that may wait for one connection to come up.
const QUEUED_CALLS_MAX: usize = 256;

/// What [`Peers::new`] needs.
#[derive(Debug)]
pub struct PeersParts {
    /// The network.
    pub env: Env,
    /// What this node shows and demands.
    pub credentials: Credentials,
    /// Which threads carry which lane.
    pub runtimes: Runtimes,
    /// The agreed addresses.
    pub topology: watch::Receiver<Arc<Topology>>,
    /// Addresses for the time before the agreed state is there; the topology's go first.
    pub known: BTreeMap<NodeId, String>,
    /// Where to count.
    pub metrics: Metrics,
}

/// This node's channels to its peers; cheap to clone.
#[derive(Clone)]
pub struct Peers {
    inner: Arc<Inner>,
}

struct Inner {
    me: NodeId,
    parts: PeersParts,
    known: Mutex<BTreeMap<NodeId, String>>,
    channels: Mutex<HashMap<(NodeId, Lane), Entry>>,
}

struct Entry {
    address: String,
    channel: Channel,
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers").field("me", &self.inner.me).finish_non_exhaustive()
    }
}

impl Peers {
    /// Makes the set of channels, all unconnected.
    ///
    /// # Errors
    ///
    /// [`Error::NoIdentity`] if the credentials have none yet.
    pub fn new(mut parts: PeersParts) -> Result<Self> {
        let me = parts.credentials.identity().ok_or(Error::NoIdentity)?.node();
        let known = Mutex::new(std::mem::take(&mut parts.known));
        Ok(Self { inner: Arc::new(Inner { me, parts, known, channels: Mutex::default() }) })
    }

    /// This node's id.
    #[must_use]
    pub fn me(&self) -> NodeId {
        self.inner.me
    }

    /// Returns the address of a node: the agreed one, else the one known from the join.
    #[must_use]
    pub fn address(&self, peer: NodeId) -> Option<String> {
        let agreed = self.inner.parts.topology.borrow().node(peer).map(|record| record.rpc_address.clone());
        agreed.or_else(|| self.known().get(&peer).cloned())
    }

    /// Remembers where a node was found, for as long as the agreed state does not name it.
    pub(super) fn learn(&self, peer: NodeId, address: String) {
        self.known().insert(peer, address);
    }

    fn known(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeId, String>> {
        self.inner.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a lazily connected channel that reconnects by itself; calling never blocks on connecting.
    ///
    /// A call on it waits for the connection at most 3 s, queued calls at most 0.2 s longer; callers put their own
    /// deadline around each call ([`within`]). The channel stays right when the node's address changes only if it is
    /// asked for anew per call, which is cheap.
    ///
    /// # Errors
    ///
    /// - [`Error::PeerUnknown`] if no address of the node is known.
    /// - [`Error::Address`] if its address is unusable.
    pub fn channel(&self, peer: NodeId, lane: Lane) -> Result<Channel> {
        let address = self.address(peer).ok_or(Error::PeerUnknown { node: peer })?;
        let mut channels = self.inner.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = channels.get(&(peer, lane))
            && entry.address == address
        {
            return Ok(entry.channel.clone());
        }
        // Rare: a new peer or address. The moment to let go of peers that are no more.
        channels.retain(|(node, _), _| self.address(*node).is_some());
        let channel = self.build(peer, lane, &address)?;
        channels.insert((peer, lane), Entry { address, channel: channel.clone() });
        Ok(channel)
    }

    fn build(&self, peer: NodeId, lane: Lane, address: &str) -> Result<Channel> {
        let parts = &self.inner.parts;
        let (stream_window, connection_window) = lane.windows();
        let runtime = parts.runtimes.of(lane);
        // TLS is the dialer's business: to tonic this is a plain connection.
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|_| Error::Address { node: peer, address: address.to_owned() })?
            .executor(On(runtime.clone()))
            .buffer_size(QUEUED_CALLS_MAX)
            .initial_stream_window_size(stream_window)
            .initial_connection_window_size(connection_window)
            .max_frame_size(FRAME_BYTES_MAX)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        let dialer = Arc::new(Dialer {
            env: parts.env.clone(),
            credentials: parts.credentials.clone(),
            peer,
            lane,
            address: address.to_owned(),
            metrics: parts.metrics.clone(),
            failed: Mutex::default(),
        });
        // The channel's worker is spawned here and must live on the lane's runtime, whoever asks first.
        let _on = runtime.enter();
        Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
            let dialer = dialer.clone();
            async move { dialer.connect().await.map(TokioIo::new) }
        })))
    }
}

/// Puts a deadline around a call, connecting included.
///
/// # Errors
///
/// The call's own status, or `DEADLINE_EXCEEDED` of class [`Retry::Elsewhere`].
///
/// # Cancel safety
///
/// A call that is dropped or late is reset on the wire; the far end may still carry it out.
pub async fn within<T>(deadline: Duration, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    tokio::time::timeout(deadline, call).await.unwrap_or_else(|_| {
        Err(Retry::Elsewhere.status(Code::DeadlineExceeded, format!("no answer within {} ms", deadline.as_millis())))
    })
}
