//! Nodes are decommissioned under load, one after the other, until no more may go (P12, P18).

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::{Instant, sleep};

use super::moving::{COMMAND_MAX, Lab, Scale, WITHIN};
use super::{Setup, until};

const ZONES: &[usize] = &[1, 1, 2, 2, 3];

/// Takes two nodes out of five, one a zone, moving what they hold first; then asks for a third, which must be refused.
pub(crate) async fn decommission(setup: &Setup, scale: Scale) -> Result<()> {
    let mut lab = Lab::begin(setup, scale, (ZONES, 0)).await?;
    let writers = lab.write().await?;
    let first = Instant::now();
    let left = empties(&lab, 3);
    let (ledger, countdown, gone) = tokio::join!(lab.end_writes(writers), lab.count_down(0, first), left);
    gone?;
    let first = countdown?;
    ends(&mut lab, 3).await?;
    let again = Instant::now();
    let (second, gone) = tokio::join!(lab.count_down(0, again), empties(&lab, 1));
    gone?;
    second?.judge()?;
    ends(&mut lab, 1).await?;
    refused(&lab, 4).await?;
    lab.finish(ledger, &first).await.map(drop)
}

/// Runs the command to its end, and looks meanwhile when the node is no member any more: from then on clients go elsewhere.
async fn empties(lab: &Lab, node: usize) -> Result<()> {
    let (name, began) = (format!("n{}", node + 1), Instant::now());
    let words = ["decommission", &name, "--yes"];
    let command = lab.operate(0, &words, WITHIN);
    let gone = async {
        while lab.id(0, node).await?.is_some() {
            sleep(Duration::from_millis(50)).await;
        }
        lab.cluster.excuse(node);
        anyhow::Ok(())
    };
    let (said, gone) = tokio::join!(command, tokio::time::timeout(WITHIN, gone));
    gone.context("the node did not leave")??;
    println!("cluster decommission: {} ({:.0} s)", said?.trim_end(), began.elapsed().as_secs_f64());
    Ok(())
}

/// A node that is no member any more ends by itself.
async fn ends(lab: &mut Lab, node: usize) -> Result<()> {
    until("the node ends", Duration::from_secs(60), async || lab.cluster.has_ended(node).unwrap_or(true)).await?;
    lab.cluster.kill(node).await
}

/// Three nodes hold three copies and are three voters: none may go.
async fn refused(lab: &Lab, node: usize) -> Result<()> {
    let name = format!("n{}", node + 1);
    let arguments = ["cluster", "decommission", &name, "--yes", "--endpoint", lab.cluster.api(0)];
    let said = lab.operator.run(&arguments, COMMAND_MAX).await?;
    ensure!(!said.done, "one of the last three nodes was let go: {}", said.out);
    ensure!(said.errors.contains("force"), "refused for another reason: {}", said.errors);
    println!("cluster decommission of one of the last three: {}", said.errors.trim_end());
    let status = lab.cluster.status(0).await?;
    let entry = super::moving::named(&status, node).context("the node is gone")?;
    ensure!(entry["placement"] == "in" && entry["plan"]["leaves"].is_null(), "it leaves all the same: {entry}");
    Ok(())
}
