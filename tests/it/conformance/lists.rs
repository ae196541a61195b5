//! Tags, catalog and referrers: sorted, paged, filtered.

use serde_json::json;

use crate::support::http::{Door, sha256};

use super::content::{INDEX, MANIFEST, descriptor, index, push_image};

super::cases![
    end_8_tags_are_sorted_and_paged,
    end_8_bad_page_sizes,
    end_8_catalog,
    end_12_referrers_of_nothing,
    end_12_referrers,
    end_12_subject_before_its_target,
    end_12_filter,
    end_12_index_as_referrer_and_deletes,
];

async fn end_8_tags_are_sorted_and_paged(door: &Door, repository: &str) {
    let (manifest, _) = push_image(door, repository, "b").await;
    let tags = ["A", "Z", "_", "a", "a.1", "b", "z"];
    for tag in tags {
        door.put_manifest(repository, tag, &manifest).await;
    }
    let path = format!("/v2/{repository}/tags/list");
    let reply = door.get(&path).send().await.expect_status(200);
    assert_eq!(reply.json(), json!({"name": repository, "tags": tags}));
    let reply = door.get(format!("{path}?last=a")).send().await.expect_status(200);
    assert_eq!(reply.json()["tags"], json!(["a.1", "b", "z"]));
    let reply = door.get(format!("{path}?last=nothing-like-this")).send().await.expect_status(200);
    assert_eq!(reply.json()["tags"], json!(["z"]));
    let (mut next, mut seen) = (Some(format!("{path}?n=3")), Vec::new());
    while let Some(page) = next.take() {
        let reply = door.get(page).send().await.expect_status(200);
        let tags = reply.json()["tags"].as_array().unwrap().clone();
        assert!(tags.len() <= 3);
        seen.extend(tags.iter().map(|tag| tag.as_str().unwrap().to_owned()));
        next = reply.header("link").map(|link| {
            assert!(link.ends_with(">; rel=\"next\""), "{link}");
            link[1..link.find('>').unwrap()].to_owned()
        });
    }
    assert_eq!(seen, tags);
    let reply = door.get(format!("{path}?n=0")).send().await.expect_status(200);
    assert_eq!(reply.json()["tags"], json!([]));
    assert!(reply.header("link").is_none());
    door.get("/v2/conformance/no/such/repository/tags/list")
        .send()
        .await
        .expect_status(404)
        .expect_code("NAME_UNKNOWN");
}

async fn end_8_bad_page_sizes(door: &Door, repository: &str) {
    push_image(door, repository, "v1").await;
    let path = format!("/v2/{repository}/tags/list");
    for query in ["n=-1", "n=abc", "n=1&n=2", "n="] {
        door.get(format!("{path}?{query}")).send().await.expect_status(400);
    }
    door.get(format!("{path}?n=1000000000")).send().await.expect_status(200);
    door.get(format!("{path}?n=9999999999999999999999")).send().await.expect_status(200);
}

async fn end_8_catalog(door: &Door, repository: &str) {
    for name in ["x", "y", "z"] {
        push_image(door, &format!("{repository}/{name}"), "v1").await;
    }
    let reply = door.get(format!("/v2/_catalog?n=2&last={repository}")).send().await.expect_status(200);
    assert_eq!(reply.json()["repositories"], json!([format!("{repository}/x"), format!("{repository}/y")]));
    assert!(reply.header("link").unwrap().contains("rel=\"next\""));
}

async fn end_12_referrers_of_nothing(door: &Door, repository: &str) {
    let digest = sha256(b"no such subject");
    for name in [repository, "conformance/no/such/repository"] {
        let reply = door.get(format!("/v2/{name}/referrers/{digest}")).send().await.expect_status(200);
        let reply = reply.expect_header("content-type", INDEX);
        assert_eq!(reply.json()["manifests"], json!([]));
        assert_eq!(reply.json()["schemaVersion"], 2);
        assert_eq!(reply.json()["mediaType"], INDEX);
    }
    door.get(format!("/v2/{repository}/referrers/sha256:baddigeststring")).send().await.expect_status(400);
}

