//! A few nodes in one process.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint, Server};

use crate::blob::{self, BlobStore, ExtentPart};
use crate::db::Db;
use crate::env::{BoxFuture, Env, Seed, Spawner, SystemClock, TcpNet};
use crate::oci::{Algorithm, Digest, ExtentId, HashState};
use crate::replica::{Body, Config, HeldPart, Parts, ReceivedExtent, Replicas, Sight};
use crate::rpc::PeerIdentity;
use crate::topology::{ClusterId, NodeId, Topology, testing};
use crate::transfer::{Channels, Client, Local, OpenExtents, Service};

/// How long anything in these tests may take before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `holds`, looking again and again.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let polled = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, polled).await.unwrap_or_else(|_| panic!("{what} did not come about"));
}

/// Bytes that no two seeds share.
pub(crate) fn pattern(seed: u64, length: usize) -> Bytes {
    let mut word = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

/// A client's body that delivers all of `bytes`.
pub(crate) fn body(bytes: &Bytes) -> Body {
    let frames: Vec<_> = bytes.chunks(100_000).map(|frame| Ok(Bytes::copy_from_slice(frame))).collect();
    futures::stream::iter(frames).boxed()
}

/// A client's body that breaks off after `bytes`.
pub(crate) fn cut_body(bytes: &Bytes) -> Body {
    let cut = futures::stream::iter([Err(std::io::ErrorKind::ConnectionReset.into())]);
    body(bytes).chain(cut).boxed()
}

/// How a wire carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carry {
    Open,
    /// Bytes stay where they are; nobody is told.
    Frozen,
    /// Connections break, new ones too.
    Cut,
}

/// The way to one node.
pub(crate) struct Wire {
    pub(crate) carry: Arc<watch::Sender<Carry>>,
    /// Bytes that came from the node.
    pub(crate) sent: Arc<AtomicU64>,
}

/// One node.
pub(crate) struct LabNode {
    pub(crate) id: NodeId,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) blobs: BlobStore,
    pub(crate) replicas: Replicas,
    pub(crate) wire: Wire,
}

/// All of them.
pub(crate) struct Lab {
    pub(crate) nodes: Vec<LabNode>,
    /// The first wire whose node has sent so many bytes is cut, and only that one.
    pub(crate) cut_first_after: Arc<AtomicU64>,
    dead: Arc<Mutex<BTreeSet<NodeId>>>,
    pub(crate) topology: watch::Sender<Arc<Topology>>,
    _tasks: JoinSet<()>,
}

/// What differs from a plain lab.
#[derive(Default, Clone)]
pub(crate) struct Options {
    pub(crate) copies: Option<usize>,
    /// How long what a node says it holds is pinned; an hour unless set.
    pub(crate) pin: Option<Duration>,
    /// Nodes that send wrong bytes.
    pub(crate) lying: Vec<u64>,
}

struct Unsupervised;

impl Spawner for Unsupervised {
    fn spawn(&self, _name: &'static str, work: BoxFuture<'static, ()>) {
        drop(tokio::runtime::Handle::current().spawn(work));
    }
}

struct PlainChannels {
    me: NodeId,
    addresses: BTreeMap<NodeId, SocketAddr>,
    channels: Mutex<BTreeMap<NodeId, Channel>>,
}

impl Channels for PlainChannels {
    fn me(&self) -> NodeId {
        self.me
    }

    fn bulk(&self, peer: NodeId) -> Result<Channel, crate::rpc::Error> {
        let address = self.addresses[&peer];
        let mut channels = self.channels.lock().unwrap();
        let channel = channels.entry(peer).or_insert_with(|| {
            Endpoint::from_shared(format!("http://{address}")).unwrap().connect_timeout(PATIENCE).connect_lazy()
        });
        Ok(channel.clone())
    }
}

#[derive(Debug)]
struct LabSight(Arc<Mutex<BTreeSet<NodeId>>>);

impl Sight for LabSight {
    fn is_live(&self, node: NodeId) -> bool {
        !self.0.lock().unwrap().contains(&node)
    }
    fn is_dead(&self, node: NodeId) -> bool {
        !self.is_live(node)
    }
    fn holders(&self, _digest: &Digest) -> Vec<NodeId> {
        Vec::new()
    }
    fn report_unreachable(&self, _node: NodeId) {}
}

