//! The last bytes of a body, kept back until it is known to be right (P16).

use std::collections::VecDeque;

use bytes::Bytes;

/// Bytes kept back: a body without them is visibly short.
pub(super) const TAIL_BYTES: u64 = 32 * 1024;

/// Passes a blob's bytes through, except the last [`TAIL_BYTES`].
#[derive(Debug)]
pub(super) struct Tail {
    /// Where the bytes begin that are kept.
    from: u64,
    kept: VecDeque<Bytes>,
}

impl Tail {
    /// Keeps the tail of a blob of `size` bytes.
    pub(super) const fn new(size: u64) -> Self {
        Self { from: size.saturating_sub(TAIL_BYTES), kept: VecDeque::new() }
    }

    /// Takes the bytes at `position` and returns those of them that may go on.
    pub(super) fn pass(&mut self, position: u64, mut bytes: Bytes) -> Option<Bytes> {
        let free = usize::try_from(self.from.saturating_sub(position)).unwrap_or(usize::MAX);
        if free >= bytes.len() {
            return Some(bytes);
        }
        self.kept.push_back(bytes.split_off(free));
        (!bytes.is_empty()).then_some(bytes)
    }

    /// Counts the bytes kept.
    pub(super) fn kept_bytes(&self) -> u64 {
        self.kept.iter().map(|bytes| bytes.len() as u64).sum()
    }

    /// Forgets what was kept: it will be read again.
    pub(super) fn clear(&mut self) {
        self.kept.clear();
    }

    /// Gives out what was kept, once the body is known to be right.
    pub(super) fn release(&mut self) -> Option<Bytes> {
        self.kept.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_but_the_tail_passes_whatever_the_frames() {
        for size in [1u64, 100, TAIL_BYTES, TAIL_BYTES + 1, 3 * TAIL_BYTES] {
            for frame in [1000usize, 32 * 1024, 50_000] {
                let body: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
                let mut tail = Tail::new(size);
                let mut out = Vec::new();
                for (n, piece) in body.chunks(frame).enumerate() {
                    if let Some(bytes) = tail.pass((n * frame) as u64, Bytes::copy_from_slice(piece)) {
                        out.extend_from_slice(&bytes);
                    }
                }
                assert_eq!(out.len() as u64, size.saturating_sub(TAIL_BYTES));
                while let Some(bytes) = tail.release() {
                    out.extend_from_slice(&bytes);
                }
                assert_eq!(out, body);
            }
        }
    }
}
