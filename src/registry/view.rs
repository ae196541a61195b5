//! How fresh a view a use case needs, and how long it may wait for one.

use std::time::Duration;

use tokio::time::Instant;

use crate::meta::command::{Command, Response};
use crate::meta::{Consistency, State, View};

use super::error::Unexpected;
use super::{Caller, Error, Registry, Result};

/// How long a client waits at most for an answer that says "no quorum" (I7 allows five seconds).
const ANSWER_WITHIN: Duration = Duration::from_millis(4500);

/// How long of that may go into finding out what is so before anything is proposed.
const CONFIRM_WITHIN: Duration = Duration::from_millis(2500);

/// The least that a proposal is given: a leader that is there answers well within it.
const PROPOSE_MIN: Duration = Duration::from_millis(1500);

/// Between two attempts to confirm.
const PAUSE: Duration = Duration::from_millis(100);

/// What is left of the time in which the client must have an answer; it starts when nothing more is to come from him.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget(Instant);

impl Budget {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    /// How long a proposal may take.
    pub(super) fn to_propose(self) -> Duration {
        ANSWER_WITHIN.saturating_sub(self.0.elapsed()).max(PROPOSE_MIN)
    }

    /// How long the spreading of a small body may take, leaving time to propose.
    pub(super) fn to_spread(self) -> Duration {
        (ANSWER_WITHIN - PROPOSE_MIN).saturating_sub(self.0.elapsed()).max(PAUSE)
    }
}

/// Something found in a view.
#[derive(Debug)]
pub(super) struct Seen<T> {
    pub(super) found: T,
    pub(super) stale: bool,
}

impl Registry {
    /// Waits until the log index that the caller names is applied here.
    pub(super) async fn wait_for(&self, caller: &Caller) -> Result<()> {
        match caller.wait_for {
            Some(index) if !self.0.meta.wait_applied(index, ANSWER_WITHIN).await => Err(Error::no_quorum()),
            _ => Ok(()),
        }
    }

    /// Returns the view that the caller asks for, or the configured one, for things that move.
    pub(super) async fn view(&self, caller: &Caller) -> Result<View> {
        self.wait_for(caller).await?;
        Ok(self.0.meta.view(caller.consistency.unwrap_or(self.0.config.read)).await)
    }

    /// Looks for an immutable thing: a local hit on a fresh node is final, only a miss is confirmed (P5).
    ///
    /// Out of touch with the quorum a hit is stale and a miss is [`Error::NoQuorum`], never "not there".
    pub(super) async fn look_up<T>(
        &self,
        caller: &Caller,
        find: impl Fn(&State) -> Option<T>,
        missing: impl Fn(&State) -> Error,
    ) -> Result<Seen<T>> {
        self.wait_for(caller).await?;
        let here = self.0.meta.view_local();
        let found = find(&here.state);
        let as_it_is = caller.consistency == Some(Consistency::Local);
        match found {
            Some(found) if here.fresh || as_it_is => return Ok(Seen { found, stale: !here.fresh }),
            None if here.fresh && as_it_is => return Err(missing(&here.state)),
            _ => {}
        }
        let view = self.0.meta.confirm().await;
        match find(&view.state) {
            Some(found) => Ok(Seen { found, stale: !view.fresh }),
            None if view.fresh => Err(missing(&view.state)),
            None => Err(Error::no_quorum()),
        }
    }

    /// Returns a confirmed view, waiting out a change of leader.
    pub(super) async fn fresh(&self) -> Result<View> {
        let start = Instant::now();
        loop {
            let view = self.0.meta.confirm().await;
            if view.fresh {
                return Ok(view);
            }
            if start.elapsed() + PAUSE >= CONFIRM_WITHIN {
                return Err(Error::no_quorum());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The log index that is applied here: what a reader has seen is at or below it.
    pub(super) fn index(&self) -> u64 {
        *self.0.meta.applied().borrow()
    }

    /// Proposes a command; a refusal by the agreed state is an answer like any other.
    pub(super) async fn propose(&self, command: Command, budget: Budget) -> Result<(u64, Response)> {
        let applied = self.0.meta.propose(command, budget.to_propose()).await?;
        Ok((applied.index, applied.response))
    }

    /// Proposes a command whose only good answer is [`Response::Done`].
    pub(super) async fn propose_done(&self, command: Command, budget: Budget) -> Result<u64> {
        match self.propose(command, budget).await? {
            (index, Response::Done) => Ok(index),
            (_, other) => Err(refused(other)),
        }
    }
}

/// The error of an answer that is not the one hoped for.
pub(super) fn refused(response: Response) -> Error {
    match response {
        Response::Rejected(rejection) => rejection.into(),
        other => Error::internal(Unexpected::Response(other)),
    }
}

const _: () =
    assert!(CONFIRM_WITHIN.as_millis() + PROPOSE_MIN.as_millis() < 5000, "an answer comes within five seconds");
