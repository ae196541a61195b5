//! What is known of a synced extent, kept beside it so that a restart still knows.

use std::fs::{self, File};
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::extent::StoredExtent;
use super::store::Shared;
use super::sums::Checked;
use crate::disk;
use crate::oci::{ExtentId, HashState};

const VERSION: u8 = 1;
const RECORD_BYTES_MAX: usize = 256 << 20;

/// The record of a synced extent. Written after the bytes are synced, so its being there says that they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ExtentRecord {
    pub(super) id: ExtentId,
    /// Bytes that count; the file may be longer after a crash during a trim.
    pub(super) length: u64,
    /// State of the session's hash after the last byte.
    pub(super) hash_state: HashState,
    /// Whether the session's hash began with this extent.
    pub(super) first: bool,
    /// States of the session's hash after each full 4 MiB of the extent.
    pub(super) checkpoints: Vec<HashState>,
    /// CRC32C of each 256 KiB of the extent; the last may be short.
    pub(super) sums: Vec<u32>,
}

impl ExtentRecord {
    pub(super) fn encode(&self) -> Vec<u8> {
        let record = postcard::to_stdvec(&(VERSION, self)).expect("plain values encode");
        let mut framed = Vec::with_capacity(record.len() + disk::FRAME_HEADER_BYTES);
        disk::encode_frame(&mut framed, &record);
        framed
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (record, _) = disk::decode_frame(bytes, RECORD_BYTES_MAX).ok()?;
        let (version, record): (u8, Self) = postcard::from_bytes(record).ok()?;
        (version == VERSION).then_some(record)
    }

    pub(super) fn stored(&self) -> StoredExtent {
        StoredExtent { id: self.id, length: self.length, hash_state: self.hash_state.clone() }
    }
}

impl Shared {
    /// Opens a synced extent; `None` if it is not here, not synced, or its record is damaged.
    pub(super) fn open_extent(&self, id: ExtentId) -> Result<Option<(ExtentRecord, File)>> {
        let path = self.layout.record(id);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::Io { doing: "read", path, source }),
        };
        let Some(record) = ExtentRecord::decode(&bytes).filter(|record| record.id == id) else {
            tracing::warn!(path = %path.display(), "record of an extent is damaged, the extent does not count");
            return Ok(None);
        };
        let path = self.layout.extent(id);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::Io { doing: "open", path, source }),
        };
        let length = file.metadata().map_err(|source| Error::Io { doing: "look at", path, source })?.len();
        Ok((length >= record.length).then_some((record, file)))
    }

    /// The same with every block checked before it is read.
    pub(super) fn open_extent_checked(&self, id: ExtentId) -> Result<Option<(ExtentRecord, Checked)>> {
        let opened = self.open_extent(id)?;
        Ok(opened.map(|(record, file)| {
            let checked = Checked::new(Arc::new(file), record.length, record.sums.clone());
            (record, checked)
        }))
    }
}
