//! TLS between nodes: version 1.3 only, both ends named by the cluster's own authority.

use std::fmt;
use std::sync::{Arc, LazyLock, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::env::{Clock, Env};
use crate::topology::NodeId;

use super::identity::{fingerprint, private_key};
use super::{Error, Identity, NodeUri, Result, ca};

const VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    let mut provider = aws_lc_rs::default_provider();
    // The fastest on machines with AES instructions, and as good as the others here.
    provider.cipher_suites = vec![
        aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
        aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(provider)
});

fn algorithms() -> WebPkiSupportedAlgorithms {
    PROVIDER.signature_verification_algorithms
}

/// What this node shows and demands on its connections; replaced as a whole when the node gets or renews its identity.
#[derive(Clone)]
pub struct Credentials {
    clock: ClockTime,
    current: Arc<RwLock<Arc<Current>>>,
}

/// One state of the credentials: a connection keeps the one it began with.
pub(super) struct Current {
    pub(super) identity: Option<Identity>,
    pub(super) server: Arc<ServerConfig>,
    /// SHA-256 of the certificate that `server` shows; bootstrap proofs are bound to it.
    pub(super) fingerprint: [u8; 32],
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("identity", &self.current().identity).finish()
    }
}

impl Credentials {
    /// Starts without an identity: a self-signed certificate, good for the bootstrap service only.
    ///
    /// # Errors
    ///
    /// [`Error::Certificate`] or [`Error::Tls`] if the crypto library refuses.
    pub fn anonymous(env: &Env) -> Result<Self> {
        let clock = ClockTime(env.clock.clone());
        let key = ca::new_key()?;
        let certificate = ca::self_signed(env, &key)?;
        let server = server_builder(&clock)?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], private_key(&key))?;
        let current = Current { identity: None, server: finish(server), fingerprint: fingerprint(&certificate) };
        Ok(Self { clock, current: Arc::new(RwLock::new(Arc::new(current))) })
    }

    /// Starts with an identity.
    ///
    /// # Errors
    ///
    /// As [`Credentials::anonymous`].
    pub fn of(env: &Env, identity: Identity) -> Result<Self> {
        let credentials = Self::anonymous(env)?;
        credentials.install(identity)?;
        Ok(credentials)
    }

    /// Shows and demands `identity` on every connection made from now on.
    ///
    /// # Errors
    ///
    /// [`Error::Tls`] if the crypto library refuses the certificate or key.
    pub fn install(&self, identity: Identity) -> Result<()> {
        let verifier = MemberVerifier::new(&identity)?;
        let server = server_builder(&self.clock)?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_single_cert(vec![identity.certificate().clone()], identity.key())?;
        let fingerprint = fingerprint(identity.certificate());
        let current = Arc::new(Current { identity: Some(identity), server: finish(server), fingerprint });
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = current;
        Ok(())
    }

    /// This node's identity, once it has one.
    #[must_use]
    pub fn identity(&self) -> Option<Identity> {
        self.current().identity.clone()
    }

    /// How long this node's certificate is still good; nothing before it has one.
    #[must_use]
    pub fn life_left(&self) -> Option<Duration> {
        let identity = self.identity()?;
        ca::life_left(identity.certificate(), self.clock.0.now()).ok()
    }

    /// Whether this node can sign for others: it can unless it joined by a token.
    #[must_use]
    pub fn can_sign(&self) -> bool {
        self.identity().is_some_and(|identity| identity.ca().can_sign())
    }

    pub(super) fn current(&self) -> Arc<Current> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Settings for a connection to one node of the same cluster and epoch, and to nobody else.
    ///
    /// # Errors
    ///
    /// - [`Error::NoIdentity`] before the node has one.
    /// - [`Error::Tls`] if the crypto library refuses the certificate or key.
    pub(super) fn client(&self, peer: NodeId) -> Result<Arc<ClientConfig>> {
        let identity = self.identity().ok_or(Error::NoIdentity)?;
        let verifier = NodeVerifier { roots: roots(&identity)?, expected: NodeUri { node: peer, ..identity.uri() } };
        let mut config = client_builder(&self.clock)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(vec![identity.certificate().clone()], identity.key())?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }

    /// Settings for asking a seed that is not known yet: takes any certificate, as the proofs in the calls are bound to it.
    ///
    /// # Errors
    ///
    /// [`Error::Tls`] if the crypto library refuses.
    pub(super) fn stranger(&self) -> Result<Arc<ClientConfig>> {
        let mut config = client_builder(&self.clock)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyVerifier))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}

