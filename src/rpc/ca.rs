//! The cluster's own certificate authority.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};

use crate::env::Env;
use crate::topology::ClusterId;

use super::{Error, NodeUri, Result};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// How long the authority's certificate lives.
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How long a node's certificate lives.
pub(super) const NODE_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// How far a certificate's life begins in the past: the clocks of two nodes need not agree.
const BACKDATED: Duration = Duration::from_secs(2 * 24 * 3600);

const _: () = assert!(BACKDATED.as_secs() > DAY.as_secs(), "a clock that is a day wrong must not keep a node out");

/// Signs the certificates of a cluster's nodes. Every node that proved the cluster's secret has the key; one that joined by
/// a token has the certificate alone, and signs nothing.
pub(super) struct ClusterCa {
    certificate_pem: String,
    certificate: CertificateDer<'static>,
    key: Option<KeyPair>,
}

impl ClusterCa {
    /// Makes the authority of a new cluster.
    ///
    /// # Errors
    ///
    /// [`Error::Certificate`] if the crypto library refuses.
    pub(super) fn generate(env: &Env, cluster: ClusterId) -> Result<Self> {
        let key = new_key()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, format!("rafthold cluster {cluster}"));
        set_life(&mut params, env, CA_LIFE);
        let signed = params.self_signed(&key)?;
        Ok(Self { certificate_pem: signed.pem(), certificate: signed.der().clone(), key: Some(key) })
    }

    /// Reads the authority from its certificate's text and its key's, if that is here.
    ///
    /// # Errors
    ///
    /// [`Error::Certificate`] if either is no PEM, or the key is not the certificate's.
    pub(super) fn from_pem(certificate_pem: &str, key_pem: Option<&str>) -> Result<Self> {
        let key = key_pem.map(KeyPair::from_pem).transpose()?;
        let certificate = certificate_from_pem(certificate_pem)?;
        if let Some(key) = &key
            && public_key_of(&certificate)? != key.subject_public_key_info()
        {
            return Err(Error::Certificate(rcgen::Error::CouldNotParseKeyPair));
        }
        Ok(Self { certificate_pem: certificate_pem.to_owned(), certificate, key })
    }

    pub(super) fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    pub(super) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    pub(super) fn key_pem(&self) -> Option<String> {
        self.key.as_ref().map(KeyPair::serialize_pem)
    }

    /// Whether the key is here.
    pub(super) fn can_sign(&self) -> bool {
        self.key.is_some()
    }

    /// Signs a certificate for `uri` and the public key of `request`; nothing else of the request is taken over.
    ///
    /// # Errors
    ///
    /// [`Error::NoAuthority`] without the key, [`Error::Certificate`] if the request does not parse or is not signed with its
    /// own key.
    pub(super) fn sign_request(&self, env: &Env, uri: NodeUri, request: &[u8]) -> Result<String> {
        let request = CertificateSigningRequestDer::from(request);
        let request = CertificateSigningRequestParams::from_der(&request)?;
        self.sign(env, uri, &request.public_key)
    }

    /// Signs a certificate for `uri` and a public key.
    ///
    /// # Errors
    ///
    /// [`Error::NoAuthority`] without the key, [`Error::Certificate`] if the crypto library refuses.
    pub(super) fn sign(&self, env: &Env, uri: NodeUri, key: &impl PublicKeyData) -> Result<String> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(uri.to_string().try_into()?)];
        params.distinguished_name.push(DnType::CommonName, format!("rafthold node {}", uri.node));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        set_life(&mut params, env, NODE_LIFE);
        let key_of_authority = self.key.as_ref().ok_or(Error::NoAuthority)?;
        let issuer = Issuer::from_ca_cert_der(&self.certificate, key_of_authority)?;
        Ok(params.signed_by(key, &issuer)?.pem())
    }
}

/// Makes a key of the one kind used: ECDSA on P-256.
pub(super) fn new_key() -> Result<KeyPair> {
    Ok(KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?)
}

/// Makes a certificate that says nothing, for the time before a node has an identity.
pub(super) fn self_signed(env: &Env, key: &KeyPair) -> Result<CertificateDer<'static>> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "rafthold node without a cluster");
    set_life(&mut params, env, NODE_LIFE);
    Ok(params.self_signed(key)?.der().clone())
}

/// Asks for a certificate: carries the public key and proves that the private one is there.
pub(super) fn request(key: &KeyPair) -> Result<Vec<u8>> {
    Ok(CertificateParams::default().serialize_request(key)?.der().to_vec())
}

/// Reads the public key a request carries, in its DER form.
///
/// # Errors
///
/// [`Error::Certificate`] if the request does not parse or is not signed with its own key.
pub(super) fn public_key_of_request(request: &[u8]) -> Result<Vec<u8>> {
    let request = CertificateSigningRequestDer::from(request);
    Ok(CertificateSigningRequestParams::from_der(&request)?.public_key.subject_public_key_info())
}

pub(super) fn certificate_from_pem(text: &str) -> Result<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(text.as_bytes())
        .map_err(|_| Error::Certificate(rcgen::Error::CouldNotParseCertificate))
}

/// Returns the public key of a certificate in its DER form.
pub(super) fn public_key_of(certificate: &CertificateDer<'_>) -> Result<Vec<u8>> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|_| Error::Certificate(rcgen::Error::CouldNotParseCertificate))?;
    Ok(parsed.public_key().raw.to_vec())
}

/// Returns how much of a certificate's life is left at `now`; zero when it is over.
pub(super) fn life_left(certificate: &CertificateDer<'_>, now: SystemTime) -> Result<Duration> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|_| Error::Certificate(rcgen::Error::CouldNotParseCertificate))?;
    let end = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
    Ok((SystemTime::UNIX_EPOCH + Duration::from_secs(end)).duration_since(now).unwrap_or_default())
}

fn set_life(params: &mut CertificateParams, env: &Env, life: Duration) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = env.clock.now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    params.not_before = epoch + now.saturating_sub(BACKDATED);
    params.not_after = epoch + now + life;
    let mut serial = [0; 16];
    env.seed.fill(&mut serial);
    serial[0] &= 0x7f; // a positive integer
    params.serial_number = Some(SerialNumber::from_slice(&serial));
}
