//! Clients that stall, dribble and flood, beside one that behaves: memory and descriptors stay bounded, the slow are cut off,
//! and the one that behaves notices nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use http_body_util::BodyExt;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout};

use crate::client::{Client, Large};
use crate::cluster::Cluster;
use crate::workload::{Ledger, Pushed, push_image};

use super::{Setup, until};

/// Shorter than the defaults, so that the run is short; every limit is a multiple of one of these.
const ENVIRONMENT: &[(&str, &str)] = &[("RAFTHOLD_API__HEAD_TIMEOUT", "3s"), ("RAFTHOLD_API__STALL_TIMEOUT", "5s")];
const HEAD_TIMEOUT: Duration = Duration::from_secs(3);
const STALL_TIMEOUT: Duration = Duration::from_secs(5);
/// A client may take four times as long to receive as to send.
const TAKE_TIMEOUT: Duration = Duration::from_secs(20);
/// For a busy machine.
const SLACK: Duration = Duration::from_secs(20);

const UPLOAD: &str =
    "/v2/chaos/slow/blobs/uploads/?digest=sha256:0000000000000000000000000000000000000000000000000000000000000000";

/// The worst of them hold thousands of requests open; a node takes 4096 at once.
const MEMORY_BYTES_MAX: u64 = 640 << 20;
const LARGE_MEBIBYTES: usize = 64;

/// Runs each kind of bad client in turn against node 1.
pub(crate) async fn slow_clients(setup: &Setup, clients: usize) -> Result<()> {
    let options = crate::cluster::Options { environment: ENVIRONMENT, ..setup.options(None) };
    let cluster = Cluster::start(&options).await?;
    let client = Client::new(cluster.apis());
    let large = Large::new(&mut StdRng::seed_from_u64(setup.seed), LARGE_MEBIBYTES);
    let blob = format!("/v2/chaos/large/blobs/{}", large.digest());
    let answer =
        client.send_large(0, &format!("/v2/chaos/large/blobs/uploads/?digest={}", large.digest()), large).await?;
    ensure!(answer.status == 201, "push: {}", answer.status);
    let address = cluster.apis()[0].trim_start_matches("http://").to_owned();
    let attack = Attack { address, clients, blob };
    let descriptors = cluster.descriptors(0)?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut good = JoinSet::new();
    good.spawn(behave(Client::new(cluster.apis()), setup.seed, stop.clone()));
    let mut highest = 0;
    for kind in KINDS {
        let began = Instant::now();
        let run = async {
            match kind {
                Kind::SlowReader => attack.read_slowly(&cluster, descriptors).await,
                kind => attack.run(kind).await,
            }
        };
        let (mut running, mut tick, mut peak) = (std::pin::pin!(run), interval(Duration::from_millis(100)), 0);
        let ended = loop {
            tokio::select! {
                ended = &mut running => break ended,
                _ = tick.tick() => peak = peak.max(cluster.resident_bytes(0)?),
            }
        };
        let cut = ended.with_context(|| format!("{kind:?}"))?;
        println!("{kind:?}: {cut} cut off, {:.1} s, at most {} MiB", began.elapsed().as_secs_f64(), peak >> 20);
        highest = highest.max(peak);
    }
    stop.store(true, Ordering::Relaxed);
    let (pushes, slowest) = good.join_next().await.context("the good client")???;
    println!(
        "meanwhile {pushes} images were pushed and pulled, the slowest in {slowest:?}; memory at most {} MiB",
        highest >> 20
    );
    ensure!(pushes >= 10, "VOID: the good client did almost nothing");
    ensure!(slowest < Duration::from_secs(10), "the good client waited {slowest:?}");
    ensure!(highest < MEMORY_BYTES_MAX, "{} MiB of memory", highest >> 20);
    until("all descriptors of bad clients closed", Duration::from_secs(30), async || {
        cluster.descriptors(0).is_ok_and(|now| now <= descriptors + 50)
    })
    .await?;
    cluster.check_logs()
}

/// What a bad client does.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Connects and says nothing.
    Silent,
    /// Sends a head byte by byte.
    DribbledHead,
    /// Sends a body byte by byte.
    DribbledBody,
    /// Asks for a large blob and reads almost nothing.
    SlowReader,
    /// Opens and resets streams.
    RapidReset,
    /// Never ends a head.
    Continuations,
    /// Changes settings without end.
    Settings,
    /// Sends frames of a body that hold nothing.
    EmptyData,
    /// Asks for large blobs and never opens a window.
    ZeroWindow,
}

const KINDS: [Kind; 9] = [
    Kind::Silent,
    Kind::DribbledHead,
    Kind::DribbledBody,
    Kind::SlowReader,
    Kind::RapidReset,
    Kind::Continuations,
    Kind::Settings,
    Kind::EmptyData,
    Kind::ZeroWindow,
];

