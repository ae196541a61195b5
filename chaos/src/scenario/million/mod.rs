//! Nodes with a million manifests: what they need, how soon they serve, and what requests and upkeep cost.
//!
//! Three nodes form a cluster and take some pushes over HTTP, which gives the rate of pushes and what requests cost while
//! the registry is small. Then they are stopped, and the rest is put into their data directories by the product's own
//! state machine, snapshot writer and log (`meta::Preload`); files of the nodes are names of one copy. From there on
//! everything is read off real processes.

mod content;
mod gauge;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use rafthold::meta::Preload;
use rafthold::oci::{Algorithm, Digest};
use rafthold::topology::ClusterId;
use tokio::time::{Instant, sleep};

use crate::client::Client;
use crate::cluster::Cluster;

use content::Content;
use gauge::{Cost, Times, costs, idle, processor_time, push, put};

use super::{Setup, equal_states, until};

/// Images pushed over HTTP while the registry is small.
const FIRST_PUSHES: usize = 250;
/// The promise: a node of this size serves so soon after its start.
const START_MAX: Duration = Duration::from_secs(30);
/// How soon an empty node serves that gets the state of the others.
const CAUGHT_UP_MAX: Duration = Duration::from_secs(60);
/// How long a node may take before the measurement is given up.
const GIVE_UP: Duration = Duration::from_secs(300);
/// What a manifest of ten layers and one tag may cost of a node's memory, with its links and all else the node holds.
const MANIFEST_BYTES_MAX: u64 = 2048;
/// A snapshot is due after so many entries here, so that one comes soon.
const SNAPSHOT_ENTRIES: &str = "2000";
/// A request may cost so many times as much as while the registry was small, and this much more, for noise.
const COST_RATIO_MAX: f64 = 2.0;
const COST_NOISE_MS: f64 = 0.3;

pub(crate) async fn million(setup: &Setup, manifests: usize, links: usize) -> Result<()> {
    let content = Content::new(manifests, links)?;
    let mut options = setup.options(None);
    options.environment = &[("RAFTHOLD_RAFT__SNAPSHOT_ENTRIES", SNAPSHOT_ENTRIES)];
    let mut cluster = Cluster::start(&options).await?;
    let small = while_small(&cluster, &content).await?;
    fill(&mut cluster, &content, setup.seed).await?;
    let large = Large { content: &content, client: Client::new(cluster.apis()), broken: Mutex::default() };
    large.start_all(&mut cluster).await?;
    large.idle(&cluster).await?;
    large.light_load(&cluster).await?;
    large.compare(&small, &costs(&cluster, &Content::repository(0), "large").await?);
    large.snapshot(&cluster).await?;
    equal_states(&cluster).await?;
    large.restart(&mut cluster).await?;
    large.catch_up(&mut cluster).await?;
    cluster.check_logs()?;
    let broken = large.broken.into_inner().expect("no panic while held");
    ensure!(broken.is_empty(), "{}", broken.join("; "));
    Ok(())
}

/// What requests cost in a registry of some images, and how fast those were pushed.
async fn while_small(cluster: &Cluster, content: &Content) -> Result<Vec<Cost>> {
    let client = Client::new(cluster.apis());
    let (began, before) = (Instant::now(), processor_time(cluster)?);
    for n in 0..FIRST_PUSHES {
        push(&client, n % cluster.len(), ("pushed/first", &Content::tag(n))).await?;
    }
    let (took, used) = (began.elapsed().as_secs_f64(), processor_time(cluster)? - before);
    let rate = FIRST_PUSHES as f64 / took;
    println!(
        "pushed over HTTP by one client: {rate:.0} images of 3 blobs a second, {:.1} ms CPU of all nodes each; {} \
         manifests would take {:.1} hours",
        used.as_secs_f64() * 1000.0 / FIRST_PUSHES as f64,
        content.manifests,
        content.manifests as f64 / rate / 3600.0,
    );
    costs(cluster, "pushed/first", "small").await
}

