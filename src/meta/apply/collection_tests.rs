//! What collection takes and what it must leave, one fact a test, and against a model that knows nothing of its rules.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use proptest::collection::vec;
use proptest::prelude::*;

use crate::meta::command::{
    CollectionRules, Command, HeldExtent, LogTime, ManifestReference, Proposal, PutManifest, ReferenceKind, Rejection,
    RequestId, Response,
};
use crate::meta::{Fate, Keeper, Miscount, Recount, State};
use crate::oci::{Algorithm, Digest, ExtentId, RepositoryName, UploadId};
use crate::topology::ClusterId;

const LEASE: u64 = 1000;
const AGE: u64 = 5000;
/// How long an upload session lives.
const TTL: u64 = 3 * LEASE;
const KEEP: CollectionRules = CollectionRules { lease_ms: LEASE, untagged_ms: None };
const DELETE: CollectionRules = CollectionRules { lease_ms: LEASE, untagged_ms: Some(AGE) };

struct Fixture {
    state: State,
    index: u64,
    now: u64,
}

impl Fixture {
    /// A registry at the feature level of its first release.
    fn old() -> Self {
        let mut fixture = Self { state: State::default(), index: 0, now: 1_000_000 };
        fixture.run(Command::FormCluster { cluster: ClusterId(9), nodes_expected: 1 });
        fixture.run(Command::OpenRegistry);
        fixture
    }

    fn open() -> Self {
        Self::at_level(3)
    }

    fn at_level(level: u32) -> Self {
        let mut fixture = Self::old();
        assert_eq!(fixture.run(Command::RaiseFeatureLevel { level }), Response::Done);
        fixture
    }

    fn run(&mut self, command: Command) -> Response {
        self.index += 1;
        let at = LogTime(self.now);
        let proposal = Proposal { id: RequestId(self.index.into()), issued: at, at, wall_seconds: 7, command };
        self.state.apply(self.index, &proposal)
    }

    fn link(&mut self, name: &str, n: u32) {
        let size = size(n, false);
        let command =
            Command::LinkBlob { repository: repository(name), digest: digest(n), size, principal: String::new() };
        assert!(matches!(self.run(command), Response::Committed { .. }));
    }

    /// Opens an upload session.
    fn begin(&mut self, name: &str, session: u128) {
        let open = Command::OpenUpload {
            session: UploadId::from_random(session),
            repository: repository(name),
            algorithm: Algorithm::Sha256,
            holders: vec![],
            principal: String::new(),
            ttl_ms: TTL,
            sessions_max: 99,
        };
        assert_eq!(self.run(open), Response::Done);
    }

    /// Ends an upload session with a blob.
    fn commit(&mut self, name: &str, session: u128, n: u32) {
        let size = size(n, false);
        let id = ExtentId::from_random(session);
        let commit = Command::CommitUpload {
            session: UploadId::from_random(session),
            repository: repository(name),
            last: Some(HeldExtent { id, offset: 0, length: size, holders: vec![] }),
            digest: digest(n),
            size,
            principal: String::new(),
        };
        assert_eq!(self.run(commit), Response::Committed { digest: digest(n), size });
    }

    /// Ends an upload session without a blob.
    fn cancel(&mut self, name: &str, session: u128) {
        let (session, repository) = (UploadId::from_random(session), repository(name));
        assert_eq!(self.run(Command::CancelUpload { session, repository }), Response::Done);
    }

    /// Drops the sessions whose time is over, as the leader does.
    fn expire(&mut self) {
        let sessions = self.state.expired_uploads(LogTime(self.now), 99);
        self.run(Command::ExpireUploads { sessions });
    }

    fn blob_fate(&self, n: u32, rules: CollectionRules) -> Fate {
        self.state.blob_fate(&repository("r"), &digest(n), &rules, LogTime(self.now))
    }

    fn put(&mut self, put: PutManifest) {
        let response = self.run(Command::PutManifest(Box::new(put.clone())));
        assert!(matches!(response, Response::ManifestStored { .. }), "{put:?}: {response:?}");
    }

    fn untag(&mut self, tag: &str) {
        let command = Command::DeleteTag { repository: repository("r"), tag: tag.parse().unwrap(), condition: None };
        assert_eq!(self.run(command), Response::Done);
    }

    fn delete(&mut self, n: u32) {
        let command = Command::DeleteManifest { repository: repository("r"), digest: digest(n), sparse: false };
        assert_eq!(self.run(command), Response::Done);
    }

    /// Asks for everything there is to be collected.
    fn collect(&mut self, rules: CollectionRules) -> (u32, u32, u64) {
        self.collect_in("r", rules)
    }

    fn collect_in(&mut self, name: &str, rules: CollectionRules) -> (u32, u32, u64) {
        let all: Vec<Digest> = (0..200).map(digest).collect();
        let repository = repository(name);
        let response = self.run(Command::Collect { repository, blobs: all.clone(), manifests: all, rules });
        assert_eq!(self.state.check(), vec![]);
        match response {
            Response::Collected { blobs, manifests, bytes } => (blobs, manifests, bytes),
            other => panic!("{other:?}"),
        }
    }

    fn blob(&self, n: u32) -> bool {
        self.state.blob(&repository("r"), &digest(n)).is_some()
    }

    fn manifest(&self, n: u32) -> bool {
        self.state.manifest(&repository("r"), &digest(n)).is_some()
    }

    fn keeper(&self, n: u32, rules: CollectionRules) -> Keeper {
        match self.state.manifest_fate(&repository("r"), &digest(n), &rules, LogTime(self.now)) {
            Fate::Kept(keeper) => keeper,
            fate => panic!("{n}: {fate:?}"),
        }
    }
}

fn repository(name: &str) -> RepositoryName {
    name.parse().unwrap()
}

