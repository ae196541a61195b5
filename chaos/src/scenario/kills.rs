//! `kill -9` of nodes in turn, leaders included, during pushes and pulls through all of them (fault matrix 1, 2, 4).

use std::time::Duration;

use anyhow::{Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, sleep};

use crate::cluster::Cluster;
use crate::workload::Workload;

use super::{Setup, median, until, verdict};

/// Kills `count` nodes one after the other, every second one the leader, restarting each.
pub(crate) async fn kills(setup: &Setup, count: usize) -> Result<()> {
    let mut cluster = Cluster::start(&setup.options(None)).await?;
    let mut random = StdRng::seed_from_u64(setup.seed);
    let workload = Workload::start(&cluster, setup.seed, setup.clients);
    let ledger = workload.ledger.clone();
    until("first writes", Duration::from_secs(20), async || ledger.images().len() >= 2).await?;
    let mut resumed = Vec::new();
    let mut leaders = 0;
    for round in 0..count {
        let leader = cluster.leader().await;
        let victim = match leader {
            Some(leader) if round % 2 == 0 => leader,
            _ => random.random_range(0..cluster.len()),
        };
        sleep(Duration::from_millis(random.random_range(0..500))).await;
        cluster.kill(victim).await?;
        let killed = Instant::now();
        if leader == Some(victim) {
            leaders += 1;
            until("a write after the leader died", Duration::from_secs(15), async || {
                ledger.last_write().is_some_and(|at| at > killed)
            })
            .await?;
            resumed.push(ledger.last_write().map_or(Duration::ZERO, |at| at - killed));
        } else {
            sleep(Duration::from_millis(random.random_range(200..1000))).await;
        }
        cluster.start_node(victim)?;
        cluster.wait_ready(victim, Duration::from_secs(30)).await?;
    }
    let ledger = workload.stop().await;
    verdict(&cluster, &ledger).await?;
    let slowest = resumed.iter().max().copied().unwrap_or_default();
    let median = median(resumed);
    println!(
        "killed {count} nodes, {leaders} of them leading; writes went on after {median:?} (median), {slowest:?} (slowest)"
    );
    ensure!(leaders > 0, "VOID: no leader was killed");
    ensure!(median <= Duration::from_secs(2), "writes resumed after {median:?} (median), promised within 2 s");
    Ok(())
}
