//! Answers the pings of other nodes.

use tonic::{Request, Response, Status};

use crate::rpc;
use crate::rpc::proto;
use crate::rpc::proto::gossip_server::{Gossip as Service, GossipServer};

use super::wire::{self, BEAT_BYTES_MAX};
use super::{Gossip, Liveness};

/// The service for this node's server.
pub type GossipService = GossipServer<Answerer>;

/// Answers pings from what this node knows.
#[derive(Debug, Clone)]
pub struct Answerer(pub(super) Gossip);

impl Answerer {
    pub(super) fn service(self) -> GossipService {
        GossipServer::new(self).max_decoding_message_size(BEAT_BYTES_MAX).max_encoding_message_size(BEAT_BYTES_MAX)
    }
}

#[tonic::async_trait]
impl Service for Answerer {
    async fn ping(&self, request: Request<proto::Beat>) -> Result<Response<proto::Beat>, Status> {
        let from = rpc::peer(&request)?.node;
        let beat = request.into_inner();
        let shared = &self.0.shared;
        if beat.leaving {
            shared.update(|state, _| state.detector.left(from, beat.incarnation));
        } else {
            shared.update(|state, now| state.heard(from, &wire::gained(&beat), wire::views(&beat), now));
            // It can reach us: find out at once whether we can reach it.
            if shared.liveness(from).is_some_and(|liveness| liveness != Liveness::Live) {
                shared.wake.notify_one();
            }
        }
        Ok(Response::new(proto::Beat { incarnation: shared.incarnation, ..proto::Beat::default() }))
    }
}
