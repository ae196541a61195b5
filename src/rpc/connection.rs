//! Serves one connection.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tower_service::Service;

use crate::env::Stream;

use super::lane::On;
use super::peers::{FRAME_BYTES_MAX, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT};
use super::server::Shared;
use super::{Lane, PeerIdentity};

/// Calls that the far end may take back before they were looked at.
const RESETS_MAX: usize = 1024;

/// Headers a request may have, in bytes: gRPC needs a few hundred.
const HEADER_BYTES_MAX: u32 = 16 << 10;
/// How long a connection may go on after it was told to end, when nothing runs on it that should.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

/// Who is at the far end of a connection, and which certificate it was shown.
#[derive(Debug, Clone)]
pub(super) struct Far {
    pub(super) peer: Option<PeerIdentity>,
    pub(super) lane: Lane,
    pub(super) address: SocketAddr,
    pub(super) fingerprint: [u8; 32],
}

/// In the extensions of every request to the bootstrap service.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shown {
    /// SHA-256 of the certificate this connection was shown.
    pub(super) fingerprint: [u8; 32],
    /// Where the caller connects from.
    pub(super) address: SocketAddr,
}

/// Serves until the far end closes, `stop` is asked for, or a stranger's time is up.
pub(super) async fn serve(
    stream: TlsStream<Stream>,
    far: Far,
    shared: Arc<Shared>,
    runtime: Handle,
    stop: CancellationToken,
) {
    let _open = shared.metrics.open(far.peer.is_some().then_some(far.lane));
    let (stream_window, connection_window) = if far.peer.is_some() { far.lane.windows() } else { (1 << 16, 1 << 16) };
    let (life, drain) = (shared.limits.stranger_life, shared.limits.drain);
    let stranger = far.peer.is_none();
    let mut builder = http2::Builder::new(On(runtime));
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .max_concurrent_streams(if stranger { 16 } else { shared.limits.streams_max })
        .max_header_list_size(HEADER_BYTES_MAX)
        // Callers give up by the dozen while this node is paused or overloaded; that must not cost the connection.
        .max_pending_accept_reset_streams(if stranger { 20 } else { RESETS_MAX })
        .initial_stream_window_size(stream_window)
        .initial_connection_window_size(connection_window)
        .max_frame_size(if stranger { 1 << 14 } else { FRAME_BYTES_MAX });
    let refused = Arc::new(Notify::new());
    let answerer = Answerer { far: Arc::new(far), shared, refused: refused.clone() };
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), answerer));
    let over = async move { if stranger { sleep(life).await } else { std::future::pending().await } };
    let grace = tokio::select! {
        ended = &mut connection => {
            if let Err(error) = ended {
                tracing::debug!(%error, "connection of a peer ends");
            }
            return;
        }
        () = stop.cancelled() => drain,
        () = refused.notified() => CLOSE_WITHIN,
        () = over => CLOSE_WITHIN,
    };
    connection.as_mut().graceful_shutdown();
    // Whatever is left then is cut: the caller of `run` waits no longer either.
    drop(timeout(grace, connection).await);
}

#[derive(Clone)]
struct Answerer {
    far: Arc<Far>,
    shared: Arc<Shared>,
    refused: Arc<Notify>,
}

impl hyper::service::Service<Request<Incoming>> for Answerer {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { Ok(this.answer(request).await) })
    }
}

impl Answerer {
    async fn answer(&self, mut request: Request<Incoming>) -> Response<Body> {
        let mut routes = match self.shared.admit(self.far.peer.as_ref(), request.uri().path()) {
            Ok(routes) => routes,
            Err(status) => {
                if self.far.peer.is_none() {
                    self.refused.notify_one();
                }
                return status.into_http();
            }
        };
        let shown = Shown { fingerprint: self.far.fingerprint, address: self.far.address };
        request.extensions_mut().insert(shown);
        if let Some(peer) = &self.far.peer {
            request.extensions_mut().insert(peer.clone());
        }
        let answer = AssertUnwindSafe(routes.call(request.map(Body::new))).catch_unwind().await;
        match answer {
            Ok(Ok(response)) => response,
            Ok(Err(never)) => match never {},
            Err(_panic) => {
                // The panic's own message was printed by the panic hook.
                self.shared.metrics.panicked();
                tracing::error!("a call of a peer ended in a panic");
                Status::internal("the call ended in a panic").into_http()
            }
        }
    }
}
