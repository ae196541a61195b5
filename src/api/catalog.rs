//! `GET /v2/_catalog`.

use axum::response::Response;
use http::{StatusCode, header};
use serde_json::json;

use super::call::Call;
use super::error::Failure;
use super::headers::{self, SetHeader, next_link};

/// Lists the repositories in byte order, a page at a time.
pub(super) async fn list(call: &Call<'_>) -> Result<Response, Failure> {
    let limit = call.query.limit()?;
    let last = call.query.one("last")?.filter(|last| !last.is_empty());
    // A page of none is asked for as one of one, so that all is judged alike.
    let mut page = call.registry().catalog(&call.caller, last, limit.max(1)).await?;
    page.items.truncate(limit);
    let names: Vec<&str> = page.items.iter().map(crate::oci::RepositoryName::as_str).collect();
    let body = json!({ "repositories": names });
    let response = headers::json(StatusCode::OK, headers::JSON, &body).warn_if(page.stale);
    Ok(match names.last() {
        Some(last) if page.more => {
            response.set(header::LINK, next_link("/v2/_catalog", &[("n", &limit.to_string()), ("last", last)]))
        }
        _ => response,
    })
}
