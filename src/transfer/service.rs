//! Answers other nodes' calls for bytes.

use std::fmt;
use std::sync::Arc;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::blob::{BlobReader, BlobStore, Error as BlobError, ExtentFollower, Verdict};
use crate::env::{BoxFuture, Env};
use crate::oci::{Digest, ExtentId, HashState};
use crate::rpc::proto::transfer_server::{Transfer, TransferServer};
use crate::rpc::proto::write_extent_request;
use crate::rpc::{peer, proto};
use crate::topology::{NodeId, Topology};

use super::fetch::Local;
use super::receive::{Broken, Received, Step, receive, while_beating};
use super::wire::{
    Malformed, digest_from_wire, frame_from_wire, frame_to_wire, id_from_wire, ids_from_wire, parts_from_wire,
    sized_from_wire, state_from_wire, stored_to_wire,
};
use super::{BlobSource, Error, MESSAGE_BYTES_MAX, STALL, Throttle};

/// Long calls of a kind that this node answers at once; beyond it peers are sent elsewhere. Those that read never wait for
/// those that write: what is put together at one node is read at others.
const CALLS_MAX: usize = 256;

/// How fast copies are hashed again for others that want to be sure of them.
const CHECK_BYTES_PER_SECOND: u64 = 64 << 20;

/// Replies that may wait for a slow connection.
const REPLIES_AHEAD: usize = 4;

/// The transfer service of this node.
#[derive(Clone)]
pub struct Service {
    local: Local,
    env: Env,
    reads: Arc<Semaphore>,
    writes: Arc<Semaphore>,
    /// One round of checks for others at a time.
    checks: Arc<Semaphore>,
    topology: watch::Receiver<Arc<Topology>>,
    /// Holds back what no client waits for.
    throttle: Option<Arc<dyn Throttle>>,
    /// Makes this node send wrong bytes under right checksums.
    #[cfg(test)]
    lies: bool,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").finish_non_exhaustive()
    }
}

type Replies<T> = BoxStream<'static, Result<T, Status>>;
type Answer<T> = Result<Response<T>, Status>;

impl Service {
    /// Builds the service on this node's disk; `topology` is the agreed one as far as it is applied here.
    #[must_use]
    pub fn new(local: Local, env: Env, topology: watch::Receiver<Arc<Topology>>) -> Self {
        Self {
            local,
            env,
            topology,
            checks: Arc::new(Semaphore::new(1)),
            reads: Arc::new(Semaphore::new(CALLS_MAX)),
            writes: Arc::new(Semaphore::new(CALLS_MAX)),
            throttle: None,
            #[cfg(test)]
            lies: false,
        }
    }

    /// Holds back, by `throttle`, bytes that no client waits for.
    #[must_use]
    pub fn throttled(self, throttle: Arc<dyn Throttle>) -> Self {
        Self { throttle: Some(throttle), ..self }
    }

    /// A service that sends wrong bytes under right checksums.
    #[cfg(test)]
    pub(crate) fn lying(self) -> Self {
        Self { lies: true, ..self }
    }

