//! What each command does to the agreed state: pure, the same on every node.
//!
//! Owns the rules of the commands. Invariants: a command is checked whole before it changes anything, so a refusal leaves
//! no trace but its remembered answer; nothing here can reach a clock, a disk, a random number or an unordered map. Does
//! not touch tables itself (that is `rows.rs`). Start reading at [`State::apply`], then a noun.

mod blobs;
mod leases;
mod manifests;
mod nodes;
mod plans;
mod uploads;

#[cfg(test)]
mod collection_tests;
#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod plan_tests;
#[cfg(test)]
mod property_tests;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::oci::{Digest, HashState, RepositoryName, Tag, UploadId};
use crate::topology::{ClusterId, NodeId, NodeRecord, NodeState, Policy};

use super::command::{
    CollectionRules, Command, Condition, HeldExtent, LogTime, Proposal, PutManifest, ReferenceKind, Rejection, Response,
};
use super::query::{ManifestRecord, TagEvent, TagRecord, Upload};
use super::reach::Fate;
use super::state::{Repository, State};
use super::tables::{BlobLink, ManifestLease, NodeRow, OutcomeRow, RepositoryRow, UploadEnd};

/// How long a command may take from its making to its place in the log, in milliseconds of log time (P4).
pub const COMMAND_LIFE_MS: u64 = 60_000;
/// How long an answer is remembered after the last moment at which a copy of its command could still be applied.
const OUTCOME_MARGIN_MS: u64 = 15_000;
/// How many answers are remembered at most (long ones count more): some 4000 writes a second, and 100 MiB.
const OUTCOMES_WEIGHT_MAX: usize = if cfg!(test) { 4000 } else { 300_000 };

/// What a handler knows beside its command.
#[derive(Debug, Clone, Copy)]
struct Context {
    /// The command's place in the log.
    index: u64,
    now: LogTime,
    wall_seconds: u64,
}

/// What a handler answers.
type Answer = Result<Response, Rejection>;

impl State {
    /// Applies the command that lies at `index` of the log and returns its answer.
    ///
    /// A request id seen before gets its original answer and changes nothing (P4). Answers [`Rejection::Expired`] and
    /// [`Rejection::Busy`] are not remembered, as nothing was done.
    pub fn apply(&mut self, index: u64, proposal: &Proposal) -> Response {
        self.applied = index;
        self.head.log_time = self.head.log_time.max(proposal.at);
        let now = self.head.log_time;
        self.forget_outcomes(now);
        if let Some(outcome) = self.outcomes.get(&proposal.id) {
            return outcome.response.clone();
        }
        if now.0.saturating_sub(proposal.issued.0) > COMMAND_LIFE_MS {
            return Response::Rejected(Rejection::Expired);
        }
        if self.outcomes_weight >= OUTCOMES_WEIGHT_MAX {
            return Response::Rejected(Rejection::Busy);
        }
        let context = Context { index, now, wall_seconds: proposal.wall_seconds };
        let response = self.execute(context, &proposal.command).unwrap_or_else(Response::Rejected);
        // A copy of the command lives as long as its own `issued` lets it, were that ahead of the leaders' stamps.
        let lives_until = now.max(proposal.issued).0.saturating_add(COMMAND_LIFE_MS);
        let keep_until = LogTime(lives_until.saturating_add(OUTCOME_MARGIN_MS));
        self.put_outcome(proposal.id, OutcomeRow { response: response.clone(), keep_until });
        response
    }

