//! Sends beats to peers.

use std::time::Duration;

use crate::oci::Digest;
use crate::rpc;
use crate::rpc::proto::Beat;
use crate::rpc::proto::gossip_client::GossipClient;
use crate::rpc::{Lane, Peers};
use crate::topology::NodeId;

use super::state::View;
use super::wire::{self, BEAT_BYTES_MAX};

/// What a ping says.
#[derive(Debug)]
pub(super) struct Ping {
    pub(super) incarnation: u64,
    pub(super) gained: Vec<Digest>,
    pub(super) views: Vec<View>,
}

/// Pings one peer and returns the incarnation that answered.
///
/// # Errors
///
/// What kept the answer from coming back in time, for people.
pub(super) async fn ping(peers: &Peers, node: NodeId, ping: Ping, deadline: Duration) -> Result<u64, String> {
    send(peers, node, wire::beat(ping.incarnation, &ping.gained, &ping.views), deadline).await
}

/// Tells one peer that this incarnation stops.
///
/// # Errors
///
/// As [`ping`].
pub(super) async fn goodbye(peers: &Peers, node: NodeId, incarnation: u64, deadline: Duration) -> Result<u64, String> {
    send(peers, node, Beat { leaving: true, ..wire::beat(incarnation, &[], &[]) }, deadline).await
}

async fn send(peers: &Peers, node: NodeId, beat: Beat, deadline: Duration) -> Result<u64, String> {
    let channel = peers.channel(node, Lane::Control).map_err(|error| rpc::describe(&error))?;
    let mut client = GossipClient::new(channel).max_decoding_message_size(BEAT_BYTES_MAX);
    match rpc::within(deadline, client.ping(beat)).await {
        Ok(answer) => Ok(answer.into_inner().incarnation),
        Err(status) => Err(rpc::describe_status(&status)),
    }
}
