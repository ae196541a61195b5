//! Whether this node's state is known to be recent (P5).

use std::sync::Mutex;
use std::time::Duration;

use super::boot_clock::BootTime;
use super::followers::FRESH_FOR;

/// A leader unheard of for so long is taken for gone: writes then fail at once instead of waiting.
const GONE_AFTER: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub(super) struct Freshness(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    until: Option<BootTime>,
    /// When a read index was last had, or this node started.
    heard: BootTime,
    /// A whole round failed since freshness ran out.
    lost: bool,
}

impl Freshness {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Inner { until: None, heard: BootTime::now(), lost: false }))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().expect("no panic while held")
    }

    /// Notes a confirmed read index that was asked for at `asked` and is applied here.
    pub(super) fn renew(&self, asked: BootTime) {
        let mut inner = self.lock();
        inner.until = inner.until.max(Some(asked + FRESH_FOR));
    }

    /// Notes that the leader answered with a quorum behind it.
    pub(super) fn heard(&self) {
        let mut inner = self.lock();
        inner.heard = BootTime::now();
        inner.lost = false;
    }

    /// Notes that a whole round got no answer.
    pub(super) fn round_failed(&self) {
        let now = BootTime::now();
        let mut inner = self.lock();
        inner.lost = inner.until.is_none_or(|until| until <= now);
    }

    pub(super) fn is_fresh(&self) -> bool {
        self.lock().until.is_some_and(|until| BootTime::now() < until)
    }

    /// Whether freshness is known lost: nobody waits for it in a request any more.
    pub(super) fn is_lost(&self) -> bool {
        self.lock().lost
    }

    /// How long until the leader counts as gone; zero if it does.
    pub(super) fn patience(&self) -> Duration {
        GONE_AFTER.saturating_sub(BootTime::now().since(self.lock().heard))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freshness_counts_from_before_the_question_was_asked() {
        let freshness = Freshness::new();
        assert!(!freshness.is_fresh());
        freshness.renew(BootTime::now());
        assert!(freshness.is_fresh());
        let old = Freshness::new();
        let asked = BootTime::now();
        old.lock().until = Some(asked);
        assert!(!old.is_fresh());
        // A late answer to an early question does not shorten what is known.
        freshness.renew(asked);
        assert!(freshness.is_fresh());
    }

    #[test]
    fn a_failed_round_counts_as_loss_only_when_freshness_ran_out() {
        let freshness = Freshness::new();
        freshness.renew(BootTime::now());
        freshness.round_failed();
        assert!(!freshness.is_lost());
        let never = Freshness::new();
        never.round_failed();
        assert!(never.is_lost());
        never.heard();
        assert!(!never.is_lost());
    }
}
