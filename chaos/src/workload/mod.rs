//! Seeded clients over all nodes, and the book they keep of what was acknowledged.

pub(crate) mod churn;
mod image;
mod pulls;
mod register;
mod stock;

pub(crate) use image::{Pushed, manifest, push_image};
pub(crate) use pulls::Pulls;
pub(crate) use stock::{Amount, Item, Stock};

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rafthold::oci::Digest;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::check::linearizable::Operation;
use crate::client::Client;
use crate::cluster::{Cluster, Serving};

/// An image whose manifest was answered 201.
#[derive(Debug, Clone)]
pub(crate) struct AckedImage {
    pub(crate) repository: String,
    /// A tag that only this image was ever given.
    pub(crate) tag: String,
    pub(crate) manifest: Digest,
    pub(crate) blobs: Vec<Digest>,
}

/// Bytes of the largest blob of an image, unless a scenario says otherwise.
const BLOB_BYTES_MAX: usize = 400_000;

/// What the run's clients push, and what they saw.
#[derive(Debug)]
pub(crate) struct Ledger {
    blob_bytes_max: usize,
    images: Mutex<Vec<AckedImage>>,
    registers: Mutex<Vec<Vec<Operation>>>,
    pub(crate) pulls: AtomicU64,
    pub(crate) pushes: AtomicU64,
    /// Requests whose connection broke or was refused.
    pub(crate) broken: AtomicU64,
    /// 503 answers, all with `Retry-After`.
    pub(crate) unavailable: AtomicU64,
    /// Pulls of acknowledged content that a node answered 503 although nobody had touched it.
    pub(crate) refused_pulls: AtomicU64,
    violations: Mutex<Vec<String>>,
    last_write: Mutex<Option<Instant>>,
}

impl Default for Ledger {
    fn default() -> Self {
        Self::with_blobs_up_to(BLOB_BYTES_MAX)
    }
}

impl Ledger {
    /// A book of images whose blobs have at most so many bytes.
    pub(crate) fn with_blobs_up_to(blob_bytes_max: usize) -> Self {
        Self {
            blob_bytes_max,
            images: Mutex::default(),
            registers: Mutex::default(),
            pulls: AtomicU64::new(0),
            pushes: AtomicU64::new(0),
            broken: AtomicU64::new(0),
            unavailable: AtomicU64::new(0),
            refused_pulls: AtomicU64::new(0),
            violations: Mutex::default(),
            last_write: Mutex::default(),
        }
    }

    pub(crate) fn acked(&self, image: AckedImage) {
        self.images.lock().expect("no panic while held").push(image);
    }

    pub(crate) fn images(&self) -> Vec<AckedImage> {
        self.images.lock().expect("no panic while held").clone()
    }

    fn random_image(&self, random: &mut StdRng) -> Option<AckedImage> {
        let images = self.images.lock().expect("no panic while held");
        (!images.is_empty()).then(|| images[random.random_range(0..images.len())].clone())
    }

    fn register(&self, register: usize, operation: Operation) {
        let mut registers = self.registers.lock().expect("no panic while held");
        let known = registers.len().max(register + 1);
        registers.resize_with(known, Vec::new);
        registers[register].push(operation);
    }

    pub(crate) fn registers(&self) -> Vec<Vec<Operation>> {
        self.registers.lock().expect("no panic while held").clone()
    }

    pub(crate) fn violation(&self, text: String) {
        eprintln!("VIOLATION {text}");
        self.violations.lock().expect("no panic while held").push(text);
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.violations.lock().expect("no panic while held").clone()
    }

    fn wrote(&self) {
        *self.last_write.lock().expect("no panic while held") = Some(Instant::now());
    }

    /// When the last write was acknowledged.
    pub(crate) fn last_write(&self) -> Option<Instant> {
        *self.last_write.lock().expect("no panic while held")
    }

    /// Notes an answer that a client may meet while nodes die; anything else is a violation.
    pub(crate) fn note(&self, what: &str, answer: &crate::client::Answer) {
        match answer.status {
            503 if answer.header("retry-after").is_some() => {
                self.unavailable.fetch_add(1, Ordering::Relaxed);
            }
            503 => self.violation(format!("{what}: 503 without Retry-After")),
            status if status >= 500 => {
                self.violation(format!("{what}: {status} {}", String::from_utf8_lossy(&answer.body)));
            }
            _ => {}
        }
    }

