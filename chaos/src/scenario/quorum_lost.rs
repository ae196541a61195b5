//! Two of three nodes killed: the third serves what it has and refuses writes clearly (I7, fault matrix 5).

use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use http::Method;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::time::Instant;

use crate::client::Client;
use crate::cluster::Cluster;
use crate::workload::{Ledger, Pushed, push_image};

use super::{Setup, until};

/// Pushes a few images, kills two nodes, pulls everything from the third, and goes on writing when one is back.
pub(crate) async fn quorum_lost(setup: &Setup) -> Result<()> {
    let mut cluster = Cluster::start(&setup.options(None)).await?;
    let client = Client::new(cluster.apis());
    let ledger = Ledger::default();
    let mut random = StdRng::seed_from_u64(setup.seed);
    for at in 0..5 {
        if let Pushed::Acked(image) = push_image(&client, &ledger, &mut random, "chaos/i7", &format!("v{at}")).await {
            ledger.acked(image);
        }
    }
    let images = ledger.images();
    ensure!(images.len() == 5, "VOID: pushes failed with all nodes alive");
    until("three copies of everything", Duration::from_secs(30), async || {
        let Ok(status) = cluster.status(0).await else { return false };
        status["blobs"]["under_replicated"].as_u64() == Some(0)
    })
    .await?;
    for survivor in 0..cluster.len() {
        let dead: Vec<usize> = (0..cluster.len()).filter(|node| *node != survivor).collect();
        for node in &dead {
            cluster.kill(*node).await?;
        }
        let mut warnings = 0;
        for image in &images {
            let repository = &image.repository;
            for path in [&image.tag, &image.manifest.to_string()] {
                let answer = client.get(survivor, &format!("/v2/{repository}/manifests/{path}")).await?;
                ensure!(answer.status == 200, "manifest {path} at the survivor: {}", answer.status);
                warnings += usize::from(answer.header("warning").is_some());
            }
            for blob in &image.blobs {
                let path = format!("/v2/{repository}/blobs/{blob}");
                let pulled = client.pull(survivor, &path, blob).await?;
                ensure!(pulled.is_ok(), "{path} at the survivor: {:?}", pulled.map_err(|answer| answer.status));
            }
        }
        ensure!(warnings > 0, "tags were served without a warning while no quorum was there");
        let began = Instant::now();
        let path = "/v2/chaos/i7/blobs/uploads/";
        let answer = client.send(survivor, (Method::POST, path), &[], Bytes::new()).await?;
        let took = began.elapsed();
        ensure!(answer.status == 503, "write without a quorum: {}", answer.status);
        ensure!(answer.header("retry-after").is_some(), "503 without Retry-After");
        ensure!(took <= Duration::from_secs(5), "503 after {took:?}");
        let began = Instant::now();
        let status = cluster.status(survivor).await?;
        ensure!(began.elapsed() <= Duration::from_secs(2), "status took {:?}", began.elapsed());
        ensure!(status["nodes"].as_array().is_some_and(|nodes| nodes.len() == 3), "status forgets the dead: {status}");
        until("status without a leader", Duration::from_secs(10), async || {
            cluster.status(survivor).await.is_ok_and(|status| status["leader"].is_null())
        })
        .await?;
        cluster.start_node(dead[0])?;
        let path = "/v2/chaos/i7/blobs/uploads/";
        let back = until("writes after one node came back", Duration::from_secs(20), async || {
            client
                .send(survivor, (Method::POST, path), &[], Bytes::new())
                .await
                .is_ok_and(|answer| answer.status == 202)
        })
        .await?;
        println!(
            "node {} alone: {} images pulled, write refused in {took:?}; writes went on {back:?} after one was back",
            survivor + 1,
            images.len(),
        );
        cluster.start_node(dead[1])?;
        for node in &dead {
            cluster.wait_ready(*node, Duration::from_secs(30)).await?;
        }
    }
    cluster.check_logs()
}
