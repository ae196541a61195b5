//! Gives a node its identity: the first nodes form a cluster by themselves, later ones join it (P10).
//!
//! Owns `identity/` and `promise` in the data directory. Invariants: a node forms a cluster only after all expected nodes
//! have synced their promise to it; a node that has promised or belongs to a cluster refuses any other; whatever is said
//! without a certificate is proved by the shared secret, bound to the answerer's certificate; each step is durable before
//! the next, so that a restart at any point goes on. Does not run consensus: `node` does what [`Bootstrapped`] says.
//! Start reading at `decide.rs` (pure), then `run.rs`.

mod client;
mod decide;
mod epoch;
mod promise;
mod proof;
mod rate;
mod renew;
mod run;
mod secret;
mod service;
#[cfg(test)]
mod tests;
mod token;
mod wire;

use std::fmt;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tonic::service::Routes;

use crate::env::{BoxFuture, Env};
use crate::topology::{ClusterId, NodeId, NodeRecord, Region, Topology, Zone};

use super::connection::Shown;
use super::identity::{FIRST_EPOCH, IdentityDir, NodeFile, Pems, fingerprint};
use super::tls::check_chain;
use super::{Credentials, Error, Identity, NodeUri, Peers, Result, Retry, peer};
use super::{Lane, ca, describe, describe_status, dial, files, proto, within};

use decide::{SeedState, Stage};
use promise::{Promise, PromiseFile};
use proof::{Nonce, Nonces};
use rate::Rates;

pub use secret::Secret;
pub use token::{BadToken, JoinToken, TokenJoinError, join_by_token};
pub use wire::BadNode;

/// How often a running node looks whether its certificate is due.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(6 * 3600);
/// At most one complaint about a wrong secret per this time.
const COMPLAIN_EVERY: Duration = Duration::from_secs(5);

/// What a node says of itself when it joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeDescription {
    /// The operator's name for it.
    pub name: String,
    /// Its failure domain.
    pub zone: Zone,
    /// Its region.
    pub region: Region,
    /// Where other nodes reach it: `host:port`.
    pub rpc_address: String,
    /// Where clients reach it.
    pub api_url: String,
    /// Its share of the bytes relative to others.
    pub weight: u32,
    /// SHA-256 of its public key: the same key again gets the same id.
    pub key_fingerprint: [u8; 32],
}

/// Says why a node was not added to the agreed state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddNodeError {
    /// The state machine refused; the text says why.
    #[error("{0}")]
    Refused(String),
    /// No quorum in time; it may have happened all the same, and asking again is safe.
    #[error("no quorum")]
    Unavailable,
}

/// What bootstrap asks of the agreed state, which this module may not see.
pub trait ClusterHooks: Send + Sync + 'static {
    /// The cluster, once its first command is applied here.
    fn formed(&self) -> Option<ClusterId>;
    /// The agreed nodes as applied here.
    fn nodes(&self) -> Vec<NodeRecord>;
    /// Adds a node, through the leader wherever it is; the same key again gets the same id.
    fn add_node(&self, node: NodeDescription) -> BoxFuture<'_, Result<NodeId, AddNodeError>>;
    /// Adds a node by the token of that SHA-256; the first key that used it gets the same id again, another none.
    fn join_by_token(&self, token: [u8; 32], node: NodeDescription) -> BoxFuture<'_, Result<NodeId, AddNodeError>>;
}

/// The settings and the description of this node.
#[derive(Debug, Clone)]
pub struct BootstrapOptions {
    /// Where `identity/` and `promise` lie.
    pub data_dir: PathBuf,
    /// This node's own name, zone, addresses and weight; its fingerprint is not looked at.
    pub node: NodeDescription,
    /// How many nodes form the cluster.
    pub expect: usize,
    /// Where the seeds listen: all first nodes, or all others.
    pub seeds: Vec<String>,
    /// What they all know.
    pub secret: Secret,
    /// Between two rounds of asking.
    pub interval: Duration,
}

impl BootstrapOptions {
    /// Options that ask every half second.
    #[must_use]
    pub fn new(data_dir: &Path, node: NodeDescription, secret: Secret) -> Self {
        let interval = Duration::from_millis(500);
        Self { data_dir: data_dir.to_owned(), node, expect: 1, seeds: Vec::new(), secret, interval }
    }
}

