//! A registry client that trusts nothing: every body is hashed, every answer kept whole.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::stream::{self, Stream};
use futures::{StreamExt, TryStreamExt};
use http::{HeaderMap, Method, Request};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::client::legacy::Client as Hyper;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rafthold::oci::{Algorithm, Digest, Hasher};
use tokio::time::timeout;

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// Talks to any of several nodes.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    nodes: Vec<String>,
    http: Hyper<HttpConnector, Body>,
}

/// How long any request may take before it counts as a hang.
const HANG: Duration = Duration::from_secs(30);

impl Client {
    pub(crate) fn new(nodes: Vec<String>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(Duration::from_secs(2)));
        connector.set_nodelay(true);
        Self { nodes, http: Hyper::builder(TokioExecutor::new()).build(connector) }
    }

    pub(crate) fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Sends one request to one node. A connection that breaks is an error; so is an answer that never comes.
    pub(crate) async fn send(
        &self,
        node: usize,
        (method, path): (Method, &str),
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Answer> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.nodes[node]));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body).map_err(|never| match never {}).boxed_unsync())?;
        timeout(HANG, async {
            let response = self.http.request(request).await?;
            let (parts, body) = response.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
        })
        .await
        .context("HANG: no answer within 30 s")?
    }

    /// Sends a large generated body; waits as long as it takes.
    pub(crate) async fn send_large(&self, node: usize, path: &str, body: Large) -> Result<Answer> {
        let body = StreamBody::new(body.blocks().map_ok(Frame::data)).boxed_unsync();
        let request = Request::builder().method(Method::POST).uri(format!("{}{path}", self.nodes[node]));
        let (parts, body) = self.http.request(request.body(body)?).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
    }

    /// Opens a large body; the caller reads it frame by frame.
    pub(crate) async fn open(&self, node: usize, path: &str) -> Result<Incoming> {
        let request = Request::builder().uri(format!("{}{path}", self.nodes[node]));
        let body = Full::default().map_err(|never| match never {}).boxed_unsync();
        let response = self.http.request(request.body(body)?).await?;
        ensure!(response.status() == 200, "{path} at node {}: {}", node + 1, response.status());
        Ok(response.into_body())
    }

    pub(crate) async fn get(&self, node: usize, path: &str) -> Result<Answer> {
        self.send(node, (Method::GET, path), &[], Bytes::new()).await
    }

    /// Pulls a whole body and checks it against its digest; `Ok(None)` is any status but 200.
    pub(crate) async fn pull(&self, node: usize, path: &str, digest: &Digest) -> Result<Result<Bytes, Answer>> {
        let answer = self.get(node, path).await?;
        if answer.status != 200 {
            return Ok(Err(answer));
        }
        let actual = Digest::of(Algorithm::Sha256, &answer.body);
        ensure!(actual == *digest, "WRONG BYTES: {path} at node {} hashes to {actual}", node + 1);
        Ok(Ok(answer.body))
    }
}

/// A large blob that needs no memory: one random page over and over, each block with its number in front, so that a disk
/// that compresses holds more of it than it has room for.
#[derive(Debug, Clone)]
pub(crate) struct Large {
    block: Bytes,
    blocks: usize,
}

const LARGE_BLOCK_BYTES: usize = 1 << 20;

impl Large {
    pub(crate) fn new(random: &mut impl rand::RngCore, mebibytes: usize) -> Self {
        let mut page = [0; 4096];
        random.fill_bytes(&mut page);
        Self { block: page.repeat(LARGE_BLOCK_BYTES / page.len()).into(), blocks: mebibytes }
    }

    fn block(&self, at: usize) -> Bytes {
        let mut block = self.block.to_vec();
        block[..8].copy_from_slice(&at.to_le_bytes());
        block.into()
    }

    fn blocks(self) -> impl Stream<Item = std::io::Result<Bytes>> {
        stream::iter(0..self.blocks).map(move |at| Ok(self.block(at)))
    }

    pub(crate) fn size(&self) -> usize {
        self.blocks * LARGE_BLOCK_BYTES
    }

    pub(crate) fn digest(&self) -> Digest {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        for at in 0..self.blocks {
            hasher.update(&self.block(at));
        }
        hasher.finish()
    }
}
