//! Parses and prints the names, digests, references and documents of the OCI specs, rejecting what the specs forbid.
//!
//! Owns nothing: every item is a value. Invariants: a value of one of these types satisfies its grammar, so code past the
//! border never checks again. Does not know HTTP, storage or policy. Start reading at `digest.rs`, then `manifest.rs`.

mod digest;
mod hasher;
mod ids;
mod manifest;
mod media_type;
mod name;
mod reference;

pub use digest::{Algorithm, Digest, ParseDigestError};
pub use hasher::{HashState, Hasher, InvalidHashState};
pub use ids::{ExtentId, ParseIdError, UploadId};
pub use manifest::{Descriptor, Manifest, ManifestError};
pub use media_type::{MediaType, ParseMediaTypeError};
pub use name::{ParseNameError, RepositoryName};
pub use reference::{ParseTagError, Reference, Tag};
