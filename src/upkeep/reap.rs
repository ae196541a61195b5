//! Extents that no open session lists any more are removed, by the one deletion rule (P21).

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::blob::Item;
use crate::oci::ExtentId;

use super::Upkeep;

/// Extents removed in one go.
const REAPED_MAX: usize = 256;

impl Upkeep {
    /// Looks now and then for extents on this disk that no session lists, and removes them after the grace. Never ends.
    ///
    /// The grace begins when this process first saw the extent unlisted and closed, so after a start nothing is removed
    /// for one grace. Before the removal the agreed state is asked again, at a read index asked for then.
    pub async fn reap(self) {
        let mut ticks = interval(self.0.config.reap_every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut unlisted = Unlisted::default();
        loop {
            ticks.tick().await;
            if let Err(error) = self.reap_once(&mut unlisted).await {
                tracing::warn!(%error, "extents could not be reaped");
            }
        }
    }

    async fn reap_once(&self, unlisted: &mut Unlisted) -> Result<(), crate::blob::Error> {
        let parts = &self.0.parts;
        let here = parts.blobs.list_extents().await?;
        let state = parts.meta.local();
        let unused = here.into_iter().filter(|id| !parts.replicas.is_open(*id) && !state.extent_is_listed(*id));
        let old = unlisted.update(unused, Instant::now(), self.0.config.reap_grace);
        if old.is_empty() {
            return Ok(());
        }
        let mut permits = Vec::new();
        for id in old.into_iter().take(REAPED_MAX) {
            permits.extend(parts.blobs.permit_delete(Item::Extent(id)).await.map(|permit| (id, permit)));
        }
        if permits.is_empty() {
            return Ok(());
        }
        // Asked for with the locks held: who wants to list one of these now must ask this node again first.
        let view = parts.meta.confirm().await;
        if !view.fresh {
            return Ok(());
        }
        permits.retain(|(id, _)| !view.state.extent_is_listed(*id) && !parts.replicas.is_open(*id));
        tracing::info!(extents = permits.len(), "removing extents that no session lists");
        for (_, permit) in permits {
            parts.blobs.delete(permit).await?;
        }
        Ok(())
    }
}

/// Since when extents have been seen unlisted.
#[derive(Debug, Default)]
struct Unlisted(BTreeMap<ExtentId, Instant>);

impl Unlisted {
    /// Takes all that are unlisted now and returns those that have been for longer than `grace`.
    fn update(&mut self, unused: impl Iterator<Item = ExtentId>, now: Instant, grace: Duration) -> Vec<ExtentId> {
        let mut since = BTreeMap::new();
        for id in unused {
            since.insert(id, self.0.get(&id).copied().unwrap_or(now));
        }
        self.0 = since;
        self.0.iter().filter(|(_, since)| now - **since >= grace).map(|(id, _)| *id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stays_unlisted_for_the_whole_grace_is_old() {
        let mut unlisted = Unlisted::default();
        let id = ExtentId::from_random;
        let (start, grace) = (Instant::now(), Duration::from_secs(10));
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(unlisted.update([id(1), id(2)].into_iter(), at(0), grace).is_empty());
        // The second was listed or open for a moment: its grace begins anew.
        assert!(unlisted.update([id(1)].into_iter(), at(5), grace).is_empty());
        assert_eq!(unlisted.update([id(1), id(2)].into_iter(), at(10), grace), [id(1)]);
        assert_eq!(unlisted.update([id(2)].into_iter(), at(20), grace), [id(2)]);
    }
}
