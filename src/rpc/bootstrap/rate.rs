//! How often one address may ask.

use std::collections::HashMap;
use std::net::IpAddr;

use tokio::time::Instant;

/// Calls that may come at once.
const BURST: f64 = 200.0;
/// Calls per second in the long run: several nodes of a test may share one address.
const PER_SECOND: f64 = 100.0;
/// Addresses remembered.
const ADDRESSES_MAX: usize = 1024;

/// One leaky bucket per address.
#[derive(Debug, Default)]
pub(super) struct Rates {
    buckets: HashMap<IpAddr, Bucket>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    fn left_at(self, now: Instant) -> f64 {
        BURST.min(self.left + now.duration_since(self.at).as_secs_f64() * PER_SECOND)
    }
}

impl Rates {
    /// Says whether one more call from `address` is within its rate, and counts it.
    pub(super) fn admit(&mut self, address: IpAddr, now: Instant) -> bool {
        if self.buckets.len() >= ADDRESSES_MAX && !self.buckets.contains_key(&address) {
            // A full bucket remembers nothing.
            self.buckets.retain(|_, bucket| bucket.left_at(now) < BURST);
            if self.buckets.len() >= ADDRESSES_MAX {
                return false;
            }
        }
        let bucket = self.buckets.entry(address).or_insert(Bucket { left: BURST, at: now });
        let left = bucket.left_at(now);
        let admitted = left >= 1.0;
        *bucket = Bucket { left: if admitted { left - 1.0 } else { left }, at: now };
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn each_address_has_its_own_rate_and_memory_is_bounded() {
        let now = Instant::now();
        let mut rates = Rates::default();
        let address = |n: u32| IpAddr::from(n.to_be_bytes());
        assert_eq!((0..1000).filter(|_| rates.admit(address(1), now)).count(), 200);
        assert!(rates.admit(address(2), now));
        assert!(rates.admit(address(1), now + Duration::from_millis(11)));
        assert_eq!((3..5000).filter(|n| rates.admit(address(*n), now)).count(), ADDRESSES_MAX - 2);
        assert_eq!(rates.buckets.len(), ADDRESSES_MAX);
        assert!(rates.admit(address(9999), now + Duration::from_secs(60)), "old ones made room");
    }
}
