//! Accepts clients' connections and holds them to limits of number, time and size.
//!
//! Owns the listener and its open connections. axum's own `serve` has no time limits, so this loop is ours (with hyper's
//! connections): a client gets `head_timeout` to say what it wants (TLS handshake included), `idle_timeout` between
//! requests, and is cut off when it sends nothing of a body, or takes nothing of an answer, for too long. Draining lets open
//! requests finish. A panic in a request is a 500 and ends nothing else. Start reading at [`Door::serve`].

mod activity;
mod body;
mod front;
mod head_scan;
mod metrics;
mod tls;

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::env::{Listener, Stream};

use activity::{Activity, Verdict, Watched};

pub(super) use front::{Front, REQUESTS_MAX, Routes};
pub(super) use metrics::Metrics;
pub(super) use tls::Certificate;
pub use tls::TlsError;

/// Bytes of one request's head, as lines or as an HTTP/2 header list.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 128;

/// How long and how many.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) connections_max: u32,
    pub(super) connections_per_address_max: u32,
    pub(super) head_timeout: Duration,
    pub(super) idle_timeout: Duration,
    pub(super) stall_timeout: Duration,
}

/// How far the door is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opening {
    /// New connections and requests are welcome.
    Open,
    /// Open requests may finish; connections close after them.
    Draining,
}

/// One listener for HTTP/1.1 and HTTP/2, plain or TLS.
pub(super) struct Door {
    pub(super) listener: Box<dyn Listener>,
    pub(super) tls: Option<Arc<Certificate>>,
    pub(super) limits: Limits,
    pub(super) front: Front,
    pub(super) opening: watch::Receiver<Opening>,
}

impl Door {
    /// Serves until draining is asked for and every open connection has closed.
    ///
    /// # Errors
    ///
    /// None: a failed accept is logged and tried again, since it is the client's end or a passing lack of descriptors.
    pub(super) async fn serve(self) -> Result<(), Infallible> {
        let Self { listener, tls, limits, front, opening } = self;
        let mut draining = opening.clone();
        let room = Room::new(&limits);
        let http = http(&limits);
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                () = drained(&mut draining) => break,
                Some(ended) = connections.join_next() => note_end(&front, ended),
                accepted = listener.accept() => match accepted {
                    Ok((stream, far)) => match room.enter(far.ip()) {
                        Some(place) => {
                            let connection = Connection {
                                tls: tls.as_ref().map(|tls| tls.acceptor()), limits: limits.clone(), front: front.clone(),
                                opening: opening.clone(), http: http.clone(),
                            };
                            connections.spawn(connection.run(stream, place));
                        }
                        None => front.metrics.refused(),
                    },
                    Err(error) => {
                        tracing::warn!(%error, "accept");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
            }
        }
        drop(listener);
        while let Some(ended) = connections.join_next().await {
            note_end(&front, ended);
        }
        Ok(())
    }
}

/// Waits until draining is asked for, or nobody is left to ask for it.
async fn drained(opening: &mut watch::Receiver<Opening>) {
    opening.wait_for(|opening| *opening == Opening::Draining).await.ok();
}

/// A panic that got past the guard of the request (in a body that was being sent) is counted like one in a request.
fn note_end(front: &Front, ended: Result<(), tokio::task::JoinError>) {
    if ended.is_err_and(|error| error.is_panic()) {
        front.metrics.panicked();
    }
}

fn http(limits: &Limits) -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(HEAD_BYTES_MAX);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_pending_accept_reset_streams(32)
        .max_local_error_reset_streams(256)
        .max_header_list_size(u32::try_from(HEAD_BYTES_MAX).expect("a small constant"))
        .initial_stream_window_size(256 << 10)
        .initial_connection_window_size(1 << 20)
        .max_send_buf_size(256 << 10)
        .keep_alive_interval(limits.stall_timeout)
        .keep_alive_timeout(limits.stall_timeout);
    http
}

/// Counts open connections, in all and per address.
struct Room {
    all: Arc<Semaphore>,
    by_address: Arc<ByAddress>,
    per_address_max: u32,
}

/// Open connections of each client address.
type ByAddress = Mutex<HashMap<IpAddr, u32>>;

/// One connection's place; leaving is dropping it.
struct Place {
    _all: OwnedSemaphorePermit,
    by_address: Option<(IpAddr, Arc<ByAddress>)>,
}

impl Room {
    fn new(limits: &Limits) -> Self {
        Self {
            all: Arc::new(Semaphore::new(limits.connections_max as usize)),
            by_address: Arc::default(),
            per_address_max: limits.connections_per_address_max,
        }
    }

    fn enter(&self, address: IpAddr) -> Option<Place> {
        let all = Arc::clone(&self.all).try_acquire_owned().ok()?;
        if address.is_loopback() {
            return Some(Place { _all: all, by_address: None });
        }
        let mut counts = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_insert(0);
        if *count >= self.per_address_max {
            return None;
        }
        *count += 1;
        Some(Place { _all: all, by_address: Some((address, Arc::clone(&self.by_address))) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some((address, counts)) = &self.by_address else { return };
        let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(address);
            }
        }
    }
}

/// What one connection's task needs.
struct Connection {
    tls: Option<TlsAcceptor>,
    limits: Limits,
    front: Front,
    opening: watch::Receiver<Opening>,
    http: auto::Builder<TokioExecutor>,
}

impl Connection {
    async fn run(self, stream: Stream, _place: Place) {
        let _open = self.front.metrics.connection();
        let activity = Activity::new(&self.limits);
        let Some(tls) = &self.tls else {
            return self.serve(stream, activity).await;
        };
        match tokio::time::timeout(self.limits.head_timeout, tls.accept(stream)).await {
            Ok(Ok(stream)) => self.serve(stream, activity).await,
            // not TLS, a scan, or too slow: nothing a human must know
            Ok(Err(error)) => tracing::debug!(%error, "tls handshake"),
            Err(_) => tracing::debug!("tls handshake took too long"),
        }
    }

    async fn serve(&self, stream: impl crate::env::Io, activity: Arc<Activity>) {
        let io = TokioIo::new(Watched::new(stream, Arc::clone(&activity)));
        let front = self.front.clone();
        let service = {
            let activity = Arc::clone(&activity);
            hyper::service::service_fn(move |request| {
                let (front, activity) = (front.clone(), Arc::clone(&activity));
                async move { Ok::<_, Infallible>(front.answer(request, activity).await) }
            })
        };
        let mut connection = std::pin::pin!(self.http.serve_connection(io, service));
        let mut opening = self.opening.clone();
        let mut draining = false;
        loop {
            tokio::select! {
                _ = connection.as_mut() => return,
                () = drained(&mut opening), if !draining => {
                    draining = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = tokio::time::sleep_until(activity.look_again()) => match activity.verdict() {
                    Verdict::Fine => {}
                    Verdict::Idle => connection.as_mut().graceful_shutdown(),
                    Verdict::Stalled => return self.front.metrics.stalled(),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests;
