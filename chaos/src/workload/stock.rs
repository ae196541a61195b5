//! Content that is there before anything breaks: blobs of mixed sizes and many small ones, all named by tagged manifests.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use http::Method;
use rafthold::oci::{Algorithm, Digest};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

use crate::client::Client;

use super::image::manifest;

const REPOSITORY: &str = "chaos/stock";
const LARGE_BYTES_MIN: f64 = 4096.0;
const SMALL_BYTES: std::ops::Range<usize> = 100..4096;
/// Blobs that one manifest names.
const LARGE_OF_A_MANIFEST: usize = 5;
const SMALL_OF_A_MANIFEST: usize = 50;
/// Pushes at once.
const PUSHES: usize = 12;
const TRIES: usize = 20;

/// How much there is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Amount {
    /// Blobs from 4 KiB to `bytes_max`, evenly spread over the orders of magnitude.
    pub(crate) large: usize,
    pub(crate) bytes_max: usize,
    /// Blobs of less than 4 KiB.
    pub(crate) small: usize,
}

impl Amount {
    /// Makes one blob: always the same for the same seed.
    fn blob(self, seed: u64, at: usize) -> Bytes {
        let mut random = StdRng::seed_from_u64(seed.wrapping_mul(1 << 20) + at as u64);
        let mut bytes = vec![0; self.size(at, &mut random)];
        random.fill_bytes(&mut bytes);
        bytes.into()
    }

    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a size in bytes")]
    fn size(self, at: usize, random: &mut StdRng) -> usize {
        if at >= self.large {
            return random.random_range(SMALL_BYTES);
        }
        let part = at as f64 / (self.large.max(2) - 1) as f64;
        (LARGE_BYTES_MIN * (self.bytes_max as f64 / LARGE_BYTES_MIN).powf(part)) as usize
    }
}

/// One thing to pull.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) path: String,
    pub(crate) digest: Digest,
    pub(crate) bytes: u64,
}

/// All of it.
#[derive(Debug)]
pub(crate) struct Stock {
    pub(crate) large: Vec<Item>,
    pub(crate) small: Vec<Item>,
    /// By digest; each has a tag as well.
    pub(crate) manifests: Vec<Item>,
}

impl Stock {
    /// Pushes everything, each request at another node.
    pub(crate) async fn push(client: &Client, seed: u64, amount: Amount) -> Result<Arc<Self>> {
        let push = |at| async move {
            let bytes = amount.blob(seed, at);
            let digest = Digest::of(Algorithm::Sha256, &bytes);
            let path = format!("/v2/{REPOSITORY}/blobs/uploads/?digest={digest}");
            created(client, at, (Method::POST, &path), (None, &bytes)).await?;
            let path = format!("/v2/{REPOSITORY}/blobs/{digest}");
            anyhow::Ok(Item { path, digest, bytes: bytes.len() as u64 })
        };
        // Large and less large ones alternate: else the largest would all be under way at once.
        let half = amount.large.div_ceil(2);
        let order: Vec<usize> = (0..half).flat_map(|at| [at, half + at]).filter(|at| *at < amount.large).collect();
        let large: Vec<Item> = stream::iter(order).map(push).buffered(PUSHES).try_collect().await?;
        let small: Vec<Item> =
            stream::iter(amount.large..amount.large + amount.small).map(push).buffered(PUSHES).try_collect().await?;
        let groups = large.chunks(LARGE_OF_A_MANIFEST).chain(small.chunks(SMALL_OF_A_MANIFEST)).enumerate();
        let put = |(at, group): (usize, &[Item])| {
            let blobs: Vec<_> = group.iter().map(|item| (item.digest.clone(), item.bytes as usize)).collect();
            async move {
                let body = manifest(&blobs);
                let path = format!("/v2/{REPOSITORY}/manifests/v{at}");
                let kind = "application/vnd.oci.image.manifest.v1+json";
                created(client, at, (Method::PUT, &path), (Some(kind), &body)).await?;
                let digest = Digest::of(Algorithm::Sha256, &body);
                let path = format!("/v2/{REPOSITORY}/manifests/{digest}");
                anyhow::Ok(Item { path, digest, bytes: body.len() as u64 })
            }
        };
        let puts: Vec<_> = groups.map(put).collect();
        let manifests = stream::iter(puts).buffered(PUSHES).try_collect().await?;
        Ok(Arc::new(Self { large, small, manifests }))
    }

    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Item> {
        self.large.iter().chain(&self.small)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.blobs().map(|item| item.bytes).sum()
    }

    /// Draws something to pull: more often than not one of the small ones, else a manifest or a large one.
    pub(crate) fn draw(&self, random: &mut StdRng) -> &Item {
        let list = match random.random_range(0..10) {
            0..6 if !self.small.is_empty() => &self.small,
            6..8 => &self.manifests,
            _ => &self.large,
        };
        &list[random.random_range(0..list.len())]
    }
}

/// Sends until it is answered 201; a healthy cluster may ask to wait for a moment.
async fn created(
    client: &Client,
    at: usize,
    (method, path): (Method, &str),
    (kind, body): (Option<&str>, &Bytes),
) -> Result<()> {
    let headers: Vec<_> = kind.map(|kind| ("content-type", kind)).into_iter().collect();
    for turn in 0..TRIES {
        let node = (at + turn) % client.nodes();
        let answer = client.send(node, (method.clone(), path), &headers, body.clone()).await;
        let answer = answer.with_context(|| format!("{path} at node {}", node + 1))?;
        if answer.status == 201 {
            return Ok(());
        }
        ensure!(answer.status == 503, "{path} at node {}: {}", node + 1, answer.status);
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    bail!("{path} was answered 503 {TRIES} times by a healthy cluster")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_reach_from_four_kibibytes_to_the_largest_and_the_rest_is_small() {
        let amount = Amount { large: 200, bytes_max: 64 << 20, small: 10 };
        let size = |at| amount.size(at, &mut StdRng::seed_from_u64(1));
        assert_eq!(size(0), 4096);
        assert!((60 << 20..=64 << 20).contains(&size(199)), "{}", size(199));
        let sum: usize = (0..200).map(size).sum();
        assert!((1 << 30..2 << 30).contains(&sum), "{sum}");
        assert!(size(200) < 4096);
        assert_eq!(amount.blob(3, 205), amount.blob(3, 205));
        assert_ne!(amount.blob(3, 205), amount.blob(3, 206));
    }
}
