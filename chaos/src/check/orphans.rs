//! Whether the disks hold what the registry can still reach, and nothing else (I8): by listing the data directories.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rafthold::oci::Digest;
use serde_json::Value;

use crate::client::Client;

/// What is on the disks beside or below what should be.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Content that tags reach.
    pub(crate) reachable: usize,
    /// Files that nothing reaches.
    pub(crate) orphans: Vec<String>,
    /// Reachable content that a node lacks.
    pub(crate) missing: Vec<String>,
    /// Files of uploads and temporary files.
    pub(crate) leftovers: Vec<String>,
}

impl Found {
    pub(crate) fn is_clean(&self) -> bool {
        self.orphans.is_empty() && self.missing.is_empty() && self.leftovers.is_empty()
    }
}

/// Compares what tags reach, by the word of the registry, with what lies in each data directory, where each node is to
/// hold everything.
pub(crate) async fn find(client: &Client, data_dirs: &[&Path]) -> Result<Found> {
    let reachable = reachable(client).await?;
    let mut found = Found { reachable: reachable.len(), ..Found::default() };
    for dir in data_dirs {
        let here = blobs(dir)?;
        found.orphans.extend(here.difference(&reachable).map(|digest| format!("{}: {digest}", dir.display())));
        found.missing.extend(reachable.difference(&here).map(|digest| format!("{}: {digest}", dir.display())));
        for name in ["extents", "tmp"] {
            let files = names(&dir.join(name))?;
            found.leftovers.extend(files.into_iter().map(|file| format!("{}: {name}/{file}", dir.display())));
        }
    }
    Ok(found)
}

fn names(dir: &Path) -> Result<Vec<String>> {
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(dir)?.collect::<std::io::Result<Vec<_>>>()?;
    Ok(entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

pub(super) fn blobs(dir: &Path) -> Result<BTreeSet<Digest>> {
    let mut found = BTreeSet::new();
    for algorithm in names(&dir.join("blobs"))? {
        for prefix in names(&dir.join("blobs").join(&algorithm))? {
            for hex in names(&dir.join("blobs").join(&algorithm).join(prefix))? {
                found.insert(format!("{algorithm}:{hex}").parse().context("a file of the blob store is no digest")?);
            }
        }
    }
    Ok(found)
}

async fn document(client: &Client, path: &str) -> Result<(Value, Option<String>)> {
    let answer = client.get(0, path).await?;
    ensure!(answer.status == 200, "{path}: {}", answer.status);
    let digest = answer.header("docker-content-digest").map(str::to_owned);
    Ok((serde_json::from_slice(&answer.body)?, digest))
}

fn texts<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a str> {
    value[key].as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// Everything that tags reach: through indexes, references and referrers.
async fn reachable(client: &Client) -> Result<BTreeSet<Digest>> {
    let mut all = BTreeSet::new();
    let (catalog, _) = document(client, "/v2/_catalog?n=1000").await?;
    for repository in texts(&catalog, "repositories") {
        let mut seen = BTreeSet::new();
        let mut open = Vec::new();
        let (tags, _) = document(client, &format!("/v2/{repository}/tags/list?n=1000")).await?;
        for tag in texts(&tags, "tags") {
            let (_, digest) = document(client, &format!("/v2/{repository}/manifests/{tag}")).await?;
            open.push(digest.context("a manifest without its digest")?);
        }
        while let Some(manifest) = open.pop() {
            if !seen.insert(manifest.clone()) {
                continue;
            }
            let (body, _) = document(client, &format!("/v2/{repository}/manifests/{manifest}")).await?;
            let (referrers, _) = document(client, &format!("/v2/{repository}/referrers/{manifest}")).await?;
            let named = |list: &Value| -> Vec<String> {
                let entries = list.as_array().into_iter().flatten();
                entries.filter_map(|entry| entry["digest"].as_str().map(str::to_owned)).collect()
            };
            open.extend(named(&body["manifests"]).into_iter().chain(named(&referrers["manifests"])));
            let blobs = named(&body["layers"]).into_iter().chain(body["config"]["digest"].as_str().map(str::to_owned));
            for digest in blobs.chain([manifest]) {
                all.insert(digest.parse().context("a manifest names no digest")?);
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_orphan_a_missing_copy_and_a_leftover_are_each_no_clean_disk() {
        assert!(Found { reachable: 5, ..Found::default() }.is_clean());
        for found in [
            Found { orphans: vec![String::new()], ..Found::default() },
            Found { missing: vec![String::new()], ..Found::default() },
            Found { leftovers: vec![String::new()], ..Found::default() },
        ] {
            assert!(!found.is_clean());
        }
    }

    #[test]
    fn files_are_listed_by_their_digests() {
        let dir = std::env::temp_dir().join(format!("rafthold-orphans-{}", std::process::id()));
        let hex = "ab".repeat(32);
        fs::create_dir_all(dir.join("blobs/sha256/ab")).expect("made");
        fs::write(dir.join("blobs/sha256/ab").join(&hex), "x").expect("written");
        let found = blobs(&dir).expect("listed");
        fs::remove_dir_all(&dir).expect("removed");
        assert_eq!(found.iter().map(Digest::to_string).collect::<Vec<_>>(), [format!("sha256:{hex}")]);
    }
}
