//! A cluster of one to a few [`Meta`]s in one process, over real connections, for the tests of this module.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tonic::service::Routes;

use crate::oci::{Algorithm, Digest};
use crate::rpc::testing::Loopback;
use crate::topology::{ClusterId, NodeId, Region, Zone};

use super::command::{Command, Response};
use super::{Applied, Bootstrap, Config, Failure, Hooks, Meta, Metrics, Options, Sight, StartError, State};

pub(super) const SOON: Duration = Duration::from_secs(10);

pub(super) fn quick() -> Config {
    Config {
        heartbeat_ms: 50,
        election_min_ms: 200,
        election_max_ms: 350,
        segment_bytes: 64 << 10,
        ..Config::default()
    }
}

pub(super) fn add_node(id: u64) -> Command {
    Command::AddNode {
        name: format!("n{id}"),
        zone: Zone(format!("z{id}")),
        region: Region("r".to_owned()),
        rpc_address: format!("127.0.0.1:{id}"),
        api_url: String::new(),
        weight: 1,
        key_fingerprint: [u8::try_from(id).unwrap(); 32],
    }
}

pub(super) fn link(text: &str) -> Command {
    Command::LinkBlob {
        repository: "app".parse().unwrap(),
        digest: digest(text),
        size: text.len() as u64,
        principal: String::new(),
    }
}

pub(super) fn unlink(text: &str) -> Command {
    Command::UnlinkBlob { repository: "app".parse().unwrap(), digest: digest(text), sparse: false }
}

fn digest(text: &str) -> Digest {
    Digest::of(Algorithm::Sha256, text.as_bytes())
}

pub(super) fn has(state: &State, text: &str) -> bool {
    state.blob(&"app".parse().unwrap(), &digest(text)).is_some()
}

/// Polls until `condition` holds.
pub(super) async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = Instant::now() + SOON;
    while !condition().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

pub(super) struct TestNode {
    pub(super) meta: Meta,
    pub(super) run: JoinSet<Failure>,
    pub(super) bodies: Arc<AtomicBool>,
    /// How the node sees others, where not live.
    pub(super) sight: Arc<Mutex<BTreeMap<NodeId, Sight>>>,
}

impl TestNode {
    pub(super) async fn stop(mut self) {
        self.run.abort_all();
        while self.run.join_next().await.is_some() {}
        self.meta.close().await;
    }
}

pub(super) struct TestCluster {
    pub(super) loopback: Loopback,
    dirs: Vec<TempDir>,
    config: Config,
    expected: u32,
}

impl TestCluster {
    pub(super) async fn new(nodes: u64, config: Config) -> Self {
        let loopback = Loopback::start(nodes).await;
        let dirs = (0..nodes).map(|_| tempfile::tempdir().unwrap()).collect();
        Self { loopback, dirs, config, expected: u32::try_from(nodes).unwrap() }
    }

    /// Has the first node open the registry with so many.
    pub(super) fn expect(&mut self, nodes: u32) {
        self.expected = nodes;
    }

    pub(super) fn dir(&self, id: u64) -> &Path {
        self.dirs[usize::try_from(id).unwrap() - 1].path()
    }

    pub(super) async fn try_start(&self, id: u64) -> Result<TestNode, StartError> {
        let here = self.loopback.node(id);
        let bodies = Arc::new(AtomicBool::new(true));
        let (seed, complete, bodies_to) = (here.env.seed.clone(), bodies.clone(), bodies.clone());
        let sight = Arc::new(Mutex::new(BTreeMap::new()));
        let seen = sight.clone();
        let hooks = Hooks {
            random: Arc::new(move || seed.draw_u128()),
            wall_seconds: Arc::new(|| 1_700_000_000),
            bodies_complete: Arc::new(move |_| complete.load(Ordering::Relaxed)),
            bodies_to: Arc::new(move || if bodies_to.load(Ordering::Relaxed) { u64::MAX } else { 0 }),
            sight: Arc::new(move |node| *seen.lock().unwrap().get(&node).unwrap_or(&Sight::Live)),
            is_empty: Arc::new(|_, _| true),
        };
        let bootstrap = (id == 1).then(|| Bootstrap { nodes_expected: self.expected, add_me: add_node(1) });
        let options = Options {
            data_dir: self.dir(id).to_owned(),
            cluster: ClusterId(42),
            me: NodeId(id),
            config: self.config.clone(),
            peers: here.peers.clone(),
            started: false,
            bootstrap,
            hooks,
            metrics: Metrics::default(),
            runtime: Handle::current(),
        };
        let (meta, services) = Meta::start(options).await?;
        let routes = Routes::new(services.door.raft_service()).add_service(services.door.meta_service());
        here.serve(routes);
        let mut run = JoinSet::new();
        run.spawn(services.run);
        Ok(TestNode { meta, run, bodies, sight })
    }

    pub(super) async fn start(&self, id: u64) -> TestNode {
        self.try_start(id).await.unwrap()
    }

    /// Starts all nodes and returns when all vote and the registry is open.
    pub(super) async fn form(&self) -> Vec<TestNode> {
        let mut nodes = vec![self.start(1).await];
        for id in 2..=u64::from(self.expected) {
            let applied = nodes[0].meta.propose(add_node(id), SOON).await.unwrap();
            assert_eq!(applied.response, Response::NodeAdded { node: NodeId(id) });
            nodes.push(self.start(id).await);
        }
        eventually("the registry opens everywhere", || async { nodes.iter().all(|node| node.meta.local().is_open()) })
            .await;
        nodes
    }
}

/// Has every node report this binary's feature level, and waits until that is agreed.
pub(super) async fn raise_level(nodes: &[TestNode]) {
    let meta = &nodes[0].meta;
    for row in meta.local().nodes() {
        let Command::AddNode { zone, region, rpc_address, api_url, weight, .. } = add_node(row.id().0) else {
            continue;
        };
        let (node, feature_level) = (row.id(), super::FEATURE_LEVEL_MAX);
        let update = Command::UpdateNode { node, zone, region, rpc_address, api_url, weight, feature_level };
        propose_ok(meta, update).await;
    }
    let raised = |node: &TestNode| node.meta.local().feature_level() == super::FEATURE_LEVEL_MAX;
    eventually("the level rises", || async { nodes.iter().all(raised) }).await;
}

pub(super) fn leader_of(nodes: &[TestNode]) -> Option<usize> {
    nodes.iter().position(|node| node.meta.core.leading().is_some())
}

pub(super) async fn propose_ok(meta: &Meta, command: Command) -> Applied {
    let applied = meta.propose(command, SOON).await.unwrap();
    assert!(!matches!(applied.response, Response::Rejected(_)), "{:?}", applied.response);
    applied
}
