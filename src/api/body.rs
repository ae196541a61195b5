//! A client's body: read once, by whoever needs it.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use http::{HeaderMap, StatusCode, header};
use http_body::Body as _;

use crate::oci::ErrorCode;

use super::error::Failure;

/// What is read of a body after its request was refused, so that the client hears the refusal.
const DRAIN_BYTES_MAX: u64 = 64 << 20;
const DRAIN_FOR: Duration = Duration::from_secs(3);

/// The body of one request.
///
/// A stream taken from it may outlive the request (a cut upload is salvaged by a task of its own, P28); then nobody else
/// reads on.
pub(super) struct ClientBody {
    shared: Arc<Shared>,
    length: Option<u64>,
    awaits_continue: bool,
}

struct Shared {
    body: Mutex<Body>,
    ended: AtomicBool,
    timed_out: AtomicBool,
}

impl ClientBody {
    pub(super) fn new(body: Body, headers: &HeaderMap) -> Self {
        let length = if body.is_end_stream() { Some(0) } else { body.size_hint().exact() };
        let shared =
            Shared { body: Mutex::new(body), ended: AtomicBool::new(false), timed_out: AtomicBool::new(false) };
        Self { shared: Arc::new(shared), length, awaits_continue: headers.contains_key(header::EXPECT) }
    }

    /// Returns how many bytes the client promised; 0 is a request without a body, `None` one of unknown length.
    pub(super) const fn length(&self) -> Option<u64> {
        self.length
    }

    /// Says whether the client stalled and was given up.
    pub(super) fn timed_out(&self) -> bool {
        self.shared.timed_out.load(Ordering::Relaxed)
    }

    /// Returns the bytes as they come; an error is a broken connection or a client that stalled.
    pub(super) fn stream(&self) -> crate::registry::Body {
        let shared = Arc::clone(&self.shared);
        futures::stream::poll_fn(move |cx| shared.poll(cx)).boxed()
    }

    /// Reads a whole body of at most `max` bytes into memory.
    ///
    /// # Errors
    ///
    /// 413 if it is longer, before anything is read if it says so; 400 if it breaks off.
    pub(super) async fn read(&self, max: usize) -> Result<Bytes, Failure> {
        let too_large = || {
            let message = format!("manifest is larger than {max} bytes");
            Failure::new(StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::ManifestInvalid, &message)
        };
        let promised = self.length.map_or(Ok(0), usize::try_from).unwrap_or(usize::MAX);
        if promised > max {
            return Err(too_large());
        }
        let mut stream = self.stream();
        let mut read = BytesMut::new();
        while let Some(bytes) = stream.next().await {
            let broken = |_| Failure::new(StatusCode::BAD_REQUEST, ErrorCode::ManifestInvalid, "body broke off");
            let bytes = bytes.map_err(broken)?;
            if read.len() + bytes.len() > max {
                return Err(too_large());
            }
            read.extend_from_slice(&bytes);
        }
        Ok(read.freeze())
    }

    /// Takes in what is left of a body that is not endless: a client that still sends when the connection closes may lose the answer.
    pub(super) async fn drain(self) {
        let worthwhile = self.length.is_none_or(|length| length <= DRAIN_BYTES_MAX) && !self.awaits_continue;
        // Bytes that a task still wants must not be taken from it.
        if !worthwhile || Arc::strong_count(&self.shared) > 1 {
            return;
        }
        let mut stream = self.stream();
        let mut left = DRAIN_BYTES_MAX;
        let all = async {
            while let Some(Ok(bytes)) = stream.next().await {
                left = left.saturating_sub(bytes.len() as u64);
                if left == 0 {
                    break;
                }
            }
        };
        // However it ends, the answer goes out next.
        let _ended = tokio::time::timeout(DRAIN_FOR, all).await.is_ok();
    }
}

impl Shared {
    fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if self.ended.load(Ordering::Relaxed) {
            return Poll::Ready(None);
        }
        let mut body = self.body.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            return match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(bytes) if !bytes.is_empty() => Poll::Ready(Some(Ok(bytes))),
                    // Trailers say nothing here.
                    _ => continue,
                },
                Poll::Ready(Some(Err(error))) => {
                    self.ended.store(true, Ordering::Relaxed);
                    let error = io_error(error);
                    self.timed_out.store(error.kind() == io::ErrorKind::TimedOut, Ordering::Relaxed);
                    Poll::Ready(Some(Err(error)))
                }
                Poll::Ready(None) => {
                    self.ended.store(true, Ordering::Relaxed);
                    Poll::Ready(None)
                }
            };
        }
    }
}

/// Keeps the kind that a layer below gave the error.
fn io_error(error: axum::Error) -> io::Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    let mut kind = io::ErrorKind::ConnectionAborted;
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<io::Error>() {
            kind = found.kind();
        }
        cause = error.source();
    }
    io::Error::new(kind, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(pieces: Vec<io::Result<&'static str>>) -> ClientBody {
        let pieces = pieces.into_iter().map(|piece| piece.map(|text| Bytes::from_static(text.as_bytes())));
        ClientBody::new(Body::from_stream(futures::stream::iter(pieces.collect::<Vec<_>>())), &HeaderMap::new())
    }

    #[tokio::test]
    async fn a_body_is_read_up_to_its_limit() {
        assert_eq!(body(vec![Ok("ab"), Ok(""), Ok("cd")]).read(4).await.unwrap(), "abcd");
        assert_eq!(body(vec![Ok("ab"), Ok("cde")]).read(4).await.unwrap_err().status, StatusCode::PAYLOAD_TOO_LARGE);
        let promised = ClientBody::new(Body::from("abcde"), &HeaderMap::new());
        assert_eq!(promised.read(4).await.unwrap_err().status, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(ClientBody::new(Body::empty(), &HeaderMap::new()).length(), Some(0));
        assert_eq!(body(vec![]).length(), None);
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_an_error_once() {
        let broken = body(vec![Ok("ab"), Err(io::ErrorKind::TimedOut.into()), Ok("cd")]);
        let mut stream = broken.stream();
        assert_eq!(stream.next().await.unwrap().unwrap(), "ab");
        assert_eq!(stream.next().await.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(stream.next().await.is_none());
        assert!(broken.timed_out());
    }

    #[tokio::test]
    async fn draining_takes_nothing_from_a_stream_that_lives_on() {
        let kept = body(vec![Ok("ab"), Ok("cd")]);
        let mut stream = kept.stream();
        kept.drain().await;
        assert_eq!(stream.next().await.unwrap().unwrap(), "ab");
        let dropped = body(vec![Ok("ab"), Ok("cd")]);
        let shared = Arc::clone(&dropped.shared);
        drop(shared);
        dropped.drain().await;
    }
}
