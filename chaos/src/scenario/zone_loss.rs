//! A zone is lost for good under load: all copies come back on what is left (P13, I8).

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use tokio::time::Instant;

use super::moving::{COMMAND_MAX, Lab, Scale, named};
use super::{Setup, until};

const ZONES: &[usize] = &[1, 1, 2, 2, 3];

/// Detection, the grace period of the scenario, and a leader that may have to be found first.
const SOON: Duration = Duration::from_secs(60);

/// Kills every node of `zone` for good. Where that is more than a third of the nodes the cluster waits for its operator.
pub(crate) async fn zone_loss(setup: &Setup, scale: Scale, zone: usize) -> Result<()> {
    let mut lab = Lab::begin(setup, scale, (ZONES, 0)).await?;
    let victims: Vec<usize> = (0..ZONES.len()).filter(|node| ZONES[*node] == zone).collect();
    ensure!(!victims.is_empty() && victims.len() * 2 < ZONES.len(), "zone {zone} is none that can be lost");
    let writers = lab.write().await?;
    for victim in &victims {
        lab.cluster.kill(*victim).await?;
    }
    let killed = Instant::now();
    let asked = lab.cluster.living()[0];
    if victims.len() * 3 > ZONES.len() {
        by_hand(&lab, asked, &victims).await?;
    } else {
        by_itself(&lab, asked, &victims).await?;
    }
    println!(
        "zone {zone} (nodes {victims:?}, counted from 0) counts out {:.1} s after its death",
        killed.elapsed().as_secs_f64()
    );
    let out = Instant::now();
    let (ledger, countdown) = tokio::join!(lab.end_writes(writers), lab.count_down(asked, out));
    lab.finish(ledger, &countdown?).await.map(drop)
}

fn placement(status: &Value, node: usize) -> Option<&str> {
    named(status, node)?["placement"].as_str()
}

/// The cluster marks the node out when the grace period is over.
async fn by_itself(lab: &Lab, asked: usize, victims: &[usize]) -> Result<()> {
    until("the nodes count out by themselves", SOON, async || {
        let Ok(status) = lab.cluster.status(asked).await else { return false };
        victims.iter().all(|victim| placement(&status, *victim) == Some("out"))
    })
    .await
    .map(drop)
}

/// The cluster says that it waits, and the operator marks the nodes out.
async fn by_hand(lab: &Lab, asked: usize, victims: &[usize]) -> Result<()> {
    let mut said = String::new();
    until("the status says that it waits for an operator", SOON, async || {
        let arguments = ["cluster", "status", "--endpoint", lab.cluster.api(asked)];
        said = lab.operator.run(&arguments, COMMAND_MAX).await.map(|said| said.out).unwrap_or_default();
        let waits = |line: &str| line.starts_with("warning: ") && line.contains("`cluster out` does it");
        said.lines().any(|line| waits(line) && victims.iter().all(|victim| line.contains(&format!("n{}", victim + 1))))
    })
    .await?;
    for line in said.lines().filter(|line| line.starts_with("warning: ") || line.starts_with("blobs: ")) {
        println!("cluster status: {line}");
    }
    let status = lab.cluster.status(asked).await?;
    for victim in victims {
        ensure!(placement(&status, *victim) == Some("in"), "node {} went out although too much would go", victim + 1);
    }
    until("the status says that copies are missing", SOON, async || {
        let status = lab.cluster.status(asked).await;
        status.is_ok_and(|status| status["blobs"]["under_replicated"].as_u64() > Some(0))
    })
    .await?;
    for victim in victims {
        let said = lab.operate(asked, &["out", &format!("n{}", victim + 1)], COMMAND_MAX).await?;
        println!("cluster out: {}", said.trim_end());
    }
    Ok(())
}
