//! Join tokens: `/api/v1/cluster/tokens`. A token is shown once, when it is made; the cluster keeps its hash.

use std::time::Duration;

use axum::extract::{Path, State};
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::meta::ProposeError;
use crate::meta::command::{Command, LogTime, Rejection, Response as Applied};
use crate::meta::plan::{TokenHash, TokenRow};
use crate::rpc::JoinToken;

use super::error::{Refusal, json as answer};
use super::members::{Denied, read};
use super::{Parts, access};

/// How long a proposal may take.
const PROPOSE_MAX: Duration = Duration::from_secs(5);
/// How long a token is good for at most, in seconds: a year.
const TTL_MAX: u64 = 366 * 24 * 3600;
/// Hex digits by which a token is named.
const ID_DIGITS: usize = 16;

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Create {
    ttl_seconds: u64,
    role: Role,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    Voter,
    Learner,
}

impl Default for Create {
    fn default() -> Self {
        Self { ttl_seconds: 3600, role: Role::Voter }
    }
}

fn id_of(token: &TokenHash) -> String {
    let hex: String = token.iter().map(|byte| format!("{byte:02x}")).collect();
    hex[..ID_DIGITS].to_owned()
}

fn role_name(learner: bool) -> &'static str {
    if learner { "learner" } else { "voter" }
}

async fn propose(parts: &Parts, command: Command) -> Result<(), Denied> {
    let conflict = |code, message: String| Denied { status: StatusCode::CONFLICT, code, message, digests: Vec::new() };
    match parts.meta.propose(command, PROPOSE_MAX).await.map(|applied| applied.response) {
        Ok(Applied::Rejected(Rejection::FeatureLevel { agreed })) => {
            Err(conflict("feature_level", format!("not every node knows tokens: the agreed feature level is {agreed}")))
        }
        Ok(Applied::Rejected(Rejection::TokenUnknown)) => Err(Refusal::NOT_FOUND.into()),
        Ok(Applied::Rejected(rejection)) => Err(conflict("refused", format!("{rejection:?}"))),
        Ok(_) => Ok(()),
        Err(ProposeError::Unavailable { .. } | ProposeError::Stopped) => Err(Denied {
            status: StatusCode::SERVICE_UNAVAILABLE,
            code: "no_quorum",
            message: "no leader with a quorum took it in time".to_owned(),
            digests: Vec::new(),
        }),
    }
}

/// Makes a token.
pub(super) async fn create(State(parts): State<Parts>, headers: HeaderMap, body: Bytes) -> Result<Response, Denied> {
    access::admit(&parts.auth, &headers).await?;
    let Create { ttl_seconds, role } = read(&body)?;
    if !(1..=TTL_MAX).contains(&ttl_seconds) {
        return Err(Denied {
            status: StatusCode::BAD_REQUEST,
            code: "invalid_body",
            message: format!("ttl_seconds must be from 1 to {TTL_MAX}"),
            digests: Vec::new(),
        });
    }
    let identity = parts.credentials.identity().ok_or(Refusal::NOT_READY)?;
    let token = JoinToken::draw(&parts.seed, &identity);
    let (hash, learner) = (token.hash(), role == Role::Learner);
    propose(&parts, Command::CreateToken { token: hash, ttl_ms: ttl_seconds * 1000, learner }).await?;
    let made = json!({
        "id": id_of(&hash),
        "token": token.to_string(),
        "role": role_name(learner),
        "expires_in_seconds": ttl_seconds,
    });
    Ok(answer(StatusCode::OK, &made))
}

fn row(hash: &TokenHash, row: &TokenRow, now: LogTime) -> Value {
    json!({
        "id": id_of(hash),
        "role": role_name(row.learner),
        "expires_in_seconds": row.expires.0.saturating_sub(now.0) / 1000,
        "expired": row.expires <= now,
        "used_by": row.used.map(|(_, node)| node.0),
    })
}

/// Lists the tokens, without what would let anybody use them.
pub(super) async fn list(State(parts): State<Parts>, headers: HeaderMap) -> Result<Response, Denied> {
    access::admit(&parts.auth, &headers).await?;
    let state = parts.meta.local();
    let rows: Vec<Value> = state.tokens().map(|(hash, token)| row(hash, token, state.log_time())).collect();
    Ok(answer(StatusCode::OK, &json!({ "tokens": rows })))
}

/// Takes a token back.
pub(super) async fn revoke(
    State(parts): State<Parts>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Denied> {
    access::admit(&parts.auth, &headers).await?;
    let token = parts.meta.local().tokens().map(|(hash, _)| *hash).find(|hash| id_of(hash) == id);
    propose(&parts, Command::RevokeToken { token: token.ok_or(Refusal::NOT_FOUND)? }).await?;
    Ok(answer(StatusCode::OK, &json!({ "id": id })))
}
