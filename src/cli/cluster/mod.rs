//! `rafthold cluster …`: what operators see of a cluster and do with it.
//!
//! Owns nothing. Every command but those that prepare a data directory talks to any node's administration interface.

mod members;
mod prepare;
mod status;
mod tokens;

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::Value;

use crate::ops::client::{Client, Error};

use super::print::{self, Output};

pub(super) use members::Command as Members;
pub(super) use prepare::Command as Prepare;
pub(super) use status::Options as Status;
pub(super) use status::run as run_status;
pub(super) use tokens::Command as Tokens;

/// Which cluster.
#[derive(Debug, clap::Args)]
pub(super) struct Endpoint {
    /// The URL of any node; `http://user:password@host:port` or `RAFTHOLD_USER` and `RAFTHOLD_PASSWORD` to log in.
    #[arg(long, env = "RAFTHOLD_ENDPOINT", default_value = "http://127.0.0.1:5000")]
    endpoint: String,
    /// Certificates, PEM, that are trusted for https; without it, the system's.
    #[arg(long)]
    ca: Option<PathBuf>,
}

/// Which cluster, and how the answer is printed.
#[derive(Debug, clap::Args)]
pub(super) struct Target {
    #[command(flatten)]
    endpoint: Endpoint,
    /// `table` for people, `json` for scripts.
    #[arg(short, long, default_value = "table")]
    output: Output,
}

/// Says why a command about members was not carried out.
#[derive(Debug, thiserror::Error)]
enum Failed {
    /// The node could not be asked, or said no.
    #[error(transparent)]
    Asked(#[from] Error),
    /// No node has that id or name.
    #[error("no node has the id or the name `{0}`")]
    NoSuchNode(String),
    /// Several nodes, as a rule one that is out and the one that took its place.
    #[error("several nodes have the name `{name}`, say which by its id: {ids}")]
    Ambiguous { name: String, ids: String },
    /// The operator did not say yes.
    #[error("not confirmed")]
    NotConfirmed,
}

impl Endpoint {
    /// Prepares to ask the node.
    ///
    /// # Errors
    ///
    /// As [`Client::new`].
    pub(super) fn client(&self) -> Result<Client, Error> {
        Ok(Client::new(&self.endpoint, self.ca.as_deref())?.with_login_from(|name| std::env::var(name).ok()))
    }
}

impl Target {
    /// Prepares to ask the node.
    ///
    /// # Errors
    ///
    /// As [`Client::new`].
    pub(super) fn client(&self) -> Result<Client, Error> {
        self.endpoint.client()
    }

    /// Prints an answer: as it is for scripts, or what `text` says of it to people.
    pub(super) fn print(&self, answer: &Value, text: impl FnOnce(&Value) -> String) -> ExitCode {
        match self.output {
            Output::Json => print::json(answer),
            Output::Table => print::text(&text(answer)),
        }
    }
}

/// Asks for the state of the cluster.
///
/// # Errors
///
/// As [`Client::get`].
pub(super) async fn fetch_status(client: &Client) -> Result<Value, Error> {
    client.get("/api/v1/cluster/status").await
}

/// Finds a node by its id or its name; of several with one name, the one that is in.
fn find_node(status: &Value, wanted: &str) -> Result<u64, Failed> {
    let nodes = status["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let id = |node: &&Value| node["id"].as_u64();
    if let Some(node) = nodes.iter().find(|node| id(node).is_some_and(|id| id.to_string() == wanted)) {
        return Ok(id(&node).unwrap_or_default());
    }
    let named: Vec<&Value> = nodes.iter().filter(|node| node["name"] == wanted).collect();
    let inside: Vec<&&Value> = named.iter().filter(|node| node["placement"] == "in").collect();
    match (named.as_slice(), inside.as_slice()) {
        ([], _) => Err(Failed::NoSuchNode(wanted.to_owned())),
        ([one], _) => Ok(id(one).unwrap_or_default()),
        (_, [one]) => Ok(id(one).unwrap_or_default()),
        _ => {
            let ids: Vec<String> = named.iter().filter_map(id).map(|id| id.to_string()).collect();
            Err(Failed::Ambiguous { name: wanted.to_owned(), ids: ids.join(", ") })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_found_by_id_and_by_name() {
        let status = serde_json::json!({ "nodes": [
            { "id": 1, "name": "n1", "placement": "in" },
            { "id": 2, "name": "n2", "placement": "out" },
            { "id": 4, "name": "n2", "placement": "in" },
            { "id": 5, "name": "n5", "placement": "out" },
            { "id": 6, "name": "n5", "placement": "out" },
        ] });
        let found = |wanted: &str| find_node(&status, wanted).ok();
        assert_eq!((found("1"), found("n1"), found("2"), found("n2")), (Some(1), Some(1), Some(2), Some(4)));
        assert!(matches!(find_node(&status, "n9"), Err(Failed::NoSuchNode(_))));
        assert!(matches!(find_node(&status, "n5"), Err(Failed::Ambiguous { .. })));
    }
}
