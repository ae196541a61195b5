//! The extents that somebody on this node is writing right now.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use crate::oci::ExtentId;

/// The extents being written on this node, by clients or by peers: nobody else may write, read or remove them.
#[derive(Debug, Clone)]
pub struct OpenExtents(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    ids: Mutex<BTreeSet<ExtentId>>,
    /// Counts closings; waiters look again at each.
    closed: watch::Sender<u64>,
}

/// Keeps an extent in the set until dropped.
#[derive(Debug)]
pub struct OpenExtent {
    set: OpenExtents,
    id: ExtentId,
}

impl Default for OpenExtents {
    fn default() -> Self {
        Self(Arc::new(Inner { ids: Mutex::default(), closed: watch::Sender::new(0) }))
    }
}

impl OpenExtents {
    /// Takes an extent for writing, or `None` if somebody has it already.
    #[must_use]
    pub fn open(&self, id: ExtentId) -> Option<OpenExtent> {
        let fresh = self.ids().insert(id);
        fresh.then(|| OpenExtent { set: self.clone(), id })
    }

    /// Whether somebody is writing the extent.
    #[must_use]
    pub fn contains(&self, id: ExtentId) -> bool {
        self.ids().contains(&id)
    }

    fn ids(&self) -> std::sync::MutexGuard<'_, BTreeSet<ExtentId>> {
        self.0.ids.lock().expect("no panic under this lock")
    }

    /// Waits until nobody is writing the extent.
    pub async fn closed(&self, id: ExtentId) {
        let mut closings = self.0.closed.subscribe();
        while self.contains(id) {
            if closings.changed().await.is_err() {
                return;
            }
        }
    }
}

impl Drop for OpenExtent {
    fn drop(&mut self) {
        self.set.ids().remove(&self.id);
        self.set.0.closed.send_modify(|count| *count = count.wrapping_add(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_open_extent_is_taken_once_and_its_closing_wakes_who_waits() {
        let set = OpenExtents::default();
        let id = ExtentId::from_random(1);
        let guard = set.open(id).unwrap();
        assert!(set.open(id).is_none());
        let waiter = set.clone();
        let wait = async move { waiter.closed(id).await };
        let ((), ()) = tokio::join!(wait, async {
            tokio::task::yield_now().await;
            drop(guard);
        });
        assert!(set.open(id).is_some());
    }
}
