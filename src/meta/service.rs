//! What other nodes may ask of this one: raft's own messages, and questions to the leader or about this node.
//!
//! Every call comes from an authenticated node of this cluster, which must speak for itself: nobody appends or campaigns in
//! another's name, and a removed node is refused (P11, R21, R22).

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::rpc::proto::meta_service_server::{MetaService, MetaServiceServer};
use crate::rpc::proto::raft_service_server::{RaftService, RaftServiceServer};
use crate::rpc::{MESSAGE_BYTES_MAX, Retry, peer, proto};
use crate::topology::NodeId;

use super::consistency::Unconfirmed;
use super::engine::Core;
use super::followers::Report;
use super::propose::Submitted;
use super::snapshot::{Incoming, SnapshotFile};
use super::snapshot_file::load;
use super::types::{LogId, Snapshot, Vote};
use super::wal::EntryId;
use super::{Failure, RaftState, Role, TransferError, wire};

/// The longest a caller may have this node wait.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// A snapshot without a byte for so long is given up.
const SNAPSHOT_IDLE_MAX: Duration = Duration::from_secs(30);

/// This node's side of the services.
#[derive(Debug, Clone)]
pub struct Door(Arc<Core>);

impl Door {
    pub(super) fn new(core: Arc<Core>) -> Self {
        Self(core)
    }

