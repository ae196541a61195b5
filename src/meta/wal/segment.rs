//! Segment files: made whole before they have their name, sealed to their true length.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::{self, rename_durable, sync_dir};

use super::record::{Checkpoint, Records, decode_batch};
use super::segment_path;

/// The segment being written.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) path: PathBuf,
    pub(super) file: Arc<File>,
    /// Where the next batch goes.
    pub(super) end: u64,
    /// Bytes preallocated.
    pub(super) capacity: u64,
    /// Offset up to which everything is synced.
    pub(super) durable: u64,
    /// The durable offset that the last written batch says.
    pub(super) announced: u64,
    /// The highest index of an entry written in it.
    pub(super) index_max: Option<u64>,
}

impl Segment {
    /// Makes segment `number`, preallocated, beginning with `checkpoint`; it and its name are durable on return.
    pub(super) fn create(dir: &Path, number: u64, capacity: u64, checkpoint: &Checkpoint) -> io::Result<Self> {
        let path = segment_path(dir, number);
        let beside = path.with_extension("new");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&beside)?;
        preallocate(&file, capacity)?;
        let mut records = Records::default();
        records.checkpoint(checkpoint);
        let batch = records.into_batch(number, 0, 0);
        disk::write_all_at(&file, &beside, &batch, 0)?;
        file.sync_all()?;
        rename_durable(&beside, &path)?;
        let end = batch.len() as u64;
        Ok(Self { number, path, file: Arc::new(file), end, capacity, durable: end, announced: 0, index_max: None })
    }

    /// Opens the last segment after recovery: what is kept is written and synced once more, everything after `end` zeroed.
    ///
    /// What was read may lie in memory only: after a failed sync the kernel keeps the pages and calls them clean, and a sync
    /// of clean pages does nothing.
    ///
    /// What is zeroed are bytes of batches that were never durable; left in place they could later pass for batches written
    /// after them. The space stays taken: a node must be able to start while the disk is full.
    pub(super) fn reopen(dir: &Path, number: u64, end: u64, capacity: u64) -> io::Result<Self> {
        let path = segment_path(dir, number);
        let file = File::options().read(true).write(true).open(&path)?;
        let kept = read_kept(&file, number, end)?;
        erase(&file, end)?;
        file.write_all_at(&kept, 0)?;
        let length = file.metadata()?.len();
        let capacity = match preallocate(&file, capacity.max(length)) {
            Ok(()) => capacity.max(length),
            // The next batch that does not fit will wait for space.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => length,
            Err(error) => return Err(error),
        };
        file.sync_all()?;
        Ok(Self { number, path, file: Arc::new(file), end, capacity, durable: end, announced: 0, index_max: None })
    }

    /// Cuts the segment to its true length and syncs it; nothing is written to it any more.
    pub(super) fn seal(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        self.file.set_len(self.end)?;
        self.file.sync_all()?;
        self.durable = self.end;
        Ok(())
    }
}

/// Reads what recovery kept, and checks that it still is what recovery read.
fn read_kept(file: &File, number: u64, end: u64) -> io::Result<Vec<u8>> {
    let mut kept = vec![0; usize::try_from(end).map_err(io::Error::other)?];
    file.read_exact_at(&mut kept, 0)?;
    let mut offset = 0;
    while offset < end {
        let batch = decode_batch(&kept, number, offset).map_err(|_| {
            let text = format!("log segment {number} read differently at offset {offset} than a moment before");
            io::Error::new(io::ErrorKind::InvalidData, text)
        })?;
        offset += batch.length;
    }
    Ok(kept)
}

/// Makes whatever follows `end` read as zeros, on disk too where the filesystem can say so; else overwrites what is not zero.
fn erase(file: &File, end: u64) -> io::Result<()> {
    let length = file.metadata()?.len();
    if end >= length {
        return Ok(());
    }
    if rustix::fs::fallocate(file, rustix::fs::FallocateFlags::ZERO_RANGE, end, length - end).is_ok() {
        return Ok(());
    }
    let mut block = vec![0; 1 << 16];
    let mut offset = end;
    while offset < length {
        let wanted = usize::try_from(length - offset).unwrap_or(usize::MAX).min(block.len());
        let block = &mut block[..wanted];
        file.read_exact_at(block, offset)?;
        if block.iter().any(|byte| *byte != 0) {
            block.fill(0);
            file.write_all_at(block, offset)?;
        }
        offset += wanted as u64;
    }
    Ok(())
}

/// Takes disk space now, so that writing later does not fail for want of it; where the filesystem cannot, only the length
/// is set.
fn preallocate(file: &File, capacity: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, capacity) {
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
            let length = file.metadata()?.len();
            if length < capacity { file.set_len(capacity) } else { Ok(()) }
        }
        other => Ok(other?),
    }
}

/// Lists the segments in order of number, after removing half-made ones.
pub(super) fn list(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let (segments, half_made) = find(dir)?;
    for path in &half_made {
        fs::remove_file(path)?;
    }
    if !half_made.is_empty() {
        sync_dir(dir)?;
    }
    Ok(segments)
}

/// Segments by number, and those that were never finished.
type Found = (Vec<(u64, PathBuf)>, Vec<PathBuf>);

/// Finds the segments in order of number, and those that were never finished.
pub(super) fn find(dir: &Path) -> io::Result<Found> {
    let (mut segments, mut half_made) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("wal") => {
                if let Some(number) = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok())
                {
                    segments.push((number, path));
                }
            }
            Some("new") => half_made.push(path),
            _ => {}
        }
    }
    segments.sort();
    Ok((segments, half_made))
}
