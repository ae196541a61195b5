//! A node whose own disk takes nothing passes a client's bytes straight on to others (I12).

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_stream::wrappers::ReceiverStream;

use crate::blob::StoredExtent;
use crate::oci::Hasher;
use crate::topology::NodeId;
use crate::transfer::STALL;

use super::fan_out::FanOut;
use super::receive::{Incoming, Next};
use super::{Error, ExtentRequest, LOOK, ReceivedExtent, Replicas, Result, TARGETS_WAIT};

/// How long each of the peers that are left may take to say why it takes no bytes.
const REASON_WAIT: Duration = Duration::from_millis(500);

/// Client frames that wait for a slow peer.
const FRAMES_AHEAD: usize = 4;

type Feed = (NodeId, mpsc::Sender<Bytes>);

impl Replicas {
    /// Streams the body to `write_copies` other nodes and one in reserve, keeping nothing here.
    ///
    /// Without a staging file nobody can start at 0 later: a peer that stalls is dropped, and when too few are left the
    /// body is given up. That is an error, for the client's body did not break: the session stays as it was (P14).
    pub(super) async fn receive_direct(
        &self,
        request: ExtentRequest,
        mut incoming: Incoming,
        why: crate::blob::Error,
    ) -> Result<ReceivedExtent> {
        let needed = self.write_copies();
        let mut targets: Vec<NodeId> = request.holders.clone();
        targets.retain(|node| *node != self.me() && self.counts(*node) && self.0.parts.sight.is_live(*node));
        targets.extend(self.candidates(&request.holders));
        targets.truncate(needed + 1);
        if targets.len() < needed {
            return Err(why.into());
        }
        tracing::warn!(error = %why, "the disk here takes no bytes, passing them on");
        let (mut fan_out, mut feeds) = self.feed_peers(&request, &targets);
        let mut hasher = Hasher::resume(&request.resume).ok();
        let mut length = 0;
        let complete = loop {
            tokio::select! {
                next = incoming.next() => match next {
                    Next::Bytes(bytes) => {
                        if let Some(hasher) = &mut hasher {
                            hasher.update(&bytes);
                        }
                        length += bytes.len() as u64;
                        feeds = pass_on(feeds, &bytes).await;
                        if feeds.len() < needed {
                            drop(feeds);
                            return Err(self.too_few(&mut fan_out).await);
                        }
                    }
                    Next::End(complete) => break complete,
                },
                (node, error) = fan_out.next() => {
                    feeds.retain(|(other, _)| *other != node);
                    self.note_end(node, error);
                }
            }
        };
        drop(feeds);
        let hash_state = hasher.map(|hasher| hasher.state());
        self.wait_for_direct(&mut fan_out, needed).await;
        fan_out.discard(|_, stored| stored.length != length || Some(&stored.hash_state) != hash_state.as_ref());
        match hash_state {
            Some(hash_state) if fan_out.made() >= needed => {
                let holders = fan_out.done().map(|(node, _)| node).collect();
                Ok(ReceivedExtent { id: request.id, length, hash_state, holders, complete })
            }
            _ if complete => Err(self.too_few_copies(fan_out.made(), fan_out.reason())),
            _ => self.salvage(&request, None, &fan_out).await,
        }
    }

    /// Waits until `needed` peers have synced what they were fed, or too few of them show life.
    async fn wait_for_direct(&self, fan_out: &mut FanOut<StoredExtent>, needed: usize) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut lost = None;
        loop {
            self.renew_extent(fan_out).await;
            if fan_out.made() >= needed || fan_out.running().next().is_none() {
                return;
            }
            if fan_out.in_reach() >= needed {
                lost = None;
            } else if lost.get_or_insert_with(Instant::now).elapsed() >= TARGETS_WAIT {
                return;
            }
            tokio::select! {
                (node, error) = fan_out.next() => self.note_end(node, error),
                _ = look.tick() => {}
            }
        }
    }

    /// The error for a body that too few peers take; those that failed have a moment to say why.
    async fn too_few(&self, fan_out: &mut FanOut<StoredExtent>) -> Error {
        while fan_out.running().next().is_some() {
            let Ok((node, error)) = timeout(REASON_WAIT, fan_out.next()).await else { break };
            self.note_end(node, error);
        }
        self.too_few_copies(0, fan_out.reason())
    }

    fn feed_peers(&self, request: &ExtentRequest, targets: &[NodeId]) -> (FanOut<StoredExtent>, Vec<Feed>) {
        let mut feeds = Vec::with_capacity(targets.len());
        let mut sources = std::collections::BTreeMap::new();
        for node in targets {
            let (feed, source) = mpsc::channel(FRAMES_AHEAD);
            feeds.push((*node, feed));
            sources.insert(*node, source);
        }
        let sources = std::sync::Mutex::new(sources);
        let (client, id, resume) = (self.local().client.clone(), request.id, request.resume.clone());
        let fan_out = FanOut::new(move |node, pace| {
            let source = sources.lock().expect("no panic under this lock").remove(&node);
            let (client, resume) = (client.clone(), resume.clone());
            Box::pin(async move {
                let source = source.ok_or(crate::transfer::Error::Busy { node })?;
                client.write_extent(node, id, (&resume, &pace), ReceiverStream::new(source).map(Ok).boxed()).await
            })
        });
        let mut fan_out = self.counting(fan_out);
        targets.iter().for_each(|node| fan_out.begin(*node));
        (fan_out, feeds)
    }
}

/// Hands bytes to every peer at once; those that do not take them in time are left out of what is returned.
async fn pass_on(feeds: Vec<Feed>, bytes: &Bytes) -> Vec<Feed> {
    let sends = feeds.into_iter().map(|(node, feed)| async move {
        let sent = timeout(STALL, feed.send(bytes.clone())).await;
        matches!(sent, Ok(Ok(()))).then_some((node, feed))
    });
    futures::future::join_all(sends).await.into_iter().flatten().collect()
}
