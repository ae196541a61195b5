//! The certificate that clients see.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// Says why a certificate and its key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or holds no PEM of the wanted kind.
    #[error("read {path}", path = path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: rustls_pki_types::pem::Error,
    },
    /// The key's file can be read by others.
    #[error("{path} can be read by others: mode {mode:o}, want 600", path = path.display())]
    KeyIsOpen {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The key does not belong to the certificate, or its kind is not known.
    #[error("certificate {path} cannot be used", path = path.display())]
    Unusable {
        /// The certificate's file.
        path: PathBuf,
        /// Why not.
        source: rustls::Error,
    },
}

/// How often it is looked whether the files are others than before.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// The certificate in two files, and what accepts connections by it; new files count from the next connection on.
pub(crate) struct Certificate {
    cert: PathBuf,
    key: PathBuf,
    current: RwLock<(TlsAcceptor, Looks)>,
}

/// How the two files looked when they were read.
type Looks = [Option<(SystemTime, u64, u64)>; 2];

impl Certificate {
    /// Reads a certificate and its key.
    ///
    /// # Errors
    ///
    /// [`TlsError`]; a key that others can read is refused.
    pub(crate) fn read(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        let looks = looks(cert, key);
        let current = RwLock::new((acceptor(cert, key)?, looks));
        Ok(Self { cert: cert.to_owned(), key: key.to_owned(), current })
    }

    /// What accepts the next connection.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        self.current.read().expect("no panic while held").0.clone()
    }

    /// Reads the files again if they are others than before; what cannot be used leaves the old certificate in place.
    pub(crate) fn reload(&self) {
        let now = looks(&self.cert, &self.key);
        if self.current.read().expect("no panic while held").1 == now {
            return;
        }
        let read = acceptor(&self.cert, &self.key);
        let mut current = self.current.write().expect("no panic while held");
        current.1 = now;
        match read {
            Ok(acceptor) => {
                current.0 = acceptor;
                tracing::info!(path = %self.cert.display(), "certificate read again");
            }
            // As a rule one of the two files is new already and the other is not: the next look finds both.
            Err(error) => {
                tracing::warn!(
                    error = crate::rpc::describe(&error),
                    "certificate could not be read: the old one stays"
                );
            }
        }
    }

    /// Looks now and then for other files. Never ends.
    pub(crate) async fn watch(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let certificate = Arc::clone(&self);
            // A look that panicked is told by the next one.
            tokio::task::spawn_blocking(move || certificate.reload()).await.ok();
        }
    }
}

fn looks(cert: &Path, key: &Path) -> Looks {
    [cert, key].map(|path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
    })
}

/// Reads a certificate chain and its key into what accepts TLS connections (1.2 and 1.3, HTTP/2 and HTTP/1.1).
fn acceptor(cert: &Path, key: &Path) -> Result<TlsAcceptor, TlsError> {
    let read = |path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::Read { path, source }
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(cert).map_err(read(cert))?.collect();
    let chain = chain.map_err(read(cert))?;
    if let Ok(metadata) = std::fs::metadata(key) {
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o007 != 0 {
            return Err(TlsError::KeyIsOpen { path: key.into(), mode });
        }
    }
    let key = PrivateKeyDer::from_pem_file(key).map_err(read(key))?;
    let unusable = |source| TlsError::Unusable { path: cert.into(), source };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(unusable)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::ServerName;
    use tokio_rustls::TlsConnector;

    use super::*;

    /// Writes a certificate for `localhost` and its key, and returns the certificate.
    fn renew(dir: &Path) -> CertificateDer<'static> {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(dir.join("crt"), made.cert.pem()).unwrap();
        std::fs::write(dir.join("key"), made.signing_key.serialize_pem()).unwrap();
        std::fs::set_permissions(dir.join("key"), std::fs::Permissions::from_mode(0o600)).unwrap();
        made.cert.der().clone()
    }

    /// Whether a client that trusts only `trusted` gets a connection.
    async fn connects(certificate: &Certificate, trusted: &CertificateDer<'static>) -> bool {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(trusted.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let client =
            rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let client = TlsConnector::from(Arc::new(client.with_root_certificates(roots).with_no_client_auth()));
        let (near, far) = tokio::io::duplex(64 << 10);
        let name = ServerName::try_from("localhost").unwrap();
        let (connected, accepted) = tokio::join!(client.connect(name, near), certificate.acceptor().accept(far));
        connected.is_ok() && accepted.is_ok()
    }

    #[tokio::test]
    async fn a_renewed_certificate_is_shown_from_the_next_connection_on_and_a_broken_one_never() {
        let dir = tempfile::tempdir().unwrap();
        let first = renew(dir.path());
        let certificate = Certificate::read(&dir.path().join("crt"), &dir.path().join("key")).unwrap();
        assert!(connects(&certificate, &first).await);
        std::fs::write(dir.path().join("crt"), "half of a certificate").unwrap();
        certificate.reload();
        assert!(connects(&certificate, &first).await, "the old one stays");
        let second = renew(dir.path());
        certificate.reload();
        assert!(!connects(&certificate, &first).await && connects(&certificate, &second).await);
    }
}
