//! Tests with several nodes in one process: real disks, real gRPC on loopback, wires that can be cut and frozen.

mod counting;
pub(crate) mod lab;
mod pull;
mod push;
