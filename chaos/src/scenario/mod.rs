//! What can be done to a cluster, one scenario a file; each starts its own cluster and checks what was promised.

mod countdown;
mod decommission;
mod dying_holder;
mod everything_killed;
mod full_disks;
mod full_load;
mod join;
mod kills;
mod memory;
mod million;
mod moving;
mod power_cuts;
mod quorum_lost;
mod replaced_node;
mod slow_clients;
mod soak;
mod zone_loss;

pub(crate) use decommission::decommission;
pub(crate) use dying_holder::dying_holder;
pub(crate) use everything_killed::everything_killed;
pub(crate) use full_disks::full_disks;
pub(crate) use full_load::full_load;
pub(crate) use join::join;
pub(crate) use kills::kills;
pub(crate) use memory::memory;
pub(crate) use million::million;
pub(crate) use moving::Scale;
pub(crate) use power_cuts::power_cuts;
pub(crate) use quorum_lost::quorum_lost;
pub(crate) use replaced_node::replaced_node;
pub(crate) use slow_clients::slow_clients;
pub(crate) use soak::soak;
pub(crate) use zone_loss::zone_loss;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::time::{Instant, sleep};

use crate::check;
use crate::client::Client;
use crate::cluster::{Cluster, Options};
use crate::workload::Ledger;

/// What every scenario is given.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) binary: PathBuf,
    pub(crate) dir: PathBuf,
    pub(crate) seed: u64,
    pub(crate) clients: usize,
}

impl Setup {
    fn options(&self, disk_bytes: Option<u64>) -> Options {
        Options {
            binary: self.binary.clone(),
            dir: self.dir.clone(),
            nodes: 3,
            zones: &[],
            later: 0,
            disk_bytes,
            settings: String::new(),
            environment: &[],
        }
    }
}

/// Waits until `condition` holds.
async fn until(what: &str, within: Duration, mut condition: impl AsyncFnMut() -> bool) -> Result<Duration> {
    let began = Instant::now();
    while !condition().await {
        ensure!(began.elapsed() < within, "{what}: not within {within:?}");
        sleep(Duration::from_millis(20)).await;
    }
    Ok(began.elapsed())
}

/// The checks that end every run, of the nodes that are left: everything acknowledged is there, tags were linearizable,
/// nothing else went wrong.
async fn verdict(cluster: &Cluster, ledger: &Arc<Ledger>) -> Result<()> {
    let client = Client::new(cluster.living().into_iter().map(|node| cluster.api(node).to_owned()).collect());
    let images = check::acked::check(&client, ledger, Duration::from_secs(60)).await?;
    let registers = ledger.registers();
    for (at, operations) in registers.iter().enumerate() {
        ensure!(check::linearizable::is_linearizable(operations), "tag r{at} is not linearizable: {operations:?}");
    }
    cluster.check_logs()?;
    equal_states(cluster).await?;
    let operations: usize = registers.iter().map(Vec::len).sum();
    let pulls = ledger.pulls.load(Ordering::Relaxed);
    println!(
        "acked images {images}, each whole at each node; pulls {pulls}; register operations {operations}, linearizable; \
         503 {}, of them pulls at nodes that were left alone {}, broken connections {}",
        ledger.unavailable.load(Ordering::Relaxed),
        ledger.refused_pulls.load(Ordering::Relaxed),
        ledger.broken.load(Ordering::Relaxed),
    );
    let violations = ledger.violations();
    ensure!(violations.is_empty(), "{} violations, the first: {}", violations.len(), violations[0]);
    ensure!(images >= 5 && pulls >= 50 && operations >= 50, "VOID: too little load to prove anything");
    Ok(())
}

/// Every node that is left says the same state hash at the same applied index (P8).
async fn equal_states(cluster: &Cluster) -> Result<()> {
    let living = cluster.living();
    let names: Vec<String> = living.iter().map(|node| format!("n{}", node + 1)).collect();
    let mut seen = String::new();
    let agreed = until("equal state hash at equal index on all nodes", Duration::from_secs(20), async || {
        let Ok(status) = cluster.status(living[0]).await else { return false };
        seen = status["nodes"].to_string();
        let left = |node: &&serde_json::Value| names.iter().any(|name| node["name"] == name.as_str());
        let nodes = status["nodes"].as_array().into_iter().flatten().filter(left);
        let mut states: Vec<_> =
            nodes.map(|node| (node["applied"].as_u64(), node["state_hash"].as_str().map(str::to_owned))).collect();
        let all = states.len() == living.len();
        states.dedup();
        all && states.len() == 1 && states[0].0.is_some() && states[0].1.is_some()
    })
    .await;
    agreed.map(|_| ()).map_err(|error| error.context(seen))
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
