//! Reads, merges, checks and prints the configuration.
//!
//! Owns nothing. Order: defaults, file, environment (`RAFTHOLD_NODE__NAME=…`), flags. Unknown keys are refused everywhere.
//! `deploy/rafthold.toml` documents every setting; a test holds it to the defaults below. Each part of the node is handed its
//! own module's `Config`, made here, so that no other module sees this one. Start reading at [`Config`].

mod cluster;
mod gc;
mod parts;
mod sources;
mod storage;
mod units;
mod upkeep;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::meta::Consistency;
use crate::telemetry;

pub use cluster::Cluster;
pub use gc::{Gc, Untagged};
pub use storage::Storage;
pub use upkeep::{Repair, Scrub};

/// Says why a configuration is refused; the process ends with exit code 64.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not there or cannot be read.
    #[error("read {path}", path = path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{path} is not valid TOML", path = path.display())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A key is unknown or its value has the wrong form.
    #[error("a setting is not valid")]
    Setting {
        /// Which and why.
        source: Box<toml::de::Error>,
    },
    /// A variable of the environment is not a valid override.
    #[error("environment variable {name}: {problem}")]
    Environment {
        /// The variable.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// A value, or values together, make no sense.
    #[error("{key}: {problem}")]
    Invalid {
        /// The setting.
        key: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
}

/// A result of reading the configuration.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Who this node is.
    pub node: Node,
    /// The door for clients.
    pub api: Api,
    /// Health, metrics and administration.
    pub ops: Ops,
    /// The door for other nodes.
    pub rpc: Rpc,
    /// How nodes find each other.
    pub cluster: Cluster,
    /// The agreement between nodes.
    pub raft: Raft,
    /// Blobs on disk.
    pub storage: Storage,
    /// Copies that are missing on this node.
    pub repair: Repair,
    /// Hashing again what lies on this node.
    pub scrub: Scrub,
    /// The registry's policies.
    pub registry: Registry,
    /// What becomes of content that nothing needs.
    pub gc: Gc,
    /// Who may come in.
    pub auth: Auth,
    /// Logs.
    pub log: Log,
}

/// Who this node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Node {
    /// Its name, unique in the cluster.
    pub name: String,
    /// Its failure domain: nodes of one zone may die together.
    pub zone: String,
    /// Its region: a group of zones that are near each other.
    pub region: String,
    /// Its share of the bytes relative to other nodes.
    pub weight: u32,
    /// Where everything it keeps lies.
    pub data_dir: PathBuf,
    /// How long a graceful stop may wait for open requests.
    #[serde(with = "units::duration")]
    pub stop_grace: Duration,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            name: "rafthold".to_owned(),
            zone: "default".to_owned(),
            region: "default".to_owned(),
            weight: 1,
            data_dir: PathBuf::from("rafthold-data"),
            stop_grace: Duration::from_secs(20),
        }
    }
}

/// The door for clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Api {
    /// Where clients connect: `address:port`.
    pub listen: String,
    /// The URL by which others reach it, for `cluster status`; made from `listen` where not set.
    pub url: Option<String>,
    /// Certificate chain, PEM; with `tls_key` it turns TLS on.
    pub tls_cert: Option<PathBuf>,
    /// Private key of the certificate, PEM; not readable by others.
    pub tls_key: Option<PathBuf>,
    /// Allow everybody in from other machines although no login is set up.
    pub insecure: bool,
    /// Open connections in all; more are closed at once.
    pub connections_max: u32,
    /// Open connections per client address (loopback excepted).
    pub connections_per_address_max: u32,
    /// How long a client may take to say what it wants, handshake included.
    #[serde(with = "units::duration")]
    pub head_timeout: Duration,
    /// How long a connection may lie idle between requests.
    #[serde(with = "units::duration")]
    pub idle_timeout: Duration,
    /// How long a client may send too little of a body it has begun, or take none of an answer.
    #[serde(with = "units::duration")]
    pub stall_timeout: Duration,
}

impl Default for Api {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:5000".to_owned(),
            url: None,
            tls_cert: None,
            tls_key: None,
            insecure: false,
            connections_max: 4096,
            connections_per_address_max: 512,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(120),
            stall_timeout: Duration::from_secs(30),
        }
    }
}

