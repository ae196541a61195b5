//! Beats to and from protobuf.

use std::time::Duration;

use crate::oci::Digest;
use crate::rpc::proto;
use crate::topology::NodeId;

use super::journal::BATCH_MAX;
use super::state::View;

/// The largest beat taken: a full batch of long digests and a thousand views.
pub(super) const BEAT_BYTES_MAX: usize = 128 << 10;
/// Views in one beat; more nodes than that are not shown.
const VIEWS_MAX: usize = 1024;

pub(super) fn beat(incarnation: u64, gained: &[Digest], views: &[View]) -> proto::Beat {
    let member = |view: &View| proto::MemberView {
        node: view.node.0,
        heard_ms_ago: view.heard_ago.map(|ago| u64::try_from(ago.as_millis()).unwrap_or(u64::MAX)),
    };
    proto::Beat {
        incarnation,
        gained: gained.iter().map(Into::into).collect(),
        members: views.iter().take(VIEWS_MAX).map(member).collect(),
        leaving: false,
    }
}

/// Reads the hints of a beat, at most as many as this node would send; a digest it cannot read is skipped.
pub(super) fn gained(beat: &proto::Beat) -> Vec<Digest> {
    beat.gained.iter().take(BATCH_MAX).filter_map(|digest| digest.try_into().ok()).collect()
}

pub(super) fn views(beat: &proto::Beat) -> Vec<View> {
    let view = |member: &proto::MemberView| View {
        node: NodeId(member.node),
        // A year is as good as never, and cannot overflow a time.
        heard_ago: member.heard_ms_ago.map(|ms| Duration::from_millis(ms.min(1000 * 3600 * 24 * 365))),
    };
    beat.members.iter().take(VIEWS_MAX).map(view).collect()
}