fn digest(n: u32) -> Digest {
    // Hashed once: without optimisation that is most of what these tests do.
    static DIGESTS: LazyLock<Vec<Digest>> =
        LazyLock::new(|| (0u32..200).map(|n| Digest::of(Algorithm::Sha256, &n.to_le_bytes())).collect());
    DIGESTS[n as usize].clone()
}

fn reference(n: u32, kind: ReferenceKind) -> ManifestReference {
    let size = size(n, kind == ReferenceKind::Manifest);
    ManifestReference { digest: digest(n), size, kind, required: true }
}

/// The length of a content, which is the same whatever it is named as.
fn size(n: u32, manifest: bool) -> u64 {
    if manifest || BOTH.contains(&n) { 100 } else { 10 }
}

fn manifest(n: u32, blobs: &[u32], tags: &[&str]) -> PutManifest {
    PutManifest {
        repository: repository("r"),
        digest: digest(n),
        media_type: "application/vnd.oci.image.manifest.v1+json".parse().unwrap(),
        size: 100,
        references: blobs.iter().map(|n| reference(*n, ReferenceKind::Layer)).collect(),
        subject: None,
        artifact_type: None,
        annotations: BTreeMap::new(),
        tags: tags.iter().map(|tag| tag.parse().unwrap()).collect(),
        condition: None,
        membership_index: 0,
        sparse: false,
        principal: String::new(),
    }
}

fn index(n: u32, children: &[u32], tags: &[&str]) -> PutManifest {
    let references = children.iter().map(|n| reference(*n, ReferenceKind::Manifest)).collect();
    PutManifest { references, ..manifest(n, &[], tags) }
}

fn referrer(n: u32, subject: u32) -> PutManifest {
    PutManifest { subject: Some(digest(subject)), ..manifest(n, &[], &[]) }
}

#[test]
fn a_blob_that_nothing_names_goes_when_its_lease_is_over_and_no_sooner() {
    let mut fixture = Fixture::open();
    fixture.link("r", 1);
    fixture.now += LEASE - 1;
    assert_eq!(fixture.collect(KEEP), (0, 0, 0));
    fixture.now += 1;
    assert_eq!(fixture.collect(KEEP), (1, 0, 10));
    assert!(!fixture.state.repository_exists(&repository("r")) && fixture.state.content(&digest(1)).is_none());
    assert_eq!(fixture.collect(KEEP), (0, 0, 0), "of a repository that is gone");
}

#[test]
fn a_push_a_mount_or_a_renewal_before_the_collection_keeps_a_blob() {
    let mut fixture = Fixture::open();
    for n in 1..=4 {
        fixture.link("r", n);
    }
    fixture.link("other", 2);
    fixture.now += LEASE;
    fixture.link("r", 1);
    let mount = Command::MountBlob {
        from: repository("other"),
        repository: repository("r"),
        digest: digest(2),
        principal: String::new(),
    };
    assert_eq!(fixture.run(mount), Response::Mounted { size: 10 });
    let links = vec![(repository("r"), digest(3)), (repository("gone"), digest(3)), (repository("r"), digest(99))];
    assert_eq!(fixture.run(Command::RenewLeases { links }), Response::Done);
    assert_eq!(fixture.collect(KEEP), (1, 0, 10));
    assert!(fixture.blob(1) && fixture.blob(2) && fixture.blob(3) && !fixture.blob(4));
}

#[test]
fn what_a_manifest_names_stays_and_a_manifest_after_the_collection_is_refused_whole() {
    let mut fixture = Fixture::open();
    fixture.link("r", 1);
    fixture.link("r", 2);
    fixture.put(manifest(10, &[1], &["t"]));
    fixture.now += LEASE;
    assert_eq!(fixture.collect(KEEP), (1, 0, 10));
    let refused = fixture.run(Command::PutManifest(Box::new(manifest(11, &[1, 2], &["t"]))));
    assert_eq!(refused, Response::Rejected(Rejection::BlobUnknown { digests: vec![digest(2)] }));
    assert!(fixture.blob(1) && fixture.manifest(10) && !fixture.manifest(11));
    assert_eq!(fixture.state.tag(&repository("r"), &"t".parse().unwrap()).unwrap().digest, digest(10));
}

#[test]
fn a_blob_whose_last_manifest_went_has_a_whole_lease_again() {
    let mut fixture = Fixture::open();
    fixture.link("r", 1);
    fixture.put(manifest(10, &[1], &["t"]));
    fixture.put(manifest(11, &[1], &["u"]));
    fixture.now += 10 * LEASE;
    // A client may be told now that the blob is there, which renews nothing, as it is named.
    assert!(!fixture.state.blob_lease_is_short(&repository("r"), &digest(1), &KEEP, LogTime(fixture.now)));
    fixture.delete(10);
    fixture.delete(11);
    fixture.now += LEASE - 1;
    assert_eq!(fixture.collect(KEEP), (0, 0, 0));
    fixture.now += 1;
    assert_eq!(fixture.collect(KEEP), (1, 0, 10));
}

#[test]
fn only_the_link_of_that_repository_goes_and_bytes_count_when_the_last_one_does() {
    let mut fixture = Fixture::open();
    fixture.link("r", 1);
    fixture.link("other", 1);
    fixture.now += LEASE;
    assert_eq!(fixture.collect(KEEP), (1, 0, 0));
    assert!(!fixture.blob(1) && fixture.state.blob(&repository("other"), &digest(1)) == Some(10));
    assert_eq!(fixture.collect_in("other", KEEP), (1, 0, 10));
}

