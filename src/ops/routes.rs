//! The paths of health, metrics and administration.

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};

use super::error::{Refusal, json};
use super::{Health, Parts, Stage, access, gc, leaving, members, openapi, policy, status, tokens, verify};

/// The routes of a node that is not whole yet: it lives, and is not ready.
pub fn starting(health: Health) -> Router {
    health_routes(health).fallback(|| async { Refusal::NOT_READY })
}

/// All routes.
///
/// `/livez` and `/readyz` are for everybody; `/metrics` and `/api/v1` for administrators where a login is set up.
pub fn router(parts: Parts) -> Router {
    let guarded = Router::new()
        .route("/metrics", get(metrics))
        .route("/api/v1/cluster/status", get(cluster_status))
        .route("/api/v1/cluster/nodes/{node}/losses", get(leaving::losses))
        .route("/api/v1/cluster/nodes/{node}/{verb}", post(members::node))
        .route("/api/v1/cluster/voters", post(members::voters))
        .route("/api/v1/cluster/leader", post(members::leader))
        .route("/api/v1/blobs/{digest}/verify", post(verify::blob))
        .route("/api/v1/gc/plan", get(gc::plan))
        .route("/api/v1/gc/run", get(gc::running).post(gc::run))
        .route("/api/v1/cluster/tokens", get(tokens::list).post(tokens::create))
        .route("/api/v1/cluster/tokens/{id}", delete(tokens::revoke))
        .route("/api/v1/cluster/policy", get(policy::show).put(policy::set))
        .route("/api/v1/openapi.json", get(description))
        .method_not_allowed_fallback(|| async { Refusal::METHOD })
        .with_state(parts.clone());
    health_routes(parts.health).merge(guarded).fallback(missing)
}

fn health_routes(health: Health) -> Router {
    Router::new()
        .route("/livez", get(|| async { plain(StatusCode::OK, "ok\n") }))
        .route("/readyz", get(ready))
        .with_state(health)
}

async fn ready(State(health): State<Health>) -> Response {
    match health.stage() {
        Stage::Serving => plain(StatusCode::OK, "ready\n"),
        Stage::Stopping => plain(StatusCode::SERVICE_UNAVAILABLE, "not ready: stopping\n"),
        Stage::Starting(waiting) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {waiting}\n")),
    }
}

async fn metrics(State(parts): State<Parts>, headers: HeaderMap) -> Result<Response, Refusal> {
    access::admit(&parts.auth, &headers).await?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], parts.metrics.encode()).into_response())
}

async fn cluster_status(State(parts): State<Parts>, headers: HeaderMap) -> Result<Response, Refusal> {
    access::admit(&parts.auth, &headers).await?;
    Ok(json(StatusCode::OK, &status::cluster(&parts).await))
}

async fn description(State(parts): State<Parts>, headers: HeaderMap) -> Result<Response, Refusal> {
    access::admit(&parts.auth, &headers).await?;
    Ok(json(StatusCode::OK, &openapi::description()))
}

async fn missing(uri: Uri) -> Response {
    if uri.path() == "/api" || uri.path().starts_with("/api/") {
        return Refusal::NOT_FOUND.into_response();
    }
    plain(StatusCode::NOT_FOUND, "not found\n")
}

fn plain(status: StatusCode, text: impl Into<String>) -> Response {
    let mut response = (status, text.into()).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}
