//! Moves a blob's bytes between two nodes, within limits, checked at both ends.
//!
//! Owns the set of extents that are open on this node ([`OpenExtents`]); files belong to `blob`, connections to `rpc`.
//! Invariants: every frame carries a CRC32C and is checked by whoever receives it; what a holder reports as stored is
//! synced and hashed by that holder; a call that makes no progress for [`STALL`] ends with an error; no message names a
//! path, only typed ids. Does not choose nodes (that is `replica`) and does not know what is linked (that is `meta`).
//! Start reading at `client.rs`, then `service.rs`, which answers it.

mod client;
mod error;
mod fetch;
mod open_extents;
mod receive;
mod service;
mod source;
mod throttle;
mod wire;

use std::time::Duration;

use crate::blob::ExtentPart;
use crate::topology::NodeId;

pub use client::{BlobRange, Channels, Client, FrameSource, FrameStream, Pace, Presence};
pub use error::{Error, Result};
pub use fetch::Local;
pub use open_extents::{OpenExtent, OpenExtents};
pub use service::Service;
pub use source::BlobSource;
pub use throttle::Throttle;

/// How long a call may go without progress before the peer counts as stuck (P15, P17).
pub const STALL: Duration = Duration::from_secs(2);

/// How often a node that works on a long request says that it still does.
const BEAT: Duration = Duration::from_millis(250);

/// The most bytes in one frame on the wire.
const FRAME_BYTES_MAX: usize = 1024 * 1024;

/// The largest message: a manifest body at its largest configured size, and its envelope.
const MESSAGE_BYTES_MAX: usize = 17 * 1024 * 1024;

/// The most blobs in one question for presence.
pub const PRESENCE_MAX: usize = 1_000;

/// The most extents named in one message.
const EXTENTS_MAX: usize = 10_000;

/// An extent of a session with the nodes that hold it.
#[derive(Debug, Clone)]
pub struct HeldPart {
    /// The run of the blob that the extent is.
    pub part: ExtentPart,
    /// Nodes on which it is synced.
    pub holders: Vec<NodeId>,
}
