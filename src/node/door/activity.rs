//! Watches one connection's progress, so that clients that stall are cut off.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::Limits;
use super::head_scan::HeadScan;

/// Nothing of the kind is going on.
const NEVER: u64 = u64::MAX;
/// How much longer than to send a body a client may take to receive: its kernel takes bytes in large steps.
const TAKE_FACTOR: u32 = 4;
/// A request on which neither side moved a byte for so long is given up (a stream whose window is never opened).
const STANDSTILL: Duration = Duration::from_secs(600);

/// What a connection is doing, since when; times are milliseconds since it was opened.
pub(super) struct Activity {
    opened: Instant,
    head_timeout: Duration,
    idle_timeout: Duration,
    take_timeout: Duration,
    in_flight: AtomicUsize,
    multiplexed: AtomicBool,
    /// A request has begun to arrive (or the connection was opened) and is not whole yet.
    head_since: AtomicU64,
    idle_since: AtomicU64,
    /// The client takes nothing.
    blocked_since: AtomicU64,
    moved_at: AtomicU64,
    /// Requests begun so far.
    requests: AtomicUsize,
    /// The body of the last request has not been read to its end: what arrives is not a head.
    body_open: AtomicBool,
    /// The head that just arrived gives its body two lengths.
    two_lengths: AtomicBool,
}

/// What should become of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Fine,
    /// Idle for too long: close it in good order.
    Idle,
    /// Too slow: cut it.
    Stalled,
}

impl Activity {
    pub(super) fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            opened: Instant::now(),
            head_timeout: limits.head_timeout,
            idle_timeout: limits.idle_timeout,
            take_timeout: limits.stall_timeout * TAKE_FACTOR,
            in_flight: AtomicUsize::new(0),
            multiplexed: AtomicBool::new(false),
            head_since: AtomicU64::new(0),
            idle_since: AtomicU64::new(0),
            blocked_since: AtomicU64::new(NEVER),
            moved_at: AtomicU64::new(0),
            requests: AtomicUsize::new(0),
            body_open: AtomicBool::new(false),
            two_lengths: AtomicBool::new(false),
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(NEVER)
    }

    /// Notes a request whose head has arrived; dropping what is returned notes its end.
    pub(super) fn request(self: &Arc<Self>, multiplexed: bool) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.head_since.store(NEVER, Ordering::Relaxed);
        self.multiplexed.store(multiplexed, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.body_open.store(true, Ordering::Relaxed);
        self.moved();
        InFlight(Arc::clone(self))
    }

    /// Notes that the last request's body was read to its end.
    pub(super) fn body_ended(&self) {
        self.body_open.store(false, Ordering::Relaxed);
    }

    /// Whether the head that just arrived gives its body two lengths.
    pub(super) fn has_two_lengths(&self) -> bool {
        self.two_lengths.load(Ordering::Relaxed)
    }

    /// Notes that a body moved on, in or out.
    pub(super) fn moved(&self) {
        self.moved_at.store(self.now(), Ordering::Relaxed);
    }

    fn received(&self) {
        let between = self.in_flight.load(Ordering::Relaxed) == 0 && !self.multiplexed.load(Ordering::Relaxed);
        if between && self.head_since.load(Ordering::Relaxed) == NEVER {
            self.head_since.store(self.now(), Ordering::Relaxed);
        }
    }

    fn sent(&self, blocked: bool) {
        if !blocked {
            self.blocked_since.store(NEVER, Ordering::Relaxed);
        } else if self.blocked_since.load(Ordering::Relaxed) == NEVER {
            self.blocked_since.store(self.now(), Ordering::Relaxed);
        }
    }

    /// The limits in force now: since when, how long, and what follows.
    fn limits(&self) -> [(u64, Duration, Verdict); 4] {
        let idle = self.in_flight.load(Ordering::Relaxed) == 0;
        let only = |holds: bool, since: &AtomicU64| if holds { since.load(Ordering::Relaxed) } else { NEVER };
        [
            (only(idle, &self.head_since), self.head_timeout, Verdict::Stalled),
            (only(true, &self.blocked_since), self.take_timeout, Verdict::Stalled),
            (only(!idle, &self.moved_at), STANDSTILL, Verdict::Stalled),
            (only(idle, &self.idle_since), self.idle_timeout, Verdict::Idle),
        ]
    }

    /// When to ask for a verdict again: in time for every limit, those not yet in force included.
    pub(super) fn look_again(&self) -> Instant {
        let soon = Instant::now() + self.head_timeout / 2;
        let due = self.limits().into_iter().filter(|(since, ..)| *since != NEVER);
        let due = due.map(|(since, limit, _)| self.opened + Duration::from_millis(since) + limit).min();
        due.map_or(soon, |due| due.clamp(Instant::now() + Duration::from_millis(1), soon))
    }

    /// Whether the connection may go on.
    pub(super) fn verdict(&self) -> Verdict {
        let now = Duration::from_millis(self.now());
        let broken = |(since, limit, _): &(u64, Duration, Verdict)| {
            *since != NEVER && Duration::from_millis(*since) + *limit <= now
        };
        self.limits().into_iter().find(broken).map_or(Verdict::Fine, |(.., verdict)| verdict)
    }
}

/// A request under way.
pub(super) struct InFlight(Arc<Activity>);

impl InFlight {
    pub(super) fn moved(&self) {
        self.0.moved();
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.idle_since.store(self.0.now(), Ordering::Relaxed);
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream that notes when bytes move.
pub(super) struct Watched<S> {
    stream: S,
    activity: Arc<Activity>,
    /// The scan of a head, and how many requests came before it.
    scan: (HeadScan, usize),
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S, activity: Arc<Activity>) -> Self {
        Self { stream, activity, scan: (HeadScan::default(), 0) }
    }
}

impl<S> Watched<S> {
    /// Looks at what arrived if it belongs to a head. One that begins in the same read as the end of the body before it is
    /// left to hyper, which is safe, if less strict.
    fn scan(&mut self, bytes: &[u8]) {
        let activity = &self.activity;
        if activity.body_open.load(Ordering::Relaxed) || activity.multiplexed.load(Ordering::Relaxed) {
            return;
        }
        let requests = activity.requests.load(Ordering::Relaxed);
        if self.scan.1 != requests {
            self.scan = (HeadScan::default(), requests);
        }
        if self.scan.0.feed(bytes) {
            activity.two_lengths.store(true, Ordering::Relaxed);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.activity.received();
            self.scan(&buffer.filled()[before..]);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.activity.sent(polled.is_pending());
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.activity.sent(polled.is_pending());
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.activity.sent(polled.is_pending());
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.activity.sent(polled.is_pending());
        polled
    }
}
