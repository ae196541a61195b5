//! Whole nodes in process, real HTTP and gRPC on loopback, one binary.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it says")]
#![expect(clippy::print_stderr, reason = "a failing test says what every node thinks")]

mod cluster;
mod collection;
mod conformance;
mod healing;
mod hostile;
mod locations;
mod membership;
mod support;
mod tidy;
