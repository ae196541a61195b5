//! The start of a node, step by step.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::auth::Auth;
use crate::blob::BlobStore;
use crate::config::Config;
use crate::db::Db;
use crate::env::{BoxFuture, Env};
use crate::gossip::Gossip;
use crate::meta::Meta;
use crate::ops::{AdminService, Health, Stage};
use crate::registry::Registry;
use crate::replica::Replicas;
use crate::rpc::{Bootstrap, BootstrapOptions, Bootstrapped, Credentials, Peers, PeersParts, Runtimes, Server};
use crate::telemetry::Metrics;
use crate::topology::Topology;
use crate::upkeep::Upkeep;
use crate::{api, gossip, meta, ops, registry, replica, rpc, transfer, upkeep};

use super::data_dir;
use super::doors::Doors;
use super::machine::RaftThreads;
use super::tasks::Tasks;
use super::wiring::{self, Later};
use super::{Node, Seams, StartError, prepare};

/// What the stop needs of the parts.
pub(super) struct Parts {
    pub(super) meta: Meta,
    pub(super) gossip: Gossip,
    pub(super) auth: Auth,
    pub(super) db: Db,
    pub(super) upkeep_stop: CancellationToken,
}

/// What is there once the doors are open: enough to say that the node starts.
struct Ground {
    config: Config,
    env: Env,
    tasks: Tasks,
    metrics: Metrics,
    runtimes: Runtimes,
    started: Instant,
}

/// This node's place among the others.
struct Place {
    bootstrap: Bootstrap,
    become_what: Bootstrapped,
    credentials: Credentials,
    server: rpc::ServerHandle,
    metrics: rpc::Metrics,
}

/// What knows where copies are and makes more of them.
struct Copies {
    gossip: Gossip,
    rounds: BoxFuture<'static, ()>,
    replicas: Replicas,
    upkeep: Upkeep,
    /// What other nodes may ask of all this.
    routes: Routes,
}

/// The server for other nodes, running.
struct Running {
    address: SocketAddr,
    stop: CancellationToken,
    closed: mpsc::Receiver<()>,
}

impl Node {
    /// Starts a node and waits until it is a member of its cluster, however long that takes; [`Node::ready`] says when it
    /// serves.
    ///
    /// # Errors
    ///
    /// [`StartError`]; everything begun is ended again.
    ///
    /// # Cancel safety
    ///
    /// A dropped call ends everything begun, as a crash would.
    pub async fn start(config: Config, seams: Seams) -> Result<Self, StartError> {
        let started = Instant::now();
        let data_dir = config.node.data_dir.clone();
        let lock = blocking(move || data_dir::open(&data_dir)).await?;
        let threads = RaftThreads::start().map_err(|source| StartError::Machine { source })?;
        let tasks = AbortOnDrop(Tasks::default());
        let Seams { clock, net, seed } = seams;
        let env = Env { clock, net, seed, spawner: Arc::new(tasks.0.clone()) };
        let runtimes = Runtimes { raft: threads.handle(), rest: Handle::current() };
        let (metrics, health) = (Metrics::default(), Health::default());
        tracing::info!(name = config.node.name, version = env!("CARGO_PKG_VERSION"), "starting");

        let doors = Doors::open(&config, &env, &tasks.0, &health, &metrics).await?;
        let stop_grace = config.node.stop_grace;
        let ground = Ground { config, env, tasks: tasks.0.clone(), metrics, runtimes, started };
        let (db, blobs) = ground.open_bytes().await?;
        health.set(Stage::Starting("not in a cluster yet"));
        let assembled = async {
            let (place, running) = ground.find_place(doors.api).await?;
            health.set(Stage::Starting("log is not replayed yet"));
            let parts = ground.assemble(place, &doors, &health, (db, blobs)).await?;
            Ok::<_, StartError>((parts, running))
        };
        let (parts, running) = tokio::select! {
            assembled = assembled => assembled?,
            ended = tasks.0.ended() => return Err(StartError::Ended(ended)),
        };
        Ok(Self {
            parts,
            health,
            doors,
            rpc_address: running.address,
            rpc_stop: running.stop,
            rpc_closed: running.closed,
            stop_grace,
            tasks: tasks.keep(),
            _threads: threads,
            _lock: lock,
        })
    }
}

