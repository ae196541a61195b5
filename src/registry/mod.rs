//! Performs each thing a client can ask of a registry, independent of HTTP.
//!
//! Owns no state of its own: what exists is agreed in `meta`, bytes are `replica`'s. Invariants kept here: bytes are
//! synced on enough nodes *before* the command that makes them count is proposed (I1, I2, P14, P18); what is wrong with a
//! request is said before anything is proposed (I11); a miss is reported as a miss only by a fresh view (P5); a thing that
//! the caller may not see looks like a thing that is not there (I10). Knows no status code, header, JSON or channel, and
//! retries nothing but what one call can still finish in time. Start reading at `push.rs` and `pull.rs`; one file per verb.

mod answer;
mod catalog;
mod config;
mod delete;
mod error;
mod lease;
mod manifests;
mod mount;
mod pull;
mod push;
mod referrers;
mod request;
mod session;
mod tags;
#[cfg(test)]
mod tests;
mod uploads;
mod view;

pub use answer::{BlobFound, BlobPushed, ManifestFound, ManifestPushed, Page, UploadProgress};
pub use config::Config;
pub use error::{Error, Result};
pub use request::{Caller, Chunk, ManifestUpload};

// What a door names when it asks and answers, so that it need not see the modules they come from.
pub use crate::meta::command::Condition;
pub use crate::meta::{Consistency, Outcome, Referrer};
pub use crate::replica::Body;

use std::sync::Arc;

use crate::blob::BlobStore;
use crate::env::Env;
use crate::meta::Meta;
use crate::replica::Replicas;

/// What the use cases stand on.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The source of random ids, and of tasks that outlive a call.
    pub env: Env,
    /// The agreed state.
    pub meta: Meta,
    /// Copies of bytes, here and elsewhere.
    pub replicas: Replicas,
    /// Bytes that lie here: asked first.
    pub blobs: BlobStore,
}

/// The use cases; cheap to clone.
#[derive(Clone, Debug)]
pub struct Registry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Config,
    env: Env,
    meta: Meta,
    replicas: Replicas,
    blobs: BlobStore,
    leases: lease::Leases,
}

impl Registry {
    /// Wires the use cases to the parts of this node.
    #[must_use]
    pub fn new(config: Config, parts: Parts) -> Self {
        let Parts { env, meta, replicas, blobs } = parts;
        Self(Arc::new(Inner { config, env, meta, replicas, blobs, leases: lease::Leases::default() }))
    }
}
