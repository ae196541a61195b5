//! Pushing images in every way the API offers, each request at another node.

use bytes::Bytes;
use http::Method;
use rafthold::oci::{Algorithm, Digest};
use rand::rngs::StdRng;
use rand::{Rng, RngCore};

use crate::client::{Answer, Client};

use super::{AckedImage, Ledger};

/// How a push ended.
#[derive(Debug)]
pub(crate) enum Pushed {
    /// The manifest was answered 201.
    Acked(AckedImage),
    /// Retries ran out; nothing was promised.
    GaveUp,
}

const TRIES: usize = 8;

/// Pushes an image of random blobs; what fails for want of a leader or a node is tried again elsewhere.
pub(crate) async fn push_image(
    client: &Client,
    ledger: &Ledger,
    random: &mut StdRng,
    repository: &str,
    tag: &str,
) -> Pushed {
    let mut blobs = Vec::new();
    for _ in 0..random.random_range(1..4) {
        let mut blob = vec![0; random.random_range(1..ledger.blob_bytes_max)];
        random.fill_bytes(&mut blob);
        let blob = Bytes::from(blob);
        let digest = Digest::of(Algorithm::Sha256, &blob);
        let mut pushed = false;
        for _ in 0..TRIES {
            pushed = Push { client, ledger, random, repository }.push_blob(&blob, &digest).await;
            if pushed {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(random.random_range(20..400))).await;
        }
        if !pushed {
            return Pushed::GaveUp;
        }
        blobs.push((digest, blob.len()));
    }
    let manifest = manifest(&blobs);
    let digest = Digest::of(Algorithm::Sha256, &manifest);
    for _ in 0..TRIES {
        let node = random.random_range(0..client.nodes());
        let path = format!("/v2/{repository}/manifests/{tag}");
        let headers = [("content-type", "application/vnd.oci.image.manifest.v1+json")];
        let what = format!("PUT {path} at node {}", node + 1);
        match client.send(node, (Method::PUT, &path), &headers, manifest.clone()).await {
            Ok(answer) if answer.status == 201 => {
                let blobs = blobs.into_iter().map(|(digest, _)| digest).collect();
                return Pushed::Acked(AckedImage {
                    repository: repository.into(),
                    tag: tag.into(),
                    manifest: digest,
                    blobs,
                });
            }
            Ok(answer) if answer.status < 500 => {
                ledger.violation(format!("{what}: {} {}", answer.status, String::from_utf8_lossy(&answer.body)));
                return Pushed::GaveUp;
            }
            Ok(answer) => ledger.note(&what, &answer),
            Err(error) => ledger.note_broken(&what, &error),
        }
        tokio::time::sleep(std::time::Duration::from_millis(random.random_range(20..400))).await;
    }
    Pushed::GaveUp
}

/// An image manifest whose config is the first blob.
pub(crate) fn manifest(blobs: &[(Digest, usize)]) -> Bytes {
    let descriptor = |kind: &str, (digest, size): &(Digest, usize)| serde_json::json!({"mediaType": kind, "digest": digest.to_string(), "size": size});
    let layers: Vec<_> = blobs.iter().map(|blob| descriptor("application/vnd.oci.image.layer.v1.tar", blob)).collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &blobs[0]),
        "layers": layers,
    });
    Bytes::from(manifest.to_string())
}

/// A push under way.
struct Push<'a> {
    client: &'a Client,
    ledger: &'a Ledger,
    random: &'a mut StdRng,
    repository: &'a str,
}

impl Push<'_> {
    async fn push_blob(&mut self, blob: &Bytes, digest: &Digest) -> bool {
        match self.random.random_range(0..3) {
            0 => self.push_whole(blob, digest).await,
            1 => self.push_chunks(blob, digest, 1).await,
            _ => self.push_chunks(blob, digest, 3).await,
        }
    }

    async fn push_whole(&mut self, blob: &Bytes, digest: &Digest) -> bool {
        let path = format!("/v2/{}/blobs/uploads/?digest={digest}", self.repository);
        self.step((Method::POST, &path), &[], blob.clone()).await.is_some_and(|answer| answer.status == 201)
    }

    async fn push_chunks(&mut self, blob: &Bytes, digest: &Digest, chunks: usize) -> bool {
        let path = format!("/v2/{}/blobs/uploads/", self.repository);
        let Some(answer) = self.step((Method::POST, &path), &[], Bytes::new()).await else {
            return false;
        };
        let Some(mut location) = answer.header("location").map(str::to_owned) else { return false };
        let size = blob.len().div_ceil(chunks);
        let mut at = 0;
        while at < blob.len() {
            let end = (at + size).min(blob.len());
            let range = format!("{at}-{}", end - 1);
            let headers = [("content-range", range.as_str()), ("content-type", "application/octet-stream")];
            let body = blob.slice(at..end);
            let patched = self.step((Method::PATCH, &location), &headers, body).await;
            // Whatever became of the chunk, any other node knows where the session stands.
            let Some(answer) = (match patched {
                Some(answer) => Some(answer),
                None => self.step((Method::GET, &location), &[], Bytes::new()).await,
            }) else {
                return false;
            };
            if !matches!(answer.status, 202 | 204 | 416) {
                return false;
            }
            // 202 and 416 both say where the session stands; an answer that was lost may have moved it.
            let Some(next) = answer.header("location").map(str::to_owned) else { return false };
            location = next;
            let last = answer.header("range").and_then(|range| range.split_once('-')?.1.parse::<usize>().ok());
            let Some(last) = last else { return false };
            // `0-0` is said of an empty session and of one byte; one byte is never what we sent.
            at = if last == 0 { 0 } else { last + 1 };
        }
        let separator = if location.contains('?') { '&' } else { '?' };
        let path = format!("{location}{separator}digest={digest}");
        self.step((Method::PUT, &path), &[], Bytes::new()).await.is_some_and(|answer| answer.status == 201)
    }

    /// One request of a push, at a node of its own; `None` if it has to be begun again.
    async fn step(&mut self, (method, path): (Method, &str), headers: &[(&str, &str)], body: Bytes) -> Option<Answer> {
        let node = self.random.random_range(0..self.client.nodes());
        let what = format!("{method} {path} at node {}", node + 1);
        match self.client.send(node, (method, path), headers, body).await {
            Ok(answer) if answer.status < 400 || answer.status == 416 => Some(answer),
            Ok(answer) if answer.status < 500 => {
                self.ledger.violation(format!("{what}: {} {}", answer.status, String::from_utf8_lossy(&answer.body)));
                None
            }
            Ok(answer) => {
                self.ledger.note(&what, &answer);
                None
            }
            Err(error) => {
                self.ledger.note_broken(&what, &error);
                None
            }
        }
    }
}
