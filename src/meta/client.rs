//! The calls that consensus makes to other nodes, each with a deadline.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest, VoteResponse};
use tonic::{Code, Status};

use crate::rpc::proto::meta_service_client::MetaServiceClient;
use crate::rpc::proto::raft_service_client::RaftServiceClient;
use crate::rpc::{Lane, MESSAGE_BYTES_MAX, Peers, Retry, proto, within};
use crate::topology::NodeId;

use super::command::Proposal;
use super::followers::Report;
use super::propose::Submitted;
use super::types::{Snapshot, TypeConfig, Vote};
use super::{RaftState, Role, Status as NodeStatus, TransferError, wire};

type Result<T, E = Status> = std::result::Result<T, E>;

/// Bytes of a snapshot in one message.
const PART_BYTES: usize = 1 << 20;

/// What became of a question for a read index.
#[derive(Debug)]
pub(super) enum ReadAnswer {
    Granted { index: u64, log_time_ms: u64, diverged: bool },
    NotLeader { leader: Option<NodeId> },
    NoQuorum,
}

fn unreachable_peer(error: crate::rpc::Error) -> Status {
    Retry::Elsewhere.status(Code::Unavailable, error.to_string())
}

fn malformed() -> Status {
    Retry::Elsewhere.status(Code::Internal, "answer is missing its outcome")
}

fn node_id(id: u64) -> Option<NodeId> {
    (id != 0).then_some(NodeId(id))
}

fn raft_client(peers: &Peers, peer: NodeId, lane: Lane) -> Result<RaftServiceClient<tonic::transport::Channel>> {
    let channel = peers.channel(peer, lane).map_err(unreachable_peer)?;
    Ok(RaftServiceClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX))
}

fn meta_client(peers: &Peers, peer: NodeId) -> Result<MetaServiceClient<tonic::transport::Channel>> {
    let channel = peers.channel(peer, Lane::Control).map_err(unreachable_peer)?;
    Ok(MetaServiceClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX))
}

/// Appends entries at `peer`.
pub(super) async fn append(
    peers: &Peers,
    peer: NodeId,
    request: &AppendEntriesRequest<TypeConfig>,
    deadline: Duration,
) -> Result<AppendEntriesResponse<TypeConfig>> {
    let mut client = raft_client(peers, peer, Lane::Raft)?;
    let reply = within(deadline, client.append(wire::append_request(request))).await?;
    wire::from_append_reply(reply.into_inner())
}

/// Asks `peer` for its vote, or whether it would give it.
pub(super) async fn vote(
    peers: &Peers,
    peer: NodeId,
    request: &VoteRequest<TypeConfig>,
    real: bool,
    deadline: Duration,
) -> Result<VoteResponse<TypeConfig>> {
    let mut client = raft_client(peers, peer, Lane::Raft)?;
    let request = wire::ballot_request(request);
    let reply = match real {
        true => within(deadline, client.vote(request)).await?,
        false => within(deadline, client.pre_vote(request)).await?,
    };
    wire::from_ballot_reply(reply.into_inner())
}

/// Tells `peer` to campaign; the text says why it does not.
pub(super) async fn transfer_leader(
    peers: &Peers,
    peer: NodeId,
    request: &TransferLeaderRequest<TypeConfig>,
    deadline: Duration,
) -> Result<Option<String>> {
    let mut client = raft_client(peers, peer, Lane::Raft)?;
    let reply = within(deadline, client.transfer_leader(wire::transfer_request(request))).await?.into_inner();
    Ok((!reply.refused.is_empty()).then_some(reply.refused))
}

/// Sends a snapshot and returns the receiver's vote once it is installed there.
pub(super) async fn send_snapshot(
    peers: &Peers,
    peer: NodeId,
    vote: &Vote,
    snapshot: Snapshot,
    deadline: Duration,
) -> Result<Vote> {
    let mut client = raft_client(peers, peer, Lane::Bulk)?;
    let header = wire::snapshot_header(vote, snapshot.meta.last_log_id, snapshot.snapshot.size_bytes);
    let file = snapshot.snapshot.file;
    let parts = stream::unfold((Some(header), 0u64), move |(header, offset)| {
        let file = file.clone();
        async move {
            if let Some(header) = header {
                return Some((header, (None, 0)));
            }
            let read = tokio::task::spawn_blocking(move || read_part(&file, offset)).await;
            // A part that cannot be read ends the stream early, and the receiver finds the file cut short.
            let bytes = read.ok()?.ok().filter(|bytes| !bytes.is_empty())?;
            let next = offset + bytes.len() as u64;
            let part = proto::SnapshotPart { part: Some(proto::snapshot_part::Part::Bytes(bytes)) };
            Some((part, (None, next)))
        }
    });
    let reply = within(deadline, client.install_snapshot(parts)).await?.into_inner();
    wire::vote(reply.ballot)
}