    fn execute(&mut self, context: Context, command: &Command) -> Answer {
        if command.feature_level() > self.head.feature_level {
            return Err(Rejection::FeatureLevel { agreed: self.head.feature_level });
        }
        match command {
            Command::FormCluster { cluster, nodes_expected } => self.form_cluster(*cluster, *nodes_expected),
            Command::OpenRegistry => self.open_registry(),
            Command::AddNode { name, zone, region, rpc_address, api_url, weight, key_fingerprint } => {
                let record = NodeRecord {
                    id: NodeId(0),
                    name: name.clone(),
                    zone: zone.clone(),
                    region: region.clone(),
                    rpc_address: rpc_address.clone(),
                    api_url: api_url.clone(),
                    weight: *weight,
                    state: NodeState::In,
                };
                self.add_node(context, record, key_fingerprint)
            }
            Command::UpdateNode { node, zone, region, rpc_address, api_url, weight, feature_level } => {
                let change = |record: &mut NodeRecord| {
                    record.zone = zone.clone();
                    record.region = region.clone();
                    record.rpc_address = rpc_address.clone();
                    record.api_url = api_url.clone();
                    record.weight = *weight;
                };
                self.update_node(context, *node, *feature_level, change)
            }
            Command::SetNodeState { node, state } => self.set_node_state(context, *node, *state),
            Command::RemoveNode { node } => self.drop_node(context, *node),
            Command::RaiseFeatureLevel { level } => self.raise_feature_level(*level),
            Command::ChangePlan(change) => self.change_plan(context, change),
            Command::CreateToken { token, ttl_ms, learner } => {
                Ok(self.create_token(context, *token, *ttl_ms, *learner))
            }
            Command::RevokeToken { token } => match self.remove_token(token) {
                true => Ok(Response::Done),
                false => Err(Rejection::TokenUnknown),
            },
            Command::JoinByToken(join) => self.join_by_token(context, join),
            Command::SetPolicy { policy, first } => self.set_policy(context, policy, *first),
            _ if !self.head.open => Err(Rejection::NotOpen),
            command => self.execute_open(context, command),
        }
    }

    /// The commands that an open registry takes.
    fn execute_open(&mut self, context: Context, command: &Command) -> Answer {
        match command {
            Command::OpenUpload { session, repository, algorithm, holders, principal, ttl_ms, sessions_max } => {
                let upload = Upload {
                    repository: repository.clone(),
                    algorithm: *algorithm,
                    hash_state: HashState::initial(*algorithm),
                    length: 0,
                    extents: Vec::new(),
                    holders: holders.clone(),
                    principal: Arc::from(principal.as_str()),
                    ttl_ms: *ttl_ms,
                    expires: LogTime(context.now.0.saturating_add(*ttl_ms)),
                    closed: None,
                };
                self.open_upload(*session, upload, *sessions_max)
            }
            Command::AppendExtent { session, repository, extent, hash_state } => {
                self.find_upload(*session, repository)?;
                self.append_extent(context, *session, extent, hash_state)
            }
            Command::ReplaceHolders { session, holders } => self.replace_holders(context, *session, holders),
            Command::CommitUpload { session, repository, last, digest, size, principal: _ } => {
                self.find_upload(*session, repository)?;
                self.commit_upload(context, *session, last.as_ref(), (digest, *size))
            }
            Command::CancelUpload { session, repository } => self.cancel_upload(context, *session, repository),
            Command::ExpireUploads { sessions } => Ok(self.expire_uploads(context, sessions)),
            Command::LinkBlob { repository, digest, size, principal: _ } => {
                self.link_blob(context, repository, digest, *size)
            }
            Command::MountBlob { from, repository, digest, principal: _ } => {
                self.mount_blob(context, from, repository, digest)
            }
            Command::UnlinkBlob { repository, digest, sparse } => self.unlink_blob(repository, digest, *sparse),
            Command::PutManifest(put) => self.put_manifest(context, put),
            Command::DeleteManifest { repository, digest, sparse } => {
                self.delete_manifest(context, repository, digest, *sparse)
            }
            Command::DeleteTag { repository, tag, condition } => {
                self.delete_tag(context, repository, tag, condition.as_ref())
            }
            Command::RenewLeases { links } => self.renew_leases(context, links),
            Command::Collect { repository, blobs, manifests, rules } => {
                self.collect(context, repository, (blobs, manifests), rules)
            }
            Command::FormCluster { .. }
            | Command::OpenRegistry
            | Command::AddNode { .. }
            | Command::UpdateNode { .. }
            | Command::SetNodeState { .. }
            | Command::RemoveNode { .. }
            | Command::RaiseFeatureLevel { .. }
            | Command::ChangePlan(_)
            | Command::CreateToken { .. }
            | Command::RevokeToken { .. }
            | Command::JoinByToken(_)
            | Command::SetPolicy { .. } => unreachable!("`execute` takes these, open or not"),
        }
    }
}
