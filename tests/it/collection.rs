//! Collection on a cluster of three, with short periods: what goes, what stays, and that nothing is half gone.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rafthold::config::{Config, Untagged};
use rafthold::oci::Digest;

use crate::support::TestCluster;
use crate::support::http::{Door, sha256, with_digest};

const LEASE: Duration = Duration::from_secs(4);

fn quick(config: &mut Config) {
    config.gc.every = Duration::from_secs(1);
    config.gc.lease = LEASE;
    config.gc.grace = Duration::from_secs(1);
    config.storage.pin = Duration::from_secs(1);
    config.gc.untagged = Untagged::After(LEASE);
}

fn image(blobs: &[(&Digest, usize)]) -> serde_json::Value {
    let descriptor = |kind: &str, (digest, size): &(&Digest, usize)| serde_json::json!({"mediaType": kind, "digest": digest.to_string(), "size": size});
    let layers = blobs.iter().map(|blob| descriptor("application/vnd.oci.image.layer.v1.tar", blob));
    serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &blobs[0]),
        "layers": layers.collect::<Vec<_>>(),
    })
}

fn file(dir: &Path, digest: &Digest) -> PathBuf {
    let hex = digest.hex();
    dir.join("blobs/sha256").join(&hex[..2]).join(&hex)
}

struct Lab {
    cluster: TestCluster,
    door: Door,
}

impl Lab {
    async fn start(change: impl Fn(&mut Config)) -> Self {
        let cluster = TestCluster::start_with(3, |config| {
            quick(config);
            change(config);
        })
        .await;
        let door = Door::new(cluster.api_addresses());
        let lab = Self { cluster, door };
        // Nothing is collected before every node has said that it knows how.
        lab.eventually("the feature level", async || lab.run(0).await["failed"].is_null()).await;
        lab
    }

    async fn eventually(&self, what: &str, condition: impl AsyncFnMut() -> bool) {
        self.cluster.eventually(what, condition).await;
    }

    /// Has a node make a pass and returns what it did.
    async fn run(&self, node: usize) -> serde_json::Value {
        self.door.post("/api/v1/gc/run").at(node).send().await.expect_status(200).json()
    }

    async fn status_of(&self, repository: &str, digest: &Digest) -> u16 {
        self.door.head(format!("/v2/{repository}/blobs/{digest}")).send().await.status
    }

    /// How many of the disks hold the file.
    fn copies(&self, digest: &Digest) -> usize {
        (0..3).filter(|node| file(self.cluster.data_dir(*node), digest).exists()).count()
    }

