//! What each command does, one fact a test.

use std::collections::BTreeMap;

use crate::meta::command::{
    Command, Condition, HeldExtent, LogTime, ManifestReference, Proposal, PutManifest, ReferenceKind, Rejection,
    RequestId, Response,
};
use crate::meta::{Referrer, State};
use crate::oci::{Algorithm, Digest, ExtentId, HashState, RepositoryName, Tag, UploadId};
use crate::topology::{ClusterId, NodeId, NodeState, Policy, Region, Zone};

use Rejection::{
    BlobUnknown, Busy, ClusterMismatch, ConditionFailed, Expired, FeatureLevel, ManifestUnknown, MembershipChanged,
    NameTaken, NodeUnknown, NotOpen, OffsetMismatch, PolicyInvalid, Referenced, RepositoryUnknown, SizeMismatch,
    TagUnknown, TooManyUploads, UploadClosed, UploadUnknown,
};

/// A state with a log around it: each command gets the next index and a request id of its own.
struct Fixture {
    state: State,
    index: u64,
    now: u64,
}

impl Fixture {
    fn empty() -> Self {
        Self { state: State::default(), index: 0, now: 1_000_000 }
    }

    fn open() -> Self {
        let mut fixture = Self::empty();
        assert_eq!(fixture.run(form(1)), Response::Done);
        assert_eq!(fixture.run(Command::OpenRegistry), Response::Done);
        fixture
    }

    fn proposal(&self, id: u64, command: Command) -> Proposal {
        let now = LogTime(self.now);
        Proposal { id: RequestId(id.into()), issued: now, at: now, wall_seconds: 7, command }
    }

    /// Applies a command; every state on the way must be free of contradictions, and a refusal must change no table.
    fn run(&mut self, command: Command) -> Response {
        self.index += 1;
        self.now += 1;
        let proposal = self.proposal(self.index, command);
        let before = self.state.clone();
        let response = self.state.apply(self.index, &proposal);
        assert_eq!(self.state.check(), vec![], "after {proposal:?}");
        if matches!(response, Response::Rejected(_)) {
            self.assert_only_the_answer_is_new(&before, &proposal);
        }
        response
    }

    fn assert_only_the_answer_is_new(&self, before: &State, proposal: &Proposal) {
        let mut other = before.clone();
        let unknown = Command::RemoveNode { node: NodeId(u64::MAX) };
        other.apply(self.index, &Proposal { command: unknown, ..proposal.clone() });
        let rows = |state: &State| {
            let rows = state.records().filter(|record| record.number() != 10);
            rows.map(|record| crate::meta::encode_record(&record)).collect::<Vec<_>>()
        };
        assert_eq!(rows(&self.state), rows(&other), "a refused {:?} changed something", proposal.command);
    }

    fn refuses(&mut self, command: Command, rejection: Rejection) {
        assert_eq!(self.run(command), Response::Rejected(rejection));
    }

    fn accepts(&mut self, command: Command) -> Response {
        match self.run(command.clone()) {
            Response::Rejected(rejection) => panic!("{command:?} was refused: {rejection:?}"),
            response => response,
        }
    }

    fn tag(&self, name: &str) -> Option<Digest> {
        self.state.tag(&repository("r"), &tag(name)).map(|record| record.digest.clone())
    }
}

fn form(nodes_expected: u32) -> Command {
    Command::FormCluster { cluster: ClusterId(9), nodes_expected }
}

fn repository(name: &str) -> RepositoryName {
    name.parse().unwrap()
}

fn tag(name: &str) -> Tag {
    name.parse().unwrap()
}

fn digest(n: u32) -> Digest {
    Digest::of(Algorithm::Sha256, &n.to_le_bytes())
}

fn session(n: u128) -> UploadId {
    UploadId::from_random(n)
}

fn extent(n: u128, offset: u64, length: u64) -> HeldExtent {
    HeldExtent { id: ExtentId::from_random(n), offset, length, holders: vec![NodeId(1)] }
}

fn open(n: u128) -> Command {
    Command::OpenUpload {
        session: session(n),
        repository: repository("r"),
        algorithm: Algorithm::Sha256,
        holders: vec![NodeId(1), NodeId(2)],
        principal: "alice".to_owned(),
        ttl_ms: 1000,
        sessions_max: 3,
    }
}

fn append(n: u128, extent: HeldExtent) -> Command {
    let hash_state = HashState::initial(Algorithm::Sha512);
    Command::AppendExtent { session: session(n), repository: repository("r"), extent, hash_state }
}

fn commit(n: u128, last: Option<HeldExtent>, digest: Digest, size: u64) -> Command {
    let principal = "alice".to_owned();
    Command::CommitUpload { session: session(n), repository: repository("r"), last, digest, size, principal }
}

fn link(name: &str, n: u32) -> Command {
    let principal = "alice".to_owned();
    Command::LinkBlob { repository: repository(name), digest: digest(n), size: u64::from(n), principal }
}

