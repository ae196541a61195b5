//! `/api/v1/gc`: what collection would take and why it leaves the rest, and a pass of it on demand.

use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use http::{HeaderMap, StatusCode, Uri};
use serde_json::{Value, json};

use crate::meta::command::LogTime;
use crate::meta::{Fate, Keeper, Unnamed};
use crate::oci::{Digest, RepositoryName};
use crate::upkeep::{Explanation, Plan};

use super::error::{Refusal, json};
use super::report::Pass;
use super::{Parts, access};

/// Links listed by a plan unless fewer are asked for.
const LISTED_MAX: usize = 1000;
/// Repositories about which one digest is explained.
const EXPLAINED_MAX: usize = 1000;
/// How long a request waits for the end of its pass; later it is asked for by GET.
const RUN_WAIT: Duration = Duration::from_secs(5);

/// What a plan is asked to tell.
#[derive(Debug, PartialEq, Eq)]
struct Question {
    limit: usize,
    explain: Option<(Option<RepositoryName>, Digest)>,
}

impl Question {
    /// Reads `limit=<links>` and `explain=<digest>` or `explain=<repository>@<digest>`.
    fn parse(query: &str) -> Option<Self> {
        let mut question = Self { limit: LISTED_MAX, explain: None };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=')? {
                ("limit", number) => question.limit = number.parse::<usize>().ok()?.min(LISTED_MAX),
                ("explain", text) => question.explain = Some(subject(&unescaped(text)?)?),
                _ => return None,
            }
        }
        Some(question)
    }
}

/// Reads `<digest>` or `<repository>@<digest>`.
fn subject(text: &str) -> Option<(Option<RepositoryName>, Digest)> {
    match text.split_once('@') {
        Some((repository, digest)) => Some((Some(repository.parse().ok()?), digest.parse().ok()?)),
        None => Some((None, text.parse().ok()?)),
    }
}

/// Undoes the escapes that clients put in place of `:`, `/` and `@`.
fn unescaped(text: &str) -> Option<String> {
    let mut plain = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        plain.push(match byte {
            b'%' => {
                let hex = [bytes.next()?, bytes.next()?];
                u8::from_str_radix(std::str::from_utf8(&hex).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(plain).ok()
}

/// Answers `GET /api/v1/gc/plan`.
pub(super) async fn plan(State(parts): State<Parts>, headers: HeaderMap, uri: Uri) -> Result<Response, Refusal> {
    access::admit(&parts.auth, &headers).await?;
    let question = Question::parse(uri.query().unwrap_or_default()).ok_or(Refusal::QUERY)?;
    let body = match &question.explain {
        Some((repository, digest)) => {
            let explained = parts.upkeep.explain(repository.as_ref(), digest, EXPLAINED_MAX).await;
            let now = parts.meta.log_time();
            json!({ "explained": explained.iter().map(|one| explanation(one, now)).collect::<Vec<_>>() })
        }
        None => planned(&parts.upkeep.plan_collection(question.limit).await),
    };
    Ok(json(StatusCode::OK, &body))
}

/// Answers `POST /api/v1/gc/run`: begins a pass on this node.
pub(super) async fn run(State(parts): State<Parts>, headers: HeaderMap) -> Result<Response, Refusal> {
    access::admit(&parts.auth, &headers).await?;
    let collection = parts.upkeep.collect_now(RUN_WAIT).await;
    Ok(json(StatusCode::OK, &Pass::of(&collection).map_or(Value::Null, |made| pass(&made))))
}

/// Answers `GET /api/v1/gc/run`: the pass under way on this node, or the last one.
pub(super) async fn running(State(parts): State<Parts>, headers: HeaderMap) -> Result<Response, Refusal> {
    access::admit(&parts.auth, &headers).await?;
    Ok(json(StatusCode::OK, &Pass::of(&parts.upkeep.collection()).map_or(Value::Null, |made| pass(&made))))
}

/// Prints a pass.
pub(super) fn pass(pass: &Pass) -> Value {
    json!({
        "running": pass.running,
        "links": pass.links,
        "blobs": pass.blobs,
        "manifests": pass.manifests,
        "bytes": pass.bytes,
        "ended_ms_ago": pass.ended_ms_ago,
        "failed": pass.failed,
    })
}

fn planned(plan: &Plan) -> Value {
    let left = |until: LogTime| seconds_left(until, plan.now);
    json!({
        "fresh": plan.fresh,
        "seen": plan.links,
        "blobs": plan.blobs,
        "manifests": plan.manifests,
        "bytes": plan.bytes,
        "spared": plan.spared,
        "spared_first_seconds": plan.spared_until.map(|(first, _)| left(first)),
        "spared_last_seconds": plan.spared_until.map(|(_, last)| left(last)),
        "links": plan.listed.iter().map(|link| listed(link, plan.now)).collect::<Vec<_>>(),
    })
}

fn listed(link: &Unnamed, now: LogTime) -> Value {
    json!({
        "repository": link.repository.as_str(),
        "digest": link.digest.to_string(),
        "kind": kind(link.manifest),
        "size": link.size,
        "seconds_left": link.until.map_or(0, |until| seconds_left(until, now)),
    })
}

fn explanation(one: &Explanation, now: LogTime) -> Value {
    let mut told = json!({ "repository": one.repository.as_str(), "kind": kind(one.manifest), "goes": false });
    let (kept_by, detail) = match &one.fate {
        Fate::Goes | Fate::Absent => {
            told["goes"] = true.into();
            return told;
        }
        Fate::Kept(Keeper::Tag(tag)) => ("tag", ("tag", tag.as_str().into())),
        Fate::Kept(Keeper::Manifest(by)) => ("manifest", ("manifest", by.to_string().into())),
        Fate::Kept(Keeper::Subject(subject)) => ("subject", ("subject", subject.to_string().into())),
        Fate::Kept(Keeper::SubjectToCome(subject)) => ("subject to come", ("subject", subject.to_string().into())),
        Fate::Kept(Keeper::Lease { until }) => ("lease", ("seconds_left", seconds_left(*until, now).into())),
        Fate::Kept(Keeper::Upload { until }) => ("upload", ("seconds_left", seconds_left(*until, now).into())),
        Fate::Kept(Keeper::Policy) => ("policy", ("policy", "untagged manifests are kept".into())),
    };
    told["kept_by"] = kept_by.into();
    let (name, value): (&str, Value) = detail;
    told[name] = value;
    told
}

const fn kind(manifest: bool) -> &'static str {
    if manifest { "manifest" } else { "blob" }
}

const fn seconds_left(until: LogTime, now: LogTime) -> u64 {
    until.0.saturating_sub(now.0).div_ceil(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_read_strictly() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let plain = Question::parse("").unwrap();
        assert_eq!((plain.limit, plain.explain), (LISTED_MAX, None));
        assert_eq!(Question::parse("limit=5").unwrap().limit, 5);
        let of = |text: &str| Question::parse(&format!("explain={text}")).and_then(|question| question.explain);
        assert_eq!(of(&digest), Some((None, digest.parse().unwrap())));
        let escaped = format!("a%2Fb%40{}", digest.replace(':', "%3A"));
        assert_eq!(of(&escaped), Some((Some("a/b".parse().unwrap()), digest.parse().unwrap())));
        for query in
            ["limit", "limit=x", "limit=-1", "explain=", "explain=a", "explain=A@sha256:a", "explain=%4", "x=1"]
        {
            assert!(Question::parse(query).is_none(), "{query}");
        }
    }
}
