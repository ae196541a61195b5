//! Rafthold: an OCI registry that has no single point of failure.
//!
//! The modules stand in layers, low to high; a module imports only from lower ones, and `tests/it/tidy.rs` holds the
//! table. `ARCHITECTURE.md` has the map, the rules (`P1` to `P29`) that code cites, and the walks of a push and a pull.

// `json!` takes a step for each token: the status of a node is a large object.
#![recursion_limit = "256"]

// 0: pure values and the seams to the machine
pub mod disk;
pub mod env;
pub mod oci;
pub mod telemetry;
pub mod topology;

// 1: this node's own storage, and its wires
pub mod blob;
pub mod db;
pub mod rpc;

// 2: what nodes say to each other
pub mod auth;
pub mod gossip;
pub mod meta;
pub mod transfer;

// 3: copies of bytes
pub mod replica;

// 4: use cases and upkeep
pub mod registry;
pub mod upkeep;

// 5: doors
pub mod api;
pub mod ops;

// 6: composition
pub mod cli;
pub mod config;
pub mod node;