fn unlink(n: u32, sparse: bool) -> Command {
    Command::UnlinkBlob { repository: repository("r"), digest: digest(n), sparse }
}

fn names(n: u32, kind: ReferenceKind) -> ManifestReference {
    ManifestReference { digest: digest(n), size: u64::from(n), kind, required: true }
}

/// A manifest numbered `n` that names the layers and has the tags.
fn manifest(n: u32, layers: &[u32], tags: &[&str]) -> PutManifest {
    PutManifest {
        repository: repository("r"),
        digest: digest(n),
        media_type: "application/vnd.oci.image.manifest.v1+json".parse().unwrap(),
        size: u64::from(n),
        references: layers.iter().map(|layer| names(*layer, ReferenceKind::Layer)).collect(),
        subject: None,
        artifact_type: None,
        annotations: BTreeMap::new(),
        tags: tags.iter().map(|name| tag(name)).collect(),
        condition: None,
        membership_index: 0,
        sparse: false,
        principal: "alice".to_owned(),
    }
}

fn put(n: u32, layers: &[u32], tags: &[&str]) -> Command {
    put_as(manifest(n, layers, tags))
}

fn put_as(manifest: PutManifest) -> Command {
    Command::PutManifest(Box::new(manifest))
}

fn delete(n: u32, sparse: bool) -> Command {
    Command::DeleteManifest { repository: repository("r"), digest: digest(n), sparse }
}

fn delete_tag(name: &str, condition: Option<Condition>) -> Command {
    Command::DeleteTag { repository: repository("r"), tag: tag(name), condition }
}

fn join(name: &str, key: u8) -> Command {
    Command::AddNode {
        name: name.to_owned(),
        zone: Zone("z".to_owned()),
        region: Region("e".to_owned()),
        rpc_address: "127.0.0.1:1".to_owned(),
        api_url: "http://127.0.0.1:2".to_owned(),
        weight: 1,
        key_fingerprint: [key; 32],
    }
}

fn update(node: u64, feature_level: u32) -> Command {
    Command::UpdateNode {
        node: NodeId(node),
        zone: Zone("y".to_owned()),
        region: Region("e".to_owned()),
        rpc_address: "127.0.0.1:3".to_owned(),
        api_url: "http://127.0.0.1:4".to_owned(),
        weight: 2,
        feature_level,
    }
}

fn mark(node: u64, state: NodeState) -> Command {
    Command::SetNodeState { node: NodeId(node), state }
}

mod cluster {
    use super::*;

    #[test]
    fn a_cluster_forms_once() {
        let mut fixture = Fixture::empty();
        fixture.refuses(Command::OpenRegistry, NotOpen);
        fixture.refuses(join("a", 1), NotOpen);
        fixture.accepts(form(3));
        fixture.accepts(form(3));
        let other = Command::FormCluster { cluster: ClusterId(8), nodes_expected: 3 };
        fixture.refuses(other, ClusterMismatch);
        assert_eq!(fixture.state.cluster(), Some(ClusterId(9)));
        assert_eq!(fixture.state.nodes_expected(), 3);
    }

    #[test]
    fn before_the_registry_opens_its_commands_are_refused() {
        let mut fixture = Fixture::empty();
        fixture.accepts(form(3));
        let expire = Command::ExpireUploads { sessions: vec![session(1)] };
        for command in
            [open(1), link("r", 1), put(1, &[], &[]), unlink(1, false), delete(1, false), delete_tag("t", None), expire]
        {
            fixture.refuses(command, NotOpen);
        }
        assert!(!fixture.state.is_open());
        fixture.accepts(Command::OpenRegistry);
        fixture.accepts(open(1));
        assert!(fixture.state.is_open());
    }

    #[test]
    fn a_key_has_one_id_and_ids_are_never_used_again() {
        let mut fixture = Fixture::open();
        let added = |node| Response::NodeAdded { node: NodeId(node) };
        assert_eq!(fixture.run(join("a", 1)), added(1));
        assert_eq!(fixture.run(join("b", 2)), added(2));
        assert_eq!(fixture.run(join("b", 2)), added(2));
        fixture.refuses(join("b", 3), NameTaken);
        fixture.accepts(Command::RemoveNode { node: NodeId(2) });
        fixture.refuses(Command::RemoveNode { node: NodeId(2) }, NodeUnknown);
        assert_eq!(fixture.run(join("b", 2)), added(3));
        assert_eq!(fixture.state.topology().nodes.keys().copied().collect::<Vec<_>>(), [NodeId(1), NodeId(3)]);
        assert_eq!(fixture.state.topology().index, fixture.index);
    }

    #[test]
    fn a_wiped_node_comes_back_under_its_name_once_the_old_one_is_out() {
        let mut fixture = Fixture::open();
        fixture.accepts(join("a", 1));
        fixture.refuses(join("a", 2), NameTaken);
        fixture.accepts(mark(1, NodeState::Out));
        assert_eq!(fixture.run(join("a", 2)), Response::NodeAdded { node: NodeId(2) });
        fixture.refuses(mark(1, NodeState::In), NameTaken);
        fixture.accepts(mark(2, NodeState::Out));
        fixture.accepts(mark(1, NodeState::In));
    }