    /// Wraps it for a tonic server, with its message limits.
    #[must_use]
    pub fn into_server(self) -> TransferServer<Self> {
        TransferServer::new(self)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    const fn blobs(&self) -> &BlobStore {
        &self.local.blobs
    }

    fn topology_index(&self) -> u64 {
        self.topology.borrow().index
    }

    /// Hashes copies again that others want to rely on, unless it is at that already.
    fn check_later(&self, copies: Vec<(Digest, u64)>) {
        if copies.is_empty() {
            return;
        }
        let Ok(permit) = Arc::clone(&self.checks).try_acquire_owned() else { return };
        let blobs = self.blobs().clone();
        let check = async move {
            for (digest, size) in copies {
                if let Err(error) = blobs.verify(&digest, size, Some(&|| CHECK_BYTES_PER_SECOND)).await {
                    tracing::warn!(%digest, %error, "copy could not be checked");
                }
            }
            drop(permit);
        };
        self.env.spawner.spawn("check copies", Box::pin(check));
    }

    /// Runs `task` beyond the call and beats until it ends.
    fn work(
        &self,
        name: &'static str,
        task: BoxFuture<'static, Result<(), Error>>,
    ) -> Answer<Replies<proto::WorkReply>> {
        let permit = begin(&self.writes)?;
        let (replies, outbound) = mpsc::channel(REPLIES_AHEAD);
        let beats = replies.clone();
        let work = async move {
            let beat = || drop(beats.try_send(Ok(proto::WorkReply { done: false })));
            let result = while_beating(task, beat).await;
            let _gone = replies.send(result.map(|()| proto::WorkReply { done: true }).map_err(status)).await;
            drop(permit);
        };
        self.env.spawner.spawn(name, Box::pin(work));
        Ok(Response::new(ReceiverStream::new(outbound).boxed()))
    }
}

#[tonic::async_trait]
impl Transfer for Service {
    type WriteExtentStream = Replies<proto::WriteExtentReply>;
    type ReadExtentStream = Replies<proto::Frame>;
    type AssembleStream = Replies<proto::WorkReply>;
    type PullBlobStream = Replies<proto::WorkReply>;
    type ReadBlobStream = Replies<proto::Frame>;

    async fn write_extent(
        &self,
        request: Request<Streaming<proto::WriteExtentRequest>>,
    ) -> Answer<Self::WriteExtentStream> {
        peer(&request)?;
        let permit = begin(&self.writes)?;
        let mut inbound = request.into_inner();
        let (id, resume) = header(&mut inbound).await?;
        let open = self.local.open.open(id).ok_or_else(|| Status::aborted("the extent is being written"))?;
        let blobs = self.blobs().clone();
        let (replies, outbound) = mpsc::channel(REPLIES_AHEAD);
        let work = async move {
            let report = |written| drop(replies.try_send(Ok(proto::WriteExtentReply { written, stored: None })));
            // A disk that is slow to make a file is not silence.
            let received = match while_beating(blobs.stage(id, resume), || report(0)).await {
                Ok(writer) => Box::pin(receive(writer, steps(inbound).boxed(), report)).await,
                Err(error) => Received::Failed(error),
            };
            // The extent is closed before the sender hears of it: its next call finds it free.
            drop((open, permit));
            let reply = match received {
                Received::Whole(stored) => {
                    let written = stored.length;
                    Ok(proto::WriteExtentReply { written, stored: Some(stored_to_wire(&stored)) })
                }
                Received::Cut(Broken::Gone) => return,
                Received::Cut(Broken::Damaged) => Err(Status::data_loss("frames arrived damaged")),
                Received::Failed(error) => Err(blob_status(error)),
            };
            let _gone = replies.send(reply).await;
        };
        self.env.spawner.spawn("receive extent", Box::pin(work));
        Ok(Response::new(ReceiverStream::new(outbound).boxed()))
    }

    async fn extent_info(&self, request: Request<proto::ExtentInfoRequest>) -> Answer<proto::ExtentInfoReply> {
        peer(&request)?;
        let id = id_from_wire(&request.into_inner().id)?;
        // A writer whose sender broke off is about to sync what it has; that is the answer wanted.
        let _late = timeout(STALL, self.local.open.closed(id)).await;
        let stored = self.blobs().extent(id).await.map_err(blob_status)?;
        Ok(Response::new(proto::ExtentInfoReply { stored: stored.as_ref().map(stored_to_wire) }))
    }

    async fn trim_extent(&self, request: Request<proto::TrimExtentRequest>) -> Answer<proto::ExtentInfoReply> {
        peer(&request)?;
        let request = request.into_inner();
        let (id, resume) = (id_from_wire(&request.id)?, state_from_wire(&request.hash_state)?);
        let _open = self.local.open.open(id).ok_or_else(|| Status::aborted("the extent is being written"))?;
        let stored = self.blobs().extent(id).await.map_err(blob_status)?;
        if stored.is_none_or(|stored| stored.length < request.length) {
            return Err(Status::not_found("no such extent of that length"));
        }
        let stored = self.blobs().trim_extent(id, request.length, resume).await.map_err(blob_status)?;
        Ok(Response::new(proto::ExtentInfoReply { stored: Some(stored_to_wire(&stored)) }))
    }

