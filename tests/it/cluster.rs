//! What a cluster of three does when nodes come and go.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::TestCluster;
use crate::support::http::{Door, sha256, with_digest};

fn index(value: &str) -> serde_json::Value {
    serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [],
        "annotations": {"value": value},
    })
}

async fn value(door: &Door, node: usize, path: &str) -> Option<String> {
    let reply = door.get(path).at(node).try_send().await.ok()?;
    (reply.status == 200).then(|| reply.json()["annotations"]["value"].as_str().unwrap_or_default().to_owned())
}

/// Reads until the node serves the acknowledged value: it may refuse for a while what it has not applied yet (P5), but an
/// answer without a `Warning` is never older.
async fn serves(cluster: &TestCluster, door: &Door, (node, path): (usize, &str), acked: &str) {
    cluster
        .eventually(acked, async || {
            let reply = door.get(path).at(node).send().await;
            assert!(matches!(reply.status, 200 | 503), "{}", reply.status);
            let served = reply.status == 200 && reply.json()["annotations"]["value"] == acked;
            assert!(served || reply.status == 503 || reply.header("warning").is_some(), "{:?}", reply.body);
            served
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acked_is_served_by_the_others_when_the_leader_dies_and_writes_go_on() {
    let cluster = TestCluster::start(3).await;
    let door = Door::new(cluster.api_addresses());
    let leader = cluster.leader().await;
    let (one, two) = ((leader + 1) % 3, (leader + 2) % 3);
    let path = "/v2/it/leader/manifests/t";
    let digest = sha256(b"a layer");
    let upload = format!("/v2/it/leader/blobs/uploads/?digest={digest}");
    door.post(&upload).at(leader).body("a layer").send().await.expect_status(201).expect_header("rafthold-copies", "2");
    door.put(path).at(leader).body(index("before").to_string()).send().await.expect_status(201);
    cluster.kill(leader).await;
    for node in [one, two] {
        serves(&cluster, &door, (node, path), "before").await;
        let blob = format!("/v2/it/leader/blobs/{digest}");
        door.get(blob).at(node).send().await.expect_status(200).expect_body("a layer");
    }
    cluster
        .eventually("a write after the leader died", async || {
            let put = door.put(path).at(one).body(index("after").to_string()).send().await;
            assert!(matches!(put.status, 201 | 503), "{}", put.status);
            put.status == 201
        })
        .await;
    serves(&cluster, &door, (two, path), "after").await;
    cluster.start_node(leader).await;
    serves(&cluster, &door, (leader, path), "after").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_goes_on_after_the_node_that_took_its_last_chunk_died() {
    let cluster = TestCluster::start(3).await;
    let door = Door::new(cluster.api_addresses());
    let reply = door.post("/v2/it/uploads/blobs/uploads/").at(0).send().await.expect_status(202);
    let reply = door.patch(reply.location()).at(1).body("first ").send().await.expect_status(202);
    let mut location = reply.location();
    cluster.kill(1).await;
    cluster
        .eventually("the session at another node", async || {
            let reply = door.get(&location).at(2).send().await;
            if reply.status != 204 {
                assert_eq!(reply.status, 503);
                return false;
            }
            assert_eq!(reply.header("range"), Some("0-5"));
            location = reply.location();
            true
        })
        .await;
    let digest = sha256(b"first second");
    cluster
        .eventually("the rest of the upload", async || {
            let reply = door.put(with_digest(&location, &digest)).at(0).body("second").send().await;
            assert!(matches!(reply.status, 201 | 503), "{}", reply.status);
            reply.status == 201
        })
        .await;
    for node in [0, 2] {
        let path = format!("/v2/it/uploads/blobs/{digest}");
        door.get(path).at(node).send().await.expect_status(200).expect_body("first second");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_that_breaks_off_keeps_what_arrived_even_if_the_node_that_took_it_dies() {
    let cluster = TestCluster::start(3).await;
    let door = Door::new(cluster.api_addresses());
    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n % 241) as u8).collect();
    let mut location = door.post("/v2/it/broken/blobs/uploads/").at(0).send().await.expect_status(202).location();
    let sent = 2_000_000;
    {
        let mut stream = TcpStream::connect(cluster.api_addresses()[1]).await.unwrap();
        let head = format!("PATCH {location} HTTP/1.1\r\nhost: it\r\ncontent-length: {}\r\n\r\n", bytes.len());
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&bytes[..sent]).await.unwrap();
        stream.shutdown().await.unwrap();
        // The node has read everything once it closes its end.
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok();
    }
    let mut kept = 0;
    cluster
        .eventually("what arrived at another node", async || {
            let reply = door.get(&location).at(2).send().await.expect_status(204);
            location = reply.location();
            let last = reply.header("range").and_then(|range| range.strip_prefix("0-")?.parse::<usize>().ok());
            kept = last.filter(|last| *last > 0).map_or(0, |last| last + 1);
            kept > 0
        })
        .await;
    assert_eq!(kept, sent, "every byte that reached the node");
    cluster.kill(1).await;
    let digest = sha256(&bytes);
    cluster
        .eventually("the rest of the upload", async || {
            let put = door.put(with_digest(&location, &digest)).at(2).body(&bytes[kept..]).send().await;
            assert!(matches!(put.status, 201 | 503), "{}", put.status);
            put.status == 201
        })
        .await;
    for node in [0, 2] {
        let path = format!("/v2/it/broken/blobs/{digest}");
        door.get(path).at(node).send().await.expect_status(200).expect_body(&bytes);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_quorum_serves_with_a_warning_and_refuses_writes() {
    let cluster = TestCluster::start(3).await;
    let door = Door::new(cluster.api_addresses());
    let path = "/v2/it/alone/manifests/t";
    let digest = door.put_manifest("it/alone", "t", &index("kept")).await;
    cluster.eventually("the manifest at node 1", async || value(&door, 0, path).await.is_some()).await;
    cluster.kill(1).await;
    cluster.kill(2).await;
    cluster
        .eventually("a warning", async || {
            let reply = door.get(path).at(0).send().await.expect_status(200);
            reply.header("warning").is_some_and(|warning| warning.starts_with("299 "))
        })
        .await;
    let by_digest = format!("/v2/it/alone/manifests/{digest}");
    door.get(by_digest).at(0).send().await.expect_status(200);
    let unknown = format!("/v2/it/alone/manifests/{}", sha256(b"unknown"));
    door.get(unknown).at(0).send().await.expect_status(503);
    let reply = door.put(path).at(0).body(index("refused").to_string()).send().await.expect_status(503);
    assert!(reply.header("retry-after").is_some());
    assert!(matches!(reply.header("rafthold-outcome"), Some("none" | "unknown")));
    cluster.start_node(1).await;
    cluster
        .eventually("a write with two nodes", async || {
            let put = door.put(path).at(0).body(index("again").to_string()).send().await;
            put.status == 201
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_node_hands_over_and_catches_up_when_it_is_back() {
    let cluster = TestCluster::start(3).await;
    let door = Door::new(cluster.api_addresses());
    let leader = cluster.leader().await;
    cluster.stop(leader).await;
    let other = (leader + 1) % 3;
    // More than the log keeps: the node comes back by a snapshot.
    let mut last = String::new();
    for round in 0..400 {
        last = format!("round {round}");
        let path = format!("/v2/it/behind/manifests/t{}", round % 7);
        let body = index(&last).to_string();
        cluster
            .eventually("a write", async || {
                let put = door.put(&path).at(other).body(&body).send().await;
                assert!(matches!(put.status, 201 | 503), "{}", put.status);
                put.status == 201
            })
            .await;
    }
    cluster.start_node(leader).await;
    let path = format!("/v2/it/behind/manifests/t{}", 399 % 7);
    serves(&cluster, &door, (leader, &path), &last).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_copy_is_never_served_and_heals() {
    let cluster = TestCluster::start(3).await;
    let door = Door::new(cluster.api_addresses());
    let bytes: Vec<u8> = (0..1_000_000u32).map(|n| (n % 253) as u8).collect();
    let digest = door.push_blob("it/rot", &bytes).await;
    let hex = digest.hex();
    let file = |node: usize| cluster.data_dir(node).join("blobs/sha256").join(&hex[..2]).join(&hex);
    cluster.eventually("three copies", async || (0..3).all(|node| file(node).exists())).await;
    let mut rotten = std::fs::read(file(1)).unwrap();
    rotten[700_000] ^= 1;
    std::fs::write(file(1), rotten).unwrap();
    let path = format!("/v2/it/rot/blobs/{digest}");
    for _ in 0..2 {
        door.get(&path).at(1).send().await.expect_status(200).expect_body(&bytes);
    }
    cluster.eventually("a good copy again", async || std::fs::read(file(1)).is_ok_and(|read| read == bytes)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_pushes_of_one_blob_all_succeed() {
    let cluster = TestCluster::start(3).await;
    let door = Door::new(cluster.api_addresses());
    let bytes: Vec<u8> = (0..500_000u32).map(|n| (n % 249) as u8).collect();
    let digest = sha256(&bytes);
    let path = format!("/v2/it/same/blobs/uploads/?digest={digest}");
    let pushes = (0..16).map(|_| door.post(&path).body(&bytes).send());
    for reply in futures::future::join_all(pushes).await {
        reply.expect_status(201);
    }
    for node in 0..3 {
        let path = format!("/v2/it/same/blobs/{digest}");
        door.get(path).at(node).send().await.expect_status(200).expect_body(&bytes);
    }
}
