//! Opening: the log, the newest snapshot, the raft core on its own threads, and the futures that the node runs.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openraft::impls::EmptyNode;
use tokio::runtime::Handle;
use tokio::sync::{Mutex as AsyncMutex, mpsc, watch};
use tokio::time::Instant;

use crate::disk::write_durable;
use crate::rpc::Peers;
use crate::topology::{ClusterId, NodeId};

use super::command::{Command, Rejection, Response};
use super::config::{Config, ConfigError};
use super::consistency::READERS_MAX;
use super::engine::{Core, Hooks};
use super::followers::Followers;
use super::freshness::Freshness;
use super::log_clock::LogClock;
use super::log_memory::CacheLimits;
use super::log_space::LogSpace;
use super::log_store::{LogLimits, LogStore};
use super::metrics::Metrics;
use super::network::Network;
use super::service::Door;
use super::snapshot::{self, SnapshotDir};
use super::state_machine::StateMachine;
use super::types::Raft;
use super::wal::EntryId;
use super::{Applied, Failure, Meta, ProposeError, wal};

/// Says why consensus cannot start. None of these goes away by itself.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The settings cannot work together.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The log cannot be opened.
    #[error("open the raft log")]
    Log(#[from] wal::Error),
    /// The log was there once and is gone: this node may have voted, and must not vote again under its id (R18).
    #[error("the raft log in {dir} is gone: wipe the data directory, the node then returns under a new id")]
    LogGone {
        /// Where it was.
        dir: PathBuf,
    },
    /// A snapshot cannot be opened.
    #[error("open the snapshots")]
    Snapshots(#[from] snapshot::Error),
    /// The log begins after what the snapshots hold: what lies between is gone, and other nodes may count on it here.
    #[error(
        "no good snapshot reaches log entry {purged}, up to which the raft log was purged: wipe the data directory, the \
         node then returns under a new id"
    )]
    SnapshotLost {
        /// The last index that is no longer in the log.
        purged: u64,
    },
    /// The filesystem refused.
    #[error("write {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
    /// The raft core did not start.
    #[error("start raft: {reason}")]
    Raft {
        /// What it said.
        reason: String,
    },
    /// The first node could not make itself the cluster.
    #[error("form the cluster: {reason}")]
    Form {
        /// What came of it.
        reason: String,
    },
}

/// Makes a cluster of this node alone, which others join (P10).
#[derive(Debug, Clone)]
pub struct Bootstrap {
    /// Nodes that must be there before the registry takes writes.
    pub nodes_expected: u32,
    /// `AddNode` of this node; it must get this node's id.
    pub add_me: Command,
}

/// What [`Meta::start`] needs.
pub struct Options {
    /// The node's data directory; `raft/` and `snapshots/` in it are owned here.
    pub data_dir: PathBuf,
    /// The cluster this node belongs to.
    pub cluster: ClusterId,
    /// This node's id.
    pub me: NodeId,
    /// The settings.
    pub config: Config,
    /// The ways to other nodes.
    pub peers: Peers,
    /// Whether consensus ran here before, as the node's identity says: its log must be there then.
    pub started: bool,
    /// Set on the node that makes the cluster, at every start: what was done already is not done again.
    pub bootstrap: Option<Bootstrap>,
    /// Chance, the wall clock, and what is known of bodies.
    pub hooks: Hooks,
    /// Where to count.
    pub metrics: Metrics,
    /// The threads that consensus runs on; nothing else may block them (R25).
    pub runtime: Handle,
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options").field("data_dir", &self.data_dir).field("me", &self.me).finish_non_exhaustive()
    }
}

/// What the node takes up of a started [`Meta`].
pub struct Services {
    /// Makes the two gRPC services.
    pub door: Door,
    /// Everything that `meta` does by itself; it ends only with the reason why this node must stop.
    pub run: futures::future::BoxFuture<'static, Failure>,
}

impl std::fmt::Debug for Services {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Services").finish_non_exhaustive()
    }
}

