//! The options by which a command finds a node and says what it learned.

use std::path::PathBuf;

use crate::ops::client::{Client, Error};

/// Which node to ask, and how to print its answer.
#[derive(Debug, clap::Args)]
pub(super) struct Endpoint {
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

impl Endpoint {
    /// Whether a script reads the answer.
    pub(super) fn wants_json(&self) -> bool {
        self.output == Output::Json
    }

    /// Prepares to ask the node.
    ///
    /// # Errors
    ///
    /// As [`Client::new`].
    pub(super) fn client(&self) -> Result<Client, Error> {
        Ok(Client::new(&self.endpoint, self.ca.as_deref())?.with_login_from(|name| std::env::var(name).ok()))
    }
}
