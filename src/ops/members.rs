//! What operators do with members: `/api/v1/cluster/nodes/…`, `/voters`, `/leader`.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::future::join_all;
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::meta::{Operation, Outcome, Refusal as MemberRefusal, TransferError};
use crate::topology::{NodeId, NodeState};

use super::error::{Refusal, json as answer};
use super::{Parts, Report, access, policy, report, wire};

/// How long one decision may take to be agreed on.
const DECIDE_MAX: Duration = Duration::from_secs(5);
/// Contents listed at most that would be lost.
const LOSSES_MAX: usize = 1000;

/// An error answer that says something of its own.
#[derive(Debug)]
pub(super) struct Denied {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) message: String,
}

impl IntoResponse for Denied {
    fn into_response(self) -> Response {
        answer(self.status, &json!({ "error": { "code": self.code, "message": self.message } }))
    }
}

impl From<Refusal> for Denied {
    fn from(refusal: Refusal) -> Self {
        Self { status: refusal.status, code: refusal.code, message: refusal.message.to_owned() }
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
        Self { status, code, message }
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
                require_room(&parts, node).await?;
            }
            Operation::Decommission { node, write_copies, force }
        }
        "remove" => Operation::Remove { node, write_copies, force: read::<Forced>(&body)?.force },
        "replace" => Operation::Replace { old: node, new: NodeId(read::<By>(&body)?.by) },
        _ => return Err(Refusal::NOT_FOUND.into()),
    };
    operate(&parts, operation).await
}

/// Refuses if what a node holds does not fit on the others, as far as they answer.
async fn require_room(parts: &Parts, node: NodeId) -> Result<(), Denied> {
    let own = report::own(parts);
    let topology = parts.meta.local().topology();
    let nodes_in = topology.nodes.values().filter(|node| node.state == NodeState::In).count();
    if nodes_in <= policy::current(parts, &topology).total() as usize {
        return Ok(()); // the others hold everything already
    }
    let others = topology.nodes.keys().filter(|id| **id != own.node);
    let mut reports: Vec<Report> =
        join_all(others.map(|id| wire::ask(&parts.peers, *id))).await.into_iter().flatten().collect();
    reports.push(own);
    let Some(held) = reports.iter().find(|report| report.node == node).map(|report| report.blob_bytes) else {
        return Ok(()); // it is dead: what it holds is copied from others
    };
    let counts = |report: &&Report| {
        let is_in = topology.node(report.node).is_some_and(|node| node.state == NodeState::In);
        is_in && report.node != node && !report.refuses_writes
    };
    let free: u64 = reports.iter().filter(counts).map(|report| report.free_bytes).sum();
    if held <= free {
        return Ok(());
    }
    Err(Denied {
        status: StatusCode::CONFLICT,
        code: "needs_force",
        message: format!(
            "node {node} holds {held} bytes, and the others have {free} free: add room first, or force it"
        ),
    })
}

/// Lists what would be lost with a node.
pub(super) async fn losses(
    State(parts): State<Parts>,
    Path(node): Path<u64>,
    headers: HeaderMap,
) -> Result<Response, Denied> {
    access::admit(&parts.auth, &headers).await?;
    let node = NodeId(node);
    if parts.meta.local().node(node).is_none() {
        return Err(MemberRefusal::NodeUnknown(node).into());
    }
    let (count, some) = parts.upkeep.only_on(node, LOSSES_MAX).await;
    let digests: Vec<String> = some.iter().map(ToString::to_string).collect();
    Ok(answer(StatusCode::OK, &json!({ "count": count, "digests": digests })))
}

/// Gives votes, or takes them.
pub(super) async fn voters(State(parts): State<Parts>, headers: HeaderMap, body: Bytes) -> Result<Response, Denied> {
    access::admit(&parts.auth, &headers).await?;
    let Voters { add, remove, force } = read(&body)?;
    let nodes = |ids: &BTreeSet<u64>| ids.iter().copied().map(NodeId).collect();
    let operation = match (add.is_empty(), remove.is_empty()) {
        (false, true) => Operation::AddVoters { nodes: nodes(&add), force },
        (true, false) => Operation::Demote { nodes: nodes(&remove), force },
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
            Err(Denied { status, code, message: error.to_string() })
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
