//! `rafthold blob verify`: has nodes hash their copies of a blob again.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use crate::ops::client::Error;

use super::cluster::Target;
use super::print;

/// Longer than any node takes.
const PATIENCE: Duration = Duration::from_secs(580);

/// Look after single blobs.
#[derive(Debug, clap::Subcommand)]
pub(super) enum BlobCommand {
    /// Hash the copy of a node, or of all, again; a bad one is set aside and fetched anew.
    Verify(VerifyOptions),
}

/// Options of `blob verify`.
#[derive(Debug, clap::Args)]
pub(super) struct VerifyOptions {
    #[command(flatten)]
    target: Target,
    /// The blob, or a manifest, by its digest.
    digest: String,
    /// Have every node verify its copy, not only the one that is asked.
    #[arg(long)]
    all: bool,
}

/// Runs the command: 0 if every copy that should be there is good, else 1.
pub(super) fn run(command: &BlobCommand) -> ExitCode {
    let BlobCommand::Verify(options) = command;
    let answer = super::runtime().map_err(Error::Io).and_then(|runtime| runtime.block_on(ask(options)));
    match answer {
        Ok(answer) => {
            options.target.print(&answer, table);
            if is_good(&answer) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => print::failure(&error, 1),
    }
}

async fn ask(options: &VerifyOptions) -> Result<Value, Error> {
    let client = options.target.client()?.patient(PATIENCE);
    let path = format!("/api/v1/blobs/{}/verify", options.digest);
    client.post(&path, &serde_json::json!({ "all": options.all })).await
}

fn nodes(answer: &Value) -> impl Iterator<Item = &Value> {
    answer["nodes"].as_array().into_iter().flatten()
}

fn is_good(answer: &Value) -> bool {
    nodes(answer).all(|node| match node["verdict"].as_str() {
        Some("good") => true,
        Some("missing") => node["wanted"] == false,
        _ => false,
    })
}

fn table(answer: &Value) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut rows = vec![["id", "name", "wanted", "verdict"].map(str::to_owned).to_vec()];
    rows.extend(nodes(answer).map(|node| ["id", "name", "wanted", "verdict"].map(|key| text(&node[key])).to_vec()));
    format!("{}, {} bytes\n{}", text(&answer["digest"]), answer["size"], print::table(&rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_may_be_missing_only_where_none_is_wanted() {
        let answer = |wanted, verdict: &str| {
            let node = serde_json::json!({ "id": 1, "name": "n1", "wanted": wanted, "verdict": verdict });
            serde_json::json!({ "digest": "sha256:0", "size": 7, "nodes": [node] })
        };
        assert!(is_good(&answer(true, "good")) && is_good(&answer(false, "missing")));
        for verdict in ["missing", "quarantined", "unreadable", "unreachable"] {
            assert!(!is_good(&answer(true, verdict)), "{verdict}");
        }
        assert!(table(&answer(true, "good")).ends_with("id  name  wanted  verdict\n1   n1    true    good\n"));
    }
}
