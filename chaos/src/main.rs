//! Breaks a Rafthold cluster of real processes and checks what it promised.
//!
//! `cluster/` starts, kills and unplugs nodes; `workload/` pushes and pulls and keeps the book; `check/` compares the book
//! with the registry; `scenario/` puts them together.

mod check;
mod client;
mod cluster;
mod scenario;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use scenario::{Scale, Setup};

#[derive(Debug, Parser)]
#[command(about = "Breaks a Rafthold cluster of real processes and checks what it promised.")]
struct Arguments {
    /// The `rafthold` binary.
    #[arg(long, default_value = "target/release/rafthold")]
    rafthold: PathBuf,
    /// Where the cluster is laid out; kept when the run fails.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Every random choice of the laboratory comes from this number.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Clients that push and pull; as many again read and write tags.
    #[arg(long, default_value_t = 4)]
    clients: usize,
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Debug, Clone, Subcommand)]
enum Scenario {
    /// Kills nodes under load, every second time the leader.
    Kills {
        #[arg(long, default_value_t = 20)]
        count: usize,
    },
    /// Cuts the power of nodes under load (root).
    PowerCuts {
        #[arg(long, default_value_t = 3)]
        single: usize,
        #[arg(long, default_value_t = 3)]
        all: usize,
    },
    /// Kills all nodes after a write and reads while they come back.
    EverythingKilled {
        #[arg(long, default_value_t = 3)]
        count: usize,
    },
    /// Fills the disks of a follower, the leader and all nodes under load (root).
    FullDisks,
    /// Kills a zone for good while clients pull (five nodes: two in zone 1, two in zone 2, one in zone 3).
    ZoneLoss {
        #[command(flatten)]
        scale: Scale,
        /// The zone: 1 and 2 wait for an operator, 3 counts out by itself.
        #[arg(long, default_value_t = 1)]
        zone: usize,
    },
    /// Loses a node's disk and replaces the node by a fresh one while clients pull.
    ReplacedNode {
        #[command(flatten)]
        scale: Scale,
    },
    /// Decommissions two of five nodes while clients pull, and is refused a third.
    Decommission {
        #[command(flatten)]
        scale: Scale,
    },
    /// Has a sixth node join while clients pull, and counts the bytes that move.
    Join {
        #[command(flatten)]
        scale: Scale,
    },
    /// Kills two of three nodes and uses the third.
    QuorumLost,
    /// Pulls a large blob through a node whose source dies.
    DyingHolder {
        #[arg(long, default_value_t = 1024)]
        mebibytes: usize,
    },
    /// Keeps a healthy cluster busy: nobody may call an election.
    FullLoad {
        #[arg(long, default_value_t = 60)]
        minutes: u64,
    },
    /// Connects many clients that stall, dribble and flood, beside one that behaves.
    SlowClients {
        #[arg(long, default_value_t = 1000)]
        clients: usize,
    },
    /// Measures memory: idle, and under concurrent pushes and pulls of large blobs.
    Memory {
        #[arg(long, default_value_t = 64)]
        streams: usize,
        #[arg(long, default_value_t = 1024)]
        mebibytes: usize,
    },
    /// Measures nodes whose agreed state is large: memory, start, snapshots, catch-up, and what requests cost (some 7 GB of disk).
    Million {
        #[arg(long, default_value_t = 1_000_000)]
        manifests: usize,
        /// Blobs linked in repositories.
        #[arg(long, default_value_t = 3_000_000)]
        links: usize,
    },
    /// Pushes, mounts, retags, deletes and pulls while collection runs; then looks for lost and for leftover bytes.
    Soak {
        /// How long clients run.
        #[arg(long, default_value_t = 30)]
        minutes: u64,
        /// Seconds between two passes of collection.
        #[arg(long, default_value_t = 20)]
        every: u64,
        /// Kills a node with each pass, and starts it again.
        #[arg(long)]
        kills: bool,
    },
}

async fn run(arguments: &Arguments, dir: PathBuf) -> Result<()> {
    let binary = arguments.rafthold.canonicalize().with_context(|| format!("{}", arguments.rafthold.display()))?;
    let setup = Setup { binary, dir, seed: arguments.seed, clients: arguments.clients };
    match arguments.scenario {
        Scenario::Kills { count } => scenario::kills(&setup, count).await,
        Scenario::PowerCuts { single, all } => scenario::power_cuts(&setup, single, all).await,
        Scenario::EverythingKilled { count } => scenario::everything_killed(&setup, count).await,
        Scenario::FullDisks => scenario::full_disks(&setup).await,
        Scenario::ZoneLoss { scale, zone } => scenario::zone_loss(&setup, scale, zone).await,
        Scenario::ReplacedNode { scale } => scenario::replaced_node(&setup, scale).await,
        Scenario::Decommission { scale } => scenario::decommission(&setup, scale).await,
        Scenario::Join { scale } => scenario::join(&setup, scale).await,
        Scenario::QuorumLost => scenario::quorum_lost(&setup).await,
        Scenario::DyingHolder { mebibytes } => scenario::dying_holder(&setup, mebibytes).await,
        Scenario::FullLoad { minutes } => scenario::full_load(&setup, minutes).await,
        Scenario::SlowClients { clients } => scenario::slow_clients(&setup, clients).await,
        Scenario::Memory { streams, mebibytes } => scenario::memory(&setup, streams, mebibytes).await,
        Scenario::Million { manifests, links } => scenario::million(&setup, manifests, links).await,
        Scenario::Soak { minutes, every, kills } => scenario::soak(&setup, (minutes, every), kills).await,
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let own = arguments.dir.is_none();
    let dir = arguments.dir.clone().unwrap_or_else(|| {
        std::env::temp_dir().join(format!("rafthold-chaos-{}-{:08x}", std::process::id(), rand::random::<u32>()))
    });
    match run(&arguments, dir.clone()).await {
        Ok(()) => {
            if own && let Err(error) = std::fs::remove_dir_all(&dir) {
                eprintln!("remove {}: {error}", dir.display());
            }
            println!("PASSED {:?} with seed {}", arguments.scenario, arguments.seed);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("FAILED {:?} with seed {}: {error:#}", arguments.scenario, arguments.seed);
            eprintln!("the cluster's files are in {}", dir.display());
            ExitCode::FAILURE
        }
    }
}
