//! Answers the calls of other nodes.

use std::sync::Arc;

use prost::Message;
use tokio::sync::Semaphore;
use tonic::{Code, Request, Response, Status};

use crate::rpc;
use crate::rpc::proto;
use crate::rpc::proto::gossip_server::{Gossip as Service, GossipServer};
use crate::topology::NodeId;

use super::wire::{self, ANSWER_BYTES_MAX, REQUEST_BYTES_MAX};
use super::{Gossip, Liveness};

/// Calls put for others at once.
const PROBES_MAX: usize = 32;

/// The service for this node's server.
pub type GossipService = GossipServer<Answerer>;

/// Answers from what this node knows.
#[derive(Debug, Clone)]
pub struct Answerer {
    gossip: Gossip,
    probes: Arc<Semaphore>,
}

impl Answerer {
    pub(super) fn service(gossip: Gossip) -> GossipService {
        let answerer = Self { gossip, probes: Arc::new(Semaphore::new(PROBES_MAX)) };
        GossipServer::new(answerer)
            .max_decoding_message_size(REQUEST_BYTES_MAX)
            .max_encoding_message_size(ANSWER_BYTES_MAX)
    }

    /// Counts the bytes of a call and of its answer.
    fn counted<A: Message>(&self, request_bytes: usize, answer: A) -> Response<A> {
        let metrics = self.gossip.shared.metrics();
        metrics.received(request_bytes);
        metrics.sent(answer.encoded_len());
        Response::new(answer)
    }
}

#[tonic::async_trait]
impl Service for Answerer {
    async fn ping(&self, request: Request<proto::Beat>) -> Result<Response<proto::Beat>, Status> {
        let from = rpc::peer(&request)?.node;
        let beat = request.into_inner();
        let shared = &self.gossip.shared;
        if beat.leaving {
            shared.update(|detector, _| detector.left(from, beat.incarnation));
            let answer = wire::beat(shared.incarnation, &[]);
            return Ok(self.counted(beat.encoded_len(), answer));
        }
        shared.update(|detector, now| detector.called(from, now));
        shared.hear(from, wire::standings(&beat));
        // It can reach us: find out at once whether we can reach it.
        if shared.liveness(from).is_some_and(|liveness| liveness != Liveness::Live) {
            shared.wake.notify_one();
        }
        let standings = shared.holdings().standings();
        Ok(self.counted(beat.encoded_len(), wire::beat(shared.incarnation, &standings)))
    }

    async fn probe(&self, request: Request<proto::ProbeRequest>) -> Result<Response<proto::ProbeAnswer>, Status> {
        let bytes = request.get_ref().encoded_len();
        let suspect = NodeId(request.get_ref().node);
        let Ok(_permit) = self.probes.try_acquire() else {
            return Err(rpc::Retry::Elsewhere.status(Code::ResourceExhausted, "many nodes are probed already"));
        };
        // Only members are called: an unknown one has no address.
        let problem = self.gossip.shared.call(suspect).await.err();
        Ok(self.counted(bytes, wire::finding(problem)))
    }

    async fn pull(&self, request: Request<proto::PullRequest>) -> Result<Response<proto::PullAnswer>, Status> {
        let request = request.into_inner();
        let parts = self.gossip.shared.holdings().news(&wire::read_positions(&request));
        Ok(self.counted(request.encoded_len(), wire::news(&parts)))
    }

    async fn compare(&self, request: Request<proto::CompareRequest>) -> Result<Response<proto::CompareAnswer>, Status> {
        let request = request.into_inner();
        let ranges = wire::read_ranges(&request)
            .ok_or_else(|| rpc::Retry::GiveUp.status(Code::InvalidArgument, "ranges are malformed"))?;
        let found = self.gossip.shared.holdings().compare(NodeId(request.node), &ranges);
        Ok(self.counted(request.encoded_len(), wire::comparison(found.as_ref())))
    }
}
