//! What becomes of copies that rot, shrink or vanish on a running node: nobody notices, and they come back.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rafthold::node::{FsckError, fsck};
use rafthold::oci::Digest;
use tokio::time::Instant;

use crate::support::TestCluster;
use crate::support::http::Door;

/// What is done to a file.
type Damage<'a> = &'a dyn Fn(&Path);

/// A copy that is known to be bad is good again within this time.
const HEALED_WITHIN: Duration = Duration::from_secs(60);

fn file(data_dir: &Path, digest: &Digest) -> PathBuf {
    data_dir.join("blobs/sha256").join(&digest.hex()[..2]).join(digest.hex())
}

fn noise(seed: u32, length: usize) -> Vec<u8> {
    let mut word = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        word ^= word << 13;
        word ^= word >> 17;
        word ^= word << 5;
        word.to_le_bytes()[1]
    };
    (0..length).map(|_| next()).collect()
}

/// Blobs of all kinds of sizes, with a copy on every node.
async fn pushed(cluster: &TestCluster, door: &Door) -> Vec<(Digest, Vec<u8>)> {
    let mut blobs = Vec::new();
    for (seed, length) in [(1, 1), (2, 5_000), (3, 64 << 10), (4, 70_000), (5, 300_000), (6, 3 << 20)] {
        let bytes = noise(seed, length);
        blobs.push((door.push_blob("it/heal", &bytes).await, bytes));
    }
    for (digest, _) in &blobs {
        cluster
            .eventually("three copies", async || (0..3).all(|node| file(cluster.data_dir(node), digest).exists()))
            .await;
    }
    blobs
}

async fn pull_all(door: &Door, blobs: &[(Digest, Vec<u8>)], node: usize) {
    for (digest, bytes) in blobs {
        let path = format!("/v2/it/heal/blobs/{digest}");
        door.head(&path).at(node).send().await.expect_status(200);
        door.get(&path).at(node).send().await.expect_status(200).expect_body(bytes);
    }
}

/// Takes a directory away, however busily the node fills it again meanwhile.
fn remove_tree(dir: &Path) {
    let removed = (0..1000).any(|_| fs::remove_dir_all(dir).is_ok());
    assert!(removed, "{} cannot be removed", dir.display());
}