/// Stops all nodes, fills their data directories and has the first one checked.
async fn fill(cluster: &mut Cluster, content: &Content, seed: u64) -> Result<()> {
    equal_states(cluster).await?;
    let id: ClusterId = cluster.status(0).await?["cluster_id"].as_str().context("cluster_id")?.parse()?;
    // At one moment: their logs end at one entry, and no other leader begins a term.
    for node in 0..cluster.len() {
        cluster.kill(node).await?;
    }
    let began = Instant::now();
    let dirs: Vec<PathBuf> = (0..cluster.len()).map(|node| cluster.data_dir(node).to_owned()).collect();
    let mut preload = Preload::begin(&dirs[0], id).await?;
    // Request ids of its own: the nodes draw theirs from all 128 bits.
    content.fill(&mut preload, &dirs, u128::from(seed) << 64)?;
    println!(
        "made {} manifests with as many tags and {} links in {} repositories in {:.0} s",
        content.manifests,
        content.links,
        content.repositories,
        began.elapsed().as_secs_f64(),
    );
    for dir in &dirs {
        let began = Instant::now();
        let bytes = preload.write(dir).await?;
        println!("snapshot of {} MiB written in {:.1} s", bytes >> 20, began.elapsed().as_secs_f64());
    }
    drop(preload);
    let began = Instant::now();
    let found = cluster.run(0, &["fsck"]).await?;
    ensure!(found.contains("missing here: 0\n") && found.contains("findings: 0\n"), "fsck: {found}");
    println!("fsck of a node found nothing wrong in {:.0} s", began.elapsed().as_secs_f64());
    Ok(())
}

/// The snapshots of a node: those that are whole, and whether one is being written.
fn snapshots(data_dir: &Path) -> Result<(Vec<String>, bool)> {
    let mut names = Vec::new();
    for entry in fs::read_dir(data_dir.join("snapshots"))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    let writing = names.iter().any(|name| name.ends_with(".new"));
    names.retain(|name| name.ends_with(".snap"));
    names.sort();
    Ok((names, writing))
}

/// The cluster once it is filled.
struct Large<'a> {
    content: &'a Content,
    client: Client,
    /// What was not as promised: everything else is measured all the same.
    broken: Mutex<Vec<String>>,
}

