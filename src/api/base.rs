//! `GET /v2/`: end-1.

use axum::response::Response;
use http::StatusCode;

use super::headers;

/// Says that this is a registry.
pub(super) fn get() -> Response {
    headers::json(StatusCode::OK, headers::JSON, &serde_json::json!({}))
}
