//! Bodies of downloads: exactly as long as they say, or cut.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use http_body::{Body, Frame, SizeHint};
use prometheus_client::metrics::counter::Counter;

use crate::oci::ByteRange;
use crate::registry::{self, BlobFound, Registry};

/// Checked bytes of a blob.
pub(super) type Bytestream = BoxStream<'static, registry::Result<Bytes>>;

/// A body of a length known before: it ends there, or with an error that makes the server cut the connection.
pub(super) struct ExactBody {
    bytes: Bytestream,
    left: u64,
    cut: Counter<u64, std::sync::atomic::AtomicU64>,
}

impl ExactBody {
    pub(super) fn new(bytes: Bytestream, length: u64, cut: Counter<u64, std::sync::atomic::AtomicU64>) -> Self {
        Self { bytes, left: length, cut }
    }

    fn broken(&mut self, error: io::Error) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.bytes = futures::stream::empty().boxed();
        self.cut.inc();
        tracing::warn!(error = &error as &dyn std::error::Error, left = self.left, "download cut off");
        Poll::Ready(Some(Err(error)))
    }
}

impl Body for ExactBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = self.get_mut();
        loop {
            if this.left == 0 {
                return Poll::Ready(None);
            }
            return match this.bytes.poll_next_unpin(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Some(Ok(bytes))) if bytes.is_empty() => continue,
                Poll::Ready(Some(Ok(bytes))) => match this.left.checked_sub(bytes.len() as u64) {
                    Some(left) => {
                        this.left = left;
                        Poll::Ready(Some(Ok(Frame::data(bytes))))
                    }
                    None => this.broken(io::Error::new(io::ErrorKind::InvalidData, "more bytes than the blob has")),
                },
                Poll::Ready(Some(Err(error))) => this.broken(io::Error::other(error)),
                Poll::Ready(None) => this.broken(io::ErrorKind::UnexpectedEof.into()),
            };
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// Several ranges of one blob as `multipart/byteranges`.
pub(super) struct Multipart {
    heads: Vec<(Bytes, ByteRange)>,
    tail: Bytes,
}

impl Multipart {
    pub(super) fn new(boundary: &str, content_type: &str, size: u64, ranges: &[ByteRange]) -> Self {
        let head = |range: &ByteRange| {
            let ByteRange { start, end } = *range;
            let last = end - 1;
            format!(
                "\r\n--{boundary}\r\nContent-Type: {content_type}\r\nContent-Range: bytes {start}-{last}/{size}\r\n\r\n"
            )
        };
        Self {
            heads: ranges.iter().map(|range| (Bytes::from(head(range)), *range)).collect(),
            tail: Bytes::from(format!("\r\n--{boundary}--\r\n")),
        }
    }

    /// Returns the length of the whole body in bytes.
    pub(super) fn length(&self) -> u64 {
        let parts: u64 = self.heads.iter().map(|(head, range)| head.len() as u64 + range.length()).sum();
        parts + self.tail.len() as u64
    }

    /// Opens the parts one after the other, each when its turn comes; `first` is the first part's bytes, opened already.
    pub(super) fn stream(self, registry: Registry, found: BlobFound, first: Bytestream) -> Bytestream {
        self.stream_from(first, move |range| {
            let (registry, found) = (registry.clone(), found.clone());
            async move { registry.read_blob(&found, range.start, range.end).await }
        })
    }

    fn stream_from<F>(self, first: Bytestream, open: impl Fn(ByteRange) -> F + Send + 'static) -> Bytestream
    where
        F: Future<Output = registry::Result<Bytestream>> + Send + 'static,
    {
        let mut opened = Some(first);
        let parts = futures::stream::iter(self.heads).then(move |(head, range)| {
            let part: futures::future::BoxFuture<'static, registry::Result<Bytestream>> = match opened.take() {
                Some(bytes) => Box::pin(async { Ok(bytes) }),
                None => Box::pin(open(range)),
            };
            async move { part.await.map(|bytes| once(head).chain(bytes)) }
        });
        parts.try_flatten().chain(once(self.tail)).boxed()
    }
}

fn once(bytes: Bytes) -> impl futures::Stream<Item = registry::Result<Bytes>> + Send {
    futures::stream::once(async { Ok(bytes) })
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    const BLOB: &[u8] = b"0123456789";

    fn part(range: ByteRange) -> Bytestream {
        let slice = |offset: u64| usize::try_from(offset).unwrap();
        once(Bytes::from_static(&BLOB[slice(range.start)..slice(range.end)])).boxed()
    }

    fn exact(pieces: Vec<registry::Result<&'static str>>, length: u64) -> ExactBody {
        let pieces = pieces.into_iter().map(|piece| piece.map(|text| Bytes::from_static(text.as_bytes())));
        let stream = futures::stream::iter(pieces.collect::<Vec<_>>()).boxed();
        ExactBody::new(stream, length, Counter::default())
    }

    #[tokio::test]
    async fn a_body_has_its_length_or_breaks() {
        let whole = exact(vec![Ok("ab"), Ok(""), Ok("cd")], 4);
        assert_eq!(whole.size_hint().exact(), Some(4));
        assert_eq!(whole.collect().await.unwrap().to_bytes(), "abcd");
        assert!(exact(vec![Ok("ab")], 4).collect().await.is_err());
        assert!(exact(vec![Ok("abcde")], 4).collect().await.is_err());
        let cut = exact(vec![Ok("ab"), Err(registry::Error::Unavailable), Ok("cd")], 4);
        let counted = cut.cut.clone();
        assert!(cut.collect().await.is_err());
        assert_eq!(counted.get(), 1);
        assert_eq!(exact(vec![], 0).collect().await.unwrap().to_bytes(), "");
    }

    #[tokio::test]
    async fn parts_come_in_the_order_asked_for_and_in_the_length_announced() {
        let ranges = [ByteRange { start: 8, end: 10 }, ByteRange { start: 0, end: 3 }];
        let multipart = Multipart::new("B", "a/b", 10, &ranges);
        let length = multipart.length();
        let stream = multipart.stream_from(part(ranges[0]), |range| async move { Ok(part(range)) });
        let body = ExactBody::new(stream, length, Counter::default()).collect().await.unwrap().to_bytes();
        assert_eq!(
            std::str::from_utf8(&body).unwrap(),
            "\r\n--B\r\nContent-Type: a/b\r\nContent-Range: bytes 8-9/10\r\n\r\n89\
             \r\n--B\r\nContent-Type: a/b\r\nContent-Range: bytes 0-2/10\r\n\r\n012\
             \r\n--B--\r\n"
        );
        assert_eq!(length, body.len() as u64);
    }

    #[tokio::test]
    async fn a_part_that_cannot_be_opened_cuts_the_body() {
        let ranges = [ByteRange { start: 0, end: 1 }, ByteRange { start: 5, end: 6 }];
        let multipart = Multipart::new("B", "a/b", 10, &ranges);
        let length = multipart.length();
        let stream = multipart.stream_from(part(ranges[0]), |_| async { Err(registry::Error::Unavailable) });
        assert!(ExactBody::new(stream, length, Counter::default()).collect().await.is_err());
    }
}
