//! One node's view of itself.

use crate::meta::RaftState;
use crate::topology::NodeId;
use crate::upkeep::Collection;
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
    /// Bytes of copies that it would still take.
    pub(super) room_bytes: u64,
    /// Linked content that should lie on this node and does not.
    pub(super) missing: u64,
    pub(super) fetching: u64,
    pub(super) fetched: u64,
    /// All linked content was compared with the disk since the start.
    pub(super) compared: bool,
    /// Copies of each blob that its configuration names; 0 if it does not say.
    pub(super) copies_configured: u32,
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
    /// How long the node's certificate is still good.
    pub(super) certificate_seconds_left: Option<u64>,
    /// It has the authority's key.
    pub(super) can_sign: bool,
    pub(super) scrubbed: u64,
    pub(super) scrub_bad: u64,
    pub(super) scrub_percent: u64,
    pub(super) scrub_ended_at: u64,
    pub(super) quarantined: u64,
    pub(super) quarantined_bytes: u64,
    /// The log waits for space.
    pub(super) log_waits: bool,
    pub(super) has_reserve: bool,
    /// What was removed from this disk because nothing linked it, and what waits for that.
    pub(super) reaped: Reclaimed,
    pub(super) waiting: Reclaimed,
    /// The last pass of collection that this node made.
    pub(super) collection: Option<Pass>,
    /// Contradictions that the last full mark found.
    pub(super) audit_problems: Option<u64>,
}

/// Files of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Reclaimed {
    pub(super) files: u64,
    pub(super) bytes: u64,
}

/// A pass of collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pass {
    pub(super) running: bool,
    pub(super) links: u64,
    pub(super) blobs: u64,
    pub(super) manifests: u64,
    pub(super) bytes: u64,
    /// How long ago it ended; `None` while it runs.
    pub(super) ended_ms_ago: Option<u64>,
    pub(super) failed: Option<String>,
}

impl Pass {
    /// Takes a pass as upkeep shows it; `None` before the first.
    pub(super) fn of(collection: &Collection) -> Option<Self> {
        let ended = collection.ended.filter(|_| !collection.running);
        (collection.pass > 0).then(|| Self {
            running: collection.running,
            links: collection.links,
            blobs: collection.blobs,
            manifests: collection.manifests,
            bytes: collection.bytes,
            ended_ms_ago: ended.map(|ended| u64::try_from(ended.elapsed().as_millis()).unwrap_or(u64::MAX)),
            failed: collection.failed.clone(),
        })
    }
}

/// Makes this node's report.
pub(super) fn own(parts: &Parts) -> Report {
    let meta = parts.meta.status();
    let usage = parts.blobs.usage();
    let progress = parts.upkeep.progress().borrow().clone();
    let reaped = parts.upkeep.reaped();
    let audit = parts.upkeep.last_audit();
    let scrub = parts.upkeep.scrub_progress();
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
        room_bytes: usage.room_bytes,
        missing: progress.missing as u64,
        fetching: progress.running as u64,
        fetched: progress.done,
        compared: progress.compared,
        copies_configured: parts.copies_configured,
        uptime_seconds: parts.started.elapsed().as_secs(),
        pid: std::process::id(),
        bytes_left: progress.bytes_left,
        bytes_per_second: progress.bytes_per_second,
        seconds_left: progress.seconds_left,
        notices: parts.meta.notices(),
        drains: Drains::clone(&parts.upkeep.drains().borrow()),
        certificate_seconds_left: parts.credentials.life_left().map(|left| left.as_secs()),
        can_sign: parts.credentials.can_sign(),
        reaped: Reclaimed { files: reaped.blobs, bytes: reaped.blob_bytes },
        waiting: Reclaimed { files: reaped.waiting, bytes: reaped.waiting_bytes },
        collection: Pass::of(&parts.upkeep.collection()),
        audit_problems: audit.ended.map(|_| audit.problems),
        scrubbed: scrub.checked,
        scrub_bad: scrub.bad,
        scrub_percent: scrub.percent,
        scrub_ended_at: scrub.ended_at,
        quarantined: usage.quarantined,
        quarantined_bytes: usage.quarantined_bytes,
        log_waits: parts.meta.waits_for_space(),
        has_reserve: parts.meta.has_reserve(),
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
