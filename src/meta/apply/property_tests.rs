//! What holds for every sequence of commands.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::meta::command::{
    CollectionRules, Command, Condition, HeldExtent, LogTime, ManifestReference, Proposal, PutManifest, ReferenceKind,
    Rejection, RequestId, Response,
};
use crate::meta::plan::{Leave, NodeChange, NodePlan, PlanChange, Vote};
use crate::meta::{Referrer, SnapshotError, State, StateBuilder, decode_record, encode_record};
use crate::oci::{Algorithm, Digest, ExtentId, HashState, RepositoryName, Tag, UploadId};
use crate::topology::{ClusterId, NodeId, NodeState, Policy, Region, Zone};

use super::fixtures::{add_node, join_by_token};

const REPOSITORIES: [&str; 2] = ["a", "b/c"];
const TAGS: [&str; 3] = ["t", "u", "v"];

fn digest(n: u8) -> Digest {
    // A few long ones, too: they take other paths through every table.
    let algorithm = if n.is_multiple_of(4) { Algorithm::Sha512 } else { Algorithm::Sha256 };
    Digest::of(algorithm, &[n])
}

fn repositories() -> impl Strategy<Value = RepositoryName> {
    select(&REPOSITORIES[..]).prop_map(|name| name.parse().unwrap())
}

fn tags() -> impl Strategy<Value = Tag> {
    select(&TAGS[..]).prop_map(|name| name.parse().unwrap())
}

/// A digest and its size: now and then not the right one.
fn contents() -> impl Strategy<Value = (Digest, u64)> {
    (0u8..7, prop::bool::weighted(0.05)).prop_map(|(n, wrong)| (digest(n), u64::from(n) + u64::from(wrong)))
}

fn sessions() -> impl Strategy<Value = UploadId> {
    (0u128..3).prop_map(UploadId::from_random)
}

/// Where sessions are: mostly in one repository, so that most commands find them.
fn session_repositories() -> impl Strategy<Value = RepositoryName> {
    prop::bool::weighted(0.05).prop_map(|other| REPOSITORIES[usize::from(other)].parse().unwrap())
}

fn extents() -> impl Strategy<Value = HeldExtent> {
    (0u128..12, 0u64..5, 0u64..3).prop_map(|(id, offset, length)| HeldExtent {
        id: ExtentId::from_random(id),
        offset,
        length,
        holders: vec![NodeId(1)],
    })
}

fn conditions() -> impl Strategy<Value = Option<Condition>> {
    let digests = || vec((0u8..7).prop_map(digest), 1..3);
    prop_oneof![
        3 => Just(None),
        1 => Just(Some(Condition::Exists)),
        1 => Just(Some(Condition::Absent)),
        1 => digests().prop_map(|digests| Some(Condition::Is(digests))),
        1 => digests().prop_map(|digests| Some(Condition::IsNot(digests))),
    ]
}

fn references() -> impl Strategy<Value = ManifestReference> {
    let kinds =
        select(vec![ReferenceKind::Config, ReferenceKind::Layer, ReferenceKind::Layer, ReferenceKind::Manifest]);
    (contents(), kinds, prop::bool::weighted(0.9)).prop_map(|((digest, size), kind, required)| ManifestReference {
        digest,
        size,
        kind,
        required,
    })
}

fn puts() -> impl Strategy<Value = Command> {
    let names = (repositories(), contents(), vec(references(), 0..3), vec(tags(), 0..3));
    let rest = (prop::option::of((0u8..7).prop_map(digest)), conditions(), prop::bool::weighted(0.2), 0u64..20);
    (names, rest).prop_map(|((repository, (digest, size), references, tags), (subject, condition, sparse, member))| {
        Command::PutManifest(Box::new(PutManifest {
            repository,
            digest,
            media_type: "application/vnd.oci.image.manifest.v1+json".parse().unwrap(),
            size,
            references,
            subject,
            artifact_type: sparse.then(|| "application/x".to_owned()),
            annotations: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
            tags,
            condition,
            membership_index: u64::from(member == 0),
            sparse,
            principal: "bob".to_owned(),
        }))
    })
}