/// What this node has become, and what `node` has to do about it.
#[derive(Debug, Clone)]
pub enum Bootstrapped {
    /// All have promised: initialise consensus with this node alone, unless its log says that this was done already.
    Initialise {
        /// The new cluster.
        cluster: ClusterId,
        /// This node, with id 1.
        identity: Identity,
        /// How many nodes are to be members before the registry opens.
        expected: usize,
    },
    /// This node was taken into a cluster just now: its log is empty and the leader will fill it.
    Joined {
        /// This node.
        identity: Identity,
        /// The nodes at that moment.
        nodes: Vec<NodeRecord>,
    },
    /// This node has been a member since an earlier start.
    Existing {
        /// This node.
        identity: Identity,
        /// The nodes when it joined; the agreed state knows better once it is replayed.
        nodes: Vec<NodeRecord>,
        /// Consensus has run here before: an empty log is then a lost one, and the node must not start.
        started: bool,
    },
}

/// Brings this node into a cluster and lets others in; cheap to clone.
#[derive(Clone)]
pub struct Bootstrap {
    inner: Arc<Inner>,
}

impl fmt::Debug for Bootstrap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bootstrap").field("options", &self.inner.options).finish_non_exhaustive()
    }
}

struct Inner {
    env: Env,
    credentials: Credentials,
    options: BootstrapOptions,
    dir: IdentityDir,
    promise_file: PromiseFile,
    /// Tells this process from others that may bear its name.
    instance: u128,
    nonces: Nonces,
    place: tokio::sync::Mutex<Place>,
    hooks: RwLock<Option<Arc<dyn ClusterHooks>>>,
    rates: Mutex<Rates>,
    complained: Mutex<Option<Instant>>,
}

/// What is on disk.
struct Place {
    promise: Option<Promise>,
    identity: Option<NodeFile>,
}