impl Meta {
    /// Opens log and snapshots, replays what is known committed, and joins consensus.
    ///
    /// The raft core, the replication to each peer and the state machine run on `options.runtime`; the log has a thread of
    /// its own. The services must be installed and `run` be polled before other nodes or reads get anywhere.
    ///
    /// # Errors
    ///
    /// See [`StartError`].
    pub async fn start(options: Options) -> Result<(Self, Services), StartError> {
        options.config.validate()?;
        let (log, machine, snapshots, space) = open(&options).await?;
        let published = machine.published();
        let network = Network { peers: options.peers.clone(), append_deadline: options.config.append_deadline() };
        let raft_config = options.config.raft(&options.cluster.to_string()).validate();
        let raft_config = Arc::new(raft_config.map_err(|error| StartError::Raft { reason: error.to_string() })?);
        let me = options.me.0;
        let (bootstrap, runtime) = (options.bootstrap, options.runtime);
        // Whatever the core spawns lives where it is made.
        let made = runtime.spawn(async move { Raft::new(me, raft_config, network, log, machine).await }).await;
        let raft = match made {
            Ok(Ok(raft)) => raft,
            Ok(Err(fatal)) => return Err(StartError::Raft { reason: fatal.to_string() }),
            Err(panic) => return Err(StartError::Raft { reason: panic.to_string() }),
        };
        let (reads, read_queue) = mpsc::channel(READERS_MAX);
        let core = Arc::new(Core {
            cluster: options.cluster,
            me: options.me,
            config: options.config,
            raft,
            peers: options.peers,
            hooks: options.hooks,
            published,
            snapshots,
            space,
            followers: Followers::default(),
            freshness: Freshness::new(),
            clock: LogClock::default(),
            metrics: options.metrics,
            reads,
            receiving: AsyncMutex::new(()),
            failure: watch::Sender::new(None),
            diverged: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            notices: Mutex::default(),
        });
        if core.is_alone().await {
            // Nobody else could win: there is no timeout to wait for. An error means a stopped core, seen soon enough.
            core.raft.trigger().elect(false).await.ok();
        }
        if let Some(bootstrap) = bootstrap {
            core.form(bootstrap).await?;
        }
        let run = run(core.clone(), read_queue);
        Ok((Self { core: core.clone() }, Services { door: Door::new(core), run: Box::pin(run) }))
    }
}

async fn run(core: Arc<Core>, reads: mpsc::Receiver<super::consistency::ReadRequest>) -> Failure {
    let mut failure = core.failure.subscribe();
    let failed = async {
        match failure.wait_for(Option::is_some).await {
            Ok(failure) => failure.clone().expect("just seen"),
            Err(_) => Failure::Raft { reason: "meta is gone".to_owned() },
        }
    };
    let reason = tokio::select! {
        reason = failed => reason,
        reason = core.watch_core() => reason,
        () = core.serve_reads(reads) => Failure::Raft { reason: "reads ended".to_owned() },
        () = core.keep_fresh() => unreachable!("runs for ever"),
        () = core.keep_members() => unreachable!("runs for ever"),
        () = core.keep_log_short() => unreachable!("runs for ever"),
        () = core.keep_snapshots() => unreachable!("runs for ever"),
    };
    core.fail(reason.clone());
    reason
}

type Opened = (LogStore, StateMachine, Arc<SnapshotDir>, Arc<LogSpace>);

async fn open(options: &Options) -> Result<Opened, StartError> {
    let (data_dir, cluster) = (options.data_dir.clone(), options.cluster);
    let config = &options.config;
    let limits = LogLimits {
        segment_bytes: config.segment_bytes,
        cache: CacheLimits { entries: config.log_cache_entries, bytes: config.log_cache_bytes },
    };
    let (metrics, started, reserve_bytes) = (options.metrics.clone(), options.started, config.reserve_bytes);
    let opened = tokio::task::spawn_blocking(move || {
        let log_dir = data_dir.join("raft");
        refuse_lost_log(&data_dir, &log_dir, started)?;
        let (snapshots, loaded) = SnapshotDir::open(&data_dir.join("snapshots"), cluster)?;
        let space = Arc::new(LogSpace::open(&data_dir, reserve_bytes));
        let snapshots = Arc::new(snapshots);
        let log = LogStore::open(&log_dir, limits, &space, move |took| metrics.synced(took))?;
        mark_log(&data_dir)?;
        refuse_lost_snapshot(log.purged(), loaded.as_ref().and_then(|(header, _)| header.last))?;
        let machine = StateMachine::new(cluster, snapshots.clone(), loaded).with_space(space.clone());
        Ok((log, machine, snapshots, space))
    });
    opened.await.map_err(|panic| StartError::Raft { reason: panic.to_string() })?
}