impl Lab {
    pub(crate) async fn start(count: u64) -> Self {
        Self::start_with(count, Options::default()).await
    }

    pub(crate) async fn start_with(count: u64, options: Options) -> Self {
        let mut tasks = JoinSet::new();
        let dead = Arc::new(Mutex::new(BTreeSet::new()));
        let topology = watch::Sender::new(Arc::new(testing::topology((1..=count).map(testing::record))));
        let cut_first_after = Arc::new(AtomicU64::new(u64::MAX));
        let mut wires = BTreeMap::new();
        let mut addresses = BTreeMap::new();
        let mut listeners = BTreeMap::new();
        for id in (1..=count).map(NodeId) {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let (wire, address) = string_wire(listener.local_addr().unwrap(), &cut_first_after, &mut tasks).await;
            wires.insert(id, wire);
            addresses.insert(id, address);
            listeners.insert(id, listener);
        }
        let mut nodes = Vec::new();
        for (id, wire) in wires {
            let dir = tempfile::tempdir().unwrap();
            let mut config = blob::Config { refuse_free_bytes: 0, reserve_free_bytes: 0, ..blob::Config::default() };
            config.pin = options.pin.unwrap_or(config.pin);
            let blobs = BlobStore::open(config, dir.path(), Db::in_memory(), Arc::new(SystemClock)).unwrap();
            tasks.spawn(blobs.clone().run());
            let channels = PlainChannels { me: id, addresses: addresses.clone(), channels: Mutex::default() };
            let client = Client::new(Arc::new(channels));
            let local = Local { blobs: blobs.clone(), open: OpenExtents::default(), client };
            let (clock, net, seed) = (Arc::new(SystemClock), Arc::new(TcpNet), Seed::fixed(id.0));
            let env = Env { clock, net, seed, spawner: Arc::new(Unsupervised) };
            let mut service = Service::new(local.clone(), env.clone(), topology.subscribe());
            if options.lying.contains(&id.0) {
                service = service.lying();
            }
            tasks.spawn(serve(service, listeners.remove(&id).unwrap()));
            let sight = Arc::new(LabSight(Arc::clone(&dead)));
            let parts = Parts { local, env, topology: topology.subscribe(), sight };
            let config = Config { copies: options.copies.unwrap_or(3), write_copies: 2 };
            nodes.push(LabNode { id, dir, blobs, replicas: Replicas::new(config, parts), wire });
        }
        for node in &nodes {
            let blobs = &node.blobs;
            eventually("index", || async move { blobs.usage().index_complete }).await;
        }
        Self { nodes, cut_first_after, dead, topology, _tasks: tasks }
    }

    /// The node with this id.
    pub(crate) fn node(&self, id: u64) -> &LabNode {
        self.nodes.iter().find(|node| node.id == NodeId(id)).unwrap()
    }

    /// Cuts a node off; nobody is told.
    pub(crate) fn cut(&self, id: u64) {
        self.node(id).wire.carry.send_replace(Carry::Cut);
    }

    /// Lets everyone know that a node is dead.
    pub(crate) fn mourn(&self, id: u64) {
        self.dead.lock().unwrap().insert(NodeId(id));
    }
}

impl LabNode {
    /// Where the file of a blob lies.
    pub(crate) fn path(&self, digest: &Digest) -> std::path::PathBuf {
        let text = digest.to_string();
        let (algorithm, hex) = text.split_once(':').unwrap();
        self.dir.path().join("blobs").join(algorithm).join(&hex[..2]).join(hex)
    }

    /// Receives a body as the extent with this id.
    pub(crate) async fn receive(&self, id: u128, body: Body, holders: &[u64]) -> super::super::Result<ReceivedExtent> {
        let request = super::super::ExtentRequest {
            id: ExtentId::from_random(id),
            resume: HashState::initial(Algorithm::Sha256),
            holders: holders.iter().copied().map(NodeId).collect(),
            promised_length: None,
        };
        let received = self.replicas.receive_extent(request, body, |extent| Box::pin(async move { extent }));
        tokio::time::timeout(PATIENCE, received).await.expect("receiving does not hang")
    }

