//! How fast background work may go: a limit of bytes per second that makes way for clients.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::env::BoxFuture;
use crate::replica::{Activity, Throttle};

/// How often clients' traffic is looked at.
const SAMPLE: Duration = Duration::from_millis(100);

/// How long after clients moved bytes they count as there.
const BUSY_FOR: Duration = Duration::from_secs(1);

/// Bytes per second below which clients' traffic is not worth making way for.
const TRICKLE: u64 = 64 * 1024;

/// How far back the measured rate looks.
const WINDOW: Duration = Duration::from_secs(10);

/// How long between two marks of the measured rate.
const MARK_EVERY: Duration = Duration::from_millis(500);

/// What the share of an unlimited pace is taken of, in bytes per second.
const UNLIMITED: u64 = 256 << 20;

/// The limits of one kind of background work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes per second while no client moves any; 0 for no limit.
    pub idle: u64,
    /// Bytes per second while clients do.
    pub busy: u64,
}

impl Limits {
    /// A limit in bytes per second (0 for none), of which `busy_percent` are left while clients move bytes.
    #[must_use]
    pub fn new(bytes_per_second: u64, busy_percent: u32) -> Self {
        let whole = if bytes_per_second == 0 { UNLIMITED } else { bytes_per_second };
        let busy = (u128::from(whole) * u128::from(busy_percent.clamp(1, 100)) / 100).max(1);
        Self { idle: bytes_per_second, busy: u64::try_from(busy).unwrap_or(u64::MAX) }
    }
}

/// Holds background work to its limits and measures it; shared by all that is to go at one pace.
pub struct Pace {
    limits: Limits,
    activity: Arc<Activity>,
    bucket: Mutex<Bucket>,
}

impl fmt::Debug for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pace").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Pace {
    /// Begins at full speed.
    #[must_use]
    pub fn new(limits: Limits, activity: Arc<Activity>) -> Self {
        let bucket = Mutex::new(Bucket::new(Instant::now(), activity.bytes()));
        Self { limits, activity, bucket }
    }

    fn lock(&self) -> MutexGuard<'_, Bucket> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether clients move bytes through this node.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.lock().is_busy(Instant::now(), self.activity.bytes())
    }

    /// Bytes per second that were let pass lately.
    #[must_use]
    pub fn rate(&self) -> u64 {
        self.lock().rate(Instant::now())
    }
}

impl Throttle for Pace {
    fn take(&self, bytes: u64) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let now = Instant::now();
            let until = self.lock().take(self.limits, bytes, (now, self.activity.bytes()));
            if until > now {
                sleep_until(until).await;
            }
        })
    }
}

/// The state behind a [`Pace`] (pure: it is told the time).
#[derive(Debug)]
struct Bucket {
    /// When all that was let pass is paid for.
    paid_at: Instant,
    sampled_at: Instant,
    /// What clients had moved at the last sample.
    seen: u64,
    busy_until: Option<Instant>,
    /// Bytes let pass so far.
    passed: u64,
    /// Some moments with what had passed by then, oldest first.
    marks: VecDeque<(Instant, u64)>,
}

impl Bucket {
    fn new(now: Instant, seen: u64) -> Self {
        Self { paid_at: now, sampled_at: now, seen, busy_until: None, passed: 0, marks: VecDeque::from([(now, 0)]) }
    }

    /// Lets bytes pass at the moment that is returned; what came before is paid for then.
    fn take(&mut self, limits: Limits, bytes: u64, (now, clients): (Instant, u64)) -> Instant {
        let rate = if self.is_busy(now, clients) { limits.busy } else { limits.idle };
        self.mark(now);
        self.passed += bytes;
        let from = self.paid_at.max(now);
        if rate == 0 {
            return now;
        }
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
        self.paid_at = from + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX >> 1));
        from
    }

    fn is_busy(&mut self, now: Instant, clients: u64) -> bool {
        let elapsed = now - self.sampled_at;
        if elapsed >= SAMPLE {
            let moved = u128::from(clients.saturating_sub(self.seen));
            if moved * 1000 >= u128::from(TRICKLE) * elapsed.as_millis() {
                self.busy_until = Some(now + BUSY_FOR);
            }
            (self.sampled_at, self.seen) = (now, clients);
        }
        self.busy_until.is_some_and(|until| now < until)
    }

    fn mark(&mut self, now: Instant) {
        if self.marks.back().is_none_or(|(at, _)| now - *at >= MARK_EVERY) {
            self.marks.push_back((now, self.passed));
        }
        while self.marks.len() > 1 && self.marks.front().is_some_and(|(at, _)| now - *at >= WINDOW) {
            self.marks.pop_front();
        }
    }

    fn rate(&mut self, now: Instant) -> u64 {
        self.mark(now);
        let Some((since, before)) = self.marks.front().copied() else { return 0 };
        let millis = (now - since).as_millis().clamp(MARK_EVERY.as_millis(), u128::MAX);
        u64::try_from(u128::from(self.passed - before) * 1000 / millis).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { idle: 1000, busy: 200 };

    /// How many bytes pass in `seconds` while clients move `clients` bytes in each tenth of a second.
    fn passed(bucket: &mut Bucket, from: Instant, seconds: u64, clients: u64) -> u64 {
        let (mut now, mut passed, mut moved) = (from, 0, bucket.seen);
        let end = from + Duration::from_secs(seconds);
        let mut tenth = from;
        while now < end {
            while tenth <= now {
                tenth += SAMPLE;
                moved += clients;
                bucket.is_busy(tenth.min(now), moved);
            }
            now = bucket.take(LIMITS, 50, (now, moved)).max(now + Duration::from_millis(1));
            passed += 50;
        }
        passed
    }

    #[test]
    fn an_idle_node_lets_all_of_the_limit_pass_and_not_more() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start, 0);
        let bytes = passed(&mut bucket, start, 20, 0);
        assert!((19_000..=20_100).contains(&bytes), "{bytes} bytes in 20 s at 1000 a second");
        let rate = bucket.rate(start + Duration::from_secs(20));
        assert!((900..=1100).contains(&rate), "{rate} bytes a second measured");
    }

    #[test]
    fn clients_leave_it_only_its_share_until_they_are_gone() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start, 0);
        let busy = passed(&mut bucket, start, 10, 1 << 20);
        assert!(busy <= 10 * LIMITS.busy + 1500, "{busy} bytes in 10 s at 200 a second");
        let later = start + Duration::from_secs(12);
        assert!(!bucket.is_busy(later, bucket.seen), "nothing moved for two seconds");
        let idle = passed(&mut bucket, later, 10, 100);
        assert!(idle >= 7 * LIMITS.idle, "a trickle is no reason to wait: {idle} bytes in 10 s");
    }

    #[test]
    fn the_measured_rate_falls_to_nothing_when_nothing_passes() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start, 0);
        passed(&mut bucket, start, 5, 0);
        assert_eq!(bucket.rate(start + Duration::from_secs(60)), 0);
    }

    #[test]
    fn a_share_of_no_limit_is_a_limit() {
        assert_eq!(Limits::new(1000, 20), Limits { idle: 1000, busy: 200 });
        assert_eq!(Limits::new(0, 50), Limits { idle: 0, busy: UNLIMITED / 2 });
        assert_eq!(Limits::new(1, 0).busy, 1);
    }
}
