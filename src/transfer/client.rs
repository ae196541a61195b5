//! Calls to another node's transfer service, each with a deadline on progress.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Response, Status, Streaming};

use crate::blob::{Error as BlobError, StoredExtent};
use crate::oci::{Digest, ExtentId, HashState};
use crate::rpc::proto::transfer_client::TransferClient;
use crate::rpc::proto::write_extent_request::Step;
use crate::rpc::{Lane, Peers, proto};
use crate::topology::NodeId;

use super::wire::{
    digest_to_wire, frame_from_wire, frame_to_wire, id_to_wire, part_to_wire, sized_to_wire, state_to_wire,
    stored_from_wire,
};
use super::{Error, FRAME_BYTES_MAX, HeldPart, MESSAGE_BYTES_MAX, Result, STALL};

/// Frames between the source and the connection: with the connection's own window, all that a stream keeps in memory.
const FRAMES_AHEAD: usize = 1;

/// How long a holder may take to cut and sync an extent.
const SYNC_MAX: Duration = Duration::from_secs(60);

/// How long a receiver that has shown no life is still hoped for; it counts as silent long before.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// How long a receiver that lives may stand still; it counts as slow long before.
const STANDSTILL_MAX: Duration = Duration::from_secs(60);

/// How long a question without bulk bytes may take.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// How long a peer may take to make sure of many copies: each may cost it a sync.
const CONFIRM_MAX: Duration = Duration::from_secs(20);

/// The bytes of an extent in order, as they become available; ends at the extent's end.
pub type FrameSource = BoxStream<'static, Result<Bytes, BlobError>>;

/// How a peer that receives is doing, shared with whoever may want another in its place.
#[derive(Debug, Clone, Default)]
pub struct Pace(Arc<AtomicU8>);

impl Pace {
    const SLOW: u8 = 1;
    const SILENT: u8 = 2;

    /// Whether it has taken all it was sent within the last [`STALL`], so that no other is needed in its place (P15).
    #[must_use]
    pub fn is_fine(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }

    /// Whether it has shown no life for [`STALL`].
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.0.load(Ordering::Relaxed) == Self::SILENT
    }

    fn set(&self, pace: u8) {
        self.0.store(pace, Ordering::Relaxed);
    }
}

/// Finds the connection to a peer: `rpc::Peers`, or in tests plain loopback.
pub trait Channels: Send + Sync + 'static {
    /// This node's id.
    fn me(&self) -> NodeId;
    /// The channel for bulk bytes to a peer.
    ///
    /// # Errors
    ///
    /// [`crate::rpc::Error::PeerUnknown`] if it is no member.
    fn bulk(&self, peer: NodeId) -> Result<Channel, crate::rpc::Error>;
}

impl Channels for Peers {
    fn me(&self) -> NodeId {
        Self::me(self)
    }

    fn bulk(&self, peer: NodeId) -> Result<Channel, crate::rpc::Error> {
        self.channel(peer, Lane::Bulk)
    }
}

/// A run of a blob's bytes that is asked for.
#[derive(Debug, Clone)]
pub struct BlobRange {
    /// The blob.
    pub digest: Digest,
    /// All its bytes.
    pub size: u64,
    /// Those that are wanted.
    pub range: std::ops::Range<u64>,
    /// Whether no client waits for them: the holder may let its own clients go first.
    pub in_background: bool,
}

/// Which of the blobs asked for a peer has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presence {
    /// One answer for each blob, in the order asked.
    pub present: Vec<bool>,
    /// Whether a "no" is certain (P19, P20).
    pub complete: bool,
}

/// Calls the transfer services of this node's peers; cheap to clone.
#[derive(Clone)]
pub struct Client {
    channels: Arc<dyn Channels>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    /// Builds a client on the channels of this node.
    #[must_use]
    pub fn new(channels: Arc<dyn Channels>) -> Self {
        Self { channels }
    }

    /// This node's id.
    #[must_use]
    pub fn me(&self) -> NodeId {
        self.channels.me()
    }

