//! Commands about nodes: who votes, who counts, who goes, who leads.

use std::io::{BufRead, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::print;
use crate::ops::client::{Client, Error};

use super::{Failed, Output, Target, fetch_status, find_node};

/// How often it is looked how far a change is.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often a node that does not answer meanwhile is asked again.
const SILENT_MAX: u32 = 60;

/// How long a node may take to find out what the others have and what they would have to take.
const LOOK_MAX: Duration = Duration::from_secs(600);

/// Commands about nodes; NODE is an id or a name.
#[derive(Debug, clap::Subcommand)]
pub(in crate::cli) enum Command {
    /// Give nodes a vote, before others.
    AddVoter(Several),
    /// Take nodes' votes away; others get them if any are there.
    Demote(Several),
    /// Leave it to the cluster again whether nodes vote, after `add-voter` or `demote`.
    AutoVoter(Free),
    /// Move a node's content away, then remove it.
    Decommission(One),
    /// Remove a dead node once all has its copies without it; with --force at once, whatever is lost.
    Remove(One),
    /// Have a new node take the vote and the content of an old one, and remove the old one.
    Replace(Pair),
    /// Keep a node from holding copies although it lives.
    Out(Bare),
    /// Let a node hold copies again; one that is leaving stays after all.
    In(Bare),
    /// Move leadership, to NODE if one is named.
    TransferLeader(Leader),
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Several {
    /// The nodes.
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
    /// Do it although the quorum gets weaker.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Free {
    /// The nodes.
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct One {
    /// The node.
    node: String,
    /// Do it although too few nodes or voters, or not all copies, are left.
    #[arg(long)]
    force: bool,
    /// Do not ask back.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Pair {
    /// The node that goes, dead or alive.
    old: String,
    /// The node that takes its place; it must have joined.
    new: String,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Bare {
    /// The node.
    node: String,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Leader {
    /// The node that shall lead.
    node: Option<String>,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
struct Wait {
    /// Return as soon as the cluster has agreed on it, before it is carried out.
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    target: Target,
}

impl Command {
    fn target(&self) -> &Target {
        match self {
            Self::AddVoter(several) | Self::Demote(several) => &several.wait.target,
            Self::AutoVoter(free) => &free.target,
            Self::Decommission(one) | Self::Remove(one) => &one.wait.target,
            Self::Replace(pair) => &pair.wait.target,
            Self::Out(bare) | Self::In(bare) => &bare.target,
            Self::TransferLeader(leader) => &leader.target,
        }
    }

    /// Runs the command.
    pub(in crate::cli) fn run(&self) -> ExitCode {
        let runtime = match crate::cli::runtime() {
            Ok(runtime) => runtime,
            Err(error) => return print::failure(&error, 1),
        };
        match runtime.block_on(self.act()) {
            Ok((answer, line)) => self.target().print(&answer, |_| format!("{line}\n")),
            Err(error) => {
                if let Failed::Asked(Error::Refused { digests, .. }) = &error {
                    digests.iter().for_each(|digest| print::complain(digest));
                }
                print::failure(&error, 1)
            }
        }
    }

    async fn act(&self) -> Result<(Value, String), Failed> {
        let client = self.target().client()?;
        let status = fetch_status(&client).await?;
        let path = |node: u64, verb: &str| format!("/api/v1/cluster/nodes/{node}/{verb}");
        match self {
            Self::AddVoter(several) => change_votes(&client, &status, several, "add").await,
            Self::Demote(several) => change_votes(&client, &status, several, "remove").await,
            Self::AutoVoter(free) => {
                let ids = free.nodes.iter().map(|node| find_node(&status, node)).collect::<Result<Vec<u64>, _>>()?;
                let answer = client.post("/api/v1/cluster/voters", &json!({ "auto": ids })).await?;
                Ok((answer, format!("the cluster decides whether {} votes", free.nodes.join(", "))))
            }
            Self::Decommission(one) => {
                let node = find_node(&status, &one.node)?;
                let body = json!({ "force": one.force });
                let answer = client.clone().patient(LOOK_MAX).post(&path(node, "decommission"), &body).await?;
                leave(&client, &one.wait, node, answer).await
            }
            Self::Remove(one) => {
                let node = find_node(&status, &one.node)?;
                if one.force {
                    confirm_losses(&client, node, one.yes).await?;
                }
                let body = json!({ "force": one.force });
                let answer = client.clone().patient(LOOK_MAX).post(&path(node, "remove"), &body).await?;
                leave(&client, &one.wait, node, answer).await
            }
            Self::Replace(pair) => {
                let (old, new) = (find_node(&status, &pair.old)?, find_node(&status, &pair.new)?);
                let answer = client.post(&path(old, "replace"), &json!({ "by": new })).await?;
                leave(&client, &pair.wait, old, answer).await
            }
            Self::Out(bare) => {
                let node = find_node(&status, &bare.node)?;
                let answer = client.post(&path(node, "out"), &json!({})).await?;
                Ok((answer, format!("node {node} is out until `cluster in {node}`")))
            }
            Self::In(bare) => {
                let node = find_node(&status, &bare.node)?;
                let answer = client.post(&path(node, "in"), &json!({})).await?;
                Ok((answer, format!("node {node} is in")))
            }
            Self::TransferLeader(leader) => {
                let to = leader.node.as_deref().map(|node| find_node(&status, node)).transpose()?;
                let answer = client.post("/api/v1/cluster/leader", &json!({ "to": to })).await?;
                let line = format!("node {} leads", answer["leader"]);
                Ok((answer, line))
            }
        }
    }
}

async fn change_votes(
    client: &Client,
    status: &Value,
    several: &Several,
    what: &str,
) -> Result<(Value, String), Failed> {
    let ids = several.nodes.iter().map(|node| find_node(status, node)).collect::<Result<Vec<u64>, _>>()?;
    let body = json!({ what: ids, "force": several.force });
    let answer = client.post("/api/v1/cluster/voters", &body).await?;
    let names = several.nodes.join(", ");
    if several.wait.no_wait {
        return Ok((answer, format!("agreed: {names}")));
    }
    let role = if what == "add" { "voter" } else { "learner" };
    let outcome = watch(client, &several.wait.target, |status| {
        let done = |id: &u64| node_of(status, *id).is_none_or(|node| node["role"] == role);
        let all = ids.iter().all(done).then(|| format!("{names}: {role}"));
        all.ok_or_else(|| format!("waiting for {names} to become {role}"))
    });
    let outcome = outcome.await?;
    Ok((answer, outcome))
}

/// Follows a node until it is gone.
async fn leave(client: &Client, wait: &Wait, node: u64, answer: Value) -> Result<(Value, String), Failed> {
    if wait.no_wait {
        return Ok((answer, format!("agreed: node {node} leaves; `cluster status` shows how far it is")));
    }
    let outcome = watch(client, &wait.target, |status| left(status, node)).await?;
    Ok((answer, outcome))
}

/// What became of a node that was to leave, or else how far it is.
fn left(status: &Value, node: u64) -> Result<String, String> {
    match node_of(status, node) {
        None => Ok(format!("node {node} is no member any more; it can be stopped and its data directory removed")),
        Some(here) if here["plan"]["leaves"].is_null() => {
            Ok(format!("node {node} stays: another operator decided so meanwhile"))
        }
        Some(here) => Err(progress(here)),
    }
}

fn node_of(status: &Value, id: u64) -> Option<&Value> {
    status["nodes"].as_array()?.iter().find(|node| node["id"] == id)
}

/// One line that says how far a leaving node is.
fn progress(node: &Value) -> String {
    let name = node["name"].as_str().unwrap_or_default();
    if node["role"] == "voter" {
        return format!("{name}: waiting for another voter to take over");
    }
    let drain = &node["drain"];
    let number = |key: &str| drain[key].as_u64();
    let (Some(total), Some(left)) = (number("total"), number("left")) else {
        return format!("{name}: looking at what it holds");
    };
    let bar = print::bar(left, total);
    let mib = number("left_bytes").unwrap_or(0).div_ceil(1 << 20);
    let mut line = format!("[{bar}] {name}: {left} of {total} left to move, {mib} MiB");
    match number("only_here") {
        Some(0) | None => {}
        Some(count) if node["state"] == "unreachable" => {
            line.push_str(&format!("; {count} on no other node: start it again, or --force loses them"));
        }
        Some(count) => line.push_str(&format!("; {count} on no other node yet")),
    }
    let idle = number("idle_uploads").unwrap_or(0);
    if left == 0 && number("uploads").unwrap_or(0) > idle {
        line.push_str("; waiting for uploads under way");
    }
    if idle > 0 {
        line.push_str(&format!(
            "; {idle} idle uploads have bytes on no node that stays: waiting until they end or expire, or --force loses them"
        ));
    }
    line
}

/// Looks again and again until `judge` says what came of it, and shows what it says meanwhile.
async fn watch(
    client: &Client,
    target: &Target,
    judge: impl Fn(&Value) -> Result<String, String>,
) -> Result<String, Failed> {
    let quiet = target.output == Output::Json;
    let mut last = String::new();
    let mut silent = 0;
    loop {
        match fetch_status(client).await {
            Ok(status) => {
                silent = 0;
                let line = match judge(&status) {
                    Ok(outcome) => {
                        print::clear_progress();
                        return Ok(outcome);
                    }
                    Err(line) => line,
                };
                if line != last && !quiet {
                    print::progress(&line);
                    last = line;
                }
            }
            // The node that was asked may be the one that goes.
            Err(error @ (Error::Connect { .. } | Error::Http { .. } | Error::Timeout)) => {
                silent += 1;
                if silent > SILENT_MAX {
                    return Err(error.into());
                }
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Lists what a removal by force would lose, and asks back.
async fn confirm_losses(client: &Client, node: u64, yes: bool) -> Result<(), Failed> {
    let losses = client.clone().patient(LOOK_MAX).get(&format!("/api/v1/cluster/nodes/{node}/losses")).await?;
    let count = losses["count"].as_u64().unwrap_or(0);
    if count == 0 {
        print::complain("nothing is on that node alone");
    } else {
        for digest in losses["digests"].as_array().into_iter().flatten() {
            print::complain(digest.as_str().unwrap_or_default());
        }
        print::complain(&format!("{count} blobs and manifests are on no other node for certain and would be lost"));
    }
    if yes || (count == 0 && !std::io::stdin().is_terminal()) {
        return Ok(());
    }
    print::complain(&format!("remove node {node} for good? type its id to go on, or say --yes"));
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    if read.is_ok() && answer.trim() == node.to_string() { Ok(()) } else { Err(Failed::NotConfirmed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_stays_after_all_is_not_called_gone() {
        let status = json!({ "nodes": [{ "id": 3, "name": "n3", "role": "voter", "plan": { "leaves": null } }] });
        assert_eq!(left(&status, 3), Ok("node 3 stays: another operator decided so meanwhile".to_owned()));
        assert!(left(&status, 4).is_ok_and(|said| said.contains("is no member any more")));
    }

    #[test]
    fn a_leaving_node_is_shown_with_what_it_waits_for() {
        let voter = json!({ "name": "n1", "role": "voter", "drain": null });
        assert_eq!(progress(&voter), "n1: waiting for another voter to take over");
        let node = |left, only_here, uploads, state: &str| {
            json!({
                "name": "n1", "role": "learner", "state": state,
                "drain": {
                    "total": 4, "left": left, "left_bytes": 1 << 20, "only_here": only_here, "uploads": uploads,
                },
            })
        };
        let half = progress(&node(2, 0, 0, "follower"));
        assert_eq!(half, "[###############...............] n1: 2 of 4 left to move, 1 MiB");
        assert!(progress(&node(0, 0, 1, "follower")).ends_with("waiting for uploads under way"));
        let mut idle = node(0, 0, 2, "follower");
        idle["drain"]["idle_uploads"] = json!(2);
        let idle = progress(&idle);
        assert!(idle.contains("2 idle uploads") && !idle.contains("under way") && idle.ends_with("--force loses them"));
        assert!(progress(&node(1, 1, 0, "unreachable")).contains("--force loses them"));
    }
}
