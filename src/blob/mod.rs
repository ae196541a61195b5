//! Stores and serves immutable bytes by digest on this node, and nothing unverified.
//!
//! Owns `blobs/`, `sums/`, `extents/`, `tmp/` and `quarantine/` of the data directory (drawn in `layout.rs`), and two
//! tables of the index. Invariants:
//!
//! - A name in `blobs/` is a promise: the bytes were hashed by this node, they and the name are synced. Whoever answers
//!   "stored" or "I hold it" does so after the directory sync, under the digest's lock, and pins the file (P21).
//! - No byte leaves before its block was checked (P16), nor under a size other than the agreed one (P20).
//! - Serving asks the filesystem. The index is a hint for counts, listings and scrub; it is rebuilt from the disk.
//! - An extent counts only with its record, which is written after its bytes are synced (P24).
//! - A failed write or sync is final for its file: the file goes, the disk is suspect, nothing is half there. A full disk
//!   refuses and heals by itself.
//! - Memory is a few batches of 256 KiB per stream, whatever the blob's size.
//!
//! Does not know repositories, sessions, other nodes or who may read what; never decides that something is unlinked.
//! Start reading at `layout.rs`, then `extent.rs` and `commit.rs` (in), `reader.rs` (out), `walk.rs` (background).

mod absence;
mod commit;
mod config;
mod delete;
mod error;
mod extent;
mod follow;
mod hot;
mod index;
mod inspect;
mod layout;
mod locks;
mod metrics;
mod pump;
mod quarantine;
mod reader;
mod record;
mod sink;
mod space;
mod store;
mod sums;
mod trim;
mod verify;
mod walk;
mod writer;

#[cfg(test)]
mod tests;

pub use commit::ExtentPart;
pub use config::{Config, ConfigError};
pub use delete::DeletePermit;
pub use error::{Error, Result};
pub use extent::{ExtentWriter, Progress, StoredExtent};
pub use follow::ExtentFollower;
pub use index::BlobEntry;
pub use inspect::{Flaw, Inspection, Inspector};
pub use locks::Item;
pub use reader::BlobReader;
pub use store::{BlobStore, Event, Usage};
pub use verify::{Rate, Verdict};
pub use writer::BlobWriter;

/// Bytes under one CRC32C in a sidecar (P16); reads are checked in these units.
pub const BLOCK_BYTES: u64 = 256 * 1024;
