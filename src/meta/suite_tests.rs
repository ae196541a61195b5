//! The real log store and state machine pass openraft's storage suite, in a real directory.

use std::sync::Arc;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use crate::topology::ClusterId;

use super::log_memory::CacheLimits;
use super::log_space::LogSpace;
use super::log_store::{LogLimits, LogStore};
use super::snapshot::SnapshotDir;
use super::state_machine::StateMachine;
use super::types::TypeConfig;

struct Builder {
    cache: CacheLimits,
}

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let limits = LogLimits { segment_bytes: 64 << 10, cache: self.cache };
        let space = Arc::new(LogSpace::open(dir.path(), 0));
        let log = LogStore::open(&dir.path().join("raft"), limits, &space, |_| {}).unwrap();
        let (snapshots, loaded) = SnapshotDir::open(&dir.path().join("snapshots"), ClusterId(7)).unwrap();
        let mut machine = StateMachine::new(ClusterId(7), Arc::new(snapshots), loaded);
        machine.may_jump = true;
        Ok((dir, log, machine))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_passes_the_storage_suite() {
    Suite::test_all(Builder { cache: CacheLimits { entries: 4096, bytes: 1 << 20 } }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_passes_the_storage_suite_when_every_entry_is_read_from_disk() {
    Suite::test_all(Builder { cache: CacheLimits { entries: 0, bytes: 0 } }).await.unwrap();
}