fn upload_commands() -> impl Strategy<Value = Command> {
    let holders = vec![NodeId(1), NodeId(2)];
    let opened = (sessions(), session_repositories(), select(vec!["alice", "bob"]), 1u64..500_000);
    let opens = opened.prop_map(move |(session, repository, principal, ttl_ms)| Command::OpenUpload {
        session,
        repository,
        algorithm: Algorithm::Sha256,
        holders: holders.clone(),
        principal: principal.to_owned(),
        ttl_ms,
        sessions_max: 2,
    });
    let appends = (sessions(), session_repositories(), extents()).prop_map(|(session, repository, extent)| {
        Command::AppendExtent { session, repository, extent, hash_state: HashState::initial(Algorithm::Sha512) }
    });
    let commits = (sessions(), session_repositories(), prop::option::of(extents()), contents()).prop_map(
        |(session, repository, last, (digest, size))| {
            let principal = "bob".to_owned();
            Command::CommitUpload { session, repository, last, digest, size, principal }
        },
    );
    let cancels = (sessions(), session_repositories())
        .prop_map(|(session, repository)| Command::CancelUpload { session, repository });
    let replaces = sessions().prop_map(|session| Command::ReplaceHolders { session, holders: vec![NodeId(3)] });
    let expires = vec(sessions(), 0..4).prop_map(|sessions| Command::ExpireUploads { sessions });
    prop_oneof![3 => opens, 9 => appends, 4 => commits, 1 => cancels, 1 => replaces, 1 => expires]
}

fn content_commands() -> impl Strategy<Value = Command> {
    let links = (repositories(), contents()).prop_map(|(repository, (digest, size))| Command::LinkBlob {
        repository,
        digest,
        size,
        principal: String::new(),
    });
    let mounts = (repositories(), repositories(), contents()).prop_map(|(from, repository, (digest, _))| {
        Command::MountBlob { from, repository, digest, principal: String::new() }
    });
    let unlinks = (repositories(), contents(), prop::bool::weighted(0.2))
        .prop_map(|(repository, (digest, _), sparse)| Command::UnlinkBlob { repository, digest, sparse });
    let deletes = (repositories(), contents(), prop::bool::weighted(0.2))
        .prop_map(|(repository, (digest, _), sparse)| Command::DeleteManifest { repository, digest, sparse });
    let untags = (repositories(), tags(), conditions()).prop_map(|(repository, tag, condition)| Command::DeleteTag {
        repository,
        tag,
        condition,
    });
    let renews =
        vec((repositories(), (0u8..7).prop_map(digest)), 0..4).prop_map(|links| Command::RenewLeases { links });
    let all = || (0u8..7).map(digest).collect::<Vec<_>>();
    let collects = (repositories(), 1u64..2000, prop::option::of(1u64..5000)).prop_map(
        move |(repository, lease_ms, untagged_ms)| {
            let rules = CollectionRules { lease_ms, untagged_ms };
            Command::Collect { repository, blobs: all(), manifests: all(), rules }
        },
    );
    prop_oneof![4 => links, 2 => mounts, 2 => unlinks, 6 => puts(), 2 => deletes, 2 => untags, 1 => renews, 2 => collects]
}

