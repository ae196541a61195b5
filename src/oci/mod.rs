//! Parses and prints the names, digests, references and documents of the OCI specs, rejecting what the specs forbid.
//!
//! Owns nothing: every item is a value. Invariants: a value of one of these types satisfies its grammar, so code past the
//! border never checks again. Does not know HTTP, storage or policy. Start reading at `digest.rs`, then `manifest.rs`.

mod byte_range;
mod content_range;
mod digest;
mod error_code;
mod hasher;
mod ids;
mod json;
mod manifest;
mod media_type;
mod name;
mod reference;

pub use byte_range::{ByteRange, ByteRangeError, ByteRanges};
pub use content_range::{ContentRange, ParseContentRangeError};
pub use digest::{Algorithm, Digest, ParseDigestError};
pub use error_code::ErrorCode;
pub use hasher::{HashState, Hasher, InvalidHashState};
pub use ids::{ExtentId, ParseIdError, UploadId};
pub use manifest::{Descriptor, Manifest, ManifestError};
pub use media_type::{MediaType, ParseMediaTypeError};
pub use name::{ParseNameError, RepositoryName};
pub use reference::{ParseTagError, Reference, Tag};

#[cfg(test)]
mod grammar_tests;
