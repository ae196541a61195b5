//! Writes files so that they survive a power cut, and frames records with checksums.
//!
//! Owns nothing. Everything here blocks: async callers go through `spawn_blocking`, the log through a thread of its own.
//! Invariant: after a `*_durable` call returns `Ok`, a power cut cannot take back what it did. A failed sync is final: the
//! kernel has marked the pages clean, so nobody may try again on the same file (RELIABILITY: fsync errors).
//! The only place that may rename. Start reading at `durable.rs`.

mod durable;
pub(crate) mod faults;
mod file;
mod frame;
mod reserve;
mod space;

pub use durable::{create_dir_durable, remove_durable, rename, rename_durable, sync_dir, write_durable};
pub use file::{create_new, forget_cached, link, read_exact_at, sync_file, write_all_at};
pub use frame::{FRAME_HEADER_BYTES, FrameError, decode_frame, encode_frame};
pub use reserve::Reserve;
pub use space::{DirLock, Space, free_space, lock_dir};
