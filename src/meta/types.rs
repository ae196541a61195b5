//! The types that consensus runs on, and their stored form, which no version of `openraft` can change.
//!
//! Node addresses are not in the membership (P11): a member is an id and nothing else.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::sync::Arc;

use openraft::impls::leader_id_adv::LeaderId;
use openraft::vote::RaftLeaderId as _;
use openraft::vote::RaftVote as _;
use serde::{Deserialize, Serialize};

use super::command::{Proposal, Response};
use super::state_machine::StateMachine;
use super::wal::{Ballot, EntryId};

openraft::declare_raft_types!(
    /// What consensus is run on.
    pub(super) TypeConfig:
        D = Logged,
        R = Option<Response>,
        NodeId = u64,
        Node = openraft::impls::EmptyNode,
);

type Node = openraft::impls::EmptyNode;
type Leader = LeaderId<u64, u64>;
pub(super) type Raft = openraft::Raft<TypeConfig, StateMachine>;
pub(super) type Payload = openraft::EntryPayload<Logged, u64, Node>;
pub(super) type Entry = openraft::Entry<Leader, Payload>;
pub(super) type LogId = openraft::LogId<Leader>;
pub(super) type Vote = openraft::impls::Vote<Leader>;
pub(super) type Membership = openraft::Membership<u64, Node>;
pub(super) type StoredMembership = openraft::StoredMembership<Leader, u64, Node>;
pub(super) type SnapshotMeta = openraft::storage::SnapshotMeta<Leader, u64, Node>;
pub(super) type Snapshot = openraft::storage::Snapshot<Leader, u64, Node, super::snapshot::SnapshotFile>;
pub(super) type Metrics = openraft::RaftMetrics<TypeConfig>;

/// A proposal as the log carries it; cloning shares it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Logged(pub(super) Arc<Proposal>);

impl fmt::Display for Logged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request {:032x}", self.0.id.0)
    }
}

impl From<LogId> for EntryId {
    fn from(id: LogId) -> Self {
        Self { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
    }
}

impl From<EntryId> for LogId {
    fn from(id: EntryId) -> Self {
        Self::new(LeaderId::new(id.term, id.node), id.index)
    }
}

impl From<&Vote> for Ballot {
    fn from(vote: &Vote) -> Self {
        Self { term: vote.leader_id().term, node: vote.leader_id().node_id, granted: vote.is_committed() }
    }
}

impl From<Ballot> for Vote {
    fn from(ballot: Ballot) -> Self {
        Self::from_leader_id(LeaderId::new(ballot.term, ballot.node), ballot.granted)
    }
}

/// A membership in its stored form: the voter sets (two while a change is joint), and every member.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Members {
    pub(super) voters: Vec<BTreeSet<u64>>,
    pub(super) all: BTreeSet<u64>,
}

impl From<&Membership> for Members {
    fn from(membership: &Membership) -> Self {
        Self { voters: membership.get_joint_config().clone(), all: membership.nodes().map(|(id, _)| *id).collect() }
    }
}

impl From<Members> for Membership {
    fn from(members: Members) -> Self {
        Self::new_with_defaults(members.voters, members.all)
    }
}

#[derive(Serialize, Deserialize)]
enum StoredPayload {
    Blank,
    Proposal(Logged),
    Members(Members),
}

const ENTRY_VERSION: u8 = 1;

/// Encodes an entry for the log and the wire: a version byte, then postcard of its id and payload.
pub(super) fn encode_entry(entry: &Entry) -> Vec<u8> {
    let payload = match &entry.payload {
        Payload::Blank => StoredPayload::Blank,
        Payload::Normal(logged) => StoredPayload::Proposal(logged.clone()),
        Payload::Membership(membership) => StoredPayload::Members(membership.into()),
    };
    postcard::to_extend(&(EntryId::from(entry.log_id), payload), vec![ENTRY_VERSION]).expect("an entry always encodes")
}

/// Decodes an entry.
///
/// # Errors
///
/// `InvalidData` if the version or the command is unknown (a newer binary wrote it), or the bytes are no entry: the node must
/// stop, never skip.
pub(super) fn decode_entry(bytes: &[u8]) -> io::Result<Entry> {
    let refuse = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    let (id, payload): (EntryId, StoredPayload) = match bytes.split_first() {
        Some((&ENTRY_VERSION, rest)) => postcard::from_bytes(rest)
            .map_err(|error| refuse(format!("log entry is unknown to this binary: {error}")))?,
        Some((version, _)) => return Err(refuse(format!("log entry has unknown version {version}"))),
        None => return Err(refuse("log entry is empty".into())),
    };
    let payload = match payload {
        StoredPayload::Blank => Payload::Blank,
        StoredPayload::Proposal(logged) => Payload::Normal(logged),
        StoredPayload::Members(members) => Payload::Membership(members.into()),
    };
    Ok(Entry { log_id: id.into(), payload })
}
