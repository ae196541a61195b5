//! Speaks the OCI Distribution API over HTTP.
//!
//! Owns nothing but a count of panics. Invariants: no route is answered before [`Auth::decide`] allowed it; no body is read
//! before the request's head has been judged; a body that says how long it is has that length or is cut, never completed;
//! whatever a client sends, the answer is a status with a JSON error body of the spec's codes, and no inner text. Knows no
//! listener, no TLS and no timeouts (the door in front has them), nor where bytes or agreed state lie: it translates to the
//! use cases of `registry` and back. Start reading at `dispatch.rs`, then `route.rs`; one file per noun.

mod base;
mod blobs;
mod body;
mod call;
mod catalog;
mod conditions;
mod dispatch;
mod error;
mod headers;
mod manifests;
mod metrics;
mod query;
mod range;
mod referrers;
mod route;
mod tags;
mod uploads;

pub use metrics::Metrics;

use std::sync::Arc;

use axum::Router;
use axum::routing::any;

use crate::auth::Auth;
use crate::env::Seed;
use crate::registry::Registry;

/// What the HTTP door stands on.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The use cases.
    pub registry: Registry,
    /// Who may do what.
    pub auth: Auth,
    /// The source of request ids and multipart boundaries.
    pub seed: Seed,
    /// The largest manifest that is read, in bytes: the same as the registry's own.
    pub manifest_bytes_max: usize,
    /// What is counted here.
    pub metrics: Metrics,
}

/// Builds the routes of `/v2` and everything below; other paths are left to whoever merges this.
pub fn router(parts: Parts) -> Router {
    // One handler for all: names hold slashes, and words of the API, so only `route` can tell paths apart.
    Router::new()
        .route("/v2", any(dispatch::answer))
        .route("/v2/", any(dispatch::answer))
        .route("/v2/{*rest}", any(dispatch::answer))
        .with_state(Arc::new(parts))
}

#[cfg(test)]
mod wire_tests;