fn read_part(file: &Arc<std::fs::File>, offset: u64) -> io::Result<Bytes> {
    let mut bytes = vec![0; PART_BYTES];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes.into())
}

/// Proposes at `leader`.
pub(super) async fn propose(
    peers: &Peers,
    leader: NodeId,
    proposal: &Proposal,
    deadline: Duration,
) -> Result<Submitted> {
    use proto::propose_reply::Outcome;
    let mut client = meta_client(peers, leader)?;
    let deadline_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
    let request = proto::ProposeRequest { proposal: wire::encode_payload(proposal), deadline_ms };
    let reply = within(deadline, client.propose(request)).await?.into_inner();
    Ok(match reply.outcome.ok_or_else(malformed)? {
        Outcome::Applied(applied) => {
            Submitted::Applied { index: applied.index, response: wire::decode_payload(&applied.response)? }
        }
        Outcome::NotLeader(other) => Submitted::NotLeader { leader: node_id(other.leader) },
        Outcome::Unknown(_) => Submitted::Unknown,
    })
}

/// Asks `leader` for a read index.
pub(super) async fn read_index(
    peers: &Peers,
    leader: NodeId,
    report: Report,
    deadline: Duration,
) -> Result<ReadAnswer> {
    use proto::read_index_reply::Outcome;
    let mut client = meta_client(peers, leader)?;
    let request = proto::ReadIndexRequest {
        applied: report.applied,
        state_hash: Bytes::copy_from_slice(&report.state_hash.to_be_bytes()),
        bodies_complete: report.bodies_complete,
        bodies_to: Some(report.bodies_to),
    };
    let reply = within(deadline, client.read_index(request)).await?.into_inner();
    Ok(match reply.outcome.ok_or_else(malformed)? {
        Outcome::Grant(grant) => {
            ReadAnswer::Granted { index: grant.index, log_time_ms: grant.log_time_ms, diverged: grant.diverged }
        }
        Outcome::NotLeader(other) => ReadAnswer::NotLeader { leader: node_id(other.leader) },
        Outcome::NoQuorum(_) => ReadAnswer::NoQuorum,
    })
}

/// Asks `peer` to answer when it has applied `index`; returns what it has applied.
pub(super) async fn wait_applied(peers: &Peers, peer: NodeId, index: u64, deadline: Duration) -> Result<u64> {
    let mut client = meta_client(peers, peer)?;
    let deadline_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
    let request = proto::WaitAppliedRequest { index, deadline_ms };
    Ok(within(deadline, client.wait_applied(request)).await?.into_inner().applied)
}

/// Asks `peer` for its own view of consensus.
pub(super) async fn node_status(
    peers: &Peers,
    peer: NodeId,
    ours: &NodeStatus,
    deadline: Duration,
) -> Result<NodeStatus> {
    let mut client = meta_client(peers, peer)?;
    let reply = within(deadline, client.node_status(proto::NodeStatusRequest {})).await?.into_inner();
    let state_hash: [u8; 16] = reply.state_hash.as_ref().try_into().map_err(|_| malformed())?;
    Ok(NodeStatus {
        cluster: ours.cluster,
        me: peer,
        leader: node_id(reply.leader),
        term: reply.term,
        role: if reply.voter { Role::Voter } else { Role::Learner },
        state: match reply.state {
            1 => RaftState::Leader,
            3 => RaftState::Candidate,
            _ => RaftState::Follower,
        },
        applied: reply.applied,
        state_hash: u128::from_be_bytes(state_hash),
        last_log: reply.last_log,
        snapshot: reply.snapshot,
        fresh: reply.fresh,
        diverged: reply.diverged,
        bodies_complete: reply.bodies_complete,
    })
}

/// Asks `leader` to hand over to `to`, or to whoever is best.
pub(super) async fn hand_over(
    peers: &Peers,
    leader: NodeId,
    to: Option<NodeId>,
    deadline: Duration,
) -> Result<Result<NodeId, TransferError>> {
    use proto::hand_over_reply::Outcome;
    let mut client = meta_client(peers, leader)?;
    let deadline_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
    let request = proto::HandOverRequest { to: to.map_or(0, |to| to.0), deadline_ms };
    let reply = within(deadline, client.hand_over(request)).await?.into_inner();
    Ok(match reply.outcome.ok_or_else(malformed)? {
        Outcome::Leader(leader) => Ok(NodeId(leader)),
        Outcome::NotLeader(_) => Err(TransferError::NoLeader),
        Outcome::NoVoter(_) => Err(TransferError::NoVoter),
        Outcome::TooLate(_) => Err(TransferError::TooLate),
    })
}
