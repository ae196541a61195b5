//! The wire contract as types: what `proto/` compiles to.

/// Messages, clients and servers generated from `proto/rafthold/v1`; named only in `wire.rs`, `service.rs` and
/// `client.rs` of each module.
#[allow(
    missing_docs,
    unreachable_pub,
    let_underscore_drop,
    clippy::all,
    clippy::pedantic,
    clippy::doc_markdown,
    clippy::missing_errors_doc,
    clippy::too_many_lines,
    clippy::allow_attributes_without_reason,
    clippy::wildcard_imports,
    reason = "generated; the comments are in the .proto files"
)]
pub mod proto {
    tonic::include_proto!("rafthold.v1");
}

impl From<&crate::oci::Digest> for proto::Digest {
    fn from(digest: &crate::oci::Digest) -> Self {
        Self { algorithm: digest.algorithm().as_str().to_owned(), hash: bytes::Bytes::copy_from_slice(digest.hash()) }
    }
}

/// A digest on the wire names an unknown algorithm or has the wrong length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("digest on the wire is none that this node knows")]
pub struct BadDigest;

impl TryFrom<&proto::Digest> for crate::oci::Digest {
    type Error = BadDigest;

    fn try_from(digest: &proto::Digest) -> Result<Self, BadDigest> {
        let algorithm = digest.algorithm.parse().map_err(|_| BadDigest)?;
        Self::from_hash(algorithm, &digest.hash).ok_or(BadDigest)
    }
}
