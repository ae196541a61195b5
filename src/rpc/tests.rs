//! Real TLS over loopback: who gets in, and who does not.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status};

use crate::env::Env;
use crate::topology::{ClusterId, NodeId};

use super::dial::{Dialer, dial};
use super::proto::gossip_client::GossipClient;
use super::proto::gossip_server::{Gossip, GossipServer};
use super::proto::{Beat, CompareAnswer, CompareRequest, ProbeAnswer, ProbeRequest, PullAnswer, PullRequest};
use super::testing::{Authority, Loopback, env, env_ahead, record, server_parts};
use super::tls::any_verifier;
use super::{Credentials, Lane, Metrics, NodeUri, Server, describe, peer, within};

const SOON: Duration = Duration::from_secs(20);

/// Answers pings with an incarnation made from the caller's id, and nothing else.
struct Echo(fn(NodeId) -> u64);

#[tonic::async_trait]
impl Gossip for Echo {
    async fn ping(&self, request: Request<Beat>) -> Result<Response<Beat>, Status> {
        assert!(!request.get_ref().leaving, "asked to panic");
        Ok(Response::new(Beat { incarnation: self.0(peer(&request)?.node), ..Beat::default() }))
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeAnswer>, Status> {
        Err(Status::unimplemented("probe"))
    }

    async fn pull(&self, _: Request<PullRequest>) -> Result<Response<PullAnswer>, Status> {
        Err(Status::unimplemented("pull"))
    }

    async fn compare(&self, _: Request<CompareRequest>) -> Result<Response<CompareAnswer>, Status> {
        Err(Status::unimplemented("compare"))
    }
}

fn echo() -> Routes {
    Routes::new(GossipServer::new(Echo(|caller| caller.0)))
}

async fn ping(cluster: &Loopback, from: u64, to: u64, lane: Lane) -> Result<u64, Status> {
    let channel = cluster.node(from).peers.channel(NodeId(to), lane).unwrap();
    let mut client = GossipClient::new(channel);
    within(SOON, client.ping(Beat::default())).await.map(|beat| beat.into_inner().incarnation)
}

/// Connects with `credentials`, expecting `node`, and pings; the error is the connection's or the call's.
async fn ping_as(env: &Env, credentials: &Credentials, address: &str, node: u64) -> Result<u64, String> {
    let dialer = Dialer {
        env: env.clone(),
        credentials: credentials.clone(),
        peer: NodeId(node),
        lane: Lane::Control,
        address: address.to_owned(),
        metrics: Metrics::default(),
        failed: Mutex::default(),
    };
    let stream = dialer.connect().await.map_err(|error| describe(&error))?;
    call_over(stream).await
}

async fn call_over(stream: tokio_rustls::client::TlsStream<crate::env::Stream>) -> Result<u64, String> {
    let stream = Mutex::new(Some(stream));
    let channel = tonic::transport::Endpoint::from_static("http://peer")
        .connect_with_connector(tower::service_fn(move |_: http::Uri| {
            let stream = stream.lock().unwrap().take();
            async move { stream.map(hyper_util::rt::TokioIo::new).ok_or_else(|| std::io::Error::other("closed")) }
        }))
        .await
        .map_err(|error| describe(&error))?;
    let answer = within(SOON, GossipClient::new(channel).ping(Beat::default())).await;
    answer.map(|beat| beat.into_inner().incarnation).map_err(|status| describe(&status))
}

#[tokio::test]
async fn nodes_of_a_cluster_know_each_other_on_every_lane() {
    let cluster = Loopback::start(2).await;
    cluster.node(2).serve(echo());
    for lane in [Lane::Raft, Lane::Control, Lane::Bulk] {
        assert_eq!(ping(&cluster, 1, 2, lane).await.unwrap(), 1);
    }
}

#[tokio::test]
async fn a_starting_node_says_unavailable() {
    let cluster = Loopback::start(2).await;
    assert_eq!(ping(&cluster, 1, 2, Lane::Control).await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn a_node_that_was_removed_is_refused() {
    let cluster = Loopback::start(2).await;
    cluster.node(2).handle.install(echo(), Arc::new(|peer| peer.node != NodeId(1)));
    assert_eq!(ping(&cluster, 1, 2, Lane::Control).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(ping(&cluster, 2, 2, Lane::Control).await.unwrap(), 2);
}

#[tokio::test]
async fn a_node_that_comes_back_elsewhere_is_found_again() {
    let mut cluster = Loopback::start(2).await;
    cluster.node(2).serve(echo());
    assert_eq!(ping(&cluster, 1, 2, Lane::Control).await.unwrap(), 1);
    cluster.node(2).stop.cancel();
    cluster.nodes.remove(1);
    cluster.add(2).await;
    cluster.node(2).serve(echo());
    assert_eq!(ping(&cluster, 1, 2, Lane::Control).await.unwrap(), 1);
}

#[tokio::test]
async fn an_unknown_peer_is_an_error_and_not_a_wait() {
    let cluster = Loopback::start(1).await;
    assert!(cluster.node(1).peers.channel(NodeId(9), Lane::Raft).is_err());
}

#[tokio::test]
async fn a_dead_peer_fails_fast_and_is_reached_once_it_is_back() {
    let cluster = Loopback::start(1).await;
    let address = {
        let gone = env().net.bind("127.0.0.1:0").await.unwrap();
        gone.local_address().unwrap().to_string()
    };
    cluster.topology.send_modify(|topology| {
        Arc::make_mut(topology).nodes.insert(NodeId(2), record(2, &address));
    });
    let started = tokio::time::Instant::now();
    assert_eq!(ping(&cluster, 1, 2, Lane::Control).await.unwrap_err().code(), Code::Unavailable);
    assert!(started.elapsed() < Duration::from_secs(4));
    let credentials = Credentials::of(&env(), cluster.authority.identity(2)).unwrap();
    let (server, handle) = Server::bind(&address, server_parts(&env(), &credentials)).await.unwrap();
    handle.install(echo(), Arc::new(|_| true));
    let stop = CancellationToken::new();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(server.run(stop));
    let back = async {
        while ping(&cluster, 1, 2, Lane::Control).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(SOON, back).await.unwrap();
}

#[tokio::test]
async fn a_panicking_call_is_answered_and_the_connection_goes_on() {
    let cluster = Loopback::start(2).await;
    cluster.node(2).serve(echo());
    let mut client = GossipClient::new(cluster.node(1).peers.channel(NodeId(2), Lane::Control).unwrap());
    let status = client.ping(Beat { leaving: true, ..Beat::default() }).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    assert_eq!(ping(&cluster, 1, 2, Lane::Control).await.unwrap(), 1);
}

#[tokio::test]
async fn a_certificate_of_another_cluster_node_or_epoch_is_refused() {
    let cluster = Loopback::start(1).await;
    cluster.node(1).serve(echo());
    let address = cluster.node(1).handle.address().to_string();
    let env = env();
    let own = cluster.authority.identity(2);
    let good = Credentials::of(&env, own.clone()).unwrap();
    assert_eq!(ping_as(&env, &good, &address, 1).await.unwrap(), 2);

    let error = ping_as(&env, &good, &address, 3).await.unwrap_err();
    assert!(error.contains("/node/1") && error.contains("/node/3"), "{error}");

    // Another authority: neither end takes the other.
    let stranger = Credentials::of(&env, Authority::new(&env, ClusterId(7)).identity(2)).unwrap();
    assert!(ping_as(&env, &stranger, &address, 1).await.is_err());
    // The server refuses by itself, whatever the client would take.
    let mut config = (*stranger.client(NodeId(1)).unwrap()).clone();
    config.dangerous().set_certificate_verifier(any_verifier());
    assert!(call_with(&env, &address, config).await.is_err());

    // The right authority, but another cluster or epoch in the name.
    for uri in [
        NodeUri { cluster: ClusterId(7), epoch: 1, node: NodeId(2) },
        NodeUri { cluster: own.cluster(), epoch: 2, node: NodeId(2) },
    ] {
        let other = Credentials::of(&env, cluster.authority.sign(uri)).unwrap();
        let mut config = (*other.client(NodeId(1)).unwrap()).clone();
        config.dangerous().set_certificate_verifier(any_verifier());
        assert!(call_with(&env, &address, config).await.is_err(), "{uri}");
    }
}

async fn call_with(env: &Env, address: &str, config: rustls::ClientConfig) -> Result<u64, String> {
    let stream = dial(env, address, Lane::Control.server_name(), Arc::new(config)).await;
    call_over(stream.map_err(|error| describe(&error))?).await
}

#[tokio::test]
async fn an_expired_certificate_is_refused_by_both_ends() {
    let cluster = Loopback::start(1).await;
    cluster.node(1).serve(echo());
    let address = cluster.node(1).handle.address().to_string();
    let identity = cluster.authority.identity(2);
    let later = env_ahead(Duration::from_secs(400 * 24 * 3600));
    let error = ping_as(&later, &Credentials::of(&later, identity.clone()).unwrap(), &address, 1).await.unwrap_err();
    assert!(error.contains("expired"), "{error}");

    // A server that lives later refuses the caller's.
    let server_credentials = Credentials::of(&later, cluster.authority.identity(3)).unwrap();
    let (server, handle) = Server::bind("127.0.0.1:0", server_parts(&later, &server_credentials)).await.unwrap();
    handle.install(echo(), Arc::new(|_| true));
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(server.run(CancellationToken::new()));
    let credentials = Credentials::of(&env(), identity).unwrap();
    assert!(ping_as(&env(), &credentials, &handle.address().to_string(), 3).await.is_err());
}

#[tokio::test]
async fn without_a_certificate_only_bootstrap_answers() {
    let cluster = Loopback::start(1).await;
    cluster.node(1).serve(echo());
    let address = cluster.node(1).handle.address().to_string();
    let nobody = Credentials::anonymous(&env()).unwrap();
    let config = (*nobody.stranger().unwrap()).clone();
    let error = call_with(&env(), &address, config).await.unwrap_err();
    assert!(error.contains("certificate is needed"), "{error}");
}

#[tokio::test]
async fn plain_http_to_the_tls_port_is_closed() {
    let cluster = Loopback::start(1).await;
    let address = cluster.node(1).handle.address();
    for bytes in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[0; 64]] {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        // A reset is as good a close as an end: what counts is that nobody waits.
        drop(timeout(SOON, stream.read_to_end(&mut answer)).await.expect("closed"));
        assert!(answer.len() < 64, "at most a TLS alert");
    }
}

#[tokio::test]
async fn a_stopped_server_ends_open_connections() {
    let cluster = Loopback::start(2).await;
    cluster.node(2).serve(echo());
    assert_eq!(ping(&cluster, 1, 2, Lane::Control).await.unwrap(), 1);
    cluster.node(2).stop.cancel();
    let refused = async { while ping(&cluster, 1, 2, Lane::Control).await.is_ok() {} };
    timeout(SOON, refused).await.unwrap();
}

#[test]
fn the_raft_lane_is_served_on_its_own_threads() {
    let threads = |name| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name(name).enable_all().build().unwrap()
    };
    let (raft, rest) = (threads("raft"), threads("rest"));
    rest.block_on(async {
        let cluster = Loopback::start(1).await;
        let credentials = Credentials::of(&env(), cluster.authority.identity(2)).unwrap();
        let mut parts = server_parts(&env(), &credentials);
        parts.runtimes = super::Runtimes { raft: raft.handle().clone(), rest: rest.handle().clone() };
        let (server, handle) = Server::bind("127.0.0.1:0", parts).await.unwrap();
        let on_raft_thread = |_| u64::from(std::thread::current().name() == Some("raft"));
        handle.install(Routes::new(GossipServer::new(Echo(on_raft_thread))), Arc::new(|_| true));
        cluster.topology.send_modify(|topology| {
            Arc::make_mut(topology).nodes.insert(NodeId(2), record(2, &handle.address().to_string()));
        });
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(server.run(CancellationToken::new()));
        for (lane, expected) in [(Lane::Raft, 1), (Lane::Control, 0), (Lane::Bulk, 0)] {
            assert_eq!(ping(&cluster, 1, 2, lane).await.unwrap(), expected, "{lane:?}");
        }
    });
    raft.shutdown_background();
    rest.shutdown_background();
}

/// Says whether the server closes `stream` soon.
async fn is_closed(stream: &mut tokio::net::TcpStream) -> bool {
    timeout(Duration::from_secs(3), stream.read_to_end(&mut Vec::new())).await.is_ok()
}

#[tokio::test]
async fn who_stalls_in_the_handshake_or_comes_over_the_cap_is_closed() {
    let credentials = Credentials::of(&env(), Authority::new(&env(), ClusterId(1)).identity(1)).unwrap();
    let mut parts = server_parts(&env(), &credentials);
    parts.limits.handshake_timeout = Duration::from_secs(1);
    parts.limits.connections_max = 1;
    let (server, handle) = Server::bind("127.0.0.1:0", parts).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(server.run(CancellationToken::new()));
    let connect = || tokio::net::TcpStream::connect(handle.address());
    let mut stalling = connect().await.unwrap();
    stalling.write_all(&[22, 3, 1]).await.unwrap();
    let mut over_the_cap = connect().await.unwrap();
    assert!(is_closed(&mut over_the_cap).await);
    assert!(is_closed(&mut stalling).await);
    // The room is free again.
    let nobody = Credentials::anonymous(&env()).unwrap();
    let config = (*nobody.stranger().unwrap()).clone();
    let address = handle.address().to_string();
    let served = async {
        loop {
            match call_with(&env(), &address, config.clone()).await {
                Err(error) if error.contains("certificate is needed") => return,
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    timeout(SOON, served).await.unwrap();
}

#[tokio::test]
async fn a_stranger_that_stays_is_sent_away() {
    let credentials = Credentials::anonymous(&env()).unwrap();
    let mut parts = server_parts(&env(), &credentials);
    parts.limits.stranger_life = Duration::from_millis(200);
    let (server, handle) = Server::bind("127.0.0.1:0", parts).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(server.run(CancellationToken::new()));
    let name = Lane::Control.server_name();
    let address = handle.address().to_string();
    // Speaks TLS, then nothing: not even the first bytes of HTTP/2.
    let mut stream = dial(&env(), &address, name, credentials.stranger().unwrap()).await.unwrap();
    drop(timeout(SOON, stream.read_to_end(&mut Vec::new())).await.expect("closed"));
}