#[test]
fn a_lease_is_short_when_less_than_half_of_it_is_left_and_nothing_names_the_blob() {
    let mut fixture = Fixture::open();
    fixture.link("r", 1);
    let short = |fixture: &Fixture| {
        fixture.state.blob_lease_is_short(&repository("r"), &digest(1), &KEEP, LogTime(fixture.now))
    };
    assert!(!short(&fixture));
    fixture.now += LEASE / 2;
    assert!(!short(&fixture));
    fixture.now += 1;
    assert!(short(&fixture));
    fixture.now += LEASE;
    assert!(short(&fixture), "over, but not collected yet");
    fixture.put(manifest(10, &[1], &[]));
    assert!(!short(&fixture));
}

#[test]
fn untagged_manifests_are_kept_unless_the_policy_says_how_long() {
    let mut fixture = Fixture::open();
    fixture.link("r", 1);
    fixture.put(manifest(10, &[1], &["t"]));
    fixture.put(manifest(11, &[], &["u"]));
    fixture.now += 10 * AGE;
    assert_eq!(fixture.keeper(10, DELETE), Keeper::Tag("t".parse().unwrap()));
    fixture.untag("t");
    // The age counts from the loss of the last tag, not from the push.
    fixture.now += AGE - 1;
    assert_eq!(fixture.collect(DELETE), (0, 0, 0));
    fixture.now += 1;
    assert_eq!((fixture.keeper(10, KEEP), fixture.collect(KEEP)), (Keeper::Policy, (0, 0, 0)));
    assert_eq!(fixture.collect(DELETE), (0, 1, 100));
    assert!(!fixture.manifest(10) && fixture.manifest(11) && fixture.blob(1));
    fixture.now += LEASE;
    assert_eq!(fixture.collect(DELETE), (1, 0, 10));
}

#[test]
fn a_manifest_that_is_put_again_asked_for_or_loses_its_tag_to_another_begins_its_age_anew() {
    let mut fixture = Fixture::open();
    for n in 10..13 {
        fixture.put(manifest(n, &[], &[]));
    }
    fixture.put(manifest(13, &[], &["t"]));
    fixture.now += AGE;
    fixture.put(manifest(10, &[], &[]));
    fixture.run(Command::RenewLeases { links: vec![(repository("r"), digest(11))] });
    fixture.put(manifest(14, &[], &["t"]));
    assert_eq!(fixture.collect(DELETE), (0, 1, 100));
    assert!(fixture.manifest(10) && fixture.manifest(11) && !fixture.manifest(12) && fixture.manifest(13));
    fixture.now += AGE;
    assert_eq!(fixture.collect(DELETE), (0, 3, 300));
    assert!(fixture.manifest(14));
}

#[test]
fn children_and_referrers_follow_what_kept_them_a_lease_later() {
    let mut fixture = Fixture::open();
    fixture.put(manifest(10, &[], &[]));
    fixture.put(index(11, &[10], &["t"]));
    fixture.put(referrer(12, 11));
    fixture.put(referrer(13, 12));
    fixture.now += 10 * AGE;
    assert_eq!(fixture.keeper(10, DELETE), Keeper::Manifest(digest(11)));
    assert_eq!(fixture.keeper(12, DELETE), Keeper::Subject(digest(11)));
    assert_eq!(fixture.keeper(13, DELETE), Keeper::Subject(digest(12)));
    assert_eq!(fixture.collect(DELETE), (0, 0, 0));
    fixture.untag("t");
    fixture.now += AGE;
    assert_eq!(fixture.collect(DELETE), (0, 1, 100), "the index");
    fixture.now += LEASE - 1;
    assert_eq!(fixture.collect(DELETE), (0, 0, 0));
    fixture.now += 1;
    assert_eq!(fixture.collect(DELETE), (0, 2, 200), "its child and its referrer");
    fixture.now += LEASE;
    assert_eq!(fixture.collect(DELETE), (0, 1, 100), "the referrer's referrer");
}

#[test]
fn a_referrer_whose_subject_never_came_stays_and_one_whose_subject_was_deleted_goes() {
    let mut fixture = Fixture::open();
    fixture.put(referrer(10, 50));
    fixture.put(manifest(11, &[], &["t"]));
    fixture.put(referrer(12, 11));
    fixture.now += 10 * AGE;
    fixture.delete(11);
    fixture.now += AGE - 1;
    assert_eq!(fixture.collect(DELETE), (0, 0, 0));
    fixture.now += 1;
    assert_eq!(fixture.collect(DELETE), (0, 1, 100));
    assert_eq!(fixture.keeper(10, DELETE), Keeper::SubjectToCome(digest(50)));
    assert!(!fixture.manifest(12));
}

#[test]
fn an_index_and_the_child_it_refers_to_do_not_keep_each_other_for_ever() {
    let mut fixture = Fixture::open();
    fixture.put(manifest(10, &[], &[]));
    fixture.put(index(11, &[10], &[]));
    fixture.put(PutManifest { subject: Some(digest(10)), ..index(12, &[11], &[]) });
    fixture.now += AGE;
    for expected in [(0, 1, 100), (0, 1, 100), (0, 1, 100)] {
        assert_eq!(fixture.collect(DELETE), expected);
        fixture.now += LEASE;
    }
}

#[test]
fn an_index_that_refers_to_its_own_child_stays_while_something_else_keeps_the_child() {
    let mut fixture = Fixture::open();
    fixture.put(manifest(10, &[], &["t"]));
    fixture.put(PutManifest { subject: Some(digest(10)), ..index(11, &[10], &[]) });
    fixture.now += 10 * AGE;
    assert_eq!(fixture.keeper(11, DELETE), Keeper::Subject(digest(10)));
    assert_eq!(fixture.collect(DELETE), (0, 0, 0));
}

