//! Answers that are errors, as JSON.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};

/// An error answer of the administration interface.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) message: &'static str,
}

impl Refusal {
    pub(super) const NOT_FOUND: Self =
        Self { status: StatusCode::NOT_FOUND, code: "not_found", message: "there is no such resource" };
    pub(super) const METHOD: Self = Self {
        status: StatusCode::METHOD_NOT_ALLOWED,
        code: "method_not_allowed",
        message: "the resource does not take this method",
    };
    pub(super) const BODY: Self = Self {
        status: StatusCode::BAD_REQUEST,
        code: "invalid_body",
        message: "the body is not the JSON that is expected",
    };
    pub(super) const QUERY: Self = Self {
        status: StatusCode::BAD_REQUEST,
        code: "bad_query",
        message: "the query parameters are not as the description at /api/v1/openapi.json has them",
    };
    pub(super) const NO_QUORUM: Self = Self {
        status: StatusCode::SERVICE_UNAVAILABLE,
        code: "no_quorum",
        message: "no leader with a quorum took it in time: it may or may not take effect; look, and try again",
    };
    pub(super) const FEATURE_LEVEL: Self = Self {
        status: StatusCode::CONFLICT,
        code: "feature_level",
        message: "not every node knows this yet: upgrade all of them first",
    };
    pub(super) const NOT_READY: Self = Self {
        status: StatusCode::SERVICE_UNAVAILABLE,
        code: "not_ready",
        message: "the node is starting; try again soon",
    };
    pub(super) const UNAUTHENTICATED: Self =
        Self { status: StatusCode::UNAUTHORIZED, code: "unauthenticated", message: "log in" };
    pub(super) const DENIED: Self =
        Self { status: StatusCode::FORBIDDEN, code: "denied", message: "this login may not do that" };
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = serde_json::json!({ "error": { "code": self.code, "message": self.message } });
        let mut response = json(self.status, &body);
        let headers = response.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"rafthold\""));
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// A JSON answer.
pub(super) fn json(status: StatusCode, body: &serde_json::Value) -> Response {
    let mut response = Response::new(Body::from(format!("{body}\n")));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
