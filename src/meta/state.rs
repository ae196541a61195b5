//! The agreed state (skeleton; see `tables.rs` to come).

/// The agreed state at one log index; cloning shares structure.
#[derive(Debug, Clone, Default)]
pub struct State {}