    #[test]
    fn marking_a_decommissioned_node_out_does_not_forget_the_decommission() {
        let mut fixture = Fixture::open();
        fixture.accepts(join("a", 1));
        fixture.accepts(mark(1, NodeState::Decommissioned));
        fixture.accepts(mark(1, NodeState::Out));
        assert_eq!(fixture.state.node(NodeId(1)).unwrap().record.state, NodeState::Decommissioned);
        fixture.refuses(mark(2, NodeState::Out), NodeUnknown);
    }

    #[test]
    fn only_what_placement_sees_moves_the_topology_index() {
        let mut fixture = Fixture::open();
        fixture.accepts(join("a", 1));
        fixture.accepts(update(1, 1));
        let index = fixture.index;
        let topology = fixture.state.topology();
        assert_eq!((topology.index, topology.nodes[&NodeId(1)].weight), (index, 2));
        fixture.accepts(update(1, 1));
        fixture.accepts(update(1, 2));
        fixture.accepts(put(1, &[], &["t"]));
        assert_eq!(fixture.state.topology().index, index);
        assert_eq!(fixture.state.node(NodeId(1)).unwrap().feature_level, 2);
        fixture.refuses(update(7, 1), NodeUnknown);
    }

    #[test]
    fn the_feature_level_rises_when_all_know_it_and_never_falls() {
        let mut fixture = Fixture::open();
        fixture.accepts(join("a", 1));
        fixture.accepts(join("b", 2));
        fixture.accepts(update(1, 2));
        fixture.refuses(Command::RaiseFeatureLevel { level: 2 }, FeatureLevel { agreed: 1 });
        fixture.accepts(update(2, 3));
        fixture.accepts(Command::RaiseFeatureLevel { level: 2 });
        fixture.accepts(Command::RaiseFeatureLevel { level: 1 });
        assert_eq!(fixture.state.feature_level(), 2);
        fixture.refuses(update(1, 1), FeatureLevel { agreed: 2 });
    }

    #[test]
    fn a_policy_needs_its_level_and_moves_the_topology_and_the_first_yields_to_any() {
        let mut fixture = Fixture::open();
        let set = |copies, first| Command::SetPolicy { policy: Policy::of_copies(copies), first };
        fixture.refuses(set(3, true), FeatureLevel { agreed: 1 });
        assert_eq!(fixture.state.topology().policy, None);
        fixture.accepts(Command::RaiseFeatureLevel { level: 2 });
        fixture.accepts(set(3, true));
        assert_eq!(fixture.state.topology().policy, Some(Policy::of_copies(3)));
        assert_eq!(fixture.state.topology().index, fixture.index);
        fixture.accepts(set(4, false));
        let index = fixture.index;
        fixture.accepts(set(2, true));
        fixture.accepts(set(4, false));
        fixture.refuses(set(0, false), PolicyInvalid);
        assert_eq!(fixture.state.topology().policy, Some(Policy::of_copies(4)));
        assert_eq!(fixture.state.topology().index, index, "nothing changed since");
    }
}

mod requests {
    use super::*;

    #[test]
    fn a_repeated_request_gets_its_original_answer_and_changes_nothing() {
        let mut fixture = Fixture::open();
        fixture.accepts(put(1, &[], &["t"]));
        let absent = PutManifest { condition: Some(Condition::Absent), ..manifest(2, &[], &["t"]) };
        let refused = fixture.proposal(900, put_as(absent));
        let failed = Response::Rejected(ConditionFailed { current: Some(digest(1)) });
        assert_eq!(fixture.state.apply(10, &refused), failed);
        fixture.index = 11;
        fixture.accepts(delete_tag("t", None));
        // The condition would hold now; the answer stays.
        assert_eq!(fixture.state.apply(13, &refused), failed);
        let stored = fixture.proposal(901, put(3, &[], &["t"]));
        let first = fixture.state.apply(14, &stored);
        fixture.index = 14;
        fixture.accepts(delete(3, false));
        let hash = fixture.state.hash();
        assert_eq!(fixture.state.apply(16, &stored), first);
        assert_eq!((fixture.tag("t"), fixture.state.hash()), (None, hash));
    }

    #[test]
    fn answers_outlive_every_copy_of_their_command() {
        let mut fixture = Fixture::open();
        let first = fixture.proposal(900, link("r", 1));
        fixture.state.apply(10, &first);
        for later in [0, 1, 59_999, 60_000] {
            let copy = Proposal { at: LogTime(fixture.now + later), ..first.clone() };
            assert_eq!(fixture.state.apply(11, &copy), Response::Committed { digest: digest(1), size: 1 });
        }
        // Long after, a copy is refused as expired, whether remembered or not.
        let late = Proposal { at: LogTime(fixture.now + 200_000), ..first.clone() };
        assert_eq!(fixture.state.apply(12, &late), Response::Rejected(Expired));
        let remembered = fixture.state.records().filter(|record| record.number() == 10).count();
        assert_eq!(remembered, 0);
    }

