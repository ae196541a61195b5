//! The receiving end of an extent: writes, hashes, syncs, and keeps what arrived whole when the sender breaks off.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::blob::{Error as BlobError, ExtentWriter, StoredExtent};

use super::BEAT;

/// A sender that says nothing for this long has gone without the connection noticing.
const SILENCE_MAX: Duration = Duration::from_secs(900);

/// What a sender may say after the header.
#[derive(Debug)]
pub(super) enum Step {
    /// The next bytes, checked.
    Frame(Bytes),
    /// The extent ends at this length.
    End(u64),
}

/// Why a stream of steps stopped before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    /// The connection or the sender went away.
    Gone,
    /// A frame did not match its checksum, or a step came out of turn.
    Damaged,
}

/// How the receiving ended.
#[derive(Debug)]
pub(super) enum Received {
    /// The whole extent is synced.
    Whole(StoredExtent),
    /// The sender broke off; what had arrived is synced and can be salvaged (P28).
    Cut(Broken),
    /// This node could not store it; nothing is kept.
    Failed(BlobError),
}

/// Writes the steps' bytes until the end or a break, telling `report` several times a second how far it is.
pub(super) async fn receive(
    writer: ExtentWriter,
    steps: impl Stream<Item = Result<Step, Broken>> + Unpin,
    report: impl Fn(u64),
) -> Received {
    receive_within(SILENCE_MAX, writer, steps, report).await
}

/// The same from a sender that is never silent for as long as `silence`.
async fn receive_within(
    silence: Duration,
    mut writer: ExtentWriter,
    mut steps: impl Stream<Item = Result<Step, Broken>> + Unpin,
    report: impl Fn(u64),
) -> Received {
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Counted here: the writer collects small frames, so what it has written lags behind a sender that pauses.
    let mut taken = 0;
    let mut heard = Instant::now();
    let cut = loop {
        let step = tokio::select! {
            step = steps.next() => step,
            _ = beat.tick() => {
                if heard.elapsed() >= silence {
                    break Some(Broken::Gone);
                }
                report(taken);
                continue;
            }
        };
        heard = Instant::now();
        match step {
            Some(Ok(Step::Frame(bytes))) => {
                taken += bytes.len() as u64;
                if let Err(error) = writer.write(bytes).await {
                    return Received::Failed(error);
                }
            }
            Some(Ok(Step::End(length))) if length == taken => break None,
            Some(Ok(Step::End(_))) => break Some(Broken::Damaged),
            Some(Err(broken)) => break Some(broken),
            None => break Some(Broken::Gone),
        }
    };
    if taken == 0 {
        return Received::Cut(cut.unwrap_or(Broken::Damaged)); // nothing arrived, nothing is kept
    }
    match (while_beating(writer.finish(), || report(taken)).await, cut) {
        (Err(error), _) => Received::Failed(error),
        (Ok(stored), None) => Received::Whole(stored),
        (Ok(_), Some(broken)) => Received::Cut(broken),
    }
}

/// Runs `work` to its end and calls `beat` several times a second meanwhile.
pub(super) async fn while_beating<T>(work: impl Future<Output = T>, beat: impl Fn()) -> T {
    let mut ticks = interval(BEAT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tokio::pin!(work);
    loop {
        tokio::select! {
            result = &mut work => return result,
            _ = ticks.tick() => beat(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Algorithm, ExtentId, HashState};
    use crate::replica::tests::lab::Lab;

    #[tokio::test]
    async fn a_sender_that_says_nothing_for_too_long_is_gone() {
        let lab = Lab::start(1).await;
        let id = ExtentId::from_random(1);
        let writer = lab.node(1).blobs.stage(id, HashState::initial(Algorithm::Sha256)).await.unwrap();
        let ended = receive_within(BEAT, writer, futures::stream::pending(), |_| {}).await;
        assert!(matches!(ended, Received::Cut(Broken::Gone)), "{ended:?}");
    }
}
