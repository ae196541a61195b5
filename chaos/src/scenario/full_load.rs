//! A healthy cluster under full load keeps its leader (P3).

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::cluster::Cluster;
use crate::workload::{Ledger, Workload};

use super::{Setup, verdict};

/// Small blobs: it is the entries and syncs that wear on a leader, and an hour of them has to fit on the disk.
const BLOB_BYTES_MAX: usize = 20_000;

/// Keeps all clients busy for `minutes`; any change of the term is an election that nobody needed.
pub(crate) async fn full_load(setup: &Setup, minutes: u64) -> Result<()> {
    let cluster = Cluster::start(&setup.options(None)).await?;
    let term = async || cluster.status(0).await?["term"].as_u64().context("term");
    let first = term().await?;
    let ledger = Ledger::with_blobs_up_to(BLOB_BYTES_MAX);
    let workload = Workload::start_with(&cluster, ledger, setup.seed, setup.clients);
    let began = Instant::now();
    let used = |cluster: &Cluster| -> Result<Duration> {
        (0..cluster.len()).map(|node| cluster.processor_time(node)).sum::<Result<Duration>>()
    };
    let before = used(&cluster)?;
    let mut elections = Vec::new();
    let mut last = first;
    let mut tick = interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while began.elapsed() < Duration::from_secs(minutes * 60) {
        tick.tick().await;
        let now = term().await?;
        if now != last {
            elections.push(began.elapsed());
            eprintln!("term {last} -> {now} after {:?}", began.elapsed());
            last = now;
        }
    }
    let busy = (used(&cluster)? - before).as_secs_f64() / began.elapsed().as_secs_f64();
    let ledger = workload.stop().await;
    let pushes = ledger.pushes.load(std::sync::atomic::Ordering::Relaxed);
    println!(
        "{minutes} minutes, {pushes} images pushed, nodes used {busy:.2} processors, stray elections at {elections:?}"
    );
    verdict(&cluster, &ledger).await?;
    ensure!(elections.is_empty(), "{} elections of a healthy cluster", elections.len());
    Ok(())
}
