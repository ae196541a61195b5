//! The use cases on one whole node without doors: a one-voter raft, a real disk, nobody else.

mod node;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;

use super::{BlobPushed, Caller, Chunk, Condition, Config, Error, ManifestUpload, Page, UploadProgress};
use crate::oci::{Algorithm, Digest, MediaType, Reference, RepositoryName, Tag, UploadId};
use node::{Node, anonymous, chunk, cut, user};

fn app() -> RepositoryName {
    "team/app".parse().unwrap()
}

fn sha256(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, bytes)
}

fn tag(text: &str) -> Tag {
    text.parse().unwrap()
}

impl Node {
    async fn open(&self) -> UploadId {
        self.registry.start_upload(&anonymous(), &app(), Algorithm::Sha256).await.unwrap().id
    }

    async fn patch(&self, id: UploadId, chunk: Chunk) -> Result<UploadProgress, Error> {
        self.registry.append(&anonymous(), &app(), id, chunk).await
    }

    async fn put(&self, id: UploadId, digest: &Digest, last: Chunk) -> Result<BlobPushed, Error> {
        self.registry.commit(&anonymous(), &app(), id, digest.clone(), last).await
    }

    async fn length(&self, id: UploadId) -> Result<u64, Error> {
        self.registry.upload(&anonymous(), &app(), id).await.map(|progress| progress.length)
    }

    async fn push(&self, bytes: &'static [u8]) -> Digest {
        let digest = sha256(bytes);
        let pushed = self.registry.push_blob(&anonymous(), &app(), digest.clone(), chunk(None, bytes)).await.unwrap();
        assert_eq!((pushed.size, pushed.copies), (bytes.len() as u64, 1));
        digest
    }

    async fn read(&self, digest: &Digest, start: u64, end: u64) -> Vec<u8> {
        let found = self.registry.blob(&anonymous(), &app(), digest).await.unwrap();
        let pieces = self.registry.read_blob(&found, start, end).await.unwrap();
        pieces.map(Result::unwrap).collect::<Vec<Bytes>>().await.concat()
    }

    async fn put_manifest(
        &self,
        reference: Reference,
        body: &str,
        condition: Option<Condition>,
    ) -> Result<Digest, Error> {
        let upload = ManifestUpload {
            reference,
            content_type: None,
            body: Bytes::copy_from_slice(body.as_bytes()),
            tags: Vec::new(),
            condition,
        };
        self.registry.put_manifest(&anonymous(), &app(), upload).await.map(|pushed| pushed.digest)
    }

    async fn tagged(&self, name: &str) -> Result<Digest, Error> {
        let reference = Reference::Tag(tag(name));
        self.registry.manifest(&anonymous(), &app(), &reference, true).await.map(|found| found.digest)
    }
}

