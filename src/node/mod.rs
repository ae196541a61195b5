//! Builds every part in order, watches the tasks, stops them in reverse.
#![allow(dead_code, reason = "wired as the parts land")]
mod door;
mod tasks;

/// How a node's life ended.
#[derive(Debug)]
pub enum Outcome {
    /// A signal asked for it.
    Stopped,
    /// A critical task ended or panicked; the log says which.
    Ended,
    /// It never came to life.
    Unusable(StartError),
}

/// Says why a node could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// x
    #[error("x")]
    X,
}

impl StartError {
    /// Whether the configuration is to blame.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        false
    }
}

/// Runs.
pub async fn run(config: crate::config::Config, stop_with_parent: bool) -> Outcome {
    let _ = (config, stop_with_parent);
    Outcome::Stopped
}
