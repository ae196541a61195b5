//! Nodes that join, leave, are replaced and are lost, with clients at work.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rafthold::node::{self, JoinToken, Node, PrepareError, Seams};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::TestCluster;
use crate::support::http::{Door, sha256};

const SOON: Duration = Duration::from_secs(60);

fn index(value: &str) -> Value {
    json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [],
        "annotations": {"value": value},
    })
}

async fn status(door: &Door, at: usize) -> Value {
    match door.get("/api/v1/cluster/status").at(at).try_send().await {
        Ok(reply) if reply.status == 200 => reply.json(),
        _ => Value::Null,
    }
}

fn ids(status: &Value, which: impl Fn(&Value) -> bool) -> BTreeSet<u64> {
    let nodes = status["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
    nodes.iter().filter(|node| which(node)).filter_map(|node| node["id"].as_u64()).collect()
}

fn voters(status: &Value) -> BTreeSet<u64> {
    ids(status, |node| node["role"] == "voter")
}

fn all(status: &Value) -> BTreeSet<u64> {
    ids(status, |_| true)
}

async fn voters_become(cluster: &TestCluster, door: &Door, at: usize, expected: &[u64]) {
    let expected: BTreeSet<u64> = expected.iter().copied().collect();
    cluster.eventually("the voters", async || voters(&status(door, at).await) == expected).await;
}

/// Asks until the cluster has agreed to raise its feature level; any other refusal is one.
async fn operate(cluster: &TestCluster, door: &Door, (at, path): (usize, &str), body: Value) -> Value {
    let mut answer = Value::Null;
    cluster
        .eventually(path, async || {
            let reply = door.post(path).at(at).body(body.to_string()).send().await;
            let code = if reply.status == 200 { Value::Null } else { reply.json()["error"]["code"].clone() };
            if code == "feature_level" || code == "no_quorum" || code == "no_leader" || code == "conflict" {
                return false;
            }
            answer = reply.expect_status(200).json();
            true
        })
        .await;
    answer
}

/// Clients that push and pull through the first nodes until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    nodes: Arc<AtomicUsize>,
    tasks: JoinSet<(Vec<(String, String)>, usize)>,
}

impl Load {
    fn begin(door: &Arc<Door>, nodes: usize) -> Self {
        let (stop, nodes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(nodes)));
        let mut tasks = JoinSet::new();
        for client in 0..3 {
            tasks.spawn(client_of(door.clone(), client, stop.clone(), nodes.clone()));
        }
        Self { stop, nodes, tasks }
    }

    /// Sends requests to so many of the nodes from now on.
    fn spread(&self, nodes: usize) {
        self.nodes.store(nodes, Ordering::Relaxed);
    }

    /// Returns what was acknowledged, as path and value, and how often a node said 503.
    async fn end(self) -> (Vec<(String, String)>, usize) {
        self.stop.store(true, Ordering::Relaxed);
        let mut acked = Vec::new();
        let mut unavailable = 0;
        for (some, times) in self.tasks.join_all().await {
            acked.extend(some);
            unavailable += times;
        }
        (acked, unavailable)
    }
}

/// Pushes a blob and a tag, pulls what was acknowledged earlier; a refusal other than 503 fails the test.
async fn client_of(
    door: Arc<Door>,
    client: usize,
    stop: Arc<AtomicBool>,
    nodes: Arc<AtomicUsize>,
) -> (Vec<(String, String)>, usize) {
    let mut acked: Vec<(String, String)> = Vec::new();
    let mut unavailable = 0;
    for round in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let node = |shift: usize| (round + client + shift) % nodes.load(Ordering::Relaxed);
        let value = format!("{client}-{round}");
        let bytes = value.repeat(1000);
        let digest = sha256(bytes.as_bytes());
        let upload = format!("/v2/it/load/blobs/uploads/?digest={digest}");
        let blob = door.post(&upload).at(node(0)).body(&bytes).send().await;
        assert!(matches!(blob.status, 201 | 503), "{}: {:?}", blob.status, blob.body);
        let path = format!("/v2/it/load/manifests/t{value}");
        let put = door.put(&path).at(node(1)).body(index(&value).to_string()).send().await;
        assert!(matches!(put.status, 201 | 503), "{}: {:?}", put.status, put.body);
        unavailable += usize::from(blob.status == 503) + usize::from(put.status == 503);
        if blob.status == 201 {
            acked.push((format!("/v2/it/load/blobs/{digest}"), bytes));
        }
        if put.status == 201 {
            acked.push((path, index(&value).to_string()));
        }
        if let Some((path, body)) = acked.get(round * 7 % acked.len().max(1)) {
            let pulled = door.get(path).at(node(2)).send().await;
            assert!(matches!(pulled.status, 200 | 503), "{}: {:?}", pulled.status, pulled.body);
            unavailable += usize::from(pulled.status == 503);
            assert!(pulled.status == 503 || pulled.body == body.as_bytes(), "another body at {path}");
        }
    }
    (acked, unavailable)
}

