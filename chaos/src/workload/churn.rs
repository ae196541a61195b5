//! Clients that push, mount, retag, sign, delete and pull without end, while collection runs.
//!
//! Each client writes to repositories of its own, so it knows what must be there: what it was told a moment ago is there must
//! be accepted in a manifest, and what is tagged must be whole at every node. It reads and mounts what others have.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use rafthold::oci::{Algorithm, Digest};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::client::{Answer, Client};

use super::Ledger;
use super::image::manifest;

const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Tags of a repository: few, so that most pushes move one.
const TAGS: usize = 6;
/// Repositories of one client.
const REPOSITORIES: usize = 2;
/// Blobs of its own that a client remembers, to push them again.
const REMEMBERED: usize = 40;

/// An image or index that a tag points at, with all that hangs on it.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) repository: String,
    pub(crate) manifest: Digest,
    /// Every manifest below it, and every referrer.
    pub(crate) others: Mutex<Vec<Digest>>,
    pub(crate) blobs: Vec<Digest>,
    /// Set before anything is sent that takes its tag away.
    doomed: AtomicBool,
}

/// What the run's clients saw beside errors.
#[derive(Debug, Default)]
pub(crate) struct Churn {
    pub(crate) operations: AtomicU64,
    pub(crate) pushed: AtomicU64,
    pub(crate) skipped_by_head: AtomicU64,
    pub(crate) mounted: AtomicU64,
    pub(crate) deleted: AtomicU64,
    pub(crate) pulls: AtomicU64,
    /// Pushes that took longer than a client may rely on what it was told.
    pub(crate) late: AtomicU64,
    live: Mutex<Vec<Arc<Live>>>,
}

impl Churn {
    /// What tags point at now.
    pub(crate) fn live(&self) -> Vec<Arc<Live>> {
        self.live.lock().expect("no panic while held").clone()
    }

    fn pick(&self, random: &mut StdRng) -> Option<Arc<Live>> {
        let live = self.live.lock().expect("no panic while held");
        (!live.is_empty()).then(|| live[random.random_range(0..live.len())].clone())
    }

    fn doom(&self, image: &Arc<Live>) {
        image.doomed.store(true, Ordering::SeqCst);
        self.live.lock().expect("no panic while held").retain(|other| !Arc::ptr_eq(other, image));
    }
}

/// Clients under way.
#[derive(Debug)]
pub(crate) struct Churning {
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) churn: Arc<Churn>,
    stop: Arc<AtomicBool>,
    clients: JoinSet<()>,
}

impl Churning {
    /// Starts `clients` clients that rely on what they are told for `promise` and no longer.
    pub(crate) fn start(nodes: Vec<String>, seed: u64, clients: usize, promise: Duration) -> Self {
        let (ledger, churn, stop) = (Arc::<Ledger>::default(), Arc::<Churn>::default(), Arc::<AtomicBool>::default());
        let mut running = JoinSet::new();
        for at in 0..clients {
            let mut client = ChurnClient {
                client: Client::new(nodes.clone()),
                ledger: ledger.clone(),
                churn: churn.clone(),
                random: StdRng::seed_from_u64(seed.wrapping_mul(1000) + at as u64),
                promise,
                tags: (0..REPOSITORIES).map(|n| (format!("soak/c{at}/r{n}"), BTreeMap::new())).collect(),
                remembered: Vec::new(),
            };
            let stop = stop.clone();
            running.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    client.step().await;
                }
            });
        }
        Self { ledger, churn, stop, clients: running }
    }

    /// Stops the clients and waits for their last answers.
    pub(crate) async fn stop(mut self) -> (Arc<Ledger>, Arc<Churn>) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            if let Err(error) = ended {
                self.ledger.violation(format!("a client of the laboratory failed: {error}"));
            }
        }
        (self.ledger, self.churn)
    }
}

struct ChurnClient {
    client: Client,
    ledger: Arc<Ledger>,
    churn: Arc<Churn>,
    random: StdRng,
    promise: Duration,
    /// What each tag of each repository points at, as far as that is known.
    tags: Vec<(String, BTreeMap<String, Arc<Live>>)>,
    remembered: Vec<(Digest, Bytes)>,
}

/// Something named by a manifest, and when the client was told that it is there.
struct Told {
    digest: Digest,
    size: usize,
    at: Instant,
}

impl ChurnClient {
    async fn step(&mut self) {
        let at = self.random.random_range(0..self.tags.len());
        self.churn.operations.fetch_add(1, Ordering::Relaxed);
        match self.random.random_range(0..100) {
            0..38 => self.push_image(at).await,
            38..46 => self.push_index(at).await,
            46..52 => self.sign(at).await,
            52..60 => self.delete(at, true).await,
            60..66 => self.delete(at, false).await,
            66..70 => self.abandon_upload(at).await,
            _ => self.pull().await,
        }
        tokio::time::sleep(Duration::from_millis(self.random.random_range(1..30))).await;
    }

