//! The state of the cluster as one node sees it, with every node's own word where it answers.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::join_all;
use serde_json::{Value, json};

use crate::gossip::{Known, Liveness, Members};
use crate::meta::VoterSets;
use crate::meta::plan::{Leave, Plan, Vote};
use crate::topology::{NodeId, NodeRecord, NodeState, Policy, Topology};
use crate::upkeep::{Drain, Survey};

use super::{Parts, Report, gc, policy, report, wire};

/// A certificate is renewed when a third of its year is left; under this something is wrong.
const CERTIFICATE_DAYS_MIN: u64 = 60;

/// Asks all nodes and puts the answers together; takes at most about a second.
pub(super) async fn cluster(parts: &Parts) -> Value {
    let own = report::own(parts);
    let topology = parts.meta.topology().borrow().clone();
    let members = parts.gossip.members().borrow().clone();
    let others = topology.nodes.keys().filter(|id| **id != own.node);
    let answers = join_all(others.map(|id| wire::ask(&parts.peers, *id))).await;
    let mut reports: BTreeMap<NodeId, Report> =
        answers.into_iter().flatten().map(|report| (report.node, report)).collect();
    let asked = own.node;
    reports.insert(asked, own);
    let seen = Seen {
        cluster: parts.meta.status().cluster.to_string(),
        asked,
        open: parts.meta.local().is_open(),
        voters: parts.meta.voter_sets(),
        policy: policy::current(parts, &topology),
        survey: *parts.upkeep.survey().borrow(),
        topology: &topology,
        members: &members,
        known: parts.gossip.known(),
        reports: &reports,
        plan: &parts.meta.local().plan(),
    };
    seen.print()
}

/// Everything the answer is made from.
struct Seen<'a> {
    cluster: String,
    asked: NodeId,
    open: bool,
    voters: VoterSets,
    policy: Policy,
    survey: Survey,
    topology: &'a Topology,
    members: &'a Members,
    known: BTreeMap<NodeId, Known>,
    reports: &'a BTreeMap<NodeId, Report>,
    plan: &'a Plan,
}

