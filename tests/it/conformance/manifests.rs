//! Manifests and indexes: every kind that is accepted, kept byte for byte, under tags and digests.

use rafthold::oci::{Algorithm, Digest};
use serde_json::json;

use crate::support::http::{Door, sha256};

use super::content::{INDEX, MANIFEST, descriptor, image, index, push_image};

super::cases![
    end_3_pull_by_tag_and_digest,
    end_3_unknown_is_404,
    end_7_put_by_digest,
    end_7_location_is_the_manifest,
    end_7_several_tags,
    end_7_sha512_by_digest,
    end_7_large_manifest,
    end_7_too_large_manifest_is_413,
    end_7_unusual_but_allowed,
    end_7_nested_index,
    end_7_index_of_layers,
    end_7_foreign_layers_are_not_demanded,
    end_7_docker_types,
    end_7_schema_1_is_refused,
    end_7_missing_references_are_named,
    end_7_wrong_digest_is_400,
    end_7_conditional_tags,
    end_7_tags_move,
];

pub(super) const SPARSE_CASES: &[super::Case] = &[
    ("end_7_sparse_image", |door, repository| Box::pin(end_7_sparse_image(door, repository))),
    ("end_7_sparse_index", |door, repository| Box::pin(end_7_sparse_index(door, repository))),
];

async fn end_3_pull_by_tag_and_digest(door: &Door, repository: &str) {
    let (manifest, digest) = push_image(door, repository, "v1").await;
    for reference in ["v1".to_owned(), digest.to_string()] {
        let path = format!("/v2/{repository}/manifests/{reference}");
        let reply = door.get(&path).header("accept", MANIFEST).send().await.expect_status(200);
        let reply = reply.expect_body(manifest.to_string()).expect_header("content-type", MANIFEST);
        reply.expect_header("docker-content-digest", &digest.to_string());
        let reply = door.head(&path).send().await.expect_status(200).expect_header("content-type", MANIFEST);
        let reply = reply.expect_header("content-length", &manifest.to_string().len().to_string());
        let etag = reply.header("etag").unwrap().to_owned();
        door.get(&path).header("if-none-match", &etag).send().await.expect_status(304);
    }
}

async fn end_3_unknown_is_404(door: &Door, repository: &str) {
    push_image(door, repository, "known").await;
    for reference in ["unknown".to_owned(), sha256(b"unknown").to_string()] {
        let path = format!("/v2/{repository}/manifests/{reference}");
        door.get(&path).send().await.expect_status(404).expect_code("MANIFEST_UNKNOWN");
        door.head(&path).send().await.expect_status(404);
    }
    door.get("/v2/conformance/never/manifests/x").send().await.expect_status(404);
    let bad = door.get(format!("/v2/{repository}/manifests/sha256:baddigeststring")).send().await;
    assert!(matches!(bad.status, 400 | 404), "{}", bad.status);
}

async fn end_7_put_by_digest(door: &Door, repository: &str) {
    let (mut manifest, _) = push_image(door, repository, "base").await;
    manifest["annotations"] = json!({"by": "digest"});
    let digest = sha256(manifest.to_string().as_bytes());
    door.put_manifest(repository, &digest.to_string(), &manifest).await;
    let path = format!("/v2/{repository}/manifests/{digest}");
    door.get(path).send().await.expect_status(200).expect_body(manifest.to_string());
}

async fn end_7_location_is_the_manifest(door: &Door, repository: &str) {
    let (manifest, digest) = push_image(door, repository, "v1").await;
    let path = format!("/v2/{repository}/manifests/v2");
    let reply = door.put(path).header("content-type", MANIFEST).body(manifest.to_string()).send().await;
    let reply = reply.expect_status(201).expect_header("docker-content-digest", &digest.to_string());
    let pulled = door.get(reply.location()).send().await.expect_status(200).expect_body(manifest.to_string());
    pulled.expect_header("content-type", MANIFEST);
}

async fn end_7_several_tags(door: &Door, repository: &str) {
    let (manifest, digest) = push_image(door, repository, "v1").await;
    let path = format!("/v2/{repository}/manifests/{digest}?tag=one&tag=two");
    let reply = door.put(path).header("content-type", MANIFEST).body(manifest.to_string()).send().await;
    let reply = reply.expect_status(201);
    let named: Vec<String> = reply
        .headers
        .get_all("oci-tag")
        .iter()
        .flat_map(|value| value.to_str().unwrap().split(',').map(|tag| tag.trim().to_owned()).collect::<Vec<_>>())
        .collect();
    assert_eq!(named, ["one", "two"]);
    for tag in ["one", "two"] {
        let reply = door.head(format!("/v2/{repository}/manifests/{tag}")).send().await.expect_status(200);
        reply.expect_header("docker-content-digest", &digest.to_string());
    }
}