    #[test]
    fn a_command_older_than_a_minute_of_log_time_is_refused() {
        let mut fixture = Fixture::open();
        let mut proposal = fixture.proposal(900, link("r", 1));
        proposal.at = LogTime(fixture.now + 60_001);
        assert_eq!(fixture.state.apply(10, &proposal), Response::Rejected(Expired));
        proposal.issued = LogTime(fixture.now + 1);
        assert_eq!(fixture.state.apply(11, &proposal), Response::Committed { digest: digest(1), size: 1 });
    }

    #[test]
    fn log_time_never_goes_back() {
        let mut fixture = Fixture::open();
        let before = fixture.state.log_time();
        let mut proposal = fixture.proposal(900, link("r", 1));
        proposal.at = LogTime(5);
        fixture.state.apply(10, &proposal);
        assert_eq!(fixture.state.log_time(), before);
    }

    #[test]
    fn when_too_many_answers_are_remembered_writes_are_busy_until_some_are_old() {
        let mut fixture = Fixture::open();
        // Long answers count for what they weigh, so this takes few of them.
        let many: Vec<u32> = (1..=4000).collect();
        let command = put(7, &many, &[]);
        for id in 0..4 {
            let response = fixture.state.apply(10, &fixture.proposal(900 + id, command.clone()));
            assert!(matches!(response, Response::Rejected(BlobUnknown { digests }) if digests.len() == 4000));
        }
        let refused = fixture.proposal(1000, link("r", 1));
        assert_eq!(fixture.state.apply(11, &refused), Response::Rejected(Busy));
        let again = fixture.proposal(900, command);
        assert!(matches!(fixture.state.apply(12, &again), Response::Rejected(BlobUnknown { .. })));
        fixture.now += 75_001;
        let later = fixture.proposal(1000, link("r", 1));
        assert_eq!(fixture.state.apply(13, &later), Response::Committed { digest: digest(1), size: 1 });
        assert_eq!(fixture.state.check(), vec![]);
    }
}

mod uploads {
    use super::*;

    #[test]
    fn extents_are_appended_only_where_the_session_ends() {
        let mut fixture = Fixture::open();
        fixture.accepts(open(1));
        let appended = |length| Response::Appended { length };
        assert_eq!(fixture.run(append(1, extent(10, 0, 5))), appended(5));
        fixture.refuses(append(1, extent(11, 0, 5)), OffsetMismatch { length: 5 });
        fixture.refuses(append(1, extent(11, 6, 5)), OffsetMismatch { length: 5 });
        fixture.refuses(append(1, extent(11, 5, u64::MAX)), OffsetMismatch { length: 5 });
        assert_eq!(fixture.run(append(1, extent(12, 5, 3))), appended(8));
        // The first one again: appended already.
        assert_eq!(fixture.run(append(1, extent(10, 0, 5))), appended(8));
        assert_eq!(fixture.run(append(1, extent(13, 8, 0))), appended(8));
        let upload = fixture.state.upload(&repository("r"), session(1)).unwrap();
        assert_eq!(upload.extents, [extent(10, 0, 5), extent(12, 5, 3)]);
        assert_eq!(upload.hash_state, HashState::initial(Algorithm::Sha512));
        assert!(fixture.state.extent_is_listed(ExtentId::from_random(12)));
        assert!(!fixture.state.extent_is_listed(ExtentId::from_random(13)));
    }

    #[test]
    fn a_commit_appends_links_and_closes_and_may_be_repeated() {
        let mut fixture = Fixture::open();
        fixture.accepts(open(1));
        fixture.accepts(append(1, extent(10, 0, 5)));
        let committed = Response::Committed { digest: digest(1), size: 8 };
        fixture.refuses(commit(1, None, digest(1), 8), OffsetMismatch { length: 5 });
        fixture.refuses(commit(1, Some(extent(11, 4, 4)), digest(1), 8), OffsetMismatch { length: 5 });
        assert_eq!(fixture.run(commit(1, Some(extent(11, 5, 3)), digest(1), 8)), committed);
        assert_eq!(fixture.state.blob(&repository("r"), &digest(1)), Some(8));
        assert_eq!(fixture.run(commit(1, Some(extent(11, 5, 3)), digest(1), 8)), committed);
        assert_eq!(fixture.run(commit(1, None, digest(1), 8)), committed);
        fixture.refuses(commit(1, None, digest(2), 8), UploadClosed);
        fixture.refuses(append(1, extent(12, 8, 1)), UploadClosed);
        fixture.refuses(Command::CancelUpload { session: session(1), repository: repository("r") }, UploadUnknown);
        let upload = fixture.state.upload(&repository("r"), session(1)).unwrap();
        assert_eq!((upload.length, upload.closed.as_ref(), upload.extents.len()), (8, Some(&digest(1)), 0));
        assert!(!fixture.state.extent_is_listed(ExtentId::from_random(10)));
    }

