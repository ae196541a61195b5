//! Between the wire's messages and the types of consensus.

use bytes::Bytes;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest, VoteResponse};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::{Code, Status};

use crate::rpc::{Retry, proto};

use super::types::{LogId, TypeConfig, Vote, decode_entry, encode_entry};
use super::wal::{Ballot, EntryId};

/// The version of encoded proposals and responses.
const PAYLOAD_VERSION: u8 = 1;

fn malformed(what: &str) -> Status {
    Retry::GiveUp.status(Code::InvalidArgument, format!("{what} is missing or unknown to this binary"))
}

fn position(id: LogId) -> proto::LogPosition {
    let EntryId { term, node, index } = id.into();
    proto::LogPosition { term, node, index }
}

fn log_id(position: proto::LogPosition) -> LogId {
    EntryId { term: position.term, node: position.node, index: position.index }.into()
}

pub(super) fn ballot(vote: &Vote) -> proto::Ballot {
    let Ballot { term, node, granted } = vote.into();
    proto::Ballot { term, node, granted }
}

pub(super) fn vote(ballot: Option<proto::Ballot>) -> Result<Vote, Status> {
    let proto::Ballot { term, node, granted } = ballot.ok_or_else(|| malformed("ballot"))?;
    Ok(Ballot { term, node, granted }.into())
}

/// Encodes a proposal or a response: a version byte, then postcard.
pub(super) fn encode_payload<T: Serialize>(value: &T) -> Bytes {
    postcard::to_extend(value, vec![PAYLOAD_VERSION]).expect("plain values always encode").into()
}

pub(super) fn decode_payload<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Status> {
    match bytes.split_first() {
        Some((&PAYLOAD_VERSION, rest)) => postcard::from_bytes(rest).map_err(|_| malformed("payload")),
        _ => Err(malformed("payload version")),
    }
}

pub(super) fn append_request(request: &AppendEntriesRequest<TypeConfig>) -> proto::AppendRequest {
    proto::AppendRequest {
        ballot: Some(ballot(&request.vote)),
        previous: request.prev_log_id.map(position),
        entries: request.entries.iter().map(|entry| encode_entry(entry).into()).collect(),
        committed: request.leader_commit.map(position),
    }
}

pub(super) fn from_append_request(request: proto::AppendRequest) -> Result<AppendEntriesRequest<TypeConfig>, Status> {
    let entries = request.entries.iter().map(|entry| decode_entry(entry));
    Ok(AppendEntriesRequest {
        vote: vote(request.ballot)?,
        prev_log_id: request.previous.map(log_id),
        entries: entries
            .collect::<Result<_, _>>()
            .map_err(|error| Retry::GiveUp.status(Code::InvalidArgument, format!("entry cannot be taken: {error}")))?,
        leader_commit: request.committed.map(log_id),
    })
}

pub(super) fn append_reply(response: AppendEntriesResponse<TypeConfig>) -> proto::AppendReply {
    use proto::append_reply::Outcome;
    let outcome = match response {
        AppendEntriesResponse::Success => Outcome::Success(proto::Empty {}),
        AppendEntriesResponse::PartialSuccess(matched) => {
            Outcome::Partial(proto::PartialAppend { matched: matched.map(position) })
        }
        AppendEntriesResponse::Conflict => Outcome::Conflict(proto::Empty {}),
        AppendEntriesResponse::HigherVote(vote) => Outcome::Higher(ballot(&vote)),
    };
    proto::AppendReply { outcome: Some(outcome) }
}

pub(super) fn from_append_reply(reply: proto::AppendReply) -> Result<AppendEntriesResponse<TypeConfig>, Status> {
    use proto::append_reply::Outcome;
    Ok(match reply.outcome.ok_or_else(|| malformed("outcome"))? {
        Outcome::Success(_) => AppendEntriesResponse::Success,
        Outcome::Partial(partial) => AppendEntriesResponse::PartialSuccess(partial.matched.map(log_id)),
        Outcome::Conflict(_) => AppendEntriesResponse::Conflict,
        Outcome::Higher(higher) => AppendEntriesResponse::HigherVote(vote(Some(higher))?),
    })
}

pub(super) fn ballot_request(request: &VoteRequest<TypeConfig>) -> proto::BallotRequest {
    proto::BallotRequest {
        ballot: Some(ballot(&request.vote)),
        last: request.last_log_id.map(position),
        leadership_transfer: request.leadership_transfer,
    }
}

pub(super) fn from_ballot_request(request: proto::BallotRequest) -> Result<VoteRequest<TypeConfig>, Status> {
    Ok(VoteRequest {
        vote: vote(request.ballot)?,
        last_log_id: request.last.map(log_id),
        leadership_transfer: request.leadership_transfer,
    })
}

pub(super) fn ballot_reply(response: &VoteResponse<TypeConfig>) -> proto::BallotReply {
    proto::BallotReply {
        ballot: Some(ballot(&response.vote)),
        granted: response.vote_granted,
        last: response.last_log_id.map(position),
    }
}

pub(super) fn from_ballot_reply(reply: proto::BallotReply) -> Result<VoteResponse<TypeConfig>, Status> {
    Ok(VoteResponse::new(vote(reply.ballot)?, reply.last.map(log_id), reply.granted))
}

pub(super) fn transfer_request(request: &TransferLeaderRequest<TypeConfig>) -> proto::TransferLeaderRequest {
    proto::TransferLeaderRequest {
        ballot: Some(ballot(request.from_leader())),
        to: *request.to_node_id(),
        last: request.last_log_id().copied().map(position),
    }
}

pub(super) fn from_transfer_request(
    request: proto::TransferLeaderRequest,
) -> Result<TransferLeaderRequest<TypeConfig>, Status> {
    Ok(TransferLeaderRequest::new(vote(request.ballot)?, request.to, request.last.map(log_id)))
}

pub(super) fn snapshot_header(vote: &Vote, last: Option<LogId>, size_bytes: u64) -> proto::SnapshotPart {
    let header = proto::SnapshotHeader { ballot: Some(ballot(vote)), last: last.map(position), size_bytes };
    proto::SnapshotPart { part: Some(proto::snapshot_part::Part::Header(header)) }
}

/// Reads a snapshot's header: the sender's vote, its last entry, its size.
pub(super) fn from_snapshot_header(part: proto::SnapshotPart) -> Result<(Vote, LogId, u64), Status> {
    let Some(proto::snapshot_part::Part::Header(header)) = part.part else { return Err(malformed("snapshot header")) };
    let last = header.last.ok_or_else(|| malformed("last entry"))?;
    Ok((vote(header.ballot)?, log_id(last), header.size_bytes))
}