    /// One request at some node; what no registry may answer is a violation.
    async fn ask(&mut self, method: Method, path: &str, kind: Option<&str>, body: Bytes) -> Option<Answer> {
        let node = self.random.random_range(0..self.client.nodes());
        let what = format!("{method} {path} at node {}", node + 1);
        let headers: Vec<_> = kind.map(|kind| ("content-type", kind)).into_iter().collect();
        match self.client.send(node, (method, path), &headers, body).await {
            Ok(answer) => {
                self.ledger.note(&what, &answer);
                Some(answer)
            }
            Err(error) => {
                self.ledger.note_broken(&what, &error);
                None
            }
        }
    }

    fn random_bytes(&mut self) -> (Digest, Bytes) {
        let mut bytes = vec![0; self.random.random_range(1..30_000)];
        self.random.fill_bytes(&mut bytes);
        let bytes = Bytes::from(bytes);
        (Digest::of(Algorithm::Sha256, &bytes), bytes)
    }

    /// Makes sure that a blob is in a repository, as clients do: asks first, mounts, or pushes.
    async fn blob(&mut self, repository: &str) -> Option<Told> {
        let way = self.random.random_range(0..10);
        if way < 2
            && let Some(told) = self.mount(repository).await
        {
            return Some(told);
        }
        let (digest, bytes) = match self.remembered.len() {
            known if way < 6 && known > 0 => self.remembered[self.random.random_range(0..known)].clone(),
            _ => self.random_bytes(),
        };
        let at = Instant::now();
        let path = format!("/v2/{repository}/blobs/{digest}");
        let answer = self.ask(Method::HEAD, &path, None, Bytes::new()).await?;
        if answer.status == 200 && answer.header("warning").is_none() {
            self.churn.skipped_by_head.fetch_add(1, Ordering::Relaxed);
            return Some(Told { digest, size: bytes.len(), at });
        }
        let at = Instant::now();
        if !self.push_blob(repository, &digest, &bytes).await {
            return None;
        }
        if self.remembered.len() == REMEMBERED {
            self.remembered.remove(0);
        }
        self.remembered.push((digest.clone(), bytes.clone()));
        Some(Told { digest, size: bytes.len(), at })
    }

    async fn mount(&mut self, repository: &str) -> Option<Told> {
        let source = self.churn.pick(&mut self.random)?;
        let digest = source.blobs.first()?.clone();
        let path = format!("/v2/{repository}/blobs/uploads/?mount={digest}&from={}", source.repository);
        let at = Instant::now();
        let answer = self.ask(Method::POST, &path, None, Bytes::new()).await?;
        if answer.status != 201 {
            // An upload was opened instead: the bytes are not here to finish it.
            let location = answer.header("location")?.to_owned();
            self.ask(Method::DELETE, &location, None, Bytes::new()).await?;
            return None;
        }
        self.churn.mounted.fetch_add(1, Ordering::Relaxed);
        let path = format!("/v2/{repository}/blobs/{digest}");
        let answer = self.ask(Method::HEAD, &path, None, Bytes::new()).await?;
        let size = answer.header("content-length")?.parse().ok().filter(|_| answer.status == 200)?;
        Some(Told { digest, size, at })
    }

    async fn push_blob(&mut self, repository: &str, digest: &Digest, bytes: &Bytes) -> bool {
        if self.random.random_bool(0.5) {
            let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
            let answer = self.ask(Method::POST, &path, None, bytes.clone()).await;
            return answer.is_some_and(|answer| answer.status == 201);
        }
        let path = format!("/v2/{repository}/blobs/uploads/");
        let Some(answer) = self.ask(Method::POST, &path, None, Bytes::new()).await else { return false };
        let Some(location) = answer.header("location").map(str::to_owned) else { return false };
        let Some(answer) = self.ask(Method::PATCH, &location, None, bytes.clone()).await else { return false };
        let Some(location) = answer.header("location").map(str::to_owned) else { return false };
        let separator = if location.contains('?') { '&' } else { '?' };
        let path = format!("{location}{separator}digest={digest}");
        let answer = self.ask(Method::PUT, &path, None, Bytes::new()).await;
        answer.is_some_and(|answer| answer.status == 201)
    }

