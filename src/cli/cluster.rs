//! `rafthold cluster status`.

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::Value;

use crate::ops::client::{Client, Error};

use super::print;

/// Options of `cluster status`.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// The URL of any node; `http://user:password@host:port` or `RAFTHOLD_USER` and `RAFTHOLD_PASSWORD` to log in.
    #[arg(long, env = "RAFTHOLD_ENDPOINT", default_value = "http://127.0.0.1:5000")]
    endpoint: String,
    /// `table` for people, `json` for scripts.
    #[arg(short, long, default_value = "table")]
    output: Output,
    /// Certificates, PEM, that are trusted for https; without it, the system's.
    #[arg(long)]
    ca: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Table,
    Json,
}

/// Runs the command.
pub(super) fn run(options: &Options) -> ExitCode {
    let fetched = super::runtime().map_err(Error::Io).and_then(|runtime| runtime.block_on(fetch(options)));
    match fetched {
        Ok(status) if options.output == Output::Json => {
            print::line(&serde_json::to_string_pretty(&status).expect("JSON prints"))
        }
        Ok(status) => print::text(&tables(&status)),
        Err(error) => print::failure(&error, 1),
    }
}

async fn fetch(options: &Options) -> Result<Value, Error> {
    let client =
        Client::new(&options.endpoint, options.ca.as_deref())?.with_login_from(|name| std::env::var(name).ok());
    let body = client.get("/api/v1/cluster/status").await?;
    serde_json::from_slice(&body).map_err(|source| Error::Answer { source })
}

/// Prints a value of the status; what is not known is a dash.
fn cell(value: &Value, key: &str) -> String {
    match &value[key] {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn tables(status: &Value) -> String {
    let head = ["cluster_id", "leader", "term", "version"];
    let mut text: String = head.iter().map(|key| format!("{key}: {}\n", cell(status, key))).collect();
    if let Some(Value::Array(warnings)) = status.get("warnings") {
        for warning in warnings {
            text.push_str(&format!("warning: {}\n", warning.as_str().unwrap_or_default()));
        }
    }
    let columns =
        ["id", "name", "zone", "region", "role", "state", "applied", "state_hash", "gossip", "version", "api", "rpc"];
    let mut rows = vec![columns.map(str::to_owned).to_vec()];
    for node in status["nodes"].as_array().into_iter().flatten() {
        rows.push(columns.iter().map(|key| cell(node, key)).collect());
    }
    text.push('\n');
    text.push_str(&print::table(&rows));
    text.push('\n');
    for (section, keys) in
        [("blobs", ["under_replicated", "over_replicated", "lost"]), ("repair", ["queue", "running", "fetched"])]
    {
        let values = keys.iter().map(|key| format!("{} {}", key.replace('_', " "), cell(&status[section], key)));
        text.push_str(&format!("{section}: {}\n", values.collect::<Vec<_>>().join(", ")));
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_status_prints_with_unknowns_as_dashes() {
        let status = serde_json::json!({
            "cluster_id": "c1", "leader": null, "term": 3,
            "nodes": [{ "id": 1, "name": "n1", "role": "voter", "state": "unreachable", "applied": null }],
            "blobs": { "under_replicated": 0, "over_replicated": null, "lost": 0 },
            "warnings": ["two voters do not survive one"],
        });
        let text = super::tables(&status);
        assert!(text.contains("leader: -\nterm: 3\n"), "{text}");
        assert!(text.contains("warning: two voters"), "{text}");
        assert!(text.contains("under replicated 0, over replicated -, lost 0"), "{text}");
    }
}