/// Health, metrics and administration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ops {
    /// A listener of its own; not set: the api's.
    pub listen: Option<String>,
}

/// The door for other nodes; always mutual TLS from the cluster's own authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rpc {
    /// Where other nodes connect: `address:port`.
    pub listen: String,
    /// How other nodes reach it: `host:port`; not set: `listen`.
    pub advertise: Option<String>,
}

impl Default for Rpc {
    fn default() -> Self {
        Self { listen: "127.0.0.1:5100".to_owned(), advertise: None }
    }
}

/// The agreement between nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Raft {
    /// How often a leader says that it lives.
    #[serde(with = "units::duration")]
    pub heartbeat: Duration,
    /// The shortest silence after which a node asks to lead.
    #[serde(with = "units::duration")]
    pub election_min: Duration,
    /// The longest.
    #[serde(with = "units::duration")]
    pub election_max: Duration,
    /// Log entries between two snapshots.
    pub snapshot_entries: u64,
    /// Log entries kept behind the older snapshot for nodes that were away.
    pub keep_entries: u64,
    /// Space put by for the log and snapshots, should the disk be full otherwise; at most a sixteenth of the disk.
    #[serde(with = "units::size")]
    pub reserve: u64,
}

impl Default for Raft {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(400),
            election_max: Duration::from_millis(700),
            snapshot_entries: 10_000,
            keep_entries: 20_000,
            reserve: 64 << 20,
        }
    }
}

/// Whether manifests may name content that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sparse {
    /// They are refused.
    #[default]
    Refuse,
    /// They are taken.
    Allow,
}

/// The registry's policies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Registry {
    /// How fresh answers are unless a request asks otherwise.
    pub read: Consistency,
    /// Whether manifests may name content that is not there.
    pub sparse: Sparse,
    /// How long an upload may lie untouched.
    #[serde(with = "units::duration")]
    pub upload_ttl: Duration,
    /// Open uploads per user.
    pub uploads_per_principal_max: u32,
    /// Largest manifest.
    #[serde(with = "units::size")]
    pub manifest_bytes_max: u64,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            read: Consistency::Linearizable,
            sparse: Sparse::Refuse,
            upload_ttl: Duration::from_secs(86_400),
            uploads_per_principal_max: 10_000,
            manifest_bytes_max: 4 << 20,
        }
    }
}

/// Who may come in.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// A htpasswd file with bcrypt hashes; without one everybody may do everything.
    pub htpasswd: Option<PathBuf>,
}

/// Logs, on standard error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `text` or `json`.
    pub format: telemetry::Format,
    /// What is logged, by module and level.
    pub filter: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: telemetry::Format::Text, filter: "info".to_owned() }
    }
}

impl Config {
    /// Reads the configuration from a file (defaults where there is none) and an environment, and checks it.
    ///
    /// # Errors
    ///
    /// Whatever is wrong first; the process should end with exit code 64.
    pub fn load(path: Option<&Path>, environment: impl Iterator<Item = (OsString, OsString)>) -> Result<Self> {
        sources::load(path, environment)
    }

    /// Prints every setting as TOML; it holds no secrets, only the names of files that do.
    ///
    /// # Panics
    ///
    /// Never: every setting has a form in TOML.
    #[must_use]
    pub fn show(&self) -> String {
        toml::to_string(self).expect("a configuration prints as TOML")
    }

    /// Checks what serde cannot.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] with the setting and what would be right.
    pub fn validate(&self) -> Result<()> {
        self.validate_node()?;
        self.validate_doors()?;
        self.validate_cluster()?;
        self.validate_storage()?;
        self.validate_parts()
    }

    fn validate_node(&self) -> Result<()> {
        for (key, text) in
            [("node.name", &self.node.name), ("node.zone", &self.node.zone), ("node.region", &self.node.region)]
        {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            check(!text.is_empty() && text.len() <= 63 && text.chars().all(plain), key, || {
                format!("`{text}` is not 1 to 63 letters, digits, `-`, `_` or `.`")
            })?;
        }
        check((1..=1000).contains(&self.node.weight), "node.weight", || "it must be from 1 to 1000".to_owned())?;
        check(!self.node.data_dir.as_os_str().is_empty(), "node.data_dir", || "it is empty".to_owned())
    }