    async fn read_extent(&self, request: Request<proto::ReadExtentRequest>) -> Answer<Self::ReadExtentStream> {
        peer(&request)?;
        let permit = begin(&self.reads)?;
        let request = request.into_inner();
        let id = id_from_wire(&request.id)?;
        let stored = self.blobs().extent(id).await.map_err(blob_status)?;
        if stored.is_none_or(|stored| stored.length < request.length) {
            return Err(Status::not_found("no such extent of that length"));
        }
        let follower = self.blobs().follow(id, 0).await.map_err(blob_status)?;
        let frames = futures::stream::try_unfold((follower, request.length, permit), next_of_extent);
        Ok(Response::new(frames.boxed()))
    }

    async fn remove_extents(&self, request: Request<proto::RemoveExtentsRequest>) -> Answer<proto::RemoveExtentsReply> {
        peer(&request)?;
        let mut ids = ids_from_wire(&request.into_inner().ids)?;
        ids.retain(|id| !self.local.open.contains(*id));
        self.blobs().remove_extents(&ids).await.map_err(blob_status)?;
        Ok(Response::new(proto::RemoveExtentsReply {}))
    }

    async fn assemble(&self, request: Request<proto::AssembleRequest>) -> Answer<Self::AssembleStream> {
        peer(&request)?;
        let request = request.into_inner();
        let (digest, size) = (digest_from_wire(request.digest)?, request.size);
        let parts = parts_from_wire(request.parts, size)?;
        let local = self.local.clone();
        self.work("assemble blob", Box::pin(async move { local.assemble(&digest, size, &parts).await }))
    }

    async fn pull_blob(&self, request: Request<proto::PullBlobRequest>) -> Answer<Self::PullBlobStream> {
        peer(&request)?;
        let request = request.into_inner();
        let (digest, size) = (digest_from_wire(request.digest)?, request.size);
        let holders: Vec<NodeId> = request.holders.into_iter().map(NodeId).collect();
        let local = self.local.clone();
        let id = ExtentId::from_random(self.env.seed.draw_u128());
        let pull = async move {
            // A file of the right size is no copy yet.
            if local.blobs.has(&digest, size).await?
                && local.blobs.verify(&digest, size, None).await? == Verdict::Good
                && local.blobs.hold(&digest, size).await?
            {
                return Ok(());
            }
            let _open = local.open.open(id).ok_or(Error::Busy { node: local.client.me() })?;
            let writer = local.blobs.stage(id, HashState::initial(digest.algorithm())).await?;
            let mut source = BlobSource::new(local.client.clone(), digest, size, 0..size, holders);
            local.fetch_blob(id, writer, &mut source).await
        };
        self.work("pull blob", Box::pin(pull))
    }

    async fn read_blob(&self, request: Request<proto::ReadBlobRequest>) -> Answer<Self::ReadBlobStream> {
        peer(&request)?;
        let permit = begin(&self.reads)?;
        let request = request.into_inner();
        let digest = digest_from_wire(request.digest)?;
        if request.start > request.end || request.end > request.size {
            return Err(Malformed("range").into());
        }
        let reader = self.blobs().open_blob(&digest, request.size).await.map_err(blob_status)?;
        let reader = reader.ok_or_else(|| Status::not_found("no such blob"))?;
        let blocks = Blocks {
            reader,
            blobs: self.blobs().clone(),
            digest,
            position: request.start,
            end: request.end,
            throttle: self.throttle.clone().filter(|_| request.background),
            owed: 0,
            _permit: permit,
        };
        let frames = futures::stream::try_unfold(blocks, Blocks::next);
        #[cfg(test)]
        if self.lies {
            return Ok(Response::new(frames.map(|frame| frame.map(falsified)).boxed()));
        }
        Ok(Response::new(frames.boxed()))
    }