/// The note beside the log that says it was made once.
fn marker(data_dir: &Path) -> PathBuf {
    data_dir.join("raft-made")
}

/// A log that was made once, as the marker or the identity says, has segments; whatever else lies in its directory is none.
fn refuse_lost_log(data_dir: &Path, log_dir: &Path, started: bool) -> Result<(), StartError> {
    if (started || marker(data_dir).exists()) && !wal::is_there(log_dir)? {
        return Err(StartError::LogGone { dir: log_dir.to_owned() });
    }
    Ok(())
}

/// The log is purged only to what a durable snapshot holds (P9).
fn refuse_lost_snapshot(purged: Option<EntryId>, loaded: Option<EntryId>) -> Result<(), StartError> {
    match purged {
        Some(purged) if loaded.is_none_or(|loaded| loaded.index < purged.index) => {
            Err(StartError::SnapshotLost { purged: purged.index })
        }
        _ => Ok(()),
    }
}

fn mark_log(data_dir: &Path) -> Result<(), StartError> {
    let path = marker(data_dir);
    if path.exists() {
        return Ok(());
    }
    write_durable(&path, b"the raft log of this node was made; without it the node may not vote again\n")
        .map_err(|source| StartError::Io { path, source })
}

/// How long the first node tries to form the cluster of itself alone.
const FORM_MAX: Duration = Duration::from_secs(10);

impl Core {
    /// Whether this node is the only voter. Asks the core itself: its metrics may be a moment late.
    async fn is_alone(&self) -> bool {
        let voters = self.raft.with_raft_state(|state| {
            let membership = state.membership_state.effective();
            membership.membership().voter_ids().collect::<Vec<u64>>()
        });
        voters.await.is_ok_and(|voters| voters.as_slice() == [self.me.0])
    }

    /// Makes this node the only voter and says what the cluster is; does again what a crash left undone.
    async fn form(&self, bootstrap: Bootstrap) -> Result<(), StartError> {
        let failed = |reason: String| StartError::Form { reason };
        let initialized = self.raft.is_initialized().await.map_err(|error| failed(error.to_string()))?;
        if !initialized {
            let members = std::collections::BTreeMap::from([(self.me.0, EmptyNode {})]);
            self.raft.initialize(members).await.map_err(|error| failed(error.to_string()))?;
        }
        // A cluster that has grown has no leader until others are up, and was formed.
        let formed = self.published.current().state.topology().node(self.me).is_some();
        if formed || !self.is_alone().await {
            return Ok(());
        }
        let form = Command::FormCluster { cluster: self.cluster, nodes_expected: bootstrap.nodes_expected };
        // Both may have been done before a crash; doing them again changes nothing.
        for command in [form, bootstrap.add_me] {
            let applied = self.propose_forming(command).await.map_err(|error| failed(error.to_string()))?;
            match applied.response {
                Response::Rejected(Rejection::ClusterMismatch) => {
                    return Err(failed("the log is of another cluster".to_owned()));
                }
                Response::Rejected(rejection) => return Err(failed(format!("{rejection:?}"))),
                Response::NodeAdded { node } if node != self.me => {
                    return Err(failed(format!("this node was given id {node}")));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Proposes what can be proposed again without harm, for the whole of [`FORM_MAX`]: nobody reads here yet, so the leader,
    /// this node itself, counts as gone long before.
    async fn propose_forming(&self, command: Command) -> Result<Applied, ProposeError> {
        let deadline = Instant::now() + FORM_MAX;
        loop {
            self.freshness.heard();
            let left = deadline.saturating_duration_since(Instant::now());
            match self.propose(command.clone(), left).await {
                Err(ProposeError::Unavailable { .. }) if Instant::now() < deadline => {}
                outcome => return outcome,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_without_segments_is_lost_whatever_else_lies_there() {
        let dir = tempfile::tempdir().unwrap();
        let log_dir = dir.path().join("raft");
        let lost = |started| matches!(refuse_lost_log(dir.path(), &log_dir, started), Err(StartError::LogGone { .. }));
        assert!(!lost(false) && lost(true));
        // A fresh filesystem mounted over it.
        std::fs::create_dir_all(log_dir.join("lost+found")).unwrap();
        assert!(!lost(false) && lost(true));
        mark_log(dir.path()).unwrap();
        assert!(lost(false));
        std::fs::write(log_dir.join("00000000000000000001.wal"), "").unwrap();
        assert!(!lost(false) && !lost(true));
    }
}
