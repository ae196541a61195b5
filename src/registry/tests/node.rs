//! One node without doors.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tonic::service::Routes;

use crate::auth::Principal;
use crate::blob::{self, BlobStore};
use crate::db::Db;
use crate::meta::command::Command;
use crate::meta::{self, Meta};
use crate::oci::Digest;
use crate::registry::{Caller, Chunk, Config, Parts, Registry};
use crate::replica::{self, Replicas, Sight};
use crate::rpc::testing::Loopback;
use crate::topology::{ClusterId, NodeId, Region, Zone};
use crate::transfer::{self, Local, OpenExtents};

/// Nobody else is there.
#[derive(Debug)]
struct Alone;

impl Sight for Alone {
    fn is_live(&self, _: NodeId) -> bool {
        false
    }

    fn is_dead(&self, _: NodeId) -> bool {
        true
    }

    fn holders(&self, _: &Digest) -> Vec<NodeId> {
        Vec::new()
    }

    fn report_unreachable(&self, _: NodeId) {}
}

pub(super) struct Node {
    pub(super) registry: Registry,
    meta: Meta,
    _tasks: JoinSet<()>,
    _loopback: Loopback,
    _folder: TempDir,
}

impl Node {
    pub(super) async fn start(config: Config) -> Self {
        let loopback = Loopback::start(1).await;
        let here = loopback.node(1);
        let env = here.env.clone();
        let folder = tempfile::tempdir().unwrap();
        let mut tasks = JoinSet::new();

        let seed = env.seed.clone();
        let add_me = Command::AddNode {
            name: "n1".to_owned(),
            zone: Zone("z".to_owned()),
            region: Region("r".to_owned()),
            rpc_address: here.handle.address().to_string(),
            api_url: String::new(),
            weight: 1,
            key_fingerprint: [1; 32],
        };
        let (meta, services) = Meta::start(meta::Options {
            data_dir: folder.path().to_owned(),
            cluster: ClusterId(7),
            me: NodeId(1),
            config: meta::Config {
                heartbeat_ms: 50,
                election_min_ms: 200,
                election_max_ms: 350,
                ..meta::Config::default()
            },
            peers: here.peers.clone(),
            started: false,
            bootstrap: Some(meta::Bootstrap { nodes_expected: 1, add_me }),
            hooks: meta::Hooks {
                random: Arc::new(move || seed.draw_u128()),
                wall_seconds: Arc::new(|| 0),
                bodies_complete: Arc::new(|_| true),
                bodies_to: Arc::new(|| u64::MAX),
                sight: Arc::new(|_| meta::Sight::Live),
                is_empty: Arc::new(|_, _| false),
            },
            metrics: meta::Metrics::default(),
            runtime: tokio::runtime::Handle::current(),
        })
        .await
        .unwrap();
        here.serve(Routes::new(services.door.raft_service()).add_service(services.door.meta_service()));
        tasks.spawn(async move { panic!("meta ended: {}", services.run.await) });

        let small = blob::Config { refuse_free_bytes: 0, reserve_free_bytes: 0, ..blob::Config::default() };
        let blobs = BlobStore::open(small, folder.path(), Db::in_memory(), env.clock.clone()).unwrap();
        let background = blobs.clone();
        tasks.spawn(async move { background.run().await });
        let client = transfer::Client::new(Arc::new(here.peers.clone()));
        let local = Local { blobs: blobs.clone(), open: OpenExtents::default(), client };
        let replicas = Replicas::new(
            replica::Config::default(),
            replica::Parts { local, env: env.clone(), topology: meta.topology(), sight: Arc::new(Alone) },
        );
        let registry = Registry::new(config, Parts { env, meta: meta.clone(), replicas, blobs });
        let mut applied = meta.applied();
        while !meta.local().is_open() {
            applied.changed().await.unwrap();
        }
        Self { registry, meta, _tasks: tasks, _loopback: loopback, _folder: folder }
    }

    /// The log index that is applied.
    pub(super) fn applied(&self) -> u64 {
        self.meta.status().applied
    }
}

pub(super) fn anonymous() -> Caller {
    Caller { principal: Principal::Anonymous, consistency: None, wait_for: None }
}

pub(super) fn user(name: &str) -> Caller {
    Caller { principal: Principal::User(name.to_owned()), ..anonymous() }
}

/// A body of known length, in pieces of three bytes.
pub(super) fn chunk(offset: Option<u64>, bytes: &'static [u8]) -> Chunk {
    let pieces = bytes.chunks(3).map(|piece| Ok(Bytes::from_static(piece)));
    let body = futures::stream::iter(pieces.collect::<Vec<_>>()).boxed();
    Chunk { offset, length: Some(bytes.len() as u64), body }
}

/// A body of unknown length that breaks off after `bytes`.
pub(super) fn cut(offset: Option<u64>, bytes: &'static [u8]) -> Chunk {
    let whole = chunk(offset, bytes);
    let broken = futures::stream::iter([Err(std::io::ErrorKind::ConnectionReset.into())]);
    Chunk { length: None, body: whole.body.chain(broken).boxed(), ..whole }
}