async fn refer(door: &Door, repository: &str, subject: &serde_json::Value, kind: &str) -> (serde_json::Value, String) {
    door.push_blob(repository, b"{}").await;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": kind,
        "config": descriptor("application/vnd.oci.empty.v1+json", &sha256(b"{}"), 2),
        "layers": [descriptor("application/vnd.oci.empty.v1+json", &sha256(b"{}"), 2)],
        "subject": subject,
        "annotations": {"org.example.kind": kind},
    });
    let body = manifest.to_string();
    let digest = sha256(body.as_bytes());
    let path = format!("/v2/{repository}/manifests/{digest}");
    let reply = door.put(path).header("content-type", MANIFEST).body(&body).send().await.expect_status(201);
    reply.expect_header("oci-subject", subject["digest"].as_str().unwrap());
    let entry = json!({
        "mediaType": MANIFEST, "digest": digest.to_string(), "size": body.len(), "artifactType": kind,
        "annotations": {"org.example.kind": kind},
    });
    (entry, digest.to_string())
}

async fn referrers(door: &Door, repository: &str, subject: &str, query: &str) -> Vec<serde_json::Value> {
    let reply = door.get(format!("/v2/{repository}/referrers/{subject}{query}")).send().await.expect_status(200);
    let reply = reply.expect_header("content-type", INDEX);
    if query.contains("artifactType") {
        assert_eq!(reply.header("oci-filters-applied"), Some("artifactType"));
    }
    reply.json()["manifests"].as_array().unwrap().clone()
}

fn sorted(mut entries: Vec<serde_json::Value>) -> Vec<serde_json::Value> {
    entries.sort_by_key(|entry| entry["digest"].as_str().unwrap().to_owned());
    entries
}

async fn end_12_referrers(door: &Door, repository: &str) {
    let (manifest, digest) = push_image(door, repository, "v1").await;
    let subject = descriptor(MANIFEST, &digest, manifest.to_string().len());
    let (one, _) = refer(door, repository, &subject, "application/vnd.example.one").await;
    let (two, _) = refer(door, repository, &subject, "application/vnd.example.two").await;
    let listed = referrers(door, repository, &digest.to_string(), "").await;
    assert_eq!(sorted(listed), sorted(vec![one, two]));
}

async fn end_12_subject_before_its_target(door: &Door, repository: &str) {
    let later = sha256(b"a manifest that may come later");
    let subject = descriptor(MANIFEST, &later, 30);
    let (entry, _) = refer(door, repository, &subject, "application/vnd.example.early").await;
    assert_eq!(referrers(door, repository, &later.to_string(), "").await, [entry]);
}

async fn end_12_filter(door: &Door, repository: &str) {
    let (manifest, digest) = push_image(door, repository, "v1").await;
    let subject = descriptor(MANIFEST, &digest, manifest.to_string().len());
    let (sbom, _) = refer(door, repository, &subject, "application/vnd.example.sbom").await;
    refer(door, repository, &subject, "application/vnd.example.signature").await;
    let digest = digest.to_string();
    let listed = referrers(door, repository, &digest, "?artifactType=application%2Fvnd.example.sbom").await;
    assert_eq!(listed, [sbom]);
    assert!(referrers(door, repository, &digest, "?artifactType=application/none").await.is_empty());
}

async fn end_12_index_as_referrer_and_deletes(door: &Door, repository: &str) {
    let (manifest, digest) = push_image(door, repository, "v1").await;
    let mut referrer = index(&[]);
    referrer["subject"] = descriptor(MANIFEST, &digest, manifest.to_string().len());
    referrer["artifactType"] = json!("application/vnd.example.index");
    let body = referrer.to_string();
    let path = format!("/v2/{repository}/manifests/{}", sha256(body.as_bytes()));
    let reply = door.put(&path).header("content-type", INDEX).body(&body).send().await.expect_status(201);
    reply.expect_header("oci-subject", &digest.to_string());
    let listed = referrers(door, repository, &digest.to_string(), "").await;
    assert_eq!(listed[0]["artifactType"], "application/vnd.example.index");
    door.delete(&path).send().await.expect_status(202);
    assert!(referrers(door, repository, &digest.to_string(), "").await.is_empty());
}