fn node_commands() -> impl Strategy<Value = Command> {
    let joins = (select(vec!["x", "y", "z"]), 0u8..4).prop_map(|(name, key)| add_node(name, key));
    let updates = (1u64..6, 0u32..4).prop_map(|(node, feature_level)| Command::UpdateNode {
        node: NodeId(node),
        zone: Zone("z".to_owned()),
        region: Region("r".to_owned()),
        rpc_address: "moved".to_owned(),
        api_url: String::new(),
        weight: 2,
        feature_level,
    });
    let states = select(vec![NodeState::In, NodeState::Out, NodeState::Decommissioned]);
    let marks = (1u64..6, states).prop_map(|(node, state)| Command::SetNodeState { node: NodeId(node), state });
    let removes = (1u64..6).prop_map(|node| Command::RemoveNode { node: NodeId(node) });
    let raises = (0u32..4).prop_map(|level| Command::RaiseFeatureLevel { level });
    let forms = (1u128..3).prop_map(|id| Command::FormCluster { cluster: ClusterId(id), nodes_expected: 3 });
    let policies = (0u32..4, any::<bool>())
        .prop_map(|(copies, first)| Command::SetPolicy { policy: Policy::of_copies(copies), first });
    prop_oneof![4 => joins, 3 => updates, 3 => marks, 1 => removes, 1 => raises, 1 => forms, 4 => plans(), 1 => policies]
}

/// What operators decide; in vain while the agreed level is 1.
fn plans() -> impl Strategy<Value = Command> {
    let votes = select(vec![Vote::Auto, Vote::Always, Vote::Never]);
    let leaves = select(vec![Leave::Stays, Leave::WhenEmpty, Leave::Now]);
    let states = select(vec![NodeState::In, NodeState::Out, NodeState::Decommissioned]);
    let nodes = (1u64..6, states, votes, any::<bool>(), leaves).prop_map(|(node, state, vote, held_out, leave)| {
        NodeChange { node: NodeId(node), state, plan: NodePlan { vote, held_out, leave } }
    });
    let changes = vec(nodes, 0..3).prop_map(|nodes| Command::ChangePlan(PlanChange { seen: 0, nodes }));
    let creates = (0u8..3, 1u64..200_000, any::<bool>()).prop_map(|(token, ttl_ms, learner)| Command::CreateToken {
        token: [token; 32],
        ttl_ms,
        learner,
    });
    let revokes = (0u8..3).prop_map(|token| Command::RevokeToken { token: [token; 32] });
    let joins =
        (0u8..3, select(vec!["x", "y", "z"]), 0u8..6).prop_map(|(token, name, key)| join_by_token(token, name, key));
    prop_oneof![2 => changes, 2 => creates, 1 => revokes, 3 => joins]
}

/// Commands with the milliseconds that pass before each and whether the one before is sent once more.
fn steps() -> impl Strategy<Value = Vec<(Command, u64, bool)>> {
    let commands = prop_oneof![5 => content_commands(), 4 => upload_commands(), 1 => node_commands()];
    let pauses = prop_oneof![40 => 0u64..1000, 1 => 0u64..20_000, 1 => 50_000u64..100_000];
    vec((commands, pauses, prop::bool::weighted(0.15)), 1..120)
}

fn proposal(id: u128, at: u64, command: Command) -> Proposal {
    Proposal { id: RequestId(id), issued: LogTime(at), at: LogTime(at), wall_seconds: 3, command }
}

fn opened() -> State {
    let mut state = State::default();
    let form = Command::FormCluster { cluster: ClusterId(1), nodes_expected: 1 };
    for (id, command) in [(1, form), (2, Command::OpenRegistry), (3, Command::RaiseFeatureLevel { level: 3 })] {
        assert_eq!(state.apply(id, &proposal(id.into(), 0, command)), Response::Done);
    }
    state
}

/// The log of some steps: every proposal in order, repeats included.
fn log_of(steps: Vec<(Command, u64, bool)>) -> Vec<Proposal> {
    let mut log: Vec<Proposal> = Vec::new();
    let mut now = 0;
    for (id, (command, pause, again)) in (10u128..).zip(steps) {
        now += pause;
        if let Some(last) = log.last().filter(|_| again).cloned() {
            log.push(Proposal { at: LogTime(now), ..last });
        }
        log.push(proposal(id, now, command));
    }
    log
}

fn round_trip(state: &State) -> Result<State, SnapshotError> {
    let mut builder = StateBuilder::new();
    state.encoded_records().try_for_each(|record| builder.add(&record))?;
    builder.finish()
}