async fn end_7_sha512_by_digest(door: &Door, repository: &str) {
    let (mut manifest, _) = push_image(door, repository, "v1").await;
    manifest["annotations"] = json!({"hash": "sha512"});
    let body = manifest.to_string();
    let digest = Digest::of(Algorithm::Sha512, body.as_bytes());
    let path = format!("/v2/{repository}/manifests/{digest}");
    let reply = door.put(&path).header("content-type", MANIFEST).body(&body).send().await.expect_status(201);
    reply.expect_header("docker-content-digest", &digest.to_string());
    let reply = door.get(&path).send().await.expect_status(200).expect_body(&body);
    reply.expect_header("docker-content-digest", &digest.to_string());
}

async fn end_7_large_manifest(door: &Door, repository: &str) {
    let (mut manifest, _) = push_image(door, repository, "v1").await;
    manifest["annotations"] = json!({"large": "x".repeat(3_900_000)});
    let digest = door.put_manifest(repository, "large", &manifest).await;
    let path = format!("/v2/{repository}/manifests/{digest}");
    door.get(path).send().await.expect_status(200).expect_body(manifest.to_string());
}

async fn end_7_too_large_manifest_is_413(door: &Door, repository: &str) {
    let path = format!("/v2/{repository}/manifests/big");
    let reply = door.put(path).header("content-type", MANIFEST).body(vec![b' '; (4 << 20) + 1]).try_send().await;
    // The answer may come before the body was read to its end.
    if let Ok(reply) = reply {
        reply.expect_status(413);
    }
}

async fn end_7_unusual_but_allowed(door: &Door, repository: &str) {
    let (base, _) = push_image(door, repository, "base").await;
    let mut custom = base.clone();
    custom["x-unknown-field"] = json!({"kept": ["as", "it", "is"]});
    let mut with_data = base.clone();
    with_data["config"]["data"] = json!("eyJ0YWciOiJiYXNlIn0=");
    let mut no_layers = base.clone();
    no_layers["layers"] = json!([]);
    let mut artifact = no_layers.clone();
    artifact["artifactType"] = json!("application/vnd.example.artifact");
    for (tag, manifest) in [
        ("custom", custom),
        ("data", with_data),
        ("no-layers", no_layers),
        ("artifact", artifact),
        ("empty-index", index(&[])),
    ] {
        door.put_manifest(repository, tag, &manifest).await;
        let path = format!("/v2/{repository}/manifests/{tag}");
        door.get(path).send().await.expect_status(200).expect_body(manifest.to_string());
    }
}

async fn end_7_nested_index(door: &Door, repository: &str) {
    let (manifest, digest) = push_image(door, repository, "v1").await;
    let inner = index(&[descriptor(MANIFEST, &digest, manifest.to_string().len())]);
    let inner_digest = door.put_manifest(repository, "inner", &inner).await;
    let outer = index(&[descriptor(INDEX, &inner_digest, inner.to_string().len())]);
    door.put_manifest(repository, "outer", &outer).await;
    door.get(format!("/v2/{repository}/manifests/outer"))
        .send()
        .await
        .expect_status(200)
        .expect_body(outer.to_string());
}

async fn end_7_index_of_layers(door: &Door, repository: &str) {
    // buildkit's cache export: an index whose entries are layers and a config.
    let layer = door.push_blob(repository, b"cache layer").await;
    let config = door.push_blob(repository, b"{}").await;
    let cache = index(&[
        descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &layer, 11),
        descriptor("application/vnd.buildkit.cacheconfig.v0", &config, 2),
    ]);
    door.put_manifest(repository, "cache", &cache).await;
}

async fn end_7_foreign_layers_are_not_demanded(door: &Door, repository: &str) {
    let (mut manifest, _) = push_image(door, repository, "v1").await;
    let absent = sha256(b"held elsewhere");
    for kind in [
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    ] {
        let mut foreign = descriptor(kind, &absent, 14);
        foreign["urls"] = json!(["https://example.com/layer"]);
        manifest["layers"].as_array_mut().unwrap().push(foreign);
    }
    door.put_manifest(repository, "foreign", &manifest).await;
}

