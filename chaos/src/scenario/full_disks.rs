//! Full disks: of a follower, of the leader, of all nodes, and one without inodes (I12, fault matrix 18 to 21).

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Method;
use tokio::time::sleep;

use crate::client::Client;
use crate::cluster::{Cluster, Filler};
use crate::workload::{Ledger, Workload};

use super::{Setup, until, verdict};

const DISK_BYTES: u64 = 768 << 20;

/// How long a disk stays full under load.
const FULL_FOR: Duration = Duration::from_secs(6);

/// Fills disks under load and empties them again. Needs root.
pub(crate) async fn full_disks(setup: &Setup) -> Result<()> {
    let cluster = Cluster::start(&setup.options(Some(DISK_BYTES))).await?;
    let workload = Workload::start(&cluster, setup.seed, setup.clients);
    let ledger = workload.ledger.clone();
    until("writes at first", Duration::from_secs(30), async || ledger.images().len() >= 5).await?;
    let leader = cluster.leader().await.context("no leader")?;
    for (what, node) in [("a follower", (leader + 1) % cluster.len()), ("the leader", leader)] {
        let full = fill(&cluster, node, Filler::bytes).await?;
        goes_on(&ledger, what).await?;
        drop(full);
        heals(&cluster, node).await?;
        println!("the disk of {what} was full: writes went on, it healed by itself");
    }
    let full = fill(&cluster, (leader + 2) % cluster.len(), Filler::inodes).await?;
    goes_on(&ledger, "a node without inodes").await?;
    drop(full);
    heals(&cluster, (leader + 2) % cluster.len()).await?;
    println!("a disk had no inodes left: writes went on, it healed by itself");
    all_full(&cluster, &ledger).await?;
    let ledger = workload.stop().await;
    until("all copies", Duration::from_secs(60), async || {
        cluster.status(0).await.is_ok_and(|status| status["blobs"]["under_replicated"].as_u64() == Some(0))
    })
    .await?;
    verdict(&cluster, &ledger).await
}

/// Fills a node's disk and waits until the node says that it takes no writes.
async fn fill(cluster: &Cluster, node: usize, with: fn(&Path) -> Result<Filler>) -> Result<Filler> {
    let filler = with(cluster.disk(node)?)?;
    until("the node says that it refuses writes", Duration::from_secs(15), async || {
        says(cluster, node, "refuses_writes").await == Some(true)
    })
    .await?;
    Ok(filler)
}

async fn says(cluster: &Cluster, node: usize, key: &str) -> Option<bool> {
    let status = cluster.status(node).await.ok()?;
    let name = format!("n{}", node + 1);
    status["nodes"].as_array()?.iter().find(|entry| entry["name"] == name.as_str())?[key].as_bool()
}

async fn goes_on(ledger: &Ledger, what: &str) -> Result<()> {
    let before = ledger.images().len();
    sleep(FULL_FOR).await;
    let pushed = ledger.images().len() - before;
    ensure!(pushed >= 2, "{pushed} pushes were acknowledged while the disk of {what} was full");
    Ok(())
}

async fn heals(cluster: &Cluster, node: usize) -> Result<()> {
    until("the node takes writes again", Duration::from_secs(15), async || {
        says(cluster, node, "refuses_writes").await == Some(false)
    })
    .await
    .map(|_| ())
}

/// Nothing can be stored anywhere: pushes are refused clearly, pulls and deletes go on.
async fn all_full(cluster: &Cluster, ledger: &Ledger) -> Result<()> {
    let client = Client::new(cluster.apis());
    let image = ledger.images().pop().context("VOID: nothing was pushed")?;
    let tag = format!("/v2/{}/manifests/to-delete", image.repository);
    let manifest = client.get(0, &format!("/v2/{}/manifests/{}", image.repository, image.manifest)).await?;
    let kind = manifest.header("content-type").context("no content type")?.to_owned();
    let put = client.send(0, (Method::PUT, &tag), &[("content-type", &kind)], manifest.body.clone()).await?;
    ensure!(put.status == 201, "tag to be deleted: {}", put.status);
    let mut full = Vec::new();
    for node in 0..cluster.len() {
        full.push(fill(cluster, node, Filler::bytes).await?);
    }
    for node in 0..cluster.len() {
        let path = format!("/v2/{}/blobs/uploads/?digest=sha256:{}", image.repository, "0".repeat(64));
        let answer = client.send(node, (Method::POST, &path), &[], Bytes::from(vec![7; 1 << 20])).await?;
        ensure!(matches!(answer.status, 400..=499 | 503 | 507), "push onto full disks: {}", answer.status);
        let blob = &image.blobs[0];
        let pulled = client.pull(node, &format!("/v2/{}/blobs/{blob}", image.repository), blob).await?;
        ensure!(pulled.is_ok(), "pull from a full disk: {:?}", pulled.map_err(|answer| answer.status));
    }
    let deleted = client.send(1, (Method::DELETE, &tag), &[], Bytes::new()).await?;
    ensure!(deleted.status == 202, "delete while all disks are full: {}", deleted.status);
    drop(full);
    for node in 0..cluster.len() {
        heals(cluster, node).await?;
    }
    let before = ledger.images().len();
    until("writes again", Duration::from_secs(20), async || ledger.images().len() > before).await?;
    println!("all disks were full: pushes were refused, pulls and a delete went on, and writes once there was space");
    Ok(())
}