    #[test]
    fn a_last_extent_that_was_appended_before_is_not_appended_twice() {
        let mut fixture = Fixture::open();
        fixture.accepts(open(1));
        fixture.accepts(append(1, extent(10, 0, 5)));
        let committed = Response::Committed { digest: digest(1), size: 5 };
        assert_eq!(fixture.run(commit(1, Some(extent(10, 0, 5)), digest(1), 5)), committed);
    }

    #[test]
    fn an_empty_blob_can_be_committed() {
        let mut fixture = Fixture::open();
        fixture.accepts(open(1));
        fixture.accepts(commit(1, None, digest(0), 0));
        assert_eq!(fixture.state.blob(&repository("r"), &digest(0)), Some(0));
    }

    #[test]
    fn a_session_is_unknown_in_another_repository() {
        let mut fixture = Fixture::open();
        fixture.accepts(open(1));
        let other = repository("other");
        assert!(fixture.state.upload(&other, session(1)).is_none());
        let cancel = Command::CancelUpload { session: session(1), repository: other.clone() };
        fixture.refuses(cancel, UploadUnknown);
        let hash_state = HashState::initial(Algorithm::Sha256);
        let extent = extent(1, 0, 1);
        let append = Command::AppendExtent { session: session(1), repository: other.clone(), extent, hash_state };
        fixture.refuses(append, UploadUnknown);
        let principal = String::new();
        let (session, digest) = (session(1), digest(0));
        fixture.refuses(
            Command::CommitUpload { session, repository: other, last: None, digest, size: 0, principal },
            UploadUnknown,
        );
    }

    #[test]
    fn a_principal_has_so_many_open_sessions_and_closed_ones_do_not_count() {
        let mut fixture = Fixture::open();
        for n in 1..=3 {
            fixture.accepts(open(n));
        }
        // The same session again is the same session.
        fixture.accepts(open(2));
        fixture.refuses(open(4), TooManyUploads { max: 3 });
        fixture.accepts(commit(1, None, digest(0), 0));
        fixture.accepts(open(4));
        fixture.refuses(open(5), TooManyUploads { max: 3 });
        fixture.accepts(Command::CancelUpload { session: session(4), repository: repository("r") });
        fixture.accepts(open(5));
    }

    #[test]
    fn a_session_expires_only_when_it_was_not_used_in_time() {
        let mut fixture = Fixture::open();
        fixture.accepts(open(1));
        fixture.accepts(open(2));
        fixture.accepts(open(3));
        fixture.accepts(commit(3, None, digest(0), 0));
        fixture.now += 900;
        fixture.accepts(append(2, extent(20, 0, 1)));
        fixture.now += 200;
        assert_eq!(fixture.state.expired_uploads(LogTime(fixture.now), 1).len(), 1);
        let sessions = vec![session(1), session(2), session(3), session(4)];
        fixture.accepts(Command::ExpireUploads { sessions: sessions.clone() });
        let here = |fixture: &Fixture, n| fixture.state.upload(&repository("r"), session(n)).is_some();
        assert_eq!([1, 2, 3].map(|n| here(&fixture, n)), [false, true, false]);
        assert!(fixture.state.extent_is_listed(ExtentId::from_random(20)));
        fixture.now += 2000;
        fixture.accepts(Command::ExpireUploads { sessions });
        assert!(!here(&fixture, 2) && !fixture.state.extent_is_listed(ExtentId::from_random(20)));
    }

    #[test]
    fn holders_can_be_replaced_while_the_session_is_open() {
        let mut fixture = Fixture::open();
        let replace = |n| Command::ReplaceHolders { session: session(n), holders: vec![NodeId(3)] };
        fixture.refuses(replace(1), UploadUnknown);
        fixture.accepts(open(1));
        fixture.accepts(replace(1));
        assert_eq!(fixture.state.upload(&repository("r"), session(1)).unwrap().holders, [NodeId(3)]);
        fixture.accepts(commit(1, None, digest(0), 0));
        fixture.refuses(replace(1), UploadClosed);
    }

    #[test]
    fn a_digest_has_one_size() {
        let mut fixture = Fixture::open();
        fixture.accepts(link("other", 5));
        fixture.accepts(open(1));
        let mismatch = SizeMismatch { digest: digest(5), expected: 5, actual: 0 };
        fixture.refuses(commit(1, None, digest(5), 0), mismatch);
    }
}

mod blobs {
    use super::*;

    #[test]
    fn a_mount_needs_the_link_in_the_source() {
        let mut fixture = Fixture::open();
        let mount = |from: &str| Command::MountBlob {
            from: repository(from),
            repository: repository("r"),
            digest: digest(5),
            principal: String::new(),
        };
        fixture.refuses(mount("a"), BlobUnknown { digests: vec![digest(5)] });
        fixture.accepts(link("a", 5));
        fixture.refuses(mount("b"), BlobUnknown { digests: vec![digest(5)] });
        assert_eq!(fixture.run(mount("a")), Response::Mounted { size: 5 });
        assert_eq!(fixture.run(mount("a")), Response::Mounted { size: 5 });
        assert_eq!(fixture.state.blob_repositories(&digest(5)), [repository("a"), repository("r")]);
        assert_eq!(fixture.state.content(&digest(5)).unwrap().links, 2);
        assert!(fixture.state.blob_repositories(&digest(6)).is_empty());
    }

