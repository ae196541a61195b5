//! Whole bootstraps over loopback, with restarts at each step.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::env::{BoxFuture, Env};
use crate::rpc::testing::{env, record, server_parts};
use crate::rpc::{Server, ServerHandle};
use crate::topology::{ClusterId, NodeId, NodeRecord};

use super::client::{AskError, Asker, Session};
use super::proof::{Claim, Exchange};
use super::proto::bootstrap_client::BootstrapClient;
use super::proto::bootstrap_server::{Bootstrap as Service, BootstrapServer};
use super::proto::{
    BootstrapAnswer, GreetRequest, Greeting, HelloRequest, HelloResponse, JoinByTokenRequest, RenewRequest, Renewed,
    Sealed,
};
use super::wire::{self, Answer};
use super::*;

const SOON: Duration = Duration::from_secs(30);

/// The agreed state, as one map that all nodes of a test share.
#[derive(Default)]
struct Agreed {
    cluster: Mutex<Option<ClusterId>>,
    nodes: Mutex<BTreeMap<[u8; 32], NodeRecord>>,
    tokens: Mutex<Vec<[u8; 32]>>,
}

struct Hooks(Arc<Agreed>);

impl ClusterHooks for Hooks {
    fn formed(&self) -> Option<ClusterId> {
        *self.0.cluster.lock().unwrap()
    }

    fn nodes(&self) -> Vec<NodeRecord> {
        self.0.nodes.lock().unwrap().values().cloned().collect()
    }

    fn add_node(&self, node: NodeDescription) -> BoxFuture<'_, Result<NodeId, AddNodeError>> {
        Box::pin(async move {
            let mut nodes = self.0.nodes.lock().unwrap();
            let id = nodes.len() as u64 + 2;
            let record = NodeRecord { name: node.name, ..record(id, &node.rpc_address) };
            Ok(nodes.entry(node.key_fingerprint).or_insert(record).id)
        })
    }

    fn join_by_token(&self, token: [u8; 32], node: NodeDescription) -> BoxFuture<'_, Result<NodeId, AddNodeError>> {
        let good = self.0.tokens.lock().unwrap().contains(&token);
        Box::pin(async move {
            match good {
                true => self.add_node(node).await,
                false => Err(AddNodeError::Refused("the token is unknown".to_owned())),
            }
        })
    }
}

/// One node's disk and address, which outlive its process.
struct Place {
    name: &'static str,
    dir: TempDir,
    address: String,
}

/// A running process of a node.
struct Process {
    bootstrap: Bootstrap,
    handle: ServerHandle,
    _tasks: JoinSet<()>,
}

struct Fleet {
    places: Vec<Place>,
    expect: usize,
    secret: Secret,
}