async fn healed(cluster: &TestCluster, blobs: &[(Digest, Vec<u8>)], node: usize) {
    let began = Instant::now();
    for (digest, bytes) in blobs {
        let path = file(cluster.data_dir(node), digest);
        cluster.eventually("a good copy", async || fs::read(&path).is_ok_and(|read| read == *bytes)).await;
    }
    assert!(began.elapsed() < HEALED_WITHIN, "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_of_every_kind_is_not_seen_by_clients_and_heals() {
    let cluster = TestCluster::start_with(3, |config| config.repair.survey_every = Duration::from_secs(2)).await;
    let door = Door::new(cluster.api_addresses());
    let blobs = pushed(&cluster, &door).await;
    let flip = |path: &Path| {
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    let cut = |path: &Path| {
        let bytes = fs::read(path).unwrap();
        fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    };
    let empty = |path: &Path| fs::write(path, b"").unwrap();
    let remove = |path: &Path| fs::remove_file(path).unwrap();
    let kinds: [(usize, Damage<'_>); 4] = [(0, &flip), (1, &cut), (2, &remove), (0, &empty)];
    for (node, damage) in kinds {
        blobs.iter().for_each(|(digest, _)| damage(&file(cluster.data_dir(node), digest)));
        pull_all(&door, &blobs, node).await;
        healed(&cluster, &blobs, node).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_directory_of_blobs_comes_back_while_clients_pull() {
    let cluster = TestCluster::start_with(3, |config| config.repair.survey_every = Duration::from_secs(2)).await;
    let door = Door::new(cluster.api_addresses());
    let blobs = pushed(&cluster, &door).await;
    for directory in ["blobs", "sums", "quarantine"] {
        remove_tree(&cluster.data_dir(1).join(directory));
        pull_all(&door, &blobs, 1).await;
        healed(&cluster, &blobs, 1).await;
    }
    // Pushes go on there too, and what nobody pulls comes back as well.
    remove_tree(&cluster.data_dir(1).join("blobs"));
    let bytes = noise(9, 200_000);
    let digest = door.push_blob("it/heal", &bytes).await;
    healed(&cluster, &blobs, 1).await;
    healed(&cluster, &[(digest, bytes)], 1).await;
    cluster
        .eventually("no gap", async || {
            let status = door.get("/api/v1/cluster/status").at(0).send().await.json();
            status["blobs"]["under_replicated"] == 0 && status["repair"]["queue"] == 0
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rot_that_nobody_reads_is_found_by_the_scrub_and_reported() {
    let cluster = TestCluster::start_with(3, |config| config.scrub.period = Duration::from_secs(8)).await;
    let door = Door::new(cluster.api_addresses());
    let blobs = pushed(&cluster, &door).await;
    for (digest, _) in &blobs {
        let path = file(cluster.data_dir(2), digest);
        let mut bytes = fs::read(&path).unwrap();
        bytes[0] ^= 0x80;
        fs::write(path, bytes).unwrap();
    }
    healed(&cluster, &blobs, 2).await;
    let status = door.get("/api/v1/cluster/status").at(2).send().await.json();
    let scrub = status["nodes"].as_array().unwrap().iter().find(|node| node["name"] == "n3").unwrap()["scrub"].clone();
    let bad = scrub["bad"].as_u64().unwrap();
    assert!(bad >= 1 && scrub["quarantined"].as_u64().unwrap() >= bad, "{scrub}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_has_all_nodes_verify_a_blob() {
    let cluster = TestCluster::start(3).await;
    let door = Door::new(cluster.api_addresses());
    let blobs = pushed(&cluster, &door).await;
    let (digest, bytes) = &blobs[4];
    let mut rotten = bytes.clone();
    rotten[0] ^= 1;
    fs::write(file(cluster.data_dir(1), digest), rotten).unwrap();
    let verify = async |all| {
        let path = format!("/api/v1/blobs/{digest}/verify");
        let answer = door.post(path).at(0).body(format!("{{\"all\": {all}}}")).send().await.expect_status(200).json();
        let nodes = answer["nodes"].as_array().unwrap();
        nodes.iter().map(|node| node["verdict"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(verify(false).await, ["good"]);
    assert_eq!(verify(true).await.iter().filter(|verdict| *verdict == "quarantined").count(), 1);
    healed(&cluster, &blobs, 1).await;
    assert_eq!(verify(true).await, ["good", "good", "good"]);
    let unknown = format!("/api/v1/blobs/sha256:{}/verify", "0".repeat(64));
    door.post(unknown).send().await.expect_status(404);
    door.post(format!("/api/v1/blobs/{digest}/verify")).body("{\"al\": true}").send().await.expect_status(400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_blob_is_lost_for_certain_and_a_push_of_it_heals() {
    let cluster = TestCluster::start_with(3, |config| config.repair.survey_every = Duration::from_secs(1)).await;
    let door = Door::new(cluster.api_addresses());
    let bytes = noise(7, 200_000);
    let digest = door.push_blob("it/heal", &bytes).await;
    let lost = async || door.get("/api/v1/cluster/status").at(0).send().await.json()["blobs"]["lost"].as_u64();
    cluster
        .eventually("three copies", async || (0..3).all(|node| file(cluster.data_dir(node), &digest).exists()))
        .await;
    (0..3).for_each(|node| fs::remove_file(file(cluster.data_dir(node), &digest)).unwrap());
    let path = format!("/v2/it/heal/blobs/{digest}");
    door.head(&path).send().await.expect_status(404);
    door.get(&path).send().await.expect_status(503);
    cluster.eventually("seen as lost", async || lost().await == Some(1)).await;
    door.push_blob("it/heal", &bytes).await;
    for node in 0..3 {
        door.get(&path).at(node).send().await.expect_status(200).expect_body(&bytes);
    }
    cluster.eventually("found again", async || lost().await == Some(0)).await;
    healed(&cluster, &[(digest.clone(), bytes.clone())], 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_node_is_checked_without_being_changed_and_a_running_one_is_not() {
    let cluster = TestCluster::start(3).await;
    let door = Door::new(cluster.api_addresses());
    let blobs = pushed(&cluster, &door).await;
    // Enough entries for snapshots, so that the check replays the log from one to the next.
    for round in 0..450 {
        door.push_blob("it/many", format!("blob {}", round % 90).as_bytes()).await;
    }
    let config = cluster.config(1).clone();
    assert!(matches!(fsck(&config, false), Err(FsckError::DataDir(_))), "a node runs on it");
    cluster
        .eventually("nothing missing", async || {
            let status = door.get("/api/v1/cluster/status").at(1).send().await.json();
            status["blobs"]["under_replicated"] == 0 && status["repair"]["queue"] == 0
        })
        .await;
    cluster.stop(1).await;
    let found = fsck(&config, true).unwrap();
    assert!(found.findings.is_empty(), "{:?}", found.findings);
    assert!(found.state.snapshots.len() == 2 && found.state.replayed > 0, "{:?}", found.state);
    assert!(found.disk.hashed == found.disk.blobs && found.disk.blobs >= 90 + 6 && found.missing == 0);
    let again = fsck(&config, false).unwrap();
    assert_eq!((again.state.state_hash, again.disk.blobs), (found.state.state_hash, found.disk.blobs));
    let path = |at: usize| file(cluster.data_dir(1), &blobs[at].0);
    let mut bytes = fs::read(path(5)).unwrap();
    bytes[1] ^= 1;
    fs::write(path(5), bytes).unwrap();
    fs::write(path(4), b"short").unwrap();
    fs::remove_file(path(3)).unwrap();
    let kinds = |deep| {
        let mut kinds: Vec<_> = fsck(&config, deep).unwrap().findings.iter().map(|flaw| flaw.kind).collect();
        kinds.sort_unstable();
        kinds
    };
    assert_eq!(kinds(false), ["missing", "size"]);
    assert_eq!(kinds(true), ["hash", "missing", "size"]);
    cluster.start_node(1).await;
    pull_all(&door, &blobs, 1).await;
    healed(&cluster, &blobs, 1).await;
}
