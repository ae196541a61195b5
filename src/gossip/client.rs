//! Calls to other nodes' gossip service, each with a deadline.

use std::future::Future;
use std::time::Duration;

use prost::Message;
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::rpc;
use crate::rpc::proto::gossip_client::GossipClient;
use crate::rpc::proto::{Beat, ProbeRequest};
use crate::rpc::{Lane, Peers};
use crate::topology::NodeId;

use super::Metrics;
use super::exchange::{Answer, Question};
use super::holdings::Standing;
use super::wire::{self, ANSWER_BYTES_MAX};

/// What a peer says in answer to a ping.
#[derive(Debug)]
pub(super) struct Pong {
    pub(super) incarnation: u64,
    pub(super) standings: Vec<Standing>,
}

/// Calls of this node; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Client {
    pub(super) peers: Peers,
    pub(super) metrics: Metrics,
}

impl Client {
    /// Pings one peer.
    ///
    /// # Errors
    ///
    /// What kept the answer from coming back in time, for people.
    pub(super) async fn ping(
        &self,
        node: NodeId,
        incarnation: u64,
        standings: &[Standing],
        deadline: Duration,
    ) -> Result<Pong, String> {
        let beat = wire::beat(incarnation, standings);
        let answer = self.beat(node, beat, deadline).await?;
        Ok(Pong { incarnation: answer.incarnation, standings: wire::standings(&answer) })
    }

    /// Tells one peer that this incarnation stops.
    ///
    /// # Errors
    ///
    /// As [`Self::ping`].
    pub(super) async fn goodbye(&self, node: NodeId, incarnation: u64, deadline: Duration) -> Result<(), String> {
        self.beat(node, Beat { incarnation, leaving: true, standings: Vec::new() }, deadline).await.map(drop)
    }

    async fn beat(&self, node: NodeId, beat: Beat, deadline: Duration) -> Result<Beat, String> {
        let mut client = client(self.channel(node, Lane::Control)?);
        self.counted(beat.encoded_len(), rpc::within(deadline, client.ping(beat))).await
    }

    /// Has one peer call a third node, and returns why it could not, or nothing.
    ///
    /// # Errors
    ///
    /// As [`Self::ping`]: then nothing is known.
    pub(super) async fn probe(
        &self,
        helper: NodeId,
        suspect: NodeId,
        deadline: Duration,
    ) -> Result<Option<String>, String> {
        let mut client = client(self.channel(helper, Lane::Control)?);
        let request = ProbeRequest { node: suspect.0 };
        let answer = self.counted(request.encoded_len(), rpc::within(deadline, client.probe(request))).await?;
        Ok(wire::read_finding(answer))
    }

    /// Puts a question about books to one peer, apart from what is urgent.
    ///
    /// # Errors
    ///
    /// As [`Self::ping`].
    pub(super) async fn ask(&self, node: NodeId, question: &Question, deadline: Duration) -> Result<Answer, String> {
        let mut client = client(self.channel(node, Lane::Bulk)?);
        match question {
            Question::Pull(positions) => {
                let request = wire::positions(positions);
                let answer = self.counted(request.encoded_len(), rpc::within(deadline, client.pull(request))).await?;
                Ok(Answer::News(wire::read_news(&answer)))
            }
            Question::Compare(book, ranges) => {
                let request = wire::ranges(*book, ranges);
                let bytes = request.encoded_len();
                let call = rpc::within(deadline, client.compare(request));
                let answer = self.counted(bytes, call).await?;
                Ok(Answer::Differences(wire::read_comparison(&answer)))
            }
        }
    }

    fn channel(&self, node: NodeId, lane: Lane) -> Result<Channel, String> {
        self.peers.channel(node, lane).map_err(|error| rpc::describe(&error))
    }

    /// Counts the bytes of a request and of its answer.
    async fn counted<A: Message>(
        &self,
        request_bytes: usize,
        call: impl Future<Output = Result<Response<A>, Status>>,
    ) -> Result<A, String> {
        self.metrics.sent(request_bytes);
        let answer = call.await.map_err(|status| rpc::describe_status(&status))?.into_inner();
        self.metrics.received(answer.encoded_len());
        Ok(answer)
    }
}

fn client(channel: Channel) -> GossipClient<Channel> {
    GossipClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}
