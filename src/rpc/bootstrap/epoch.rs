//! A cluster that begins by an operator's word, and one that went on without this node.

use std::time::Duration;

use super::decide::{Heard, SeedState, Stage};
use super::{Bootstrap, Error, FIRST_EPOCH, Identity, NodeFile, NodeUri, Result, blocking};
use crate::topology::{ClusterId, NodeId};

/// How often a node without a leader asks its seeds under which epoch they are.
const ASK_EVERY: Duration = Duration::from_secs(5);

impl Bootstrap {
    /// Makes this node the first of a new cluster, by an operator's word; the next start forms it.
    ///
    /// # Errors
    ///
    /// - [`Error::MemberAlready`] or [`Error::PromisedAlready`] if it belongs to a cluster or has promised to.
    /// - [`Error::SeedInCluster`] if a seed in reach belongs to one.
    /// - [`Error::File`] if the identity could not be made durable.
    pub async fn init(&self) -> Result<Identity> {
        let inner = &self.inner;
        {
            let place = inner.place.lock().await;
            if let Some(file) = &place.identity {
                return Err(Error::MemberAlready { cluster: file.cluster, node: file.node });
            }
            if let Some(promise) = &place.promise {
                return Err(Error::PromisedAlready { cluster: promise.cluster });
            }
        }
        for (seed, heard) in inner.ask_all().await {
            if let Heard::Said(SeedState { stage: Stage::Formed { cluster } | Stage::Forming { cluster }, .. }) = heard
            {
                return Err(Error::SeedInCluster { seed, cluster });
            }
        }
        let dir = inner.dir.clone();
        let key = blocking(move || dir.key()).await?;
        let cluster = ClusterId(inner.env.seed.draw_u128());
        let identity = Identity::found(&inner.env, NodeUri { cluster, epoch: FIRST_EPOCH, node: NodeId(1) }, key)?;
        inner.settle(&identity, NodeFile::new(&identity, Some(1), Vec::new())).await?;
        Ok(identity)
    }

    /// Asks the seeds, while `is_alone` says that this node knows no leader, whether the cluster went on under a later
    /// epoch; ends only if so, and then the node must stop: nobody of that epoch will ever speak to it.
    ///
    /// # Errors
    ///
    /// [`Error::Fenced`], always.
    pub async fn watch_epoch(self, is_alone: impl Fn() -> bool + Send) -> Result<()> {
        loop {
            tokio::time::sleep(ASK_EVERY).await;
            let Some(identity) = self.inner.credentials.identity().filter(|_| is_alone()) else { continue };
            for (_, heard) in self.inner.ask_all().await {
                let Heard::Said(SeedState { stage, epoch, .. }) = heard else { continue };
                let (Stage::Formed { cluster } | Stage::Forming { cluster }) = stage else { continue };
                if cluster == identity.cluster() && epoch > identity.epoch() {
                    return Err(Error::Fenced { cluster, epoch, own: identity.epoch() });
                }
            }
        }
    }
}
