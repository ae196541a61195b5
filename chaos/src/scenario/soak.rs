//! Clients without end while collection runs every few seconds: nothing that counts is lost, and nothing else stays.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Method;
use tokio::time::{Instant, interval};

use crate::check::orphans;
use crate::client::Client;
use crate::cluster::Cluster;
use crate::workload::churn::{Churning, contents};

use super::{Setup, equal_states, until};

const LEASE: Duration = Duration::from_secs(30);
/// What hangs on something untagged goes step by step: index, child, blob, file.
const SETTLE: Duration = Duration::from_secs(600);

/// Short periods, so that everything that takes hours happens in minutes. Where nodes die in the middle of commands, the grace
/// and the pins are longer than a command may live.
fn settings(every: u64, grace: u64) -> String {
    format!(
        "\n[gc]\nevery = \"{every}s\"\nlease = \"{}s\"\nuntagged = \"40s\"\ngrace = \"{grace}s\"\n\n\
         [storage]\npin = \"{grace}s\"\nfree_min = \"64MiB\"\nfree_reserve = \"32MiB\"\n\n[registry]\nupload_ttl = \"60s\"\n",
        LEASE.as_secs(),
    )
}

/// Lets clients run for `minutes` with a pass of collection every `every` seconds by the leader, and one more at each node in
/// turn, of which one is killed each time where `kills` says so; then stops them, waits until everything unneeded has gone,
/// and lists the disks.
pub(crate) async fn soak(setup: &Setup, (minutes, every): (u64, u64), kills: bool) -> Result<()> {
    let grace = if kills { 80 } else { 20 };
    let options = crate::cluster::Options { settings: settings(every, grace), ..setup.options(None) };
    let mut cluster = Cluster::start(&options).await?;
    let client = Client::new(cluster.apis());
    // A client may rely on what it is told for half a lease.
    let churning = Churning::start(cluster.apis(), setup.seed, setup.clients, LEASE / 2);
    let end = Instant::now() + Duration::from_secs(minutes * 60);
    let mut cycles = interval(Duration::from_secs(every));
    let (mut passes, mut collected) = (0u64, 0);
    while Instant::now() < end {
        cycles.tick().await;
        let node = usize::try_from(passes).unwrap_or_default() % cluster.len();
        let answer = client.send(node, (Method::POST, "/api/v1/gc/run"), &[], Bytes::new()).await?;
        ensure!(answer.status == 200, "gc run at node {}: {}", node + 1, answer.status);
        let pass: serde_json::Value = serde_json::from_slice(&answer.body)?;
        // Until all nodes have said that they know how, and where a leader just died, a pass may end at once.
        ensure!(kills || passes < 3 || pass["failed"].is_null(), "gc run at node {}: {pass}", node + 1);
        collected += pass["blobs"].as_u64().unwrap_or(0) + pass["manifests"].as_u64().unwrap_or(0);
        passes += 1;
        if kills {
            cluster.kill(node).await?;
            tokio::time::sleep(Duration::from_secs(every / 4)).await;
            cluster.start_node(node)?;
            cluster.wait_ready(node, Duration::from_secs(60)).await?;
        }
    }
    let (ledger, churn) = churning.stop().await;
    let live = churn.live();
    pull_all(&client, &live).await?;
    let dirs: Vec<&Path> = (0..cluster.len()).map(|node| cluster.data_dir(node)).collect();
    let mut last = None;
    let settled = until("disks that hold what is reachable and nothing else", SETTLE, async || {
        match orphans::find(&client, &dirs).await {
            Ok(found) => {
                let clean = found.is_clean();
                last = Some(found);
                clean
            }
            Err(_) => false,
        }
    })
    .await;
    let found = last.context("the registry could not be listed")?;
    let settled = settled.with_context(|| format!("{found:?}").chars().take(3000).collect::<String>())?;
    pull_all(&client, &live).await?;
    cluster.check_logs()?;
    equal_states(&cluster).await?;
    let status = cluster.status(0).await?;
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    println!(
        "operations {}, pushes {}, blobs not pushed because HEAD said so {}, mounts {}, deletes {}, pulls {}, late {}; \
         503 {}, broken connections {}",
        count(&churn.operations),
        count(&churn.pushed),
        count(&churn.skipped_by_head),
        count(&churn.mounted),
        count(&churn.deleted),
        count(&churn.pulls),
        count(&churn.late),
        count(&ledger.unavailable),
        count(&ledger.broken),
    );
    println!(
        "passes asked for {passes}, links they took {collected}; gc {}; images left {}, contents reachable {}, no orphan \
         {:.0} s after the end",
        status["gc"],
        live.len(),
        found.reachable,
        settled.as_secs_f64(),
    );
    let violations = ledger.violations();
    ensure!(violations.is_empty(), "{} violations, the first: {}", violations.len(), violations[0]);
    ensure!(count(&churn.operations) >= minutes * 300 && collected > 0, "VOID: too little load to prove anything");
    Ok(())
}

/// Pulls everything that must be there from every node.
async fn pull_all(client: &Client, live: &[std::sync::Arc<crate::workload::churn::Live>]) -> Result<()> {
    for image in live {
        for (path, digest) in contents(image) {
            for node in 0..client.nodes() {
                let mut answer = String::new();
                let pulled =
                    until("a pull", Duration::from_secs(30), async || match client.pull(node, &path, &digest).await {
                        Ok(Ok(_)) => {
                            answer.clear();
                            true
                        }
                        Ok(Err(refused)) => {
                            answer = refused.status.to_string();
                            refused.status != 503
                        }
                        Err(error) => {
                            answer = format!("{error:#}");
                            false
                        }
                    });
                pulled.await.with_context(|| answer.clone())?;
                ensure!(answer.is_empty(), "LOST {path} at node {}: {answer}", node + 1);
            }
        }
    }
    Ok(())
}
