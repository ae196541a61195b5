//! Whole nodes in this process, over real HTTP and gRPC on loopback.

pub(crate) mod http;

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use rafthold::config::{Config, Sparse};
use rafthold::node::{Node, Seams};
use tempfile::TempDir;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};

/// How long anything may take before a test gives up on it; these machines are slow at times.
const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster of nodes that can be stopped, killed and started again.
pub(crate) struct TestCluster {
    nodes: Vec<Mutex<Option<Node>>>,
    configs: Vec<Config>,
    _dir: TempDir,
}

/// Ports that are free now, held together so that they differ.
fn free_ports(count: usize) -> Vec<u16> {
    let held: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
    held.iter().map(|listener| listener.local_addr().expect("a bound port").port()).collect()
}

fn config(dir: &Path, at: usize, ports: &[u16], nodes: usize) -> Config {
    let mut config = Config::default();
    config.node.name = format!("n{}", at + 1);
    config.node.zone = format!("z{}", at + 1);
    config.node.data_dir = dir.join(&config.node.name);
    config.node.stop_grace = Duration::from_secs(5);
    config.api.listen = format!("127.0.0.1:{}", ports[at]);
    config.rpc.listen = format!("127.0.0.1:{}", ports[nodes + at]);
    config.cluster.bootstrap_expect = u32::try_from(nodes).expect("a few nodes");
    config.cluster.seeds = ports[nodes..].iter().map(|port| format!("127.0.0.1:{port}")).collect();
    config.cluster.secret_file = Some(dir.join("secret"));
    // Snapshots and purges happen within a test.
    config.raft.snapshot_entries = 200;
    config.raft.keep_entries = 100;
    config.raft.reserve = 1 << 20;
    config.storage.free_min = 0;
    config.storage.free_reserve = 0;
    config
}

fn write_secret(path: &Path) {
    use std::os::unix::fs::OpenOptionsExt;
    let file = std::fs::File::options().create_new(true).write(true).mode(0o600).open(path).expect("a new file");
    std::io::Write::write_all(&mut &file, &[7; 32]).expect("written");
}

impl TestCluster {
    /// Starts `count` nodes and waits until all of them serve.
    pub(crate) async fn start(count: usize) -> Self {
        Self::start_with(count, |_| {}).await
    }

    /// Starts nodes that accept manifests whose references are not there.
    pub(crate) async fn start_sparse(count: usize) -> Self {
        Self::start_with(count, |config| config.registry.sparse = Sparse::Allow).await
    }

    /// Starts nodes whose configuration `change` has adapted.
    pub(crate) async fn start_with(count: usize, change: impl Fn(&mut Config)) -> Self {
        Self::start_some(count, count, change).await
    }

    /// Starts the first `first` of `count` nodes, which form the cluster; the others may be started later and join it.
    pub(crate) async fn start_some(count: usize, first: usize, change: impl Fn(&mut Config)) -> Self {
        let dir = tempfile::tempdir().expect("a scratch directory");
        write_secret(&dir.path().join("secret"));
        let ports = free_ports(count * 2);
        let mut configs: Vec<Config> = (0..count).map(|at| config(dir.path(), at, &ports, count)).collect();
        for config in &mut configs {
            config.cluster.seeds.truncate(first);
            config.cluster.bootstrap_expect = u32::try_from(first.max(1)).expect("a few nodes");
        }
        configs.iter_mut().for_each(change);
        let nodes = configs.iter().map(|_| Mutex::new(None)).collect();
        let cluster = Self { nodes, configs, _dir: dir };
        join_all((0..first).map(|node| cluster.start_node(node))).await;
        cluster
    }

    /// Starts a node that is not running and waits until it serves.
    pub(crate) async fn start_node(&self, at: usize) {
        let mut slot = self.nodes[at].lock().await;
        assert!(slot.is_none(), "node {} runs already", at + 1);
        let start = Node::start(self.configs[at].clone(), Seams::machine());
        let node = timeout(PATIENCE, start).await.expect("started in time").expect("started");
        timeout(PATIENCE, node.ready()).await.expect("ready in time");
        *slot = Some(node);
    }

    /// The configuration of a node, to change it before the node is started.
    pub(crate) fn config_mut(&mut self, at: usize) -> &mut Config {
        &mut self.configs[at]
    }

    /// The id of a running node.
    pub(crate) async fn id(&self, at: usize) -> u64 {
        self.nodes[at].lock().await.as_ref().expect("it runs").id().0
    }

    /// Waits until a running node ends by itself, and says why it did.
    pub(crate) async fn ended(&self, at: usize) -> String {
        let node = self.nodes[at].lock().await.take().expect("it runs");
        timeout(PATIENCE, node.ended()).await.expect("ended in time").to_string()
    }

    /// Ends a node as a crash would.
    pub(crate) async fn kill(&self, at: usize) {
        self.nodes[at].lock().await.take();
    }

    /// Stops a node in good order.
    pub(crate) async fn stop(&self, at: usize) {
        if let Some(node) = self.nodes[at].lock().await.take() {
            timeout(PATIENCE, node.stop()).await.expect("stopped in time");
        }
    }

    /// Where clients reach the nodes, the dead ones too.
    pub(crate) fn api_addresses(&self) -> Vec<SocketAddr> {
        self.configs.iter().map(|config| config.api.listen.parse().expect("an address")).collect()
    }

    /// The agreed state as a running node has it.
    pub(crate) async fn state(&self, at: usize) -> Arc<rafthold::meta::State> {
        self.nodes[at].lock().await.as_ref().expect("it runs").meta().local()
    }

    /// What a running node hears from the others.
    pub(crate) async fn gossip(&self, at: usize) -> rafthold::gossip::Gossip {
        self.nodes[at].lock().await.as_ref().expect("it runs").gossip().clone()
    }

    pub(crate) fn config(&self, at: usize) -> &Config {
        &self.configs[at]
    }

    pub(crate) fn data_dir(&self, at: usize) -> &Path {
        &self.configs[at].node.data_dir
    }

    /// The node that leads, once the living agree on one.
    pub(crate) async fn leader(&self) -> usize {
        let mut leader = None;
        self.eventually("a leader", async || {
            for (at, slot) in self.nodes.iter().enumerate() {
                let slot = slot.lock().await;
                if slot.as_ref().is_some_and(|node| node.meta().status().leader == Some(node.id())) {
                    leader = Some(at);
                }
            }
            leader.is_some()
        })
        .await;
        leader.expect("just found")
    }

    /// Polls until `condition` holds; says what every node thinks if it never does.
    pub(crate) async fn eventually(&self, what: &str, mut condition: impl AsyncFnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition().await {
            if Instant::now() > deadline {
                for (at, slot) in self.nodes.iter().enumerate() {
                    let slot = slot.lock().await;
                    eprintln!("node {}: {:?}", at + 1, slot.as_ref().map(|node| node.meta().status()));
                }
                panic!("{what}: not within {PATIENCE:?}");
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}
