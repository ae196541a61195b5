//! A running hash whose state can travel to another node.

use serde::{Deserialize, Serialize};
use sha2::digest::common::hazmat::SerializableState;
use sha2::{Digest as _, Sha256, Sha512};

use super::{Algorithm, Digest};

/// Hashes a stream of bytes; its state can be exported between any two bytes and resumed elsewhere (P26).
#[derive(Clone, Debug)]
pub struct Hasher(Inner);

#[derive(Clone, Debug)]
enum Inner {
    Sha256(Sha256),
    Sha512(Sha512),
}

/// The exported state of a [`Hasher`]: about 100 to 200 bytes, opaque, good on any node of the same feature level.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HashState {
    /// The algorithm of the hash.
    pub algorithm: Algorithm,
    state: Vec<u8>,
}

impl HashState {
    /// Builds the state of an empty stream.
    #[must_use]
    pub fn initial(algorithm: Algorithm) -> Self {
        Hasher::new(algorithm).state()
    }
}

/// Says that bytes are not the exported state of a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("hash state is malformed")]
pub struct InvalidHashState;

impl Hasher {
    /// Starts a hash of an empty stream.
    #[must_use]
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => Inner::Sha256(Sha256::new()),
            Algorithm::Sha512 => Inner::Sha512(Sha512::new()),
        })
    }

    /// Goes on from an exported state.
    ///
    /// # Errors
    ///
    /// [`InvalidHashState`] if the bytes are not a state of that algorithm.
    pub fn resume(state: &HashState) -> Result<Self, InvalidHashState> {
        Ok(Self(match state.algorithm {
            Algorithm::Sha256 => {
                let bytes = state.state.as_slice().try_into().map_err(|_| InvalidHashState)?;
                Inner::Sha256(Sha256::deserialize(bytes).map_err(|_| InvalidHashState)?)
            }
            Algorithm::Sha512 => {
                let bytes = state.state.as_slice().try_into().map_err(|_| InvalidHashState)?;
                Inner::Sha512(Sha512::deserialize(bytes).map_err(|_| InvalidHashState)?)
            }
        }))
    }

    /// Returns the algorithm.
    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        match self.0 {
            Inner::Sha256(_) => Algorithm::Sha256,
            Inner::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// Adds bytes to the stream.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            Inner::Sha256(hash) => hash.update(bytes),
            Inner::Sha512(hash) => hash.update(bytes),
        }
    }

    /// Exports the state after the bytes so far.
    #[must_use]
    pub fn state(&self) -> HashState {
        let state = match &self.0 {
            Inner::Sha256(hash) => hash.serialize().to_vec(),
            Inner::Sha512(hash) => hash.serialize().to_vec(),
        };
        HashState { algorithm: self.algorithm(), state }
    }

    /// Ends the stream and returns its digest.
    #[must_use]
    pub fn finish(self) -> Digest {
        match self.0 {
            Inner::Sha256(hash) => Digest::from_sha256(hash.finalize().into()),
            Inner::Sha512(hash) => Digest::from_sha512(hash.finalize().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_resumed_from_its_state_goes_on_as_if_never_interrupted() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let bytes: Vec<u8> = (0..=255u8).cycle().take(1000).collect();
            for cut in [0, 1, 63, 64, 65, 127, 128, 129, 999, 1000] {
                let mut first = Hasher::new(algorithm);
                first.update(&bytes[..cut]);
                let mut second = Hasher::resume(&first.state()).unwrap();
                second.update(&bytes[cut..]);
                assert_eq!(second.finish(), Digest::of(algorithm, &bytes), "cut at {cut}");
            }
        }
    }
}
