//! Random identities: upload sessions and extents.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::digest::{hex_decode, hex_encode};

/// Says that a text is not 32 lower-case hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("id is not 32 lower-case hex digits")]
pub struct ParseIdError;

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub struct $name([u8; 16]);

        impl $name {
            /// Wraps 128 bits drawn by the caller.
            #[must_use]
            pub const fn from_random(bits: u128) -> Self {
                Self(bits.to_be_bytes())
            }

            /// Wraps 16 raw bytes, or `None` if there are more or fewer.
            #[must_use]
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                Some(Self(bytes.try_into().ok()?))
            }

            /// Returns the raw bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex_encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let bytes = if text.len() == 32 { hex_decode(text) } else { None };
                bytes.and_then(|bytes| Self::from_slice(&bytes)).ok_or(ParseIdError)
            }
        }
    };
}

random_id! {
    /// Identifies an upload session: 128 random bits, 32 hex digits in URLs (P24).
    UploadId
}
random_id! {
    /// Identifies one attempt to store a run of an upload session's bytes; files are named by it (P24).
    ExtentId
}