impl Ground {
    /// Opens what lies on this disk.
    async fn open_bytes(&self) -> Result<(Db, BlobStore), StartError> {
        let (data_dir, config) = (self.config.node.data_dir.clone(), self.config.for_blob());
        let clock = self.env.clock.clone();
        let opened = blocking(move || {
            let db = Db::open(&data_dir);
            BlobStore::open(config, &data_dir, db.clone(), clock).map(|blobs| (db, blobs))
        });
        let (db, blobs) = opened.await?;
        self.metrics.register(|registry| blobs.register_metrics(registry));
        self.critical("blob store", {
            let blobs = blobs.clone();
            async move { blobs.run().await }
        });
        Ok((db, blobs))
    }

    /// Becomes a member of the cluster, or one again.
    async fn find_place(&self, api: SocketAddr) -> Result<(Place, Running), StartError> {
        let (config, env) = (&self.config, &self.env);
        let (secret_env, secret_config) = (env.clone(), config.clone());
        let secret = blocking(move || prepare::secret(&secret_env, &secret_config)).await?;
        let credentials = Credentials::anonymous(env)?;
        let metrics = self.metrics.register(rpc::Metrics::new);
        let parts = rpc::ServerParts {
            env: env.clone(),
            credentials: credentials.clone(),
            runtimes: self.runtimes.clone(),
            bootstrap: Routes::default(),
            limits: rpc::Limits::default(),
            metrics: metrics.clone(),
        };
        // bound first: a node that asked for any port knows only then what to tell others
        let (server, handle) = Server::bind(&config.rpc.listen, parts).await?;
        let options = BootstrapOptions {
            expect: config.cluster.bootstrap_expect as usize,
            seeds: config.cluster.seeds.clone(),
            ..BootstrapOptions::new(&config.node.data_dir, wiring::description(config, api, handle.address()), secret)
        };
        let (open_env, open_credentials) = (env.clone(), credentials.clone());
        let bootstrap = blocking(move || Bootstrap::open(open_env, open_credentials, options)).await?;
        handle.install_bootstrap(bootstrap.routes());
        let (stop, (open, closed)) = (CancellationToken::new(), mpsc::channel(1));
        let address = handle.address();
        tracing::info!(task = "rpc", %address, "listening");
        let stopped = stop.clone();
        self.tasks.critical_on(&self.runtimes.raft, "rpc server", async move {
            server.run(stopped).await;
            drop(open);
            Ok::<_, Infallible>(())
        });
        let become_what = bootstrap.run().await?;
        let place = Place { bootstrap, become_what, credentials, server: handle, metrics };
        Ok((place, Running { address, stop, closed }))
    }

