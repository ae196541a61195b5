//! Shows health, status and metrics and carries out operators' commands.
//!
//! Owns whether the node is ready ([`Health`]). Invariants: `/livez` and `/readyz` need no login, everything else passes
//! `auth`; the cluster's status is answered within two seconds, quorum or not, and what is not known is null, never a guess.
//! Does not decide anything: it reads what other modules say of themselves. Start reading at [`router`].

mod access;
pub mod client;
mod error;
mod gc;
mod health;
mod leaving;
mod members;
mod openapi;
mod openapi_gc;
mod openapi_members;
mod policy;
mod report;
mod routes;
mod service;
mod status;
mod tokens;
mod verify;
mod wire;

use tokio::time::Instant;

use crate::auth::Auth;
use crate::blob::BlobStore;
use crate::env::Seed;
use crate::gossip::Gossip;
use crate::meta::Meta;
use crate::rpc::{Credentials, Peers};
use crate::telemetry::Metrics;
use crate::upkeep::Upkeep;

pub use health::{Health, Stage};
pub use report::Report;
pub use routes::{router, starting};
pub use service::AdminService;

/// What there is to show.
#[derive(Clone)]
pub struct Parts {
    /// Whether the node is ready.
    pub health: Health,
    /// The metrics.
    pub metrics: Metrics,
    /// Who may see more than that.
    pub auth: Auth,
    /// The agreement.
    pub meta: Meta,
    /// Who is alive.
    pub gossip: Gossip,
    /// The other nodes.
    pub peers: Peers,
    /// Who this node is, for tokens.
    pub credentials: Credentials,
    /// Chance, for tokens.
    pub seed: Seed,
    /// This node's bytes.
    pub blobs: BlobStore,
    /// This node's bytes compared with what should be.
    pub upkeep: Upkeep,
    /// Copies of each blob that this node is configured to want.
    pub copies_configured: u32,
    /// Copies that a push waits for.
    pub write_copies: usize,
    /// When the node was started.
    pub started: Instant,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("health", &self.health).finish_non_exhaustive()
    }
}
