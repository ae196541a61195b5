//! Who this node is: its id, its certificate and key, and the cluster's authority.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{KeyPair, PublicKeyData};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

use crate::env::Env;
use crate::topology::{ClusterId, NodeId, NodeRecord};

use super::ca::{self, ClusterCa, NODE_LIFE};
use super::files;
use super::{Error, NodeUri, Result};

/// The recovery epoch of a cluster that never had to be recovered by hand.
pub(super) const FIRST_EPOCH: u64 = 1;
const VERSION: u32 = 1;

/// A node's place in a cluster, with what proves it; cheap to clone.
#[derive(Clone)]
pub struct Identity {
    uri: NodeUri,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    key: Arc<KeyPair>,
    ca: Arc<ClusterCa>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.uri.to_string()).finish()
    }
}

impl Identity {
    /// The cluster this node belongs to.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.uri.cluster
    }

    /// This node's id.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.uri.node
    }

    /// The recovery epoch of the cluster.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.uri.epoch
    }

    pub(super) fn uri(&self) -> NodeUri {
        self.uri
    }

    pub(super) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    pub(super) fn key(&self) -> PrivateKeyDer<'static> {
        private_key(&self.key)
    }

    pub(super) fn ca(&self) -> &ClusterCa {
        &self.ca
    }

    /// SHA-256 of the node's public key: binds an id to the first key that asked for it (P10).
    #[must_use]
    pub fn key_fingerprint(&self) -> [u8; 32] {
        fingerprint(&self.key.subject_public_key_info())
    }

    /// Makes the first node's identity and the cluster's authority.
    pub(super) fn found(env: &Env, uri: NodeUri, key: Arc<KeyPair>) -> Result<Self> {
        let ca = ClusterCa::generate(env, uri.cluster)?;
        let certificate_pem = ca.sign(env, uri, &*key)?;
        Self::put_together(uri, certificate_pem, key, Arc::new(ca))
    }

    /// Puts together what another node signed, and checks that it belongs together.
    ///
    /// # Errors
    ///
    /// - [`Error::WrongName`] if the certificate names another node.
    /// - [`Error::Certificate`] or [`Error::Tls`] if it is for another key or not signed by the authority.
    pub(super) fn assemble(env: &Env, uri: NodeUri, key: Arc<KeyPair>, pems: &Pems) -> Result<Self> {
        let ca = ClusterCa::from_pem(&pems.ca_certificate, pems.ca_key.as_deref())?;
        let identity = Self::put_together(uri, pems.certificate.clone(), key, Arc::new(ca))?;
        identity.check(env)?;
        Ok(identity)
    }

    fn put_together(uri: NodeUri, certificate_pem: String, key: Arc<KeyPair>, ca: Arc<ClusterCa>) -> Result<Self> {
        Ok(Self { uri, certificate: ca::certificate_from_pem(&certificate_pem)?, certificate_pem, key, ca })
    }

    fn check(&self, env: &Env) -> Result<()> {
        let named = NodeUri::of_certificate(&self.certificate)?;
        if named != self.uri {
            return Err(Error::WrongName { expected: self.uri.to_string(), found: vec![named.to_string()] });
        }
        if ca::public_key_of(&self.certificate)? != self.key.subject_public_key_info() {
            return Err(Error::Certificate(rcgen::Error::CouldNotParseKeyPair));
        }
        super::tls::check_chain(self.ca.certificate(), &self.certificate, env.clock.now())
    }

    /// Whether less than a third of the certificate's life is left.
    pub(super) fn is_due(&self, env: &Env) -> Result<bool> {
        Ok(ca::life_left(&self.certificate, env.clock.now())? < NODE_LIFE / 3)
    }

    /// Takes on a certificate that another node signed for the same key.
    ///
    /// # Errors
    ///
    /// As [`Identity::assemble`].
    pub(super) fn with_certificate(&self, env: &Env, certificate_pem: String) -> Result<Self> {
        let renewed = Self::put_together(self.uri, certificate_pem, self.key.clone(), self.ca.clone())?;
        renewed.check(env)?;
        Ok(renewed)
    }

    /// Asks for a certificate for the same key.
    pub(super) fn request(&self) -> Result<Vec<u8>> {
        ca::request(&self.key)
    }

    /// Signs a fresh certificate for the same key when less than a third of this one's life is left and this node can sign.
    ///
    /// # Errors
    ///
    /// [`Error::Certificate`] if the crypto library refuses.
    pub(super) fn renewed(&self, env: &Env) -> Result<Option<Self>> {
        if !self.is_due(env)? || !self.ca.can_sign() {
            return Ok(None);
        }
        let certificate_pem = self.ca.sign(env, self.uri, &*self.key)?;
        Self::put_together(self.uri, certificate_pem, self.key.clone(), self.ca.clone()).map(Some)
    }
}

