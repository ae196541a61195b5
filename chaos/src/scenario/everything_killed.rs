//! All nodes killed at once; the former leader is started first and read at once (P2, fault matrix 6).

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::Method;

use crate::client::Client;
use crate::cluster::Cluster;

use super::{Setup, until};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Writes a tag, kills everything, and reads while the nodes come back: no unmarked answer may be older than the write.
pub(crate) async fn everything_killed(setup: &Setup, count: usize) -> Result<()> {
    let mut cluster = Cluster::start(&setup.options(None)).await?;
    let client = Client::new(cluster.apis());
    for round in 0..count {
        let leader = cluster.leader().await.context("no leader")?;
        let body = |value: usize| {
            let body = serde_json::json!({
                "schemaVersion": 2, "mediaType": INDEX, "manifests": [], "annotations": {"value": value.to_string()},
            });
            Bytes::from(body.to_string())
        };
        // The last write before the kill: acknowledged, and perhaps not yet known as committed by anyone but the leader.
        for value in [round * 2, round * 2 + 1] {
            let headers = [("content-type", INDEX)];
            let answer = client.send(leader, (Method::PUT, "/v2/chaos/p2/manifests/t"), &headers, body(value)).await?;
            anyhow::ensure!(answer.status == 201, "write before the kill: {}", answer.status);
        }
        for node in 0..cluster.len() {
            cluster.kill(node).await?;
        }
        cluster.start_node(leader)?;
        let alone = tokio::time::Instant::now();
        let (mut refused, mut warned, mut fresh) = (0, 0, 0);
        let mut others_started = false;
        let wanted = body(round * 2 + 1);
        until("fresh reads at every node", Duration::from_secs(30), async || {
            if !others_started && alone.elapsed() > Duration::from_millis(1500) {
                others_started = true;
                for node in (0..cluster.len()).filter(|node| *node != leader) {
                    if let Err(error) = cluster.start_node(node) {
                        eprintln!("{error:#}");
                    }
                }
            }
            let mut fresh_now = 0;
            for node in 0..cluster.len() {
                match client.get(node, "/v2/chaos/p2/manifests/t").await {
                    Ok(answer) if answer.status == 200 && answer.header("warning").is_some() => warned += 1,
                    Ok(answer) if answer.status == 200 && answer.body == wanted => fresh_now += 1,
                    Ok(answer) if answer.status == 503 => refused += 1,
                    Ok(answer) => {
                        eprintln!("VIOLATION round {round} node {}: {} {:?}", node + 1, answer.status, answer.body);
                        fresh_now = usize::MAX / 2;
                    }
                    Err(_) => refused += 1,
                }
            }
            fresh = fresh_now;
            fresh_now >= client.nodes()
        })
        .await?;
        if fresh != client.nodes() {
            bail!("an unmarked answer was older than an acknowledged write");
        }
        println!("round {}: {refused} refused, {warned} with a warning, then fresh everywhere", round + 1);
        for node in 0..cluster.len() {
            cluster.wait_ready(node, Duration::from_secs(30)).await?;
        }
    }
    cluster.check_logs()
}
