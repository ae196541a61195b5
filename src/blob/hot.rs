//! Whole small bodies that are read often, kept in memory once they were verified.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

use bytes::Bytes;

use crate::oci::Digest;

/// The least recently read go first when the bytes exceed their limit.
#[derive(Debug)]
pub(super) struct Hot {
    bytes_max: usize,
    bodies: Mutex<Bodies>,
}

#[derive(Debug, Default)]
struct Bodies {
    by_digest: HashMap<Digest, (Bytes, u64)>,
    by_age: BTreeMap<u64, Digest>,
    bytes: usize,
    turn: u64,
}

impl Bodies {
    fn remove(&mut self, digest: &Digest) {
        if let Some((body, turn)) = self.by_digest.remove(digest) {
            self.by_age.remove(&turn);
            self.bytes -= body.len();
        }
    }
}

impl Hot {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { bytes_max: usize::try_from(bytes_max).unwrap_or(usize::MAX), bodies: Mutex::default() }
    }

    pub(super) fn get(&self, digest: &Digest) -> Option<Bytes> {
        let mut bodies = self.bodies.lock().expect("no panic while held");
        let turn = bodies.turn + 1;
        let (body, old) = bodies.by_digest.get_mut(digest)?;
        let (body, old) = (body.clone(), std::mem::replace(old, turn));
        bodies.turn = turn;
        bodies.by_age.remove(&old);
        bodies.by_age.insert(turn, digest.clone());
        Some(body)
    }

    /// Keeps a verified body; one that would push out more than a few others is not kept.
    pub(super) fn put(&self, digest: &Digest, body: &Bytes) {
        if body.len() > self.bytes_max / 8 {
            return;
        }
        let mut bodies = self.bodies.lock().expect("no panic while held");
        bodies.remove(digest);
        bodies.turn += 1;
        let turn = bodies.turn;
        bodies.by_age.insert(turn, digest.clone());
        // A slice would keep alive the whole buffer it was cut from.
        bodies.by_digest.insert(digest.clone(), (Bytes::copy_from_slice(body), turn));
        bodies.bytes += body.len();
        while bodies.bytes > self.bytes_max {
            let Some((_, oldest)) = bodies.by_age.first_key_value() else { break };
            let oldest = oldest.clone();
            bodies.remove(&oldest);
        }
    }

    pub(super) fn remove(&self, digest: &Digest) {
        self.bodies.lock().expect("no panic while held").remove(digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn the_least_recently_read_body_goes_first() {
        let hot = Hot::new(80);
        let bodies: Vec<_> = (0..9u8).map(|byte| Bytes::from(vec![byte; 10])).collect();
        let digests: Vec<_> = bodies.iter().map(|body| Digest::of(Algorithm::Sha256, body)).collect();
        for (digest, body) in digests.iter().zip(&bodies).take(8) {
            hot.put(digest, body);
        }
        assert_eq!(hot.get(&digests[0]), Some(bodies[0].clone()));
        hot.put(&digests[8], &bodies[8]);
        assert_eq!(hot.get(&digests[1]), None);
        assert!(hot.get(&digests[0]).is_some() && hot.get(&digests[8]).is_some());
        hot.put(&digests[1], &Bytes::from(vec![0; 11]));
        assert_eq!(hot.get(&digests[1]), None, "too large for this memory");
    }
}
