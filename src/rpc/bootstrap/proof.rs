//! Proofs that both ends know the secret, bound to the certificate the answerer showed.

use std::time::Duration;

use aws_lc_rs::hmac;
use tokio::time::Instant;

use super::Secret;
use super::fingerprint;

/// Bytes of a nonce.
pub(super) const NONCE_BYTES: usize = 32;
/// How long an answerer's nonce is good.
const NONCE_LIFE: Duration = Duration::from_secs(60);
/// How long the time in an answerer's nonce is.
const TIME_BYTES: usize = 8;

pub(super) type Nonce = [u8; NONCE_BYTES];

/// What all proofs of one exchange have in common.
///
/// The certificate's fingerprint is in each of them: whoever stands between caller and answerer shows the caller another
/// certificate, and no proof made for that one is good at the answerer, nor the other way round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Exchange {
    pub(super) caller: Nonce,
    pub(super) answerer: Nonce,
    /// SHA-256 of the certificate the answerer showed on this connection.
    pub(super) shown: [u8; 32],
}

/// What a proof is for: one cannot be taken for another.
#[derive(Debug, Clone, Copy)]
pub(super) enum Claim<'a> {
    Hello,
    Question { body: &'a [u8] },
    Answer { question: &'a [u8], body: &'a [u8] },
}

impl Exchange {
    pub(super) fn prove(&self, secret: &Secret, claim: Claim<'_>) -> Vec<u8> {
        hmac::sign(&secret.0, &self.text(claim)).as_ref().to_vec()
    }

    /// Compares in constant time.
    pub(super) fn holds(&self, secret: &Secret, claim: Claim<'_>, proof: &[u8]) -> bool {
        hmac::verify(&secret.0, &self.text(claim), proof).is_ok()
    }

    /// Everything before the body has a fixed length, so that no two claims have one text.
    fn text(&self, claim: Claim<'_>) -> Vec<u8> {
        let context: &[u8; 32] = match claim {
            Claim::Hello => b"rafthold bootstrap v1 hello     ",
            Claim::Question { .. } => b"rafthold bootstrap v1 question  ",
            Claim::Answer { .. } => b"rafthold bootstrap v1 answer    ",
        };
        let mut text = context.to_vec();
        text.extend_from_slice(&self.caller);
        text.extend_from_slice(&self.answerer);
        text.extend_from_slice(&self.shown);
        match claim {
            Claim::Hello => {}
            Claim::Question { body } => text.extend_from_slice(body),
            Claim::Answer { question, body } => {
                text.extend_from_slice(&fingerprint(question));
                text.extend_from_slice(body);
            }
        }
        text
    }
}

/// Gives out an answerer's nonces and knows them again, without remembering any.
pub(super) struct Nonces {
    key: hmac::Key,
    start: Instant,
}

impl Nonces {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, key), start: Instant::now() }
    }

    /// A nonce for an exchange with the caller of that nonce, over the connection that showed that certificate.
    pub(super) fn issue(&self, caller: &Nonce, shown: &[u8; 32]) -> Nonce {
        self.at(u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX), caller, shown)
    }

    /// Says whether this process issued `nonce` for that caller and connection, at most a minute ago.
    pub(super) fn knows(&self, nonce: &Nonce, caller: &Nonce, shown: &[u8; 32]) -> bool {
        let (time, _) = nonce.split_first_chunk::<TIME_BYTES>().expect("a nonce is longer than its time");
        let issued = Duration::from_millis(u64::from_be_bytes(*time));
        let fresh = self.start.elapsed().checked_sub(issued).is_some_and(|age| age <= NONCE_LIFE);
        fresh
            && aws_lc_rs::constant_time::verify_slices_are_equal(
                nonce,
                &self.at(u64::from_be_bytes(*time), caller, shown),
            )
            .is_ok()
    }

    fn at(&self, time_ms: u64, caller: &Nonce, shown: &[u8; 32]) -> Nonce {
        let time = time_ms.to_be_bytes();
        let tag = hmac::sign(&self.key, &[&time[..], caller, shown].concat());
        let mut nonce = [0; NONCE_BYTES];
        nonce[..TIME_BYTES].copy_from_slice(&time);
        nonce[TIME_BYTES..].copy_from_slice(&tag.as_ref()[..NONCE_BYTES - TIME_BYTES]);
        nonce
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_good_for_one_secret_claim_connection_and_exchange() {
        let secret = Secret::of(&[1; 32]);
        let exchange = Exchange { caller: [1; 32], answerer: [2; 32], shown: [3; 32] };
        let claim = Claim::Answer { question: b"q", body: b"b" };
        let proof = exchange.prove(&secret, claim);
        assert!(exchange.holds(&secret, claim, &proof));
        assert!(!exchange.holds(&Secret::of(&[2; 32]), claim, &proof));
        for other in [
            Claim::Hello,
            Claim::Question { body: b"b" },
            Claim::Answer { question: b"q2", body: b"b" },
            Claim::Answer { question: b"q", body: b"b2" },
        ] {
            assert!(!exchange.holds(&secret, other, &proof), "{other:?}");
        }
        for other in [
            Exchange { caller: [9; 32], ..exchange },
            Exchange { answerer: [9; 32], ..exchange },
            Exchange { shown: [9; 32], ..exchange },
        ] {
            assert!(!other.holds(&secret, claim, &proof), "{other:?}");
        }
        assert!(!exchange.holds(&secret, claim, &proof[..31]));
        assert!(!exchange.holds(&secret, claim, b""));
    }

    #[test]
    fn a_nonce_is_known_only_where_and_to_whom_it_was_given() {
        let nonces = Nonces::new(&[1; 32]);
        let nonce = nonces.issue(&[1; 32], &[3; 32]);
        assert!(nonces.knows(&nonce, &[1; 32], &[3; 32]));
        assert!(!nonces.knows(&nonce, &[2; 32], &[3; 32]));
        assert!(!nonces.knows(&nonce, &[1; 32], &[4; 32]));
        assert!(!nonces.knows(&[0xff; 32], &[1; 32], &[3; 32]));
        assert!(!Nonces::new(&[2; 32]).knows(&nonce, &[1; 32], &[3; 32]));
        let old = Nonces { start: nonces.start.checked_sub(NONCE_LIFE * 2).unwrap(), ..nonces };
        assert!(!old.knows(&nonce, &[1; 32], &[3; 32]));
    }
}