    pub(crate) fn note_broken(&self, what: &str, error: &anyhow::Error) {
        let text = format!("{error:#}");
        if text.contains("HANG") || text.contains("WRONG BYTES") {
            self.violation(format!("{what}: {text}"));
        }
        self.broken.fetch_add(1, Ordering::Relaxed);
    }
}

/// Running clients; they end when told to.
#[derive(Debug)]
pub(crate) struct Workload {
    pub(crate) ledger: Arc<Ledger>,
    stop: Arc<AtomicBool>,
    clients: JoinSet<()>,
}

impl Workload {
    /// Starts `clients` clients that push and pull, and as many that read and write registers.
    pub(crate) fn start(cluster: &Cluster, seed: u64, clients: usize) -> Self {
        Self::start_with(cluster, Ledger::default(), seed, clients)
    }

    /// As [`Self::start`], with a ledger that says what to push.
    pub(crate) fn start_with(cluster: &Cluster, ledger: Ledger, seed: u64, clients: usize) -> Self {
        let ledger = Arc::new(ledger);
        let stop = Arc::new(AtomicBool::new(false));
        let mut running = JoinSet::new();
        let began = Instant::now();
        for at in 0..clients {
            let client = Client::new(cluster.apis());
            let random = StdRng::seed_from_u64(seed.wrapping_mul(1000) + at as u64);
            running.spawn(push_and_pull(PushAndPull {
                client: client.clone(),
                ledger: ledger.clone(),
                stop: stop.clone(),
                serving: cluster.serving(),
                random: random.clone(),
                at,
            }));
            running.spawn(register::run(client, ledger.clone(), stop.clone(), random, began));
        }
        Self { ledger, stop, clients: running }
    }

    /// Stops the clients and waits for their last answers.
    pub(crate) async fn stop(mut self) -> Arc<Ledger> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            if let Err(error) = ended {
                self.ledger.violation(format!("a client of the laboratory failed: {error}"));
            }
        }
        self.ledger
    }
}

/// One client that pushes and pulls.
struct PushAndPull {
    client: Client,
    ledger: Arc<Ledger>,
    stop: Arc<AtomicBool>,
    serving: Serving,
    random: StdRng,
    at: usize,
}

async fn push_and_pull(me: PushAndPull) {
    let PushAndPull { client, ledger, stop, serving, mut random, at } = me;
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        if random.random_bool(0.4) {
            count += 1;
            let (repository, tag) = (format!("chaos/c{at}"), format!("v{count}"));
            match push_image(&client, &ledger, &mut random, &repository, &tag).await {
                Pushed::Acked(image) => {
                    ledger.pushes.fetch_add(1, Ordering::Relaxed);
                    ledger.wrote();
                    ledger.acked(image);
                }
                Pushed::GaveUp => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        } else if let Some(image) = ledger.random_image(&mut random) {
            pull_image(&client, &ledger, &serving, (&mut random, &image)).await;
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(1..20))).await;
    }
}

/// Pulls an acknowledged image from one node, as a client with retries at other nodes would.
async fn pull_image(client: &Client, ledger: &Ledger, serving: &Serving, (random, image): (&mut StdRng, &AckedImage)) {
    let repository = &image.repository;
    let mut wanted = vec![(format!("/v2/{repository}/manifests/{}", image.tag), &image.manifest)];
    wanted.extend(image.blobs.iter().map(|blob| (format!("/v2/{repository}/blobs/{blob}"), blob)));
    for (path, digest) in wanted {
        let node = random.random_range(0..client.nodes());
        let what = format!("pull {path} from node {}", node + 1);
        let alive = serving.has(node);
        match client.pull(node, &path, digest).await {
            Ok(Ok(_)) => {
                ledger.pulls.fetch_add(1, Ordering::Relaxed);
            }
            Ok(Err(answer)) if answer.status < 500 => ledger.violation(format!("{what}: {}", answer.status)),
            Ok(Err(answer)) => {
                if alive && serving.has(node) {
                    ledger.refused_pulls.fetch_add(1, Ordering::Relaxed);
                    eprintln!("{what}: {} {}", answer.status, String::from_utf8_lossy(&answer.body));
                }
                ledger.note(&what, &answer);
            }
            Err(error) => ledger.note_broken(&what, &error),
        }
    }
}
