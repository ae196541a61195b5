//! How nodes find each other, and when one counts out.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Config, Result, check, host_port, units};

/// How nodes find each other, and when one counts out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cluster {
    /// How many nodes make a new cluster together; used once, by nodes whose own address is among the seeds.
    pub bootstrap_expect: u32,
    /// Addresses (`rpc.advertise`) of the first nodes, this one included; a later node names any that live.
    pub seeds: Vec<String>,
    /// The file with the secret by which the first nodes know each other; not set: `secret` in the data directory. A node
    /// that joined by a token needs none.
    pub secret_file: Option<PathBuf>,
    /// How long a node may be away before it counts out, and its content is copied elsewhere.
    #[serde(with = "units::duration")]
    pub out_after: Duration,
}

impl Default for Cluster {
    fn default() -> Self {
        Self { bootstrap_expect: 1, seeds: Vec::new(), secret_file: None, out_after: Duration::from_secs(600) }
    }
}

impl Config {
    pub(super) fn validate_cluster(&self) -> Result<()> {
        let cluster = &self.cluster;
        for seed in &cluster.seeds {
            host_port("cluster.seeds", seed)?;
        }
        check(cluster.bootstrap_expect > 0, "cluster.bootstrap_expect", || "it is 0".to_owned())?;
        let founder = cluster.seeds.contains(&self.rpc_advertised());
        check(!founder || cluster.seeds.len() == cluster.bootstrap_expect as usize, "cluster.seeds", || {
            format!(
                "there are {} seeds, this node among them, and `cluster.bootstrap_expect` is {}: the first nodes of a \
                 cluster name exactly each other",
                cluster.seeds.len(),
                cluster.bootstrap_expect
            )
        })?;
        check(!cluster.seeds.is_empty() || cluster.bootstrap_expect == 1, "cluster.seeds", || {
            format!("it is empty, and {} nodes are expected", cluster.bootstrap_expect)
        })?;
        check(!founder || cluster.secret_file.is_some(), "cluster.secret_file", || {
            "set it: the first nodes of a cluster share one secret file".to_owned()
        })?;
        check(cluster.out_after >= Duration::from_secs(1), "cluster.out_after", || "it is under 1s".to_owned())
    }
}
