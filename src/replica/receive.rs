//! A client's body becomes an extent on enough nodes (P15, P24, P28).

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

use crate::blob::{ExtentFollower, ExtentWriter, StoredExtent};
use crate::env::BoxFuture;
use crate::topology::NodeId;
use crate::transfer::{FrameSource, OpenExtent};

use super::fan_out::FanOut;
use super::{Body, Error, ExtentRequest, LOOK, ReceivedExtent, Replicas, Result, TARGETS_WAIT};

/// How long the session's other holders are waited for when enough copies are there: a holder that has every extent
/// need not fetch any at the commit.
const STRAGGLERS_WAIT: Duration = Duration::from_millis(250);

/// A client's body with its first bytes already taken.
pub(super) struct Incoming {
    first: Option<Bytes>,
    rest: Body,
    promised: Option<u64>,
    received: u64,
}

/// What comes next of a client's body.
pub(super) enum Next {
    Bytes(Bytes),
    /// The body is over; false if it was cut short.
    End(bool),
}

impl Incoming {
    /// The next bytes, or how the body ended.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when dropped.
    pub(super) async fn next(&mut self) -> Next {
        loop {
            let bytes = match self.first.take() {
                Some(bytes) => bytes,
                None => match self.rest.next().await {
                    Some(Ok(bytes)) => bytes,
                    Some(Err(_)) => return Next::End(false),
                    None => return Next::End(self.promised.is_none_or(|promised| promised == self.received)),
                },
            };
            if !bytes.is_empty() {
                self.received += bytes.len() as u64;
                return Next::Bytes(bytes);
            }
        }
    }
}