#[test]
fn a_sparse_index_keeps_what_comes_later_than_itself() {
    let mut fixture = Fixture::open();
    fixture.put(PutManifest { sparse: true, ..index(11, &[10, 9], &["t"]) });
    fixture.link("r", 1);
    fixture.put(manifest(10, &[1], &[]));
    fixture.now += 10 * AGE;
    assert_eq!(fixture.collect(DELETE), (0, 0, 0));
    assert!(fixture.manifest(10) && fixture.blob(1));
}

#[test]
fn three_manifests_do_not_keep_each_other_for_ever() {
    let mut fixture = Fixture::open();
    fixture.put(manifest(10, &[], &[]));
    fixture.put(referrer(11, 10));
    fixture.put(PutManifest { subject: Some(digest(11)), ..index(12, &[10], &[]) });
    fixture.now += AGE - 1;
    assert_eq!(fixture.collect(DELETE), (0, 0, 0));
    for _ in 0..4 {
        fixture.now += AGE;
        fixture.collect(DELETE);
    }
    assert!((10..13).all(|n| !fixture.manifest(n)));
}

#[test]
fn three_manifests_in_a_circle_stay_while_one_of_them_is_tagged_or_was_lately() {
    for tagged in 10..13 {
        let mut fixture = Fixture::open();
        let tags = |n| if n == tagged { &["t"][..] } else { &[][..] };
        fixture.put(manifest(10, &[], tags(10)));
        fixture.put(PutManifest { subject: Some(digest(10)), ..manifest(11, &[], tags(11)) });
        fixture.put(PutManifest { subject: Some(digest(11)), ..index(12, &[10], tags(12)) });
        fixture.now += 10 * AGE;
        assert_eq!(fixture.collect(DELETE), (0, 0, 0));
        fixture.untag("t");
        // A client that was told of any of them a moment ago, when the tag kept it, may rely on it.
        fixture.now += AGE - 1;
        assert_eq!(fixture.collect(DELETE), (0, 0, 0), "tagged: {tagged}");
        for _ in 0..4 {
            fixture.now += AGE;
            fixture.collect(DELETE);
        }
        assert!((10..13).all(|n| !fixture.manifest(n)), "tagged: {tagged}");
    }
}

#[test]
fn content_named_as_the_other_kind_keeps_its_promise_when_the_name_goes() {
    let mut fixture = Fixture::open();
    let (blob, body) = (BOTH.start, BOTH.start + 1);
    fixture.link("r", blob);
    fixture.put(manifest(body, &[], &[]));
    let other = PutManifest { references: vec![reference(body, ReferenceKind::Layer)], ..manifest(11, &[], &["u"]) };
    fixture.put(PutManifest { sparse: true, ..index(10, &[blob], &["t"]) });
    fixture.put(PutManifest { sparse: true, ..other });
    fixture.now += 10 * AGE;
    // Named, so nobody renews anything for the client that is told of them now.
    let (name, now) = (repository("r"), LogTime(fixture.now));
    assert!(!fixture.state.blob_lease_is_short(&name, &digest(blob), &DELETE, now));
    assert!(!fixture.state.manifest_lease_is_short(&name, &digest(body), &DELETE, now));
    fixture.delete(10);
    fixture.delete(11);
    fixture.now += LEASE - 1;
    assert_eq!(fixture.collect(DELETE), (0, 0, 0));
    assert!(fixture.blob(blob) && fixture.manifest(body));
    fixture.now += AGE;
    assert_eq!(fixture.collect(DELETE), (1, 1, 200));
}

/// A push of a small layer beside a large one that takes longer than a lease; `end` ends the latter. Stops a moment before
/// the lease after that.
fn long_push(fixture: &mut Fixture, rules: CollectionRules, end: impl FnOnce(&mut Fixture)) {
    fixture.begin("r", 1);
    fixture.begin("r", 2);
    fixture.commit("r", 1, 1);
    fixture.now += 2 * LEASE + LEASE / 5;
    fixture.collect(rules);
    end(fixture);
    fixture.now += LEASE - 1;
    fixture.collect(rules);
}

#[test]
fn a_running_push_keeps_its_earlier_blobs_until_its_manifest_comes() {
    let mut fixture = Fixture::open();
    long_push(&mut fixture, KEEP, |fixture| {
        assert!(
            matches!(fixture.blob_fate(1, KEEP), Fate::Kept(Keeper::Upload { until }) if until.0 == fixture.now + LEASE)
        );
        fixture.commit("r", 2, 2);
    });
    fixture.put(manifest(10, &[1, 2], &["t"]));
    assert!(fixture.blob(1) && fixture.blob(2));
}

#[test]
fn what_a_push_had_before_goes_a_lease_after_it_was_cancelled_or_has_expired() {
    let cancel: fn(&mut Fixture) = |fixture| fixture.cancel("r", 2);
    let lapse: fn(&mut Fixture) = |fixture| {
        fixture.now += TTL - 2 * LEASE - LEASE / 5;
        fixture.expire();
    };
    for end in [cancel, lapse] {
        let mut fixture = Fixture::open();
        long_push(&mut fixture, KEEP, end);
        assert!(fixture.blob(1));
        fixture.now += 1;
        assert_eq!(fixture.collect(KEEP), (1, 0, 10));
    }
}

#[test]
fn a_running_push_keeps_the_manifests_of_its_index_too_and_nothing_elsewhere() {
    const SOON: CollectionRules = CollectionRules { lease_ms: LEASE, untagged_ms: Some(LEASE) };
    let mut fixture = Fixture::open();
    fixture.put(manifest(10, &[], &[]));
    fixture.link("other", 3);
    long_push(&mut fixture, SOON, |fixture| {
        assert_eq!(fixture.collect_in("other", SOON), (1, 0, 10));
        fixture.commit("r", 2, 2);
    });
    assert!(fixture.manifest(10) && fixture.blob(1));
    fixture.now += 1;
    assert_eq!(fixture.collect(SOON), (2, 1, 120));
}

