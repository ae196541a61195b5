//! What a client is told when it does not get what it asked for.

use std::fmt;

use axum::response::Response;
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use crate::oci::{Digest, ErrorCode, ManifestError};
use crate::registry::{Error, Outcome};

use super::headers;
use super::route::RouteError;

/// Missing references that one answer names.
const NAMED_MAX: usize = 100;

/// A refusal or failure on its way to the client.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) status: StatusCode,
    errors: Vec<Item>,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// For the log only.
    cause: Option<Box<dyn std::error::Error + Send + Sync>>,
}

#[derive(Debug)]
struct Item {
    code: ErrorCode,
    message: String,
    detail: Option<Value>,
}

impl Failure {
    pub(super) fn new(status: StatusCode, code: ErrorCode, message: &str) -> Self {
        let item = Item { code, message: message.to_owned(), detail: None };
        Self { status, errors: vec![item], headers: Vec::new(), cause: None }
    }

    /// A 400 for a request that no part of the API knows what to do with.
    pub(super) fn unsupported(message: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorCode::Unsupported, message)
    }

    pub(super) fn detail(mut self, detail: Value) -> Self {
        for item in &mut self.errors {
            item.detail = Some(detail.clone());
        }
        self
    }

    /// Adds a header; a value that cannot stand in one is left out.
    pub(super) fn header(mut self, name: HeaderName, value: impl fmt::Display) -> Self {
        if let Ok(value) = HeaderValue::try_from(value.to_string()) {
            self.headers.push((name, value));
        }
        self
    }

    /// 503: nothing was changed unless `outcome` says so (P4), and the same request may succeed later.
    fn unavailable(message: &str, retry_after_seconds: u32, outcome: Outcome) -> Self {
        let outcome = match outcome {
            Outcome::None => "none",
            Outcome::Unknown => "unknown",
        };
        Self::new(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable, message)
            .header(header::RETRY_AFTER, retry_after_seconds)
            .header(headers::OUTCOME, outcome)
    }

    /// 500, with the cause for the log.
    pub(super) fn internal(cause: Box<dyn std::error::Error + Send + Sync>) -> Self {
        let mut failure = Self::panicked();
        failure.cause = Some(cause);
        failure
    }

    /// 500 without a cause: it has been logged.
    pub(super) fn panicked() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Unknown, "internal error")
    }

    /// 401: who asks is not known, or not known well enough.
    pub(super) fn unauthenticated() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, "authentication required")
            .header(header::WWW_AUTHENTICATE, "Basic realm=\"rafthold\"")
    }

    /// 403.
    pub(super) fn denied() -> Self {
        Self::new(StatusCode::FORBIDDEN, ErrorCode::Denied, "requested access to the resource is denied")
    }

    /// 405: the thing is there, but not for this method.
    pub(super) fn method(allow: &'static str) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Unsupported, "the method is not supported here")
            .header(header::ALLOW, allow)
    }

    /// The path names nothing; `writing` tells a bad tag that is to be made from one that is looked for.
    pub(super) fn route(error: RouteError, writing: bool) -> Self {
        let bad = |code, message| Self::new(StatusCode::BAD_REQUEST, code, message);
        let absent = |code, message| Self::new(StatusCode::NOT_FOUND, code, message);
        match error {
            RouteError::Unknown => absent(ErrorCode::Unsupported, "no such path"),
            RouteError::Encoding => bad(ErrorCode::NameInvalid, "path is not percent-encoded as it should be"),
            RouteError::Name => bad(ErrorCode::NameInvalid, "invalid repository name"),
            RouteError::Digest => bad(ErrorCode::DigestInvalid, "digest is not a sha256 or sha512 in lower-case hex"),
            RouteError::Tag if writing => bad(ErrorCode::ManifestInvalid, "invalid tag"),
            RouteError::Tag => absent(ErrorCode::ManifestUnknown, "manifest is not known"),
            RouteError::Upload => absent(ErrorCode::BlobUploadUnknown, "upload session is not known"),
        }
    }

    /// Logs what only the operator should read, and prints the rest.
    pub(super) fn into_response(self, request: &str) -> Response {
        if let Some(cause) = &self.cause {
            let error: &(dyn std::error::Error + 'static) = cause.as_ref();
            tracing::error!(request, error, "request failed");
        }
        let told = self.status.is_server_error();
        let errors: Vec<Value> = self
            .errors
            .into_iter()
            .map(|item| {
                let mut error = json!({ "code": item.code.as_str(), "message": item.message });
                if let Some(detail) = item.detail {
                    error["detail"] = detail;
                } else if told {
                    error["detail"] = json!({ "request": request });
                }
                error
            })
            .collect();
        let mut response = headers::json(self.status, headers::JSON, &json!({ "errors": errors }));
        for (name, value) in self.headers {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let told = error.to_string();
        let bad = |code| Self::new(StatusCode::BAD_REQUEST, code, &told);
        let absent = |code| Self::new(StatusCode::NOT_FOUND, code, &told);
        let later = |seconds| Self::unavailable(&told, seconds, Outcome::None);
        match error {
            Error::NameUnknown => absent(ErrorCode::NameUnknown),
            Error::ManifestUnknown => absent(ErrorCode::ManifestUnknown),
            Error::BlobUnknown => absent(ErrorCode::BlobUnknown),
            Error::UploadUnknown => absent(ErrorCode::BlobUploadUnknown),
            Error::RangeInvalid { length } => {
                Self::new(StatusCode::RANGE_NOT_SATISFIABLE, ErrorCode::BlobUploadInvalid, &told)
                    .header(header::RANGE, headers::upload_range(length))
            }
            Error::DigestMismatch { expected, actual } => bad(ErrorCode::DigestInvalid)
                .detail(json!({ "expected": expected.to_string(), "actual": actual.to_string() })),
            Error::SizeInvalid { .. } => bad(ErrorCode::SizeInvalid),
            Error::ManifestInvalid(ManifestError::Unsupported) => bad(ErrorCode::Unsupported),
            Error::ManifestInvalid(ManifestError::Invalid(_)) => bad(ErrorCode::ManifestInvalid),
            Error::ManifestReferencesUnknown { digests } => references_unknown(&digests),
            Error::ConditionFailed { current } => condition_failed(current.as_ref(), &told),
            Error::Referenced { by } => {
                Self::new(StatusCode::CONFLICT, ErrorCode::Denied, &told).detail(json!({ "digest": by.to_string() }))
            }
            Error::TooManyUploads { .. } => Self::new(StatusCode::TOO_MANY_REQUESTS, ErrorCode::TooManyRequests, &told)
                .header(header::RETRY_AFTER, 60),
            Error::ChunkTooSmall { min } => bad(ErrorCode::SizeInvalid).header(headers::CHUNK_MIN_LENGTH, min),
            Error::ManifestTooLarge { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::ManifestInvalid, &told)
            }
            Error::BodyBroken => bad(ErrorCode::BlobUploadInvalid),
            Error::NoQuorum { outcome } => Self::unavailable(&told, 1, outcome),
            Error::NotOpen => later(2),
            Error::Busy => later(1),
            Error::Unavailable | Error::TooFewCopies { .. } => later(5),
            Error::Lost | Error::NoSpace => later(30),
            Error::Internal { source } => Self::internal(source),
        }
    }
}

fn references_unknown(digests: &[Digest]) -> Failure {
    let mut failure = Failure::new(
        StatusCode::BAD_REQUEST,
        ErrorCode::ManifestBlobUnknown,
        "manifest references a manifest or blob unknown to registry",
    );
    if !digests.is_empty() {
        failure.errors = digests
            .iter()
            .take(NAMED_MAX)
            .map(|digest| Item {
                code: ErrorCode::ManifestBlobUnknown,
                message: format!("manifest references a manifest or blob unknown to registry: {digest}"),
                detail: Some(json!({ "digest": digest.to_string() })),
            })
            .collect();
    }
    failure
}

fn condition_failed(current: Option<&Digest>, told: &str) -> Failure {
    let failure = Failure::new(StatusCode::PRECONDITION_FAILED, ErrorCode::Denied, told)
        .detail(json!({ "current": current.map(ToString::to_string) }));
    match current {
        Some(digest) => failure.header(header::ETAG, headers::etag(digest)),
        None => failure,
    }
}

#[cfg(test)]
#[path = "error_tests.rs"]
mod tests;