impl Kind {
    /// How many do it at once, and by when each must have been cut off; some need not be, if they cost nothing.
    const fn bounds(self, clients: usize) -> (usize, Duration, bool) {
        match self {
            Self::Silent | Self::DribbledHead => (clients, HEAD_TIMEOUT, true),
            Self::DribbledBody => (clients / 4, STALL_TIMEOUT, true),
            Self::SlowReader => (clients, TAKE_TIMEOUT, true),
            Self::EmptyData => (4, STALL_TIMEOUT, true),
            Self::Continuations => (4, HEAD_TIMEOUT, true),
            // The keep-alive of a connection whose pings nobody answers ends it.
            // A hundred requests each: fewer than a node takes at once, else the one that behaves is told to come again.
            Self::ZeroWindow => (clients / 32, TAKE_TIMEOUT, true),
            Self::RapidReset | Self::Settings => (4, TAKE_TIMEOUT, false),
        }
    }
}

#[derive(Debug, Clone)]
struct Attack {
    address: String,
    clients: usize,
    blob: String,
}

impl Attack {
    /// Runs all clients of one kind and returns how many the node cut off.
    async fn run(&self, kind: Kind) -> Result<usize> {
        let (count, within, must) = kind.bounds(self.clients);
        let mut running = JoinSet::new();
        for _ in 0..count {
            let attack = self.clone();
            running.spawn(async move { timeout(within + SLACK, attack.one(kind)).await });
        }
        let mut cut = 0;
        while let Some(ended) = running.join_next().await {
            match ended? {
                Ok(was_cut) => cut += usize::from(was_cut?),
                Err(_) if must => bail!("a client was not cut off within {within:?}"),
                Err(_) => {}
            }
        }
        ensure!(!must || cut == count, "{cut} of {count} clients were cut off");
        Ok(cut)
    }

    /// Slow readers cannot tell when they were cut off, for their kernel holds more than they will ever read: the node's
    /// descriptors tell.
    async fn read_slowly(&self, cluster: &Cluster, before: usize) -> Result<usize> {
        let mut readers = JoinSet::new();
        for _ in 0..self.clients {
            let attack = self.clone();
            readers.spawn(async move { attack.one(Kind::SlowReader).await });
        }
        let open = async |holds: fn(usize, usize) -> bool, what: &str, within| {
            let now = || cluster.descriptors(0).unwrap_or(usize::MAX);
            until(what, within, async || holds(now(), before)).await
        };
        open(|now, before| now > before + 100, "slow readers connected", SLACK).await?;
        open(|now, before| now < before + 50, "slow readers cut off", TAKE_TIMEOUT + SLACK).await?;
        Ok(self.clients)
    }

    /// One client; true if the node ended the connection.
    async fn one(&self, kind: Kind) -> Result<bool> {
        let mut stream = TcpStream::connect(&self.address).await?;
        let host = &self.address;
        match kind {
            Kind::Silent => Ok(closed(&mut stream).await),
            Kind::DribbledHead => Ok(dribble(stream, format!("GET /v2/ HTTP/1.1\r\nhost: {host}\r\nx: ")).await),
            Kind::DribbledBody => {
                let head = format!(
                    "POST {UPLOAD} HTTP/1.1\r\nhost: {host}\r\n\
                     content-type: application/octet-stream\r\ncontent-length: 1000000000\r\n\r\n"
                );
                Ok(dribble(stream, head).await)
            }
            Kind::RapidReset | Kind::Continuations | Kind::Settings | Kind::EmptyData => Ok(flood(stream, kind).await),
            Kind::SlowReader => {
                let request = format!("GET {} HTTP/1.1\r\nhost: {host}\r\n\r\n", self.blob);
                stream.write_all(request.as_bytes()).await?;
                let mut byte = [0];
                while stream.read(&mut byte).await.unwrap_or(0) > 0 {
                    sleep(Duration::from_secs(1)).await;
                }
                Ok(true)
            }
            Kind::ZeroWindow => {
                let mut frames = h2::opening(&[(h2::INITIAL_WINDOW_SIZE, 0)]);
                for stream in 0..100 {
                    frames.extend(h2::request(1 + 2 * stream, "GET", &self.blob, true));
                }
                stream.write_all(&frames).await?;
                Ok(closed(&mut stream).await)
            }
        }
    }
}