    /// Puts a blob on this node alone.
    pub(crate) async fn store(&self, bytes: &Bytes) -> Digest {
        let digest = Digest::of(Algorithm::Sha256, bytes);
        let mut writer = self.blobs.receive(&digest, bytes.len() as u64).await.unwrap();
        writer.write(bytes.clone()).await.unwrap();
        writer.finish().await.unwrap();
        digest
    }

    /// Reads a range to its end; also says what came before an error.
    pub(crate) async fn read(&self, digest: &Digest, size: u64, range: std::ops::Range<u64>) -> (Vec<u8>, bool) {
        let read = async {
            let mut bytes = Vec::new();
            let Ok(mut stream) = self.replicas.read(digest, size, range.start, range.end).await else {
                return (bytes, false);
            };
            while let Some(frame) = stream.next().await {
                match frame {
                    Ok(frame) => bytes.extend_from_slice(&frame),
                    Err(_) => return (bytes, false),
                }
            }
            (bytes, true)
        };
        tokio::time::timeout(PATIENCE, read).await.expect("reading does not hang")
    }

    pub(crate) async fn has(&self, digest: &Digest, bytes: &Bytes) -> bool {
        self.blobs.has(digest, bytes.len() as u64).await.unwrap()
    }
}

/// The part that a whole extent is.
pub(crate) fn part(extent: &ReceivedExtent, offset: u64) -> HeldPart {
    let part = ExtentPart { id: extent.id, offset, length: extent.length };
    HeldPart { part, holders: extent.holders.clone() }
}

async fn serve(service: Service, listener: TcpListener) {
    let identity = PeerIdentity { cluster: ClusterId(1), epoch: 0, node: NodeId(0) };
    let layer = tonic::service::InterceptorLayer::new(move |mut request: tonic::Request<()>| {
        request.extensions_mut().insert(identity.clone());
        Ok(request)
    });
    let server = Server::builder().layer(layer).add_service(service.into_server());
    server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
}

/// Strings a wire before a node; returns it with the address that others use.
async fn string_wire(
    node: SocketAddr,
    cut_first_after: &Arc<AtomicU64>,
    tasks: &mut JoinSet<()>,
) -> (Wire, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let carry = Arc::new(watch::Sender::new(Carry::Open));
    let wire = Wire { carry, sent: Arc::default() };
    let (carry, sent, cut_after) = (Arc::clone(&wire.carry), Arc::clone(&wire.sent), Arc::clone(cut_first_after));
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            if *carry.borrow() == Carry::Cut {
                continue;
            }
            let upstream = TcpStream::connect(node).await.unwrap();
            let (carry, sent, cut_after) = (Arc::clone(&carry), Arc::clone(&sent), Arc::clone(&cut_after));
            connections.spawn(async move {
                let (from_client, to_client) = stream.into_split();
                let (from_node, to_node) = upstream.into_split();
                let mut cut = carry.subscribe();
                let count = |bytes| {
                    let sent = sent.fetch_add(bytes, Ordering::Relaxed) + bytes;
                    if sent >= cut_after.load(Ordering::Relaxed) && cut_after.swap(u64::MAX, Ordering::Relaxed) <= sent
                    {
                        carry.send_replace(Carry::Cut);
                    }
                };
                tokio::select! {
                    () = pump(from_client, to_node, carry.subscribe(), |_| {}) => {}
                    () = pump(from_node, to_client, carry.subscribe(), count) => {}
                    _ = cut.wait_for(|carry| *carry == Carry::Cut) => {}
                }
            });
        }
    });
    (wire, address)
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut carry: watch::Receiver<Carry>, count: impl Fn(u64)) {
    let mut bytes = vec![0; 16 * 1024];
    loop {
        let Ok(read @ 1..) = from.read(&mut bytes).await else { return };
        if carry.wait_for(|carry| *carry != Carry::Frozen).await.is_err() || to.write_all(&bytes[..read]).await.is_err()
        {
            return;
        }
        count(read as u64);
    }
}