    async fn has_blobs(&self, request: Request<proto::HasBlobsRequest>) -> Answer<proto::HasBlobsReply> {
        peer(&request)?;
        let proto::HasBlobsRequest { blobs, hold } = request.into_inner();
        let blobs = sized_from_wire(blobs)?;
        let mut present = Vec::with_capacity(blobs.len());
        if hold {
            for (digest, size) in &blobs {
                present.push(self.blobs().hold(digest, *size).await.map_err(blob_status)?);
            }
        } else {
            present = self.blobs().has_each(&blobs).await.map_err(blob_status)?;
        }
        Ok(Response::new(proto::HasBlobsReply { present, complete: self.blobs().usage().index_complete }))
    }

    async fn confirm_copies(&self, request: Request<proto::ConfirmCopiesRequest>) -> Answer<proto::ConfirmCopiesReply> {
        peer(&request)?;
        let proto::ConfirmCopiesRequest { topology_index, blobs } = request.into_inner();
        let blobs = sized_from_wire(blobs)?;
        let (mut held, mut doubtful) = (vec![false; blobs.len()], Vec::new());
        if self.topology_index() == topology_index {
            for (held, (digest, size)) in held.iter_mut().zip(blobs) {
                match self.blobs().hold_checked(&digest, size).await.map_err(blob_status)? {
                    Some(true) => *held = true,
                    Some(false) => doubtful.push((digest, size)),
                    None => {}
                }
            }
        }
        self.check_later(doubtful);
        // What is said holds for a topology that did not change meanwhile.
        Ok(Response::new(proto::ConfirmCopiesReply { topology_index: self.topology_index(), held }))
    }

    async fn put_body(&self, request: Request<proto::PutBodyRequest>) -> Answer<proto::PutBodyReply> {
        peer(&request)?;
        let request = request.into_inner();
        let digest = digest_from_wire(request.digest)?;
        self.blobs().put(&digest, request.body).await.map_err(blob_status)?;
        Ok(Response::new(proto::PutBodyReply {}))
    }

