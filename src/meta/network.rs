//! Consensus' way to the other members: one link per target, without state of its own.
//!
//! Every failure is `Unreachable`, so that consensus backs off instead of hammering a dead peer (R24); every call has our own
//! deadline, since a partition would otherwise wedge the stream past healing.

use std::future::Future;
use std::time::Duration;

use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::impls::EmptyNode;
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderError, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use tonic::Status;

use crate::rpc::Peers;
use crate::topology::NodeId;

use super::client;
use super::snapshot::SnapshotFile;
use super::types::{Snapshot, TypeConfig, Vote};

/// Makes links.
#[derive(Debug, Clone)]
pub(super) struct Network {
    pub(super) peers: Peers,
    pub(super) append_deadline: Duration,
}

/// The way to one member.
#[derive(Debug)]
pub(super) struct Link {
    network: Network,
    target: NodeId,
}

fn refused(status: &Status) -> Unreachable<TypeConfig> {
    Unreachable::from_string(format!("{:?}: {}", status.code(), status.message()))
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: u64, _node: &EmptyNode) -> Link {
        Link { network: self.clone(), target: NodeId(target) }
    }
}

impl RaftNetworkV2<TypeConfig> for Link {
    type SnapshotData = SnapshotFile;

    /// The deadline is ours and not the option's, which is one heartbeat: an append waits for the follower's sync.
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let deadline = option.hard_ttl().max(self.network.append_deadline);
        let answer = client::append(&self.network.peers, self.target, &rpc, deadline).await;
        answer.map_err(|status| refused(&status).into())
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let answer = client::vote(&self.network.peers, self.target, &rpc, true, option.soft_ttl()).await;
        answer.map_err(|status| refused(&status).into())
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let answer = client::vote(&self.network.peers, self.target, &rpc, false, option.soft_ttl()).await;
        answer.map_err(|status| refused(&status).into())
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let sent = client::send_snapshot(&self.network.peers, self.target, &vote, snapshot, option.soft_ttl());
        tokio::select! {
            closed = cancel => Err(closed.into()),
            answer = sent => match answer {
                Ok(vote) => Ok(SnapshotResponse::new(vote)),
                Err(status) => Err(refused(&status).into()),
            },
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let answer = client::transfer_leader(&self.network.peers, self.target, &req, option.soft_ttl()).await;
        match answer {
            Ok(None) => Ok(Ok(())),
            Ok(Some(reason)) => {
                tracing::info!(peer = self.target.0, reason, "successor does not campaign");
                let (expected, actual) = (req.last_log_id().copied(), None);
                Ok(Err(TransferLeaderError::LogNotFlushed { expected, actual }))
            }
            Err(status) => Err(refused(&status).into()),
        }
    }
}
