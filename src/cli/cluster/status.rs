//! `rafthold cluster status`.

use std::process::ExitCode;

use serde_json::Value;

use crate::cli::print;
use crate::ops::client::Error;

use super::{Target, fetch_status};

/// Options of `cluster status`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Options {
    #[command(flatten)]
    target: Target,
}

/// Runs the command.
pub(in crate::cli) fn run(options: &Options) -> ExitCode {
    let fetch = async { fetch_status(&options.target.client()?).await };
    let fetched = crate::cli::runtime().map_err(Error::Io).and_then(|runtime| runtime.block_on(fetch));
    match fetched {
        Ok(status) => options.target.print(&status, tables),
        Err(error) => print::failure(&error, 1),
    }
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
    for node in status["nodes"].as_array().into_iter().flatten() {
        if let Some(reason) = node["gossip_reason"].as_str() {
            text.push_str(&format!("node {} is {}: {reason}\n", cell(node, "id"), cell(node, "gossip")));
        }
    }
    for (section, keys) in [
        ("blobs", ["under_replicated", "over_replicated", "lost"]),
        ("repair", ["queue", "running", "fetched"]),
        ("gc", ["reaped_files", "reaped_bytes", "waiting_files"]),
    ] {
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
            "nodes": [{ "id": 1, "name": "n1", "role": "voter", "state": "unreachable", "applied": null,
                "gossip": "dead", "gossip_reason": "no answer for 6.0 s" }],
            "blobs": { "under_replicated": 0, "over_replicated": null, "lost": 0 },
            "warnings": ["two voters do not survive one"],
        });
        let text = super::tables(&status);
        assert!(text.contains("leader: -\nterm: 3\n"), "{text}");
        assert!(text.contains("node 1 is dead: no answer for 6.0 s\n"), "{text}");
        assert!(text.contains("warning: two voters"), "{text}");
        assert!(text.contains("under replicated 0, over replicated -, lost 0"), "{text}");
    }
}
