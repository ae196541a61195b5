//! What must be so before a node may leave without force: no content with it alone, and room for its share on the others.

use std::collections::BTreeMap;

use axum::extract::{Path, State};
use axum::response::Response;
use futures::future::join_all;
use http::{HeaderMap, StatusCode};
use serde_json::json;

use crate::gossip::Liveness;
use crate::meta::Refusal as MemberRefusal;
use crate::topology::{NodeId, NodeState};

use super::error::json as answer;
use super::members::Denied;
use super::{Parts, Report, access, policy, report, wire};

/// Contents listed at most that would be lost.
const LOSSES_MAX: usize = 1000;

fn require_node(parts: &Parts, node: NodeId) -> Result<(), Denied> {
    match parts.meta.local().node(node) {
        Some(_) => Ok(()),
        None => Err(MemberRefusal::NodeUnknown(node).into()),
    }
}

/// Lists what would be lost with a node.
pub(super) async fn losses(
    State(parts): State<Parts>,
    Path(node): Path<u64>,
    headers: HeaderMap,
) -> Result<Response, Denied> {
    access::admit(&parts.auth, &headers).await?;
    let node = NodeId(node);
    require_node(&parts, node)?;
    let (count, some) = parts.upkeep.only_on(node, LOSSES_MAX).await;
    let digests: Vec<String> = some.iter().map(ToString::to_string).collect();
    Ok(answer(StatusCode::OK, &json!({ "count": count, "digests": digests })))
}

/// Refuses if a dead node may be the only one that has some content: it would be waited for without end.
///
/// What a node has that lives is copied from it.
pub(super) async fn require_copies(parts: &Parts, node: NodeId) -> Result<(), Denied> {
    require_node(parts, node)?;
    let is_dead = parts.gossip.members().borrow().get(&node).is_some_and(|member| member.liveness == Liveness::Dead);
    if !is_dead {
        return Ok(());
    }
    let (count, some) = parts.upkeep.only_on(node, LOSSES_MAX).await;
    let digests: Vec<String> = some.iter().map(ToString::to_string).collect();
    let Some(first) = digests.first() else { return Ok(()) };
    Err(Denied {
        status: StatusCode::CONFLICT,
        code: "would_lose",
        message: format!(
            "{count} blobs and manifests are on no other node for certain, {first} is the first: start node {node} again, \
             and others that are away, or force it and lose them"
        ),
        digests,
    })
}

/// Refuses if some other node has no room for what it would have to take over, as far as the nodes answer.
pub(super) async fn require_room(parts: &Parts, node: NodeId) -> Result<(), Denied> {
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
    let rooms = reports.iter().map(|report| (report.node, report.room_bytes)).collect();
    match first_too_full(&parts.upkeep.needs_without(node).await, &rooms) {
        None => Ok(()),
        Some((other, need, room)) => Err(Denied {
            status: StatusCode::CONFLICT,
            code: "needs_force",
            message: format!(
                "without node {node}, node {other} would have to take {need} bytes more and has room for {room}: add room \
                 or nodes first, or force it"
            ),
            digests: Vec::new(),
        }),
    }
}

/// The first node that needs more room than it says to have, with both.
fn first_too_full(needs: &BTreeMap<NodeId, u64>, rooms: &BTreeMap<NodeId, u64>) -> Option<(NodeId, u64, u64)> {
    needs.iter().find_map(|(node, need)| {
        let room = rooms.get(node)?;
        (need > room).then_some((*node, *need, *room))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_on_one_node_is_no_room_on_another() {
        let bytes = |of: &[(u64, u64)]| of.iter().map(|(node, bytes)| (NodeId(*node), *bytes)).collect();
        let needs = bytes(&[(1, 10), (2, 10)]);
        assert_eq!(first_too_full(&needs, &bytes(&[(1, 10), (2, 10)])), None);
        // Together they had room for twice as much.
        assert_eq!(first_too_full(&needs, &bytes(&[(1, 31), (2, 9)])), Some((NodeId(2), 10, 9)));
        // One that does not answer is no reason to refuse.
        assert_eq!(first_too_full(&needs, &bytes(&[(1, 10)])), None);
    }
}