    #[test]
    fn a_blob_that_a_manifest_names_stays_unless_the_repository_is_sparse() {
        let mut fixture = Fixture::open();
        fixture.refuses(unlink(5, false), RepositoryUnknown);
        fixture.accepts(link("r", 5));
        fixture.refuses(unlink(6, false), BlobUnknown { digests: vec![digest(6)] });
        fixture.accepts(put(1, &[5], &[]));
        fixture.refuses(unlink(5, false), Referenced { by: digest(1) });
        fixture.accepts(unlink(5, true));
        assert_eq!(fixture.state.blob(&repository("r"), &digest(5)), None);
        fixture.accepts(link("r", 5));
        fixture.accepts(delete(1, false));
        fixture.accepts(unlink(5, false));
        assert!(fixture.state.content(&digest(5)).is_none());
    }

    #[test]
    fn a_repository_is_there_while_it_holds_something() {
        let mut fixture = Fixture::open();
        fixture.accepts(open(1));
        assert!(!fixture.state.repository_exists(&repository("r")));
        fixture.accepts(link("r", 5));
        fixture.accepts(link("r/a", 5));
        fixture.accepts(link("a", 5));
        assert_eq!(fixture.state.repositories(None, 9), ["a", "r", "r/a"].map(repository));
        assert_eq!(fixture.state.repositories(Some("r"), 9), [repository("r/a")]);
        assert_eq!(fixture.state.repositories(Some("B!"), 1), [repository("a")]);
        fixture.accepts(unlink(5, false));
        assert!(!fixture.state.repository_exists(&repository("r")));
        assert_eq!(fixture.state.repositories(None, 9), ["a", "r/a"].map(repository));
    }

    #[test]
    fn catch_up_sees_what_began_to_count_since_an_index() {
        let mut fixture = Fixture::open();
        fixture.accepts(link("r", 5));
        let first = fixture.index;
        fixture.accepts(link("r", 6));
        fixture.accepts(link("a", 5));
        let since = |fixture: &Fixture, after| {
            let contents = fixture.state.contents_since(after).unwrap();
            contents.into_iter().map(|content| (content.size, content.body)).collect::<Vec<_>>()
        };
        assert_eq!(since(&fixture, 0), [(5, false), (6, false)]);
        assert_eq!(since(&fixture, first), [(6, false)]);
        // A blob that becomes a manifest's body is wanted on every node, so it counts anew.
        let index = fixture.index;
        fixture.accepts(put(5, &[], &[]));
        assert_eq!(since(&fixture, index), [(5, true)]);
        fixture.accepts(delete(5, false));
        assert_eq!(since(&fixture, 0), [(6, false), (5, false)]);
        let listed = fixture.state.contents(None, 9);
        assert!(listed.is_sorted_by_key(|content| content.digest.clone()) && listed.len() == 2);
        assert_eq!(fixture.state.contents(Some(&listed[0].digest), 9), listed[1..]);
    }
}

mod manifests {
    use super::*;

    #[test]
    fn a_manifest_is_refused_while_something_it_demands_is_missing() {
        let mut fixture = Fixture::open();
        fixture.accepts(link("other", 6));
        fixture.accepts(link("r", 5));
        fixture.refuses(put(1, &[6, 5, 7, 6], &["t"]), BlobUnknown { digests: vec![digest(6), digest(7)] });
        assert_eq!(fixture.tag("t"), None);
        fixture.accepts(link("r", 6));
        fixture.accepts(link("r", 7));
        let stored = |created| Response::ManifestStored { digest: digest(1), created };
        assert_eq!(fixture.run(put(1, &[6, 5, 7, 6], &["t"])), stored(true));
        assert_eq!(fixture.run(put(1, &[6, 5, 7, 6], &["u"])), stored(false));
        assert_eq!((fixture.tag("t"), fixture.tag("u")), (Some(digest(1)), Some(digest(1))));
    }

    #[test]
    fn a_child_must_be_a_manifest_and_a_layer_a_blob() {
        let mut fixture = Fixture::open();
        fixture.accepts(link("r", 5));
        fixture.accepts(put(6, &[], &[]));
        let index = |references| put_as(PutManifest { references, ..manifest(1, &[], &[]) });
        let unknown = |n| BlobUnknown { digests: vec![digest(n)] };
        fixture.refuses(index(vec![names(5, ReferenceKind::Manifest)]), unknown(5));
        fixture.refuses(index(vec![names(6, ReferenceKind::Layer)]), unknown(6));
        fixture.refuses(index(vec![names(6, ReferenceKind::Config)]), unknown(6));
        fixture.accepts(index(vec![names(6, ReferenceKind::Manifest), names(5, ReferenceKind::Layer)]));
        fixture.refuses(delete(6, false), Referenced { by: digest(1) });
    }

