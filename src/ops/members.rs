//! What operators do with members: `/api/v1/cluster/nodes/…`, `/voters`, `/leader`.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::meta::{Operation, Outcome, Refusal as MemberRefusal, TransferError};
use crate::topology::NodeId;

use super::error::{Refusal, json as answer};
use super::{Parts, access, leaving};

/// How long one decision may take to be agreed on.
const DECIDE_MAX: Duration = Duration::from_secs(5);

/// An error answer that says something of its own.
#[derive(Debug)]
pub(super) struct Denied {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) message: String,
    /// Contents that it is about; empty where it is about none.
    pub(super) digests: Vec<String>,
}

impl IntoResponse for Denied {
    fn into_response(self) -> Response {
        let mut error = json!({ "code": self.code, "message": self.message });
        if !self.digests.is_empty() {
            error["digests"] = self.digests.into();
        }
        answer(self.status, &json!({ "error": error }))
    }
}

impl From<Refusal> for Denied {
    fn from(refusal: Refusal) -> Self {
        Self { status: refusal.status, code: refusal.code, message: refusal.message.to_owned(), digests: Vec::new() }
    }
}

impl From<MemberRefusal> for Denied {
    fn from(refusal: MemberRefusal) -> Self {
        let (status, code) = match &refusal {
            MemberRefusal::NodeUnknown(_) => (StatusCode::NOT_FOUND, "node_unknown"),
            MemberRefusal::Unavailable { .. } => (StatusCode::SERVICE_UNAVAILABLE, "no_quorum"),
            MemberRefusal::Conflict => (StatusCode::CONFLICT, "conflict"),
            MemberRefusal::Level { .. } => (StatusCode::CONFLICT, "feature_level"),
            MemberRefusal::SameNode => (StatusCode::BAD_REQUEST, "same_node"),
            MemberRefusal::LastNode => (StatusCode::CONFLICT, "last_node"),
            MemberRefusal::TooFewNodes { .. }
            | MemberRefusal::TooFewVoters { .. }
            | MemberRefusal::EvenVoters { .. }
            | MemberRefusal::Lives { .. } => (StatusCode::CONFLICT, "needs_force"),
            MemberRefusal::Unfit { .. } | MemberRefusal::NameTaken(_) => (StatusCode::CONFLICT, "unfit"),
        };
        let message = match refusal {
            MemberRefusal::Unavailable { outcome: Outcome::Unknown } => {
                "no leader with a quorum took it in time: it may or may not take effect; look, and try again".to_owned()
            }
            other => other.to_string(),
        };
        Self { status, code, message, digests: Vec::new() }
    }
}

/// Reads a body that must be the expected JSON; an empty one stands for `{}`.
pub(super) fn read<T: DeserializeOwned>(body: &Bytes) -> Result<T, Denied> {
    let text: &[u8] = if body.is_empty() { b"{}" } else { body };
    // A list could be taken for a structure whose fields all have defaults.
    let fields = serde_json::from_slice::<serde_json::Map<String, Value>>(text);
    fields.and_then(|fields| serde_json::from_value(Value::Object(fields))).map_err(|error| Denied {
        status: StatusCode::BAD_REQUEST,
        code: "invalid_body",
        message: format!("the body is not the JSON that is expected: {error}"),
        digests: Vec::new(),
    })
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Forced {
    force: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct By {
    by: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct To {
    to: Option<u64>,
}

/// Whose votes are to change.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Voters {
    add: BTreeSet<u64>,
    remove: BTreeSet<u64>,
    auto: BTreeSet<u64>,
    force: bool,
}

async fn operate(parts: &Parts, operation: Operation) -> Result<Response, Denied> {
    let index = parts.meta.operate(operation, DECIDE_MAX).await?;
    Ok(answer(StatusCode::OK, &json!({ "index": index })))
}

/// Does what the last part of the path says with one node.
pub(super) async fn node(
    State(parts): State<Parts>,
    Path((node, verb)): Path<(u64, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Denied> {
    access::admit(&parts.auth, &headers).await?;
    let node = NodeId(node);
    let write_copies = parts.write_copies;
    let operation = match verb.as_str() {
        "out" => {
            read::<serde_json::Map<String, Value>>(&body)?;
            Operation::Out { node }
        }
        "in" => {
            read::<serde_json::Map<String, Value>>(&body)?;
            Operation::In { node }
        }
        "decommission" => {
            let force = read::<Forced>(&body)?.force;
            if !force {
                leaving::require_copies(&parts, node).await?;
                leaving::require_room(&parts, node).await?;
            }
            Operation::Decommission { node, write_copies, force }
        }
        "remove" => {
            let force = read::<Forced>(&body)?.force;
            if !force {
                leaving::require_copies(&parts, node).await?;
            }
            Operation::Remove { node, write_copies, force }
        }
        "replace" => Operation::Replace { old: node, new: NodeId(read::<By>(&body)?.by) },
        _ => return Err(Refusal::NOT_FOUND.into()),
    };
    operate(&parts, operation).await
}

/// Gives votes, takes them, or leaves them to the cluster.
pub(super) async fn voters(State(parts): State<Parts>, headers: HeaderMap, body: Bytes) -> Result<Response, Denied> {
    access::admit(&parts.auth, &headers).await?;
    let Voters { add, remove, auto, force } = read(&body)?;
    let nodes = |ids: &BTreeSet<u64>| ids.iter().copied().map(NodeId).collect();
    let operation = match [&add, &remove, &auto].map(BTreeSet::is_empty) {
        [false, true, true] => Operation::AddVoters { nodes: nodes(&add), force },
        [true, false, true] => Operation::Demote { nodes: nodes(&remove), force },
        [true, true, false] => Operation::FreeVotes { nodes: nodes(&auto) },
        _ => return Err(Refusal::BODY.into()),
    };
    operate(&parts, operation).await
}

/// Moves leadership.
pub(super) async fn leader(State(parts): State<Parts>, headers: HeaderMap, body: Bytes) -> Result<Response, Denied> {
    access::admit(&parts.auth, &headers).await?;
    let to = read::<To>(&body)?.to.map(NodeId);
    match parts.meta.transfer_leader(to, DECIDE_MAX).await {
        Ok(leader) => Ok(answer(StatusCode::OK, &json!({ "leader": leader.0 }))),
        Err(error) => {
            let (status, code) = match error {
                TransferError::NoVoter => (StatusCode::CONFLICT, "no_voter"),
                TransferError::NoLeader => (StatusCode::SERVICE_UNAVAILABLE, "no_leader"),
                TransferError::TooLate => (StatusCode::SERVICE_UNAVAILABLE, "too_late"),
            };
            Err(Denied { status, code, message: error.to_string(), digests: Vec::new() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_taken_strictly_and_an_empty_one_is_none() {
        assert!(!read::<Forced>(&Bytes::new()).unwrap().force);
        assert!(read::<Forced>(&Bytes::from_static(b"{\"force\":true}")).unwrap().force);
        for bad in ["{\"forced\":true}", "[]", "{\"force\":1}", "x"] {
            assert_eq!(read::<Forced>(&Bytes::from(bad)).unwrap_err().status, StatusCode::BAD_REQUEST, "{bad}");
        }
        assert!(read::<By>(&Bytes::new()).is_err());
    }
}
