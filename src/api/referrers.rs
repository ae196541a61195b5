//! `GET /v2/<name>/referrers/<digest>`: end-12.

use std::collections::BTreeMap;

use axum::response::Response;
use http::{StatusCode, header};
use serde::Serialize;

use crate::oci::{Digest, MediaType, RepositoryName};
use crate::registry::Referrer;

use super::call::Call;
use super::error::Failure;
use super::headers::{self, SetHeader, next_link};

/// Types that one request may filter by.
const TYPES_MAX: usize = 32;

/// An index of the manifests that refer to one subject.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index<'a> {
    schema_version: u32,
    media_type: &'static str,
    manifests: Vec<Descriptor<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor<'a> {
    media_type: &'a str,
    size: u64,
    digest: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact_type: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
}

impl<'a> From<&'a Referrer> for Descriptor<'a> {
    fn from(referrer: &'a Referrer) -> Self {
        Self {
            media_type: referrer.media_type.as_str(),
            size: referrer.size,
            digest: referrer.digest.to_string(),
            artifact_type: referrer.artifact_type.as_deref(),
            annotations: &referrer.annotations,
        }
    }
}

/// Lists what refers to a digest, which need not exist; never a 404.
pub(super) async fn list(call: &Call<'_>, repository: &RepositoryName, subject: &Digest) -> Result<Response, Failure> {
    let last = call.query.digest("last")?;
    // No media type holds a space: a client that wrote `+json` plainly meant a plus.
    let types: Vec<String> =
        call.query.all("artifactType").filter(|text| !text.is_empty()).map(|text| text.replace(' ', "+")).collect();
    if types.len() > TYPES_MAX {
        return Err(Failure::unsupported("too many artifact types"));
    }
    let page = call.registry().referrers(&call.caller, repository, subject, &types, last.as_ref()).await?;
    let index = Index {
        schema_version: 2,
        media_type: MediaType::OCI_INDEX,
        manifests: page.items.iter().map(Descriptor::from).collect(),
    };
    let mut response = headers::json(StatusCode::OK, MediaType::OCI_INDEX, &index).warn_if(page.stale);
    if !types.is_empty() {
        response = response.set(headers::FILTERS_APPLIED, "artifactType");
    }
    if let Some(last) = page.items.last().filter(|_| page.more) {
        let last = last.digest.to_string();
        let mut parameters = vec![("last", last.as_str())];
        parameters.extend(types.iter().map(|text| ("artifactType", text.as_str())));
        response = response.set(header::LINK, next_link(&format!("/v2/{repository}/referrers/{subject}"), &parameters));
    }
    Ok(response)
}
