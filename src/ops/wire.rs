//! Reports between nodes.

use std::time::Duration;

use crate::oci::Digest;
use crate::rpc::proto::admin_client::AdminClient;
use crate::rpc::proto::{self, DrainReport, ReportRequest, ReportResponse, VerifyBlobRequest};
use crate::rpc::{Lane, MESSAGE_BYTES_MAX, Peers, within};
use crate::topology::NodeId;
use crate::upkeep::Drain;

use super::Report;
use super::report::{Pass, Reclaimed};

/// How long a node may take to report itself.
const REPORT_DEADLINE: Duration = Duration::from_secs(1);

/// Asks another node for its report; `None` if it does not answer in time.
pub(super) async fn ask(peers: &Peers, node: NodeId) -> Option<Report> {
    let channel = peers.channel(node, Lane::Control).ok()?;
    let mut client = AdminClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let response = within(REPORT_DEADLINE, client.report(ReportRequest {})).await.ok()?;
    Report::try_from(response.into_inner()).ok().filter(|report| report.node == node)
}

/// Has another node hash its copy of a blob; `None` if it does not answer in time.
pub(super) async fn verify(peers: &Peers, node: NodeId, blob: (&Digest, u64), deadline: Duration) -> Option<String> {
    let channel = peers.channel(node, Lane::Bulk).ok()?;
    let mut client = AdminClient::new(channel);
    let request = VerifyBlobRequest { digest: Some(blob.0.into()), size: blob.1 };
    let response = within(deadline, client.verify_blob(request)).await.ok()?;
    Some(response.into_inner().verdict)
}

/// A peer's report that makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a state hash has 16 bytes")]
pub struct StateHashLength;

impl TryFrom<ReportResponse> for Report {
    type Error = StateHashLength;

    fn try_from(wire: ReportResponse) -> Result<Self, StateHashLength> {
        let hash: [u8; 16] = wire.state_hash.as_ref().try_into().map_err(|_| StateHashLength)?;
        Ok(Self {
            node: NodeId(wire.node),
            version: wire.version,
            applied: wire.applied,
            state_hash: u128::from_be_bytes(hash),
            last_log: wire.last_log,
            snapshot: wire.snapshot,
            term: wire.term,
            leader: wire.leader.map(NodeId),
            state: wire.state,
            fresh: wire.fresh,
            blobs: wire.blobs,
            blob_bytes: wire.blob_bytes,
            extents: wire.extents,
            index_complete: wire.index_complete,
            refuses_writes: wire.refuses_writes,
            disk_suspect: wire.disk_suspect,
            free_bytes: wire.free_bytes,
            // An older version does not say how much of that it keeps free.
            room_bytes: wire.room_bytes.unwrap_or(wire.free_bytes),
            missing: wire.missing,
            fetching: wire.fetching,
            fetched: wire.fetched,
            compared: wire.compared,
            copies_configured: wire.copies_configured,
            uptime_seconds: wire.uptime_seconds,
            pid: wire.pid,
            bytes_left: wire.bytes_left,
            bytes_per_second: wire.bytes_per_second,
            seconds_left: wire.seconds_left,
            notices: wire.notices,
            certificate_seconds_left: wire.certificate_seconds_left,
            // An older version does not say, and has always joined by the secret.
            can_sign: wire.can_sign.unwrap_or(true),
            drains: wire.drains.iter().map(|drain| (NodeId(drain.node), drain.into())).collect(),
            reaped: Reclaimed { files: wire.reaped_files, bytes: wire.reaped_bytes },
            waiting: Reclaimed { files: wire.waiting_files, bytes: wire.waiting_bytes },
            collection: wire.collection.map(Pass::from),
            audit_problems: wire.audit_problems,
            scrubbed: wire.scrubbed,
            scrub_bad: wire.scrub_bad,
            scrub_percent: wire.scrub_percent,
            scrub_ended_at: wire.scrub_ended_at,
            quarantined: wire.quarantined,
            quarantined_bytes: wire.quarantined_bytes,
            log_waits: wire.log_waits,
            has_reserve: wire.has_reserve,
        })
    }
}

impl From<Report> for ReportResponse {
    fn from(report: Report) -> Self {
        Self {
            node: report.node.0,
            version: report.version,
            applied: report.applied,
            state_hash: report.state_hash.to_be_bytes().to_vec().into(),
            last_log: report.last_log,
            snapshot: report.snapshot,
            term: report.term,
            leader: report.leader.map(|leader| leader.0),
            state: report.state,
            fresh: report.fresh,
            blobs: report.blobs,
            blob_bytes: report.blob_bytes,
            extents: report.extents,
            index_complete: report.index_complete,
            refuses_writes: report.refuses_writes,
            disk_suspect: report.disk_suspect,
            free_bytes: report.free_bytes,
            room_bytes: Some(report.room_bytes),
            missing: report.missing,
            fetching: report.fetching,
            fetched: report.fetched,
            compared: report.compared,
            copies_configured: report.copies_configured,
            uptime_seconds: report.uptime_seconds,
            pid: report.pid,
            bytes_left: report.bytes_left,
            bytes_per_second: report.bytes_per_second,
            seconds_left: report.seconds_left,
            notices: report.notices,
            certificate_seconds_left: report.certificate_seconds_left,
            can_sign: Some(report.can_sign),
            drains: report.drains.iter().map(|(node, drain)| drain_report(*node, drain)).collect(),
            reaped_files: report.reaped.files,
            reaped_bytes: report.reaped.bytes,
            waiting_files: report.waiting.files,
            waiting_bytes: report.waiting.bytes,
            collection: report.collection.map(proto::Collection::from),
            audit_problems: report.audit_problems,
            scrubbed: report.scrubbed,
            scrub_bad: report.scrub_bad,
            scrub_percent: report.scrub_percent,
            scrub_ended_at: report.scrub_ended_at,
            quarantined: report.quarantined,
            quarantined_bytes: report.quarantined_bytes,
            log_waits: report.log_waits,
            has_reserve: report.has_reserve,
        }
    }
}

impl From<&DrainReport> for Drain {
    fn from(wire: &DrainReport) -> Self {
        let DrainReport { node: _, total, left, left_bytes, only_here, uploads, idle_uploads } = *wire;
        // What is left out is the leader's own business.
        Self { total, left, left_bytes, only_here, uploads, idle_uploads, ..Self::default() }
    }
}

fn drain_report(node: NodeId, drain: &Drain) -> DrainReport {
    let Drain { total, left, left_bytes, only_here, uploads, idle_uploads, .. } = *drain;
    DrainReport { node: node.0, total, left, left_bytes, only_here, uploads, idle_uploads }
}

impl From<proto::Collection> for Pass {
    fn from(wire: proto::Collection) -> Self {
        let proto::Collection { running, links, blobs, manifests, bytes, ended_ms_ago, failed } = wire;
        Self { running, links, blobs, manifests, bytes, ended_ms_ago, failed }
    }
}

impl From<Pass> for proto::Collection {
    fn from(pass: Pass) -> Self {
        let Pass { running, links, blobs, manifests, bytes, ended_ms_ago, failed } = pass;
        Self { running, links, blobs, manifests, bytes, ended_ms_ago, failed }
    }
}
