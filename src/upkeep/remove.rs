//! The one way in which upkeep removes files: locks, then a read index, then what may still go at it (P21).

use crate::blob::{BlobStore, DeletePermit, Item};
use crate::meta::State;

use super::Upkeep;

/// Says whether a file of so many bytes may go, by a state read after its lock was taken.
pub(super) type MayGo<'a> = &'a (dyn Fn(&Item, u64, &State) -> bool + Sync);

/// Files whose locks are held, each with its bytes.
#[derive(Debug)]
pub(super) struct Held(Vec<(DeletePermit, u64)>);

impl Held {
    /// Takes the locks of those that are not pinned and that nobody is at work on.
    pub(super) fn take(blobs: &BlobStore, items: Vec<(Item, u64)>) -> Self {
        let permit = |(item, size)| blobs.permit_delete(item).map(|permit| (permit, size));
        Self(items.into_iter().filter_map(permit).collect())
    }

    /// Deletes those that may go, and returns what went; one that the disk does not let go keeps no other. The state was
    /// asked for after the locks were taken: who wants to link one of them meanwhile must ask this node again first.
    pub(super) async fn delete(self, blobs: &BlobStore, state: &State, may_go: MayGo<'_>) -> Vec<(Item, u64)> {
        let mut removed = Vec::with_capacity(self.0.len());
        for (permit, size) in self.0 {
            let item = permit.item().clone();
            if !may_go(&item, size, state) {
                continue;
            }
            match blobs.delete(permit).await {
                Ok(()) => removed.push((item, size)),
                Err(error) => tracing::warn!(?item, %error, "file could not be removed"),
            }
        }
        removed
    }
}

impl Upkeep {
    /// Removes those of `items` that are unpinned and that `may_go`; returns what went. Without a quorum that is nothing.
    pub(super) async fn remove(&self, items: Vec<(Item, u64)>, may_go: MayGo<'_>) -> Vec<(Item, u64)> {
        let parts = &self.0.parts;
        let held = Held::take(&parts.blobs, items);
        if held.0.is_empty() {
            return Vec::new();
        }
        let view = parts.meta.confirm().await;
        if !view.fresh {
            return Vec::new();
        }
        held.delete(&parts.blobs, &view.state, may_go).await
    }
}
