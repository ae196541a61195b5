//! Checks a data directory while no node runs on it: the agreed state, the bytes, and one against the other.

use std::path::PathBuf;

use crate::blob::{Flaw, Inspection, Inspector};
use crate::config::Config;
use crate::meta::{Offline, State};
use crate::rpc;
use crate::topology::{NodeId, Policy, placement};

use super::data_dir::{self, DataDirError};

/// Contents compared in one go.
const PAGE: usize = 1024;

/// Says why a data directory could not be checked.
#[derive(Debug, thiserror::Error)]
pub enum FsckError {
    /// It cannot be used; above all: a node runs on it.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// There is no such directory.
    #[error("there is no data directory {path}", path = path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// Whose it is cannot be told.
    #[error("identity")]
    Identity(#[from] rpc::Error),
    /// A directory cannot be listed.
    #[error("list the files of {path}", path = path.display())]
    Io {
        /// The data directory.
        path: PathBuf,
        /// What the filesystem said.
        source: std::io::Error,
    },
}

/// What a check of a data directory found.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Fsck {
    /// What was checked.
    pub data_dir: PathBuf,
    /// Whose it is; nothing of a node that has joined no cluster.
    pub node: Option<u64>,
    /// Which cluster's, in hex.
    pub cluster: Option<String>,
    /// The agreed state.
    pub state: StateSummary,
    /// The bytes.
    pub disk: Inspection,
    /// Linked contents that should lie here and do not: the node fetches them once it runs.
    pub missing: u64,
    /// Everything that is not as it should be; no finding, no fault.
    pub findings: Vec<Flaw>,
}

/// The agreed state in numbers.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct StateSummary {
    /// The last log index that is known to be committed and was applied.
    pub applied: u64,
    /// The hash of the state there, recomputed; nothing if it could not be put together.
    pub state_hash: Option<String>,
    /// The last log index of each good snapshot.
    pub snapshots: Vec<u64>,
    /// The first and last index in the log.
    pub log: Option<(u64, u64)>,
    /// Entries applied on top of the snapshot.
    pub replayed: u64,
    /// Blobs and manifest bodies that are linked.
    pub contents: u64,
    /// Open upload sessions.
    pub uploads: u64,
}

/// Checks the data directory of a configuration; `deep` hashes everything. Blocks, and changes nothing.
///
/// # Errors
///
/// [`FsckError`] if it cannot be checked at all; what is wrong with it is in the answer.
pub fn fsck(config: &Config, deep: bool) -> Result<Fsck, FsckError> {
    let path = config.node.data_dir.clone();
    if !path.join("format").exists() {
        return Err(FsckError::Missing { path });
    }
    let _lock = data_dir::open(&path)?;
    let whose = rpc::whose(&path)?;
    let offline = whose.map_or_else(Offline::default, |(cluster, _)| Offline::read(&path, cluster));
    let mut findings: Vec<Flaw> = offline
        .problems
        .iter()
        .map(|problem| Flaw { kind: "state", path: path.join("raft"), detail: problem.clone() })
        .collect();
    let failed = |source| FsckError::Io { path: path.clone(), source };
    let inspector = Inspector::new(&path, deep);
    let state = offline.state.as_ref();
    // Without a state nothing is known of sizes and links.
    let agreed =
        |digest: &crate::oci::Digest| state.and_then(|state| state.content(digest)).map(|content| content.size);
    let mut disk = inspector.look(agreed).map_err(failed)?;
    findings.append(&mut disk.flaws);
    let missing = match (state, whose) {
        (Some(state), Some((_, me))) => {
            let copies = config.storage.copies;
            missing(state, (me, copies), &inspector, &mut findings).map_err(failed)?
        }
        _ => 0,
    };
    Ok(Fsck {
        node: whose.map(|(_, node)| node.0),
        cluster: whose.map(|(cluster, _)| cluster.to_string()),
        state: summary(&offline),
        data_dir: path,
        disk,
        missing,
        findings,
    })
}

/// Counts what is linked, should lie here, and does not.
fn missing(
    state: &State,
    (me, copies): (NodeId, u32),
    inspector: &Inspector,
    findings: &mut Vec<Flaw>,
) -> std::io::Result<u64> {
    let topology = state.topology();
    let policy = topology.policy.clone().unwrap_or_else(|| Policy::of_copies(copies));
    let (mut after, mut missing) = (None, 0);
    loop {
        let page = state.contents(after.as_ref(), PAGE);
        let Some(last) = page.last() else { return Ok(missing) };
        after = Some(last.digest.clone());
        for content in page {
            let wanted = content.body || placement(&content.digest, &topology, &policy).contains(&me);
            if wanted && inspector.size(&content.digest)?.is_none() {
                missing += 1;
                let path = PathBuf::from(content.digest.to_string());
                let detail = format!("{} bytes that should lie here do not", content.size);
                findings.push(Flaw { kind: "missing", path, detail });
            }
        }
    }
}

fn summary(offline: &Offline) -> StateSummary {
    let state = offline.state.as_ref();
    StateSummary {
        applied: offline.applied,
        state_hash: state.map(|state| format!("{:032x}", state.hash())),
        snapshots: offline.snapshots.clone(),
        log: offline.log,
        replayed: offline.replayed,
        contents: state.map_or(0, |state| state.contents_len() as u64),
        uploads: state.map_or(0, |state| state.uploads().filter(|(_, upload)| upload.closed.is_none()).count() as u64),
    }
}
