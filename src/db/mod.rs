//! Keeps this node's rebuildable index in sled: blobs and their last check, extents, queues, cursors; sets a bad one aside.
//!
//! Owns `index/` in the data directory: sled's files, `format` (the version of the entries) and `clean` (there only
//! between an orderly stop and the next start). Invariants:
//!
//! - Nothing is kept only here. sled 0.34 loses flushed data in a power cut and panics on a damaged file, so every call
//!   into it is guarded: an index that fails is set aside (`index.bad-<n>`, the newest one is kept), an empty one takes its
//!   place, and [`Db::generation`] moves so that the owner of the entries rebuilds them. Callers see no errors, only an
//!   index that is empty again.
//! - If not even an empty one can be opened (full or read-only disk), entries are kept in memory until the next start.
//! - Values are at most [`VALUE_BYTES_MAX`]: sled puts large nodes into files that it never syncs.
//! - sled is named only in `engine.rs`.
//!
//! Does not know what the entries mean. All calls block, for microseconds as a rule. Start reading at `store.rs`.

mod engine;
mod store;

#[cfg(test)]
mod tests;

pub use store::{Batch, Db, Table, VALUE_BYTES_MAX};
