//! Hands the process its wall clock, sockets, random seed and task spawner so that tests can hand it others.
//!
//! Owns nothing. [`Clock`] is only for *stored* times; durations and timers use tokio's clock, which tests pause.
//! Start reading at [`Env`].

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket};

/// A boxed future, as the seams below return it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Everything of the outer world that a test or simulation replaces.
#[derive(Clone)]
pub struct Env {
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
    /// The network.
    pub net: Arc<dyn Net>,
    /// The source of random numbers.
    pub seed: Seed,
    /// Runs work that must outlive the call that began it, supervised by the node.
    pub spawner: Arc<dyn Spawner>,
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Env").finish_non_exhaustive()
    }
}

/// Tells the wall-clock time, for display and for the lives of certificates; nothing is decided by it (P7).
pub trait Clock: Send + Sync + 'static {
    /// Returns the time now.
    fn now(&self) -> SystemTime;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the machine's clock")]
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// A connected byte stream.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// A connected byte stream of either network.
pub type Stream = Box<dyn Io>;

/// Binds listeners and opens connections; addresses are `host:port`.
pub trait Net: Send + Sync + 'static {
    /// Listens on `address`; port 0 asks for a free one.
    fn bind<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>>;
    /// Connects to `address`.
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Stream>>;
}

/// A bound listener.
pub trait Listener: Send + Sync + 'static {
    /// Waits for a connection; the text is the address of the far end.
    fn accept(&self) -> BoxFuture<'_, io::Result<(Stream, std::net::SocketAddr)>>;
    /// Returns the address it is bound to.
    ///
    /// # Errors
    ///
    /// Whatever the socket says.
    fn local_address(&self) -> io::Result<std::net::SocketAddr>;
}

/// Connections that may wait to be accepted: when every client comes back at once, the kernel must not turn them away.
const BACKLOG: u32 = 4096;

/// Binds the first of the address's meanings that can be bound.
async fn listen(address: &str) -> io::Result<TcpListener> {
    let mut failed = io::Error::new(io::ErrorKind::AddrNotAvailable, "the name has no address");
    for meaning in tokio::net::lookup_host(address).await? {
        let bind = || {
            let socket = if meaning.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            socket.set_reuseaddr(true)?;
            socket.bind(meaning)?;
            socket.listen(BACKLOG)
        };
        match bind() {
            Ok(listener) => return Ok(listener),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// The machine's TCP.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpNet;

impl Net for TcpNet {
    fn bind<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let listener = listen(address).await?;
            Ok(Box::new(listener) as Box<dyn Listener>)
        })
    }

    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move {
            let stream = tokio::net::TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Stream)
        })
    }
}

impl Listener for tokio::net::TcpListener {
    fn accept(&self) -> BoxFuture<'_, io::Result<(Stream, std::net::SocketAddr)>> {
        Box::pin(async move {
            let (stream, peer) = Self::accept(self).await?;
            stream.set_nodelay(true)?;
            Ok((Box::new(stream) as Stream, peer))
        })
    }

    fn local_address(&self) -> io::Result<std::net::SocketAddr> {
        self.local_addr()
    }
}

/// A shared source of random numbers; a fixed seed makes a run repeatable.
#[derive(Clone)]
pub struct Seed(Arc<Mutex<StdRng>>);

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed")
    }
}

impl Seed {
    /// Seeds from the operating system.
    #[must_use]
    pub fn from_os() -> Self {
        Self(Arc::new(Mutex::new(StdRng::from_os_rng())))
    }

    /// Seeds from a number, for repeatable runs.
    #[must_use]
    pub fn fixed(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    /// Fills `bytes`.
    ///
    /// # Panics
    ///
    /// Only if a draw has panicked before.
    pub fn fill(&self, bytes: &mut [u8]) {
        self.0.lock().expect("no panic while drawing").fill_bytes(bytes);
    }

    /// Draws 64 bits.
    ///
    /// # Panics
    ///
    /// Only if a draw has panicked before.
    #[must_use]
    pub fn draw_u64(&self) -> u64 {
        self.0.lock().expect("no panic while drawing").next_u64()
    }

    /// Draws 128 bits, enough for an identity.
    #[must_use]
    pub fn draw_u128(&self) -> u128 {
        let mut bytes = [0; 16];
        self.fill(&mut bytes);
        u128::from_be_bytes(bytes)
    }
}

/// Runs a future that must outlive the call that began it (a broken upload's rescue, a running fetch).
///
/// The node counts such work, waits for it when it stops, and ends itself when one panics.
pub trait Spawner: Send + Sync + 'static {
    /// Starts `work`; `name` is a constant text for logs.
    fn spawn(&self, name: &'static str, work: BoxFuture<'static, ()>);
}
