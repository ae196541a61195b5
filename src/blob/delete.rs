//! The one way in which a file is deleted (P21).

use std::sync::Arc;

use super::error::{Error, Result};
use super::locks::{Held, Item};
use super::store::{BlobStore, Event, blocking, remove_quietly};
use crate::disk;

/// The right to delete one file: its lock is held, it is not pinned. Dropped, it gives the lock back.
#[derive(Debug)]
pub struct DeletePermit {
    held: Held,
}

impl DeletePermit {
    /// What may be deleted.
    #[must_use]
    pub fn item(&self) -> &Item {
        self.held.item()
    }
}

impl BlobStore {
    /// Takes the lock of a blob or extent in order to delete it; `None` if that may not be now.
    ///
    /// That is: this node said "I hold it" within the last pin period, the process has not run for one yet, or somebody is at
    /// work on it right now (who holds many permits must not wait for a long copy). While the permit is held this node cannot
    /// say so anew. The caller then asks for a read index, waits until it is applied, and
    /// calls [`Self::delete`] only if the item is unlinked there (an extent: listed by no open session).
    pub fn permit_delete(&self, item: Item) -> Option<DeletePermit> {
        // Asked twice: the cheap refusal needs no lock, the one that counts does.
        if !self.shared.pins.allow_delete(&item) {
            return None;
        }
        let held = self.shared.locks.try_lock(item)?;
        let idle = match held.item() {
            Item::Extent(id) => !self.shared.active().contains_key(id),
            Item::Blob(_) => true,
        };
        (idle && self.shared.pins.allow_delete(held.item())).then_some(DeletePermit { held })
    }

    /// Deletes what the permit is for; one that is not here counts as deleted.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the file cannot be removed.
    pub async fn delete(&self, permit: DeletePermit) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            let held = permit.held;
            match held.item() {
                Item::Extent(id) => shared.remove_extent(&held, *id),
                Item::Blob(digest) => {
                    let path = shared.layout.blob(digest);
                    let there = path.exists();
                    shared.hot.remove(digest);
                    disk::remove_durable(&path).map_err(|source| Error::Io { doing: "remove", path, source })?;
                    // Sums without a blob mean nothing; a blob without sums would be hashed whole.
                    remove_quietly(&shared.layout.sums(digest));
                    shared.index.remove_blob(digest);
                    if there {
                        shared.emit(Event::Removed { digest: digest.clone() });
                    }
                }
            }
            Ok(())
        })
        .await
    }
}