    /// Builds everything that needs the node's identity, low to high.
    async fn assemble(
        &self,
        place: Place,
        doors: &Doors,
        health: &Health,
        (db, blobs): (Db, BlobStore),
    ) -> Result<Parts, StartError> {
        let config = &self.config;
        let description = wiring::description(config, doors.api, place.server.address());
        let (later, later_gossip): (Later<Upkeep>, Later<Gossip>) = (Later::default(), Later::default());
        let hooks = wiring::meta_hooks(&self.env, later.clone(), later_gossip.clone());
        let (meta, peers, services) = self.join_consensus(&place, &description, hooks).await?;
        self.tasks.critical("consensus", async move { Err::<(), _>(services.run.await) });
        let joins = wiring::Joins { meta: meta.clone(), gossip: later_gossip.clone() };
        place.bootstrap.serve_joins(Arc::new(joins));
        place.bootstrap.mark_started().await?;
        self.critical("certificate renewals", place.bootstrap.clone().renewals(peers.clone()));
        let alone = meta.clone();
        let epoch = place.bootstrap.clone().watch_epoch(move || alone.status().leader.is_none());
        self.tasks.critical("recovery epoch", Box::pin(epoch) as BoxFuture<'_, _>);
        self.critical("addresses", place.bootstrap.keep_addresses(peers.clone(), meta.topology()));

        let Copies { gossip, rounds, replicas, upkeep, routes } =
            self.find_copies(&meta, &peers, (&db, &blobs), Routes::new(services.door.raft_service()));
        later_gossip.set(gossip.clone()).ok();
        later.set(upkeep.clone()).ok();

        let auth = Auth::open(config.for_auth())?;
        let ops_parts = ops::Parts {
            health: health.clone(),
            metrics: self.metrics.clone(),
            auth: auth.clone(),
            meta: meta.clone(),
            gossip: gossip.clone(),
            peers,
            credentials: place.credentials.clone(),
            seed: self.env.seed.clone(),
            blobs: blobs.clone(),
            upkeep: upkeep.clone(),
            copies_configured: config.storage.copies,
            write_copies: config.storage.write_copies as usize,
            started: self.started,
        };
        let admin = AdminService::server(ops_parts.clone());
        let routes = routes.add_service(services.door.meta_service()).add_service(admin);
        place.server.install(routes, wiring::admission(meta.clone()));
        self.critical("gossip", rounds);
        self.critical("blob announcements", wiring::announce_blobs(blobs.clone(), gossip.clone()));
        self.critical("own record", wiring::keep_record(meta.clone(), description));
        self.critical("policy", wiring::compare_policy(meta.clone(), config.storage.copies));

        let registry = self.open_registry(&auth, &meta, replicas, blobs);
        let upkeep_stop = self.start_upkeep(&upkeep);
        doors.install(registry, ops::router(ops_parts));
        let ready = wiring::become_ready(meta.clone(), gossip.clone(), health.clone());
        self.tasks.background("readiness", ready);
        Ok(Parts { meta, gossip, auth, db, upkeep_stop })
    }

    /// Builds what knows where copies are and makes more of them.
    fn find_copies(&self, meta: &Meta, peers: &Peers, (db, blobs): (&Db, &BlobStore), raft: Routes) -> Copies {
        let env = &self.env;
        let gossip_parts = gossip::Parts {
            env: env.clone(),
            peers: peers.clone(),
            topology: meta.topology(),
            metrics: self.metrics.register(gossip::Metrics::new),
        };
        let (gossip, rounds, gossip_service) = Gossip::start(gossip::Config::default(), gossip_parts);
        let client = transfer::Client::new(Arc::new(peers.clone()));
        let local = transfer::Local { blobs: blobs.clone(), open: transfer::OpenExtents::default(), client };
        let transfer_service = transfer::Service::new(local.clone(), env.clone(), meta.topology());
        let replica_parts =
            replica::Parts { local, env: env.clone(), topology: meta.topology(), sight: Arc::new(gossip.clone()) };
        let replicas = Replicas::new(self.config.for_replica(), replica_parts);
        let upkeep_parts = upkeep::Parts {
            env: env.clone(),
            db: db.clone(),
            replicas: replicas.clone(),
            blobs: blobs.clone(),
            meta: meta.clone(),
        };
        let upkeep = Upkeep::new(self.config.for_upkeep(), upkeep_parts);
        let transfer_service = transfer_service.throttled(upkeep.serving_throttle()).into_server();
        self.metrics.register(|registry| upkeep.register_metrics(registry));
        let routes = raft.add_service(gossip_service).add_service(transfer_service);
        Copies { gossip, rounds: Box::pin(rounds), replicas, upkeep, routes }
    }

    /// Builds the registry and the routes to it.
    fn open_registry(&self, auth: &Auth, meta: &Meta, replicas: Replicas, blobs: BlobStore) -> Router {
        let config = self.config.for_registry();
        let manifest_bytes_max = config.manifest_bytes_max;
        let parts = registry::Parts { env: self.env.clone(), meta: meta.clone(), replicas, blobs };
        api::router(api::Parts {
            registry: Registry::new(config, parts),
            auth: auth.clone(),
            seed: self.env.seed.clone(),
            manifest_bytes_max,
            metrics: self.metrics.register(api::Metrics::register),
        })
    }

    /// Opens the agreed state and takes part in it.
    async fn join_consensus(
        &self,
        place: &Place,
        description: &rpc::NodeDescription,
        hooks: meta::Hooks,
    ) -> Result<(Meta, Peers, meta::Services), StartError> {
        let (identity, known, expected) = match &place.become_what {
            Bootstrapped::Initialise { identity, expected, .. } => (identity, Vec::new(), Some(*expected)),
            Bootstrapped::Joined { identity, nodes } | Bootstrapped::Existing { identity, nodes, .. } => {
                (identity, nodes.clone(), None)
            }
        };
        let known: BTreeMap<_, _> = known.into_iter().map(|node| (node.id, node.rpc_address)).collect();
        // the topology comes from the agreed state, which needs the channels: until it is there, the known addresses serve
        let (topology, agreed) = tokio::sync::watch::channel(Arc::new(Topology::default()));
        let peers = Peers::new(PeersParts {
            env: self.env.clone(),
            credentials: place.credentials.clone(),
            runtimes: self.runtimes.clone(),
            topology: agreed,
            known,
            metrics: place.metrics.clone(),
        })?;
        let bootstrap = expected.map(|expected| meta::Bootstrap {
            nodes_expected: u32::try_from(expected).unwrap_or(u32::MAX),
            add_me: wiring::add_node(rpc::NodeDescription {
                key_fingerprint: identity.key_fingerprint(),
                ..description.clone()
            }),
        });
        let options = meta::Options {
            data_dir: self.config.node.data_dir.clone(),
            cluster: identity.cluster(),
            me: identity.node(),
            config: self.config.for_meta(),
            peers: peers.clone(),
            started: matches!(place.become_what, Bootstrapped::Existing { started: true, .. }),
            bootstrap,
            hooks,
            metrics: self.metrics.register(meta::Metrics::new),
            runtime: self.runtimes.raft.clone(),
        };
        let (meta, services) = Meta::start(options).await?;
        let mut source = meta.topology();
        topology.send_replace(source.borrow_and_update().clone());
        self.critical("topology", async move {
            while source.changed().await.is_ok() {
                topology.send_replace(source.borrow_and_update().clone());
            }
            std::future::pending::<()>().await;
        });
        tracing::info!(node = identity.node().0, cluster = %identity.cluster(), "member of the cluster");
        Ok((meta, peers, services))
    }

    /// Runs the loops of upkeep until they are told to stop.
    fn start_upkeep(&self, upkeep: &Upkeep) -> CancellationToken {
        let stop = CancellationToken::new();
        let until = |work| {
            let stopped = stop.clone();
            async move {
                stopped.run_until_cancelled_owned(work).await;
            }
        };
        self.tasks.background("catch up", until(Box::pin(upkeep.clone().catch_up()) as BoxFuture<'_, ()>));
        self.tasks.background("reap", until(Box::pin(upkeep.clone().reap())));
        self.tasks.background("collect", until(Box::pin(upkeep.clone().collect())));
        self.tasks.background("full mark", until(Box::pin(upkeep.clone().audit())));
        self.tasks.background("trim", until(Box::pin(upkeep.clone().trim())));
        self.tasks.background("scrub", until(Box::pin(upkeep.clone().scrub())));
        self.tasks.background("survey", until(Box::pin(upkeep.clone().survey_copies())));
        self.tasks.background("drains", until(Box::pin(upkeep.clone().watch_drains())));
        stop
    }

    fn critical(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.critical(name, async move {
            work.await;
            Ok::<_, Infallible>(())
        });
    }
}

/// Ends the tasks of a start that did not come to its end.
struct AbortOnDrop(Tasks);

impl AbortOnDrop {
    fn keep(self) -> Tasks {
        let tasks = self.0.clone();
        std::mem::forget(self);
        tasks
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs a step that blocks on the disk.
async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}
