//! The applied state as readers see it: one pointer swap per batch, so that nobody waits for `apply`.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, RwLock};

use tokio::sync::watch;

use crate::topology::Topology;

use super::State;

/// State hashes remembered, newest last; a node further behind than this is compared when it has caught up.
const HASHES_KEPT: usize = 8192;

/// The state after one log index.
#[derive(Debug, Clone)]
pub(super) struct AppliedState {
    /// The index of the last applied entry; 0 before the first.
    pub(super) index: u64,
    pub(super) state: Arc<State>,
}

/// Shared by the state machine, which writes, and everyone who reads.
#[derive(Debug)]
pub(super) struct Published {
    current: RwLock<AppliedState>,
    applied: watch::Sender<u64>,
    topology: watch::Sender<Arc<Topology>>,
    hashes: Mutex<VecDeque<(u64, u128)>>,
}

impl Published {
    pub(super) fn new(index: u64, state: State) -> Self {
        let topology = state.topology();
        let hashes = Mutex::new(VecDeque::from([(index, state.hash())]));
        Self {
            current: RwLock::new(AppliedState { index, state: Arc::new(state) }),
            applied: watch::Sender::new(index),
            topology: watch::Sender::new(topology),
            hashes,
        }
    }

    pub(super) fn current(&self) -> AppliedState {
        self.current.read().expect("no panic while held").clone()
    }

    pub(super) fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    pub(super) fn topology(&self) -> watch::Receiver<Arc<Topology>> {
        self.topology.subscribe()
    }

    /// Returns the state's hash right after `index`, if that is remembered (P8).
    pub(super) fn hash_at(&self, index: u64) -> Option<u128> {
        let hashes = self.hashes.lock().expect("no panic while held");
        let at = hashes.binary_search_by_key(&index, |(index, _)| *index).ok()?;
        Some(hashes[at].1)
    }

    /// Makes a new state the one that is read. `hashes` are those after each entry since the last call.
    pub(super) fn publish(&self, index: u64, state: Arc<State>, new_hashes: &mut Vec<(u64, u128)>) {
        {
            let mut hashes = self.hashes.lock().expect("no panic while held");
            // After a snapshot was installed the indexes may jump; they never go back but at a restart.
            hashes.extend(new_hashes.drain(..));
            let surplus = hashes.len().saturating_sub(HASHES_KEPT);
            hashes.drain(..surplus);
        }
        let topology = state.topology();
        *self.current.write().expect("no panic while held") = AppliedState { index, state };
        self.topology.send_if_modified(|current| {
            let changed = current.index != topology.index || **current != *topology;
            *current = topology;
            changed
        });
        // Last: who waits for an index reads the state next.
        self.applied.send_replace(index);
    }
}
