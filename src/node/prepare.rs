//! What is done with a data directory while no node runs on it: `cluster init`, `join`, `forget` and `recover`.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::disk::{DirLock, remove_durable, sync_dir};
use crate::env::Env;
use crate::meta::{self, recover as remains};
use crate::rpc::{self, BootstrapOptions, Credentials, NodeDescription, Secret, TokenJoinError};
use crate::topology::{ClusterId, NodeId};

use super::{DataDirError, Seams, StartError, data_dir, wiring};

pub use crate::meta::Remains;
pub use crate::rpc::JoinToken;

/// Says why a data directory was not prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The directory cannot be used, as a rule because a node runs on it.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The secret or the identity cannot be used.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The identity cannot be made or read.
    #[error("identity")]
    Rpc(#[from] rpc::Error),
    /// No member took the node in.
    #[error(transparent)]
    Join(#[from] TokenJoinError),
    /// The agreed state cannot be read or written.
    #[error("consensus")]
    Meta(#[from] meta::StartError),
    /// There is nothing to work with.
    #[error("the data directory {path} belongs to no cluster", path = path.display())]
    NoMember {
        /// The directory.
        path: PathBuf,
    },
    /// The cluster had removed the node before its quorum was lost.
    #[error("node {node} was removed from the cluster: recover another one")]
    Removed {
        /// The node.
        node: NodeId,
    },
    /// The filesystem refused.
    #[error("{doing} {path}", path = path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// Who a data directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// Its id there.
    pub node: NodeId,
    /// How often the cluster was recovered, beginning with 1.
    pub epoch: u64,
}

impl Member {
    fn of(identity: &rpc::Identity) -> Self {
        Self { cluster: identity.cluster(), node: identity.node(), epoch: identity.epoch() }
    }
}

/// Finds the secret that this node shares with others; one that joined by a token needs none.
pub(super) fn secret(env: &Env, config: &Config) -> Result<Secret, StartError> {
    let path = config.secret_file();
    let is_member = config.node.data_dir.join("identity/node.json").exists();
    if config.cluster.secret_file.is_some() || path.exists() {
        return Ok(Secret::load(&path)?);
    }
    match (is_member, config.cluster.seeds.is_empty()) {
        (true, _) => Ok(Secret::unknown(env)),
        (false, true) => Ok(Secret::generate(env, &path)?),
        (false, false) => Err(StartError::NoSecret),
    }
}

fn env(seams: &Seams) -> Env {
    let Seams { clock, net, seed } = seams.clone();
    Env { clock, net, seed, spawner: std::sync::Arc::new(super::Tasks::default()) }
}

/// This node as it will describe itself, from its configuration alone.
fn describe(config: &Config) -> NodeDescription {
    // Port 0 cannot be told before it is bound; the node corrects its record when it starts.
    let address = |text: &str| text.parse().unwrap_or_else(|_| SocketAddr::from(([127, 0, 0, 1], 0)));
    wiring::description(config, address(&config.api.listen), address(&config.rpc.listen))
}

fn lock(config: &Config) -> Result<DirLock, PrepareError> {
    Ok(data_dir::open(&config.node.data_dir)?)
}

/// Gives the data directory an identity by a join token; the next start runs it.
///
/// # Errors
///
/// [`PrepareError`]; asking again is safe.
pub async fn join(
    config: &Config,
    seams: &Seams,
    token: &JoinToken,
    members: &[String],
) -> Result<Member, PrepareError> {
    let _lock = lock(config)?;
    let node = describe(config);
    let joined = rpc::join_by_token(&env(seams), &config.node.data_dir, node, (token, members)).await?;
    Ok(Member::of(&joined))
}

/// Makes the data directory the first node of a new cluster, which others join; the next start forms it.
///
/// # Errors
///
/// [`PrepareError`], also if a seed belongs to a cluster already.
pub async fn init(config: &Config, seams: &Seams) -> Result<Member, PrepareError> {
    let _lock = lock(config)?;
    let env = env(seams);
    let secret = match config.cluster.secret_file {
        None if !config.secret_file().exists() => Secret::generate(&env, &config.secret_file())?,
        _ => Secret::load(&config.secret_file())?,
    };
    let options = BootstrapOptions {
        expect: 1,
        seeds: config.cluster.seeds.clone(),
        ..BootstrapOptions::new(&config.node.data_dir, describe(config), secret)
    };
    let credentials = Credentials::anonymous(&env)?;
    let bootstrap = rpc::Bootstrap::open(env, credentials, options)?;
    Ok(Member::of(&bootstrap.init().await?))
}

/// Says who the data directory is and what it still knows, without changing it.
///
/// # Errors
///
/// [`PrepareError`].
pub async fn inspect(config: &Config, seams: &Seams) -> Result<(Member, Remains), PrepareError> {
    let _lock = lock(config)?;
    let member = member(config, seams)?;
    Ok((member, remains::inspect(&config.node.data_dir, member.cluster).await?))
}

fn member(config: &Config, seams: &Seams) -> Result<Member, PrepareError> {
    let identity = rpc::load_identity(&env(seams), &config.node.data_dir)?;
    let identity = identity.ok_or_else(|| PrepareError::NoMember { path: config.node.data_dir.clone() })?;
    Ok(Member::of(&identity))
}

/// Makes the data directory the only member of its cluster, under a new epoch and authority: the quorum is lost for good.
///
/// The identity goes first: were this cut short, the node could neither be outvoted by the old ones nor lead them.
///
/// # Errors
///
/// [`PrepareError`]; asking again goes on from there.
pub async fn recover(config: &Config, seams: &Seams) -> Result<Member, PrepareError> {
    let _lock = lock(config)?;
    let (env, data_dir) = (env(seams), &config.node.data_dir);
    let before = member(config, seams)?;
    // What cannot go on must not be given a new identity.
    let remains = remains::inspect(data_dir, before.cluster).await?;
    if !remains.nodes.iter().any(|node| node.id == before.node) {
        return Err(PrepareError::Removed { node: before.node });
    }
    let identity = rpc::renew_epoch(&env, data_dir)?;
    let seed = env.seed.clone();
    remains::take_over(data_dir, (before.cluster, before.node), move || seed.draw_u128()).await?;
    Ok(Member::of(&identity))
}

/// Has the data directory forget its cluster, and keep its blobs: the node can then join one anew, under a new id.
///
/// # Errors
///
/// [`PrepareError`]; asking again goes on from there.
pub fn forget(config: &Config) -> Result<(), PrepareError> {
    let _lock = lock(config)?;
    let data_dir = &config.node.data_dir;
    // A member to whom somebody might listen must not come back with half a log: who it is goes first.
    for name in ["identity", "identity.next", "identity.old"] {
        remove_dir(&data_dir.join(name))?;
    }
    for name in ["promise", "raft-made"] {
        let path = data_dir.join(name);
        if path.exists() {
            remove_durable(&path).map_err(|source| PrepareError::Io { doing: "remove", path, source })?;
        }
    }
    for name in ["raft", "snapshots"] {
        remove_dir(&data_dir.join(name))?;
    }
    Ok(())
}

fn remove_dir(path: &Path) -> Result<(), PrepareError> {
    let failed = |doing| move |source| PrepareError::Io { doing, path: path.to_owned(), source };
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove")(error)),
        _ => path.parent().map_or(Ok(()), |parent| sync_dir(parent).map_err(failed("sync"))),
    }
}