    async fn report_damage(&self, request: Request<proto::ReportDamageRequest>) -> Answer<proto::ReportDamageReply> {
        let from = peer(&request)?.node;
        let request = request.into_inner();
        let (digest, size) = (digest_from_wire(request.digest)?, request.size);
        let permit = begin(&self.writes)?;
        let local = self.local.clone();
        let check = async move {
            tracing::warn!(peer = %from, %digest, "peer reports wrong bytes, checking the copy here");
            match local.blobs.verify(&digest, size, None).await {
                Ok(verdict) => tracing::info!(%digest, ?verdict, "reported copy checked"),
                Err(error) => tracing::warn!(%digest, %error, "copy could not be checked"),
            }
            drop(permit);
        };
        self.env.spawner.spawn("check reported copy", Box::pin(check));
        Ok(Response::new(proto::ReportDamageReply {}))
    }
}

/// Takes a place among the long calls; a node without any left is busy, not gone.
fn begin(calls: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Status> {
    Arc::clone(calls).try_acquire_owned().map_err(|_| Status::aborted("too many transfers"))
}

/// Waits for the header of an extent's stream.
async fn header(inbound: &mut Streaming<proto::WriteExtentRequest>) -> Result<(ExtentId, HashState), Status> {
    let first = timeout(STALL, inbound.message()).await.map_err(|_| Status::deadline_exceeded("no header"))??;
    match first.and_then(|message| message.step) {
        Some(write_extent_request::Step::Header(header)) => {
            Ok((id_from_wire(&header.id)?, state_from_wire(&header.hash_state)?))
        }
        _ => Err(Malformed("header").into()),
    }
}

/// The steps after the header, as the receiving loop takes them.
fn steps(inbound: Streaming<proto::WriteExtentRequest>) -> impl Stream<Item = Result<Step, Broken>> {
    inbound.map(|message| match message.map_err(|_| Broken::Gone)?.step {
        Some(write_extent_request::Step::Frame(frame)) => {
            frame_from_wire(frame).map(Step::Frame).map_err(|_| Broken::Damaged)
        }
        Some(write_extent_request::Step::End(end)) => Ok(Step::End(end.length)),
        Some(write_extent_request::Step::Header(_)) | None => Err(Broken::Damaged),
    })
}

type ExtentRest = (ExtentFollower, u64, OwnedSemaphorePermit);

async fn next_of_extent(
    (mut follower, left, permit): ExtentRest,
) -> Result<Option<(proto::Frame, ExtentRest)>, Status> {
    if left == 0 {
        return Ok(None);
    }
    let bytes = follower.next().await.map_err(blob_status)?;
    let mut bytes = bytes.ok_or_else(|| Status::data_loss("the extent ends early"))?;
    bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
    let left = left - bytes.len() as u64;
    Ok(Some((frame_to_wire(bytes), (follower, left, permit))))
}

/// The checked blocks of a range, one after the other.
struct Blocks {
    reader: BlobReader,
    blobs: BlobStore,
    digest: Digest,
    position: u64,
    end: u64,
    throttle: Option<Arc<dyn Throttle>>,
    /// Bytes sent and not yet accounted for at the throttle.
    owed: u64,
    _permit: OwnedSemaphorePermit,
}

impl Blocks {
    async fn next(mut self) -> Result<Option<(proto::Frame, Self)>, Status> {
        if self.position >= self.end {
            return Ok(None);
        }
        if let Some(throttle) = &self.throttle {
            // Longer would pass for silence.
            drop(timeout(STALL / 2, throttle.take(std::mem::take(&mut self.owed))).await);
        }
        match self.reader.read(self.position, self.end).await {
            Ok(bytes) => {
                self.position += bytes.len() as u64;
                self.owed += bytes.len() as u64;
                Ok(Some((frame_to_wire(bytes), self)))
            }
            Err(error @ BlobError::BlockDamaged { .. }) => {
                if let Err(error) = self.blobs.quarantine(&self.digest).await {
                    tracing::warn!(digest = %self.digest, %error, "damaged copy could not be set aside");
                }
                Err(blob_status(error))
            }
            Err(error) => Err(blob_status(error)),
        }
    }
}

/// What a peer is told; the codes are read back in `Error::from_status`.
fn blob_status(error: BlobError) -> Status {
    match error {
        BlobError::NoSpace | BlobError::DiskUnwritable => Status::resource_exhausted("the disk takes no writes"),
        BlobError::DigestMismatch { .. } | BlobError::SizeMismatch { .. } | BlobError::BlockDamaged { .. } => {
            Status::data_loss(error.to_string())
        }
        BlobError::ExtentUnknown { .. } => Status::not_found(error.to_string()),
        BlobError::HashState => Status::invalid_argument(error.to_string()),
        BlobError::Stopped => Status::unavailable(error.to_string()),
        BlobError::ExtentAbandoned { .. } | BlobError::Ended | BlobError::Io { .. } => {
            tracing::warn!(%error, "disk failed under a peer's call");
            Status::internal("disk")
        }
    }
}

fn status(error: Error) -> Status {
    match error {
        Error::Blob(error) => blob_status(error),
        Error::NotHere { .. } | Error::NoHolder => Status::not_found(error.to_string()),
        Error::NoSpace { .. } => Status::resource_exhausted(error.to_string()),
        Error::Damaged { .. } | Error::NotTheBlob => Status::data_loss(error.to_string()),
        Error::Busy { .. } => Status::aborted(error.to_string()),
        Error::Stalled { .. }
        | Error::Unreachable { .. }
        | Error::Refused { .. }
        | Error::Malformed { .. }
        | Error::Peer(_) => Status::unavailable(error.to_string()),
    }
}

#[cfg(test)]
fn falsified(frame: proto::Frame) -> proto::Frame {
    let mut bytes = frame.data.to_vec();
    bytes[0] ^= 1;
    frame_to_wire(bytes.into())
}