    #[test]
    fn a_size_that_differs_from_what_is_there_is_refused() {
        let mut fixture = Fixture::open();
        fixture.accepts(link("r", 5));
        let mut wrong = manifest(1, &[5], &[]);
        wrong.references[0].size = 4;
        let mismatch = SizeMismatch { digest: digest(5), expected: 5, actual: 4 };
        fixture.refuses(put_as(wrong.clone()), mismatch.clone());
        fixture.refuses(put_as(PutManifest { sparse: true, ..wrong }), mismatch);
        let wrong = PutManifest { size: 9, ..manifest(5, &[], &[]) };
        fixture.refuses(put_as(wrong), SizeMismatch { digest: digest(5), expected: 5, actual: 9 });
    }

    #[test]
    fn what_is_not_required_need_not_be_there_but_is_kept_when_it_is() {
        let mut fixture = Fixture::open();
        let mut foreign = manifest(1, &[5, 6], &[]);
        foreign.references[0].required = false;
        foreign.references[1].required = false;
        fixture.accepts(link("r", 5));
        fixture.accepts(put_as(foreign));
        fixture.refuses(unlink(5, false), Referenced { by: digest(1) });
    }

    #[test]
    fn a_sparse_repository_takes_manifests_whose_references_are_missing() {
        let mut fixture = Fixture::open();
        fixture.accepts(put_as(PutManifest { sparse: true, ..manifest(1, &[5], &["t"]) }));
        assert_eq!(fixture.tag("t"), Some(digest(1)));
    }

    #[test]
    fn a_put_made_under_another_membership_is_refused() {
        let mut fixture = Fixture::open();
        fixture.state.set_membership(77);
        fixture.refuses(put(1, &[], &["t"]), MembershipChanged);
        fixture.accepts(put_as(PutManifest { membership_index: 77, ..manifest(1, &[], &["t"]) }));
    }

    #[test]
    fn conditions_hold_for_all_tags_or_nothing_is_done() {
        let (none, one, two) = (None, Some(digest(1)), Some(digest(2)));
        let is = |n| Condition::Is(vec![digest(8), digest(n)]);
        let is_not = |n| Condition::IsNot(vec![digest(8), digest(n)]);
        // Tags before, condition, the value at which it fails.
        let cases = [
            (vec![], Condition::Absent, None),
            (vec!["t"], Condition::Absent, Some(one.clone())),
            (vec!["u"], Condition::Absent, Some(one.clone())),
            (vec!["t", "u"], Condition::Exists, None),
            (vec!["t"], Condition::Exists, Some(none.clone())),
            (vec!["t", "u"], is(1), None),
            (vec!["t", "u"], is(2), Some(one.clone())),
            (vec!["u"], is(1), Some(none)),
            (vec!["t", "u"], is_not(2), None),
            (vec!["u"], is_not(1), Some(one)),
            (vec![], is_not(1), None),
        ];
        for (before, condition, fails_at) in cases {
            let mut fixture = Fixture::open();
            fixture.accepts(put(1, &[], &before));
            let conditional = PutManifest { condition: Some(condition.clone()), ..manifest(2, &[], &["t", "u"]) };
            match fails_at {
                None => {
                    fixture.accepts(put_as(conditional));
                    assert_eq!((fixture.tag("t"), fixture.tag("u")), (two.clone(), two.clone()));
                }
                Some(current) => {
                    fixture.refuses(put_as(conditional), ConditionFailed { current });
                    assert!(fixture.tag("t") != two && fixture.tag("u") != two, "{condition:?} on {before:?}");
                }
            }
        }
    }

    #[test]
    fn a_condition_without_tags_is_about_the_manifest() {
        let mut fixture = Fixture::open();
        let absent = || put_as(PutManifest { condition: Some(Condition::Absent), ..manifest(1, &[], &[]) });
        fixture.accepts(absent());
        fixture.refuses(absent(), ConditionFailed { current: Some(digest(1)) });
    }

    #[test]
    fn deleting_a_manifest_drops_its_tags() {
        let mut fixture = Fixture::open();
        fixture.refuses(delete(1, false), RepositoryUnknown);
        fixture.accepts(put(1, &[], &["a", "b", "c"]));
        fixture.accepts(put(2, &[], &["b"]));
        fixture.refuses(delete(3, false), ManifestUnknown);
        fixture.accepts(delete(1, false));
        assert_eq!(fixture.state.tags(&repository("r"), None, 9), [tag("b")]);
        assert!(fixture.state.manifest(&repository("r"), &digest(1)).is_none());
        fixture.accepts(delete(2, false));
        assert!(!fixture.state.repository_exists(&repository("r")));
        assert_eq!(fixture.state.contents(None, 9), []);
    }

