//! Puts any number of commands into the data directories of a cluster that does not run: as if all its nodes had been
//! sent a snapshot from behind them.
//!
//! A million manifests take hours through consensus and a minute here, by the same `apply`, snapshots and log. It is for
//! laboratories of large states; whoever imports another registry needs the same. It makes no promise of its own: every
//! directory of the cluster has to be given the same before any node starts again, or their states differ (P8).

use std::path::Path;
use std::sync::Arc;

use openraft::storage::RaftLogStorage;

use crate::topology::ClusterId;

use super::command::{Command, LogTime, Proposal, RequestId, Response};
use super::recover::{self, broken};
use super::snapshot::Header;
use super::types::{LogId, StoredMembership};
use super::wal::EntryId;
use super::{StartError, State};

/// Log time between two commands, in milliseconds: few enough answers are then remembered at once (P4).
const STEP_MS: u64 = 1;

/// The agreed state of a stopped cluster, to which commands are added.
#[derive(Debug)]
pub struct Preload {
    cluster: ClusterId,
    state: State,
    membership: StoredMembership,
    /// Where the log of the cluster ends.
    base: EntryId,
    /// Where it would end behind the commands.
    last: EntryId,
}

impl Preload {
    /// Reads the state behind everything that the data directory's log holds; of several nodes, take the longest log.
    ///
    /// # Errors
    ///
    /// [`StartError`] if log or snapshots cannot be read.
    pub async fn begin(data_dir: &Path, cluster: ClusterId) -> Result<Self, StartError> {
        let survivor = recover::open(data_dir, cluster).await?;
        let (state, membership, base) = (survivor.state, survivor.membership, survivor.last);
        Ok(Self { cluster, state, membership, base, last: base })
    }

    /// Returns the state as it is now.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Applies a command as the next entry of the log, under a request id of its own; a refusal is in the answer.
    pub fn apply(&mut self, id: u128, command: Command) -> Response {
        let at = LogTime(self.state.log_time().0 + STEP_MS);
        self.last.index += 1;
        self.state.apply(self.last.index, &Proposal { id: RequestId(id), issued: at, at, wall_seconds: 0, command })
    }

    /// Writes the state to a data directory of the cluster as a snapshot, and cuts its log there. Returns the bytes of the
    /// snapshot.
    ///
    /// # Errors
    ///
    /// [`StartError`] if the directory's log is longer than the one the commands were added to, or something cannot be
    /// written; what was not written was not done.
    pub async fn write(&self, data_dir: &Path) -> Result<u64, StartError> {
        let mut survivor = recover::open(data_dir, self.cluster).await?;
        if survivor.last > self.base {
            return Err(broken(format!(
                "its log ends at {:?}, the commands begin after {:?}",
                survivor.last, self.base
            )));
        }
        let last = LogId::from(self.last);
        let header = Header::new(&self.state, Some(last), &self.membership);
        let (state, snapshots) = (self.state.clone(), Arc::new(survivor.snapshots));
        let written = tokio::task::spawn_blocking(move || snapshots.write(&state, header)).await.map_err(broken)??;
        // Only now: the log may begin where a durable snapshot ends, and never later (P9).
        survivor.log.save_committed(Some(last)).await.map_err(broken)?;
        survivor.log.purge(last).await.map_err(broken)?;
        Ok(written.size_bytes)
    }
}

#[cfg(test)]
mod tests {
    use crate::meta::test_cluster::{TestCluster, eventually, has, leader_of, link, propose_ok, quick};

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_cluster_goes_on_from_what_was_put_into_its_directories() {
        let cluster = TestCluster::new(3, quick()).await;
        let nodes = cluster.form().await;
        propose_ok(&nodes[0].meta, link("before")).await;
        let index = nodes[0].meta.status().applied;
        for node in &nodes {
            assert!(node.meta.wait_applied(index, std::time::Duration::from_secs(10)).await);
        }
        for node in nodes {
            node.stop().await;
        }
        let longest = async || {
            let mut longest = Preload::begin(cluster.dir(1), ClusterId(42)).await.unwrap();
            for id in 2..=3 {
                let other = Preload::begin(cluster.dir(id), ClusterId(42)).await.unwrap();
                if other.base > longest.base {
                    longest = other;
                }
            }
            longest
        };
        let mut preload = longest().await;
        for number in 0..1000u32 {
            assert!(!matches!(preload.apply(number.into(), link(&number.to_string())), Response::Rejected(_)));
        }
        let hash = preload.state().hash();
        for id in 1..=3 {
            preload.write(cluster.dir(id)).await.unwrap();
        }
        // A log that goes on beyond what the commands were added to is another history.
        assert!(preload.write(cluster.dir(1)).await.is_err());
        assert_eq!(longest().await.state().recompute_hash(), hash);
        let mut nodes = Vec::new();
        for id in 1..=3 {
            nodes.push(cluster.start(id).await);
        }
        eventually("one of them leads", || async { leader_of(&nodes).is_some() }).await;
        let state = nodes[1].meta.local();
        assert!(has(&state, "before") && has(&state, "999"), "it was loaded with the snapshot");
        // The leader answers; this node may apply it a moment later.
        let index = propose_ok(&nodes[1].meta, link("after")).await.index;
        eventually("all apply it", || async { nodes.iter().all(|node| node.meta.status().applied >= index) }).await;
        assert!(nodes.iter().all(|node| has(&node.meta.local(), "after")));
        let hashes: std::collections::BTreeSet<_> = nodes.iter().map(|node| node.meta.local().hash()).collect();
        assert_eq!(hashes.len(), 1);
        for node in nodes {
            node.stop().await;
        }
    }
}
