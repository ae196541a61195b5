//! Log time (P7): stamped by the leader alone, estimated by the others.

use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;

use super::command::LogTime;

/// One leader's part of log time.
#[derive(Debug, Clone, Copy)]
struct Reign {
    term: u64,
    base: LogTime,
    since: Instant,
}

impl Reign {
    fn now(&self) -> LogTime {
        later(self.base, self.since.elapsed())
    }
}

fn later(time: LogTime, elapsed: Duration) -> LogTime {
    LogTime(time.0.saturating_add(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)))
}

#[derive(Debug, Default)]
pub(super) struct LogClock {
    reign: AsyncMutex<Option<Reign>>,
    /// What the leader said last, and when it was heard.
    heard: Mutex<Option<(LogTime, Instant)>>,
}

impl LogClock {
    /// Returns the stamp for a proposal made now by the leader of `term`. The first stamp of a term goes on from the last of
    /// those before, which `last` finds out: it answers once everything that they committed is applied here.
    pub(super) async fn stamp<E>(
        &self,
        term: u64,
        last: impl Future<Output = Result<LogTime, E>>,
    ) -> Result<LogTime, E> {
        let mut reign = self.reign.lock().await;
        if let Some(reign) = reign.filter(|reign| reign.term == term) {
            return Ok(reign.now());
        }
        let base = last.await?;
        *reign = Some(Reign { term, base, since: Instant::now() });
        Ok(base)
    }

    /// Notes the leader's log time, as just heard.
    pub(super) fn heard(&self, time: LogTime) {
        // Another leader may be behind what the last one had not written down: the newest word counts.
        *self.heard.lock().expect("no panic while held") = Some((time, Instant::now()));
    }

    /// Returns this node's estimate of the leader's log time, not before `applied`; never ahead by more than clock drift.
    pub(super) fn estimate(&self, applied: LogTime) -> LogTime {
        let heard = *self.heard.lock().expect("no panic while held");
        heard.map_or(applied, |(time, at)| later(time, at.elapsed())).max(applied)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stamps_go_on_from_the_last_one_by_the_leaders_own_clock() {
        let clock = LogClock::default();
        assert_eq!(clock.stamp(1, async { Ok::<_, ()>(LogTime(1000)) }).await, Ok(LogTime(1000)));
        while clock.stamp(1, async { Err(()) }).await.unwrap() == LogTime(1000) {
            tokio::task::yield_now().await;
        }
        // The next leader does not know of time that nobody wrote down.
        assert_eq!(clock.stamp(2, async { Ok::<_, ()>(LogTime(900)) }).await, Ok(LogTime(900)));
        assert_eq!(clock.stamp(3, async { Err(()) }).await, Err(()));
    }

    #[tokio::test]
    async fn an_estimate_is_the_leaders_word_plus_own_time() {
        let clock = LogClock::default();
        assert_eq!(clock.estimate(LogTime(7)), LogTime(7));
        clock.heard(LogTime(500));
        while clock.estimate(LogTime(7)) == LogTime(500) {
            tokio::task::yield_now().await;
        }
        assert!(clock.estimate(LogTime(7)) > LogTime(500));
        assert_eq!(clock.estimate(LogTime(900_000)), LogTime(900_000));
    }
}
