//! One server for this node: accepts, authenticates and admits.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Code, Status};

use crate::env::{Env, Listener, Stream};

use super::connection::{self, Far};
use super::{Credentials, Error, Lane, Metrics, NodeUri, PeerIdentity, Result, Retry, Runtimes};

/// The paths that need no certificate; what is said there is proved by the cluster's secret.
const BOOTSTRAP_PATH: &str = "/rafthold.v1.Bootstrap/";
/// How long the accept loop rests when the machine has no file descriptor or memory for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bounds on what strangers and peers may take of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections in all, those in the TLS handshake included.
    pub connections_max: usize,
    /// Connections without a certificate, out of the above.
    pub strangers_max: usize,
    /// How long the TLS handshake may take.
    pub handshake_timeout: Duration,
    /// How long a connection without a certificate may last.
    pub stranger_life: Duration,
    /// Calls at once on one connection.
    pub streams_max: u32,
    /// How long running calls may take after the stop was asked for.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 1024,
            strangers_max: 128,
            handshake_timeout: Duration::from_secs(5),
            stranger_life: Duration::from_secs(60),
            streams_max: 1024,
            drain: Duration::from_secs(5),
        }
    }
}

/// What [`Server::bind`] needs.
#[derive(Debug)]
pub struct ServerParts {
    /// The network.
    pub env: Env,
    /// What this node shows and demands.
    pub credentials: Credentials,
    /// Which threads carry which lane.
    pub runtimes: Runtimes,
    /// The service for those who have no certificate yet (`Bootstrap::routes`).
    pub bootstrap: Routes,
    /// Bounds.
    pub limits: Limits,
    /// Where to count.
    pub metrics: Metrics,
}

/// Says whether a node with a good certificate may still call: false once it was removed from the cluster (R21).
pub type Admission = Arc<dyn Fn(&PeerIdentity) -> bool + Send + Sync>;

pub(super) struct Shared {
    pub(super) credentials: Credentials,
    pub(super) limits: Limits,
    pub(super) metrics: Metrics,
    bootstrap: RwLock<Routes>,
    services: RwLock<Option<(Routes, Admission)>>,
}

/// A bound server that does not run yet.
pub struct Server {
    listener: Box<dyn Listener>,
    runtimes: Runtimes,
    shared: Arc<Shared>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("address", &self.listener.local_address()).finish_non_exhaustive()
    }
}

/// Adds services to a running server; cheap to clone.
#[derive(Clone)]
pub struct ServerHandle {
    shared: Arc<Shared>,
    address: std::net::SocketAddr,
}

impl fmt::Debug for ServerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerHandle").field("address", &self.address).finish_non_exhaustive()
    }
}

impl ServerHandle {
    /// The address the server listens on.
    #[must_use]
    pub fn address(&self) -> std::net::SocketAddr {
        self.address
    }

    /// Replaces the bootstrap service, for a node that learns its own address only by binding.
    pub fn install_bootstrap(&self, routes: Routes) {
        *self.shared.bootstrap.write().unwrap_or_else(PoisonError::into_inner) = routes.prepare();
    }

    /// Serves `routes` to nodes of the cluster for which `admission` says yes; before this call they get `UNAVAILABLE`.
    pub fn install(&self, routes: Routes, admission: Admission) {
        let services = Some((routes.prepare(), admission));
        *self.shared.services.write().unwrap_or_else(PoisonError::into_inner) = services;
    }
}

impl Shared {
    /// Finds the services that may answer a request.
    ///
    /// # Errors
    ///
    /// The status to answer with, and to close the connection after.
    pub(super) fn admit(&self, peer: Option<&PeerIdentity>, path: &str) -> Result<Routes, Status> {
        if path.starts_with(BOOTSTRAP_PATH) {
            return Ok(self.bootstrap.read().unwrap_or_else(PoisonError::into_inner).clone());
        }
        let Some(peer) = peer else {
            self.metrics.refused("no_certificate");
            return Err(Retry::GiveUp.status(Code::Unauthenticated, "a node certificate is needed"));
        };
        let services = self.services.read().unwrap_or_else(PoisonError::into_inner);
        let Some((routes, admission)) = services.as_ref() else {
            return Err(Retry::Elsewhere.status(Code::Unavailable, "node is starting"));
        };
        if admission(peer) {
            Ok(routes.clone())
        } else {
            self.metrics.refused("removed");
            Err(Retry::GiveUp.status(Code::PermissionDenied, "this node was removed from the cluster"))
        }
    }
}

/// A connection after its handshake, still to be served.
struct Arrived {
    stream: TlsStream<Stream>,
    far: Far,
    permit: OwnedSemaphorePermit,
}

