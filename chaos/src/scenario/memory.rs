//! Memory of the nodes: idle, and under many concurrent pushes and pulls of large blobs.

use std::time::Duration;

use anyhow::{Result, ensure};
use http_body_util::BodyExt;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::task::JoinSet;
use tokio::time::interval;

use crate::client::{Client, Large};
use crate::cluster::Cluster;

use super::Setup;

const IDLE_BYTES_MAX: u64 = 100 << 20;
const LOADED_BYTES_MAX: u64 = 400 << 20;

/// Half of the streams push the same large blob, half pull one that is there; the highest resident size counts.
pub(crate) async fn memory(setup: &Setup, streams: usize, mebibytes: usize) -> Result<()> {
    let cluster = Cluster::start(&setup.options(None)).await?;
    let highest = |cluster: &Cluster| -> Result<u64> {
        (0..cluster.len()).map(|node| cluster.resident_bytes(node)).try_fold(0, |most, bytes| Ok(most.max(bytes?)))
    };
    let idle = highest(&cluster)?;
    let client = Client::new(cluster.apis());
    let mut random = StdRng::seed_from_u64(setup.seed);
    let held = Large::new(&mut random, mebibytes);
    let held_path = format!("/v2/chaos/large/blobs/{}", held.digest());
    let answer =
        client.send_large(0, &format!("/v2/chaos/large/blobs/uploads/?digest={}", held.digest()), held).await?;
    ensure!(answer.status == 201, "push: {}", answer.status);
    let pushed = Large::new(&mut random, mebibytes);
    let digest = pushed.digest();
    let mut running = JoinSet::new();
    for at in 0..streams {
        let (client, pushed, held_path, node) = (client.clone(), pushed.clone(), held_path.clone(), at % cluster.len());
        let push_path = format!("/v2/chaos/large/blobs/uploads/?digest={digest}");
        running.spawn(async move {
            if at % 2 == 0 {
                let answer = client.send_large(node, &push_path, pushed).await?;
                ensure!(answer.status == 201, "push: {} {:?}", answer.status, answer.body);
            } else {
                let mut body = client.open(node, &held_path).await?;
                while let Some(frame) = body.frame().await {
                    frame?;
                }
            }
            Ok(())
        });
    }
    let (mut loaded, mut tick) = (0, interval(Duration::from_millis(200)));
    loop {
        tokio::select! {
            _ = tick.tick() => loaded = loaded.max(highest(&cluster)?),
            ended = running.join_next() => match ended {
                Some(ended) => ended??,
                None => break,
            },
        }
    }
    println!(
        "resident memory of the largest node: idle {} MiB, with {streams} streams of {mebibytes} MiB {} MiB",
        idle >> 20,
        loaded >> 20,
    );
    ensure!(idle < IDLE_BYTES_MAX, "idle node holds {} MiB", idle >> 20);
    ensure!(loaded < LOADED_BYTES_MAX, "loaded node holds {} MiB", loaded >> 20);
    cluster.check_logs()
}