fn client_builder(clock: &ClockTime) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>> {
    let builder = ClientConfig::builder_with_details(PROVIDER.clone(), Arc::new(clock.clone()));
    Ok(builder.with_protocol_versions(VERSIONS)?)
}

fn server_builder(clock: &ClockTime) -> Result<rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier>> {
    let builder = ServerConfig::builder_with_details(PROVIDER.clone(), Arc::new(clock.clone()));
    Ok(builder.with_protocol_versions(VERSIONS)?)
}

fn finish(mut config: ServerConfig) -> Arc<ServerConfig> {
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would bring back a certificate that was checked long ago.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Arc::new(config)
}

fn roots(identity: &Identity) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(identity.ca().certificate().clone())?;
    Ok(roots)
}

/// Checks that `certificate` was signed by the authority and is good at `now`.
///
/// # Errors
///
/// [`Error::Tls`] if not.
pub(super) fn check_chain(
    authority: &CertificateDer<'static>,
    certificate: &CertificateDer<'_>,
    now: SystemTime,
) -> Result<()> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone())?;
    let parsed = ParsedCertificate::try_from(certificate)?;
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = UnixTime::since_unix_epoch(since);
    verify_server_cert_signed_by_trust_anchor(&parsed, &roots, &[], now, algorithms().all)?;
    Ok(())
}

/// The wall clock of [`Env`], as rustls asks for it.
#[derive(Clone)]
struct ClockTime(Arc<dyn Clock>);

impl fmt::Debug for ClockTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClockTime")
    }
}

impl TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        self.0.now().duration_since(SystemTime::UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}

fn refused(error: Error) -> rustls::Error {
    rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

/// Takes exactly one node.
#[derive(Debug)]
struct NodeVerifier {
    roots: RootCertStore,
    expected: NodeUri,
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms().all)?;
        let found = NodeUri::of_certificate(end_entity).map_err(refused)?;
        if found == self.expected {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(refused(Error::WrongName { expected: self.expected.to_string(), found: vec![found.to_string()] }))
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken between nodes".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

/// Takes any certificate whose key the far end has.
#[derive(Debug)]
struct AnyVerifier;

impl ServerCertVerifier for AnyVerifier {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken between nodes".to_owned()))
    }

    // Not skipped: it is what ties the certificate in the proofs to this very connection.
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

#[cfg(test)]
pub(super) fn any_verifier() -> Arc<dyn ServerCertVerifier> {
    Arc::new(AnyVerifier)
}

/// Takes any node of one cluster and epoch, and connections without a certificate.
#[derive(Debug)]
struct MemberVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    own: NodeUri,
}

impl MemberVerifier {
    fn new(identity: &Identity) -> Result<Self> {
        let chain = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(identity)?), PROVIDER.clone())
            .build()
            .map_err(|error| Error::Tls(rustls::Error::General(error.to_string())))?;
        Ok(Self { chain, own: identity.uri() })
    }
}

impl ClientCertVerifier for MemberVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false // the bootstrap service is for those who have none yet; the server refuses them everything else
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        let found = NodeUri::of_certificate(end_entity).map_err(refused)?;
        if (found.cluster, found.epoch) == (self.own.cluster, self.own.epoch) {
            Ok(verified)
        } else {
            let expected = format!("a node of {} in epoch {}", self.own.cluster, self.own.epoch);
            Err(refused(Error::WrongName { expected, found: vec![found.to_string()] }))
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken between nodes".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
