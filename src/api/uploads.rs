//! `/v2/<name>/blobs/uploads/` and the sessions below it: end-4, end-5, end-6, end-11, end-13, end-14.
//!
//! A `Location` carries, as `offset`, the length at which it was issued: a chunk without a `Content-Range` starts there
//! (P28), so that a client that repeats itself after a broken connection cannot append the same bytes twice.

use axum::response::Response;
use http::{HeaderName, StatusCode, header};

use crate::auth::{Action, Decision};
use crate::oci::{Algorithm, ContentRange, Digest, ErrorCode, RepositoryName, UploadId};
use crate::registry::{BlobPushed, Chunk, Error, UploadProgress};

use super::body::ClientBody;
use super::call::Call;
use super::error::Failure;
use super::headers::{self, SetHeader};

/// Begins a push: mounts a blob, takes a whole one, or opens a session.
pub(super) async fn start(
    call: &Call<'_>,
    repository: &RepositoryName,
    body: &ClientBody,
) -> Result<Response, Failure> {
    headers::refuse_encoding(&call.headers)?;
    let algorithm = match call.query.one("digest-algorithm")? {
        Some(text) => Some(text.parse::<Algorithm>().map_err(|error| digest_invalid(&error.to_string()))?),
        None => None,
    };
    let mut meant = None;
    if let Some(digest) = call.query.digest("mount")? {
        if let Some(pushed) = mount(call, repository, &digest).await? {
            return Ok(created(repository, &pushed));
        }
        meant = Some(digest.algorithm());
    } else if let Some(digest) = call.query.digest("digest")? {
        let pushed = call.registry().push_blob(&call.caller, repository, digest, chunk(call, body)?).await?;
        return Ok(created(repository, &pushed));
    }
    let algorithm = algorithm.or(meant).unwrap_or_default();
    let progress = call.registry().start_upload(&call.caller, repository, algorithm).await?;
    Ok(standing(StatusCode::ACCEPTED, repository, progress))
}

/// Mounts a blob of another repository; `None` if that cannot be or may not be: both look the same (I10).
async fn mount(call: &Call<'_>, repository: &RepositoryName, digest: &Digest) -> Result<Option<BlobPushed>, Failure> {
    let from = match call.query.one("from")?.filter(|text| !text.is_empty()).map(str::parse::<RepositoryName>) {
        None => None,
        Some(Ok(from)) => Some(from),
        // No repository is called so.
        Some(Err(_)) => return Ok(None),
    };
    let readable = |name: &RepositoryName| {
        call.parts.auth.decide(&call.caller.principal, Action::Pull, Some(name)) == Decision::Allowed
    };
    match call.registry().mount(&call.caller, repository, digest, from.as_ref(), &readable).await {
        Ok(pushed) => Ok(pushed),
        Err(
            Error::NameUnknown | Error::BlobUnknown | Error::Unavailable | Error::Lost | Error::TooFewCopies { .. },
        ) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Says where a session stands.
pub(super) async fn status(call: &Call<'_>, repository: &RepositoryName, id: UploadId) -> Result<Response, Failure> {
    let progress = call.registry().upload(&call.caller, repository, id).await?;
    Ok(standing(StatusCode::NO_CONTENT, repository, progress))
}

/// Appends a chunk.
pub(super) async fn append(
    call: &Call<'_>,
    repository: &RepositoryName,
    id: UploadId,
    body: &ClientBody,
) -> Result<Response, Failure> {
    headers::refuse_encoding(&call.headers)?;
    let chunk = chunk(call, body)?;
    let progress = call.registry().append(&call.caller, repository, id, chunk).await;
    let progress = progress.map_err(|error| refused(error, repository, id))?;
    Ok(standing(StatusCode::ACCEPTED, repository, progress))
}

/// Appends the last chunk, if there is one, and closes the session.
pub(super) async fn commit(
    call: &Call<'_>,
    repository: &RepositoryName,
    id: UploadId,
    body: &ClientBody,
) -> Result<Response, Failure> {
    headers::refuse_encoding(&call.headers)?;
    let digest = call.query.digest("digest")?.ok_or_else(|| digest_invalid("query parameter digest is missing"))?;
    let last = chunk(call, body)?;
    let pushed = call.registry().commit(&call.caller, repository, id, digest, last).await;
    Ok(created(repository, &pushed.map_err(|error| refused(error, repository, id))?))
}

/// Cancels a session.
pub(super) async fn cancel(call: &Call<'_>, repository: &RepositoryName, id: UploadId) -> Result<Response, Failure> {
    call.registry().cancel(&call.caller, repository, id).await?;
    Ok(headers::empty(StatusCode::NO_CONTENT))
}

/// Reads where a chunk starts and how long it is, as far as the client says.
fn chunk(call: &Call<'_>, body: &ClientBody) -> Result<Chunk, Failure> {
    let invalid = |message| Failure::new(StatusCode::BAD_REQUEST, ErrorCode::BlobUploadInvalid, message);
    let issued = match call.query.one("offset")? {
        None => None,
        Some(text) if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(text.parse::<u64>().map_err(|_| invalid("the upload's location was altered"))?)
        }
        Some(_) => return Err(invalid("the upload's location was altered")),
    };
    let range = match headers::one(&call.headers, &CONTENT_RANGE)? {
        None => None,
        Some(text) => Some(text.parse::<ContentRange>().map_err(|_| invalid("Content-Range is not <first>-<last>"))?),
    };
    let length = body.length();
    if let (Some(range), Some(length)) = (range, length)
        && range.length() != length
    {
        let message = "Content-Range and Content-Length differ";
        return Err(Failure::new(StatusCode::BAD_REQUEST, ErrorCode::SizeInvalid, message));
    }
    Ok(Chunk {
        offset: range.map(ContentRange::start).or(issued),
        length: length.or(range.map(ContentRange::length)),
        body: body.stream(),
    })
}

const CONTENT_RANGE: HeaderName = header::CONTENT_RANGE;

/// Names the session in an answer that says it stands elsewhere: the client goes on from there.
fn refused(error: Error, repository: &RepositoryName, id: UploadId) -> Failure {
    match error {
        Error::RangeInvalid { length } => Failure::from(error)
            .header(header::LOCATION, location(repository, id, length))
            .header(headers::UPLOAD_UUID, id),
        error => error.into(),
    }
}

fn location(repository: &RepositoryName, id: UploadId, length: u64) -> String {
    format!("/v2/{repository}/blobs/uploads/{id}?offset={length}")
}

fn standing(status: StatusCode, repository: &RepositoryName, progress: UploadProgress) -> Response {
    headers::empty(status)
        .set(header::LOCATION, location(repository, progress.id, progress.length))
        .set(header::RANGE, headers::upload_range(progress.length))
        .set(headers::UPLOAD_UUID, progress.id)
        .set(headers::INDEX, progress.index)
}

fn created(repository: &RepositoryName, pushed: &BlobPushed) -> Response {
    headers::empty(StatusCode::CREATED)
        .set(header::LOCATION, headers::blob_path(repository, &pushed.digest))
        .set(headers::CONTENT_DIGEST, &pushed.digest)
        .set(headers::COPIES, pushed.copies)
        .set(headers::INDEX, pushed.index)
}

fn digest_invalid(message: &str) -> Failure {
    Failure::new(StatusCode::BAD_REQUEST, ErrorCode::DigestInvalid, message)
}