async fn end_7_docker_types(door: &Door, repository: &str) {
    let (mut manifest, _) = push_image(door, repository, "v1").await;
    let kind = "application/vnd.docker.distribution.manifest.v2+json";
    manifest["mediaType"] = json!(kind);
    manifest["config"]["mediaType"] = json!("application/vnd.docker.container.image.v1+json");
    let digest = door.put_manifest(repository, "docker", &manifest).await;
    let list = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.list.v2+json",
        "manifests": [descriptor(kind, &digest, manifest.to_string().len())],
    });
    door.put_manifest(repository, "list", &list).await;
    let reply = door.get(format!("/v2/{repository}/manifests/docker")).send().await.expect_status(200);
    reply.expect_header("content-type", kind);
}

async fn end_7_schema_1_is_refused(door: &Door, repository: &str) {
    let body = json!({"schemaVersion": 1, "name": repository, "tag": "v1", "fsLayers": [], "history": []}).to_string();
    for kind in [
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        "application/vnd.docker.distribution.manifest.v1+json",
    ] {
        let path = format!("/v2/{repository}/manifests/v1");
        door.put(path).header("content-type", kind).body(&body).send().await.expect_status(400);
    }
}

async fn end_7_missing_references_are_named(door: &Door, repository: &str) {
    let manifest = image(b"{}", &[b"absent layer"]);
    let path = format!("/v2/{repository}/manifests/v1");
    let reply = door.put(path).header("content-type", MANIFEST).body(manifest.to_string()).send().await;
    let reply = reply.expect_status(400).expect_code("MANIFEST_BLOB_UNKNOWN");
    let text = String::from_utf8_lossy(&reply.body).into_owned();
    assert!(text.contains(&sha256(b"absent layer").to_string()) && text.contains(&sha256(b"{}").to_string()), "{text}");
    door.head(format!("/v2/{repository}/manifests/v1")).send().await.expect_status(404);
}

async fn end_7_wrong_digest_is_400(door: &Door, repository: &str) {
    let (manifest, _) = push_image(door, repository, "v1").await;
    for reference in [sha256(b"another body").to_string(), "sha256:baddigeststring".to_owned()] {
        let path = format!("/v2/{repository}/manifests/{reference}");
        let reply = door.put(path).header("content-type", MANIFEST).body(manifest.to_string()).send().await;
        reply.expect_status(400).expect_code("DIGEST_INVALID");
    }
}

async fn end_7_conditional_tags(door: &Door, repository: &str) {
    let (first, old) = push_image(door, repository, "v1").await;
    let mut second = first.clone();
    second["annotations"] = json!({"second": "yes"});
    let path = format!("/v2/{repository}/manifests/v1");
    let put = |body: String, name: &'static str, value: String| {
        door.put(&path).header("content-type", MANIFEST).header(name, &value).body(body).send()
    };
    put(second.to_string(), "if-none-match", "*".into()).await.expect_status(412);
    put(second.to_string(), "if-match", format!("\"{}\"", sha256(b"other"))).await.expect_status(412);
    put(second.to_string(), "if-match", format!("\"{old}\"")).await.expect_status(201);
    put(first.to_string(), "if-match", format!("\"{old}\"")).await.expect_status(412);
    let reply = door.head(&path).send().await.expect_status(200);
    reply.expect_header("docker-content-digest", &sha256(second.to_string().as_bytes()).to_string());
}

async fn end_7_tags_move(door: &Door, repository: &str) {
    let (mut manifest, _) = push_image(door, repository, "moving").await;
    for round in 0..6 {
        manifest["annotations"] = json!({"round": round.to_string()});
        let digest = door.put_manifest(repository, "moving", &manifest).await;
        let reply = door.head(format!("/v2/{repository}/manifests/moving")).send().await.expect_status(200);
        reply.expect_header("docker-content-digest", &digest.to_string());
    }
}

async fn end_7_sparse_image(door: &Door, repository: &str) {
    let manifest = image(b"{\"never\":\"pushed\"}", &[b"never pushed either"]);
    door.put_manifest(repository, "sparse", &manifest).await;
    door.get(format!("/v2/{repository}/manifests/sparse"))
        .send()
        .await
        .expect_status(200)
        .expect_body(manifest.to_string());
}

async fn end_7_sparse_index(door: &Door, repository: &str) {
    let sparse = index(&[descriptor(MANIFEST, &sha256(b"not here"), 8)]);
    door.put_manifest(repository, "sparse", &sparse).await;
    door.get(format!("/v2/{repository}/manifests/sparse"))
        .send()
        .await
        .expect_status(200)
        .expect_body(sparse.to_string());
}
