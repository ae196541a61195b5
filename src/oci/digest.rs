//! Digests: an algorithm and the hash of content.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Names a hash algorithm that the registry accepts.
///
/// Spec: image-spec descriptor.md, "Registered algorithms".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
pub enum Algorithm {
    /// SHA-256, 32 bytes.
    #[default]
    Sha256,
    /// SHA-512, 64 bytes.
    Sha512,
}

impl Algorithm {
    /// Returns the name as it stands before the colon of a digest.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Returns the length of the hash in bytes.
    #[must_use]
    pub const fn hash_bytes(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }
}

impl FromStr for Algorithm {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "sha256" => Ok(Self::Sha256),
            "sha512" => Ok(Self::Sha512),
            _ => Err(ParseDigestError::Algorithm),
        }
    }
}

/// Names content by the hash of its bytes.
///
/// Ordered by algorithm, then by hash bytes. The text form is `<algorithm>:<lower-case hex>`.
///
/// ```
/// use rafthold::oci::Digest;
/// let text = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
/// assert_eq!(text.parse::<Digest>().unwrap().to_string(), text);
/// assert!("sha256:E3B0".parse::<Digest>().is_err());
/// ```
///
/// Spec: image-spec descriptor.md, "Digests".
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(Repr);

// The rare long hash is boxed: most of the agreed state is digests, and 40 bytes each beat 65.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Repr {
    Sha256([u8; 32]),
    Sha512(Box<[u8; 64]>),
}

impl Digest {
    /// Builds a digest from raw hash bytes, or `None` if their length is not the algorithm's.
    #[must_use]
    pub fn from_hash(algorithm: Algorithm, hash: &[u8]) -> Option<Self> {
        Some(Self(match algorithm {
            Algorithm::Sha256 => Repr::Sha256(hash.try_into().ok()?),
            Algorithm::Sha512 => Repr::Sha512(Box::new(hash.try_into().ok()?)),
        }))
    }

    pub(super) const fn from_sha256(hash: [u8; 32]) -> Self {
        Self(Repr::Sha256(hash))
    }

    pub(super) fn from_sha512(hash: [u8; 64]) -> Self {
        Self(Repr::Sha512(Box::new(hash)))
    }

    /// Computes the digest of `bytes`.
    #[must_use]
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = super::Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// Returns the algorithm.
    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        match self.0 {
            Repr::Sha256(_) => Algorithm::Sha256,
            Repr::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// Returns the raw hash, 32 or 64 bytes.
    #[must_use]
    pub fn hash(&self) -> &[u8] {
        match &self.0 {
            Repr::Sha256(hash) => hash,
            Repr::Sha512(hash) => hash.as_slice(),
        }
    }

    /// Returns the hash in lower-case hex.
    #[must_use]
    pub fn hex(&self) -> String {
        hex_encode(self.hash())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm().as_str(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Says why a text is not a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseDigestError {
    /// The algorithm is absent or not one the registry accepts.
    #[error("digest algorithm is not sha256 or sha512")]
    Algorithm,
    /// The part after the colon is not lower-case hex of the algorithm's length.
    #[error("digest is not lower-case hex of the algorithm's length")]
    Hex,
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (algorithm, hex) = text.split_once(':').ok_or(ParseDigestError::Algorithm)?;
        let algorithm: Algorithm = algorithm.parse()?;
        if hex.len() != algorithm.hash_bytes() * 2 {
            return Err(ParseDigestError::Hex);
        }
        let hash = hex_decode(hex).ok_or(ParseDigestError::Hex)?;
        Self::from_hash(algorithm, &hash).ok_or(ParseDigestError::Hex)
    }
}

// Compact in binary formats, the spec's text in JSON.
impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            (self.algorithm(), self.hash()).serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
        } else {
            let (algorithm, hash) = <(Algorithm, Vec<u8>)>::deserialize(deserializer)?;
            Self::from_hash(algorithm, &hash).ok_or_else(|| D::Error::custom(ParseDigestError::Hex))
        }
    }
}

pub(super) fn hex_encode(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// Decodes lower-case hex only: the same bytes must have one spelling.
pub(super) fn hex_decode(text: &str) -> Option<Vec<u8>> {
    fn nibble(digit: u8) -> Option<u8> {
        match digit {
            b'0'..=b'9' => Some(digit - b'0'),
            b'a'..=b'f' => Some(digit - b'a' + 10),
            _ => None,
        }
    }
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.as_bytes().chunks_exact(2).map(|pair| Some(nibble(pair[0])? << 4 | nibble(pair[1])?)).collect()
}
