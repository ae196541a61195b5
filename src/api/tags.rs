//! `GET /v2/<name>/tags/list`: end-8.

use axum::response::Response;
use http::{StatusCode, header};
use serde_json::json;

use crate::oci::{RepositoryName, Tag};

use super::call::Call;
use super::error::Failure;
use super::headers::{self, SetHeader, next_link};

/// Lists the tags of a repository in byte order, a page at a time.
pub(super) async fn list(call: &Call<'_>, repository: &RepositoryName) -> Result<Response, Failure> {
    let limit = call.query.limit()?;
    let last = call.query.one("last")?.filter(|last| !last.is_empty());
    // A page of none is asked for as one of one: an unknown repository is a 404 all the same.
    let mut page = call.registry().tags(&call.caller, repository, last, limit.max(1)).await?;
    page.items.truncate(limit);
    let tags: Vec<&str> = page.items.iter().map(Tag::as_str).collect();
    let body = json!({ "name": repository.as_str(), "tags": tags });
    let response = headers::json(StatusCode::OK, headers::JSON, &body).warn_if(page.stale);
    Ok(match tags.last() {
        Some(last) if page.more => {
            let path = format!("/v2/{repository}/tags/list");
            response.set(header::LINK, next_link(&path, &[("n", &limit.to_string()), ("last", last)]))
        }
        _ => response,
    })
}
