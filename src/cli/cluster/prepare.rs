//! Commands on a data directory on which no node runs: `init`, `join`, `forget`, `recover`.

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use crate::cli::print::{self, Output};
use crate::config::Config;
use crate::node::{self, JoinToken, Member, PrepareError, Remains, Seams};

/// Commands on a data directory on which no node runs.
#[derive(Debug, clap::Subcommand)]
pub(in crate::cli) enum Command {
    /// Make this node the first of a new cluster, which others join; `serve` then starts it.
    Init(Here),
    /// Get this node an identity by a join token; `serve` then starts it.
    Join(Join),
    /// Have this node forget its cluster and keep its blobs, so that it can join one anew.
    Forget(Sure),
    /// The quorum is lost for good: go on with this node alone, under a new epoch that shuts the others out.
    Recover(Sure),
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Here {
    /// The node's configuration file.
    #[arg(long)]
    config: PathBuf,
    /// Print JSON, for scripts.
    #[arg(short, long, default_value = "table")]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Join {
    /// The token that `cluster token create` printed.
    #[arg(long, env = "RAFTHOLD_JOIN_TOKEN", hide_env_values = true)]
    token: String,
    /// The rpc address of a member: `host:port`; may be given several times.
    #[arg(long = "seed", required = true, value_name = "HOST:PORT")]
    seeds: Vec<String>,
    #[command(flatten)]
    here: Here,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Sure {
    /// Do not ask back.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    here: Here,
}

/// Says why nothing was done.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    #[error("runtime")]
    Io(#[from] std::io::Error),
    #[error("not confirmed: nothing was done")]
    NotConfirmed,
}

impl Command {
    fn here(&self) -> &Here {
        match self {
            Self::Init(here) => here,
            Self::Join(join) => &join.here,
            Self::Forget(sure) | Self::Recover(sure) => &sure.here,
        }
    }

    /// Runs the command.
    pub(in crate::cli) fn run(&self) -> ExitCode {
        let config = match crate::cli::load(Some(&self.here().config)) {
            Ok(config) => config,
            Err(code) => return code,
        };
        let token = match self {
            Self::Join(join) => match join.token.parse::<JoinToken>() {
                Ok(token) => Some(token),
                Err(error) => return print::failure(&error, crate::cli::EXIT_CONFIGURATION),
            },
            _ => None,
        };
        let runtime = match crate::cli::runtime() {
            Ok(runtime) => runtime,
            Err(error) => return print::failure(&error, 1),
        };
        match runtime.block_on(self.act(&config, token)) {
            Ok((member, line)) => match self.here().output {
                Output::Json => print::line(&of_member(member).to_string()),
                Output::Table => print::line(&line),
            },
            Err(error) => print::failure(&error, 1),
        }
    }

    async fn act(&self, config: &Config, token: Option<JoinToken>) -> Result<(Option<Member>, String), Failed> {
        let seams = Seams::machine();
        let path = self.here().config.display();
        match (self, token) {
            (Self::Join(join), Some(token)) => {
                let member = node::join(config, &seams, &token, &join.seeds).await?;
                let Member { cluster, node, .. } = member;
                let line = format!("node {node} of cluster {cluster}; now: rafthold serve --config {path}");
                Ok((Some(member), line))
            }
            (Self::Init(_) | Self::Join(_), _) => {
                let member = node::init(config, &seams).await?;
                let line = format!("first node of cluster {}; now: rafthold serve --config {path}", member.cluster);
                Ok((Some(member), line))
            }
            (Self::Forget(sure), _) => {
                let name = &config.node.name;
                confirm(sure.yes, &format!("{name} forgets its cluster, log and state; its blobs stay."), name)?;
                node::forget(config)?;
                Ok((None, format!("forgotten; join a cluster anew, then rafthold serve --config {path}")))
            }
            (Self::Recover(sure), _) => {
                let (member, remains) = node::inspect(config, &seams).await?;
                confirm(sure.yes, &warning(member, &remains), &config.node.name)?;
                let member = node::recover(config, &seams).await?;
                let line = format!(
                    "cluster {} goes on with node {} alone, under epoch {}; now: rafthold serve --config {path}; on every \
                     other old node: rafthold cluster forget, then join",
                    member.cluster, member.node, member.epoch
                );
                Ok((Some(member), line))
            }
        }
    }
}

fn of_member(member: Option<Member>) -> serde_json::Value {
    member.map_or_else(
        || json!({}),
        |member| json!({ "cluster_id": member.cluster.to_string(), "node": member.node.0, "epoch": member.epoch }),
    )
}

/// What an operator must know before a recovery.
fn warning(member: Member, remains: &Remains) -> String {
    let others: Vec<String> = remains
        .nodes
        .iter()
        .filter(|node| node.id != member.node)
        .map(|node| format!("{} ({} at {})", node.id, node.name, node.rpc_address))
        .collect();
    format!(
        "Node {} of cluster {} knows the log up to index {} of term {}: {} repositories, {} blobs and manifests.\n\
         What was acknowledged and is not in this log is lost; of several survivors take the one with the highest term, \
         then index.\nThese nodes are shut out for good, and must not run any more: {}.",
        member.node,
        member.cluster,
        remains.last_index,
        remains.last_term,
        remains.repositories,
        remains.contents,
        if others.is_empty() { "none".to_owned() } else { others.join(", ") },
    )
}

/// Asks back, unless that was answered before.
fn confirm(yes: bool, text: &str, name: &str) -> Result<(), Failed> {
    print::complain(text);
    if yes {
        return Ok(());
    }
    print::complain(&format!("type the node's name, {name}, to go on:"));
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if answer.trim() == name { Ok(()) } else { Err(Failed::NotConfirmed) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::Remains;

    #[test]
    fn a_recovery_says_what_it_keeps_and_whom_it_shuts_out() {
        let remains =
            Remains { last_index: 7, last_term: 2, nodes: vec![], repositories: 1, contents: 3, state_hash: 0 };
        let member = Member { cluster: "1".parse().unwrap(), node: serde_json::from_str("1").unwrap(), epoch: 1 };
        let text = warning(member, &remains);
        assert!(text.contains("index 7 of term 2") && text.contains("must not run any more: none"), "{text}");
    }
}
