//! Which connection a call travels on, and which threads serve it.

use std::future::Future;
use std::pin::Pin;

use rustls_pki_types::ServerName;
use tokio::runtime::Handle;

/// Which connection to a peer a call travels on: bulk bytes never delay a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// Raft's own messages.
    Raft,
    /// Everything small: proposals, read indexes, gossip, questions.
    Control,
    /// Bytes of blobs and snapshots.
    Bulk,
}

impl Lane {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Raft => "raft",
            Self::Control => "control",
            Self::Bulk => "bulk",
        }
    }

    /// The name by which the connecting side tells the lane in the TLS handshake; it proves nothing.
    pub(super) fn server_name(self) -> ServerName<'static> {
        let name = match self {
            Self::Raft => "raft.rafthold.internal",
            Self::Control => "control.rafthold.internal",
            Self::Bulk => "bulk.rafthold.internal",
        };
        ServerName::try_from(name).expect("a constant host name")
    }

    pub(super) fn of_server_name(name: Option<&str>) -> Self {
        match name {
            Some("raft.rafthold.internal") => Self::Raft,
            Some("bulk.rafthold.internal") => Self::Bulk,
            _ => Self::Control,
        }
    }

    /// Bytes that may be under way unread on one stream, and on one connection.
    ///
    /// Bulk: a stream whose reader is slow holds back its own 1 MiB and no more, so that it takes thirty such readers to
    /// hold up the others on the connection, and memory stays small. The others carry small messages.
    pub(super) const fn windows(self) -> (u32, u32) {
        match self {
            Self::Raft => (4 << 20, 8 << 20),
            Self::Control => (1 << 20, 4 << 20),
            Self::Bulk => (1 << 20, 32 << 20),
        }
    }
}

/// The thread pools that carry connections: raft's messages have their own, where nothing may block them.
#[derive(Debug, Clone)]
pub struct Runtimes {
    /// Carries [`Lane::Raft`].
    pub raft: Handle,
    /// Carries the other lanes.
    pub rest: Handle,
}

impl Runtimes {
    /// The runtime this is called on, for everything.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    #[must_use]
    pub fn current() -> Self {
        Self { raft: Handle::current(), rest: Handle::current() }
    }

    pub(super) fn of(&self, lane: Lane) -> &Handle {
        match lane {
            Lane::Raft => &self.raft,
            Lane::Control | Lane::Bulk => &self.rest,
        }
    }
}

/// Runs the pieces of an HTTP/2 connection on one runtime; they end with the connection.
#[derive(Debug, Clone)]
pub(super) struct On(pub(super) Handle);

impl<F> hyper::rt::Executor<F> for On
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, work: F) {
        let boxed: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(work);
        drop(self.0.spawn(boxed));
    }
}