    fn peer(&self, node: NodeId) -> Result<TransferClient<Channel>> {
        let client = TransferClient::new(self.channels.bulk(node)?);
        Ok(client.max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// Streams one extent to a peer and returns it as it lies synced there.
    ///
    /// # Errors
    ///
    /// - [`Error::Stalled`] if the peer shows no life for 10 s or stands still for a minute. Long before, `pace` says so: the
    ///   caller finds another, and if there is none the slow one may yet do.
    /// - [`Error::NoSpace`], [`Error::Busy`] as the peer says.
    /// - [`Error::Blob`] if the source breaks off.
    ///
    /// # Cancel safety
    ///
    /// A dropped call leaves at the peer what had arrived, synced under the extent's id (P28).
    pub async fn write_extent(
        &self,
        node: NodeId,
        id: ExtentId,
        (resume, pace): (&HashState, &Pace),
        source: FrameSource,
    ) -> Result<StoredExtent> {
        let (steps, outbound) = mpsc::channel(FRAMES_AHEAD);
        let header = proto::ExtentHeader { id: id_to_wire(id), hash_state: state_to_wire(resume) };
        let _room = steps.send(write_step(Step::Header(header))).await;
        let mut peer = self.peer(node)?;
        let call = peer.write_extent(ReceiverStream::new(outbound));
        let mut replies = within(STALL, node, call).await?.into_inner();
        let sent = AtomicU64::new(0);
        let feed = feed(source, steps, &sent);
        tokio::pin!(feed);
        let mut fed = false;
        let now = Instant::now();
        let mut progress = WriteProgress { written: 0, since: now, heard: now };
        loop {
            tokio::select! {
                result = &mut feed, if !fed => {
                    result?;
                    fed = true;
                }
                reply = next_message(node, &mut replies) => {
                    let reply = match reply {
                        Err(Error::Stalled { .. }) if progress.heard.elapsed() < SILENCE_MAX => {
                            pace.set(Pace::SILENT);
                            continue;
                        }
                        reply => reply?.ok_or(Error::Unreachable { node, source: None })?,
                    };
                    if let Some(stored) = reply.stored {
                        return stored_from_wire(&stored).map_err(|_| Error::Malformed { node });
                    }
                    let still = progress.standstill(reply.written, sent.load(Ordering::Relaxed), fed);
                    pace.set(if still > STALL { Pace::SLOW } else { 0 });
                    if still > STANDSTILL_MAX {
                        return Err(Error::Stalled { node });
                    }
                }
            }
        }
    }

    /// Asks what of an extent lies synced at a peer.
    ///
    /// # Errors
    ///
    /// As the connection says.
    pub async fn extent_info(&self, node: NodeId, id: ExtentId) -> Result<Option<StoredExtent>> {
        let request = proto::ExtentInfoRequest { id: id_to_wire(id) };
        let reply = within(ANSWER_MAX, node, self.peer(node)?.extent_info(request)).await?.into_inner();
        let stored = reply.stored.as_ref().map(stored_from_wire).transpose();
        stored.map_err(|_| Error::Malformed { node })
    }

    /// Cuts a peer's extent to `length` bytes; `resume` is the session's hash state before its first byte.
    ///
    /// # Errors
    ///
    /// [`Error::NotHere`] if the peer lacks it, else as the connection says.
    pub async fn trim_extent(
        &self,
        node: NodeId,
        id: ExtentId,
        length: u64,
        resume: &HashState,
    ) -> Result<StoredExtent> {
        let request = proto::TrimExtentRequest { id: id_to_wire(id), length, hash_state: state_to_wire(resume) };
        let reply = within(SYNC_MAX, node, self.peer(node)?.trim_extent(request)).await?.into_inner();
        let stored = reply.stored.ok_or(Error::NotHere { node })?;
        stored_from_wire(&stored).map_err(|_| Error::Malformed { node })
    }

    /// Opens the first `length` bytes of an extent at a peer.
    ///
    /// # Errors
    ///
    /// [`Error::NotHere`] if the peer has fewer synced bytes of it, else as the connection says.
    pub async fn read_extent(&self, node: NodeId, id: ExtentId, length: u64) -> Result<FrameStream> {
        let request = proto::ReadExtentRequest { id: id_to_wire(id), length };
        let mut peer = self.peer(node)?;
        FrameStream::open(node, length, peer.read_extent(request)).await
    }

    /// Removes extents at a peer.
    ///
    /// # Errors
    ///
    /// As the connection says.
    pub async fn remove_extents(&self, node: NodeId, ids: &[ExtentId]) -> Result<()> {
        let request = proto::RemoveExtentsRequest { ids: ids.iter().map(|id| id_to_wire(*id)).collect() };
        within(ANSWER_MAX, node, self.peer(node)?.remove_extents(request)).await?;
        Ok(())
    }

    /// Has a peer put a blob together; on return it is verified and synced there.
    ///
    /// # Errors
    ///
    /// - [`Error::Damaged`] if the extents at the peer are not the blob.
    /// - [`Error::NotHere`] if an extent could not be had from any holder named.
    /// - [`Error::Stalled`] if the peer gives no sign of life for [`STALL`].
    pub async fn assemble(&self, node: NodeId, digest: &Digest, size: u64, parts: &[HeldPart]) -> Result<()> {
        let request = proto::AssembleRequest {
            digest: Some(digest_to_wire(digest)),
            size,
            parts: parts.iter().map(part_to_wire).collect(),
        };
        let mut peer = self.peer(node)?;
        work(node, peer.assemble(request)).await
    }

    /// Has a peer fetch a blob from the holders named; on return it is verified and synced there.
    ///
    /// # Errors
    ///
    /// As [`Client::assemble`].
    pub async fn pull_blob(&self, node: NodeId, digest: &Digest, size: u64, holders: &[NodeId]) -> Result<()> {
        let request = proto::PullBlobRequest {
            digest: Some(digest_to_wire(digest)),
            size,
            holders: holders.iter().map(|node| node.0).collect(),
        };
        let mut peer = self.peer(node)?;
        work(node, peer.pull_blob(request)).await
    }

    /// Opens a run of a blob's bytes at a peer; the first of them have arrived on return.
    ///
    /// # Errors
    ///
    /// [`Error::NotHere`] or [`Error::Damaged`] as the peer says, else as the connection says.
    pub async fn read_blob(&self, node: NodeId, wanted: &BlobRange) -> Result<FrameStream> {
        let BlobRange { digest, size, range, in_background } = wanted;
        let request = proto::ReadBlobRequest {
            digest: Some(digest_to_wire(digest)),
            size: *size,
            start: range.start,
            end: range.end,
            background: *in_background,
        };
        let mut peer = self.peer(node)?;
        FrameStream::open(node, range.end - range.start, peer.read_blob(request)).await
    }

    /// Asks a peer which of at most [`super::PRESENCE_MAX`] blobs it has; with `hold`, a "yes" lasts for longer than any
    /// command can live (P21).
    ///
    /// # Errors
    ///
    /// As the connection says.
    pub async fn has_blobs(&self, node: NodeId, blobs: &[(Digest, u64)], hold: bool) -> Result<Presence> {
        let request = proto::HasBlobsRequest { blobs: sized_to_wire(blobs), hold };
        let reply = within(ANSWER_MAX, node, self.peer(node)?.has_blobs(request)).await?.into_inner();
        if reply.present.len() != blobs.len() {
            return Err(Error::Malformed { node });
        }
        Ok(Presence { present: reply.present, complete: reply.complete })
    }

    /// Asks a peer which of at most [`super::PRESENCE_MAX`] blobs it holds verified, by the topology of `topology_index`;
    /// a "yes" lasts for longer than any command can live (P22).
    ///
    /// With another topology it confirms none; what it has not hashed lately it hashes now, and confirms later.
    ///
    /// # Errors
    ///
    /// As the connection says.
    pub async fn confirm_copies(
        &self,
        node: NodeId,
        blobs: &[(Digest, u64)],
        topology_index: u64,
    ) -> Result<Vec<bool>> {
        let request = proto::ConfirmCopiesRequest { topology_index, blobs: sized_to_wire(blobs) };
        let reply = within(CONFIRM_MAX, node, self.peer(node)?.confirm_copies(request)).await?.into_inner();
        if reply.topology_index != topology_index {
            return Ok(vec![false; blobs.len()]);
        }
        if reply.held.len() == blobs.len() { Ok(reply.held) } else { Err(Error::Malformed { node }) }
    }

    /// Stores a manifest body at a peer; synced there on return.
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`] as the peer says, else as the connection says.
    pub async fn put_body(&self, node: NodeId, digest: &Digest, body: Bytes, deadline: Duration) -> Result<()> {
        let request = proto::PutBodyRequest { digest: Some(digest_to_wire(digest)), body };
        within(deadline, node, self.peer(node)?.put_body(request)).await?;
        Ok(())
    }

    /// Tells a peer that bytes it sent as this blob were wrong.
    ///
    /// # Errors
    ///
    /// As the connection says.
    pub async fn report_damage(&self, node: NodeId, digest: &Digest, size: u64) -> Result<()> {
        let request = proto::ReportDamageRequest { digest: Some(digest_to_wire(digest)), size };
        within(ANSWER_MAX, node, self.peer(node)?.report_damage(request)).await?;
        Ok(())
    }
}

/// How far a holder is with an extent, since when, and when it last said so.
struct WriteProgress {
    written: u64,
    since: Instant,
    heard: Instant,
}

impl WriteProgress {
    /// Takes a holder's report; says for how long it has stood still although it has bytes to take.
    fn standstill(&mut self, written: u64, sent: u64, fed: bool) -> Duration {
        let now = Instant::now();
        self.heard = now;
        let has_all = written == sent;
        // With all bytes taken it waits for the client, or syncs: each is somebody else's time.
        if written > self.written || (has_all && !fed) {
            self.written = written;
            self.since = now;
        }
        if has_all && fed { (now - self.since).saturating_sub(SYNC_MAX) } else { now - self.since }
    }
}

/// Bytes that a peer sends: checked frame by frame, never more than were asked for, never silently fewer.
pub struct FrameStream {
    node: NodeId,
    frames: Streaming<proto::Frame>,
    left: u64,
    first: Option<Bytes>,
}

impl fmt::Debug for FrameStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameStream").field("node", &self.node).field("left", &self.left).finish_non_exhaustive()
    }
}

impl FrameStream {
    async fn open(
        node: NodeId,
        length: u64,
        call: impl Future<Output = Result<Response<Streaming<proto::Frame>>, Status>>,
    ) -> Result<Self> {
        let frames = within(STALL, node, call).await?.into_inner();
        let mut stream = Self { node, frames, left: length, first: None };
        // The peer's refusal comes with the first message: an open stream has delivered a byte.
        stream.first = stream.receive().await?;
        Ok(stream)
    }

    /// The peer that sends.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// The next bytes, or `None` after the last that were asked for.
    ///
    /// # Errors
    ///
    /// - [`Error::Damaged`] if a frame does not match its checksum, or the peer found its own copy damaged.
    /// - [`Error::Stalled`] after [`STALL`] without bytes; [`Error::Unreachable`] if the stream ends early.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        match self.first.take() {
            Some(bytes) => Ok(Some(bytes)),
            None => self.receive().await,
        }
    }

    async fn receive(&mut self) -> Result<Option<Bytes>> {
        let node = self.node;
        if self.left == 0 {
            return Ok(None);
        }
        let frame = next_message(node, &mut self.frames).await?.ok_or(Error::Unreachable { node, source: None })?;
        let bytes = frame_from_wire(frame).map_err(|_| Error::Damaged { node })?;
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or(Error::Malformed { node })?;
        Ok(Some(bytes))
    }
}

/// Sends the source's bytes and then the end; stops early, without an error, when nobody receives any more.
async fn feed(mut source: FrameSource, steps: mpsc::Sender<proto::WriteExtentRequest>, sent: &AtomicU64) -> Result<()> {
    let mut length = 0;
    while let Some(bytes) = source.next().await {
        let mut bytes = bytes?;
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(FRAME_BYTES_MAX));
            length += piece.len() as u64;
            if steps.send(write_step(Step::Frame(frame_to_wire(piece)))).await.is_err() {
                return Ok(()); // the peer's answer says why
            }
            sent.store(length, Ordering::Relaxed);
        }
    }
    let _gone = steps.send(write_step(Step::End(proto::ExtentEnd { length }))).await;
    Ok(())
}

const fn write_step(step: Step) -> proto::WriteExtentRequest {
    proto::WriteExtentRequest { step: Some(step) }
}

/// Waits for a peer to end a long piece of work, as long as it says that it is at it.
async fn work(
    node: NodeId,
    call: impl Future<Output = Result<Response<Streaming<proto::WorkReply>>, Status>>,
) -> Result<()> {
    let mut replies = within(STALL, node, call).await?.into_inner();
    while let Some(reply) = next_message(node, &mut replies).await? {
        if reply.done {
            return Ok(());
        }
    }
    Err(Error::Unreachable { node, source: None })
}

async fn next_message<T>(node: NodeId, stream: &mut Streaming<T>) -> Result<Option<T>> {
    let message = timeout(STALL, stream.message()).await.map_err(|_| Error::Stalled { node })?;
    message.map_err(|status| Error::from_status(node, status))
}

async fn within<T>(
    deadline: Duration,
    node: NodeId,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<Response<T>> {
    let answer = timeout(deadline, call).await.map_err(|_| Error::Stalled { node })?;
    answer.map_err(|status| Error::from_status(node, status))
}
