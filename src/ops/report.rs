//! One node's view of itself.

use crate::meta::RaftState;
use crate::topology::NodeId;
use crate::upkeep::Drains;

use super::Parts;

/// How one node is, at one moment, in its own words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub(super) node: NodeId,
    pub(super) version: String,
    pub(super) applied: u64,
    /// Of the agreed state at `applied`.
    pub(super) state_hash: u128,
    pub(super) last_log: u64,
    pub(super) snapshot: u64,
    pub(super) term: u64,
    pub(super) leader: Option<NodeId>,
    pub(super) state: String,
    pub(super) fresh: bool,
    pub(super) blobs: u64,
    pub(super) blob_bytes: u64,
    pub(super) extents: u64,
    pub(super) index_complete: bool,
    pub(super) refuses_writes: bool,
    pub(super) disk_suspect: bool,
    pub(super) free_bytes: u64,
    /// Linked content that should lie on this node and does not.
    pub(super) missing: u64,
    pub(super) fetching: u64,
    pub(super) fetched: u64,
    /// All linked content was compared with the disk since the start.
    pub(super) compared: bool,
    pub(super) uptime_seconds: u64,
    pub(super) pid: u32,
    /// Bytes of what is missing on this node.
    pub(super) bytes_left: u64,
    /// How fast it is fetched.
    pub(super) bytes_per_second: u64,
    pub(super) seconds_left: Option<u64>,
    /// What the node, as the leader, has to say to operators.
    pub(super) notices: Vec<String>,
    /// How far leaving nodes are, as the leader sees it.
    pub(super) drains: Drains,
}

/// Makes this node's report.
pub(super) fn own(parts: &Parts) -> Report {
    let meta = parts.meta.status();
    let usage = parts.blobs.usage();
    let progress = parts.upkeep.progress().borrow().clone();
    Report {
        node: meta.me,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        applied: meta.applied,
        state_hash: meta.state_hash,
        last_log: meta.last_log,
        snapshot: meta.snapshot,
        term: meta.term,
        leader: meta.leader,
        state: state_name(meta.state).to_owned(),
        fresh: meta.fresh,
        blobs: usage.blobs,
        blob_bytes: usage.blob_bytes,
        extents: usage.extents,
        index_complete: usage.index_complete,
        refuses_writes: parts.blobs.refuses_writes(),
        disk_suspect: usage.disk_suspect,
        free_bytes: usage.free_bytes,
        missing: progress.missing as u64,
        fetching: progress.running as u64,
        fetched: progress.done,
        compared: progress.compared,
        uptime_seconds: parts.started.elapsed().as_secs(),
        pid: std::process::id(),
        bytes_left: progress.bytes_left,
        bytes_per_second: progress.bytes_per_second,
        seconds_left: progress.seconds_left,
        notices: parts.meta.notices(),
        drains: Drains::clone(&parts.upkeep.drains().borrow()),
    }
}

fn state_name(state: RaftState) -> &'static str {
    match state {
        RaftState::Leader => "leader",
        RaftState::Follower => "follower",
        RaftState::Candidate => "candidate",
        RaftState::Unreachable => "unreachable",
    }
}
