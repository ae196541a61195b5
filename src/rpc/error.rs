//! What can go wrong between this node and its peers.

use std::io;
use std::path::PathBuf;

use crate::topology::{ClusterId, NodeId};

/// Says what kept a certificate, a connection or a join from being made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No address of the node is known: it was removed, or the agreed state has not named it yet.
    #[error("node {node} is not in the topology")]
    PeerUnknown {
        /// The node asked for.
        node: NodeId,
    },
    /// The address of the node is not `host:port`.
    #[error("address {address:?} of node {node} is not host:port")]
    Address {
        /// The node asked for.
        node: NodeId,
        /// Its address in the topology.
        address: String,
    },
    /// This node has no identity yet, so that it cannot speak as a member.
    #[error("node has no identity yet")]
    NoIdentity,
    /// A file could not be read, written or synced.
    #[error("{doing} {path:?}")]
    File {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the filesystem said.
        source: io::Error,
    },
    /// A file of the identity does not parse, or the files do not belong together.
    #[error("identity file {path:?}: {problem}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A file was written by a later version.
    #[error("{path:?} has version {version}, this binary knows only {known}")]
    Version {
        /// The file.
        path: PathBuf,
        /// The version in it.
        version: u32,
        /// The latest version known here.
        known: u32,
    },
    /// The directory holds agreed state or a log but no identity: it is not this node's to start afresh with.
    #[error(
        "{path:?} holds data but the directory has no identity: restore identity/ or start with an empty directory"
    )]
    DataWithoutIdentity {
        /// The directory that is not empty.
        path: PathBuf,
    },
    /// Everyone on the machine may read the secret.
    #[error("secret file {path:?} is open to every user of the machine (mode {mode:03o}): chmod it to 600")]
    SecretExposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The secret is too short to be one.
    #[error("secret file {path:?} holds {bytes} bytes, at least 32 random ones are needed (raw or as hex)")]
    SecretShort {
        /// The file.
        path: PathBuf,
        /// How many bytes it holds.
        bytes: usize,
    },
    /// The settings cannot form a cluster.
    #[error("bootstrap_expect is {expect} but {seeds} seeds are configured")]
    Expect {
        /// The configured count.
        expect: usize,
        /// How many distinct seeds there are.
        seeds: usize,
    },
    /// A certificate could not be made or read.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// TLS refused the certificate, the key or the peer.
    #[error("tls: {0}")]
    Tls(#[from] rustls::Error),
    /// The certificate names another node, cluster or epoch than it should.
    #[error("certificate names {found:?}, expected {expected}")]
    WrongName {
        /// What it should name.
        expected: String,
        /// The names found in it.
        found: Vec<String>,
    },
    /// The certificate's time is over and this node cannot sign a new one.
    #[error("certificate of node {node} in cluster {cluster} has expired and the CA key is not here to renew it")]
    Expired {
        /// The cluster.
        cluster: ClusterId,
        /// This node.
        node: NodeId,
    },
    /// The cluster went on under a later epoch without this node.
    #[error(
        "cluster {cluster} was recovered under epoch {epoch} without this node, which is of epoch {own}: run `rafthold \
         cluster forget`, then join it anew; its blobs are kept"
    )]
    Fenced {
        /// The cluster.
        cluster: ClusterId,
        /// Its epoch now.
        epoch: u64,
        /// This node's.
        own: u64,
    },
    /// A seed belongs to a cluster already: a new one is not begun beside it.
    #[error("seed {seed} belongs to cluster {cluster} already: join that one")]
    SeedInCluster {
        /// The seed's address.
        seed: String,
        /// Its cluster.
        cluster: ClusterId,
    },
    /// A new cluster is not begun in a data directory that belongs to one.
    #[error("the data directory belongs to node {node} of cluster {cluster} already")]
    MemberAlready {
        /// Its cluster.
        cluster: ClusterId,
        /// Its id.
        node: NodeId,
    },
    /// A new cluster is not begun by a node that has promised itself to one.
    #[error("this node has promised itself to cluster {cluster}; if that one will never be, remove the file `promise`")]
    PromisedAlready {
        /// That cluster.
        cluster: ClusterId,
    },
    /// This node joined by a token and cannot sign certificates.
    #[error("the CA key is not on this node")]
    NoAuthority,
    /// The listener could not be bound.
    #[error("listen on {address}")]
    Listen {
        /// The address.
        address: String,
        /// What the socket said.
        source: io::Error,
    },
    /// The address could not be reached in time.
    #[error("connect to {address}")]
    Connect {
        /// The address.
        address: String,
        /// What the socket or the handshake said.
        source: io::Error,
    },
    /// The node is stopping.
    #[error("node is stopping")]
    Stopped,
}

/// The result of what this module does.
pub type Result<T, E = Error> = std::result::Result<T, E>;