impl Bootstrap {
    /// Reads what is on disk; if there is an identity, `credentials` show it on return. Blocks.
    ///
    /// # Errors
    ///
    /// - [`Error::Expect`] if the settings can never form a cluster.
    /// - [`Error::DataWithoutIdentity`] if the directory holds a log but no identity.
    /// - [`Error::Damaged`], [`Error::Version`], [`Error::Expired`] or [`Error::File`] if files are there that this node
    ///   cannot go on with.
    pub fn open(env: Env, credentials: Credentials, options: BootstrapOptions) -> Result<Self> {
        let distinct = options.seeds.iter().collect::<std::collections::BTreeSet<_>>().len();
        if options.expect == 0 || (options.expect > 1 && distinct == 0) {
            return Err(Error::Expect { expect: options.expect, seeds: distinct });
        }
        IdentityDir::finish_exchange(&options.data_dir)?;
        let dir = IdentityDir::of(&options.data_dir);
        let promise_file = PromiseFile(options.data_dir.join("promise"));
        let promise = promise_file.load()?;
        let identity = match dir.load(&env)? {
            Some((identity, file)) => {
                credentials.install(identity)?;
                Some(file)
            }
            None => {
                for name in ["raft", "snapshots"] {
                    refuse_if_filled(&options.data_dir.join(name))?;
                }
                None
            }
        };
        let mut boot_key = [0; 32];
        env.seed.fill(&mut boot_key);
        let inner = Inner {
            instance: env.seed.draw_u128(),
            nonces: Nonces::new(&boot_key),
            env,
            credentials,
            options,
            dir,
            promise_file,
            place: tokio::sync::Mutex::new(Place { promise, identity }),
            hooks: RwLock::default(),
            rates: Mutex::default(),
            complained: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The service for this node's server; it answers from the start, as the first nodes need each other's answers.
    #[must_use]
    pub fn routes(&self) -> Routes {
        Routes::new(service::service(self.inner.clone()))
    }

    /// Waits until this node is a member of a cluster, however long that takes; on return the credentials show it.
    ///
    /// # Errors
    ///
    /// [`Error::File`] if the identity or the promise could not be made durable: the node must stop.
    ///
    /// # Cancel safety
    ///
    /// What was promised or stored stays; the next start goes on from there.
    pub async fn run(&self) -> Result<Bootstrapped> {
        let file = self.inner.place.lock().await.identity.clone();
        let Some(file) = file else { return self.inner.become_member().await };
        let identity = self.inner.credentials.identity().ok_or(Error::NoIdentity)?;
        Ok(match file.initialise {
            Some(expected) => Bootstrapped::Initialise { cluster: identity.cluster(), identity, expected },
            None => Bootstrapped::Existing { identity, nodes: file.nodes, started: file.started },
        })
    }

    /// Lets other nodes join, once the agreed state runs here.
    pub fn serve_joins(&self, hooks: Arc<dyn ClusterHooks>) {
        *self.inner.hooks.write().unwrap_or_else(PoisonError::into_inner) = Some(hooks);
    }

    /// Notes, durably, that consensus has a log here: from now on an empty one is a lost one. The promise is fulfilled.
    ///
    /// # Errors
    ///
    /// [`Error::File`].
    pub async fn mark_started(&self) -> Result<()> {
        let mut place = self.inner.place.lock().await;
        let Some(file) = place.identity.clone() else { return Err(Error::NoIdentity) };
        if !file.started {
            let mut file = file;
            (file.started, file.initialise) = (true, None);
            let (dir, written) = (self.inner.dir.clone(), file.clone());
            blocking(move || dir.store_file(&written)).await?;
            place.identity = Some(file);
        }
        if place.promise.is_some() {
            let promise_file = self.inner.promise_file.clone();
            blocking(move || promise_file.remove()).await?;
            place.promise = None;
        }
        Ok(())
    }

    /// Keeps the addresses of the other nodes at hand for the moment after a restart; ends only when dropped.
    ///
    /// Consensus needs them to find out what is agreed, and only what is agreed says them: so they are kept beside the
    /// identity, and a node that has none of them asks its seeds, who say their ids.
    pub async fn keep_addresses(self, peers: Peers, mut topology: watch::Receiver<Arc<Topology>>) {
        self.inner.find_seeds(&peers, &mut topology).await;
        loop {
            let nodes: Vec<NodeRecord> = topology.borrow_and_update().nodes.values().cloned().collect();
            if let Err(error) = self.inner.remember(nodes).await {
                tracing::warn!(error = describe(&error), "addresses of the nodes could not be written");
            }
            if topology.changed().await.is_err() {
                return std::future::pending().await; // the node is stopping
            }
        }
    }

    /// Renews this node's certificate in time, for as long as the node runs; ends only when dropped. A node that cannot
    /// sign asks the others.
    pub async fn renewals(self, peers: Peers) {
        loop {
            match self.inner.renew(&peers).await {
                Ok(true) => tracing::info!("node certificate renewed"),
                Ok(false) => {}
                Err(error) => tracing::warn!(error = describe(&error), "node certificate could not be renewed"),
            }
            tokio::time::sleep(RENEWAL_INTERVAL).await;
        }
    }
}

impl Inner {
    fn hooks(&self) -> Option<Arc<dyn ClusterHooks>> {
        self.hooks.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn standing(&self) -> SeedState {
        let place = self.place.lock().await;
        let stage = match &place.identity {
            None => Stage::Empty {
                promise: place.promise.as_ref().map(|promise| (promise.cluster, promise.initialiser.clone())),
            },
            Some(file) => match self.hooks().and_then(|hooks| hooks.formed()) {
                Some(cluster) => Stage::Formed { cluster },
                None => Stage::Forming { cluster: file.cluster },
            },
        };
        SeedState {
            name: self.options.node.name.clone(),
            instance: self.instance,
            expect: self.options.expect,
            stage,
            node: place.identity.as_ref().map(|file| file.node),
            epoch: place.identity.as_ref().map_or(0, |file| file.epoch),
        }
    }

    fn admit(&self, address: IpAddr, now: Instant) -> bool {
        self.rates.lock().unwrap_or_else(PoisonError::into_inner).admit(address, now)
    }

    fn complain(&self, address: SocketAddr) {
        let mut complained = self.complained.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if complained.is_none_or(|at| now - at >= COMPLAIN_EVERY) {
            *complained = Some(now);
            tracing::warn!(from = %address.ip(), "a node with another secret file asks to take part: refused");
        }
    }
}

fn refuse_if_filled(dir: &Path) -> Result<()> {
    let path = || dir.to_owned();
    match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::File { doing: "list", path: path(), source }),
        // Every filesystem of some kinds has one, mounted here or not.
        Ok(mut entries) => match entries.any(|entry| entry.map_or(true, |entry| entry.file_name() != "lost+found")) {
            false => Ok(()),
            true => Err(Error::DataWithoutIdentity { path: path() }),
        },
    }
}

/// Runs a call that blocks on the disk.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(Error::Stopped))
}