    fn validate_doors(&self) -> Result<()> {
        let api = address("api.listen", &self.api.listen)?;
        check(self.api.tls_cert.is_some() == self.api.tls_key.is_some(), "api.tls_cert", || {
            "`api.tls_cert` and `api.tls_key` go together".to_owned()
        })?;
        let open = self.auth.htpasswd.is_none() && !self.api.insecure;
        check(!open || api.ip().is_loopback(), "api.listen", || {
            format!(
                "{api} can be reached from other machines, and no login is set up: set `auth.htpasswd`, or listen on \
                     127.0.0.1, or say `--insecure` (`api.insecure = true`) to let everybody push and delete"
            )
        })?;
        if let Some(listen) = &self.ops.listen {
            let ops = address("ops.listen", listen)?;
            check(!open || ops.ip().is_loopback(), "ops.listen", || {
                format!(
                    "{ops} can be reached from other machines, and no login is set up: set `auth.htpasswd`, or \
                         listen on 127.0.0.1, or say `--insecure`"
                )
            })?;
        }
        check(self.api.connections_max > 0, "api.connections_max", || "it is 0".to_owned())?;
        check(self.api.connections_per_address_max > 0, "api.connections_per_address_max", || "it is 0".to_owned())?;
        let rpc = address("rpc.listen", &self.rpc.listen)?;
        check(self.rpc.advertise.is_some() || !rpc.ip().is_unspecified(), "rpc.advertise", || {
            format!("set it: other nodes cannot reach this one by {rpc}")
        })?;
        self.rpc.advertise.as_deref().map_or(Ok(()), |text| host_port("rpc.advertise", text))
    }

    fn validate_storage(&self) -> Result<()> {
        let storage = &self.storage;
        check((1..=16).contains(&storage.copies), "storage.copies", || "it must be from 1 to 16".to_owned())?;
        check((1..=storage.copies).contains(&storage.write_copies), "storage.write_copies", || {
            "it must be from 1 to `storage.copies`".to_owned()
        })
    }

    /// Checks the log filter (apart from [`Config::validate`], because only a process that logs needs it).
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if the filter cannot be read.
    pub fn check_log(&self) -> Result<()> {
        telemetry::check_filter(&self.log.filter)
            .map_err(|error| Error::Invalid { key: "log.filter", problem: error.to_string() })
    }

    /// Returns how other nodes reach this one: `host:port`.
    #[must_use]
    pub fn rpc_advertised(&self) -> String {
        self.rpc.advertise.clone().unwrap_or_else(|| self.rpc.listen.clone())
    }

    /// Returns the URL by which clients reach this node.
    #[must_use]
    pub fn api_url(&self, bound: SocketAddr) -> String {
        if let Some(url) = &self.api.url {
            return url.clone();
        }
        let scheme = if self.api.tls_cert.is_some() { "https" } else { "http" };
        if !bound.ip().is_unspecified() {
            return format!("{scheme}://{bound}");
        }
        let advertised = self.rpc_advertised();
        let host = advertised.rsplit_once(':').map_or("localhost", |(host, _)| host);
        format!("{scheme}://{host}:{}", bound.port())
    }

    /// Returns the file with the shared secret.
    #[must_use]
    pub fn secret_file(&self) -> PathBuf {
        self.cluster.secret_file.clone().unwrap_or_else(|| self.node.data_dir.join("secret"))
    }
}

/// Reads a duration like `"90s"` or `"24h"`; `None` if the text is not one.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    units::duration::parse(text)
}

fn check(holds: bool, key: &'static str, problem: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::Invalid { key, problem: problem() }) }
}

fn address(key: &'static str, text: &str) -> Result<SocketAddr> {
    text.parse().map_err(|_| Error::Invalid { key, problem: format!("`{text}` is not an address like 127.0.0.1:5000") })
}

fn host_port(key: &'static str, text: &str) -> Result<()> {
    let good = text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok_and(|p| p > 0)
    });
    check(good, key, || format!("`{text}` is not host:port"))
}

#[cfg(test)]
mod tests;