/// An artifact with the empty config and no layers, told apart by `note`.
fn artifact(config: &Digest, note: &str, subject: Option<(&Digest, usize)>) -> String {
    let subject = subject.map(|(digest, size)| {
        serde_json::json!({ "mediaType": MediaType::OCI_MANIFEST, "digest": digest.to_string(), "size": size })
    });
    let mut manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MediaType::OCI_MANIFEST,
        "artifactType": "application/vnd.example.thing",
        "config": { "mediaType": "application/vnd.oci.empty.v1+json", "digest": config.to_string(), "size": 2 },
        "layers": [],
        "annotations": { "note": note },
    });
    if let Some(subject) = subject {
        manifest["subject"] = subject;
    }
    manifest.to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunked_upload_becomes_a_blob() {
    let node = Node::start(Config::default()).await;
    let id = node.open().await;
    assert_eq!(node.patch(id, chunk(None, b"one ")).await.unwrap().length, 4);
    assert_eq!(node.patch(id, chunk(Some(4), b"two ")).await.unwrap().length, 8);
    assert_eq!(node.patch(id, chunk(Some(8), b"")).await.unwrap().length, 8);
    assert_eq!(node.length(id).await.unwrap(), 8);
    let digest = sha256(b"one two three");
    let pushed = node.put(id, &digest, chunk(Some(8), b"three")).await.unwrap();
    assert_eq!((pushed.digest, pushed.size, pushed.copies), (digest.clone(), 13, 1));
    assert_eq!(node.read(&digest, 0, 13).await, b"one two three");
    assert_eq!(node.read(&digest, 4, 7).await, b"two");
    assert_eq!(node.read(&digest, 5, 5).await, b"");
    // The client did not hear the answer and sends it all again.
    let again = node.put(id, &digest, chunk(Some(8), b"three")).await.unwrap();
    assert_eq!((again.digest, again.size), (digest.clone(), 13));
    let other = sha256(b"other");
    assert!(matches!(node.put(id, &other, chunk(None, b"")).await, Err(Error::DigestMismatch { .. })));
    assert!(matches!(node.patch(id, chunk(None, b"more")).await, Err(Error::UploadUnknown)));
    assert!(matches!(node.length(id).await, Err(Error::UploadUnknown)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_out_of_order_change_nothing() {
    let node = Node::start(Config::default()).await;
    let id = node.open().await;
    node.patch(id, chunk(Some(0), b"one ")).await.unwrap();
    for offset in [0, 3, 5, u64::MAX] {
        let refused = node.patch(id, chunk(Some(offset), b"two")).await;
        assert!(matches!(refused, Err(Error::RangeInvalid { length: 4 })), "{offset}");
        let refused = node.put(id, &sha256(b"one two"), chunk(Some(offset), b"two")).await;
        assert!(matches!(refused, Err(Error::RangeInvalid { length: 4 })), "{offset}");
    }
    let digest = sha256(b"one two");
    let wrong = node.put(id, &sha256(b"two"), chunk(Some(4), b"two")).await;
    assert!(matches!(wrong, Err(Error::DigestMismatch { actual, .. }) if actual == digest));
    assert_eq!(node.length(id).await.unwrap(), 4, "a wrong digest appends nothing");
    node.patch(id, chunk(Some(4), b"two")).await.unwrap();
    // An empty PUT may come under the URL of any state.
    node.put(id, &digest, chunk(Some(0), b"")).await.unwrap();
    assert_eq!(node.read(&digest, 0, 7).await, b"one two");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_parallel_patches_exactly_one_wins() {
    let node = Node::start(Config::default()).await;
    let id = node.open().await;
    let patches = (0..8).map(|_| node.patch(id, chunk(Some(0), b"same place")));
    let results = futures::future::join_all(patches).await;
    let won = results.iter().filter(|result| matches!(result, Ok(UploadProgress { length: 10, .. }))).count();
    let lost = results.iter().filter(|result| matches!(result, Err(Error::RangeInvalid { length: 10 }))).count();
    assert_eq!((won, lost), (1, 7), "{results:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_arrived_of_a_broken_body_is_kept() {
    let node = Node::start(Config::default()).await;
    let id = node.open().await;
    assert!(matches!(node.patch(id, cut(None, b"one ")).await, Err(Error::BodyBroken)));
    assert_eq!(node.length(id).await.unwrap(), 4);
    let digest = sha256(b"one two");
    assert!(matches!(node.put(id, &digest, cut(Some(4), b"tw")).await, Err(Error::BodyBroken)));
    assert_eq!(node.length(id).await.unwrap(), 6);
    node.put(id, &digest, chunk(Some(6), b"o")).await.unwrap();
    assert_eq!(node.read(&digest, 0, 7).await, b"one two");
    let long = Chunk { length: Some(2), ..chunk(None, b"long") };
    let id = node.open().await;
    assert!(matches!(node.patch(id, long).await, Err(Error::SizeInvalid { expected: 2, actual: 4 })));
    assert_eq!(node.length(id).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_empty_blob_is_a_blob() {
    let node = Node::start(Config::default()).await;
    let digest = sha256(b"");
    let id = node.open().await;
    node.put(id, &digest, chunk(None, b"")).await.unwrap();
    assert_eq!(node.read(&digest, 0, 0).await, b"");
    let sha512 = Digest::of(Algorithm::Sha512, b"");
    for unsaid in [false, true] {
        let body = if unsaid { Chunk { length: None, ..chunk(None, b"") } } else { chunk(None, b"") };
        let pushed = node.registry.push_blob(&anonymous(), &app(), sha512.clone(), body).await.unwrap();
        assert_eq!(pushed.size, 0);
    }
    let wrong = node.registry.push_blob(&anonymous(), &app(), sha256(b"x"), chunk(None, b"")).await;
    assert!(matches!(wrong, Err(Error::DigestMismatch { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_may_be_closed_under_another_algorithm() {
    let node = Node::start(Config::default()).await;
    let digest = Digest::of(Algorithm::Sha512, b"one two");
    let whole = node.open().await;
    node.put(whole, &digest, chunk(Some(0), b"one two")).await.unwrap();
    let parts = node.open().await;
    node.patch(parts, chunk(Some(0), b"one ")).await.unwrap();
    let wrong = Digest::of(Algorithm::Sha512, b"two");
    assert!(matches!(node.put(parts, &wrong, chunk(Some(4), b"two")).await, Err(Error::DigestMismatch { .. })));
    node.put(parts, &digest, chunk(Some(4), b"two")).await.unwrap();
    assert_eq!(node.read(&digest, 0, 7).await, b"one two");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_its_owners() {
    let node = Node::start(Config { uploads_per_principal_max: 2, ..Config::default() }).await;
    let (ann, bob) = (user("ann"), user("bob"));
    let id = node.registry.start_upload(&ann, &app(), Algorithm::Sha256).await.unwrap().id;
    let elsewhere: RepositoryName = "team/other".parse().unwrap();
    for (caller, repository) in [(&bob, app()), (&anonymous(), app()), (&ann, elsewhere)] {
        let unknown = |error| assert!(matches!(error, Error::UploadUnknown), "{error:?}");
        unknown(node.registry.upload(caller, &repository, id).await.unwrap_err());
        unknown(node.registry.append(caller, &repository, id, chunk(Some(0), b"x")).await.unwrap_err());
        unknown(node.registry.commit(caller, &repository, id, sha256(b""), chunk(None, b"")).await.unwrap_err());
        unknown(node.registry.cancel(caller, &repository, id).await.unwrap_err());
    }
    node.registry.start_upload(&ann, &app(), Algorithm::Sha256).await.unwrap();
    let third = node.registry.start_upload(&ann, &app(), Algorithm::Sha256).await;
    assert!(matches!(third, Err(Error::TooManyUploads { max: 2 })));
    node.registry.cancel(&ann, &app(), id).await.unwrap();
    assert!(matches!(node.registry.upload(&ann, &app(), id).await, Err(Error::UploadUnknown)));
    node.registry.start_upload(&ann, &app(), Algorithm::Sha256).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_is_mounted_only_from_where_the_caller_may_read() {
    let node = Node::start(Config::default()).await;
    let digest = node.push(b"shared").await;
    let target: RepositoryName = "team/other".parse().unwrap();
    let mount = async |from: Option<RepositoryName>, may_read: bool, digest: &Digest| {
        let readable = |_: &RepositoryName| may_read;
        node.registry.mount(&anonymous(), &target, digest, from.as_ref(), &readable).await.unwrap().is_some()
    };
    assert!(!mount(Some(app()), false, &digest).await);
    assert!(!mount(None, false, &digest).await);
    assert!(!mount(Some(target.clone()), true, &digest).await);
    assert!(!mount(None, true, &sha256(b"unknown")).await);
    assert!(matches!(node.registry.blob(&anonymous(), &target, &digest).await, Err(Error::BlobUnknown)));
    assert!(mount(Some(app()), true, &digest).await);
    assert!(mount(None, true, &digest).await);
    assert_eq!(node.registry.blob(&anonymous(), &target, &digest).await.unwrap().size, 6);
    node.registry.delete_blob(&anonymous(), &app(), &digest).await.unwrap();
    assert!(matches!(node.registry.blob(&anonymous(), &app(), &digest).await, Err(Error::BlobUnknown)));
    assert!(node.registry.blob(&anonymous(), &target, &digest).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_needs_what_it_names_and_is_needed_in_turn() {
    let node = Node::start(Config::default()).await;
    let config = sha256(b"{}");
    let body = artifact(&config, "a", None);
    let by_tag = || Reference::Tag(tag("v1"));
    let lacking = node.put_manifest(by_tag(), &body, None).await;
    assert!(matches!(lacking, Err(Error::ManifestReferencesUnknown { digests }) if digests == [config.clone()]));
    assert!(matches!(node.tagged("v1").await, Err(Error::NameUnknown)));
    node.push(b"{}").await;
    assert!(matches!(node.tagged("v1").await, Err(Error::ManifestUnknown)));
    let digest = node.put_manifest(by_tag(), &body, None).await.unwrap();
    assert_eq!(node.tagged("v1").await.unwrap(), digest);
    let found = node.registry.manifest(&anonymous(), &app(), &Reference::Digest(digest.clone()), true).await.unwrap();
    assert_eq!((found.body.as_deref(), found.stale), (Some(body.as_bytes()), false));
    assert_eq!(found.media_type.as_str(), MediaType::OCI_MANIFEST);
    let refused = node.registry.delete_blob(&anonymous(), &app(), &config).await;
    assert!(matches!(refused, Err(Error::Referenced { by }) if by == digest));
    let by_digest = Reference::Digest(digest.clone());
    node.registry.delete_manifest(&anonymous(), &app(), &by_digest, None).await.unwrap();
    assert!(matches!(node.tagged("v1").await, Err(Error::ManifestUnknown)));
    let gone = node.registry.delete_manifest(&anonymous(), &app(), &by_digest, None).await;
    assert!(matches!(gone, Err(Error::ManifestUnknown)));
    node.registry.delete_blob(&anonymous(), &app(), &config).await.unwrap();
    let gone = node.registry.delete_blob(&anonymous(), &app(), &config).await;
    assert!(matches!(gone, Err(Error::BlobUnknown)));
    assert!(matches!(node.tagged("v1").await, Err(Error::NameUnknown)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_manifests_are_refused_before_anything_is_proposed() {
    let node = Node::start(Config::default()).await;
    let config = node.push(b"{}").await;
    let index = node.applied();
    let large = " ".repeat((4 << 20) + 1);
    let refused = node.put_manifest(Reference::Tag(tag("a")), &large, None).await;
    assert!(matches!(refused, Err(Error::ManifestTooLarge { max: 4_194_304 })));
    let refused = node.put_manifest(Reference::Tag(tag("a")), "{}", None).await;
    assert!(matches!(refused, Err(Error::ManifestInvalid(_))));
    let body = artifact(&config, "a", None);
    let refused = node.put_manifest(Reference::Digest(config), &body, None).await;
    assert!(matches!(refused, Err(Error::DigestMismatch { .. })));
    let resized = body.replace("\"size\":2", "\"size\":3");
    let refused = node.put_manifest(Reference::Tag(tag("a")), &resized, None).await;
    assert!(matches!(refused, Err(Error::SizeInvalid { expected: 3, actual: 2 })));
    assert_eq!(node.applied(), index);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sparse_registry_takes_manifests_of_what_is_not_there() {
    let node = Node::start(Config { sparse: true, ..Config::default() }).await;
    let body = artifact(&sha256(b"{}"), "a", None);
    node.put_manifest(Reference::Tag(tag("v1")), &body, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tags_move_only_where_the_condition_holds() {
    let node = Node::start(Config::default()).await;
    let config = node.push(b"{}").await;
    let (first, second) = (artifact(&config, "1", None), artifact(&config, "2", None));
    let put = |body, condition| node.put_manifest(Reference::Tag(tag("v")), body, Some(condition));
    assert!(matches!(put(&first, Condition::Exists).await, Err(Error::ConditionFailed { current: None })));
    let one = put(&first, Condition::Absent).await.unwrap();
    let refused = put(&second, Condition::Absent).await;
    assert!(matches!(refused, Err(Error::ConditionFailed { current: Some(current) }) if current == one));
    let two = put(&second, Condition::Is(vec![one.clone()])).await.unwrap();
    assert_eq!(node.tagged("v").await.unwrap(), two);
    let delete = |condition| async {
        let reference = Reference::Tag(tag("v"));
        node.registry.delete_manifest(&anonymous(), &app(), &reference, Some(condition)).await
    };
    let refused = delete(Condition::Is(vec![one.clone()])).await;
    assert!(matches!(refused, Err(Error::ConditionFailed { current: Some(current) }) if current == two));
    delete(Condition::Is(vec![two.clone()])).await.unwrap();
    let by_digest = Reference::Digest(two);
    assert!(node.registry.manifest(&anonymous(), &app(), &by_digest, false).await.is_ok(), "only the tag went");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_go_page_by_page() {
    let node = Node::start(Config::default()).await;
    let config = node.push(b"{}").await;
    let body = artifact(&config, "a", None);
    let upload = ManifestUpload {
        reference: Reference::Digest(sha256(body.as_bytes())),
        content_type: Some(MediaType::OCI_MANIFEST.to_owned()),
        body: Bytes::from(body.clone()),
        tags: ["b", "a", "C"].map(tag).to_vec(),
        condition: None,
    };
    let pushed = node.registry.put_manifest(&anonymous(), &app(), upload).await.unwrap();
    assert_eq!(pushed.tags.len(), 3);
    let page = async |after: Option<&str>, limit| {
        let Page { items, more, stale } = node.registry.tags(&anonymous(), &app(), after, limit).await.unwrap();
        assert!(!stale);
        (items.iter().map(Tag::as_str).collect::<Vec<_>>().join(" "), more)
    };
    assert_eq!(page(None, 2).await, ("C a".to_owned(), true));
    assert_eq!(page(Some("a"), 2).await, ("b".to_owned(), false));
    assert_eq!(page(Some("0/../"), 9).await, ("C a b".to_owned(), false));
    assert_eq!(page(None, 0).await, (String::new(), false));
    let unknown = node.registry.tags(&anonymous(), &"un/known".parse().unwrap(), None, 9).await;
    assert!(matches!(unknown, Err(Error::NameUnknown)));
    let repositories = node.registry.catalog(&anonymous(), None, 9).await.unwrap();
    assert_eq!((repositories.items, repositories.more), (vec![app()], false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn referrers_are_listed_with_or_without_their_subject() {
    let node = Node::start(Config::default()).await;
    let config = node.push(b"{}").await;
    let target = artifact(&config, "target", None);
    let subject = sha256(target.as_bytes());
    let mut expected = Vec::new();
    for note in ["x", "y", "z"] {
        let body = artifact(&config, note, Some((&subject, target.len())));
        let digest = sha256(body.as_bytes());
        let upload = ManifestUpload {
            reference: Reference::Digest(digest.clone()),
            content_type: None,
            body: Bytes::from(body),
            tags: Vec::new(),
            condition: None,
        };
        let pushed = node.registry.put_manifest(&anonymous(), &app(), upload).await.unwrap();
        assert_eq!(pushed.subject.as_ref(), Some(&subject));
        expected.push(digest);
    }
    expected.sort();
    let list = async |types: &[&str], after: Option<&Digest>| {
        let types: Vec<String> = types.iter().map(|text| (*text).to_owned()).collect();
        let page = node.registry.referrers(&anonymous(), &app(), &subject, &types, after).await.unwrap();
        assert!(!page.more);
        page.items.into_iter().map(|referrer| referrer.digest).collect::<Vec<_>>()
    };
    assert_eq!(list(&[], None).await, expected);
    assert_eq!(list(&[], Some(&expected[0])).await, expected[1..]);
    assert_eq!(list(&["a/b", "application/vnd.example.thing"], None).await, expected);
    assert_eq!(list(&["a/b"], None).await, []);
    let nowhere = node.registry.referrers(&anonymous(), &"un/known".parse().unwrap(), &subject, &[], None).await;
    assert!(nowhere.unwrap().items.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_may_wait_for_what_was_written() {
    let node = Node::start(Config::default()).await;
    let config = node.push(b"{}").await;
    let index = node.applied();
    let waiting = Caller { wait_for: Some(index), ..anonymous() };
    node.registry.blob(&waiting, &app(), &config).await.unwrap();
    let too_far = Caller { wait_for: Some(u64::MAX), ..anonymous() };
    let begun = tokio::time::Instant::now();
    assert!(matches!(node.registry.blob(&too_far, &app(), &config).await, Err(Error::NoQuorum { .. })));
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_goes_on_without_its_client() {
    let node = Arc::new(Node::start(Config::default()).await);
    let id = node.open().await;
    let (feed, body) = tokio::sync::mpsc::channel::<std::io::Result<Bytes>>(1);
    let body = tokio_stream::wrappers::ReceiverStream::new(body).boxed();
    let pushing = Arc::clone(&node);
    let mut requests = tokio::task::JoinSet::new();
    requests.spawn(async move { pushing.patch(id, Chunk { offset: Some(0), length: None, body }).await });
    feed.send(Ok(Bytes::from_static(b"kept"))).await.unwrap();
    // One frame is taken when the next can be sent.
    feed.send(Ok(Bytes::from_static(b" all"))).await.unwrap();
    requests.abort_all();
    while requests.join_next().await.is_some() {}
    drop(feed);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while node.length(id).await.unwrap() != 8 {
        assert!(tokio::time::Instant::now() < deadline, "what arrived was not appended");
        tokio::task::yield_now().await;
    }
}
