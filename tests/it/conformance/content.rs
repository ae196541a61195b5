//! What the cases push.

use rafthold::oci::Digest;
use serde_json::{Value, json};

use crate::support::http::Door;

pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const INDEX: &str = "application/vnd.oci.image.index.v1+json";

pub(super) fn descriptor(kind: &str, digest: &Digest, size: usize) -> Value {
    json!({"mediaType": kind, "digest": digest.to_string(), "size": size})
}

/// An image manifest over a config and layers that are given as bytes.
pub(super) fn image(config: &[u8], layers: &[&[u8]]) -> Value {
    let layer = "application/vnd.oci.image.layer.v1.tar";
    json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &crate::support::http::sha256(config), config.len()),
        "layers": layers.iter().map(|bytes| descriptor(layer, &crate::support::http::sha256(bytes), bytes.len())).collect::<Vec<_>>(),
    })
}

pub(super) fn index(manifests: &[Value]) -> Value {
    json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests})
}

/// Pushes an image under a tag and returns its manifest and digest.
pub(super) async fn push_image(door: &Door, repository: &str, tag: &str) -> (Value, Digest) {
    let config = format!("{{\"tag\":\"{tag}\"}}");
    let layer = format!("layer of {repository}:{tag}");
    door.push_blob(repository, config.as_bytes()).await;
    door.push_blob(repository, layer.as_bytes()).await;
    let manifest = image(config.as_bytes(), &[layer.as_bytes()]);
    let digest = door.put_manifest(repository, tag, &manifest).await;
    (manifest, digest)
}