impl Replicas {
    /// Receives one extent: staged here, streamed to `request.holders` while it arrives (P15), synced on `write_copies`
    /// nodes.
    ///
    /// The node that receives always stages, so it is a natural holder beside the session's (unless it is out or leaving);
    /// dead holders are replaced by live candidates. A node whose own disk takes nothing passes the bytes straight on to others (see `direct.rs`). The
    /// work runs in a supervised task that outlives a dropped call (P28): `then` (it proposes the append) runs in that
    /// task with the extent, salvaged or whole, and its answer comes back here if somebody still waits. `then` is not run
    /// when the extent could not be stored. A body without any byte gives an extent of length 0 with the request's hash
    /// state and no holders, stored nowhere: there is nothing to append.
    ///
    /// # Errors
    ///
    /// - [`Error::TooFewCopies`] if fewer than `write_copies` nodes are in reach 5 s after the last byte (P14).
    /// - [`Error::Blob`] if this disk fails midway, or is full and too few others are in reach.
    /// - [`Error::Stopped`] if the node stops meanwhile.
    ///
    /// # Cancel safety
    ///
    /// A dropped call changes nothing: the task goes on with what the body still delivers.
    pub async fn receive_extent<T, F>(&self, request: ExtentRequest, body: Body, then: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(ReceivedExtent) -> BoxFuture<'static, T> + Send + 'static,
    {
        let this = self.clone();
        let work = async move {
            let received = Box::pin(this.receive(request, body)).await?;
            Ok(then(received).await)
        };
        self.supervised("receive upload", work).await?
    }

    async fn receive(&self, request: ExtentRequest, body: Body) -> Result<ReceivedExtent> {
        let activity = self.activity();
        let body = body.inspect(move |bytes| activity.moved(bytes.as_ref().map_or(0, Bytes::len))).boxed();
        let mut incoming = Incoming { first: None, rest: body, promised: request.promised_length, received: 0 };
        // Nothing is opened anywhere before there is a byte: most closing PUTs have none.
        match incoming.next().await {
            Next::Bytes(bytes) => {
                incoming.received = 0;
                incoming.first = Some(bytes);
            }
            Next::End(complete) => {
                let ExtentRequest { id, resume: hash_state, .. } = request;
                return Ok(ReceivedExtent { id, length: 0, hash_state, holders: Vec::new(), complete });
            }
        }
        let Some(open) = self.local().open.open(request.id) else {
            let reason = "the extent is being written already".to_owned();
            return Err(Error::TooFewCopies { made: 0, needed: self.write_copies(), reason });
        };
        match self.local().blobs.stage(request.id, request.resume.clone()).await {
            Ok(writer) => self.receive_staged(request, incoming, writer, open).await,
            Err(error) => self.receive_direct(request, incoming, error).await,
        }
    }

    async fn receive_staged(
        &self,
        request: ExtentRequest,
        mut incoming: Incoming,
        mut writer: ExtentWriter,
        open: OpenExtent,
    ) -> Result<ReceivedExtent> {
        let mut fan_out = self.follow_staging(&request);
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let complete = loop {
            tokio::select! {
                next = incoming.next() => match next {
                    Next::Bytes(bytes) => writer.write(bytes).await?,
                    Next::End(complete) => break complete,
                },
                (node, error) = fan_out.next() => self.note_end(node, error),
                _ = look.tick() => self.fill(&mut fan_out, &request.holders),
            }
        };
        let last_byte = Instant::now();
        drop(incoming);
        let stored = {
            let finish = writer.finish();
            tokio::pin!(finish);
            loop {
                tokio::select! {
                    stored = &mut finish => break stored?,
                    (node, error) = fan_out.next() => self.note_end(node, error),
                    _ = look.tick() => self.fill(&mut fan_out, &request.holders),
                }
            }
        };
        // Nothing lists the extent yet: being open keeps it from the reaper, however long the others take.
        let synced = Instant::now();
        let enough = self.wait_for_copies(&mut fan_out, &request, &stored, last_byte).await;
        let counts_here = self.counts(self.me());
        if !enough && complete {
            return Err(self.too_few_copies(fan_out.made() + usize::from(counts_here), fan_out.reason()));
        }
        // Pinned anew before it is closed: the pin from the end of the writing may be over.
        if synced.elapsed() >= self.word_holds_for()
            && self.local().blobs.extent(stored.id).await?.as_ref() != Some(&stored)
        {
            return Err(crate::blob::Error::ExtentUnknown { id: stored.id }.into());
        }
        drop(open);
        if !enough {
            return self.salvage(&request, Some(stored), &fan_out).await;
        }
        let peers = fan_out.done().map(|(node, _)| node);
        let holders = counts_here.then(|| self.me()).into_iter().chain(peers).collect();
        // Whoever is still receiving may end: its copy is not counted, but a holder that has it need not fetch it.
        self.spawn("finish extent copies", Box::pin(fan_out.finish()));
        let StoredExtent { id, length, hash_state } = stored;
        Ok(ReceivedExtent { id, length, hash_state, holders, complete })
    }

    /// Starts the session's holders on following the staging file.
    fn follow_staging(&self, request: &ExtentRequest) -> FanOut<StoredExtent> {
        let (local, id, resume) = (self.local().clone(), request.id, request.resume.clone());
        let fan_out = FanOut::new(move |node, pace| {
            let (local, resume) = (local.clone(), resume.clone());
            Box::pin(async move {
                let follower = local.blobs.follow(id, 0).await?;
                local.client.write_extent(node, id, (&resume, &pace), frames(follower)).await
            })
        });
        let mut fan_out = self.counting(fan_out);
        let me = self.me();
        let live = |node: &&NodeId| **node != me && self.counts(**node) && self.0.parts.sight.is_live(**node);
        request.holders.iter().filter(live).for_each(|node| fan_out.begin(*node));
        self.fill(&mut fan_out, &request.holders);
        fan_out
    }

    /// Brings the number of peers that have or receive the extent up to what is needed beside this node.
    fn fill(&self, fan_out: &mut FanOut<StoredExtent>, holders: &[NodeId]) {
        let needed = self.needed_elsewhere();
        if fan_out.hopeful() < needed {
            let mut candidates: Vec<NodeId> = holders
                .iter()
                .copied()
                .filter(|node| *node != self.me() && self.counts(*node) && !self.0.parts.sight.is_dead(*node))
                .collect();
            candidates.extend(self.candidates(holders));
            fan_out.fill(needed, &candidates);
        }
    }

    pub(super) fn note_end(&self, node: NodeId, error: Option<crate::transfer::Error>) {
        if let Some(error) = error {
            self.note(node, &error);
        }
    }

    /// Waits until enough peers have synced exactly what lies here, and stand by it; says whether they do.
    async fn wait_for_copies(
        &self,
        fan_out: &mut FanOut<StoredExtent>,
        request: &ExtentRequest,
        stored: &StoredExtent,
        last_byte: Instant,
    ) -> bool {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stragglers = None;
        let mut lost = Some(last_byte);
        loop {
            self.discard_wrong(fan_out, stored);
            self.renew_extent(fan_out).await;
            let needed = self.needed_elsewhere();
            if fan_out.made() >= needed {
                let until = *stragglers.get_or_insert_with(|| Instant::now() + STRAGGLERS_WAIT);
                let waits = fan_out.running().any(|node| request.holders.contains(&node));
                if !waits || timeout_at(until, fan_out.next()).await.is_err() {
                    return true;
                }
                continue;
            }
            // Nobody is given up for the last that failed while others are untried.
            self.fill(fan_out, &request.holders);
            // A target that shows life is in reach, however much it still has to take.
            if fan_out.in_reach() >= needed {
                lost = None;
            } else if lost.get_or_insert_with(Instant::now).elapsed() >= TARGETS_WAIT {
                return false;
            }
            tokio::select! {
                (node, error) = fan_out.next() => self.note_end(node, error),
                _ = look.tick() => {}
            }
        }
    }

    /// Counts out peers whose copy differs from the one here, and has them drop it.
    fn discard_wrong(&self, fan_out: &mut FanOut<StoredExtent>, stored: &StoredExtent) {
        for node in fan_out.discard(|_, copy| copy != stored) {
            tracing::warn!(peer = %node, extent = %stored.id, "peer stored other bytes than were sent");
            let (client, id) = (self.local().client.clone(), stored.id);
            let remove = async move { drop(client.remove_extents(node, &[id]).await) };
            self.spawn("drop wrong extent", Box::pin(remove));
        }
    }
}

/// The frames of a staging file as they become available.
fn frames(follower: ExtentFollower) -> FrameSource {
    futures::stream::unfold(Some(follower), |follower| async move {
        let mut follower = follower?;
        match follower.next().await {
            Ok(Some(bytes)) => Some((Ok(bytes), Some(follower))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}