#[test]
fn where_somebody_pushes_all_the_time_a_link_goes_a_time_to_live_and_a_lease_after_its_own() {
    let mut fixture = Fixture::open();
    fixture.link("r", 1);
    let began = fixture.now;
    fixture.begin("r", 1000);
    for session in 1..100 {
        fixture.begin("r", session);
        fixture.now += LEASE / 10;
        fixture.commit("r", session, 2);
        fixture.expire();
        fixture.collect(KEEP);
        assert_eq!(fixture.blob(1), fixture.now < began + TTL + LEASE);
    }
    assert!(fixture.now > began + 2 * TTL && fixture.blob(2));
}

#[test]
fn a_client_that_asks_while_an_upload_runs_has_the_lease_renewed_all_the_same() {
    let mut fixture = Fixture::open();
    fixture.link("r", 1);
    fixture.begin("r", 1);
    let short = |fixture: &Fixture| {
        fixture.state.blob_lease_is_short(&repository("r"), &digest(1), &KEEP, LogTime(fixture.now))
    };
    assert!(!short(&fixture));
    fixture.now += LEASE;
    assert!(short(&fixture), "the upload may be somebody else's and older");
}

#[test]
fn below_feature_level_three_uploads_keep_nothing_and_names_release_one_kind() {
    let mut fixture = Fixture::at_level(2);
    fixture.link("r", BOTH.start);
    fixture.put(PutManifest { sparse: true, ..index(10, &[BOTH.start], &["t"]) });
    fixture.link("r", 1);
    fixture.begin("r", 1);
    fixture.begin("r", 2);
    fixture.now += LEASE;
    fixture.commit("r", 1, 2);
    fixture.cancel("r", 2);
    fixture.begin("r", 3);
    fixture.delete(10);
    assert_eq!(fixture.collect(KEEP), (2, 0, 110));
    assert!(fixture.state.records().all(|record| record.number() != 15));
    // From the moment on at which all agree, what was opened before counts.
    assert_eq!(fixture.run(Command::RaiseFeatureLevel { level: 3 }), Response::Done);
    fixture.now += 2 * LEASE;
    assert_eq!(fixture.collect(KEEP), (0, 0, 0));
}

#[test]
fn below_feature_level_two_nothing_is_collected_and_no_lease_is_kept() {
    let mut fixture = Fixture::old();
    fixture.link("r", 1);
    fixture.put(manifest(10, &[1], &["t"]));
    fixture.now += LEASE;
    fixture.untag("t");
    let linked_at = |fixture: &Fixture| {
        let mut records = fixture.state.records();
        records.find_map(|record| match record {
            crate::meta::Record::Blob(_, _, link) => Some(link.at),
            _ => None,
        })
    };
    let before = linked_at(&fixture);
    fixture.put(manifest(11, &[1], &[]));
    fixture.delete(11);
    fixture.delete(10);
    assert_eq!(linked_at(&fixture), before, "older binaries would not have renewed it");
    assert!(fixture.state.records().all(|record| record.number() != 13));
    let collect =
        Command::Collect { repository: repository("r"), blobs: vec![digest(1)], manifests: vec![], rules: KEEP };
    for command in [collect, Command::RenewLeases { links: vec![] }] {
        assert_eq!(fixture.run(command), Response::Rejected(Rejection::FeatureLevel { agreed: 1 }));
    }
}

#[test]
fn a_walk_in_pages_finds_what_a_walk_in_one_does() {
    let mut fixture = Fixture::open();
    for n in 0..40 {
        fixture.link(["r", "s", "t"][n as usize % 3], n);
    }
    fixture.now += LEASE;
    for n in 40..45 {
        fixture.link("s", n);
        fixture.put(manifest(100 + n, &[], &[]));
    }
    fixture.put(manifest(150, &[0, 3], &["t"]));
    let now = LogTime(fixture.now);
    let whole = fixture.state.unnamed_links(None, 1000, (&DELETE, now));
    assert_eq!((whole.unnamed.len(), whole.seen, whole.next), (48, 51, None));
    for size in [1, 2, 7, 50] {
        let (mut found, mut place) = (Vec::new(), None);
        loop {
            let page = fixture.state.unnamed_links(place.as_ref(), size, (&DELETE, now));
            assert!(page.seen <= size);
            found.extend(page.unnamed);
            place = page.next;
            if place.is_none() {
                break;
            }
        }
        assert_eq!(found, whole.unnamed, "in pages of {size}");
    }
    let going = whole.unnamed.iter().filter(|link| link.until.is_none()).count();
    assert_eq!((going, whole.unnamed.iter().filter(|link| link.manifest).count()), (38, 5));
}

fn marked(state: &State, rows: usize) -> Vec<Miscount> {
    let mut recount = Recount::new(Arc::new(state.clone()));
    while !recount.step(rows) {}
    recount.found().1.to_vec()
}

