//! `/v2/<name>/blobs/<digest>`: end-2, end-10.

use axum::body::Body;
use axum::response::Response;
use http::{StatusCode, header};

use crate::oci::{ByteRange, ByteRangeError, ByteRanges, Digest, ErrorCode, MediaType, RepositoryName};
use crate::registry::{BlobFound, Error};

use super::call::Call;
use super::conditions::{self, Reading};
use super::error::Failure;
use super::headers::{self, SetHeader};
use super::range::{Bytestream, ExactBody, Multipart};

/// Answers GET and HEAD: the bytes, or what is known of them.
pub(super) async fn get(call: &Call<'_>, repository: &RepositoryName, digest: &Digest) -> Result<Response, Failure> {
    let found = match call.registry().blob(&call.caller, repository, digest).await {
        // Lost for good: a client that is told so pushes it again, which heals (P19).
        Err(Error::Lost) if call.is_head() => return Err(Error::BlobUnknown.into()),
        found => found?,
    };
    let whole = ByteRange { start: 0, end: found.size };
    if conditions::reading(&call.headers, &found.digest)? == Reading::NotModified {
        return Ok(described(headers::empty(StatusCode::NOT_MODIFIED), &found, whole.length()));
    }
    if call.is_head() {
        return Ok(described(headers::empty(StatusCode::OK), &found, whole.length()));
    }
    match asked_ranges(call, &found)? {
        ByteRanges::Whole => {
            let body = open(call, &found, whole).await?;
            Ok(described(streamed(call, StatusCode::OK, body, whole.length()), &found, whole.length()))
        }
        ByteRanges::One(range) => {
            let body = open(call, &found, range).await?;
            let response = streamed(call, StatusCode::PARTIAL_CONTENT, body, range.length());
            let content_range = format!("bytes {}-{}/{}", range.start, range.end - 1, found.size);
            Ok(described(response, &found, range.length()).set(header::CONTENT_RANGE, content_range))
        }
        ByteRanges::Several(ranges) => several(call, &found, &ranges).await,
    }
}

/// Removes a blob from a repository; it is gone everywhere when this is answered (I5).
pub(super) async fn delete(call: &Call<'_>, repository: &RepositoryName, digest: &Digest) -> Result<Response, Failure> {
    let index = call.registry().delete_blob(&call.caller, repository, digest).await?;
    Ok(headers::empty(StatusCode::ACCEPTED).set(headers::INDEX, index).set(headers::CONTENT_DIGEST, digest))
}

fn asked_ranges(call: &Call<'_>, found: &BlobFound) -> Result<ByteRanges, Failure> {
    let Some(text) = headers::one(&call.headers, &header::RANGE)? else { return Ok(ByteRanges::Whole) };
    if !conditions::range_counts(&call.headers, &found.digest) {
        return Ok(ByteRanges::Whole);
    }
    ByteRanges::parse(text, found.size).map_err(|error| {
        let status = match error {
            ByteRangeError::Malformed => StatusCode::BAD_REQUEST,
            ByteRangeError::NotSatisfiable => StatusCode::RANGE_NOT_SATISFIABLE,
        };
        let failure = Failure::new(status, ErrorCode::Unsupported, &error.to_string());
        failure.header(header::CONTENT_RANGE, format!("bytes */{}", found.size))
    })
}

async fn several(call: &Call<'_>, found: &BlobFound, ranges: &[ByteRange]) -> Result<Response, Failure> {
    let boundary = format!("{:032x}", call.parts.seed.draw_u128());
    let multipart = Multipart::new(&boundary, MediaType::OCTET_STREAM, found.size, ranges);
    let first = open(call, found, ranges[0]).await?;
    let length = multipart.length();
    let body = multipart.stream(call.registry().clone(), found.clone(), first);
    let response = described(streamed(call, StatusCode::PARTIAL_CONTENT, body, length), found, length);
    Ok(response.set(header::CONTENT_TYPE, format!("multipart/byteranges; boundary={boundary}")))
}

/// Opens the bytes of a range; errors come here, before anything is answered.
async fn open(call: &Call<'_>, found: &BlobFound, range: ByteRange) -> Result<Bytestream, Failure> {
    Ok(call.registry().read_blob(found, range.start, range.end).await?)
}

fn streamed(call: &Call<'_>, status: StatusCode, bytes: Bytestream, length: u64) -> Response {
    let mut response = headers::empty(status);
    *response.body_mut() = Body::new(ExactBody::new(bytes, length, call.parts.metrics.downloads_cut.clone()));
    response
}

fn described(response: Response, found: &BlobFound, length: u64) -> Response {
    response
        .set(header::CONTENT_TYPE, MediaType::OCTET_STREAM)
        .set(header::CONTENT_LENGTH, length)
        .set(headers::CONTENT_DIGEST, &found.digest)
        .set(header::ETAG, headers::etag(&found.digest))
        .set(header::ACCEPT_RANGES, "bytes")
        .warn_if(found.stale)
}
