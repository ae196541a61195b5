//! Bodies on their way through the door: a client's, held to a least speed, and ours, whose end is noted.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};

use super::activity::{Activity, InFlight};

/// What a client must send at least, on average over the stall timeout.
const BYTES_PER_SECOND_MIN: u64 = 256;

/// A client's body that ends with [`io::ErrorKind::TimedOut`] when it stalls.
///
/// Only the time is counted in which the body was asked for bytes and had none: how fast *we* read does not matter.
pub(super) struct Paced<B> {
    body: B,
    activity: Arc<Activity>,
    allowance: Duration,
    left: Duration,
    received: u64,
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl<B> Paced<B> {
    pub(super) fn new(body: B, activity: Arc<Activity>, allowance: Duration) -> Self
    where
        B: Body,
    {
        if body.is_end_stream() {
            activity.body_ended();
        }
        Self { body, activity, allowance, left: allowance, received: 0, waiting: None }
    }

    fn arrived(&mut self, bytes: usize) {
        self.activity.moved();
        if let Some((since, _)) = self.waiting.take() {
            self.left = self.left.saturating_sub(since.elapsed());
        }
        self.received += bytes as u64;
        if self.received >= BYTES_PER_SECOND_MIN * self.allowance.as_secs().max(1) {
            self.received = 0;
            self.left = self.allowance;
        }
    }
}

impl<B: Body<Data = Bytes, Error = hyper::Error> + Unpin> Body for Paced<B> {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = self.get_mut();
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                this.arrived(frame.data_ref().map_or(0, Bytes::len));
                if this.body.is_end_stream() {
                    this.activity.body_ended();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(io::Error::other(error)))),
            Poll::Ready(None) => {
                this.activity.body_ended();
                Poll::Ready(None)
            }
            Poll::Pending => {
                let left = this.left;
                let begin = || (Instant::now(), Box::pin(tokio::time::sleep(left)));
                let (_, sleep) = this.waiting.get_or_insert_with(begin);
                match sleep.as_mut().poll(cx) {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(()) => Poll::Ready(Some(Err(io::ErrorKind::TimedOut.into()))),
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Our answer's body: its request is under way, and takes room, until this is dropped.
pub(super) struct Tracked {
    body: axum::body::Body,
    in_flight: (InFlight, Option<OwnedSemaphorePermit>),
}

impl Tracked {
    pub(super) fn new(body: axum::body::Body, in_flight: (InFlight, Option<OwnedSemaphorePermit>)) -> Self {
        Self { body, in_flight }
    }
}

impl Body for Tracked {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if polled.is_ready() {
            self.in_flight.0.moved();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
