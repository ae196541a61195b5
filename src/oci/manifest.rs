//! Manifests and indexes (skeleton: the owner of `oci` completes it).

use std::collections::BTreeMap;

use super::{Digest, MediaType};

/// What a manifest says, as far as a registry needs to know.
#[derive(Debug, Clone)]
pub struct Manifest {
    pub media_type: MediaType,
    pub config: Option<Descriptor>,
    pub layers: Vec<Descriptor>,
    /// Children of an index.
    pub manifests: Vec<Descriptor>,
    pub subject: Option<Descriptor>,
    /// `artifactType`, else the config's media type.
    pub artifact_type: Option<String>,
    pub annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone)]
pub struct Descriptor {
    pub media_type: MediaType,
    pub digest: Digest,
    pub size: u64,
}

impl Descriptor {
    /// Non-distributable (foreign) layers are not demanded.
    pub fn is_distributable(&self) -> bool {
        todo!()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("schema 1 manifests are not supported")]
    Unsupported,
    #[error("{0}")]
    Invalid(&'static str),
}

impl Manifest {
    /// Parses strictly (SECURITY.md 20–44): duplicate and case-variant keys, depth, counts, types.
    pub fn parse(body: &[u8], content_type: Option<&str>) -> Result<Self, ManifestError> {
        let _ = (body, content_type);
        todo!()
    }
}
