//! Hashing copies of one blob again because an operator asks: `/api/v1/blobs/{digest}/verify`.

use std::time::Duration;

use axum::extract::{Path, State};
use axum::response::Response;
use bytes::Bytes;
use futures::future::join_all;
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::blob::Verdict;
use crate::oci::Digest;

use super::error::{Refusal, json as answer};
use super::{Parts, access, wire};

/// How long hashing takes at most, beside the time for the bytes; a request on which nothing moves is given up after ten
/// minutes.
const DEADLINE_MIN: Duration = Duration::from_secs(30);
const DEADLINE_MAX: Duration = Duration::from_secs(540);

/// Bytes per second that any disk in order gives.
const SLOW_BYTES: u64 = 20_000_000;

/// What is asked for.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Asked {
    /// All nodes, not only the one that is asked.
    all: bool,
}

/// Answers a POST.
pub(super) async fn blob(
    State(parts): State<Parts>,
    Path(digest): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refusal> {
    access::admit(&parts.auth, &headers).await?;
    let digest: Digest = digest.parse().map_err(|_| Refusal::NOT_FOUND)?;
    let asked = if body.is_empty() { Asked::default() } else { parse(&body)? };
    // What nothing links has no agreed size, and nobody is promised it.
    let content = parts.meta.local().content(&digest).ok_or(Refusal::NOT_FOUND)?;
    let found = verify(&parts, (&digest, content.size), asked.all).await;
    Ok(answer(StatusCode::OK, &found))
}

fn parse(body: &[u8]) -> Result<Asked, Refusal> {
    // Taken for an object first: a list would pass for one without names.
    let body: serde_json::Map<String, Value> = serde_json::from_slice(body).map_err(|_| Refusal::BODY)?;
    serde_json::from_value(Value::Object(body)).map_err(|_| Refusal::BODY)
}

async fn verify(parts: &Parts, (digest, size): (&Digest, u64), all: bool) -> Value {
    let me = parts.meta.status().me;
    let topology = parts.meta.topology().borrow().clone();
    let wanted = parts.upkeep.wanted_holders(digest);
    let deadline = (DEADLINE_MIN + Duration::from_secs(size / SLOW_BYTES)).min(DEADLINE_MAX);
    let ask = async |node| {
        let verdict = if node == me {
            Some(here(parts, digest, size).await.to_owned())
        } else {
            wire::verify(&parts.peers, node, (digest, size), deadline).await
        };
        json!({
            "id": node.0,
            "name": topology.node(node).map(|node| node.name.as_str()),
            "wanted": wanted.contains(&node),
            "verdict": verdict.as_deref().unwrap_or("unreachable"),
        })
    };
    let nodes = topology.nodes.keys().copied().filter(|node| all || *node == me);
    let nodes = join_all(nodes.map(ask)).await;
    json!({ "digest": digest.to_string(), "size": size, "nodes": nodes })
}

/// Hashes the copy of this node; a bad one is set aside, and repair fetches another.
pub(super) async fn here(parts: &Parts, digest: &Digest, size: u64) -> &'static str {
    match parts.blobs.verify(digest, size, None).await {
        Ok(Verdict::Good) => "good",
        Ok(Verdict::Missing) => "missing",
        Ok(Verdict::Quarantined) => "quarantined",
        Err(error) => {
            tracing::warn!(%digest, %error, "copy could not be verified");
            "unreadable"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_body_says_all_or_nothing() {
        assert!(parse(b"{\"all\": true}").unwrap().all);
        assert!(!parse(b"{}").unwrap().all);
        for body in ["", "[]", "{\"all\": 1}", "{\"al\": true}"] {
            assert!(parse(body.as_bytes()).is_err(), "{body}");
        }
    }
}