#[test]
fn a_full_mark_finds_nothing_wrong_with_a_state_and_each_thing_that_is() {
    let mut fixture = Fixture::open();
    for n in 0..30 {
        fixture.link("r", n);
        fixture.link("s", n / 2);
    }
    fixture.put(manifest(100, &[1, 2], &["t"]));
    fixture.put(index(101, &[100], &["u"]));
    for session in 1..4 {
        fixture.begin("r", session);
    }
    fixture.commit("r", 3, 5);
    for rows in [1, 3, 10_000] {
        assert_eq!(marked(&fixture.state, rows), vec![]);
    }
    let broken = |breaks: &dyn Fn(&mut State)| {
        let mut state = fixture.state.clone();
        breaks(&mut state);
        marked(&state, 7)
    };
    let links = broken(&|state| state.contents.get_mut(&digest(1)).unwrap().blobs = 1);
    assert_eq!(links, [Miscount::Links { digest: digest(1), kept: (1, 0), found: (2, 0) }]);
    let gone = broken(&|state| {
        state.contents.remove(&digest(100));
    });
    assert_eq!(gone, [Miscount::Links { digest: digest(100), kept: (0, 0), found: (0, 1) }]);
    let name = repository("r");
    let named = broken(&|state| {
        let repository = state.repositories.get_mut(&name).unwrap();
        let row = repository.named_blobs.first().unwrap().clone();
        repository.named_blobs.remove(&row);
    });
    assert!(matches!(named.as_slice(), [Miscount::Named { .. }]), "{named:?}");
    let missing = broken(&|state| {
        state.repositories.get_mut(&name).unwrap().blobs.remove(&digest(2));
    });
    let expected = Miscount::Missing { repository: name.clone(), manifest: digest(100), digest: digest(2) };
    assert!(missing.contains(&expected), "{missing:?}");
    let uploads = broken(&|state| {
        let row = state.uploads_in.first().unwrap().clone();
        state.uploads_in.remove(&row);
    });
    assert_eq!(uploads, [Miscount::Uploads { open: 2, found: 1, counted: 1 }]);
    let untagged = broken(&|state| {
        state.repositories.get_mut(&name).unwrap().manifests.remove(&digest(101));
    });
    assert!(untagged.contains(&Miscount::Tag { repository: name.clone(), digest: digest(101) }), "{untagged:?}");
}

#[test]
fn the_forms_in_the_log_and_in_snapshots_are_what_other_binaries_read() {
    let first = |bytes: Vec<u8>| bytes[0];
    let collect = Command::Collect { repository: repository("r"), blobs: vec![], manifests: vec![], rules: DELETE };
    let renew = Command::RenewLeases { links: vec![] };
    assert_eq!(first(postcard::to_stdvec(&Command::RaiseFeatureLevel { level: 2 }).unwrap()), 18);
    assert_eq!((first(postcard::to_stdvec(&renew).unwrap()), postcard::to_stdvec(&collect).unwrap().len()), (23, 10));
    let policy = Command::SetPolicy { policy: crate::topology::Policy::of_copies(3), first: true };
    assert_eq!(postcard::to_stdvec(&policy).unwrap(), [25, 3, 0, 1]);
    let response = Response::Collected { blobs: 1, manifests: 2, bytes: 3 };
    assert_eq!(postcard::to_stdvec(&response).unwrap(), [7, 1, 2, 3]);
    // The row of a blob link is as the first version wrote it: a lease is the time that it had from the start.
    let link = crate::meta::BlobLink { size: 10, at: LogTime(7) };
    let row = crate::meta::encode_record(&crate::meta::Record::Blob(repository("r"), digest(1), link));
    assert_eq!((&row[..4], &row[row.len() - 2..]), (&[1, 4, 1, b'r'][..], &[10, 7][..]));
}

/// What a manifest of the model consists of: a number stands for a body, so it never changes.
#[derive(Debug, Clone)]
struct Shape {
    blobs: Vec<u32>,
    /// Each with whether it must be there.
    children: Vec<(u32, bool)>,
    subject: Option<u32>,
}

#[derive(Debug, Clone)]
enum Step {
    Link(usize, u32),
    Mount(usize, u32),
    HeadBlob(usize, u32),
    HeadManifest(usize, u32),
    Put(usize, u32, Option<u8>),
    Untag(usize, u8),
    Delete(usize, u32),
    Unlink(usize, u32),
    Begin(usize),
    /// Ends the repository's oldest open session, with a blob or without.
    End(usize, Option<u32>),
    Collect(usize),
    Pass(u64),
}

const NAMES: [&str; 2] = ["r", "s"];
const MANIFESTS: std::ops::Range<u32> = 160..167;
const BLOBS: std::ops::Range<u32> = 164..170;
/// What may be both: a manifest's body that somebody pushed as a blob, too.
const BOTH: std::ops::Range<u32> = 164..167;

fn shapes() -> impl Strategy<Value = Vec<Shape>> {
    let shape = |n: u32| {
        // Of bodies that name each other by hash, each can name only those before it.
        let before = MANIFESTS.start..n.max(MANIFESTS.start + 1);
        let children = vec((before.clone(), prop::bool::weighted(0.8)), 0..if n == MANIFESTS.start { 1 } else { 3 });
        let subject = prop::option::weighted(0.4, prop_oneof![3 => before, 1 => Just(60)]);
        (vec(BLOBS, 0..3), children, subject).prop_map(move |(blobs, children, subject)| Shape {
            blobs: blobs.into_iter().filter(|blob| *blob < n || *blob >= BOTH.end).collect(),
            children,
            subject: subject.filter(|subject| *subject != n),
        })
    };
    MANIFESTS.map(shape).collect::<Vec<_>>()
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (name, tag) = (0..NAMES.len(), prop::option::weighted(0.5, 0u8..3));
    let ends = (name.clone(), prop::option::weighted(0.7, BLOBS)).prop_map(|(name, n)| Step::End(name, n));
    let step = prop_oneof![
        6 => (name.clone(), BLOBS).prop_map(|(name, n)| Step::Link(name, n)),
        2 => (name.clone(), BLOBS).prop_map(|(name, n)| Step::Mount(name, n)),
        4 => (name.clone(), BLOBS).prop_map(|(name, n)| Step::HeadBlob(name, n)),
        3 => (name.clone(), MANIFESTS).prop_map(|(name, n)| Step::HeadManifest(name, n)),
        9 => (name.clone(), MANIFESTS, tag).prop_map(|(name, n, tag)| Step::Put(name, n, tag)),
        2 => (name.clone(), 0u8..3).prop_map(|(name, tag)| Step::Untag(name, tag)),
        2 => (name.clone(), MANIFESTS).prop_map(|(name, n)| Step::Delete(name, n)),
        1 => (name.clone(), BLOBS).prop_map(|(name, n)| Step::Unlink(name, n)),
        2 => name.clone().prop_map(Step::Begin),
        2 => ends,
        8 => name.prop_map(Step::Collect),
        8 => prop_oneof![3 => 0..LEASE / 2, 2 => 0..2 * LEASE, 1 => 0..2 * AGE].prop_map(Step::Pass),
    ];
    vec(step, 1..100)
}