    #[test]
    fn referrers_follow_their_subject_softly() {
        let mut fixture = Fixture::open();
        let refer = |n: u32, to| {
            let annotations = BTreeMap::from([("k".to_owned(), n.to_string())]);
            let artifact_type = Some("application/x".to_owned());
            put_as(PutManifest { subject: Some(digest(to)), annotations, artifact_type, ..manifest(n, &[], &[]) })
        };
        let list = |fixture: &Fixture, subject, after: Option<&Digest>| {
            fixture.state.referrers(&repository("r"), &digest(subject), after).collect::<Vec<Referrer>>()
        };
        for n in 2..7 {
            fixture.accepts(refer(n, 1));
        }
        fixture.accepts(refer(7, 2));
        fixture.accepts(put(1, &[], &[]));
        fixture.accepts(delete(1, false));
        let all = list(&fixture, 1, None);
        assert!(all.len() == 5 && all.is_sorted_by_key(|referrer| referrer.digest.clone()));
        let third = &all[2];
        assert_eq!(third.annotations["k"], third.size.to_string());
        assert_eq!(list(&fixture, 1, Some(&third.digest)), all[3..]);
        fixture.accepts(Command::DeleteManifest {
            repository: repository("r"),
            digest: third.digest.clone(),
            sparse: false,
        });
        assert_eq!(list(&fixture, 1, None).len(), 4);
        assert_eq!(list(&fixture, 9, None), []);
        assert_eq!(fixture.state.referrers(&repository("x"), &digest(1), None).count(), 0);
    }
}

mod tags {
    use super::*;
    use crate::meta::rows::{DELETED_TAGS_MAX, HISTORY_MAX};

    fn past(fixture: &Fixture, name: &str) -> Vec<Option<Digest>> {
        let events = fixture.state.tag_history(&repository("r"), &tag(name));
        events.iter().map(|event| event.digest.clone()).collect()
    }

    #[test]
    fn a_tag_is_deleted_under_its_condition() {
        let mut fixture = Fixture::open();
        fixture.refuses(delete_tag("t", None), RepositoryUnknown);
        fixture.accepts(put(1, &[], &["u"]));
        fixture.refuses(delete_tag("t", None), TagUnknown);
        let other = Some(Condition::Is(vec![digest(2)]));
        fixture.refuses(delete_tag("u", other), ConditionFailed { current: Some(digest(1)) });
        fixture.accepts(delete_tag("u", Some(Condition::Is(vec![digest(1)]))));
        assert_eq!(fixture.tag("u"), None);
        assert!(fixture.state.manifest(&repository("r"), &digest(1)).is_some());
    }

    #[test]
    fn tags_are_listed_in_byte_order_after_any_text() {
        let mut fixture = Fixture::open();
        fixture.accepts(put(1, &[], &["b", "B", "a.1", "a-1", "_"]));
        let list = |after, limit| fixture.state.tags(&repository("r"), after, limit);
        assert_eq!(list(None, 9), ["B", "_", "a-1", "a.1", "b"].map(tag));
        assert_eq!(list(Some("_"), 2), ["a-1", "a.1"].map(tag));
        assert_eq!(list(Some("a!"), 1), ["a-1"].map(tag));
        assert!(list(Some("zz"), 9).is_empty() && fixture.state.tags(&repository("x"), None, 9).is_empty());
    }

    #[test]
    fn history_tells_what_a_tag_was() {
        let mut fixture = Fixture::open();
        for (n, name) in [(1, "t"), (1, "t"), (2, "t"), (1, "t")] {
            fixture.accepts(put(n, &[], &[name]));
        }
        assert_eq!(past(&fixture, "t"), [Some(digest(1)), Some(digest(2))]);
        fixture.accepts(delete_tag("t", None));
        assert_eq!(past(&fixture, "t"), [Some(digest(1)), Some(digest(2)), Some(digest(1)), None]);
        fixture.accepts(put(2, &[], &["t"]));
        fixture.accepts(delete(2, false));
        assert_eq!(past(&fixture, "t")[3..], [None, Some(digest(2)), None]);
    }

    #[test]
    fn history_is_bounded_per_tag_and_per_repository() {
        let mut fixture = Fixture::open();
        let step = |fixture: &mut Fixture, command| {
            fixture.index += 1;
            let response = fixture.state.apply(fixture.index, &fixture.proposal(fixture.index, command));
            assert!(!matches!(response, Response::Rejected(_)), "{response:?}");
        };
        for n in 0..u32::try_from(HISTORY_MAX).unwrap() + 50 {
            step(&mut fixture, put(n % 3, &[], &["t"]));
        }
        assert_eq!(past(&fixture, "t").len(), HISTORY_MAX);
        for n in 0..DELETED_TAGS_MAX + 5 {
            step(&mut fixture, put(1, &[], &[&format!("d{n}")]));
            step(&mut fixture, delete_tag(&format!("d{n}"), None));
        }
        assert!(past(&fixture, "d4").is_empty() && past(&fixture, "d5").len() == 2);
        assert_eq!(past(&fixture, "t").len(), HISTORY_MAX);
        assert_eq!(fixture.state.check(), vec![]);
    }
}
