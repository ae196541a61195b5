//! What was found out about credentials in the last minute.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::basic::Credentials;

/// How long a verdict is good for.
const TTL: Duration = Duration::from_secs(60);

/// How many verdicts of each kind are kept; the oldest goes first.
const KEPT_MAX: usize = 4096;

/// Credentials under a hash keyed with this process's secret: what is in memory tells no password.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key([u8; 32]);

impl Key {
    pub(super) fn of(secret: &[u8; 32], credentials: &Credentials) -> Self {
        // The length keeps `a` + `bc` and `ab` + `c` apart.
        let hash = Sha256::new()
            .chain_update(secret)
            .chain_update((credentials.user.len() as u64).to_be_bytes())
            .chain_update(&credentials.user)
            .chain_update(&credentials.password)
            .finalize();
        Self(hash.into())
    }
}

/// Good and bad verdicts, apart from each other: a flood of guesses pushes no good one out.
#[derive(Default)]
pub(super) struct Verdicts {
    good: Kept,
    bad: Kept,
}

#[derive(Default)]
struct Kept {
    since: HashMap<Key, Instant>,
    order: VecDeque<(Instant, Key)>,
}

impl Verdicts {
    /// Returns a verdict that is still good.
    pub(super) fn get(&self, key: &Key, now: Instant) -> Option<bool> {
        let fresh = |kept: &Kept| kept.since.get(key).is_some_and(|since| now.duration_since(*since) < TTL);
        if fresh(&self.good) {
            Some(true)
        } else if fresh(&self.bad) {
            Some(false)
        } else {
            None
        }
    }

    /// Remembers a verdict as of now.
    pub(super) fn insert(&mut self, key: Key, good: bool, now: Instant) {
        let kept = if good { &mut self.good } else { &mut self.bad };
        kept.since.insert(key, now);
        kept.order.push_back((now, key));
        while let Some((since, oldest)) = kept.order.front().copied() {
            if kept.order.len() <= KEPT_MAX && now.duration_since(since) < TTL {
                break;
            }
            kept.order.pop_front();
            if kept.since.get(&oldest) == Some(&since) {
                kept.since.remove(&oldest);
            }
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> Key {
        let credentials = Credentials { user: format!("u{n}"), password: "p".to_owned() };
        Key::of(&[1; 32], &credentials)
    }

    #[test]
    fn verdicts_are_forgotten_after_a_minute() {
        let mut verdicts = Verdicts::default();
        let start = Instant::now();
        verdicts.insert(key(1), true, start);
        verdicts.insert(key(2), false, start);
        let get = |verdicts: &Verdicts, n, now| verdicts.get(&key(n), now);
        assert_eq!(get(&verdicts, 1, start), Some(true));
        assert_eq!(get(&verdicts, 2, start), Some(false));
        assert_eq!(get(&verdicts, 3, start), None);
        let later = start + TTL;
        assert_eq!((get(&verdicts, 1, later), get(&verdicts, 2, later)), (None, None));
        verdicts.insert(key(3), true, later);
        assert_eq!(verdicts.good.since.len(), 1, "what is too old goes when something comes");
    }

    #[test]
    fn guesses_do_not_push_out_good_verdicts() {
        let mut verdicts = Verdicts::default();
        let start = Instant::now();
        verdicts.insert(key(0), true, start);
        for n in 1..10_000 {
            verdicts.insert(key(n), false, start);
        }
        assert_eq!(verdicts.get(&key(0), start), Some(true));
        assert_eq!((verdicts.bad.since.len(), verdicts.bad.order.len()), (KEPT_MAX, KEPT_MAX));
    }

    #[test]
    fn keys_depend_on_the_secret_and_on_where_the_name_ends() {
        let key = |secret: u8, user: &str, password: &str| {
            Key::of(&[secret; 32], &Credentials { user: user.to_owned(), password: password.to_owned() }).0
        };
        assert_ne!(key(1, "a", "bc"), key(1, "ab", "c"));
        assert_ne!(key(1, "a", "b"), key(2, "a", "b"));
    }
}
