//! A registry client for tests: every request goes to the next node in turn.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rafthold::oci::{Algorithm, Digest};

/// The front doors of the nodes of a cluster.
#[derive(Debug)]
pub(crate) struct Door {
    nodes: Vec<SocketAddr>,
    next: AtomicUsize,
    client: Client<HttpConnector, Full<Bytes>>,
}

/// A request being put together.
#[derive(Debug)]
pub(crate) struct Ask<'a> {
    door: &'a Door,
    node: Option<usize>,
    method: Method,
    path: String,
    headers: Vec<(String, String)>,
    body: Bytes,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    what: String,
}

impl Door {
    pub(crate) fn new(nodes: Vec<SocketAddr>) -> Self {
        let client = Client::builder(TokioExecutor::new()).build(HttpConnector::new());
        Self { nodes, next: AtomicUsize::new(0), client }
    }

    pub(crate) fn ask(&self, method: &str, path: impl Into<String>) -> Ask<'_> {
        let method = method.parse().expect("a method");
        Ask { door: self, node: None, method, path: path.into(), headers: Vec::new(), body: Bytes::new() }
    }

    pub(crate) fn get(&self, path: impl Into<String>) -> Ask<'_> {
        self.ask("GET", path)
    }

    pub(crate) fn head(&self, path: impl Into<String>) -> Ask<'_> {
        self.ask("HEAD", path)
    }

    pub(crate) fn post(&self, path: impl Into<String>) -> Ask<'_> {
        self.ask("POST", path)
    }

    pub(crate) fn put(&self, path: impl Into<String>) -> Ask<'_> {
        self.ask("PUT", path)
    }

    pub(crate) fn patch(&self, path: impl Into<String>) -> Ask<'_> {
        self.ask("PATCH", path)
    }

    pub(crate) fn delete(&self, path: impl Into<String>) -> Ask<'_> {
        self.ask("DELETE", path)
    }

    /// Pushes a blob in one request.
    pub(crate) async fn push_blob(&self, repository: &str, bytes: &[u8]) -> Digest {
        let digest = sha256(bytes);
        let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
        self.post(path).body(bytes).send().await.expect_status(201);
        digest
    }

    /// The same, at one node.
    pub(crate) async fn push_blob_at(&self, repository: &str, bytes: &[u8], node: usize) {
        let path = format!("/v2/{repository}/blobs/uploads/?digest={}", sha256(bytes));
        self.post(path).at(node).body(bytes).send().await.expect_status(201);
    }

    /// Opens an upload session and returns its location.
    pub(crate) async fn start_upload(&self, repository: &str) -> String {
        self.post(format!("/v2/{repository}/blobs/uploads/")).send().await.expect_status(202).location()
    }

    /// Puts a manifest and returns its digest.
    pub(crate) async fn put_manifest(&self, repository: &str, reference: &str, body: &serde_json::Value) -> Digest {
        let kind = body["mediaType"].as_str().expect("mediaType").to_owned();
        let bytes = body.to_string();
        let path = format!("/v2/{repository}/manifests/{reference}");
        self.put(path).header("content-type", &kind).body(&bytes).send().await.expect_status(201);
        sha256(bytes.as_bytes())
    }
}

impl Ask<'_> {
    /// Asks this node instead of the next in turn.
    pub(crate) fn at(mut self, node: usize) -> Self {
        self.node = Some(node);
        self
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = Bytes::copy_from_slice(body.as_ref());
        self
    }

    pub(crate) async fn send(self) -> Reply {
        let what = format!("{} {}", self.method, self.path);
        self.try_send().await.unwrap_or_else(|error| panic!("{what}: {error}"))
    }

    /// Sends; a connection that breaks is an error.
    pub(crate) async fn try_send(self) -> Result<Reply, String> {
        let turn = self.door.next.fetch_add(1, Ordering::Relaxed);
        let node = self.door.nodes[self.node.unwrap_or(turn) % self.door.nodes.len()];
        let what = format!("{} {} at {node}", self.method, self.path);
        let mut request = Request::builder().method(self.method).uri(format!("http://{node}{}", self.path));
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(self.body)).map_err(|error| error.to_string())?;
        let exchange = async {
            let (parts, body) =
                self.door.client.request(request).await.map_err(|error| format!("{error:?}"))?.into_parts();
            let body = body.collect().await.map_err(|error| format!("{error:?}"))?.to_bytes();
            Ok(Reply { status: parts.status.as_u16(), headers: parts.headers, body, what: what.clone() })
        };
        tokio::time::timeout(Duration::from_secs(30), exchange)
            .await
            .map_err(|_| format!("{what}: no answer in 30 s"))?
    }
}

impl Reply {
    #[track_caller]
    pub(crate) fn expect_status(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}: {}", self.what, String::from_utf8_lossy(&self.body));
        self
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("a header of text"))
    }

    #[track_caller]
    pub(crate) fn expect_header(self, name: &str, value: &str) -> Self {
        assert_eq!(self.header(name), Some(value), "{name} of {}", self.what);
        self
    }

    #[track_caller]
    pub(crate) fn expect_body(self, body: impl AsRef<[u8]>) -> Self {
        assert!(self.body == body.as_ref(), "body of {} differs: {} bytes", self.what, self.body.len());
        self
    }

    /// The path to go on with; always relative.
    #[track_caller]
    pub(crate) fn location(&self) -> String {
        let location = self.header("location").unwrap_or_else(|| panic!("{} has no Location", self.what));
        assert!(location.starts_with("/v2/"), "Location of {} is {location}", self.what);
        location.to_owned()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{}: {error}", self.what))
    }

    /// The first code of an error body.
    #[track_caller]
    pub(crate) fn expect_code(self, code: &str) -> Self {
        assert_eq!(self.json()["errors"][0]["code"], code, "{}", self.what);
        self
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, bytes)
}

/// A location with the closing digest added.
pub(crate) fn with_digest(location: &str, digest: &Digest) -> String {
    let separator = if location.contains('?') { '&' } else { '?' };
    format!("{location}{separator}digest={digest}")
}