/// The certificates and the authority's key as text, as they travel in the answer to a join.
pub(super) struct Pems {
    pub(super) certificate: String,
    pub(super) ca_certificate: String,
    /// Not for a node that joins by a token.
    pub(super) ca_key: Option<String>,
}

pub(super) fn private_key(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()))
}

/// SHA-256 of some bytes: how certificates and keys are compared.
pub(super) fn fingerprint(bytes: &[u8]) -> [u8; 32] {
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    hash.as_ref().try_into().expect("SHA-256 is 32 bytes")
}

/// What `identity/node.json` says; its presence is what makes the other files an identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NodeFile {
    version: u32,
    pub(super) cluster: ClusterId,
    pub(super) epoch: u64,
    pub(super) node: NodeId,
    /// The node has run its consensus at least once: from then on an empty log is a lost log.
    pub(super) started: bool,
    /// This node forms the cluster: how many nodes it expects. Cleared once consensus has begun.
    pub(super) initialise: Option<usize>,
    /// Where the other nodes were when this one joined, until the agreed state says better.
    pub(super) nodes: Vec<NodeRecord>,
}

/// Reads which node of which cluster a data directory is of, and nothing else; `None` if it is of none yet. Blocks.
///
/// # Errors
///
/// [`Error::Damaged`], [`Error::Version`] or [`Error::File`] if that cannot be told.
pub fn whose(data_dir: &Path) -> Result<Option<(ClusterId, NodeId)>> {
    let path = data_dir.join("identity").join("node.json");
    let Some(text) = files::read_optional(&path)? else { return Ok(None) };
    files::check_version(&path, &text, VERSION)?;
    let file: NodeFile =
        serde_json::from_str(&text).map_err(|error| Error::Damaged { path, problem: error.to_string() })?;
    Ok(Some((file.cluster, file.node)))
}

/// Reads the identity in a data directory, if there is one; blocks.
///
/// # Errors
///
/// [`Error::Damaged`], [`Error::Version`], [`Error::Expired`] or [`Error::File`].
pub fn load_identity(env: &Env, data_dir: &Path) -> Result<Option<Identity>> {
    IdentityDir::finish_exchange(data_dir)?;
    Ok(IdentityDir::of(data_dir).load(env)?.map(|(identity, _)| identity))
}

/// Puts a data directory's node under the next epoch and a new authority, which shuts out whoever has a certificate by the
/// old one; blocks.
///
/// # Errors
///
/// As [`load_identity`]; [`Error::NoIdentity`] if there is none. The old identity stands then, or the new one whole.
pub fn renew_epoch(env: &Env, data_dir: &Path) -> Result<Identity> {
    IdentityDir::finish_exchange(data_dir)?;
    let (old, file) = IdentityDir::of(data_dir).load(env)?.ok_or(Error::NoIdentity)?;
    let uri = NodeUri { epoch: old.uri.epoch + 1, ..old.uri };
    let renewed = Identity::found(env, uri, old.key.clone())?;
    // The others' old addresses are of no use: whoever is there answers to another authority.
    let renewed_file = NodeFile { epoch: uri.epoch, nodes: Vec::new(), initialise: None, ..file };
    IdentityDir { dir: data_dir.join(NEXT) }.store(&renewed, &renewed_file)?;
    IdentityDir::finish_exchange(data_dir)?;
    Ok(renewed)
}

/// A whole identity that is about to take the place of the old one.
const NEXT: &str = "identity.next";

/// The identity directory of one data directory. All calls block.
#[derive(Debug, Clone)]
pub(super) struct IdentityDir {
    dir: PathBuf,
}

impl IdentityDir {
    pub(super) fn of(data_dir: &Path) -> Self {
        Self { dir: data_dir.join("identity") }
    }