    fn is_linked(&self, repository: &str, digest: &Digest) -> impl Future<Output = bool> {
        let (repository, digest) = (repository.parse().unwrap(), digest.clone());
        async move { self.cluster.state(0).await.blob(&repository, &digest).is_some() }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_that_no_manifest_ever_names_goes_from_the_state_and_from_every_disk() {
    let lab = Lab::start(|_| {}).await;
    let digest = lab.door.push_blob("it/gone", b"never named").await;
    lab.eventually("three copies", async || lab.copies(&digest) == 3).await;
    lab.eventually("no link", async || !lab.is_linked("it/gone", &digest).await).await;
    lab.eventually("no copy", async || lab.copies(&digest) == 0).await;
    assert_eq!(lab.status_of("it/gone", &digest).await, 404);
    // Pushed again, it is there again.
    lab.door.push_blob("it/gone", b"never named").await;
    assert_eq!(lab.status_of("it/gone", &digest).await, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_clients_push_again_mount_or_ask_for_stays_while_collection_runs() {
    let lab = Lab::start(|_| {}).await;
    let bodies = ["pushed again and again", "mounted again and again", "asked for again and again"];
    let digests = bodies.map(|body| sha256(body.as_bytes()));
    for (repository, body) in [("it/kept", bodies[0]), ("it/from", bodies[1]), ("it/kept", bodies[2])] {
        lab.door.push_blob(repository, body.as_bytes()).await;
    }
    let began = tokio::time::Instant::now();
    while began.elapsed() < LEASE * 3 {
        lab.door.push_blob("it/kept", bodies[0].as_bytes()).await;
        let mount = format!("/v2/it/kept/blobs/uploads/?mount={}&from=it/from", digests[1]);
        lab.door.post(mount).send().await.expect_status(201);
        // The answer itself keeps it: each node asks for the lease to be renewed when less than half is left.
        for (repository, digest) in [("it/kept", &digests[2]), ("it/from", &digests[1])] {
            let reply = lab.door.head(format!("/v2/{repository}/blobs/{digest}")).send().await.expect_status(200);
            assert_eq!(reply.header("warning"), None);
        }
        lab.run(1).await;
    }
    let layers: Vec<_> = digests.iter().zip(bodies).map(|(digest, body)| (digest, body.len())).collect();
    lab.door.put_manifest("it/kept", "t", &image(&layers)).await;
    for (digest, body) in digests.iter().zip(bodies) {
        lab.door.get(format!("/v2/it/kept/blobs/{digest}")).send().await.expect_status(200).expect_body(body);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_that_takes_longer_than_a_lease_keeps_the_layers_it_has_pushed_before() {
    let lab = Lab::start(|_| {}).await;
    let door = &lab.door;
    let location = door.start_upload("it/long").await;
    let small = door.push_blob("it/long", b"small").await;
    let elsewhere = door.push_blob("it/short", b"elsewhere").await;
    let began = tokio::time::Instant::now();
    while began.elapsed() < LEASE * 2 {
        lab.run(1).await;
    }
    lab.eventually("no link where nobody uploads", async || !lab.is_linked("it/short", &elsewhere).await).await;
    let reply = door.get(format!("/api/v1/gc/plan?explain={small}")).send().await.expect_status(200);
    assert_eq!(reply.json()["explained"][0]["kept_by"], "upload");
    let large = sha256(b"large");
    door.put(with_digest(&location, &large)).body("large").send().await.expect_status(201);
    lab.run(2).await;
    door.put_manifest("it/long", "t", &image(&[(&small, 5), (&large, 5)])).await;
    for (digest, body) in [(&small, "small"), (&large, "large")] {
        door.get(format!("/v2/it/long/blobs/{digest}")).send().await.expect_status(200).expect_body(body);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_whose_blob_was_collected_is_refused_whole() {
    let lab = Lab::start(|_| {}).await;
    let (kept, gone) = (lab.door.push_blob("it/half", b"kept").await, lab.door.push_blob("it/half", b"gone").await);
    lab.door.put_manifest("it/half", "before", &image(&[(&kept, 4)])).await;
    lab.eventually("no link", async || !lab.is_linked("it/half", &gone).await).await;
    let body = image(&[(&kept, 4), (&gone, 4)]).to_string();
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let put = lab.door.put("/v2/it/half/manifests/after").header("content-type", kind).body(&body).send().await;
    assert!(matches!(put.status, 400 | 404), "{}", put.status);
    assert_eq!(put.json()["errors"][0]["code"], "MANIFEST_BLOB_UNKNOWN");
    lab.door.get("/v2/it/half/manifests/after").send().await.expect_status(404);
    lab.door.get(format!("/v2/it/half/manifests/{}", sha256(body.as_bytes()))).send().await.expect_status(404);
    lab.door.get("/v2/it/half/manifests/before").send().await.expect_status(200);
    // The body that was spread for nothing goes, too.
    lab.eventually("no body", async || lab.copies(&sha256(body.as_bytes())) == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleting_an_image_frees_what_only_it_had_and_untagged_ones_follow_by_policy() {
    let lab = Lab::start(|_| {}).await;
    let door = &lab.door;
    let (shared, own) = (door.push_blob("it/del", b"shared").await, door.push_blob("it/del", b"own").await);
    let other = door.push_blob("it/del", b"other").await;
    let first = door.put_manifest("it/del", "one", &image(&[(&shared, 6), (&own, 3)])).await;
    door.put_manifest("it/del", "two", &image(&[(&shared, 6)])).await;
    let moved = door.put_manifest("it/del", "three", &image(&[(&shared, 6), (&other, 5)])).await;
    door.delete(format!("/v2/it/del/manifests/{first}")).send().await.expect_status(202);
    door.put_manifest("it/del", "three", &image(&[(&shared, 6)])).await;
    lab.eventually("what only the deleted image had", async || lab.copies(&first) + lab.copies(&own) == 0).await;
    lab.eventually("what lost its tag", async || lab.copies(&moved) + lab.copies(&other) == 0).await;
    for tag in ["two", "three"] {
        door.get(format!("/v2/it/del/manifests/{tag}")).send().await.expect_status(200);
    }
    door.get(format!("/v2/it/del/blobs/{shared}")).send().await.expect_status(200).expect_body("shared");
    let status = door.get("/api/v1/cluster/status").send().await.json();
    assert!(status["gc"]["reaped_files"].as_u64().unwrap() >= 12, "{}", status["gc"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_that_are_cancelled_or_closed_leave_no_file() {
    let lab = Lab::start(|_| {}).await;
    let door = &lab.door;
    let mut locations = Vec::new();
    for _ in 0..2 {
        let location = door.start_upload("it/uploads").await;
        locations.push(door.patch(location).body("some bytes").send().await.expect_status(202).location());
    }
    let files = || {
        let count = |node| std::fs::read_dir(lab.cluster.data_dir(node).join("extents")).unwrap().count();
        (0..3).map(count).sum::<usize>()
    };
    let both = files();
    assert!(both >= 8, "two sessions, two holders each, bytes and a record");
    door.delete(&locations[0]).send().await.expect_status(204);
    lab.eventually("the cancelled session's files to go", async || files() <= both - 4).await;
    assert!(files() >= 4, "the other session's files");
    let digest = sha256(b"some bytes");
    door.put(with_digest(&locations[1], &digest)).send().await.expect_status(201);
    lab.eventually("no extent", async || files() == 0).await;
    lab.eventually("no copy", async || lab.copies(&digest) == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_says_what_would_go_and_why_the_rest_stays() {
    let lab = Lab::start(|config| {
        config.gc.every = Duration::ZERO;
        config.gc.lease = Duration::from_secs(2);
        config.gc.untagged = Untagged::Keep;
    })
    .await;
    let door = &lab.door;
    let (kept, gone) = (door.push_blob("it/plan", b"kept").await, door.push_blob("it/plan", b"to go").await);
    let manifest = door.put_manifest("it/plan", "v1", &image(&[(&kept, 4)])).await;
    let explain = async |what: &str| {
        let reply = door.get(format!("/api/v1/gc/plan?explain={what}")).send().await.expect_status(200);
        reply.json()["explained"].clone()
    };
    let why = explain(&kept.to_string()).await;
    assert_eq!((&why[0]["kept_by"], &why[0]["manifest"]), (&"manifest".into(), &manifest.to_string().into()));
    let why = explain(&format!("it/plan@{manifest}")).await;
    assert_eq!((&why[0]["kept_by"], &why[0]["tag"]), (&"tag".into(), &"v1".into()));
    lab.eventually("the end of the lease", async || {
        let plan = door.get("/api/v1/gc/plan").send().await.expect_status(200).json();
        plan["blobs"] == 1 && plan["bytes"] == 5 && plan["links"][0]["digest"] == gone.to_string()
    })
    .await;
    assert_eq!(explain(&gone.to_string()).await[0]["goes"], true);
    let run = lab.run(2).await;
    assert_eq!((&run["blobs"], &run["manifests"], &run["bytes"]), (&1.into(), &0.into(), &5.into()), "{run}");
    assert_eq!(lab.run(0).await["blobs"], 0);
    assert_eq!(explain(&gone.to_string()).await.as_array().map(Vec::len), Some(0));
    door.get("/api/v1/gc/plan?explain=nonsense").send().await.expect_status(400);
}
