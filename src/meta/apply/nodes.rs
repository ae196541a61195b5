//! The cluster and its nodes (P8, P10, P11, P13).

use crate::meta::plan::{Leave, Plan};

use super::{Answer, ClusterId, Context, NodeId, NodeRecord, NodeRow, NodeState, Policy, Rejection, Response, State};

impl State {
    pub(super) fn form_cluster(&mut self, cluster: ClusterId, nodes_expected: u32) -> Answer {
        match self.head.cluster {
            Some(formed) if formed != cluster => Err(Rejection::ClusterMismatch),
            Some(_) => Ok(Response::Done),
            None => {
                self.head.cluster = Some(cluster);
                self.head.nodes_expected = nodes_expected;
                Ok(Response::Done)
            }
        }
    }

    pub(super) fn open_registry(&mut self) -> Answer {
        if self.head.cluster.is_none() {
            return Err(Rejection::NotOpen);
        }
        self.head.open = true;
        Ok(Response::Done)
    }

    /// Gives the next id to a key that has none; `record.id` is not read.
    pub(super) fn add_node(&mut self, context: Context, mut record: NodeRecord, key_fingerprint: &[u8; 32]) -> Answer {
        if self.head.cluster.is_none() {
            return Err(Rejection::NotOpen);
        }
        if let Some(row) = self.nodes().find(|row| row.key_fingerprint == *key_fingerprint) {
            return Ok(Response::NodeAdded { node: row.id() });
        }
        if self.name_is_in_use(&record.name, None) {
            return Err(Rejection::NameTaken);
        }
        let node = NodeId(self.head.next_node);
        self.head.next_node += 1;
        record.id = node;
        // Until it says otherwise: a binary below the agreed level refuses to start.
        let feature_level = self.head.feature_level;
        self.put_node(NodeRow { record, key_fingerprint: *key_fingerprint, feature_level });
        self.topology_changed(context);
        Ok(Response::NodeAdded { node })
    }

    /// Whether a node that is *in*, other than `except`, has the name.
    ///
    /// A node that is out or decommissioned keeps its row but not its name: the machine that lost its disk comes back
    /// under its old name with a new id, and nobody has to remove the old one first.
    pub(super) fn name_is_in_use(&self, name: &str, except: Option<NodeId>) -> bool {
        self.nodes().any(|row| row.record.name == name && row.record.state == NodeState::In && Some(row.id()) != except)
    }

    pub(super) fn update_node(
        &mut self,
        context: Context,
        node: NodeId,
        feature_level: u32,
        change: impl FnOnce(&mut NodeRecord),
    ) -> Answer {
        let old = self.node(node).ok_or(Rejection::NodeUnknown)?;
        if feature_level < self.head.feature_level {
            return Err(Rejection::FeatureLevel { agreed: self.head.feature_level });
        }
        let mut row = NodeRow { feature_level, ..old.clone() };
        change(&mut row.record);
        self.replace_node(context, row);
        Ok(Response::Done)
    }

    pub(super) fn set_node_state(&mut self, context: Context, node: NodeId, state: NodeState) -> Answer {
        let old = self.node(node).ok_or(Rejection::NodeUnknown)?;
        // A node that is being emptied for good and goes away is still being emptied; marking it out would forget that.
        if old.record.state == NodeState::Decommissioned && state == NodeState::Out {
            return Ok(Response::Done);
        }
        // The leader saw it live and did not know yet what an operator has decided.
        let plan = self.plan.node(node);
        if state == NodeState::In && (plan.held_out || plan.leave != Leave::Stays) {
            return Ok(Response::Done);
        }
        if state == NodeState::In && self.name_is_in_use(&old.record.name, Some(node)) {
            return Err(Rejection::NameTaken);
        }
        let mut row = old.clone();
        row.record.state = state;
        self.replace_node(context, row);
        Ok(Response::Done)
    }

    pub(super) fn replace_node(&mut self, context: Context, row: NodeRow) {
        let Some(old) = self.node(row.id()).filter(|old| **old != row) else { return };
        let moved = old.record != row.record;
        self.put_node(row);
        if moved {
            self.topology_changed(context);
        }
    }

    pub(super) fn drop_node(&mut self, context: Context, node: NodeId) -> Answer {
        self.node(node).ok_or(Rejection::NodeUnknown)?;
        self.remove_node(node);
        if self.plan.nodes.contains_key(&node) {
            let mut plan = Plan::clone(&self.plan);
            plan.nodes.remove(&node);
            plan.index = context.index;
            self.put_plan(plan);
        }
        self.topology_changed(context);
        Ok(Response::Done)
    }

    fn topology_changed(&mut self, context: Context) {
        self.head.topology_index = context.index;
        self.rebuild_topology();
    }

    /// Agrees on how many copies there should be; the topology's index changes with it, as placement does.
    pub(super) fn set_policy(&mut self, context: Context, policy: &Policy, first: bool) -> Answer {
        policy.validate().map_err(|_| Rejection::PolicyInvalid)?;
        let same_or_late = self.policy.as_ref().is_some_and(|agreed| first || agreed == policy);
        if !same_or_late {
            self.put_policy(policy.clone());
            self.topology_changed(context);
        }
        Ok(Response::Done)
    }

    /// Raises the agreed level for good, if every node knows the new one (P8).
    pub(super) fn raise_feature_level(&mut self, level: u32) -> Answer {
        let agreed = self.head.feature_level;
        if level > agreed && self.nodes().any(|row| row.feature_level < level) {
            return Err(Rejection::FeatureLevel { agreed });
        }
        self.head.feature_level = agreed.max(level);
        Ok(Response::Done)
    }
}
