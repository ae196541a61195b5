//! Changing the agreed state: from any node, through the leader, once (P4).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use openraft::errors::{ClientWriteError, RaftError};
use tokio::time::{Instant, sleep, timeout_at};

use crate::topology::NodeId;

use super::boot_clock::BootTime;
use super::client;
use super::command::{Command, Proposal, Rejection, RequestId, Response};
use super::engine::Core;
use super::types::Logged;
use super::{Applied, Outcome, ProposeError};

/// The longest wait between two tries.
const RETRY_MAX: Duration = Duration::from_millis(200);
/// How long one try may take once the leader counts as gone.
const LAST_TRY: Duration = Duration::from_millis(1500);
/// How long the leader waits for its first stamp of a term.
const STAMP_MAX: Duration = Duration::from_secs(2);

/// What became of a proposal, here or at the node it was forwarded to.
#[derive(Debug)]
pub(super) enum Submitted {
    Applied {
        index: u64,
        response: Response,
    },
    /// It was not proposed.
    NotLeader {
        leader: Option<NodeId>,
    },
    /// It may or may not take effect.
    Unknown,
}

impl Core {
    /// Proposes `command` at the leader, wherever it is, until `limit` has passed.
    pub(super) async fn propose(&self, command: Command, limit: Duration) -> Result<Applied, ProposeError> {
        let deadline = Instant::now() + limit;
        // Old nodes could not read it: they would have to stop.
        let view = self.published.current();
        let agreed = view.state.feature_level();
        if command.feature_level() > agreed {
            let response = Response::Rejected(Rejection::FeatureLevel { agreed });
            return Ok(Applied { index: view.index, response });
        }
        drop(view);
        let mut proposal = self.proposal(command).await;
        let mut outcome = Outcome::None;
        let mut hint = None;
        let mut tries = 0u32;
        self.metrics.proposed();
        loop {
            if self.closing.load(std::sync::atomic::Ordering::Relaxed) || self.failure.borrow().is_some() {
                // What an earlier try sent may still take effect.
                return match outcome {
                    Outcome::None => Err(ProposeError::Stopped),
                    Outcome::Unknown => Err(ProposeError::Unavailable { outcome }),
                };
            }
            let patience = self.freshness.patience().max(LAST_TRY);
            let limit = deadline.min(Instant::now() + patience);
            match self.try_once(&proposal, hint.take(), limit).await {
                Submitted::Applied { index, response } => match judge(&response, outcome) {
                    Verdict::Answer => return Ok(Applied { index, response }),
                    Verdict::Renew => {
                        // The only copy of it was refused. A new one may go, with a better idea of the time.
                        self.confirm().await;
                        proposal = self.proposal(proposal.command).await;
                    }
                    Verdict::Unknown => {
                        self.metrics.unavailable();
                        return Err(ProposeError::Unavailable { outcome });
                    }
                },
                Submitted::NotLeader { leader } => hint = leader,
                Submitted::Unknown => outcome = Outcome::Unknown,
            }
            let gone = self.freshness.patience().is_zero();
            if gone || Instant::now() >= deadline {
                self.metrics.unavailable();
                return Err(ProposeError::Unavailable { outcome });
            }
            tries += 1;
            if hint.is_none() || tries > 2 {
                let pause = Duration::from_millis(10 << tries.min(4)).min(RETRY_MAX);
                let jittered = pause.mul_f64(0.5 + ((self.hooks.random)() % 1000) as f64 / 1000.0);
                self.changed(jittered.min(deadline.saturating_duration_since(Instant::now()))).await;
            }
        }
    }

    pub(super) async fn proposal(&self, command: Command) -> Proposal {
        let applied = self.published.current().state.log_time();
        // Time passes for the leader although nothing is written: an estimate from the state alone may be long past.
        let issued = match self.leading() {
            Some(_) => self.stamp(STAMP_MAX).await,
            None => None,
        };
        let issued = issued.unwrap_or_else(|| self.clock.estimate(applied));
        Proposal {
            id: RequestId((self.hooks.random)()),
            issued,
            at: issued,
            wall_seconds: (self.hooks.wall_seconds)(),
            command,
        }
    }

    async fn try_once(&self, proposal: &Proposal, hint: Option<NodeId>, limit: Instant) -> Submitted {
        if self.leading().is_some() {
            return self.submit(proposal.clone(), limit).await;
        }
        let Some(leader) = hint.or_else(|| self.leader()).filter(|leader| *leader != self.me) else {
            return Submitted::NotLeader { leader: None };
        };
        let left = limit.saturating_duration_since(Instant::now());
        let answer = tokio::select! {
            answer = client::propose(&self.peers, leader, proposal, left) => answer,
            // It may be cut off, and its answer never come.
            () = self.deposed(leader) => return Submitted::Unknown,
        };
        match answer {
            Ok(Submitted::NotLeader { leader: other }) => {
                Submitted::NotLeader { leader: other.filter(|other| *other != leader) }
            }
            Ok(submitted) => submitted,
            Err(status) => {
                tracing::debug!(peer = leader.0, error = status.message(), "proposal not answered");
                // Only a connection that never came up proves that nothing was sent.
                match never_sent(&status) {
                    true => Submitted::NotLeader { leader: None },
                    false => Submitted::Unknown,
                }
            }
        }
    }

