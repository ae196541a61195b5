//! A large pull through a node that lacks the blob, while the node it streams from is killed (I4, P17).

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http_body_util::BodyExt;
use rafthold::oci::{Algorithm, Hasher};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::client::{Client, Large};
use crate::cluster::Cluster;

use super::{Setup, until};

/// Takes the blob from node 3's disk, pulls it there, and kills node 1 in the middle; then the same with node 2.
pub(crate) async fn dying_holder(setup: &Setup, mebibytes: usize) -> Result<()> {
    const LAST: usize = 2;
    let mut cluster = Cluster::start(&setup.options(None)).await?;
    let client = Client::new(cluster.apis());
    let large = Large::new(&mut StdRng::seed_from_u64(setup.seed), mebibytes);
    let (digest, size) = (large.digest(), large.size());
    let answer = client.send_large(0, &format!("/v2/chaos/large/blobs/uploads/?digest={digest}"), large).await?;
    ensure!(answer.status == 201, "push of {mebibytes} MiB: {}", answer.status);
    until("three copies", Duration::from_secs(120), async || {
        cluster.status(0).await.is_ok_and(|status| status["blobs"]["under_replicated"].as_u64() == Some(0))
    })
    .await?;
    for victim in [0, 1] {
        cluster.kill(LAST).await?;
        let hex = digest.hex();
        let copy = cluster.data_dir(LAST).join("blobs/sha256").join(&hex[..2]).join(&hex);
        fs::remove_file(&copy).with_context(|| format!("take away {}", copy.display()))?;
        cluster.start_node(LAST)?;
        cluster.wait_ready(LAST, Duration::from_secs(30)).await?;
        let mut body = client.open(LAST, &format!("/v2/chaos/large/blobs/{digest}")).await?;
        let (mut hasher, mut received, mut killed) = (Hasher::new(Algorithm::Sha256), 0, false);
        while let Some(frame) = body.frame().await {
            let frame = frame.with_context(|| format!("pull broke off at {received} of {size} bytes"))?;
            let Ok(bytes) = frame.into_data() else { continue };
            hasher.update(&bytes);
            received += bytes.len();
            if !killed && received > size / 8 {
                killed = true;
                cluster.kill(victim).await?;
            }
        }
        ensure!(killed, "VOID: the pull ended before its source was killed");
        ensure!(received == size && hasher.finish() == digest, "WRONG BYTES: {received} of {size}");
        println!("pulled {mebibytes} MiB through node 3 while node {} died", victim + 1);
        cluster.start_node(victim)?;
        cluster.wait_ready(victim, Duration::from_secs(30)).await?;
    }
    cluster.check_logs()
}