/// Everything a reader can ask of two states alike.
fn answers(state: &State) -> impl PartialEq + std::fmt::Debug + use<> {
    let repositories = state.repositories(None, 99);
    let per_repository: Vec<_> = repositories
        .iter()
        .map(|name| {
            let tags = state.tags(name, None, 99);
            let histories: Vec<_> =
                TAGS.map(|tag| state.tag_history(name, &tag.parse().unwrap())).into_iter().collect();
            let records: Vec<_> = tags.iter().map(|tag| state.tag(name, tag).cloned()).collect();
            let by_digest: Vec<_> = (0..7)
                .map(digest)
                .map(|digest| {
                    let referrers: Vec<Referrer> = state.referrers(name, &digest, None).collect();
                    let manifest = state.manifest(name, &digest).cloned();
                    let named = [true, false].map(|as_manifest| state.named_by(name, &digest, as_manifest).cloned());
                    (state.blob(name, &digest), manifest, referrers, named)
                })
                .collect();
            (tags, records, histories, by_digest)
        })
        .collect();
    let mounts: Vec<_> = (0..7).map(|n| state.blob_repositories(&digest(n))).collect();
    let uploads: Vec<_> = state.uploads().map(|(id, upload)| (id, upload.clone())).collect();
    let contents = (state.contents(None, 99), state.contents_since(20));
    let head = (state.log_time(), state.topology(), state.expired_uploads(LogTime(u64::MAX), 99));
    (repositories, per_repository, mounts, uploads, contents, head)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn every_state_on_the_way_is_free_of_contradictions(steps in steps()) {
        let mut state = opened();
        for (index, proposal) in (10..).zip(log_of(steps)) {
            state.apply(index, &proposal);
            prop_assert_eq!(state.hash(), state.recompute_hash(), "after {:?}", proposal);
            if index % 8 == 0 {
                prop_assert_eq!(state.check(), vec![]);
            }
        }
        prop_assert_eq!(state.check(), vec![]);
    }

    #[test]
    fn two_copies_and_one_restored_from_a_snapshot_stay_equal(steps in steps(), cut in 0usize..120, membership in 0u64..2) {
        let mut one = opened();
        one.set_membership(membership);
        let mut two = one.clone();
        let mut three = None;
        for (place, proposal) in log_of(steps).into_iter().enumerate() {
            if place == cut {
                let kept = one.clone();
                three = Some((round_trip(&one).unwrap(), kept, one.hash()));
            }
            let index = 10 + place as u64;
            let answer = one.apply(index, &proposal);
            prop_assert_eq!(&two.apply(index, &proposal), &answer);
            if let Some((three, ..)) = &mut three {
                prop_assert_eq!(&three.apply(index, &proposal), &answer);
            }
        }
        prop_assert_eq!(one.hash(), two.hash());
        if let Some((three, kept, hash)) = three {
            prop_assert_eq!(three.hash(), one.hash());
            prop_assert_eq!(answers(&three), answers(&one));
            // What readers hold does not move under them.
            prop_assert_eq!((kept.hash(), kept.recompute_hash()), (hash, hash));
        }
        let restored = round_trip(&one).unwrap();
        prop_assert_eq!(answers(&restored), answers(&one));
        let records = |state: &State| state.encoded_records().collect::<Vec<_>>();
        prop_assert_eq!(records(&restored), records(&two));
    }

    #[test]
    fn a_repeated_request_gets_the_first_answer_and_leaves_no_trace(steps in steps()) {
        let mut state = opened();
        let mut seen: Vec<(Proposal, Response)> = Vec::new();
        for (index, proposal) in (10..).zip(log_of(steps)) {
            let answer = state.apply(index, &proposal);
            let now = state.log_time();
            seen.retain(|(proposal, _)| now.0 - proposal.issued.0 <= 60_000);
            if seen.iter().all(|(other, _)| other.id != proposal.id) {
                seen.push((proposal, answer));
            }
            let hash = state.hash();
            for (proposal, answer) in &seen {
                let again = Proposal { at: now, ..proposal.clone() };
                prop_assert_eq!(&state.apply(index, &again), answer);
            }
            prop_assert_eq!(state.hash(), hash);
        }
    }

    #[test]
    fn the_length_of_a_session_never_goes_back_and_its_extents_make_it_up(steps in steps()) {
        let mut state = opened();
        let mut lengths: BTreeMap<UploadId, u64> = BTreeMap::new();
        for (index, proposal) in (10..).zip(log_of(steps)) {
            let answer = state.apply(index, &proposal);
            let now: BTreeMap<UploadId, u64> = state.uploads().map(|(id, upload)| (id, upload.length)).collect();
            for (id, length) in &now {
                prop_assert!(lengths.get(id).is_none_or(|before| before <= length));
            }
            if let (Command::AppendExtent { session, .. }, Response::Appended { length }) = (&proposal.command, &answer)
                && let Some(now) = now.get(session)
                && state.uploads().any(|(id, upload)| id == *session && upload.closed.is_none())
            {
                // A remembered answer may be older than the session's length now, never ahead of it in one life.
                prop_assert!(length <= now || lengths.get(session).is_none_or(|before| before <= now));
            }
            for (_, upload) in state.uploads().filter(|(_, upload)| upload.closed.is_none()) {
                let mut end = 0;
                for extent in &upload.extents {
                    prop_assert_eq!(extent.offset, end);
                    end += extent.length;
                }
                prop_assert_eq!(end, upload.length);
            }
            lengths = now;
        }
    }

    #[test]
    fn tags_are_registers(steps in steps()) {
        let mut state = opened();
        let mut model: BTreeMap<(RepositoryName, Tag), Digest> = BTreeMap::new();
        let mut answered = std::collections::BTreeSet::new();
        for (index, proposal) in (10..).zip(log_of(steps)) {
            let answer = state.apply(index, &proposal);
            if answer == Response::Rejected(Rejection::Expired) || !answered.insert(proposal.id) {
                continue;
            }
            match (&proposal.command, &answer) {
                (Command::PutManifest(put), answer) => {
                    let current = |tag: &Tag| model.get(&(put.repository.clone(), tag.clone()));
                    let failing = put.tags.iter().map(current).find(|current| !holds(&put.condition, *current));
                    if put.membership_index == 0 && let Some(current) = failing {
                        let failed = Rejection::ConditionFailed { current: current.cloned() };
                        prop_assert_eq!(answer, &Response::Rejected(failed));
                    } else if matches!(answer, Response::ManifestStored { .. }) {
                        for tag in &put.tags {
                            model.insert((put.repository.clone(), tag.clone()), put.digest.clone());
                        }
                    }
                }
                (Command::DeleteTag { repository, tag, condition }, Response::Done) => {
                    let old = model.remove(&(repository.clone(), tag.clone()));
                    prop_assert!(old.is_some() && holds(condition, old.as_ref()));
                }
                (Command::DeleteManifest { repository, digest, .. }, Response::Done) => {
                    model.retain(|(other, _), target| other != repository || target != digest);
                }
                _ => {}
            }
            let mut listed = BTreeMap::new();
            for repository in state.repositories(None, 99) {
                for tag in state.tags(&repository, None, 99) {
                    let target = state.tag(&repository, &tag).unwrap().digest.clone();
                    listed.insert((repository.clone(), tag), target);
                }
            }
            prop_assert_eq!(&listed, &model);
        }
    }

    #[test]
    fn damaged_records_are_refused_and_never_panic(steps in steps(), damage in vec((any::<usize>(), any::<u8>()), 1..9)) {
        let mut state = opened();
        for (index, proposal) in (10..).zip(log_of(steps)) {
            state.apply(index, &proposal);
        }
        let mut builder = StateBuilder::new();
        for (number, record) in state.encoded_records().enumerate() {
            let mut bytes = record;
            for (place, byte) in damage.iter().filter(|(place, _)| place % 7 == number % 7) {
                let place = place % bytes.len();
                bytes[place] ^= byte;
            }
            if builder.add(&bytes).is_err() {
                return Ok(());
            }
        }
        drop(builder.finish());
    }
}

