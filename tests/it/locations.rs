//! Who holds what, as the nodes tell each other without a leader: a hint, but one that comes by itself and is right in the
//! end.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rafthold::oci::Digest;
use rafthold::topology::NodeId;

use crate::support::TestCluster;
use crate::support::http::Door;

/// The files of blobs and bodies on one node's disk.
fn files(data_dir: &Path) -> BTreeSet<PathBuf> {
    let names = |dir: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    names(&data_dir.join("blobs/sha256")).iter().flat_map(|dir| names(dir)).collect()
}

fn holds(data_dir: &Path, digest: &Digest) -> bool {
    data_dir.join("blobs/sha256").join(&digest.hex()[..2]).join(digest.hex()).exists()
}

/// Waits until every running node is told exactly what lies on the disks of all.
async fn all_told(cluster: &TestCluster, running: &[usize]) {
    cluster
        .eventually("everybody is told what everybody holds", async || {
            let mut told = true;
            for asked in running {
                let known = cluster.gossip(*asked).await.known();
                for other in running {
                    let count = files(cluster.data_dir(*other)).len() as u64;
                    let node = NodeId(cluster.id(*other).await);
                    told &= known.get(&node).is_some_and(|known| known.whole && known.blobs == count);
                }
            }
            told
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_is_told_where_a_blob_lies_and_need_not_ask() {
    let cluster = TestCluster::start_with(5, |config| config.storage.copies = 2).await;
    let door = Door::new(cluster.api_addresses());
    let digest = door.push_blob("it/told", b"lies on two of five nodes").await;
    let mut lies_on = BTreeSet::new();
    cluster
        .eventually("its copies", async || {
            lies_on = (0..5).filter(|at| holds(cluster.data_dir(*at), &digest)).collect();
            lies_on.len() >= 2
        })
        .await;
    all_told(&cluster, &[0, 1, 2, 3, 4]).await;
    for at in 0..5 {
        let lies_on = (0..5).filter(|other| *other != at && holds(cluster.data_dir(*other), &digest));
        let mut expected = BTreeSet::new();
        for other in lies_on {
            expected.insert(NodeId(cluster.id(other).await));
        }
        let told: BTreeSet<NodeId> = cluster.gossip(at).await.holders(&digest).into_iter().collect();
        assert_eq!(told, expected, "node {}", at + 1);
        let path = format!("/v2/it/told/blobs/{digest}");
        door.get(path).at(at).send().await.expect_status(200).expect_body("lies on two of five nodes");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_missed_or_lost_while_it_was_away_is_told_after_its_return() {
    let cluster = TestCluster::start_with(3, |config| {
        // What is gone stays gone for the length of the test.
        config.repair.compare_every = Duration::from_secs(3600);
    })
    .await;
    let door = Door::new(cluster.api_addresses());
    let mut digests = Vec::new();
    for n in 0..60u32 {
        digests.push(door.push_blob("it/away", &n.to_le_bytes()).await);
    }
    all_told(&cluster, &[0, 1, 2]).await;
    cluster.kill(2).await;
    let two = Door::new(cluster.api_addresses()[..2].to_vec());
    for n in 60..120u32 {
        digests.push(two.push_blob("it/away", &n.to_le_bytes()).await);
    }
    for digest in &digests[..10] {
        let file = cluster.data_dir(2).join("blobs/sha256").join(&digest.hex()[..2]).join(digest.hex());
        std::fs::remove_file(file).ok();
    }
    cluster.start_node(2).await;
    all_told(&cluster, &[0, 1, 2]).await;
    // A node that forgets everything by its restart is told everything again.
    cluster.stop(0).await;
    cluster.start_node(0).await;
    all_told(&cluster, &[0, 1, 2]).await;
    let mut compared = 0;
    let mut questions = 0;
    cluster
        .eventually("comparisons with both others", async || {
            let metrics = door.get("/metrics").at(0).send().await.expect_status(200);
            let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
            let count = |name: &str| -> u64 {
                let line = metrics.lines().find(|line| line.starts_with(name));
                line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_default()
            };
            compared = count("rafthold_gossip_books_total{way=\"comparison\"}");
            questions = count("rafthold_gossip_questions_total");
            compared >= 2
        })
        .await;
    assert!(questions < 200, "{compared} comparisons took {questions} questions");
}
