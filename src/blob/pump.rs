//! Feeds a [`Sink`] from async code: small frames are gathered, one batch is written while the next one arrives.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::error::{Error, Result};
use super::sink::Sink;
use super::store::joined;

// One hop to a blocking thread per batch; at most two batches of a stream are in memory.
const BATCH_BYTES: usize = 256 * 1024;
// Frames below this are copied together: each would pin a buffer that may be larger than itself.
const SMALL_BYTES: usize = 32 * 1024;

#[derive(Debug)]
pub(super) struct Pump {
    batches: Arc<Semaphore>,
    waiting: Vec<Bytes>,
    small: BytesMut,
    waiting_bytes: usize,
    // Neither: a write has failed and the file is gone.
    idle: Option<Box<Sink>>,
    busy: Option<JoinHandle<Result<Box<Sink>>>>,
}

impl Pump {
    pub(super) fn new(sink: Sink) -> Self {
        let batches = sink.batches();
        Self {
            batches,
            waiting: Vec::new(),
            small: BytesMut::new(),
            waiting_bytes: 0,
            idle: Some(Box::new(sink)),
            busy: None,
        }
    }

    /// Takes bytes; waits while an earlier batch is still being written. May be dropped and called again.
    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<()> {
        if self.waiting_bytes >= BATCH_BYTES {
            self.turn().await?;
        }
        self.waiting_bytes += bytes.len();
        if bytes.len() < SMALL_BYTES {
            if self.small.is_empty() && self.busy.is_some() {
                self.small.reserve(BATCH_BYTES);
            }
            self.small.extend_from_slice(&bytes);
        } else {
            self.gather_small();
            self.waiting.push(bytes);
        }
        if self.waiting_bytes >= BATCH_BYTES {
            self.turn().await?;
        }
        Ok(())
    }

    fn gather_small(&mut self) {
        if !self.small.is_empty() {
            self.waiting.push(self.small.split().freeze());
        }
    }

    // Cancel-safe: what waits is handed over only after the batch before it came back.
    async fn turn(&mut self) -> Result<()> {
        self.settle().await?;
        let permit = Arc::clone(&self.batches).acquire_owned().await.map_err(|_| Error::Stopped)?;
        let mut sink = self.idle.take().ok_or(Error::Ended)?;
        self.gather_small();
        let pieces = std::mem::take(&mut self.waiting);
        self.waiting_bytes = 0;
        self.busy = Some(tokio::task::spawn_blocking(move || {
            let _permit = permit;
            match sink.write(&pieces) {
                Ok(()) => Ok(sink),
                Err(error) => {
                    sink.discard();
                    Err(error)
                }
            }
        }));
        Ok(())
    }

    async fn settle(&mut self) -> Result<()> {
        if let Some(busy) = &mut self.busy {
            let outcome = busy.await;
            self.busy = None;
            self.idle = Some(joined(outcome)?);
        }
        Ok(())
    }

    /// Writes out what waits, so that followers see it.
    pub(super) async fn flush(&mut self) -> Result<()> {
        if self.waiting_bytes > 0 {
            self.turn().await?;
        }
        self.settle().await
    }

    /// Writes out what waits and gives back the sink.
    pub(super) async fn take(&mut self) -> Result<Box<Sink>> {
        self.flush().await?;
        self.idle.take().ok_or(Error::Ended)
    }
}
