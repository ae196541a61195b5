//! What the scenario reads off real processes: memory, processor time of each kind of request, and times of answers.

use std::fmt;
use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use http::Method;
use rafthold::oci::{Algorithm, Digest};
use tokio::time::{Instant, sleep};

use crate::client::Client;
use crate::cluster::Cluster;

use super::content::{Content, MANIFEST_TYPE};

/// Requests of a kind that are measured together.
const REQUESTS: usize = 1000;
/// Pushes that are measured together.
const PUSHES: usize = 100;
/// Entries of a listing page.
const PAGE: usize = 100;

/// What some nodes used.
pub(super) fn processor_time(cluster: &Cluster) -> Result<Duration> {
    (0..cluster.len()).map(|node| cluster.processor_time(node)).sum()
}

/// Processors that the nodes use together while nobody asks for anything.
pub(super) async fn idle(cluster: &Cluster, over: Duration) -> Result<f64> {
    let (before, began) = (processor_time(cluster)?, Instant::now());
    sleep(over).await;
    Ok((processor_time(cluster)? - before).as_secs_f64() / began.elapsed().as_secs_f64())
}

/// Answer times of one kind of request.
#[derive(Debug, Default, Clone)]
pub(super) struct Times(Vec<Duration>);

impl Times {
    pub(super) fn add(&mut self, took: Duration) {
        self.0.push(took);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn quantile(&self, share: f64) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort();
        let place = (sorted.len() as f64 * share) as usize;
        sorted.get(place.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |share| self.quantile(share).as_secs_f64() * 1000.0;
        write!(f, "{} requests, p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms", self.len(), ms(0.5), ms(0.99), ms(1.0))
    }
}

/// Processor time of all nodes for one request of a kind, in milliseconds, what they use idle taken off; and the times.
#[derive(Debug)]
pub(super) struct Cost {
    pub(super) what: &'static str,
    pub(super) cpu_ms: f64,
    times: Times,
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:.3} ms CPU of all nodes each; {}", self.what, self.cpu_ms, self.times)
    }
}

/// Asks for one thing after the other and divides what it cost.
async fn cost(
    cluster: &Cluster,
    what: &'static str,
    (requests, idle): (usize, f64),
    mut request: impl AsyncFnMut(usize) -> Result<()>,
) -> Result<Cost> {
    let mut times = Times::default();
    let (before, began) = (processor_time(cluster)?, Instant::now());
    for n in 0..requests {
        let asked = Instant::now();
        request(n).await?;
        times.add(asked.elapsed());
    }
    let used = (processor_time(cluster)? - before).as_secs_f64() - idle * began.elapsed().as_secs_f64();
    let cpu_ms = used.max(0.0) * 1000.0 / requests as f64;
    Ok(Cost { what, cpu_ms, times })
}

/// Pushes one image of a config, two layers and a manifest with a tag, as a client would; its blobs are new.
pub(super) async fn push(client: &Client, node: usize, (repository, tag): (&str, &str)) -> Result<Digest> {
    let mut blobs = Vec::new();
    for n in 0..3 {
        let body = Bytes::from(format!("{repository} {tag} {n}"));
        let digest = Digest::of(Algorithm::Sha256, &body);
        let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
        let size = body.len();
        let answer = client.send(node, (Method::POST, &path), &[], body).await?;
        ensure!(answer.status == 201, "POST {path}: {} {:?}", answer.status, answer.body);
        blobs.push((digest, size));
    }
    let body = crate::workload::manifest(&blobs);
    put(client, node, (repository, tag), body).await
}

/// Puts a manifest under a tag.
pub(super) async fn put(client: &Client, node: usize, (repository, tag): (&str, &str), body: Bytes) -> Result<Digest> {
    let digest = Digest::of(Algorithm::Sha256, &body);
    let path = format!("/v2/{repository}/manifests/{tag}");
    let answer = client.send(node, (Method::PUT, &path), &[("content-type", MANIFEST_TYPE)], body).await?;
    ensure!(answer.status == 201, "PUT {path}: {} {:?}", answer.status, answer.body);
    Ok(digest)
}

/// What each kind of request costs as the registry is now; `repository` has the tags of [`Content::tag`], at least a page.
/// `mark` names what is pushed.
pub(super) async fn costs(cluster: &Cluster, repository: &str, mark: &str) -> Result<Vec<Cost>> {
    let client = Client::new(cluster.apis());
    let idle = idle(cluster, Duration::from_secs(10)).await?;
    let get = async |node: usize, path: String| {
        let answer = client.get(node, &path).await?;
        ensure!(answer.status == 200, "GET {path}: {}", answer.status);
        Ok(())
    };
    let nodes = cluster.len();
    let tags = format!("/v2/{repository}/tags/list?n={PAGE}&last={}", Content::tag(1));
    let by_tag = |n: usize| format!("/v2/{repository}/manifests/{}", Content::tag(n % PAGE));
    let pushed = format!("pushed/{mark}");
    Ok(vec![
        cost(cluster, "page of 100 tags", (REQUESTS, idle), async |n| get(n % nodes, tags.clone()).await).await?,
        cost(cluster, "manifest by tag", (REQUESTS, idle), async |n| get(n % nodes, by_tag(n)).await).await?,
        cost(cluster, "page of the catalog", (REQUESTS, idle), async |n| {
            get(n % nodes, format!("/v2/_catalog?n={PAGE}")).await
        })
        .await?,
        cost(cluster, "push of an image (3 blobs)", (PUSHES, idle), async |n| {
            push(&client, n % nodes, (&pushed, &Content::tag(n))).await.map(|_| ())
        })
        .await?,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_sorted_times() {
        let mut times = Times::default();
        (1..=100).rev().for_each(|ms| times.add(Duration::from_millis(ms)));
        let ms = |share| times.quantile(share).as_millis();
        assert_eq!((ms(0.0), ms(0.5), ms(0.99), ms(1.0)), (1, 51, 100, 100));
        assert_eq!(Times::default().quantile(0.5), Duration::ZERO);
    }
}