impl Server {
    /// Listens on `address`; port 0 asks for a free one.
    ///
    /// # Errors
    ///
    /// [`Error::Listen`].
    pub async fn bind(address: &str, parts: ServerParts) -> Result<(Self, ServerHandle)> {
        let listen = |source| Error::Listen { address: address.to_owned(), source };
        let listener = parts.env.net.bind(address).await.map_err(listen)?;
        let address = listener.local_address().map_err(listen)?;
        let shared = Arc::new(Shared {
            credentials: parts.credentials,
            limits: parts.limits,
            metrics: parts.metrics,
            bootstrap: RwLock::new(parts.bootstrap.prepare()),
            services: RwLock::default(),
        });
        let handle = ServerHandle { shared: shared.clone(), address };
        Ok((Self { listener, runtimes: parts.runtimes, shared }, handle))
    }

    /// Serves until `stop`, then lets running calls end within the drain time.
    ///
    /// Best run on raft's runtime: accepting and handshakes are cheap, raft's connections stay there, and the others
    /// are handed to the runtime of their lane.
    pub async fn run(self, stop: CancellationToken) {
        let limits = &self.shared.limits;
        let room = Arc::new(Semaphore::new(limits.connections_max));
        let strangers = Arc::new(Semaphore::new(limits.strangers_max));
        let mut handshakes: JoinSet<Option<Arrived>> = JoinSet::new();
        let mut connections: JoinSet<()> = JoinSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, address)) => self.begin(stream, address, &room, &mut handshakes),
                    Err(error) => {
                        tracing::warn!(%error, "accepting a connection fails");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(done) = handshakes.join_next() => {
                    if let Ok(Some(arrived)) = done {
                        self.serve(arrived, &strangers, &stop, &mut connections);
                    }
                }
                Some(done) = connections.join_next() => self.note_end(done),
            }
        }
        handshakes.abort_all();
        drop(self.listener); // nobody new gets in while the old ones end
        let drained = async {
            while let Some(done) = connections.join_next().await {
                if done.is_err_and(|error| error.is_panic()) {
                    self.shared.metrics.panicked();
                }
            }
        };
        if timeout(self.shared.limits.drain, drained).await.is_err() {
            tracing::info!("connections of other nodes cut at the end of the drain time");
        }
    }

    fn note_end(&self, done: Result<(), tokio::task::JoinError>) {
        if done.is_err_and(|error| error.is_panic()) {
            self.shared.metrics.panicked();
            tracing::error!("a connection ended in a panic");
        }
    }

    fn begin(
        &self,
        stream: Stream,
        address: std::net::SocketAddr,
        room: &Arc<Semaphore>,
        handshakes: &mut JoinSet<Option<Arrived>>,
    ) {
        let Ok(permit) = room.clone().try_acquire_owned() else {
            self.shared.metrics.refused("connection_cap");
            return; // dropped, which closes it
        };
        self.shared.metrics.accepted();
        let shared = self.shared.clone();
        handshakes.spawn(async move {
            let current = shared.credentials.current();
            let handshake = TlsAcceptor::from(current.server.clone()).accept(stream);
            let stream = match timeout(shared.limits.handshake_timeout, handshake).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => {
                    shared.metrics.refused("handshake");
                    tracing::debug!(%error, "TLS handshake fails");
                    return None;
                }
                Err(_) => {
                    shared.metrics.refused("handshake_timeout");
                    return None;
                }
            };
            let (_, tls) = stream.get_ref();
            let peer = match tls.peer_certificates().and_then(<[CertificateDer<'_>]>::first) {
                // The verifier has read it before; a certificate that it would refuse does not come this far.
                Some(certificate) => Some(identify(certificate)?),
                None => None,
            };
            let lane = Lane::of_server_name(tls.server_name());
            let far = Far { peer, lane, address, fingerprint: current.fingerprint };
            Some(Arrived { stream, far, permit })
        });
    }

    fn serve(
        &self,
        arrived: Arrived,
        strangers: &Arc<Semaphore>,
        stop: &CancellationToken,
        connections: &mut JoinSet<()>,
    ) {
        let Arrived { stream, far, permit } = arrived;
        let stranger = if far.peer.is_none() {
            let Ok(stranger) = strangers.clone().try_acquire_owned() else {
                self.shared.metrics.refused("stranger_cap");
                return;
            };
            Some(stranger)
        } else {
            None
        };
        let runtime = self.runtimes.of(far.lane);
        let (shared, stop, executor) = (self.shared.clone(), stop.clone(), runtime.clone());
        let work = async move {
            let _permits = (permit, stranger);
            connection::serve(stream, far, shared, executor, stop).await;
        };
        connections.spawn_on(work, runtime);
    }
}

fn identify(certificate: &CertificateDer<'_>) -> Option<PeerIdentity> {
    let NodeUri { cluster, epoch, node } = NodeUri::of_certificate(certificate).ok()?;
    Some(PeerIdentity { cluster, epoch, node })
}