async fn serves_all(cluster: &TestCluster, door: &Door, at: usize, acked: &[(String, String)]) {
    for (path, body) in acked {
        cluster
            .eventually(path, async || {
                let reply = door.get(path).at(at).send().await;
                assert!(matches!(reply.status, 200 | 503), "{} {path}", reply.status);
                reply.status == 200 && reply.body == body.as_bytes()
            })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_becomes_three_becomes_five_becomes_three_while_clients_push_and_pull() {
    let cluster = TestCluster::start_some(5, 1, |_| {}).await;
    let door = Arc::new(Door::new(cluster.api_addresses()));
    let load = Load::begin(&door, 1);
    tokio::join!(cluster.start_node(1), cluster.start_node(2));
    voters_become(&cluster, &door, 0, &[1, 2, 3]).await;
    load.spread(3);
    tokio::join!(cluster.start_node(3), cluster.start_node(4));
    voters_become(&cluster, &door, 0, &[1, 2, 3, 4, 5]).await;
    load.spread(5);
    let (four, five) = (cluster.id(3).await, cluster.id(4).await);
    let left: Vec<u64> = (1..=5).filter(|id| ![four, five].contains(id)).collect();
    operate(&cluster, &door, (1, "/api/v1/cluster/voters"), json!({ "remove": [four, five] })).await;
    voters_become(&cluster, &door, 0, &left).await;
    load.spread(3);
    for node in [four, five] {
        let path = format!("/api/v1/cluster/nodes/{node}/decommission");
        operate(&cluster, &door, (2, &path), json!({})).await;
    }
    let left: BTreeSet<u64> = left.into_iter().collect();
    cluster.eventually("two nodes are gone", async || all(&status(&door, 0).await) == left).await;
    cluster.stop(3).await;
    cluster.stop(4).await;
    let (acked, unavailable) = load.end().await;
    assert!(acked.len() > 20, "{} acknowledged", acked.len());
    eprintln!("{} acknowledged, {unavailable} refused with 503", acked.len());
    for node in 0..3 {
        serves_all(&cluster, &door, node, &acked).await;
    }
}

async fn token(cluster: &TestCluster, door: &Door, body: Value) -> JoinToken {
    let made = operate(cluster, door, (0, "/api/v1/cluster/tokens"), body).await;
    made["token"].as_str().unwrap().parse().unwrap()
}

async fn refusal(config: &rafthold::config::Config, token: &JoinToken, seed: &str) -> String {
    let refused = node::join(config, &Seams::machine(), token, &[seed.to_owned()]).await;
    refused.unwrap_err().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_joins_by_a_token_which_is_good_for_nobody_else() {
    let mut cluster = TestCluster::start_some(3, 1, |_| {}).await;
    for at in [1, 2] {
        let config = cluster.config_mut(at);
        (config.cluster.seeds, config.cluster.secret_file) = (Vec::new(), None);
    }
    let door = Door::new(cluster.api_addresses());
    let seed = cluster.config(0).rpc.listen.clone();
    let good = token(&cluster, &door, json!({ "role": "learner" })).await;
    let joined = node::join(cluster.config(1), &Seams::machine(), &good, std::slice::from_ref(&seed)).await.unwrap();
    assert_eq!(joined.node.0, 2);
    cluster.start_node(1).await;
    assert!(!cluster.data_dir(1).join("identity/ca.key").exists(), "a token gives no key to sign with");
    // What is pushed at one is there at the other.
    let digest = door.push_blob("it/token", b"bytes").await;
    for node in [0, 1] {
        door.get(format!("/v2/it/token/blobs/{digest}")).at(node).send().await.expect_status(200).expect_body("bytes");
    }
    assert!(refusal(cluster.config(2), &good, &seed).await.contains("used by another node"));
    // One that is over, one that was taken back, and a node that is a member already.
    let short = token(&cluster, &door, json!({ "ttl_seconds": 1 })).await;
    cluster
        .eventually("it expires", async || {
            // Time passes for the cluster when something is written.
            door.post("/v2/it/token/blobs/uploads/").at(0).send().await.expect_status(202);
            let reply = door.get("/api/v1/cluster/tokens").at(0).send().await.expect_status(200).json();
            reply["tokens"].as_array().unwrap().iter().any(|token| token["expired"] == true)
        })
        .await;
    assert!(refusal(cluster.config(2), &short, &seed).await.contains("expired"));
    let made = operate(&cluster, &door, (0, "/api/v1/cluster/tokens"), json!({})).await;
    let path = format!("/api/v1/cluster/tokens/{}", made["id"].as_str().unwrap());
    door.delete(path).at(0).send().await.expect_status(200);
    let revoked: JoinToken = made["token"].as_str().unwrap().parse().unwrap();
    assert!(refusal(cluster.config(2), &revoked, &seed).await.contains("unknown"));
    // A learner stays one although its cluster has only one voter.
    assert_eq!(voters(&status(&door, 0).await), BTreeSet::from([1]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_one_cluster_is_refused_by_another() {
    let ours = TestCluster::start(1).await;
    let theirs = TestCluster::start(1).await;
    let door = Door::new(theirs.api_addresses());
    let token = token(&theirs, &door, json!({})).await;
    ours.stop(0).await;
    let seed = theirs.config(0).rpc.listen.clone();
    let refused = refusal(ours.config(0), &token, &seed).await;
    assert!(refused.contains("belongs to node 1 of cluster"), "{refused}");
    let refused = node::init(ours.config(0), &Seams::machine()).await;
    assert!(matches!(refused, Err(PrepareError::Rpc(_))), "{refused:?}");
    // Whose seeds form a cluster joins it and begins none beside it.
    let mut config = ours.config(0).clone();
    config.node.data_dir = ours.data_dir(0).join("fresh");
    config.cluster.seeds = vec![seed];
    let refused = node::init(&config, &Seams::machine()).await.unwrap_err();
    assert!(format!("{refused:?}").contains("SeedInCluster"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_node_is_made_by_hand() {
    let cluster = TestCluster::start_some(1, 0, |config| config.cluster.secret_file = None).await;
    let made = node::init(cluster.config(0), &Seams::machine()).await.unwrap();
    assert_eq!((made.node.0, made.epoch), (1, 1));
    cluster.start_node(0).await;
    let door = Door::new(cluster.api_addresses());
    assert_eq!(status(&door, 0).await["cluster_id"], made.cluster.to_string());
    door.push_blob("it/init", b"bytes").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_node_returns_under_a_new_id_and_its_old_self_is_removed() {
    let cluster = TestCluster::start(3).await;
    let door = Door::new(cluster.api_addresses());
    let digest = door.push_blob("it/wiped", b"bytes").await;
    let other = if cluster.leader().await == 2 { 1 } else { 2 };
    let old = cluster.id(other).await;
    cluster.kill(other).await;
    std::fs::remove_dir_all(cluster.data_dir(other)).unwrap();
    cluster.start_node(other).await;
    assert_eq!(cluster.id(other).await, 4);
    let alive = format!("/api/v1/cluster/nodes/{old}/remove");
    operate(&cluster, &door, (0, &alive), json!({})).await;
    let left: Vec<u64> = (1..=4).filter(|id| *id != old).collect();
    voters_become(&cluster, &door, 0, &left).await;
    cluster.eventually("it is gone", async || !all(&status(&door, 0).await).contains(&old)).await;
    let path = format!("/v2/it/wiped/blobs/{digest}");
    door.get(path).at(other).send().await.expect_status(200).expect_body("bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_node_is_replaced_by_a_new_one_and_leadership_goes_where_it_is_told() {
    let cluster = TestCluster::start_some(4, 3, |_| {}).await;
    let door = Door::new(cluster.api_addresses());
    let tag = door.put_manifest("it/replace", "t", &index("kept")).await;
    let leader = cluster.leader().await;
    let (dead, asked) = ((leader + 1) % 3, (leader + 2) % 3);
    let (old, heir) = (cluster.id(dead).await, cluster.id(asked).await);
    let answer = operate(&cluster, &door, (leader, "/api/v1/cluster/leader"), json!({ "to": heir })).await;
    assert_eq!(answer["leader"], heir);
    cluster.start_node(3).await;
    let new = cluster.id(3).await;
    let lives = format!("/api/v1/cluster/nodes/{old}/remove");
    let refused = door.post(&lives).at(asked).body("{}").send().await;
    assert!(matches!(refused.status, 409 | 503), "{:?}", refused.body);
    cluster.kill(dead).await;
    let path = format!("/api/v1/cluster/nodes/{old}/replace");
    operate(&cluster, &door, (asked, &path), json!({ "by": new })).await;
    let left: Vec<u64> = (1..=4).filter(|id| *id != old).collect();
    voters_become(&cluster, &door, asked, &left).await;
    cluster.eventually("it is gone", async || !all(&status(&door, asked).await).contains(&old)).await;
    door.get(format!("/v2/it/replace/manifests/{tag}")).at(3).send().await.expect_status(200);
}

/// A file of the blob store.
fn blob_file(data_dir: &Path, digest: &rafthold::oci::Digest) -> std::path::PathBuf {
    let hex = digest.hex();
    data_dir.join("blobs/sha256").join(&hex[..2]).join(hex)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_survivor_of_three_goes_on_and_the_others_are_shut_out_until_they_join_anew() {
    let cluster = TestCluster::start(3).await;
    let door = Door::new(cluster.api_addresses());
    let mut acked = Vec::new();
    let blob = door.push_blob("it/recover", b"a layer").await;
    for round in 0..30 {
        let value = index(&format!("round {round}"));
        door.put_manifest("it/recover", &format!("t{round}"), &value).await;
        acked.push((format!("/v2/it/recover/manifests/t{round}"), value.to_string()));
    }
    acked.push((format!("/v2/it/recover/blobs/{blob}"), "a layer".to_owned()));
    let everywhere = async || (0..3).all(|node| blob_file(cluster.data_dir(node), &blob).exists());
    cluster.eventually("three copies", everywhere).await;
    for node in 0..3 {
        serves_all(&cluster, &door, node, &acked).await;
    }
    for node in 0..3 {
        cluster.kill(node).await;
    }
    let seams = Seams::machine();
    let (before, remains) = node::inspect(cluster.config(0), &seams).await.unwrap();
    assert_eq!((before.epoch, remains.nodes.len(), remains.repositories), (1, 3, 1));
    let after = node::recover(cluster.config(0), &seams).await.unwrap();
    assert_eq!((after.epoch, after.node, after.cluster), (2, before.node, before.cluster));
    cluster.start_node(0).await;
    serves_all(&cluster, &door, 0, &acked).await;
    assert_eq!(all(&status(&door, 0).await), BTreeSet::from([after.node.0]));
    let put = door.put("/v2/it/recover/manifests/after").at(0).body(index("after").to_string()).send().await;
    put.expect_status(201);
    // An old node finds out that the cluster went on without it, and ends.
    let old = Node::start(cluster.config(1).clone(), Seams::machine());
    if let Ok(node) = timeout(SOON, old).await.unwrap() {
        let ended = timeout(SOON, node.ended()).await.unwrap().to_string();
        assert!(ended.contains("recovered under epoch 2"), "{ended}");
    }
    // It joins anew, and its blobs are still there.
    node::forget(cluster.config(1)).unwrap();
    assert!(blob_file(cluster.data_dir(1), &blob).exists());
    cluster.start_node(1).await;
    assert_eq!(cluster.id(1).await, 4);
    serves_all(&cluster, &door, 1, &acked).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decommissioned_node_takes_nothing_with_it() {
    let cluster = TestCluster::start_with(4, |config| config.storage.copies = 2).await;
    let door = Door::new(cluster.api_addresses());
    let mut digests = Vec::new();
    for n in 0..40u32 {
        digests.push(door.push_blob("it/drain", &n.to_le_bytes()).await);
    }
    let leaver = 3;
    let id = cluster.id(leaver).await;
    let path = format!("/api/v1/cluster/nodes/{id}/decommission");
    operate(&cluster, &door, (leaver, &path), json!({})).await;
    let gone = async || !all(&status(&door, 0).await).contains(&id);
    cluster.eventually("it is gone", gone).await;
    let ended = cluster.ended(leaver).await;
    assert!(ended.contains("removed from the cluster"), "{ended}");
    for digest in &digests {
        let copies = (0..3).filter(|node| blob_file(cluster.data_dir(*node), digest).exists()).count();
        assert!(copies >= 2, "{copies} copies of {digest}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_node_that_alone_has_some_content_is_not_removed_unless_forced() {
    let cluster = TestCluster::start_with(4, |config| config.storage.copies = 2).await;
    let door = Door::new(cluster.api_addresses());
    let digest = door.push_blob("it/alone", b"bytes").await;
    let holds = |node: usize| blob_file(cluster.data_dir(node), &digest).exists();
    let dead = (0..4).find(|node| holds(*node)).unwrap();
    let (asked, id) = ((dead + 1) % 4, cluster.id(dead).await);
    cluster.kill(dead).await;
    for node in (0..4).filter(|node| *node != dead && holds(*node)) {
        std::fs::remove_file(blob_file(cluster.data_dir(node), &digest)).unwrap();
    }
    for verb in ["remove", "decommission"] {
        let path = format!("/api/v1/cluster/nodes/{id}/{verb}");
        cluster
            .eventually("it is refused for what would be lost", async || {
                // Until it is taken for dead, a removal is refused because it lives, and a decommission would begin.
                let reply = door.get("/api/v1/cluster/status").at(asked).send().await.json();
                let nodes = reply["nodes"].as_array().cloned().unwrap_or_default();
                if !nodes.iter().any(|node| node["id"] == id && node["gossip"] == "dead") {
                    return false;
                }
                let reply = door.post(&path).at(asked).body("{}").send().await;
                let error = reply.json()["error"].clone();
                reply.status == 409 && error["code"] == "would_lose" && error["digests"] == json!([digest.to_string()])
            })
            .await;
    }
    let path = format!("/api/v1/cluster/nodes/{id}/remove");
    operate(&cluster, &door, (asked, &path), json!({ "force": true })).await;
    cluster.eventually("it is gone", async || !all(&status(&door, asked).await).contains(&id)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_demoted_node_votes_again_once_that_is_left_to_the_cluster() {
    let cluster = TestCluster::start(3).await;
    let door = Door::new(cluster.api_addresses());
    let path = "/api/v1/cluster/voters";
    operate(&cluster, &door, (0, path), json!({ "remove": [3], "force": true })).await;
    voters_become(&cluster, &door, 0, &[1, 2]).await;
    operate(&cluster, &door, (0, path), json!({ "auto": [3] })).await;
    voters_become(&cluster, &door, 0, &[1, 2, 3]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_away_counts_out_and_one_that_is_back_in_and_an_operators_word_stands() {
    let cluster = TestCluster::start_with(3, |config| config.cluster.out_after = Duration::from_secs(1)).await;
    let door = Door::new(cluster.api_addresses());
    let leader = cluster.leader().await;
    let (away, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let (id, other_id) = (cluster.id(away).await, cluster.id(other).await);
    let placement = async |node: u64| {
        let status = status(&door, leader).await;
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        let found = nodes.into_iter().find(|at| at["id"] == node).unwrap_or_default();
        found["placement"].as_str().unwrap_or_default().to_owned()
    };
    cluster.kill(away).await;
    cluster.eventually("it counts out", async || placement(id).await == "out").await;
    // Bytes need not wait for it.
    door.push_blob_at("it/out", b"bytes", leader).await;
    cluster.start_node(away).await;
    cluster.eventually("it counts in", async || placement(id).await == "in").await;
    let path = format!("/api/v1/cluster/nodes/{other_id}/out");
    operate(&cluster, &door, (leader, &path), json!({})).await;
    assert_eq!(placement(other_id).await, "out");
    cluster.kill(away).await;
    cluster.eventually("the other counts out", async || placement(id).await == "out").await;
    assert_eq!(placement(other_id).await, "out", "it lives, and was told to stay out");
    let path = format!("/api/v1/cluster/nodes/{other_id}/in");
    operate(&cluster, &door, (leader, &path), json!({})).await;
    assert_eq!(placement(other_id).await, "in");
}