/// A link: in which repository, what, and whether as a manifest.
type Link = (usize, u32, bool);

/// When a client was told that a link is there, and until when it may rely on that.
#[derive(Debug, Clone, Copy)]
struct Told {
    at: u64,
    until: u64,
}

/// What a client knows: when it was last told that something is there, and that nobody deleted it since.
struct Client {
    fixture: Fixture,
    shapes: Vec<Shape>,
    rules: CollectionRules,
    told: BTreeMap<Link, Told>,
    /// Subjects that were there at some time since a referrer came: (repository, referrer).
    met: BTreeSet<(usize, u32)>,
    /// Sessions opened so far.
    sessions: u128,
}

fn links(name: usize) -> impl Iterator<Item = Link> {
    MANIFESTS.map(move |n| (name, n, true)).chain(BLOBS.map(move |n| (name, n, false)))
}

impl Client {
    fn shape(&self, n: u32) -> &Shape {
        &self.shapes[(n - MANIFESTS.start) as usize]
    }

    fn there(&self, (name, n, manifest): Link) -> bool {
        let (name, state) = (repository(NAMES[name]), &self.fixture.state);
        if manifest { state.manifest(&name, &digest(n)).is_some() } else { state.blob(&name, &digest(n)).is_some() }
    }

    fn tell(&mut self, link: Link) {
        assert!(self.there(link));
        let at = self.fixture.now;
        self.told.insert(link, Told { at, until: at + LEASE / 2 });
    }

    fn tags(&self, name: usize) -> Vec<u32> {
        let name = repository(NAMES[name]);
        let tags = self.fixture.state.tags(&name, None, 99);
        let digests: Vec<_> =
            tags.iter().map(|tag| self.fixture.state.tag(&name, tag).unwrap().digest.clone()).collect();
        MANIFESTS.filter(|n| digests.contains(&digest(*n))).collect()
    }

    /// Everything of a repository that tags reach, and referrers whose subject may still come.
    fn reachable(&self, name: usize) -> BTreeSet<Link> {
        let here: Vec<u32> = MANIFESTS.filter(|n| self.there((name, *n, true))).collect();
        let to_come = |n: &u32| {
            let subject = self.shape(*n).subject;
            subject.is_some_and(|subject| !self.there((name, subject, true))) && !self.met.contains(&(name, *n))
        };
        let tops = self.tags(name).into_iter().chain(here.iter().copied().filter(to_come));
        let mut open: Vec<Link> = tops.map(|n| (name, n, true)).collect();
        let mut live = BTreeSet::new();
        while let Some(link) = open.pop() {
            let (_, n, manifest) = link;
            if !self.there(link) || !live.insert(link) || !manifest {
                continue;
            }
            // What is named stays as whatever it is there.
            let shape = self.shape(n);
            let named = shape.blobs.iter().copied().chain(shape.children.iter().map(|(child, _)| *child));
            open.extend(named.flat_map(|n| [(name, n, true), (name, n, false)]));
            let refers = here.iter().filter(|other| self.shape(**other).subject == Some(n));
            open.extend(refers.map(|other| (name, *other, true)));
        }
        live
    }

    fn run(&mut self, command: Command) -> Response {
        let response = self.fixture.run(command);
        for name in 0..NAMES.len() {
            for n in MANIFESTS {
                let subject = self.shape(n).subject;
                if !self.there((name, n, true)) {
                    self.met.remove(&(name, n));
                } else if subject.is_some_and(|subject| self.there((name, subject, true))) {
                    self.met.insert((name, n));
                }
            }
        }
        response
    }

    fn head(&mut self, link: Link, short: bool) {
        let (name, n, _) = link;
        if short {
            self.run(Command::RenewLeases { links: vec![(repository(NAMES[name]), digest(n))] });
        }
        if self.there(link) {
            self.tell(link);
        }
    }

    fn put(&mut self, name: usize, n: u32, tag: Option<u8>) {
        let shape = self.shape(n).clone();
        let mut references: Vec<_> = shape.blobs.iter().map(|n| reference(*n, ReferenceKind::Layer)).collect();
        references.extend(shape.children.iter().map(|(child, required)| ManifestReference {
            required: *required,
            ..reference(*child, ReferenceKind::Manifest)
        }));
        let put = PutManifest {
            repository: repository(NAMES[name]),
            references,
            subject: shape.subject.map(digest),
            tags: tag.map(|tag| format!("t{tag}").parse().unwrap()).into_iter().collect(),
            ..manifest(n, &[], &[])
        };
        match self.run(Command::PutManifest(Box::new(put))) {
            Response::ManifestStored { .. } => self.tell((name, n, true)),
            Response::Rejected(Rejection::BlobUnknown { digests }) => {
                // Refused only for what no client was told of lately.
                let children = shape.children.iter().filter(|(_, required)| *required).map(|(n, _)| (name, *n, true));
                let mut missing = shape.blobs.iter().map(|n| (name, *n, false)).chain(children);
                let broken = missing
                    .find(|link| digests.contains(&digest(link.1)) && !self.there(*link) && self.is_promised(*link));
                assert_eq!(broken, None, "was promised and is missing");
            }
            other => panic!("{other:?}"),
        }
    }

