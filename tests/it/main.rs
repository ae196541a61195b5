//! Whole nodes in process, real HTTP and gRPC on loopback, one binary.

mod cluster;
mod conformance;
mod hostile;
mod support;
mod tidy;
