//! `/v2/<name>/manifests/<reference>`: end-3, end-7, end-9.

use axum::body::Body;
use axum::response::Response;
use http::{StatusCode, header};

use crate::oci::{ErrorCode, Reference, RepositoryName, Tag};
use crate::registry::{Error, ManifestFound, ManifestUpload};

use super::body::ClientBody;
use super::call::Call;
use super::conditions::{self, Reading};
use super::error::Failure;
use super::headers::{self, SetHeader};

/// Tags that one PUT may set; the specification asks for ten.
const TAGS_MAX: usize = 32;

/// Answers GET and HEAD. `Accept` is not weighed: what is stored is what is served, and clients that want something else
/// look at the type.
pub(super) async fn get(
    call: &Call<'_>,
    repository: &RepositoryName,
    reference: &Reference,
) -> Result<Response, Failure> {
    // A client that may have it already is not worth a read of the body.
    let unconditional =
        !call.headers.contains_key(header::IF_NONE_MATCH) && !call.headers.contains_key(header::IF_MATCH);
    let mut found = find(call, repository, reference, !call.is_head() && unconditional).await?;
    if conditions::reading(&call.headers, &found.digest)? == Reading::NotModified {
        return Ok(described(headers::empty(StatusCode::NOT_MODIFIED), &found));
    }
    if call.is_head() {
        return Ok(described(headers::empty(StatusCode::OK), &found));
    }
    if found.body.is_none() {
        found = find(call, repository, &Reference::Digest(found.digest), true).await?;
    }
    let mut response = headers::empty(StatusCode::OK);
    *response.body_mut() = Body::from(found.body.take().unwrap_or_default());
    Ok(described(response, &found))
}

async fn find(
    call: &Call<'_>,
    repository: &RepositoryName,
    reference: &Reference,
    want_body: bool,
) -> Result<ManifestFound, Failure> {
    match call.registry().manifest(&call.caller, repository, reference, want_body).await {
        Err(Error::Lost) if call.is_head() => Err(Error::ManifestUnknown.into()),
        found => Ok(found?),
    }
}

/// Stores a manifest and sets its tags, all or nothing.
pub(super) async fn put(
    call: &Call<'_>,
    repository: &RepositoryName,
    reference: &Reference,
    body: &ClientBody,
) -> Result<Response, Failure> {
    headers::refuse_encoding(&call.headers)?;
    let upload = ManifestUpload {
        reference: reference.clone(),
        content_type: headers::one(&call.headers, &header::CONTENT_TYPE)?.map(str::to_owned),
        tags: tags(call, reference)?,
        condition: conditions::writing(&call.headers)?,
        // Last: no byte is read of a request that is refused for its head.
        body: body.read(call.parts.manifest_bytes_max).await?,
    };
    let asked_tags = !upload.tags.is_empty();
    let pushed = call.registry().put_manifest(&call.caller, repository, upload).await?;
    let mut response = headers::empty(StatusCode::CREATED)
        .set(header::LOCATION, format!("/v2/{repository}/manifests/{}", pushed.digest))
        .set(headers::CONTENT_DIGEST, &pushed.digest)
        .set(header::ETAG, headers::etag(&pushed.digest))
        .set(headers::COPIES, pushed.copies)
        .set(headers::INDEX, pushed.index);
    if let Some(subject) = &pushed.subject {
        response = response.set(headers::SUBJECT, subject);
    }
    if asked_tags {
        let tags: Vec<&str> = pushed.tags.iter().map(Tag::as_str).collect();
        response = response.set(headers::TAG, tags.join(", "));
    }
    Ok(response)
}

/// Removes a tag, or a manifest with its tags; gone everywhere when this is answered (I5, P29).
pub(super) async fn delete(
    call: &Call<'_>,
    repository: &RepositoryName,
    reference: &Reference,
) -> Result<Response, Failure> {
    let condition = conditions::writing(&call.headers)?;
    let index = call.registry().delete_manifest(&call.caller, repository, reference, condition).await?;
    Ok(headers::empty(StatusCode::ACCEPTED).set(headers::INDEX, index))
}

fn tags(call: &Call<'_>, reference: &Reference) -> Result<Vec<Tag>, Failure> {
    let refused = |message| Failure::new(StatusCode::BAD_REQUEST, ErrorCode::ManifestInvalid, message);
    let mut tags: Vec<Tag> = Vec::new();
    for text in call.query.all("tag") {
        let tag = text.parse().map_err(|_| refused("invalid tag"))?;
        if !tags.contains(&tag) {
            tags.push(tag);
        }
        if tags.len() > TAGS_MAX {
            return Err(refused("too many tags"));
        }
    }
    if !tags.is_empty() && matches!(reference, Reference::Tag(_)) {
        return Err(Failure::unsupported("tag parameters need a digest in the path"));
    }
    Ok(tags)
}

fn described(response: Response, found: &ManifestFound) -> Response {
    response
        .set(header::CONTENT_TYPE, &found.media_type)
        .set(header::CONTENT_LENGTH, found.size)
        .set(headers::CONTENT_DIGEST, &found.digest)
        .set(header::ETAG, headers::etag(&found.digest))
        .set(headers::INDEX, found.index)
        .warn_if(found.stale)
}