    fn is_promised(&self, link: Link) -> bool {
        self.told.get(&link).is_some_and(|told| self.fixture.now < told.until)
    }

    fn open_sessions(&self, name: usize) -> Vec<UploadId> {
        let name = repository(NAMES[name]);
        let uploads = self.fixture.state.uploads();
        uploads.filter(|(_, upload)| upload.closed.is_none() && upload.repository == name).map(|(id, _)| id).collect()
    }

    /// Lets time pass. A push that runs has been told of what lies there, up to the time to live of its session.
    fn pass(&mut self, pause: u64) {
        let (before, now) = (self.fixture.now, self.fixture.now + pause);
        for name in 0..NAMES.len() {
            if !self.open_sessions(name).is_empty() {
                let promised = |(link, told): &(&Link, &mut Told)| link.0 == name && before < told.until;
                for (_, told) in self.told.iter_mut().filter(promised) {
                    told.until = told.until.max(now.min(told.at + TTL) + LEASE / 2);
                }
            }
        }
        self.fixture.now = now;
        self.fixture.expire();
    }

    fn collect(&mut self, name: usize) {
        let all = || (MANIFESTS.start..BLOBS.end).map(digest).collect::<Vec<_>>();
        let repository = repository(NAMES[name]);
        let before = self.reachable(name);
        let (blobs, manifests, rules) = (all(), all(), self.rules);
        self.run(Command::Collect { repository, blobs, manifests, rules });
        for link in before {
            assert!(self.there(link), "{link:?} was reachable");
        }
        for link in links(name).filter(|link| self.is_promised(*link)) {
            assert!(self.there(link), "{link:?} was promised");
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Link(name, n) => {
                self.fixture.link(NAMES[name], n);
                self.tell((name, n, false));
            }
            Step::Mount(name, n) => {
                let (from, repository, principal) = (NAMES[1 - name], repository(NAMES[name]), String::new());
                let mount =
                    Command::MountBlob { from: from.parse().unwrap(), repository, digest: digest(n), principal };
                if matches!(self.run(mount), Response::Mounted { .. }) {
                    self.tell((name, n, false));
                }
            }
            Step::HeadBlob(name, n) => {
                let (state, now) = (&self.fixture.state, LogTime(self.fixture.now));
                let short = state.blob_lease_is_short(&repository(NAMES[name]), &digest(n), &self.rules, now);
                self.head((name, n, false), short);
            }
            Step::HeadManifest(name, n) => {
                let (state, now) = (&self.fixture.state, LogTime(self.fixture.now));
                let short = state.manifest_lease_is_short(&repository(NAMES[name]), &digest(n), &self.rules, now);
                self.head((name, n, true), short);
            }
            Step::Put(name, n, tag) => self.put(name, n, tag),
            Step::Untag(name, tag) => {
                let (repository, tag) = (repository(NAMES[name]), format!("t{tag}").parse().unwrap());
                self.run(Command::DeleteTag { repository, tag, condition: None });
            }
            Step::Delete(name, n) => {
                let command =
                    Command::DeleteManifest { repository: repository(NAMES[name]), digest: digest(n), sparse: false };
                if self.run(command) == Response::Done {
                    self.told.remove(&(name, n, true));
                }
            }
            Step::Unlink(name, n) => {
                let command =
                    Command::UnlinkBlob { repository: repository(NAMES[name]), digest: digest(n), sparse: false };
                if self.run(command) == Response::Done {
                    self.told.remove(&(name, n, false));
                }
            }
            Step::Begin(name) => {
                self.sessions += 1;
                self.fixture.begin(NAMES[name], self.sessions);
            }
            Step::End(name, blob) => self.end(name, blob),
            Step::Collect(name) => self.collect(name),
            Step::Pass(pause) => self.pass(pause),
        }
    }

    fn end(&mut self, name: usize, blob: Option<u32>) {
        let open = self.open_sessions(name);
        let Some(session) = (1..=self.sessions).find(|n| open.contains(&UploadId::from_random(*n))) else { return };
        match blob {
            Some(n) => {
                self.fixture.commit(NAMES[name], session, n);
                self.tell((name, n, false));
            }
            None => self.fixture.cancel(NAMES[name], session),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn nothing_reachable_or_promised_ever_goes_and_all_else_does_in_the_end(
        shapes in shapes(),
        steps in steps(),
        deletes in any::<bool>(),
    ) {
        let rules = if deletes { DELETE } else { KEEP };
        let fixture = Fixture::open();
        let mut client =
            Client { fixture, shapes, rules, told: BTreeMap::new(), met: BTreeSet::new(), sessions: 0 };
        for step in steps {
            client.step(step);
        }
        prop_assert_eq!(client.fixture.state.check(), vec![]);
        prop_assert_eq!(marked(&client.fixture.state, 3), vec![]);
        for _ in 0..20 {
            client.pass(AGE);
            (0..NAMES.len()).for_each(|name| client.collect(name));
        }
        for name in 0..NAMES.len() {
            let left: BTreeSet<Link> = links(name).filter(|link| client.there(*link)).collect();
            if deletes {
                prop_assert_eq!(left, client.reachable(name));
                continue;
            }
            let named = |n: u32| {
                let mut manifests = left.iter().filter(|(_, _, manifest)| *manifest).map(|(_, by, _)| client.shape(*by));
                manifests.any(|shape| shape.blobs.contains(&n) || shape.children.iter().any(|(child, _)| *child == n))
            };
            prop_assert!(left.iter().all(|(_, n, manifest)| *manifest || named(*n)), "{:?}", left);
        }
    }
}