    /// Makes the gRPC service of the raft lane.
    #[must_use]
    pub fn raft_service(&self) -> RaftServiceServer<Self> {
        RaftServiceServer::new(self.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Makes the gRPC service of the control lane.
    #[must_use]
    pub fn meta_service(&self) -> MetaServiceServer<Self> {
        MetaServiceServer::new(self.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn caller<T>(&self, request: &Request<T>) -> Result<NodeId, Status> {
        let node = peer(request)?.node;
        if self.0.admits(node) {
            Ok(node)
        } else {
            Err(Retry::GiveUp.status(Code::PermissionDenied, "this node was removed from the cluster"))
        }
    }
}

fn own_vote(caller: NodeId, vote: &Vote) -> Result<(), Status> {
    if vote.leader_id().node_id == caller.0 {
        Ok(())
    } else {
        Err(Retry::GiveUp.status(Code::PermissionDenied, "the vote is not the caller's"))
    }
}

fn stopped(error: impl std::fmt::Display) -> Status {
    Retry::Elsewhere.status(Code::Unavailable, format!("raft has stopped: {error}"))
}

fn limit(deadline_ms: u64) -> Duration {
    Duration::from_millis(deadline_ms).min(WAIT_MAX)
}

fn not_leader(leader: Option<NodeId>) -> proto::NotLeader {
    proto::NotLeader { leader: leader.map_or(0, |leader| leader.0) }
}

#[tonic::async_trait]
impl RaftService for Door {
    async fn append(&self, request: Request<proto::AppendRequest>) -> Result<Response<proto::AppendReply>, Status> {
        let caller = self.caller(&request)?;
        let rpc = wire::from_append_request(request.into_inner())?;
        own_vote(caller, &rpc.vote)?;
        let answer = self.0.raft.append_entries(rpc).await.map_err(stopped)?;
        Ok(Response::new(wire::append_reply(answer)))
    }

    async fn vote(&self, request: Request<proto::BallotRequest>) -> Result<Response<proto::BallotReply>, Status> {
        let caller = self.caller(&request)?;
        let rpc = wire::from_ballot_request(request.into_inner())?;
        own_vote(caller, &rpc.vote)?;
        let answer = self.0.raft.vote(rpc).await.map_err(stopped)?;
        Ok(Response::new(wire::ballot_reply(&answer)))
    }

    async fn pre_vote(&self, request: Request<proto::BallotRequest>) -> Result<Response<proto::BallotReply>, Status> {
        let caller = self.caller(&request)?;
        let rpc = wire::from_ballot_request(request.into_inner())?;
        own_vote(caller, &rpc.vote)?;
        let answer = self.0.raft.pre_vote(rpc).await.map_err(stopped)?;
        Ok(Response::new(wire::ballot_reply(&answer)))
    }

    async fn transfer_leader(
        &self,
        request: Request<proto::TransferLeaderRequest>,
    ) -> Result<Response<proto::TransferLeaderReply>, Status> {
        let caller = self.caller(&request)?;
        let rpc = wire::from_transfer_request(request.into_inner())?;
        own_vote(caller, rpc.from_leader())?;
        let answer = self.0.raft.handle_transfer_leader(rpc).await.map_err(stopped)?;
        let refused = answer.err().map_or_else(String::new, |error| error.to_string());
        Ok(Response::new(proto::TransferLeaderReply { refused }))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<proto::SnapshotPart>>,
    ) -> Result<Response<proto::SnapshotReply>, Status> {
        let caller = self.caller(&request)?;
        let mut parts = request.into_inner();
        let header = next_part(&mut parts).await?.ok_or_else(cut_short)?;
        let (vote, last, size_bytes) = wire::from_snapshot_header(header)?;
        own_vote(caller, &vote)?;
        let reply = |vote: &Vote| Ok(Response::new(proto::SnapshotReply { ballot: Some(wire::ballot(vote)) }));
        let mine = self.0.raft_metrics().vote;
        if mine > vote {
            return reply(&mine);
        }
        if self.0.published.current().index >= last.index {
            return reply(&vote);
        }
        let Ok(_receiving) = self.0.receiving.try_lock() else {
            return Err(Retry::Here.status(Code::ResourceExhausted, "another snapshot is being received"));
        };
        let incoming = self.0.snapshots.incoming(caller.0);
        receive(&mut parts, incoming.path(), size_bytes).await?;
        reply(&self.install(incoming, vote, last).await?)
    }
}

impl Door {
    /// Verifies a received snapshot whole and only then hands it to raft; a bad one is refused and this node stays as it is.
    async fn install(&self, mut incoming: Incoming, vote: Vote, last: LogId) -> Result<Vote, Status> {
        let path = incoming.path().to_owned();
        let (owned, cluster) = (path.clone(), self.0.cluster);
        let loaded = tokio::task::spawn_blocking(move || load(&owned, cluster)).await.map_err(stopped)?;
        let refuse = |text: String| {
            tracing::error!(error = text, "received snapshot refused");
            Retry::Here.status(Code::DataLoss, text)
        };
        let (header, state) = loaded.map_err(|error| refuse(error.to_string()))?;
        if header.last != Some(EntryId::from(last)) || *vote.leader_id() < last.leader_id {
            return Err(refuse("snapshot is not what its header says".to_owned()));
        }
        let file = File::open(&path).map_err(|error| refuse(error.to_string()))?;
        let size_bytes = file.metadata().map_or(0, |metadata| metadata.len());
        let snapshot =
            SnapshotFile { path: path.clone(), file: Arc::new(file), size_bytes, state: Some(Arc::new(state)) };
        let snapshot = Snapshot { meta: header.meta(), snapshot };
        // From here on the state machine may take it in, even if this call is dropped.
        incoming.keep();
        let answer = self.0.raft.install_full_snapshot(vote, snapshot).await.map_err(stopped)?;
        // Installed, it has its own name by now.
        tokio::fs::remove_file(&path).await.ok();
        tracing::info!(log_index = last.index, size_bytes, "snapshot installed");
        Ok(answer.vote)
    }
}

fn cut_short() -> Status {
    Retry::Here.status(Code::Aborted, "snapshot was cut short")
}

async fn next_part(parts: &mut Streaming<proto::SnapshotPart>) -> Result<Option<proto::SnapshotPart>, Status> {
    timeout(SNAPSHOT_IDLE_MAX, parts.message()).await.map_err(|_| cut_short())?
}

/// Writes the snapshot's bytes to `path`, synced.
async fn receive(parts: &mut Streaming<proto::SnapshotPart>, path: &Path, size_bytes: u64) -> Result<(), Status> {
    let storage = |error: io::Error| Retry::Here.status(Code::Internal, format!("snapshot cannot be stored: {error}"));
    let mut file = Arc::new(File::create(path).map_err(storage)?);
    let mut received = 0;
    while let Some(part) = next_part(parts).await? {
        let Some(proto::snapshot_part::Part::Bytes(bytes)) = part.part else { return Err(cut_short()) };
        received += bytes.len() as u64;
        if received > size_bytes {
            return Err(cut_short());
        }
        let write = move || (&*file).write_all(&bytes).map(|()| file);
        file = tokio::task::spawn_blocking(write).await.map_err(stopped)?.map_err(storage)?;
    }
    if received < size_bytes {
        return Err(cut_short());
    }
    tokio::task::spawn_blocking(move || file.sync_all()).await.map_err(stopped)?.map_err(storage)
}

#[tonic::async_trait]
impl MetaService for Door {
    async fn propose(&self, request: Request<proto::ProposeRequest>) -> Result<Response<proto::ProposeReply>, Status> {
        use proto::propose_reply::Outcome;
        self.caller(&request)?;
        let request = request.into_inner();
        let proposal = wire::decode_payload(&request.proposal)?;
        // A little less than the caller waits, so that it hears what became of it.
        let limit = limit(request.deadline_ms).mul_f64(0.95);
        let outcome = match self.0.submit(proposal, Instant::now() + limit).await {
            Submitted::Applied { index, response } => {
                Outcome::Applied(proto::AppliedReply { index, response: wire::encode_payload(&response) })
            }
            Submitted::NotLeader { leader } => Outcome::NotLeader(not_leader(leader)),
            Submitted::Unknown => Outcome::Unknown(proto::Empty {}),
        };
        Ok(Response::new(proto::ProposeReply { outcome: Some(outcome) }))
    }

    async fn read_index(
        &self,
        request: Request<proto::ReadIndexRequest>,
    ) -> Result<Response<proto::ReadIndexReply>, Status> {
        use proto::read_index_reply::Outcome;
        let caller = self.caller(&request)?;
        let core = &self.0;
        let Some(term) = core.leading() else {
            let other = core.leader().filter(|leader| *leader != core.me);
            let outcome = Some(Outcome::NotLeader(not_leader(other)));
            return Ok(Response::new(proto::ReadIndexReply { outcome }));
        };
        let request = request.into_inner();
        let state_hash: [u8; 16] = request
            .state_hash
            .as_ref()
            .try_into()
            .map_err(|_| Retry::GiveUp.status(Code::InvalidArgument, "state hash is not 16 bytes"))?;
        let state_hash = u128::from_be_bytes(state_hash);
        let (applied, bodies_complete) = (request.applied, request.bodies_complete);
        // A node of an earlier version says only whether it has all.
        let bodies_to = request.bodies_to.unwrap_or(if bodies_complete { applied } else { 0 });
        let report = Report { applied, state_hash, bodies_complete, bodies_to };
        let agrees = core.published.hash_at(report.applied).map(|hash| hash == state_hash);
        // Before the index is determined: a delete that commits meanwhile must see that this grant may be live (P6).
        core.followers.asked(term, caller.0, report, agrees);
        let outcome = match core.read_index(true).await {
            Ok(granted) => {
                let log_time = core.stamp(Duration::from_millis(500)).await;
                match log_time {
                    Some(time) => Outcome::Grant(proto::ReadGrant {
                        index: granted.index,
                        log_time_ms: time.0,
                        diverged: agrees == Some(false) && self.judge(caller, report.applied),
                    }),
                    None => Outcome::NoQuorum(proto::Empty {}),
                }
            }
            Err(Unconfirmed::NotLeader) => {
                Outcome::NotLeader(not_leader(core.leader().filter(|leader| *leader != core.me)))
            }
            Err(Unconfirmed::NoQuorum) => Outcome::NoQuorum(proto::Empty {}),
        };
        Ok(Response::new(proto::ReadIndexReply { outcome: Some(outcome) }))
    }

    async fn wait_applied(
        &self,
        request: Request<proto::WaitAppliedRequest>,
    ) -> Result<Response<proto::WaitAppliedReply>, Status> {
        self.caller(&request)?;
        let request = request.into_inner();
        self.0.wait_applied(request.index, limit(request.deadline_ms).mul_f64(0.95)).await;
        Ok(Response::new(proto::WaitAppliedReply { applied: self.0.published.current().index }))
    }

    async fn hand_over(
        &self,
        request: Request<proto::HandOverRequest>,
    ) -> Result<Response<proto::HandOverReply>, Status> {
        use proto::hand_over_reply::Outcome;
        self.caller(&request)?;
        let request = request.into_inner();
        let to = (request.to != 0).then_some(NodeId(request.to));
        let outcome = match self.0.transfer_here(to, limit(request.deadline_ms).mul_f64(0.95)).await {
            Ok(leader) => Outcome::Leader(leader.0),
            Err(TransferError::NoLeader) => Outcome::NotLeader(not_leader(self.0.leader())),
            Err(TransferError::NoVoter) => Outcome::NoVoter(proto::Empty {}),
            Err(TransferError::TooLate) => Outcome::TooLate(proto::Empty {}),
        };
        Ok(Response::new(proto::HandOverReply { outcome: Some(outcome) }))
    }

    async fn node_status(
        &self,
        request: Request<proto::NodeStatusRequest>,
    ) -> Result<Response<proto::NodeStatusReply>, Status> {
        self.caller(&request)?;
        let status = self.0.status();
        Ok(Response::new(proto::NodeStatusReply {
            leader: status.leader.map_or(0, |leader| leader.0),
            term: status.term,
            voter: status.role == Role::Voter,
            state: match status.state {
                RaftState::Leader => 1,
                RaftState::Follower | RaftState::Unreachable => 2,
                RaftState::Candidate => 3,
            },
            applied: status.applied,
            state_hash: Bytes::copy_from_slice(&status.state_hash.to_be_bytes()),
            last_log: status.last_log,
            snapshot: status.snapshot,
            fresh: status.fresh,
            diverged: status.diverged,
            bodies_complete: status.bodies_complete,
        }))
    }
}

impl Door {
    /// Decides who is wrong when a node's state differs from this leader's at one index: whoever is not with the majority
    /// of the voters (P8). Returns whether it is the caller.
    fn judge(&self, caller: NodeId, index: u64) -> bool {
        let voters = self.0.voter_sets().sets.into_iter().flatten().map(|node| node.0).collect();
        let (with, against) = self.0.followers.verdicts(self.0.me.0, &voters);
        tracing::error!(peer = caller.0, log_index = index, with, against, "state hashes differ");
        if against * 2 > voters.len() {
            self.0.fail(Failure::Diverged { index });
        }
        with * 2 > voters.len()
    }
}