/// Sends `head`, then a byte now and then; true once the node has ended the connection, with or without an answer.
async fn dribble(stream: TcpStream, head: String) -> bool {
    let (mut reading, mut writing) = stream.into_split();
    if writing.write_all(head.as_bytes()).await.is_err() {
        return true;
    }
    let dribbling = async {
        while writing.write_all(b"a").await.is_ok() {
            sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::select! {
        () = dribbling => true,
        closed = async { loop_to_end(&mut reading).await } => closed,
    }
}

/// Reads until the node ends the connection.
async fn closed(stream: &mut TcpStream) -> bool {
    loop_to_end(stream).await
}

async fn loop_to_end(stream: &mut (impl AsyncReadExt + Unpin)) -> bool {
    let mut buffer = [0; 4096];
    while stream.read(&mut buffer).await.unwrap_or(0) > 0 {}
    true
}

/// Sends frames of a kind as fast as they are taken; true if the node ended the connection.
async fn flood(stream: TcpStream, kind: Kind) -> bool {
    let (mut reading, mut writing) = stream.into_split();
    let mut frames = h2::opening(&[]);
    match kind {
        Kind::Continuations => frames.extend(h2::frame(h2::HEADERS, 0, 1, &h2::head("GET", "/v2/"))),
        Kind::EmptyData => frames.extend(h2::request(1, "POST", UPLOAD, false)),
        _ => {}
    }
    let flooding = async {
        let mut sent = writing.write_all(&frames).await;
        for round in 0u32.. {
            if sent.is_err() {
                return;
            }
            let mut frames = Vec::new();
            for at in 0..100 {
                match kind {
                    Kind::RapidReset => {
                        let stream = 1 + 2 * (round * 100 + at);
                        frames.extend(h2::request(stream, "GET", "/v2/", true));
                        frames.extend(h2::frame(h2::RST_STREAM, 0, stream, &8u32.to_be_bytes()));
                    }
                    Kind::Continuations => frames.extend(h2::frame(h2::CONTINUATION, 0, 1, &[0x00, 1, b'x', 1, b'y'])),
                    Kind::EmptyData => frames.extend(h2::frame(h2::DATA, 0, 1, &[])),
                    _ => frames.extend(h2::frame(h2::SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100])),
                }
            }
            sent = writing.write_all(&frames).await;
        }
    };
    tokio::select! {
        () = flooding => true,
        closed = loop_to_end(&mut reading) => closed,
    }
}

/// Pushes and pulls small images at node 1 until told to stop; returns how many, and the longest that one took.
async fn behave(client: Client, seed: u64, stop: Arc<AtomicBool>) -> Result<(usize, Duration)> {
    let ledger = Ledger::with_blobs_up_to(50_000);
    let mut random = StdRng::seed_from_u64(seed);
    let (mut count, mut slowest) = (0, Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        count += 1;
        let pushed = push_image(&client, &ledger, &mut random, "chaos/good", &format!("v{count}")).await;
        let Pushed::Acked(image) = pushed else { bail!("a push beside bad clients failed: {:?}", ledger.violations()) };
        for blob in &image.blobs {
            let mut body = client.open(0, &format!("/v2/chaos/good/blobs/{blob}")).await?;
            while let Some(frame) = body.frame().await {
                frame?;
            }
        }
        slowest = slowest.max(began.elapsed());
        sleep(Duration::from_millis(50)).await;
    }
    ensure!(ledger.unavailable.load(Ordering::Relaxed) == 0, "503 beside bad clients");
    Ok((count, slowest))
}

/// Frames of HTTP/2 (RFC 9113), as a client that wants no good would send them.
mod h2 {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const CONTINUATION: u8 = 9;
    pub(super) const INITIAL_WINDOW_SIZE: u16 = 4;
    const END_STREAM: u8 = 1;
    const END_HEADERS: u8 = 4;

    pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    }

    /// The client's preface with its settings.
    pub(super) fn opening(settings: &[(u16, u32)]) -> Vec<u8> {
        let payload: Vec<u8> =
            settings.iter().flat_map(|(key, value)| [&key.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, &payload)].concat()
    }

    /// A header block without compression: method, path, scheme, authority.
    pub(super) fn head(method: &str, path: &str) -> Vec<u8> {
        let mut block = Vec::new();
        for (name, value) in [(":method", method), (":path", path), (":scheme", "http"), (":authority", "registry")] {
            block.push(0);
            for text in [name, value] {
                // Up to 126 bytes fit into the prefix; a longer text says the rest in a second byte.
                let length = text.len();
                if length < 127 {
                    block.push(u8::try_from(length).expect("short"));
                } else {
                    block.extend([127, u8::try_from(length - 127).expect("a short path")]);
                }
                block.extend(text.as_bytes());
            }
        }
        block
    }

    pub(super) fn request(stream: u32, method: &str, path: &str, ends: bool) -> Vec<u8> {
        let flags = END_HEADERS | if ends { END_STREAM } else { 0 };
        frame(HEADERS, flags, stream, &head(method, path))
    }
}
