//! A node's word that it will be part of one cluster and no other.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::topology::ClusterId;

use super::files;
use super::{Error, Result};

const VERSION: u32 = 1;

/// What a node without an identity has committed itself to; on disk before it is said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Promise {
    version: u32,
    pub(super) cluster: ClusterId,
    /// The name of the node that forms the cluster.
    pub(super) initialiser: String,
    /// The names of all who were asked, sorted.
    pub(super) participants: Vec<String>,
}

impl Promise {
    pub(super) fn new(cluster: ClusterId, initialiser: String, mut participants: Vec<String>) -> Self {
        participants.sort();
        Self { version: VERSION, cluster, initialiser, participants }
    }
}

/// Says why a promise is not given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("{name} is a member of cluster {cluster} already")]
    Member { name: String, cluster: ClusterId },
    #[error(
        "{name} has promised itself to cluster {cluster}, which {initialiser} forms; if that one will never be, remove \
         the file {path:?} there"
    )]
    Promised { name: String, cluster: ClusterId, initialiser: String, path: PathBuf },
    #[error("{name} is not among the nodes to be asked: {participants:?}")]
    NotAsked { name: String, participants: Vec<String> },
    #[error("{name} expects {own} nodes, not {asked}")]
    Expect { name: String, own: usize, asked: usize },
    #[error("{initialiser} is not the lowest of {participants:?} by name")]
    NotLowest { initialiser: String, participants: Vec<String> },
}

/// Where this node stands when it is asked for a promise.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standing<'a> {
    pub(super) name: &'a str,
    pub(super) expect: usize,
    pub(super) member_of: Option<ClusterId>,
    pub(super) promised: Option<&'a Promise>,
    pub(super) path: &'a Path,
}

/// Says whether this node may promise what it is asked; a promise given before may be given again.
///
/// # Errors
///
/// The reason not to.
pub(super) fn judge(own: Standing<'_>, asked: &Promise) -> Result<(), Refusal> {
    let name = own.name.to_owned();
    if let Some(cluster) = own.member_of {
        return Err(Refusal::Member { name, cluster });
    }
    if let Some(promised) = own.promised {
        let Promise { cluster, initialiser, .. } = promised.clone();
        return if cluster == asked.cluster {
            Ok(())
        } else {
            Err(Refusal::Promised { name, cluster, initialiser, path: own.path.to_owned() })
        };
    }
    let participants = asked.participants.clone();
    if !participants.contains(&name) {
        return Err(Refusal::NotAsked { name, participants });
    }
    if participants.len() != own.expect {
        return Err(Refusal::Expect { name, own: own.expect, asked: participants.len() });
    }
    if participants.iter().min() != Some(&asked.initialiser) {
        return Err(Refusal::NotLowest { initialiser: asked.initialiser.clone(), participants });
    }
    Ok(())
}

/// The promise file. All calls block.
#[derive(Debug, Clone)]
pub(super) struct PromiseFile(pub(super) PathBuf);

impl PromiseFile {
    /// # Errors
    ///
    /// [`Error::Damaged`], [`Error::Version`] or [`Error::File`] if a file is there that cannot be read.
    pub(super) fn load(&self) -> Result<Option<Promise>> {
        let Some(text) = files::read_optional(&self.0)? else { return Ok(None) };
        files::check_version(&self.0, &text, VERSION)?;
        let damaged = |error: serde_json::Error| Error::Damaged { path: self.0.clone(), problem: error.to_string() };
        serde_json::from_str(&text).map(Some).map_err(damaged)
    }

    /// On return the promise survives a power cut.
    pub(super) fn store(&self, promise: &Promise) -> Result<()> {
        let text = serde_json::to_string_pretty(promise).expect("a plain record is JSON");
        files::write(&self.0, text.as_bytes())
    }

    pub(super) fn remove(&self) -> Result<()> {
        files::remove(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn promise(cluster: u128, initialiser: &str, participants: &[&str]) -> Promise {
        Promise::new(
            ClusterId(cluster),
            initialiser.to_owned(),
            participants.iter().map(|name| (*name).to_owned()).collect(),
        )
    }

    fn standing<'a>(promised: Option<&'a Promise>, member_of: Option<ClusterId>) -> Standing<'a> {
        Standing { name: "b", expect: 3, member_of, promised, path: Path::new("promise") }
    }

    #[test]
    fn a_node_promises_itself_to_one_cluster_only() {
        let asked = promise(1, "a", &["c", "b", "a"]);
        assert_eq!(judge(standing(None, None), &asked), Ok(()));
        assert_eq!(judge(standing(Some(&asked), None), &asked), Ok(()), "asked again");
        let other = promise(2, "a", &["a", "b", "c"]);
        assert!(matches!(judge(standing(Some(&asked), None), &other), Err(Refusal::Promised { .. })));
        assert!(matches!(judge(standing(None, Some(ClusterId(9))), &asked), Err(Refusal::Member { .. })));
    }

    #[test]
    fn a_promise_is_given_only_to_the_lowest_of_the_expected_nodes() {
        let check = |initialiser: &str, participants: &[&str]| {
            judge(standing(None, None), &promise(1, initialiser, participants))
        };
        assert!(matches!(check("a", &["a", "c", "d"]), Err(Refusal::NotAsked { .. })));
        assert!(matches!(check("a", &["a", "b"]), Err(Refusal::Expect { own: 3, asked: 2, .. })));
        assert!(matches!(check("c", &["b", "c", "d"]), Err(Refusal::NotLowest { .. })));
        assert!(matches!(check("0", &["a", "b", "c"]), Err(Refusal::NotLowest { .. })));
    }

    #[test]
    fn a_promise_survives_and_a_later_version_stops_the_node() {
        let dir = tempfile::tempdir().unwrap();
        let file = PromiseFile(dir.path().join("promise"));
        assert_eq!(file.load().unwrap(), None);
        let given = promise(7, "a", &["a", "b", "c"]);
        file.store(&given).unwrap();
        assert_eq!(file.load().unwrap(), Some(given));
        std::fs::write(&file.0, r#"{"version": 2, "new": 1}"#).unwrap();
        assert!(matches!(file.load(), Err(Error::Version { version: 2, .. })));
        file.remove().unwrap();
        assert_eq!(file.load().unwrap(), None);
    }
}
