//! Says which nodes exist, where they stand, and which of them should hold a given blob.
//!
//! Owns nothing: a [`Topology`] is a value of the agreed state at one log index, so placement is the same on every node.
//! Does not know who is alive (that is `gossip`). Start reading at `placement.rs`.

mod distance;
mod node;
mod placement;
#[cfg(test)]
mod placement_tests;
mod policy;
#[cfg(test)]
pub(crate) mod testing;

pub use distance::{Distance, distance, nearest_first};
pub use node::{ClusterId, NodeId, NodeRecord, NodeState, Region, Topology, Zone};
pub use placement::{placement, placement_order};
pub use policy::{Policy, PolicyError};
