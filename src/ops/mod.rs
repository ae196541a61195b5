//! Shows health, status and metrics and carries out operators' commands.

pub mod client;
