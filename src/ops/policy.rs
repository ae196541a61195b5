//! How many copies of each blob there should be: shown, and agreed on anew.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::meta::command::{Command, Rejection, Response as Answer};
use crate::topology::{Policy, Region, Topology};

use super::error::{Refusal, json};
use super::{Parts, access};

/// How long agreeing on a policy may take.
const PROPOSE_MAX: Duration = Duration::from_secs(5);
/// How long it may take to see here what was agreed on.
const APPLY_MAX: Duration = Duration::from_secs(2);
/// The longest name of a region, in bytes, as the configuration has it.
const REGION_BYTES_MAX: usize = 63;

const NUMBERS: Refusal = Refusal {
    status: StatusCode::BAD_REQUEST,
    code: "invalid_policy",
    message: "copies are from 1 to 16, in each region and in all; regions have names as in `node.region`",
};
const BELOW_WRITE_COPIES: Refusal = Refusal {
    status: StatusCode::BAD_REQUEST,
    code: "below_write_copies",
    message: "pushes wait for more copies than that (`storage.write_copies`): lower it first, on every node",
};
const REFUSED: Refusal =
    Refusal { status: StatusCode::CONFLICT, code: "refused", message: "the cluster does not take it now" };

/// A policy as it is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    copies: u32,
    #[serde(default)]
    regions: BTreeMap<String, u32>,
}

/// The policy in force here: the agreed one, else this node's own number of copies.
pub(super) fn current(parts: &Parts, topology: &Topology) -> Policy {
    topology.policy.clone().unwrap_or_else(|| Policy::of_copies(parts.copies_configured))
}

/// `GET /api/v1/cluster/policy`.
pub(super) async fn show(State(parts): State<Parts>, headers: HeaderMap) -> Result<Response, Refusal> {
    access::admit(&parts.auth, &headers).await?;
    Ok(json(StatusCode::OK, &print(&parts)))
}

/// `PUT /api/v1/cluster/policy`.
pub(super) async fn set(State(parts): State<Parts>, headers: HeaderMap, body: Bytes) -> Result<Response, Refusal> {
    access::admit(&parts.auth, &headers).await?;
    let policy = read(&body, parts.write_copies)?;
    let command = Command::SetPolicy { policy, first: false };
    let applied = parts.meta.propose(command, PROPOSE_MAX).await.map_err(|_| Refusal::NO_QUORUM)?;
    match applied.response {
        Answer::Done => {}
        Answer::Rejected(Rejection::FeatureLevel { .. }) => return Err(Refusal::FEATURE_LEVEL),
        Answer::Rejected(Rejection::PolicyInvalid) => return Err(NUMBERS),
        _ => return Err(REFUSED),
    }
    // Answered either way: that it is not applied here in time does not undo it.
    parts.meta.wait_applied(applied.index, APPLY_MAX).await;
    Ok(json(StatusCode::OK, &print(&parts)))
}

fn print(parts: &Parts) -> Value {
    let topology = parts.meta.local().topology();
    let policy = current(parts, &topology);
    json!({
        "copies": policy.copies,
        "regions": policy.regions,
        "agreed": topology.policy.is_some(),
        "index": topology.index,
    })
}

fn read(body: &[u8], write_copies: usize) -> Result<Policy, Refusal> {
    let asked: Asked = serde_json::from_slice(body).map_err(|_| Refusal::BODY)?;
    let plain = |name: &String| {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        (1..=REGION_BYTES_MAX).contains(&name.len()) && name.chars().all(is_plain)
    };
    if !asked.regions.keys().all(plain) {
        return Err(NUMBERS);
    }
    let regions = asked.regions.into_iter().map(|(name, copies)| (Region(name), copies)).collect();
    let policy = Policy { copies: asked.copies, regions };
    policy.validate().map_err(|_| NUMBERS)?;
    // A push is answered after that many copies: fewer must not be kept.
    if (policy.total() as usize) < write_copies {
        return Err(BELOW_WRITE_COPIES);
    }
    Ok(policy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_policy_that_makes_sense_is_read() {
        let good = read(br#"{"copies":3,"regions":{"eu":2,"us":2}}"#, 2).unwrap();
        assert_eq!((good.copies, good.total()), (3, 4));
        assert_eq!(read(br#"{"copies":2}"#, 2).unwrap(), Policy::of_copies(2));
        for (body, code) in [
            (&br#"{"copies":2"#[..], "invalid_body"),
            (br#"{"regions":{}}"#, "invalid_body"),
            (br#"{"copies":2,"zones":{}}"#, "invalid_body"),
            (br#"{"copies":-1}"#, "invalid_body"),
            (br#"{"copies":0}"#, "invalid_policy"),
            (br#"{"copies":17}"#, "invalid_policy"),
            (br#"{"copies":2,"regions":{"e u":1}}"#, "invalid_policy"),
            (br#"{"copies":2,"regions":{"eu":0}}"#, "invalid_policy"),
            (br#"{"copies":1}"#, "below_write_copies"),
        ] {
            assert_eq!(read(body, 2).unwrap_err().code, code, "{}", String::from_utf8_lossy(body));
        }
    }
}
