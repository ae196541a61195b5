//! Power cuts of one node and of all at once, in the middle of pushes (fault matrix 16, 17).

use std::time::Duration;

use anyhow::Result;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::sleep;

use crate::cluster::Cluster;
use crate::workload::Workload;

use super::{Setup, until, verdict};

const DISK_BYTES: u64 = 768 << 20;

/// Cuts the power of one node `single` times, then of all nodes `all` times. Needs root.
pub(crate) async fn power_cuts(setup: &Setup, single: usize, all: usize) -> Result<()> {
    let mut cluster = Cluster::start(&setup.options(Some(DISK_BYTES))).await?;
    let mut random = StdRng::seed_from_u64(setup.seed);
    let workload = Workload::start(&cluster, setup.seed, setup.clients);
    let ledger = workload.ledger.clone();
    for round in 0..single + all {
        let before = ledger.images().len();
        until("writes before the cut", Duration::from_secs(30), async || ledger.images().len() >= before + 2).await?;
        sleep(Duration::from_millis(random.random_range(0..1500))).await;
        let victims: Vec<usize> =
            if round < single { vec![random.random_range(0..cluster.len())] } else { (0..cluster.len()).collect() };
        cluster.cut_power(&victims).await?;
        for victim in &victims {
            cluster.start_node(*victim)?;
        }
        for victim in &victims {
            cluster.wait_ready(*victim, Duration::from_secs(30)).await?;
        }
    }
    let ledger = workload.stop().await;
    verdict(&cluster, &ledger).await?;
    println!("cut the power of one node {single} times, of all nodes {all} times");
    Ok(())
}