impl Fleet {
    async fn new(names: &[&'static str], expect: usize) -> Self {
        let mut places = Vec::new();
        for name in names {
            let listener = env().net.bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_address().unwrap().to_string();
            places.push(Place { name, dir: tempfile::tempdir().unwrap(), address });
        }
        Self { places, expect, secret: Secret::of(&[7; 32]) }
    }

    fn options(&self, index: usize) -> BootstrapOptions {
        let place = &self.places[index];
        let node = NodeDescription {
            name: place.name.to_owned(),
            zone: Zone("z".to_owned()),
            region: Region("r".to_owned()),
            rpc_address: place.address.clone(),
            api_url: String::new(),
            weight: 1,
            key_fingerprint: [0; 32],
        };
        BootstrapOptions {
            expect: self.expect,
            seeds: self.places.iter().take(self.expect).map(|place| place.address.clone()).collect(),
            interval: Duration::from_millis(50),
            ..BootstrapOptions::new(place.dir.path(), node, self.secret.clone())
        }
    }

    async fn start(&self, index: usize) -> Process {
        self.start_with(index, self.options(index)).await.unwrap()
    }

    async fn start_with(&self, index: usize, options: BootstrapOptions) -> Result<Process> {
        let env = env();
        let credentials = Credentials::anonymous(&env)?;
        let bootstrap = Bootstrap::open(env.clone(), credentials.clone(), options)?;
        let parts = crate::rpc::ServerParts { bootstrap: bootstrap.routes(), ..server_parts(&env, &credentials) };
        let (server, handle) = Server::bind(&self.places[index].address, parts).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(server.run(CancellationToken::new()));
        Ok(Process { bootstrap, handle, _tasks: tasks })
    }
}

impl Process {
    async fn run(&self) -> Bootstrapped {
        timeout(SOON, self.bootstrap.run()).await.expect("a member in time").unwrap()
    }
}

fn form(process: &Process, agreed: &Arc<Agreed>, cluster: ClusterId) {
    *agreed.cluster.lock().unwrap() = Some(cluster);
    process.bootstrap.serve_joins(Arc::new(Hooks(agreed.clone())));
}

#[tokio::test]
async fn three_empty_nodes_form_one_cluster_and_a_fourth_joins() {
    let fleet = Fleet::new(&["n2", "n1", "n3", "n0"], 3).await;
    let agreed = Arc::new(Agreed::default());
    let mut processes = Vec::new();
    for index in 0..4 {
        processes.push(fleet.start(index).await);
    }
    let (first, second, third, fourth) = tokio::join!(
        processes[0].run(),
        async {
            let done = processes[1].run().await;
            let Bootstrapped::Initialise { cluster, identity, expected: 3 } = &done else { panic!("{done:?}") };
            assert_eq!(identity.node(), NodeId(1));
            form(&processes[1], &agreed, *cluster);
            done
        },
        processes[2].run(),
        processes[3].run(),
    );
    let Bootstrapped::Initialise { cluster, .. } = second else { panic!() };
    let mut ids = Vec::new();
    for (done, process) in [(first, &processes[0]), (third, &processes[2]), (fourth, &processes[3])] {
        let Bootstrapped::Joined { identity, .. } = done else { panic!("{done:?}") };
        assert_eq!(identity.cluster(), cluster);
        ids.push(identity.node().0);
        process.bootstrap.mark_started().await.unwrap();
        assert!(!process.bootstrap.inner.promise_file.0.exists());
    }
    ids.sort_unstable();
    assert_eq!(ids, [2, 3, 4]);

    // Restarted, each is what it was.
    let id = processes[2].bootstrap.inner.credentials.identity().unwrap().node();
    drop(processes.remove(2));
    let again = restart(&fleet, 2).await;
    let Bootstrapped::Existing { identity, started: true, .. } = again.run().await else { panic!() };
    assert_eq!((identity.cluster(), identity.node()), (cluster, id));
}

/// The old process's port may take a moment to be free.
async fn restart(fleet: &Fleet, index: usize) -> Process {
    let start = async {
        loop {
            match fleet.start_with(index, fleet.options(index)).await {
                Ok(process) => return process,
                Err(Error::Listen { .. }) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    timeout(SOON, start).await.unwrap()
}

#[tokio::test]
async fn the_initialiser_resumes_the_same_cluster_after_its_death_at_each_step() {
    let fleet = Fleet::new(&["a", "b"], 2).await;
    let b = fleet.start(1).await;
    // Dies right after its own promise.
    let promised = Promise::new(ClusterId(77), "a".to_owned(), vec!["a".to_owned(), "b".to_owned()]);
    PromiseFile(fleet.places[0].dir.path().join("promise")).store(&promised).unwrap();
    let a = fleet.start(0).await;
    let Bootstrapped::Initialise { cluster, identity, .. } = a.run().await else { panic!() };
    assert_eq!(cluster, ClusterId(77));
    // Dies before consensus began: says the same again, with the same key and authority.
    drop(a);
    let a = restart(&fleet, 0).await;
    let Bootstrapped::Initialise { cluster, identity: again, .. } = a.run().await else { panic!() };
    assert_eq!((cluster, again.key_fingerprint()), (ClusterId(77), identity.key_fingerprint()));
    assert_eq!(again.ca().certificate_pem(), identity.ca().certificate_pem());
    // While it is not formed, the other waits; it has promised.
    assert_eq!(b.bootstrap.inner.place.lock().await.promise, Some(promised));
    let agreed = Arc::new(Agreed::default());
    form(&a, &agreed, cluster);
    a.bootstrap.mark_started().await.unwrap();
    let Bootstrapped::Joined { .. } = b.run().await else { panic!() };
    drop(a);
    let a = restart(&fleet, 0).await;
    assert!(matches!(a.run().await, Bootstrapped::Existing { started: true, .. }));
}

#[tokio::test]
async fn a_join_asked_again_with_the_same_key_gets_the_same_id() {
    let fleet = Fleet::new(&["a", "b", "c"], 1).await;
    let a = fleet.start(0).await;
    let Bootstrapped::Initialise { cluster, .. } = a.run().await else { panic!() };
    let agreed = Arc::new(Agreed::default());
    form(&a, &agreed, cluster);
    let b = fleet.start(1).await;
    let Bootstrapped::Joined { identity, .. } = b.run().await else { panic!() };
    drop(b);
    // The answer was lost with the power: only the key is there.
    let dir = fleet.places[1].dir.path().join("identity");
    std::fs::remove_file(dir.join("node.json")).unwrap();
    let c = fleet.start(2).await;
    let Bootstrapped::Joined { identity: other, .. } = c.run().await else { panic!() };
    let b = restart(&fleet, 1).await;
    let Bootstrapped::Joined { identity: again, .. } = b.run().await else { panic!() };
    assert_eq!(again.node(), identity.node());
    assert_ne!(other.node(), identity.node());
    // With its disk wiped it is another node.
    drop(b);
    std::fs::remove_dir_all(&dir).unwrap();
    let b = restart(&fleet, 1).await;
    let Bootstrapped::Joined { identity: wiped, .. } = b.run().await else { panic!() };
    assert_ne!(wiped.node(), identity.node());
}

#[tokio::test]
async fn another_secret_neither_joins_nor_learns_anything() {
    let fleet = Fleet::new(&["a", "b"], 1).await;
    let a = fleet.start(0).await;
    let Bootstrapped::Initialise { cluster, .. } = a.run().await else { panic!() };
    form(&a, &Arc::new(Agreed::default()), cluster);
    let (env, credentials) = (env(), Credentials::anonymous(&env()).unwrap());
    let wrong = Secret::of(&[8; 32]);
    let asker = Asker { env: &env, credentials: &credentials, secret: &wrong };
    let address = a.handle.address().to_string();
    assert_eq!(asker.open(&address, SOON).await.err(), Some(AskError::WrongSecret));

    // The answerer checks by itself: a question proved with the wrong secret is refused.
    let good = Secret::of(&[7; 32]);
    let mut session = Asker { secret: &good, ..asker }.open(&address, SOON).await.unwrap();
    assert!(matches!(session.ask(wire::ask_standing(), SOON).await, Ok(Answer::Standing(_))));
    session.secret = &wrong;
    assert_eq!(session.ask(wire::ask_standing(), SOON).await.err(), Some(AskError::WrongSecret));

    let waiting = fleet.start_with(1, BootstrapOptions { secret: wrong.clone(), ..fleet.options(1) }).await.unwrap();
    assert!(timeout(Duration::from_millis(700), waiting.bootstrap.run()).await.is_err(), "never a member");
}

/// Stands between a caller and a real node: passes everything on, under its own certificate.
struct Between {
    real: tokio::sync::Mutex<BootstrapClient<tonic::transport::Channel>>,
}

#[tonic::async_trait]
impl Service for Between {
    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloResponse>, Status> {
        self.real.lock().await.hello(request.into_inner()).await
    }

    async fn ask(&self, request: Request<Sealed>) -> Result<Response<Sealed>, Status> {
        self.real.lock().await.ask(request.into_inner()).await
    }

    async fn greet(&self, request: Request<GreetRequest>) -> Result<Response<Greeting>, Status> {
        self.real.lock().await.greet(request.into_inner()).await
    }

    async fn join_by_token(&self, _: Request<JoinByTokenRequest>) -> Result<Response<BootstrapAnswer>, Status> {
        panic!("the token was told to a stranger");
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<Renewed>, Status> {
        self.real.lock().await.renew(request.into_inner()).await
    }
}

/// Serves, under credentials of its own, what it has the real node of a session answer; returns its address.
async fn stand_between(session: &Session<'_>, env: &Env, own: &Credentials) -> (String, JoinSet<()>) {
    let between = Between { real: tokio::sync::Mutex::new(session.client.clone()) };
    let bootstrap = tonic::service::Routes::new(BootstrapServer::new(between));
    let parts = crate::rpc::ServerParts { bootstrap, ..server_parts(env, own) };
    let (server, handle) = Server::bind("127.0.0.1:0", parts).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(server.run(CancellationToken::new()));
    (handle.address().to_string(), tasks)
}

#[tokio::test]
async fn who_stands_between_with_another_certificate_is_refused_by_both() {
    let fleet = Fleet::new(&["a"], 1).await;
    let a = fleet.start(0).await;
    let (env, credentials): (Env, _) = (env(), Credentials::anonymous(&env()).unwrap());
    let secret = Secret::of(&[7; 32]);
    let asker = Asker { env: &env, credentials: &credentials, secret: &secret };
    let session = asker.open(&a.handle.address().to_string(), SOON).await.unwrap();
    let own = Credentials::anonymous(&env).unwrap();
    let (address, _tasks) = stand_between(&session, &env, &own).await;
    // The caller sees a hello proved for another certificate.
    assert_eq!(asker.open(&address, SOON).await.err(), Some(AskError::WrongSecret));
    // Were the caller to go on, the real node would not take a question proved for the false certificate.
    let exchange = Exchange { shown: own.current().fingerprint, ..session.exchange };
    let body = wire::encode_question(wire::ask_standing());
    let sealed = Sealed {
        caller_nonce: exchange.caller.to_vec().into(),
        answerer_nonce: exchange.answerer.to_vec().into(),
        proof: exchange.prove(&secret, Claim::Question { body: &body }).into(),
        body: body.into(),
    };
    let status = session.client.clone().ask(sealed).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unauthenticated);
}

#[tokio::test]
async fn a_log_without_an_identity_or_a_lone_expectation_is_refused() {
    let fleet = Fleet::new(&["a"], 1).await;
    let raft = fleet.places[0].dir.path().join("raft");
    std::fs::create_dir(&raft).unwrap();
    drop(fleet.start(0).await);
    std::fs::write(raft.join("segment"), b"x").unwrap();
    let credentials = Credentials::anonymous(&env()).unwrap();
    let open = |options| Bootstrap::open(env(), credentials.clone(), options).err();
    assert!(matches!(open(fleet.options(0)), Some(Error::DataWithoutIdentity { .. })));
    let alone = BootstrapOptions { expect: 3, seeds: Vec::new(), ..fleet.options(0) };
    assert!(matches!(open(alone), Some(Error::Expect { .. })));
}

#[tokio::test]
async fn a_certificate_near_its_end_is_renewed_at_start_with_the_same_key() {
    let fleet = Fleet::new(&["a"], 1).await;
    let a = fleet.start(0).await;
    let Bootstrapped::Initialise { identity, .. } = a.run().await else { panic!() };
    let dir = IdentityDir::of(fleet.places[0].dir.path());
    let load = |days: u64| dir.load(&crate::rpc::testing::env_ahead(Duration::from_secs(days * 24 * 3600)));
    let (same, _) = load(200).unwrap().unwrap();
    assert_eq!(same.certificate(), identity.certificate());
    for days in [250, 1000] {
        let (renewed, _) = load(days).unwrap().unwrap();
        assert_ne!(renewed.certificate(), identity.certificate());
        assert_eq!(renewed.key_fingerprint(), identity.key_fingerprint());
        assert_eq!(renewed.node(), identity.node());
    }
}

#[tokio::test]
async fn identity_files_are_private_and_damage_is_told() {
    use std::os::unix::fs::PermissionsExt;
    let fleet = Fleet::new(&["a"], 1).await;
    let a = fleet.start(0).await;
    a.run().await;
    drop(a);
    let dir = fleet.places[0].dir.path().join("identity");
    for name in ["node.key", "ca.key"] {
        assert_eq!(fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
    let load = || IdentityDir::of(fleet.places[0].dir.path()).load(&env());
    let key = fs::read(dir.join("node.key")).unwrap();
    fs::write(dir.join("node.key"), fs::read(dir.join("ca.key")).unwrap()).unwrap();
    assert!(matches!(load(), Err(Error::Damaged { .. })), "a key of another certificate");
    fs::write(dir.join("node.key"), &key).unwrap();
    assert!(load().unwrap().is_some());
    fs::write(dir.join("node.json"), "{").unwrap();
    assert!(matches!(load(), Err(Error::Damaged { .. })));
}

#[tokio::test]
async fn a_restarted_node_finds_its_seeds_again_and_remembers_what_is_agreed() {
    let fleet = Fleet::new(&["a", "b"], 2).await;
    let (a, b) = (fleet.start(0).await, fleet.start(1).await);
    let Bootstrapped::Initialise { cluster, .. } = a.run().await else { panic!() };
    form(&a, &Arc::new(Agreed::default()), cluster);
    let Bootstrapped::Joined { .. } = b.run().await else { panic!() };
    let topology = watch::Sender::new(Arc::new(Topology::default()));
    let peers = Peers::new(crate::rpc::PeersParts {
        env: env(),
        credentials: a.bootstrap.inner.credentials.clone(),
        runtimes: crate::rpc::Runtimes::current(),
        topology: topology.subscribe(),
        known: BTreeMap::new(),
        metrics: crate::rpc::Metrics::default(),
    })
    .unwrap();
    assert!(peers.address(NodeId(2)).is_none());
    let mut tasks = JoinSet::new();
    tasks.spawn(a.bootstrap.clone().keep_addresses(peers.clone(), topology.subscribe()));
    let found = async {
        while peers.address(NodeId(2)).as_deref() != Some(&fleet.places[1].address) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, found).await.unwrap();
    let nodes = [record(1, "a:1"), record(2, "b:1")].map(|record| (record.id, record));
    topology.send_replace(Arc::new(Topology { index: 5, nodes: nodes.into(), policy: None }));
    let dir = IdentityDir::of(fleet.places[0].dir.path());
    let kept = async {
        while dir.load(&env()).unwrap().unwrap().1.nodes.len() != 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, kept).await.unwrap();
    assert_eq!(peers.address(NodeId(2)).as_deref(), Some("b:1"));
}

/// A cluster of one that runs, and a token for it.
async fn cluster_with_token(fleet: &Fleet) -> (Process, Arc<Agreed>, JoinToken) {
    let (process, agreed) = (fleet.start(0).await, Arc::new(Agreed::default()));
    let Bootstrapped::Initialise { cluster, identity, .. } = process.run().await else { panic!("it forms a cluster") };
    *agreed.cluster.lock().unwrap() = Some(cluster);
    process.bootstrap.serve_joins(Arc::new(Hooks(agreed.clone())));
    let token = JoinToken::draw(&env().seed, &identity);
    agreed.tokens.lock().unwrap().push(token.hash());
    (process, agreed, token)
}

#[tokio::test]
async fn a_token_gives_an_identity_and_never_the_authoritys_key() {
    let fleet = Fleet::new(&["a", "b"], 1).await;
    let (first, _agreed, token) = cluster_with_token(&fleet).await;
    let (dir, seeds) = (fleet.places[1].dir.path(), [fleet.places[0].address.clone()]);
    let node = || fleet.options(1).node;
    let joined = join_by_token(&env(), dir, node(), (&token, &seeds)).await.unwrap();
    let identity = first.bootstrap.inner.credentials.identity().unwrap();
    assert_eq!((joined.cluster(), joined.node()), (identity.cluster(), NodeId(2)));
    assert!(dir.join("identity/node.json").exists() && !dir.join("identity/ca.key").exists());
    // A second try finds the identity and asks nobody.
    let again = join_by_token(&env(), dir, node(), (&token, &seeds)).await;
    assert!(matches!(again, Err(TokenJoinError::Member { node: NodeId(2), .. })));
    // A crash before the answer was stored: the same key, the same id.
    std::fs::remove_file(dir.join("identity/node.json")).unwrap();
    let retried = join_by_token(&env(), dir, node(), (&token, &seeds)).await.unwrap();
    assert_eq!(retried.node(), NodeId(2));
    // It starts with what it has, and lets nobody in itself.
    let started = fleet.start(1).await;
    assert!(matches!(started.run().await, Bootstrapped::Existing { started: false, .. }));
    started.bootstrap.serve_joins(Arc::new(Hooks(Arc::new(Agreed {
        cluster: Mutex::new(Some(joined.cluster())),
        ..Agreed::default()
    }))));
    let other = tempfile::tempdir().unwrap();
    let refused = join_by_token(&env(), other.path(), node(), (&token, &[fleet.places[1].address.clone()])).await;
    assert!(refused.unwrap_err().to_string().contains("cannot sign"));
}

#[tokio::test]
async fn a_token_is_told_only_to_a_node_of_its_own_cluster() {
    let fleet = Fleet::new(&["a"], 1).await;
    let (first, _agreed, token) = cluster_with_token(&fleet).await;
    let dir = tempfile::tempdir().unwrap();
    let node = || fleet.options(0).node;
    // Another cluster's node.
    let foreign = Fleet::new(&["x"], 1).await;
    let (_process, _, foreign_token) = cluster_with_token(&foreign).await;
    let seeds = [fleet.places[0].address.clone()];
    let refused = join_by_token(&env(), dir.path(), node(), (&foreign_token, &seeds)).await.unwrap_err();
    assert!(refused.to_string().contains("another cluster than the token"), "{refused}");
    // Somebody in between, who shows the right authority's certificate but has none by it.
    let credentials = Credentials::anonymous(&env()).unwrap();
    let (env, secret) = (env(), Secret::of(&[7; 32]));
    let asker = Asker { env: &env, credentials: &credentials, secret: &secret };
    let session = asker.open(&first.handle.address().to_string(), SOON).await.unwrap();
    let own = Credentials::anonymous(&env).unwrap();
    let (address, _tasks) = stand_between(&session, &env, &own).await;
    let refused = join_by_token(&env, dir.path(), node(), (&token, &[address])).await;
    assert!(matches!(refused, Err(TokenJoinError::Refused { .. })), "{refused:?}");
    // And the right place, with a token that nobody gave out.
    let guessed = JoinToken::draw(&env.seed, &first.bootstrap.inner.credentials.identity().unwrap());
    let refused = join_by_token(&env, dir.path(), node(), (&guessed, &seeds)).await.unwrap_err();
    assert!(refused.to_string().contains("the token is unknown"), "{refused}");
    assert!(!dir.path().join("identity/node.json").exists());
}

fn peers_of(credentials: &Credentials, known: BTreeMap<NodeId, String>) -> Peers {
    let (_, topology) = watch::channel(Arc::new(Topology::default()));
    Peers::new(crate::rpc::PeersParts {
        env: env(),
        credentials: credentials.clone(),
        runtimes: crate::rpc::Runtimes::current(),
        topology,
        known,
        metrics: crate::rpc::Metrics::default(),
    })
    .unwrap()
}

#[tokio::test]
async fn a_node_that_cannot_sign_has_its_certificate_signed_by_one_that_can_unless_it_was_removed() {
    let fleet = Fleet::new(&["a", "b"], 1).await;
    let (first, agreed, token) = cluster_with_token(&fleet).await;
    let (dir, seeds) = (fleet.places[1].dir.path(), [fleet.places[0].address.clone()]);
    let joined = join_by_token(&env(), dir, fleet.options(1).node, (&token, &seeds)).await.unwrap();
    let identity = first.bootstrap.inner.credentials.identity().unwrap();
    let known = BTreeMap::from([(identity.node(), fleet.places[0].address.clone())]);
    let credentials = Credentials::of(&env(), joined.clone()).unwrap();
    let peers = peers_of(&credentials, known);
    let request = || RenewRequest { certificate_request: joined.request().unwrap().into() };
    let mut client = BootstrapClient::new(peers.channel(identity.node(), Lane::Control).unwrap());
    let renewed = client.renew(request()).await.unwrap().into_inner();
    let renewed = joined.with_certificate(&env(), renewed.certificate_pem).unwrap();
    assert_eq!((renewed.node(), renewed.key_fingerprint()), (joined.node(), joined.key_fingerprint()));
    agreed.nodes.lock().unwrap().clear();
    assert_eq!(client.renew(request()).await.unwrap_err().code(), tonic::Code::PermissionDenied);
    // Without a certificate nobody is signed for.
    let asker = Credentials::anonymous(&env()).unwrap();
    let secret = Secret::of(&[7; 32]);
    let env = env();
    let session = Asker { env: &env, credentials: &asker, secret: &secret }.open(&seeds[0], SOON).await.unwrap();
    let status = session.client.clone().renew(request()).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unauthenticated);
}