    /// Proposes here, if this node leads; a delete is answered only when nobody serves the thing any more (P6).
    pub(super) async fn submit(&self, mut proposal: Proposal, limit: Instant) -> Submitted {
        let stamp_limit = limit.saturating_duration_since(Instant::now()).min(STAMP_MAX);
        let Some(at) = self.stamp(stamp_limit).await else {
            return Submitted::NotLeader { leader: self.leader().filter(|leader| *leader != self.me) };
        };
        proposal.at = at;
        // The level only rises, and everything earlier leaders committed is applied: it is not refused after it was proposed.
        let agreed = self.published.current().state.feature_level();
        if proposal.command.feature_level() > agreed {
            let response = Response::Rejected(Rejection::FeatureLevel { agreed });
            return Submitted::Applied { index: self.published.current().index, response };
        }
        let deletes = is_delete(&proposal.command);
        let write = self.raft.client_write(Logged(Arc::new(proposal)));
        match timeout_at(limit, write).await {
            Ok(Ok(written)) => {
                let index = written.log_id.index;
                let Some(response) = written.data else { return Submitted::Unknown };
                if deletes && !matches!(response, Response::Rejected(_)) {
                    self.settle_delete(index).await;
                }
                Submitted::Applied { index, response }
            }
            // Refused before it got into the log.
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))) => {
                Submitted::NotLeader { leader: forward.leader_id.map(NodeId).filter(|leader| *leader != self.me) }
            }
            Ok(Err(_)) | Err(_) => Submitted::Unknown,
        }
    }

    /// Waits until every other node has applied `index`, or can no longer hold itself fresh on a confirmation from before it
    /// (P6): milliseconds as a rule, 2.2 s at worst.
    async fn settle_delete(&self, index: u64) {
        let term = self.raft_metrics().current_term;
        let topology = self.published.current().state.topology();
        let membership = self.raft_metrics().membership_config;
        let members = membership.membership().nodes().map(|(id, _)| *id);
        let mut others: BTreeSet<u64> = topology.nodes.keys().map(|id| id.0).chain(members).collect();
        others.remove(&self.me.0);
        // Taken now, after the delete was applied: whoever asks later is told an index that includes it.
        let waits = others.into_iter().map(|node| {
            let until = self.followers.fresh_until(term, node);
            self.settle_at(NodeId(node), index, until)
        });
        join_all(waits).await;
    }

    async fn settle_at(&self, node: NodeId, index: u64, until: BootTime) {
        loop {
            let left = until.since(BootTime::now());
            if left.is_zero() {
                return;
            }
            match client::wait_applied(&self.peers, node, index, left).await {
                Ok(applied) if applied >= index => return,
                _ => sleep(Duration::from_millis(50).min(left)).await,
            }
        }
    }
}

/// What an answer means to the proposer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It is the command's.
    Answer,
    /// The command had no effect and will have none: it may go under a new id.
    Renew,
    /// It says nothing about an earlier try.
    Unknown,
}

/// Judges an answer, where `earlier` is what became of the tries before it. A refusal that the state does not remember is
/// about this try alone: an earlier one may have been applied, and its outcome be forgotten, or may be applied yet (P4).
fn judge(response: &Response, earlier: Outcome) -> Verdict {
    match (response, earlier) {
        (Response::Rejected(Rejection::Expired | Rejection::Busy), Outcome::Unknown) => Verdict::Unknown,
        (Response::Rejected(Rejection::Expired), Outcome::None) => Verdict::Renew,
        _ => Verdict::Answer,
    }
}

fn is_delete(command: &Command) -> bool {
    matches!(command, Command::DeleteManifest { .. } | Command::DeleteTag { .. } | Command::UnlinkBlob { .. })
}

/// Whether a failed call never reached the wire: its connection could not be made.
fn never_sent(status: &tonic::Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_may_have_been_applied_is_never_sent_under_a_new_id() {
        let (expired, busy) = (Response::Rejected(Rejection::Expired), Response::Rejected(Rejection::Busy));
        assert_eq!(judge(&expired, Outcome::Unknown), Verdict::Unknown);
        assert_eq!(judge(&busy, Outcome::Unknown), Verdict::Unknown);
        assert_eq!(judge(&expired, Outcome::None), Verdict::Renew);
        assert_eq!(judge(&busy, Outcome::None), Verdict::Answer);
        // Anything else is the command's own outcome, remembered from whichever try was applied.
        assert_eq!(judge(&Response::Rejected(Rejection::ClusterMismatch), Outcome::Unknown), Verdict::Answer);
    }
}