    /// Puts a new identity, once it is whole, in the place of the old one; does what a crash left undone.
    pub(super) fn finish_exchange(data_dir: &Path) -> Result<()> {
        let (next, own) = (data_dir.join(NEXT), data_dir.join("identity"));
        if !next.join("node.json").exists() {
            return Ok(());
        }
        // Between the two renames there is none, and no node starts; the next call goes on.
        if own.exists() {
            files::replace_dir(&own, &data_dir.join("identity.old"))?;
        }
        files::replace_dir(&next, &own)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Reads the identity, and renews and rewrites its certificate when that is due.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`], [`Error::Version`] or [`Error::File`] if files are there that do not make an identity.
    pub(super) fn load(&self, env: &Env) -> Result<Option<(Identity, NodeFile)>> {
        let path = self.path("node.json");
        let Some(text) = files::read_optional(&path)? else { return Ok(None) };
        let damaged = |problem: String| Error::Damaged { path: path.clone(), problem };
        files::check_version(&path, &text, VERSION)?;
        let file: NodeFile = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        let key = self.load_key()?.ok_or_else(|| damaged("node.key is missing".to_owned()))?;
        let ca_key = files::read_optional(&self.path("ca.key"))?;
        let ca = ClusterCa::from_pem(&files::read(&self.path("ca.crt"))?, ca_key.as_deref())
            .map_err(|error| Error::Damaged { path: self.path("ca.key"), problem: error.to_string() })?;
        let uri = NodeUri { cluster: file.cluster, epoch: file.epoch, node: file.node };
        let mut identity = Identity::put_together(uri, files::read(&self.path("node.crt"))?, key, Arc::new(ca))
            .map_err(|error| Error::Damaged { path: self.path("node.crt"), problem: error.to_string() })?;
        if let Some(renewed) = identity.renewed(env)? {
            self.store_certificate(&renewed)?;
            identity = renewed;
        }
        if !identity.ca.can_sign() && ca::life_left(&identity.certificate, env.clock.now())?.is_zero() {
            return Err(Error::Expired { cluster: file.cluster, node: file.node });
        }
        identity
            .check(env)
            .map_err(|error| Error::Damaged { path: self.path("node.crt"), problem: error.to_string() })?;
        Ok(Some((identity, file)))
    }

    fn load_key(&self) -> Result<Option<Arc<KeyPair>>> {
        let path = self.path("node.key");
        let Some(text) = files::read_optional(&path)? else { return Ok(None) };
        let key = KeyPair::from_pem(&text).map_err(|error| Error::Damaged { path, problem: error.to_string() })?;
        Ok(Some(Arc::new(key)))
    }

    /// Returns the node's key, made durable before its first use: a join asked again with it gets the same id (P10).
    ///
    /// # Errors
    ///
    /// As [`IdentityDir::load`].
    pub(super) fn key(&self) -> Result<Arc<KeyPair>> {
        if let Some(key) = self.load_key()? {
            return Ok(key);
        }
        let key = ca::new_key()?;
        files::create_dir(&self.dir)?;
        files::write_private(&self.path("node.key"), key.serialize_pem().as_bytes())?;
        Ok(Arc::new(key))
    }

    /// Writes a new identity; `node.json` last, so that a crash leaves either all of it or none.
    ///
    /// # Errors
    ///
    /// [`Error::File`].
    pub(super) fn store(&self, identity: &Identity, file: &NodeFile) -> Result<()> {
        files::create_dir(&self.dir)?;
        if let Some(key) = identity.ca.key_pem() {
            files::write_private(&self.path("ca.key"), key.as_bytes())?;
        }
        files::write(&self.path("ca.crt"), identity.ca.certificate_pem().as_bytes())?;
        files::write_private(&self.path("node.key"), identity.key.serialize_pem().as_bytes())?;
        self.store_certificate(identity)?;
        self.store_file(file)
    }

    /// Replaces the certificate alone: after a renewal the key and all else stay.
    pub(super) fn store_certificate(&self, identity: &Identity) -> Result<()> {
        files::write(&self.path("node.crt"), identity.certificate_pem.as_bytes())
    }

    pub(super) fn store_file(&self, file: &NodeFile) -> Result<()> {
        let text = serde_json::to_string_pretty(file).expect("a plain record is JSON");
        files::write(&self.path("node.json"), text.as_bytes())
    }
}

impl NodeFile {
    pub(super) fn new(identity: &Identity, initialise: Option<usize>, nodes: Vec<NodeRecord>) -> Self {
        let NodeUri { cluster, epoch, node } = identity.uri;
        Self { version: VERSION, cluster, epoch, node, started: false, initialise, nodes }
    }
}
