//! A cluster of real servers on loopback, for the tests of this and of other modules.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::env::{BoxFuture, Clock, Env, Seed, Spawner, SystemClock, TcpNet};
use crate::topology::{ClusterId, NodeId, NodeRecord, Topology, testing};

use super::ca::{self, ClusterCa};
use super::identity::{Identity, Pems};
use super::{
    Admission, Credentials, Limits, Metrics, NodeUri, Peers, PeersParts, Runtimes, Server, ServerHandle, ServerParts,
};

/// Spawns on the current runtime, unsupervised.
struct Unsupervised;

impl Spawner for Unsupervised {
    fn spawn(&self, _name: &'static str, work: BoxFuture<'static, ()>) {
        drop(tokio::runtime::Handle::current().spawn(work));
    }
}

/// The machine's own clock and network, and a seed of its own.
pub(crate) fn env() -> Env {
    Env { clock: Arc::new(SystemClock), net: Arc::new(TcpNet), seed: Seed::from_os(), spawner: Arc::new(Unsupervised) }
}

/// A clock that stands `ahead` of the machine's.
struct Ahead(Duration);

impl Clock for Ahead {
    fn now(&self) -> SystemTime {
        SystemClock.now() + self.0
    }
}

/// As [`env`], in the future.
pub(crate) fn env_ahead(ahead: Duration) -> Env {
    Env { clock: Arc::new(Ahead(ahead)), ..env() }
}

/// Makes identities of one cluster.
pub(crate) struct Authority {
    env: Env,
    ca: ClusterCa,
    cluster: ClusterId,
}

impl Authority {
    pub(crate) fn new(env: &Env, cluster: ClusterId) -> Self {
        Self { env: env.clone(), ca: ClusterCa::generate(env, cluster).unwrap(), cluster }
    }

    pub(crate) fn identity(&self, node: u64) -> Identity {
        self.sign(NodeUri { cluster: self.cluster, epoch: 1, node: NodeId(node) })
    }

    /// Signs any name, a wrong one too.
    pub(crate) fn sign(&self, uri: NodeUri) -> Identity {
        let key = Arc::new(ca::new_key().unwrap());
        let pems = Pems {
            certificate: self.ca.sign(&self.env, uri, &*key).unwrap(),
            ca_certificate: self.ca.certificate_pem().to_owned(),
            ca_key: self.ca.key_pem(),
        };
        Identity::assemble(&self.env, uri, key, &pems).unwrap()
    }
}

/// One node: its channels, and its server without services until some are installed.
pub(crate) struct LoopbackNode {
    pub(crate) id: NodeId,
    pub(crate) env: Env,
    pub(crate) peers: Peers,
    pub(crate) handle: ServerHandle,
    pub(crate) stop: CancellationToken,
}

impl LoopbackNode {
    /// Serves `routes` to every node of the cluster.
    pub(crate) fn serve(&self, routes: Routes) {
        let everyone: Admission = Arc::new(|_| true);
        self.handle.install(routes, everyone);
    }
}

/// Nodes `1..=count` that know each other; their servers end when this is dropped.
pub(crate) struct Loopback {
    pub(crate) authority: Authority,
    pub(crate) topology: watch::Sender<Arc<Topology>>,
    pub(crate) nodes: Vec<LoopbackNode>,
    tasks: JoinSet<()>,
}

impl Loopback {
    pub(crate) async fn start(count: u64) -> Self {
        let authority = Authority::new(&env(), ClusterId(env().seed.draw_u128()));
        let topology = watch::Sender::new(Arc::new(Topology::default()));
        let mut cluster = Self { authority, topology, nodes: Vec::new(), tasks: JoinSet::new() };
        for id in 1..=count {
            cluster.add(id).await;
        }
        cluster
    }

    pub(crate) fn node(&self, id: u64) -> &LoopbackNode {
        self.nodes.iter().find(|node| node.id == NodeId(id)).unwrap()
    }

    /// Channels of a node that has addresses of its own, right ones or not.
    pub(crate) fn peers(&self, id: u64, topology: watch::Receiver<Arc<Topology>>) -> Peers {
        let env = env();
        let credentials = Credentials::of(&env, self.authority.identity(id)).unwrap();
        peers(&env, &credentials, topology)
    }

    pub(crate) async fn add(&mut self, id: u64) {
        let env = env();
        let credentials = Credentials::of(&env, self.authority.identity(id)).unwrap();
        let stop = CancellationToken::new();
        let parts = server_parts(&env, &credentials);
        let (server, handle) = Server::bind("127.0.0.1:0", parts).await.unwrap();
        self.tasks.spawn(server.run(stop.clone()));
        let mut topology = Topology::clone(&self.topology.borrow());
        topology.index += 1;
        topology.nodes.insert(NodeId(id), record(id, &handle.address().to_string()));
        self.topology.send_replace(Arc::new(topology));
        let peers = peers(&env, &credentials, self.topology.subscribe());
        self.nodes.push(LoopbackNode { id: NodeId(id), env, peers, handle, stop });
    }
}

fn peers(env: &Env, credentials: &Credentials, topology: watch::Receiver<Arc<Topology>>) -> Peers {
    let parts = PeersParts {
        env: env.clone(),
        credentials: credentials.clone(),
        runtimes: Runtimes::current(),
        topology,
        known: BTreeMap::new(),
        metrics: Metrics::default(),
    };
    Peers::new(parts).unwrap()
}

pub(crate) fn server_parts(env: &Env, credentials: &Credentials) -> ServerParts {
    ServerParts {
        env: env.clone(),
        credentials: credentials.clone(),
        runtimes: Runtimes::current(),
        bootstrap: Routes::default(),
        limits: Limits::default(),
        metrics: Metrics::default(),
    }
}

pub(crate) fn record(id: u64, address: &str) -> NodeRecord {
    NodeRecord { rpc_address: address.to_owned(), ..testing::record(id) }
}