    /// Puts a manifest that names what the client was told is there. False: nobody knows, or it is refused.
    async fn put(&mut self, path: &str, (kind, body): (&str, &Bytes), told: &[Instant]) -> bool {
        let oldest = told.iter().min().copied().unwrap_or_else(Instant::now);
        let Some(answer) = self.ask(Method::PUT, path, Some(kind), body.clone()).await else { return false };
        if (400..500).contains(&answer.status) {
            if oldest.elapsed() < self.promise {
                let said = String::from_utf8_lossy(&answer.body).into_owned();
                self.ledger.violation(format!("BROKEN PUSH {path}: {} {said}", answer.status));
            } else {
                self.churn.late.fetch_add(1, Ordering::Relaxed);
            }
        }
        answer.status == 201
    }

    /// A while in which collection may come between a client and its manifest.
    async fn dawdle(&mut self) {
        if self.random.random_bool(0.2) {
            let longest = u64::try_from(self.promise.as_millis() / 3).expect("a short time");
            tokio::time::sleep(Duration::from_millis(self.random.random_range(0..longest))).await;
        }
    }

    async fn new_image(&mut self, repository: &str) -> Option<(Bytes, Vec<Digest>, Vec<Instant>)> {
        let mut blobs: Vec<Told> = Vec::new();
        for _ in 0..self.random.random_range(1..5) {
            let told = self.blob(repository).await?;
            if blobs.iter().all(|blob| blob.digest != told.digest) {
                blobs.push(told);
            }
        }
        self.dawdle().await;
        let named: Vec<_> = blobs.iter().map(|blob| (blob.digest.clone(), blob.size)).collect();
        let digests = blobs.iter().map(|blob| blob.digest.clone()).collect();
        Some((self.unlike_any_other(&manifest(&named)), digests, blobs.iter().map(|blob| blob.at).collect()))
    }

    /// Makes a manifest of its own of one whose blobs were pushed before: else one delete would take two images.
    fn unlike_any_other(&mut self, body: &Bytes) -> Bytes {
        let mut document: serde_json::Value = serde_json::from_slice(body).expect("our own manifest");
        document["annotations"] = serde_json::json!({"n": self.random.next_u64().to_string()});
        document.to_string().into()
    }

