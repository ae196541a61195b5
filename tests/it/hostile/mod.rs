//! Hostile requests, each sent to the leader, a follower and a node without a quorum: the right answer, no panic, no hang.
//!
//! Rows carry the numbers of the project's list of hostile inputs. Requests are written byte by byte: no client library
//! may tidy them up.

mod framing;
mod names;
mod pushes;

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::TestCluster;

/// One request and the statuses it may get. 0 stands for a connection closed without an answer.
#[derive(Debug, Clone)]
pub(super) struct Row {
    number: u32,
    name: String,
    request: Vec<u8>,
    expected: &'static [u16],
    /// Whether a node without a quorum may say 503 instead: the answer is in the agreed state, not in the request.
    needs_quorum: bool,
}

impl Row {
    /// A request with a method, target, extra header lines and a body; `Content-Length` is added.
    fn new(number: u32, (method, target): (&str, &str), headers: &str, body: &[u8], expected: &'static [u16]) -> Self {
        let mut request = format!("{method} {target} HTTP/1.1\r\nhost: registry\r\n{headers}").into_bytes();
        if !body.is_empty() || matches!(method, "POST" | "PUT" | "PATCH") {
            request.extend(format!("content-length: {}\r\n", body.len()).bytes());
        }
        request.extend(b"connection: close\r\n\r\n");
        request.extend(body);
        let name = format!("{method} {}", &target[..target.len().min(80)]);
        Self { number, name, request, expected, needs_quorum: false }
    }

    fn get(number: u32, target: &str, expected: &'static [u16]) -> Self {
        Self::new(number, ("GET", target), "", b"", expected)
    }

    fn raw(number: u32, name: &str, request: impl Into<Vec<u8>>, expected: &'static [u16]) -> Self {
        Self { number, name: name.to_owned(), request: request.into(), expected, needs_quorum: false }
    }

    fn needs_quorum(mut self) -> Self {
        self.needs_quorum = true;
        self
    }
}

/// Sends raw bytes and returns the status of the first answer (0 if there is none) and all that came back.
async fn exchange(node: SocketAddr, request: &[u8]) -> (u16, Vec<u8>) {
    let mut stream = TcpStream::connect(node).await.expect("connect");
    // The far end may answer and close before it has read everything.
    stream.write_all(request).await.ok();
    let mut answer = Vec::new();
    let read = timeout(Duration::from_secs(25), stream.read_to_end(&mut answer)).await;
    assert!(read.is_ok(), "HANG: no end of the answer within 25 s: {}", String::from_utf8_lossy(&answer));
    let status = answer.get(9..12).and_then(|status| std::str::from_utf8(status).ok()?.parse().ok()).unwrap_or(0);
    (status, answer)
}

fn rows() -> Vec<Row> {
    [names::rows(), pushes::rows(), framing::rows()].concat()
}

async fn offend(node: SocketAddr, quorum: bool) -> Vec<String> {
    let mut wrong = Vec::new();
    for row in rows() {
        let (status, answer) = exchange(node, &row.request).await;
        let fine = row.expected.contains(&status) || (!quorum && row.needs_quorum && status == 503);
        if !fine {
            let answer = String::from_utf8_lossy(&answer[..answer.len().min(300)]).into_owned();
            wrong.push(format!("{} {}: {status}, not {:?}: {answer}", row.number, row.name, row.expected));
        }
    }
    // Whatever it was sent, it still answers.
    let (status, _) = exchange(node, b"GET /livez HTTP/1.1\r\nhost: registry\r\nconnection: close\r\n\r\n").await;
    assert_eq!(status, 200);
    wrong
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_requests_get_a_4xx_at_leader_follower_and_without_a_quorum() {
    let cluster = TestCluster::start(3).await;
    let nodes = cluster.api_addresses();
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    let mut wrong = Vec::new();
    for (role, node) in [("leader", leader), ("follower", follower)] {
        wrong.extend(offend(nodes[node], true).await.into_iter().map(|text| format!("{role}: {text}")));
    }
    cluster.kill(leader).await;
    cluster.kill((leader + 2) % 3).await;
    wrong.extend(offend(nodes[follower], false).await.into_iter().map(|text| format!("without a quorum: {text}")));
    assert!(wrong.is_empty(), "{} wrong answers:\n{}", wrong.len(), wrong.join("\n"));
}