impl Large<'_> {
    fn promise(&self, kept: bool, otherwise: String) {
        if !kept {
            eprintln!("NOT KEPT {otherwise}");
            self.broken.lock().expect("no panic while held").push(otherwise);
        }
    }

    fn compare(&self, small: &[Cost], large: &[Cost]) {
        for (small, large) in small.iter().zip(large) {
            println!("small: {small}\nlarge: {large}");
            let kept = large.cpu_ms <= small.cpu_ms * COST_RATIO_MAX + COST_NOISE_MS;
            self.promise(kept, format!("{}: {:.3} ms, was {:.3} ms", large.what, large.cpu_ms, small.cpu_ms));
        }
    }

    /// Pulls a manifest by its tag from a node and checks it.
    async fn pull(&self, node: usize, n: usize) -> Result<()> {
        let (repository, manifest) = (n % self.content.repositories, n % 500);
        let digest = Digest::of(Algorithm::Sha256, self.content.body(repository, manifest).as_bytes());
        let path = format!("/v2/{}/manifests/{}", Content::repository(repository), Content::tag(manifest));
        match self.client.pull(node, &path, &digest).await? {
            Ok(_) => Ok(()),
            Err(answer) => anyhow::bail!("GET {path} at node {}: {}", node + 1, answer.status),
        }
    }

    /// Waits until a node serves, and says how long after `began` it was ready and answered a tag rightly; returns the latter.
    async fn served(&self, cluster: &mut Cluster, (node, how): (usize, &str), began: Instant) -> Result<Duration> {
        cluster.wait_ready(node, GIVE_UP).await?;
        let (ready, used) = (began.elapsed(), cluster.processor_time(node)?);
        self.pull(node, 12_345).await?;
        let pulled = began.elapsed();
        println!("node {} {how}: ready after {ready:.1?} ({used:.1?} CPU), a tag pulled after {pulled:.1?}", node + 1);
        Ok(pulled)
    }

    /// Starts all nodes at once; their indexes know nothing of the files, as if they had been lost.
    async fn start_all(&self, cluster: &mut Cluster) -> Result<()> {
        let began = Instant::now();
        for node in 0..cluster.len() {
            cluster.start_node(node)?;
        }
        let mut last = Duration::ZERO;
        for node in 0..cluster.len() {
            last = last.max(self.served(cluster, (node, "starts with all others, without its index"), began).await?);
        }
        self.memory(cluster, "after the start")?;
        self.promise(last <= START_MAX, format!("a node served only {last:.1?} after the start of all"));
        Ok(())
    }

    fn memory(&self, cluster: &Cluster, when: &str) -> Result<u64> {
        let mut most = 0;
        let mut text = Vec::new();
        for node in 0..cluster.len() {
            let bytes = cluster.resident_bytes(node)?;
            most = most.max(bytes);
            text.push(format!("{} MiB", bytes >> 20));
        }
        let each = most / self.content.manifests as u64;
        println!("resident memory {when}: {}; {each} bytes a manifest at most", text.join(", "));
        Ok(each)
    }

    /// What the nodes do by themselves after such a start: indexes are rebuilt, everything is compared and surveyed.
    async fn idle(&self, cluster: &Cluster) -> Result<()> {
        for minute in 1..=2 {
            let used = idle(cluster, Duration::from_secs(60)).await?;
            println!("minute {minute} after the start: {used:.2} processors used by all nodes together");
        }
        let settled = until("indexes complete and everything compared", GIVE_UP, async || {
            let Ok(status) = cluster.status(0).await else { return false };
            let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
            let done = |node: &serde_json::Value| node["index_complete"] == true && node["compared"] == true;
            nodes.len() == cluster.len() && nodes.iter().all(done)
        });
        println!("settled {:.0} s after that", settled.await?.as_secs_f64());
        let used = idle(cluster, Duration::from_secs(60)).await?;
        println!("a minute later on: {used:.2} processors used by all nodes together");
        Ok(())
    }

    /// A minute of what a small team does.
    async fn light_load(&self, cluster: &Cluster) -> Result<()> {
        let (mut pulls, mut pushes) = (Times::default(), Times::default());
        let began = Instant::now();
        let mut n = 0;
        while began.elapsed() < Duration::from_secs(60) {
            let asked = Instant::now();
            self.pull(n % cluster.len(), n * 7919).await?;
            pulls.add(asked.elapsed());
            if n.is_multiple_of(10) {
                let asked = Instant::now();
                push(&self.client, n % cluster.len(), ("pushed/light", &Content::tag(n))).await?;
                pushes.add(asked.elapsed());
            }
            n += 1;
            sleep(Duration::from_millis(20)).await;
        }
        println!("a minute of light load: pulls of a tag: {pulls}; pushes of an image: {pushes}");
        let each = self.memory(cluster, "after a minute of light load")?;
        self.promise(each <= MANIFEST_BYTES_MAX, format!("a manifest costs {each} bytes of a node's memory"));
        Ok(())
    }

    /// Moves tags until every node has written a snapshot, and compares the answers meanwhile with those before and after.
    async fn snapshot(&self, cluster: &Cluster) -> Result<()> {
        let before = (0..cluster.len()).map(|node| snapshots(cluster.data_dir(node))).collect::<Result<Vec<_>>>()?;
        let body = Bytes::from(self.content.body(0, 0));
        let mut began: Vec<Option<Instant>> = vec![None; cluster.len()];
        let mut took: Vec<Option<Duration>> = vec![None; cluster.len()];
        let (mut quiet, mut busy) = <[(Times, Times); 2]>::default().into();
        let begun = Instant::now();
        let mut n = 0;
        while took.iter().any(Option::is_none) {
            ensure!(begun.elapsed() < GIVE_UP, "no snapshot was written by every node");
            let mut writing = false;
            for node in 0..cluster.len() {
                let (names, is_writing) = snapshots(cluster.data_dir(node))?;
                writing |= is_writing;
                if is_writing && began[node].is_none() {
                    began[node] = Some(Instant::now());
                }
                if let (None, Some(began), true) = (took[node], began[node], names.last() > before[node].0.last()) {
                    took[node] = Some(began.elapsed());
                    let size =
                        fs::metadata(cluster.data_dir(node).join("snapshots").join(&names[names.len() - 1]))?.len();
                    println!("snapshot of node {}: {} MiB in {:.1?}", node + 1, size >> 20, began.elapsed());
                }
            }
            let (reads, writes) = if writing { &mut busy } else { &mut quiet };
            let asked = Instant::now();
            put(
                &self.client,
                n % cluster.len(),
                (&Content::repository(0), &format!("moved-{}", n % 100)),
                body.clone(),
            )
            .await?;
            writes.add(asked.elapsed());
            let asked = Instant::now();
            self.pull(n % cluster.len(), n * 7919).await?;
            reads.add(asked.elapsed());
            n += 1;
        }
        println!("without a snapshot under way: reads of a tag: {}; writes of a tag: {}", quiet.0, quiet.1);
        println!("while snapshots are written: reads of a tag: {}; writes of a tag: {}", busy.0, busy.1);
        println!("writes while a snapshot was written: {}", busy.1.len());
        Ok(())
    }

    /// Stops and starts one node, which keeps its index; then kills it and starts it without.
    async fn restart(&self, cluster: &mut Cluster) -> Result<()> {
        let node = 1;
        let began = Instant::now();
        cluster.stop(node, GIVE_UP).await?;
        println!("node {} stopped in {:.1?}", node + 1, began.elapsed());
        let mut slowest = Duration::ZERO;
        for lost in [false, true] {
            if lost {
                cluster.kill(node).await?;
                fs::remove_dir_all(cluster.data_dir(node).join("index"))?;
            }
            let began = Instant::now();
            cluster.start_node(node)?;
            let how = if lost { "starts again, killed and its index lost" } else { "starts again" };
            let pulled = self.served(cluster, (node, how), began).await?;
            slowest = slowest.max(pulled);
        }
        self.promise(slowest <= START_MAX, format!("a node served only {slowest:.1?} after its start"));
        Ok(())
    }

    /// A node that lost its disk comes back with an empty one: it gets the state as a snapshot, and serves by asking others.
    async fn catch_up(&self, cluster: &mut Cluster) -> Result<()> {
        let node = 2;
        cluster.kill(node).await?;
        fs::remove_dir_all(cluster.data_dir(node))?;
        // Until it counts as dead, nobody else may have its name.
        sleep(Duration::from_secs(10)).await;
        let began = Instant::now();
        cluster.start_node(node)?;
        let pulled = self.served(cluster, (node, "starts empty"), began).await?;
        let there = || -> Result<u64> {
            let mut files = 0;
            for fan in fs::read_dir(cluster.data_dir(node).join("blobs/sha256"))? {
                files += fs::read_dir(fan?.path())?.count() as u64;
            }
            Ok(files)
        };
        let (first, counted, used) = (there()?, Instant::now(), processor_time(cluster)?);
        sleep(Duration::from_secs(60)).await;
        let rate = (there()? - first) as f64 / counted.elapsed().as_secs_f64();
        let cpu = (processor_time(cluster)? - used).as_secs_f64() / counted.elapsed().as_secs_f64();
        println!(
            "it fetches {rate:.0} bodies and blobs a second, with {cpu:.2} processors of all nodes: all of them in {:.0} min",
            self.content.manifests as f64 / rate.max(1.0) / 60.0,
        );
        self.memory(cluster, "while it fetches")?;
        self.promise(pulled <= CAUGHT_UP_MAX, format!("an empty node served only after {pulled:.1?}"));
        Ok(())
    }
}