fn holds(condition: &Option<Condition>, current: Option<&Digest>) -> bool {
    match (condition, current) {
        (None, _) | (Some(Condition::Exists), Some(_)) | (Some(Condition::Absent | Condition::IsNot(_)), None) => true,
        (Some(Condition::Is(digests)), Some(current)) => digests.contains(current),
        (Some(Condition::IsNot(digests)), Some(current)) => !digests.contains(current),
        _ => false,
    }
}

#[test]
fn records_carry_their_drawn_number_and_a_version() {
    let mut state = opened();
    let steps = [
        Command::RaiseFeatureLevel { level: 2 },
        Command::SetPolicy { policy: Policy::of_copies(2), first: true },
        Command::ChangePlan(PlanChange { seen: 0, nodes: vec![] }),
        Command::CreateToken { token: [1; 32], ttl_ms: 1000, learner: false },
        add_node("x", 1),
        Command::OpenUpload {
            session: UploadId::from_random(1),
            repository: "a".parse().unwrap(),
            algorithm: Algorithm::Sha256,
            holders: vec![],
            principal: String::new(),
            ttl_ms: 1,
            sessions_max: 1,
        },
        Command::AppendExtent {
            session: UploadId::from_random(1),
            repository: "a".parse().unwrap(),
            extent: HeldExtent { id: ExtentId::from_random(1), offset: 0, length: 1, holders: vec![] },
            hash_state: HashState::initial(Algorithm::Sha256),
        },
        Command::LinkBlob { repository: "a".parse().unwrap(), digest: digest(1), size: 1, principal: String::new() },
        put(2),
        put(3),
        Command::OpenUpload {
            session: UploadId::from_random(2),
            repository: "a".parse().unwrap(),
            algorithm: Algorithm::Sha256,
            holders: vec![],
            principal: "other".to_owned(),
            ttl_ms: 1,
            sessions_max: 1,
        },
        Command::CancelUpload { session: UploadId::from_random(2), repository: "a".parse().unwrap() },
        Command::PutManifest(Box::new(PutManifest { tags: vec![], ..put_of(2) })),
    ];
    for (id, command) in (10..).zip(steps) {
        state.apply(id, &proposal(id.into(), id, command));
    }
    let mut numbers: Vec<u8> = Vec::new();
    for record in state.records() {
        let bytes = encode_record(&record);
        assert_eq!(bytes[..2], [crate::meta::RECORD_VERSION, record.number()], "{record:?}");
        assert_eq!(decode_record(&bytes).unwrap().number(), record.number());
        assert_eq!(decode_record(&[&bytes[..], &[0]].concat()), Err(malformed("bytes after its end")));
        assert_eq!(decode_record(&[&[9], &bytes[1..]].concat()), Err(SnapshotError::Version { version: 9 }));
        numbers.push(record.number());
    }
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers, (0..=15).collect::<Vec<_>>());
    assert!(matches!(decode_record(&[1, 99, 0]), Err(SnapshotError::Malformed { .. })));
    assert_eq!(decode_record(&[]), Err(malformed("empty")));
}

fn malformed(reason: &str) -> SnapshotError {
    SnapshotError::Malformed { reason: reason.to_owned() }
}

fn put(n: u8) -> Command {
    Command::PutManifest(Box::new(put_of(n)))
}

fn put_of(n: u8) -> PutManifest {
    PutManifest {
        repository: "a".parse().unwrap(),
        digest: digest(n),
        media_type: "application/vnd.oci.image.manifest.v1+json".parse().unwrap(),
        size: u64::from(n),
        references: vec![],
        subject: None,
        artifact_type: None,
        annotations: BTreeMap::new(),
        tags: vec!["t".parse().unwrap()],
        condition: None,
        membership_index: 0,
        sparse: false,
        principal: String::new(),
    }
}