    /// Takes note of what a tag points at; `None`: nobody knows.
    fn tagged(&mut self, at: usize, tag: String, live: Option<Live>) {
        self.tags[at].1.remove(&tag);
        if let Some(live) = live.map(Arc::new) {
            self.churn.live.lock().expect("no panic while held").push(live.clone());
            self.tags[at].1.insert(tag, live);
            self.churn.pushed.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn free_tag(&mut self, at: usize) -> String {
        let tag = format!("t{}", self.random.random_range(0..TAGS));
        if let Some(old) = self.tags[at].1.get(&tag) {
            self.churn.doom(old);
        }
        tag
    }

    async fn push_image(&mut self, at: usize) {
        let repository = self.tags[at].0.clone();
        let Some((body, blobs, told)) = self.new_image(&repository).await else { return };
        let tag = self.free_tag(at);
        let done = self.put(&format!("/v2/{repository}/manifests/{tag}"), (IMAGE, &body), &told).await;
        let manifest = Digest::of(Algorithm::Sha256, &body);
        let live = Live { repository, manifest, others: Mutex::default(), blobs, doomed: AtomicBool::new(false) };
        self.tagged(at, tag, done.then_some(live));
    }

    async fn push_index(&mut self, at: usize) {
        let repository = self.tags[at].0.clone();
        let (mut children, mut blobs, mut told) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..2 {
            let Some((body, named, since)) = self.new_image(&repository).await else { return };
            let digest = Digest::of(Algorithm::Sha256, &body);
            let sent = Instant::now();
            if !self.put(&format!("/v2/{repository}/manifests/{digest}"), (IMAGE, &body), &since).await {
                return;
            }
            told.push(sent);
            blobs.extend(named);
            children.push((digest, body.len()));
        }
        self.dawdle().await;
        let entries: Vec<_> = children
            .iter()
            .map(|(digest, size)| serde_json::json!({"mediaType": IMAGE, "digest": digest.to_string(), "size": size}))
            .collect();
        let body = serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).to_string();
        let (tag, body) = (self.free_tag(at), Bytes::from(body));
        let done = self.put(&format!("/v2/{repository}/manifests/{tag}"), (INDEX, &body), &told).await;
        let others = Mutex::new(children.into_iter().map(|(digest, _)| digest).collect());
        let manifest = Digest::of(Algorithm::Sha256, &body);
        let live = Live { repository, manifest, others, blobs, doomed: AtomicBool::new(false) };
        self.tagged(at, tag, done.then_some(live));
    }

    /// Puts an untagged manifest that refers to a tagged one.
    async fn sign(&mut self, at: usize) {
        let repository = self.tags[at].0.clone();
        let Some(subject) = self.any_tagged(at) else { return };
        let Some((body, ..)) = self.new_image(&repository).await else { return };
        let Ok(mut signature) = serde_json::from_slice::<serde_json::Value>(&body) else { return };
        let path = format!("/v2/{repository}/manifests/{}", subject.manifest);
        let Some(answer) = self.ask(Method::HEAD, &path, None, Bytes::new()).await else { return };
        let Some(size) = answer.header("content-length").and_then(|size| size.parse::<u64>().ok()) else { return };
        let kind = answer.header("content-type").unwrap_or(IMAGE).to_owned();
        signature["subject"] =
            serde_json::json!({"mediaType": kind, "digest": subject.manifest.to_string(), "size": size});
        signature["artifactType"] = "application/vnd.example.signature".into();
        let body = Bytes::from(signature.to_string());
        let digest = Digest::of(Algorithm::Sha256, &body);
        // Told of blobs when they were pushed for it: they are as old as that at most.
        if self.put(&format!("/v2/{repository}/manifests/{digest}"), (IMAGE, &body), &[]).await {
            subject.others.lock().expect("no panic while held").push(digest);
        }
    }

    fn any_tagged(&mut self, at: usize) -> Option<Arc<Live>> {
        let tags = &self.tags[at].1;
        (!tags.is_empty()).then(|| tags.values().nth(self.random.random_range(0..tags.len())).cloned()).flatten()
    }

    /// Deletes a tag, or what it points at.
    async fn delete(&mut self, at: usize, only_tag: bool) {
        let tags = &self.tags[at].1;
        let Some(nth) = (!tags.is_empty()).then(|| self.random.random_range(0..tags.len())) else { return };
        let Some((tag, image)) = tags.iter().nth(nth).map(|(tag, image)| (tag.clone(), image.clone())) else { return };
        self.churn.doom(&image);
        self.tags[at].1.remove(&tag);
        let what = if only_tag { tag } else { image.manifest.to_string() };
        let path = format!("/v2/{}/manifests/{what}", image.repository);
        if let Some(answer) = self.ask(Method::DELETE, &path, None, Bytes::new()).await {
            match answer.status {
                202 => drop(self.churn.deleted.fetch_add(1, Ordering::Relaxed)),
                status if status < 500 => self.ledger.violation(format!("DELETE {path}: {status}")),
                _ => {}
            }
        }
    }

    /// Begins an upload and leaves it, or cancels it.
    async fn abandon_upload(&mut self, at: usize) {
        let path = format!("/v2/{}/blobs/uploads/", self.tags[at].0);
        let Some(answer) = self.ask(Method::POST, &path, None, Bytes::new()).await else { return };
        let Some(location) = answer.header("location").map(str::to_owned) else { return };
        let (_, bytes) = self.random_bytes();
        let Some(answer) = self.ask(Method::PATCH, &location, None, bytes).await else { return };
        if self.random.random_bool(0.5)
            && let Some(location) = answer.header("location").map(str::to_owned)
        {
            self.ask(Method::DELETE, &location, None, Bytes::new()).await;
        }
    }

    /// Pulls something tagged, whoever pushed it, from any node: manifests and blobs, byte for byte.
    async fn pull(&mut self) {
        let Some(image) = self.churn.pick(&mut self.random) else { return };
        let node = self.random.random_range(0..self.client.nodes());
        for (path, digest) in contents(&image) {
            let what = format!("pull {path} from node {}", node + 1);
            match self.client.pull(node, &path, &digest).await {
                Ok(Ok(_)) => drop(self.churn.pulls.fetch_add(1, Ordering::Relaxed)),
                Ok(Err(_)) | Err(_) if image.doomed.load(Ordering::SeqCst) => return,
                Ok(Err(answer)) if answer.status < 500 => {
                    self.ledger.violation(format!("LOST {what}: {}", answer.status))
                }
                Ok(Err(answer)) => self.ledger.note(&what, &answer),
                Err(error) => self.ledger.note_broken(&what, &error),
            }
        }
    }
}

/// Every path of an image, with the digest of what must be there.
pub(crate) fn contents(image: &Live) -> Vec<(String, Digest)> {
    let others = image.others.lock().expect("no panic while held").clone();
    let manifests = std::iter::once(image.manifest.clone()).chain(others);
    let manifests = manifests.map(|digest| (format!("/v2/{}/manifests/{digest}", image.repository), digest));
    let blobs = image.blobs.iter().map(|digest| (format!("/v2/{}/blobs/{digest}", image.repository), digest.clone()));
    manifests.chain(blobs).collect()
}
