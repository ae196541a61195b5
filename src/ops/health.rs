//! Whether a node lives and whether it should be sent requests.

use std::sync::Arc;

use tokio::sync::watch;

/// Where a node is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Not ready yet; the text says what is waited for.
    Starting(&'static str),
    /// Ready.
    Serving,
    /// On its way out: requests that are open may finish.
    Stopping,
}

/// A node's stage; cheap to clone.
#[derive(Debug, Clone)]
pub struct Health(Arc<watch::Sender<Stage>>);

impl Default for Health {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Stage::Starting("start"))))
    }
}

impl Health {
    /// Moves on to `stage`; who is stopping never becomes ready again.
    pub fn set(&self, stage: Stage) {
        self.0.send_if_modified(|now| {
            let moves = *now != Stage::Stopping && *now != stage;
            if moves {
                *now = stage;
            }
            moves
        });
    }

    /// Returns the stage.
    #[must_use]
    pub fn stage(&self) -> Stage {
        *self.0.borrow()
    }

    /// Waits until the node is ready.
    pub async fn ready(&self) {
        // the sender lives as long as `self`
        self.0.subscribe().wait_for(|stage| *stage == Stage::Serving).await.ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopping_node_never_becomes_ready_again() {
        let health = Health::default();
        health.set(Stage::Serving);
        health.set(Stage::Stopping);
        health.set(Stage::Serving);
        assert_eq!(health.stage(), Stage::Stopping);
    }
}
