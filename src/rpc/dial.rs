//! Opens one connection to a peer.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::env::{Env, Stream};
use crate::topology::NodeId;

use super::{Credentials, Error, Lane, Metrics, Result};

/// How long a peer may take to accept the connection.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a connected peer may take for the TLS handshake: more, as it costs the peer CPU time it may be short of.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a failed attempt answers for the calls that queued behind it, so that they do not fail one by one.
const FAILURE_LASTS: Duration = Duration::from_millis(200);

/// Opens a TLS connection to `address`.
///
/// # Errors
///
/// [`Error::Connect`] after [`CONNECT_TIMEOUT`] or [`HANDSHAKE_TIMEOUT`], or when the peer is not who it should be.
pub(super) async fn dial(
    env: &Env,
    address: &str,
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
) -> Result<TlsStream<Stream>> {
    let connect = |source| Error::Connect { address: address.to_owned(), source };
    let late = |what: &'static str| io::Error::new(io::ErrorKind::TimedOut, what);
    let stream = timeout(CONNECT_TIMEOUT, env.net.connect(address))
        .await
        .unwrap_or_else(|_| Err(late("no answer to connect")))
        .map_err(connect)?;
    timeout(HANDSHAKE_TIMEOUT, TlsConnector::from(config).connect(name, stream))
        .await
        .unwrap_or_else(|_| Err(late("no answer to the TLS handshake")))
        .map_err(connect)
}

/// Opens connections to one peer on one lane, again and again as they break.
pub(super) struct Dialer {
    pub(super) env: Env,
    pub(super) credentials: Credentials,
    pub(super) peer: NodeId,
    pub(super) lane: Lane,
    pub(super) address: String,
    pub(super) metrics: Metrics,
    pub(super) failed: Mutex<Option<(Instant, String)>>,
}

impl Dialer {
    /// Opens one connection, unless an attempt failed a moment ago.
    ///
    /// # Errors
    ///
    /// As [`dial`].
    pub(super) async fn connect(&self) -> Result<TlsStream<Stream>> {
        if let Some(problem) = self.failed_just_now() {
            let source = io::Error::new(io::ErrorKind::NotConnected, problem);
            return Err(Error::Connect { address: self.address.clone(), source });
        }
        let result = match self.credentials.client(self.peer) {
            Ok(config) => dial(&self.env, &self.address, self.lane.server_name(), config).await,
            Err(error) => Err(error),
        };
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        match &result {
            Ok(_) => {
                *failed = None;
                self.metrics.connected("ok");
            }
            Err(error) => {
                *failed = Some((Instant::now(), describe(error)));
                self.metrics.connected("failed");
            }
        }
        result
    }

    fn failed_just_now(&self) -> Option<String> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.as_ref().filter(|(at, _)| at.elapsed() < FAILURE_LASTS).map(|(_, problem)| problem.clone())
    }
}

/// Prints an error with everything beneath it, for logs and for people.
#[must_use]
pub fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(lower) = source {
        let lower_text = lower.to_string();
        if !text.ends_with(&lower_text) {
            text.push_str(": ");
            text.push_str(&lower_text);
        }
        source = lower.source();
    }
    text
}

/// Prints a failed call with the errors beneath it, for logs and for people.
#[must_use]
pub fn describe_status(status: &tonic::Status) -> String {
    use std::error::Error as _;
    let mut text = if status.message().is_empty() { status.code().to_string() } else { status.message().to_owned() };
    if let Some(source) = status.source() {
        let lower = describe(source);
        if lower != text {
            text.push_str(": ");
            text.push_str(&lower);
        }
    }
    text
}
