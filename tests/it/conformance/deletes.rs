//! Deletes: answered 202, and at once gone at every node (I5).

use super::content::{MANIFEST, descriptor, index, push_image};
use crate::support::http::Door;

super::cases![
    end_9_delete_tag,
    end_9_delete_manifest_drops_its_tags,
    end_10_delete_blob,
    end_9_unknown_is_404,
    end_9_what_others_need_is_kept,
    end_9_deleted_content_comes_back_when_pushed_again,
];

/// Asks every node.
async fn gone_everywhere(door: &Door, path: &str) {
    for node in 0..3 {
        door.get(path).at(node).send().await.expect_status(404);
        door.head(path).at(node).send().await.expect_status(404);
    }
}

async fn end_9_delete_tag(door: &Door, repository: &str) {
    let (manifest, digest) = push_image(door, repository, "v1").await;
    door.put_manifest(repository, "v2", &manifest).await;
    door.delete(format!("/v2/{repository}/manifests/v1")).send().await.expect_status(202);
    gone_everywhere(door, &format!("/v2/{repository}/manifests/v1")).await;
    door.get(format!("/v2/{repository}/manifests/v2")).send().await.expect_status(200);
    door.get(format!("/v2/{repository}/manifests/{digest}")).send().await.expect_status(200);
}

async fn end_9_delete_manifest_drops_its_tags(door: &Door, repository: &str) {
    let (_, digest) = push_image(door, repository, "v1").await;
    door.delete(format!("/v2/{repository}/manifests/{digest}")).send().await.expect_status(202);
    gone_everywhere(door, &format!("/v2/{repository}/manifests/{digest}")).await;
    gone_everywhere(door, &format!("/v2/{repository}/manifests/v1")).await;
    let list = door.get(format!("/v2/{repository}/tags/list")).send().await;
    assert!(list.status == 404 || list.json()["tags"].as_array().unwrap().is_empty());
}

async fn end_10_delete_blob(door: &Door, repository: &str) {
    let digest = door.push_blob(repository, b"to be deleted").await;
    let path = format!("/v2/{repository}/blobs/{digest}");
    door.delete(&path).send().await.expect_status(202);
    gone_everywhere(door, &path).await;
    door.delete(&path).send().await.expect_status(404);
}

async fn end_9_unknown_is_404(door: &Door, repository: &str) {
    push_image(door, repository, "v1").await;
    door.delete(format!("/v2/{repository}/manifests/unknown")).send().await.expect_status(404);
    let digest = crate::support::http::sha256(b"unknown");
    door.delete(format!("/v2/{repository}/manifests/{digest}")).send().await.expect_status(404);
    door.delete(format!("/v2/{repository}/blobs/{digest}")).send().await.expect_status(404);
}

async fn end_9_what_others_need_is_kept(door: &Door, repository: &str) {
    let (manifest, digest) = push_image(door, repository, "v1").await;
    let layer = manifest["layers"][0]["digest"].as_str().unwrap();
    let reply = door.delete(format!("/v2/{repository}/blobs/{layer}")).send().await.expect_status(409);
    let reply = reply.expect_code("DENIED");
    assert!(String::from_utf8_lossy(&reply.body).contains(&digest.to_string()), "names what needs it");
    door.put_manifest(repository, "index", &index(&[descriptor(MANIFEST, &digest, manifest.to_string().len())])).await;
    door.delete(format!("/v2/{repository}/manifests/{digest}")).send().await.expect_status(409).expect_code("DENIED");
    door.get(format!("/v2/{repository}/blobs/{layer}")).send().await.expect_status(200);
}

async fn end_9_deleted_content_comes_back_when_pushed_again(door: &Door, repository: &str) {
    for _ in 0..3 {
        let (_, digest) = push_image(door, repository, "v1").await;
        door.get(format!("/v2/{repository}/manifests/v1")).send().await.expect_status(200);
        door.delete(format!("/v2/{repository}/manifests/{digest}")).send().await.expect_status(202);
        gone_everywhere(door, &format!("/v2/{repository}/manifests/v1")).await;
    }
}
