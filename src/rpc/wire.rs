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
