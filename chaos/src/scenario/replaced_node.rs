//! A node's disk is lost, a fresh node takes its place, and the old one never comes back under its id (P10, P12).

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::{Instant, sleep};

use super::Setup;
use super::moving::{Lab, Scale, WITHIN};

const ZONES: &[usize] = &[1, 1, 2, 2, 3, 1];
const OLD: usize = 1;
const NEW: usize = 5;

/// How long the old node is looked at when its disk turns up again.
const RETURNS_FOR: Duration = Duration::from_secs(30);

/// Loses a node with its data directory, and replaces it by one that joins with a token.
pub(crate) async fn replaced_node(setup: &Setup, scale: Scale) -> Result<()> {
    let mut lab = Lab::begin(setup, scale, (ZONES, 1)).await?;
    let writers = lab.write().await?;
    let old = lab.id(0, OLD).await?.context("the old node is no member")?;
    lab.cluster.kill(OLD).await?;
    let (dir, lost) = (lab.cluster.data_dir(OLD).to_owned(), lab.cluster.data_dir(OLD).with_extension("lost"));
    rustix::fs::rename(&dir, &lost)?;
    lab.join(0, NEW).await?;
    let new = lab.id(0, NEW).await?.context("the new node is no member")?;
    ensure!(new > old, "an id was used twice: {old}, {new}");
    let changed = Instant::now();
    let replace = async {
        let said = lab.operate(0, &["replace", &old.to_string(), &new.to_string()], WITHIN).await?;
        println!("cluster replace: {} ({:.0} s)", said.trim_end(), changed.elapsed().as_secs_f64());
        anyhow::Ok(())
    };
    let (ledger, countdown, replaced) = tokio::join!(lab.end_writes(writers), lab.count_down(0, changed), replace);
    replaced?;
    ensure!(lab.id(0, OLD).await?.is_none(), "the old node is still a member");
    let lab = lab.finish(ledger, &countdown?).await?;
    rustix::fs::rename(&lost, &dir)?;
    stays_out(lab, old).await
}

/// The old disk turns up: the node on it is refused, and ends.
async fn stays_out(mut lab: Lab, old: u64) -> Result<()> {
    lab.cluster.start_node(OLD)?;
    let began = Instant::now();
    while !lab.cluster.has_ended(OLD)? {
        let status = lab.cluster.status(0).await?;
        let ids: Vec<u64> =
            status["nodes"].as_array().into_iter().flatten().filter_map(|node| node["id"].as_u64()).collect();
        ensure!(!ids.contains(&old), "the old node is a member again");
        ensure!(began.elapsed() < RETURNS_FOR, "a node that was replaced goes on after {RETURNS_FOR:?}");
        sleep(Duration::from_millis(200)).await;
    }
    println!(
        "the old disk turned up again: its node was refused and ended after {:.1} s",
        began.elapsed().as_secs_f64()
    );
    Ok(())
}
