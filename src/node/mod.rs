//! Builds every part in order, watches the tasks, stops them in reverse.
//!
//! Owns the parts, the lock of the data directory and every task. One composition root: `serve`, tests and simulations all
//! start nodes by [`Node::start`]. Invariants: listeners are bound before anything slow, so that a starting node says so;
//! a task that ends or panics ends the node; the stop undoes the start in reverse. Decides nothing itself.
//! Start reading at [`Node::start`], which reads like a log.

mod data_dir;
mod door;
mod doors;
mod fsck;
mod machine;
mod prepare;
mod run;
mod shutdown;
mod start;
mod tasks;
mod wiring;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::disk::DirLock;
use crate::env::{Clock, Net, Seed, SystemClock, TcpNet};
use crate::gossip::Gossip;
use crate::meta::Meta;
use crate::ops::Health;
use crate::topology::NodeId;
use crate::{auth, blob, meta, rpc};

use doors::Doors;
use machine::RaftThreads;
use start::Parts;
use tasks::Tasks;

pub use data_dir::DataDirError;
pub use door::TlsError;
pub use fsck::{Fsck, FsckError, StateSummary, fsck};
pub use prepare::{JoinToken, Member, PrepareError, Remains, forget, init, inspect, join, recover};
pub use run::run;
pub use tasks::Ended;

/// What a node is given of the outer world; tests and simulations give others.
#[derive(Clone)]
pub struct Seams {
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
    /// The network.
    pub net: Arc<dyn Net>,
    /// The source of random numbers.
    pub seed: Seed,
}

impl std::fmt::Debug for Seams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seams")
    }
}

impl Seams {
    /// The machine's own.
    #[must_use]
    pub fn machine() -> Self {
        Self { clock: Arc::new(SystemClock), net: Arc::new(TcpNet), seed: Seed::from_os() }
    }
}

/// How a node's life ended.
#[derive(Debug)]
pub enum Outcome {
    /// A signal asked for it.
    Stopped,
    /// A critical task ended or a task panicked; the log says which.
    Ended,
    /// It never came to life.
    Unusable(StartError),
}

/// Says why a node could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// An address cannot be listened on.
    #[error("listen on {address} ({name})")]
    Listen {
        /// Which door.
        name: &'static str,
        /// Where.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The certificate for clients cannot be used.
    #[error("tls")]
    Tls(#[from] TlsError),
    /// The users cannot be read.
    #[error("users")]
    Auth(#[from] auth::Error),
    /// The connections between nodes, or this node's identity, cannot be set up.
    #[error("identity")]
    Rpc(#[from] rpc::Error),
    /// The node knows nobody's secret and has no identity either.
    #[error("`cluster.secret_file` is not set and this node is no member yet: set it, or run `rafthold cluster join`")]
    NoSecret,
    /// This node's bytes cannot be opened.
    #[error("blobs")]
    Blobs(#[from] blob::Error),
    /// The agreement cannot be joined.
    #[error("consensus")]
    Meta(#[from] meta::StartError),
    /// The machine refused threads or signals.
    #[error("machine")]
    Machine {
        /// What it said.
        source: std::io::Error,
    },
    /// A part ended while the node was still being put together.
    #[error("{0}")]
    Ended(Ended),
}

impl StartError {
    /// Whether the configuration is to blame: exit code 64.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Tls(_) | Self::Auth(_) | Self::NoSecret => true,
            Self::Rpc(error) => matches!(
                error,
                rpc::Error::SecretExposed { .. } | rpc::Error::SecretShort { .. } | rpc::Error::Expect { .. }
            ),
            _ => false,
        }
    }
}

/// A running node.
pub struct Node {
    parts: Parts,
    health: Health,
    doors: Doors,
    rpc_address: SocketAddr,
    rpc_stop: CancellationToken,
    rpc_closed: mpsc::Receiver<()>,
    stop_grace: Duration,
    tasks: Tasks,
    // dropped last: consensus ends, then the data directory is free
    _threads: RaftThreads,
    _lock: DirLock,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("id", &self.id()).field("api", &self.doors.api).finish_non_exhaustive()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // abrupt, as a crash would be; after `stop` nothing runs any more
        self.tasks.abort();
    }
}

impl Node {
    /// Where clients connect.
    #[must_use]
    pub fn api_address(&self) -> SocketAddr {
        self.doors.api
    }

    /// Where operators connect: the api's address unless it has one of its own.
    #[must_use]
    pub fn ops_address(&self) -> SocketAddr {
        self.doors.ops.unwrap_or(self.doors.api)
    }

    /// Where other nodes connect.
    #[must_use]
    pub fn rpc_address(&self) -> SocketAddr {
        self.rpc_address
    }

    /// The node's id.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.parts.meta.status().me
    }

    /// The agreed state, for tests and tools in the same process.
    #[must_use]
    pub fn meta(&self) -> &Meta {
        &self.parts.meta
    }

    /// What this node hears from the others, for tests and tools in the same process.
    #[must_use]
    pub fn gossip(&self) -> &Gossip {
        &self.parts.gossip
    }

    /// Waits until the node serves.
    pub async fn ready(&self) {
        self.health.ready().await;
    }

    /// Waits until the node can no longer go on, and says why.
    pub async fn ended(&self) -> Ended {
        self.tasks.ended().await
    }
}