impl Seen<'_> {
    fn print(&self) -> Value {
        let nodes: Vec<Value> = self.topology.nodes.values().map(|node| self.node(node)).collect();
        let (term, leader) = self.leader();
        let sum = |value: fn(&Report) -> u64| self.reports.values().map(value).sum::<u64>();
        json!({
            "cluster_id": self.cluster,
            "leader": leader.map(|leader| leader.0),
            "term": term,
            "version": env!("CARGO_PKG_VERSION"),
            "open": self.open,
            "asked": self.asked.0,
            "policy": { "copies": self.policy.copies, "regions": self.policy.regions },
            "nodes": nodes,
            "blobs": {
                "under_replicated": self.under_replicated(),
                "over_replicated": self.surveyed(|survey| survey.over_replicated),
                "lost": self.surveyed(|survey| survey.lost),
                "misplaced": self.surveyed(|survey| survey.misplaced),
                "linked": self.surveyed(|survey| survey.contents),
            },
            "repair": {
                "queue": sum(|report| report.missing),
                "running": sum(|report| report.fetching),
                "fetched": sum(|report| report.fetched),
                "bytes_left": sum(|report| report.bytes_left),
                "bytes_per_second": sum(|report| report.bytes_per_second),
                "eta_seconds": self.eta_seconds(),
            },
            "gc": self.collection(),
            "warnings": self.warnings(leader),
        })
    }

    /// What was collected and reaped, and what waits, by the word of all who answered.
    fn collection(&self) -> Value {
        let sum = |value: fn(&Report) -> u64| self.reports.values().map(value).sum::<u64>();
        let passes = self.reports.values().filter_map(|report| report.collection.as_ref());
        // The one under way, else the newest.
        let last = passes.min_by_key(|pass| (!pass.running, pass.ended_ms_ago));
        json!({
            "reaped_files": sum(|report| report.reaped.files),
            "reaped_bytes": sum(|report| report.reaped.bytes),
            "waiting_files": sum(|report| report.waiting.files),
            "waiting_bytes": sum(|report| report.waiting.bytes),
            "last": last.map(gc::pass),
            "audit_problems": self.reports.values().filter_map(|report| report.audit_problems).max(),
        })
    }

    /// The leader of the newest term that anybody who answered knows of.
    fn leader(&self) -> (u64, Option<NodeId>) {
        let term = self.reports.values().map(|report| report.term).max().unwrap_or(0);
        // a leader that does not answer here may still lead for the others; one that says it leads is surely the one
        let newest = || self.reports.values().filter(|report| report.term == term);
        let says_so = newest().find(|report| report.state == "leader").map(|report| report.node);
        (term, says_so.or_else(|| newest().find_map(|report| report.leader)))
    }

    fn is_voter(&self, node: NodeId) -> bool {
        self.voters.sets.iter().any(|set| set.contains(&node))
    }

    fn node(&self, node: &NodeRecord) -> Value {
        let report = self.reports.get(&node.id);
        let member = self.members.get(&node.id);
        let liveness = match member.map(|member| member.liveness) {
            _ if node.id == self.asked => Some("live"),
            Some(Liveness::Live) => Some("live"),
            Some(Liveness::Suspect) => Some("suspect"),
            Some(Liveness::Dead) => Some("dead"),
            None => None,
        };
        let placement = match node.state {
            NodeState::In => "in",
            NodeState::Out => "out",
            NodeState::Decommissioned => "decommissioned",
        };
        json!({
            "id": node.id.0,
            "name": node.name,
            "zone": node.zone.0,
            "region": node.region.0,
            "api": node.api_url,
            "rpc": node.rpc_address,
            "role": if self.is_voter(node.id) { "voter" } else { "learner" },
            "state": report.map_or("unreachable", |report| report.state.as_str()),
            "applied": report.map(|report| report.applied),
            "state_hash": report.map(|report| format!("{:032x}", report.state_hash)),
            "last_log": report.map(|report| report.last_log),
            "snapshot": report.map(|report| report.snapshot),
            "term": report.map(|report| report.term),
            "leader": report.and_then(|report| report.leader).map(|leader| leader.0),
            "fresh": report.map(|report| report.fresh),
            "version": report.map(|report| report.version.as_str()),
            "pid": report.map(|report| report.pid),
            "uptime_seconds": report.map(|report| report.uptime_seconds),
            "placement": placement,
            "gossip": liveness,
            "gossip_heard_ms": member.and_then(|member| member.since_heard).map(millis),
            "gossip_reason": member.and_then(|member| member.reason.as_deref()),
            "gossip_reached_by": member.map(|member| ids(&member.reached_by)),
            "gossip_missed_by": member.map(|member| ids(&member.missed_by)),
            "known_blobs": self.known.get(&node.id).map(|known| known.blobs),
            "known_whole": self.known.get(&node.id).is_some_and(|known| known.whole),
            "blobs": report.map(|report| report.blobs),
            "blob_bytes": report.map(|report| report.blob_bytes),
            "extents": report.map(|report| report.extents),
            "index_complete": report.map(|report| report.index_complete),
            "refuses_writes": report.map(|report| report.refuses_writes),
            "disk_suspect": report.map(|report| report.disk_suspect),
            "free_bytes": report.map(|report| report.free_bytes),
            "room_bytes": report.map(|report| report.room_bytes),
            "log_waits": report.map(|report| report.log_waits),
            "has_reserve": report.map(|report| report.has_reserve),
            "compared": report.map(|report| report.compared),
            "repair_queue": report.map(|report| report.missing),
            "repair_bytes_left": report.map(|report| report.bytes_left),
            "repair_bytes_per_second": report.map(|report| report.bytes_per_second),
            "repair_eta_seconds": report.and_then(|report| report.seconds_left),
            "certificate_seconds_left": report.and_then(|report| report.certificate_seconds_left),
            "can_sign": report.map(|report| report.can_sign),
            "plan": self.plan_of(node.id),
            "drain": self.drain_of(node.id),
            "scrub": report.map(scrub),
        })
    }

    /// What operators have decided about a node.
    fn plan_of(&self, node: NodeId) -> Value {
        let plan = self.plan.node(node);
        let vote = match plan.vote {
            Vote::Auto => "auto",
            Vote::Always => "always",
            Vote::Never => "never",
        };
        let leaves = match plan.leave {
            Leave::Stays => None,
            Leave::WhenEmpty => Some("when_empty"),
            Leave::Now => Some("now"),
        };
        json!({ "vote": vote, "held_out": plan.held_out, "leaves": leaves })
    }

    /// How far a leaving node is with being empty, in the leader's word.
    fn drain_of(&self, node: NodeId) -> Option<Value> {
        let drain = self.reports.values().find_map(|report| report.drains.get(&node))?;
        let Drain { total, left, left_bytes, only_here, uploads, idle_uploads, .. } = drain;
        Some(json!({
            "total": total, "left": left, "left_bytes": left_bytes, "only_here": only_here, "uploads": uploads,
            "idle_uploads": idle_uploads,
        }))
    }

    /// When the last node has all it should hold, if each that lacks something is at it.
    fn eta_seconds(&self) -> Option<u64> {
        let each: Option<Vec<u64>> = self.reports.values().map(|report| report.seconds_left).collect();
        each.and_then(|each| each.into_iter().max())
    }

    fn all_answered(&self) -> bool {
        let mut counted = self.topology.nodes.values().filter(|node| node.state == NodeState::In);
        counted.all(|node| self.reports.contains_key(&node.id))
    }

    fn surveyed(&self, found: fn(&Survey) -> u64) -> Option<u64> {
        self.survey.ended.map(|_| found(&self.survey))
    }

    /// What the last survey found, corrected by what is known to have got worse since.
    fn under_replicated(&self) -> Option<u64> {
        let found = self.surveyed(|survey| survey.under_replicated)?;
        let missing = self.reports.values().map(|report| report.missing).max().unwrap_or(0);
        // what lies on a node that is away is no copy in reach; every node is wanted for everything where nodes are few
        let all_hold_all = self.topology.members() <= self.policy.total() as usize;
        let away = if all_hold_all && !self.all_answered() { self.survey.contents } else { 0 };
        Some(found.max(missing).max(away))
    }

    /// Whether too few nodes have the authority's key.
    fn signers_missing(&self) -> Option<String> {
        let mut signers = self.reports.values().filter(|report| report.can_sign).map(|report| report.node);
        match (signers.next(), signers.next()) {
            (None, _) => Some("no node in reach can sign certificates: none can join or be renewed".to_owned()),
            (Some(one), None) if self.reports.len() > 1 && self.reports.len() == self.topology.nodes.len() => Some(
                format!("node {one} alone can sign certificates: let another one join by the secret, not by a token"),
            ),
            _ => None,
        }
    }

    fn warnings(&self, leader: Option<NodeId>) -> Vec<String> {
        let mut warnings = Vec::new();
        if leader.is_none() {
            warnings.push("no leader is known: writes are refused, reads may be old".to_owned());
        }
        if let Some(count) = self.voters.sets.last().map(BTreeSet::len).filter(|count| count.is_multiple_of(2)) {
            warnings.push(match count {
                2 => "two voters do not survive the loss of one".to_owned(),
                count => format!("{count} voters survive no more losses than {}", count - 1),
            });
        }
        warnings.extend(self.reports.values().flat_map(|report| report.notices.iter().cloned()));
        if !self.open {
            warnings.push("the registry is not open yet: its first nodes are not all here".to_owned());
        }
        warnings.extend(self.signers_missing());
        let mut hashes: BTreeMap<u64, u128> = BTreeMap::new();
        for report in self.reports.values() {
            if *hashes.entry(report.applied).or_insert(report.state_hash) != report.state_hash {
                warnings.push(format!("nodes differ in their state at log index {}", report.applied));
            }
            let copies = report.copies_configured;
            if self.topology.policy.is_some() && copies != 0 && copies != self.policy.copies {
                warnings.push(format!(
                    "node {} is configured for {copies} copies, agreed are {}: see `rafthold cluster policy`",
                    report.node, self.policy.copies
                ));
            }
            if report.refuses_writes {
                warnings.push(format!("node {} refuses new bytes: its disk is nearly full", report.node));
            }
            if report.audit_problems.is_some_and(|problems| problems > 0) {
                warnings.push(format!("node {} counts links wrong: it collects nothing", report.node));
            }
            if let Some(days) =
                report.certificate_seconds_left.map(|left| left / 86_400).filter(|days| *days < CERTIFICATE_DAYS_MIN)
            {
                warnings.push(format!(
                    "the certificate of node {} is good for {days} days only and was not renewed",
                    report.node
                ));
            }
            if report.log_waits {
                warnings.push(format!("node {} has no space for its log: it promises nothing", report.node));
            } else if !report.has_reserve {
                warnings.push(format!("node {} has no space put by for its log: its disk is full", report.node));
            }
            if report.disk_suspect {
                warnings.push(format!("the disk of node {} has failed a write", report.node));
            }
        }
        warnings
    }
}

fn scrub(report: &Report) -> Value {
    json!({
        "checked": report.scrubbed,
        "bad": report.scrub_bad,
        "percent": report.scrub_percent,
        "last_pass": (report.scrub_ended_at > 0).then_some(report.scrub_ended_at),
        "quarantined": report.quarantined,
        "quarantined_bytes": report.quarantined_bytes,
    })
}

fn ids(nodes: &[NodeId]) -> Vec<u64> {
    nodes.iter().map(|node| node.0).collect()
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
