//! What operators decide about members, and the tokens by which nodes join (P10, P12, P13).

use crate::meta::command::LogTime;
use crate::meta::plan::{NodePlan, Plan, PlanChange, TokenHash, TokenJoin, TokenRow, Vote};

use super::{Answer, Context, NodeId, NodeRecord, NodeRow, NodeState, Rejection, Response, State};

/// How long an expired token is still known, so that whoever uses it is told why it is refused.
const EXPIRED_KEPT_MS: u64 = 24 * 3600 * 1000;
/// How many tokens are known at once; beyond it the one that expires first goes.
const TOKENS_MAX: usize = 1000;

impl State {
    /// Takes a change whole or not at all.
    pub(super) fn change_plan(&mut self, context: Context, change: &PlanChange) -> Answer {
        if change.seen != self.plan.index {
            return Err(Rejection::PlanChanged);
        }
        let mut rows = Vec::with_capacity(change.nodes.len());
        for wanted in &change.nodes {
            let old = self.node(wanted.node).ok_or(Rejection::NodeUnknown)?;
            if wanted.state == NodeState::In && self.name_is_in_use(&old.record.name, Some(wanted.node)) {
                return Err(Rejection::NameTaken);
            }
            let mut row = NodeRow::clone(old);
            row.record.state = wanted.state;
            rows.push(row);
        }
        let mut plan = Plan::clone(&self.plan);
        plan.index = context.index;
        for wanted in &change.nodes {
            if wanted.plan == NodePlan::default() {
                plan.nodes.remove(&wanted.node);
            } else {
                plan.nodes.insert(wanted.node, wanted.plan);
            }
        }
        self.put_plan(plan);
        for row in rows {
            self.replace_node(context, row);
        }
        Ok(Response::Done)
    }

    pub(super) fn create_token(&mut self, context: Context, token: TokenHash, ttl_ms: u64, learner: bool) -> Response {
        let forgotten = |row: &TokenRow| row.expires.0.saturating_add(EXPIRED_KEPT_MS) < context.now.0;
        let mut old: Vec<TokenHash> =
            self.tokens.iter().filter(|(_, row)| forgotten(row)).map(|(hash, _)| *hash).collect();
        if self.tokens.len() >= TOKENS_MAX + old.len() {
            old.extend(self.tokens.iter().min_by_key(|(_, row)| row.expires).map(|(hash, _)| *hash));
        }
        for hash in old {
            self.remove_token(&hash);
        }
        let expires = LogTime(context.now.0.saturating_add(ttl_ms));
        self.put_token(token, TokenRow { expires, learner, wall_seconds: context.wall_seconds, used: None });
        Response::Done
    }

    /// Joins a node by a token that is not used, or was used by the same key.
    pub(super) fn join_by_token(&mut self, context: Context, join: &TokenJoin) -> Answer {
        let row = self.tokens.get(&join.token).cloned().ok_or(Rejection::TokenUnknown)?;
        if let Some((key, node)) = row.used {
            let again = key == join.key_fingerprint && self.node(node).is_some();
            return if again { Ok(Response::NodeAdded { node }) } else { Err(Rejection::TokenUsed) };
        }
        if row.expires <= context.now {
            return Err(Rejection::TokenExpired);
        }
        let record = NodeRecord {
            id: NodeId(0),
            name: join.name.clone(),
            zone: join.zone.clone(),
            region: join.region.clone(),
            rpc_address: join.rpc_address.clone(),
            api_url: join.api_url.clone(),
            weight: join.weight,
            state: NodeState::In,
        };
        let added = self.add_node(context, record, &join.key_fingerprint)?;
        let Response::NodeAdded { node } = added else { return Ok(added) };
        if row.learner {
            let mut plan = Plan::clone(&self.plan);
            plan.index = context.index;
            plan.nodes.entry(node).or_default().vote = Vote::Never;
            self.put_plan(plan);
        }
        self.put_token(join.token, TokenRow { used: Some((join.key_fingerprint, node)), ..row });
        Ok(added)
    }
}
