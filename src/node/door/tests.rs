use std::time::Duration;

use axum::Router;
use axum::routing::{get, post};
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::env::{Net, TcpNet};

use super::*;

const SHORT: Duration = Duration::from_millis(200);
const LONG: Duration = Duration::from_secs(30);

struct Running {
    address: std::net::SocketAddr,
    opening: watch::Sender<Opening>,
    room: Arc<Semaphore>,
    serving: JoinHandle<Result<(), Infallible>>,
}

fn limits() -> Limits {
    Limits {
        connections_max: 100,
        connections_per_address_max: 100,
        head_timeout: LONG,
        idle_timeout: LONG,
        stall_timeout: LONG,
    }
}

async fn open(limits: Limits) -> Running {
    async fn slow() -> &'static str {
        tokio::time::sleep(SHORT).await;
        "slow"
    }
    async fn broken() -> &'static str {
        panic!("on purpose")
    }
    async fn echo(body: axum::body::Bytes) -> axum::body::Bytes {
        body
    }
    let registry = Router::new().route("/v2/", get(|| async { "registry" }));
    let rest = Router::new()
        .route("/slow", get(slow))
        .route("/panic", get(broken))
        .route("/echo", post(echo))
        .route("/fast", get(|| async { "fast" }));
    let listener = TcpNet.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_address().unwrap();
    let (opening, receiver) = watch::channel(Opening::Open);
    let stall_timeout = limits.stall_timeout;
    let room = Arc::new(Semaphore::new(2));
    let front = Front {
        routes: Routes::new(registry, rest),
        metrics: Metrics::new(&mut Registry::default()),
        stall_timeout,
        room: room.clone(),
    };
    let door = Door { listener, tls: None, limits, front, opening: receiver };
    let serving = tokio::spawn(door.serve());
    Running { address, opening, serving, room }
}

impl Running {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn send(&self, text: &str) -> TcpStream {
        let mut stream = self.connect().await;
        stream.write_all(text.as_bytes()).await.unwrap();
        stream
    }
}

/// Everything until the far end closes, which must happen soon.
async fn rest(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut text));
    // a reset is a close too
    read.await.expect("closed in time").ok();
    String::from_utf8_lossy(&text).into_owned()
}

#[tokio::test]
async fn requests_of_the_registry_beyond_the_room_are_told_to_come_again_and_others_are_answered() {
    let running = open(limits()).await;
    let held = running.room.clone().acquire_many_owned(2).await.unwrap();
    let text = "GET /v2/ HTTP/1.1\r\nhost: a\r\n\r\nGET /fast HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let answer = rest(&mut running.send(text).await).await;
    assert!(answer.starts_with("HTTP/1.1 429") && answer.contains("retry-after: 1"), "{answer}");
    assert!(answer.ends_with("fast"), "{answer}");
    drop(held);
    let text = "GET /v2/ HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    assert!(rest(&mut running.send(text).await).await.ends_with("registry"));
}

#[tokio::test]
async fn requests_reach_their_routes_on_one_connection() {
    let running = open(limits()).await;
    let text = "GET /v2/ HTTP/1.1\r\nhost: a\r\n\r\nGET /fast HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let answer = rest(&mut running.send(text).await).await;
    assert!(answer.contains("registry") && answer.ends_with("fast"), "{answer}");
}

#[tokio::test]
async fn a_panic_is_a_500_and_the_next_request_is_answered() {
    let running = open(limits()).await;
    let text = "GET /panic HTTP/1.1\r\nhost: a\r\n\r\nGET /fast HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let answer = rest(&mut running.send(text).await).await;
    assert!(answer.starts_with("HTTP/1.1 500") && answer.ends_with("fast"), "{answer}");
}

#[tokio::test]
async fn oversized_heads_are_refused() {
    let running = open(limits()).await;
    let long_line = format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "a".repeat(20_000));
    assert!(
        rest(&mut running.send(&long_line.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n")).await)
            .await
            .starts_with("HTTP/1.1 414")
    );
    let long_header = format!("GET /fast HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "a".repeat(100_000));
    assert!(rest(&mut running.send(&long_header).await).await.starts_with("HTTP/1.1 431"));
    let many = format!("GET /fast HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: a\r\n".repeat(2000));
    assert!(rest(&mut running.send(&many).await).await.starts_with("HTTP/1.1 431"));
}

#[tokio::test]
async fn a_client_that_says_nothing_is_cut_off() {
    let running = open(Limits { head_timeout: SHORT, ..limits() }).await;
    assert_eq!(rest(&mut running.connect().await).await, "");
    assert_eq!(rest(&mut running.send("GET /fast HT").await).await, "");
    // also when the second head on a connection never ends
    let text = "GET /fast HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut stream = running.send(text).await;
    tokio::time::sleep(SHORT / 4).await;
    stream.write_all(b"GET /fa").await.unwrap();
    assert!(rest(&mut stream).await.ends_with("fast"));
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    let limits = Limits { head_timeout: SHORT / 2, idle_timeout: SHORT / 2, ..limits() };
    let running = open(limits).await;
    let answer = rest(&mut running.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await).await;
    assert!(answer.ends_with("slow"), "{answer}");
}

#[tokio::test]
async fn a_body_that_stalls_ends_the_request() {
    let running = open(Limits { stall_timeout: SHORT, ..limits() }).await;
    let text = "POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc";
    let answer = rest(&mut running.send(text).await).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[tokio::test]
async fn too_many_connections_are_closed_at_once() {
    let running = open(Limits { connections_max: 1, ..limits() }).await;
    let mut first = running.send("GET /fast HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut some = [0; 8];
    first.read_exact(&mut some).await.unwrap();
    assert_eq!(rest(&mut running.connect().await).await, "");
    drop(first);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        let answer = rest(&mut running.send("GET /fast HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await).await;
        if answer.ends_with("fast") {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "the place was not given back");
    }
}

#[tokio::test]
async fn draining_finishes_open_requests_and_ends() {
    let running = open(limits()).await;
    let mut busy = running.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut idle = running.send("GET /fast HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut some = [0; 8];
    idle.read_exact(&mut some).await.unwrap();
    running.opening.send(Opening::Draining).unwrap();
    assert!(rest(&mut busy).await.ends_with("slow"));
    rest(&mut idle).await;
    tokio::time::timeout(Duration::from_secs(10), running.serving).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_body_with_two_lengths_is_refused_on_every_request_and_the_connection_closed() {
    let running = open(limits()).await;
    let twice = "POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    assert!(rest(&mut running.send(twice).await).await.starts_with("HTTP/1.1 400"));
    let good = "POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 27\r\n\r\n\ncontent-length: 1\n\n\nabcdef";
    let mut stream = running.send(good).await;
    let mut echo = Vec::new();
    while !echo.ends_with(b"abcdef") {
        stream.read_buf(&mut echo).await.unwrap();
    }
    stream.write_all(twice.as_bytes()).await.unwrap();
    assert!(rest(&mut stream).await.starts_with("HTTP/1.1 400"));
}
