//! Headers and plain bodies.

use std::fmt;

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;

use crate::oci::{Digest, ErrorCode, RepositoryName};
use crate::registry::Consistency;

use super::error::Failure;
use super::query::encode;

pub(super) const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
pub(super) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
pub(super) const UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");
pub(super) const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
pub(super) const TAG: HeaderName = HeaderName::from_static("oci-tag");
pub(super) const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");
pub(super) const CHUNK_MIN_LENGTH: HeaderName = HeaderName::from_static("oci-chunk-min-length");
/// Nodes that hold what was pushed, synced and verified.
pub(super) const COPIES: HeaderName = HeaderName::from_static("rafthold-copies");
/// The log index of a change, or one that a read has seen.
pub(super) const INDEX: HeaderName = HeaderName::from_static("rafthold-index");
/// Asks that a read has seen a log index.
pub(super) const WAIT_FOR: HeaderName = HeaderName::from_static("rafthold-wait-for");
/// Asks how fresh a read must be.
pub(super) const CONSISTENCY: HeaderName = HeaderName::from_static("rafthold-consistency");
/// Says of a 503 whether the change may still take effect.
pub(super) const OUTCOME: HeaderName = HeaderName::from_static("rafthold-outcome");
/// Identifies a request in this node's log.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("rafthold-request-id");

pub(super) const JSON: &str = "application/json";

/// Builds an answer without a body.
pub(super) fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// Builds an answer with a JSON body.
pub(super) fn json(status: StatusCode, content_type: &'static str, value: &impl Serialize) -> Response {
    let body = serde_json::to_vec(value).expect("values made of texts and numbers are JSON");
    let length = body.len();
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    response
}

/// Sets headers of an answer.
pub(super) trait SetHeader: Sized {
    /// Sets a header; a value that cannot stand in one is left out.
    #[must_use]
    fn set(self, name: HeaderName, value: impl fmt::Display) -> Self;

    /// Says that the answer comes from a node out of touch with the quorum.
    #[must_use]
    fn warn_if(self, stale: bool) -> Self;
}

impl SetHeader for Response {
    fn set(mut self, name: HeaderName, value: impl fmt::Display) -> Self {
        if let Ok(value) = HeaderValue::try_from(value.to_string()) {
            self.headers_mut().insert(name, value);
        }
        self
    }

    fn warn_if(self, stale: bool) -> Self {
        if stale { self.set(header::WARNING, "299 - \"no quorum: this answer may be out of date\"") } else { self }
    }
}

/// Returns the entity tag of content: its digest, quoted.
pub(super) fn etag(digest: &Digest) -> String {
    format!("\"{digest}\"")
}

/// Returns the `Range` of a session of `length` bytes; as its end is inclusive, none and one byte look the same.
pub(super) fn upload_range(length: u64) -> String {
    format!("0-{}", length.saturating_sub(1))
}

/// Returns the path of a blob.
pub(super) fn blob_path(repository: &RepositoryName, digest: &Digest) -> String {
    format!("/v2/{repository}/blobs/{digest}")
}

/// Returns the `Link` to the next page; `parameters` are encoded here.
pub(super) fn next_link(path: &str, parameters: &[(&str, &str)]) -> String {
    let pairs: Vec<String> = parameters.iter().map(|(key, value)| format!("{key}={}", encode(value))).collect();
    format!("<{path}?{}>; rel=\"next\"", pairs.join("&"))
}

/// Returns the text of a header that may be given once.
///
/// # Errors
///
/// 400 if it is given more than once or is not ASCII.
pub(super) fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Failure> {
    let mut values = headers.get_all(name).iter();
    let refused = || Failure::unsupported(&format!("header {name} is not a single line of ASCII"));
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| refused()),
        (Some(_), Some(_)) => Err(refused()),
    }
}

/// Returns the freshness that a request asks for.
pub(super) fn consistency(headers: &HeaderMap) -> Result<Option<Consistency>, Failure> {
    match one(headers, &CONSISTENCY)? {
        None => Ok(None),
        Some("linearizable") => Ok(Some(Consistency::Linearizable)),
        Some("bounded") => Ok(Some(Consistency::Bounded)),
        Some("local") => Ok(Some(Consistency::Local)),
        Some(_) => Err(Failure::unsupported("Rafthold-Consistency is not linearizable, bounded or local")),
    }
}

/// Returns the log index that a request wants to have been seen.
pub(super) fn wait_for(headers: &HeaderMap) -> Result<Option<u64>, Failure> {
    let refused = || Failure::unsupported("Rafthold-Wait-For is not a log index");
    let Some(text) = one(headers, &WAIT_FOR)? else { return Ok(None) };
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(refused());
    }
    text.parse().map(Some).map_err(|_| refused())
}

/// Refuses encoded bodies: what is stored is what was sent, and nothing is ever decompressed.
pub(super) fn refuse_encoding(headers: &HeaderMap) -> Result<(), Failure> {
    let plain = |value: &HeaderValue| value.as_bytes().is_empty() || value.as_bytes().eq_ignore_ascii_case(b"identity");
    if headers.get_all(header::CONTENT_ENCODING).iter().all(plain) {
        return Ok(());
    }
    let message = "bodies with a Content-Encoding are not supported";
    Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, ErrorCode::Unsupported, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn headers(lines: &[(HeaderName, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn the_range_of_a_session_ends_with_its_last_byte() {
        assert_eq!(upload_range(0), "0-0");
        assert_eq!(upload_range(1), "0-0");
        assert_eq!(upload_range(100), "0-99");
    }

    #[test]
    fn links_are_encoded() {
        let link = next_link("/v2/a/tags/list", &[("n", "5"), ("last", "a\"> b&c")]);
        assert_eq!(link, "</v2/a/tags/list?n=5&last=a%22%3E%20b%26c>; rel=\"next\"");
    }

    #[test]
    fn what_a_read_asks_for_is_read_strictly() {
        assert_eq!(consistency(&headers(&[])).ok(), Some(None));
        assert_eq!(consistency(&headers(&[(CONSISTENCY, "local")])).ok(), Some(Some(Consistency::Local)));
        assert!(consistency(&headers(&[(CONSISTENCY, "Local")])).is_err());
        assert!(consistency(&headers(&[(CONSISTENCY, "local"), (CONSISTENCY, "local")])).is_err());
        assert_eq!(wait_for(&headers(&[(WAIT_FOR, "42")])).ok(), Some(Some(42)));
        for text in ["", "+1", "-1", "x", "99999999999999999999999"] {
            assert!(wait_for(&headers(&[(WAIT_FOR, text)])).is_err(), "{text}");
        }
    }

    #[test]
    fn encoded_bodies_are_refused() {
        assert!(refuse_encoding(&headers(&[])).is_ok());
        assert!(refuse_encoding(&headers(&[(header::CONTENT_ENCODING, "Identity")])).is_ok());
        for text in ["gzip", "deflate", "br", "identity, gzip"] {
            assert!(refuse_encoding(&headers(&[(header::CONTENT_ENCODING, text)])).is_err(), "{text}");
        }
    }
}
