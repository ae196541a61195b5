//! Asks a node's administration interface over HTTP, for the command line.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Builder;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// How long one request may take unless said otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of an answer.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Where Debian, Alpine and Fedora keep the certificates that the machine trusts.
const SYSTEM_CERTIFICATES: [&str; 2] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];

/// Says why a node could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a URL like `http://127.0.0.1:5000`.
    #[error("`{url}` is not a URL like http://127.0.0.1:5000")]
    Url {
        /// The text.
        url: String,
    },
    /// The trusted certificates cannot be read.
    #[error("read certificates {path}", path = path.display())]
    Certificates {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: rustls_pki_types::pem::Error,
    },
    /// The TLS settings make no sense.
    #[error("tls")]
    Tls {
        /// Why not.
        source: rustls::Error,
    },
    /// The node cannot be reached.
    #[error("connect to {address}")]
    Connect {
        /// `host:port`.
        address: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The connection broke.
    #[error("http")]
    Http {
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The node took too long.
    #[error("no answer in time")]
    Timeout,
    /// The node said no.
    #[error("{status}: {}", body.trim_end())]
    Refused {
        /// The status.
        status: StatusCode,
        /// What it said.
        body: String,
        /// The contents that it is about, if it named any.
        digests: Vec<String>,
    },
    /// The answer is not what was asked for.
    #[error("answer is not the expected JSON")]
    Answer {
        /// Where and why.
        source: serde_json::Error,
    },
    /// This machine could not do its part.
    #[error("runtime")]
    Io(#[source] std::io::Error),
}

/// A node's administration interface, as its clients see it.
#[derive(Debug, Clone)]
pub struct Client {
    host: String,
    address: String,
    login: Option<HeaderValue>,
    tls: Option<Arc<rustls::ClientConfig>>,
    timeout: Duration,
}

impl Client {
    /// Prepares to ask the node at `url`, trusting the certificates in `ca` (else the system's) where it is https.
    ///
    /// # Errors
    ///
    /// [`Error::Url`], [`Error::Certificates`] and [`Error::Tls`].
    pub fn new(url: &str, ca: Option<&Path>) -> Result<Self, Error> {
        let bad = || Error::Url { url: url.to_owned() };
        let uri: Uri = url.parse().map_err(|_| bad())?;
        let authority = uri.authority().ok_or_else(bad)?;
        let (tls, port) = match uri.scheme_str() {
            Some("http") => (None, 80),
            Some("https") => (Some(Arc::new(trust(ca)?)), 443),
            _ => return Err(bad()),
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let address = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(port));
        let login = authority.as_str().rsplit_once('@').map(|(login, _)| basic(login));
        Ok(Self { host, address, login, tls, timeout: TIMEOUT })
    }

    /// Takes user and password from `RAFTHOLD_USER` and `RAFTHOLD_PASSWORD` if the URL names none.
    #[must_use]
    pub fn with_login_from(mut self, variable: impl Fn(&str) -> Option<String>) -> Self {
        if let (None, Some(user), Some(password)) =
            (&self.login, variable("RAFTHOLD_USER"), variable("RAFTHOLD_PASSWORD"))
        {
            self.login = Some(basic(&format!("{user}:{password}")));
        }
        self
    }

    /// Waits up to `timeout` for each answer.
    #[must_use]
    pub fn patient(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Gets a document.
    ///
    /// # Errors
    ///
    /// [`Error::Connect`], [`Error::Http`], [`Error::Timeout`]; [`Error::Refused`] for every status but 200;
    /// [`Error::Answer`] if it is not JSON.
    pub async fn get(&self, path: &str) -> Result<Value, Error> {
        self.send(Request::get(path), Bytes::new()).await
    }

    /// Puts a document and returns the answer.
    ///
    /// # Errors
    ///
    /// As [`Client::get`].
    pub async fn put(&self, path: &str, body: &Value) -> Result<Value, Error> {
        self.send(json(Method::PUT, path), body.to_string().into()).await
    }

    /// Posts a document and returns the answer.
    ///
    /// # Errors
    ///
    /// As [`Client::get`].
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, Error> {
        self.send(json(Method::POST, path), body.to_string().into()).await
    }

    /// Deletes a document and returns the answer.
    ///
    /// # Errors
    ///
    /// As [`Client::get`].
    pub async fn delete(&self, path: &str) -> Result<Value, Error> {
        self.send(Request::delete(path), Bytes::new()).await
    }

    /// Says whether the node is in reach and ready to serve.
    pub async fn is_ready(&self) -> bool {
        // the answer is for people, and no JSON
        self.send_in_time(Request::get("/readyz"), Bytes::new()).await.is_ok()
    }

    async fn send(&self, request: Builder, body: Bytes) -> Result<Value, Error> {
        let answer = self.send_in_time(request, body).await?;
        serde_json::from_slice(&answer).map_err(|source| Error::Answer { source })
    }

    async fn send_in_time(&self, request: Builder, body: Bytes) -> Result<Bytes, Error> {
        let sent = tokio::time::timeout(self.timeout, self.send_at_leisure(request, body)).await;
        sent.unwrap_or(Err(Error::Timeout))
    }

    async fn send_at_leisure(&self, mut request: Builder, body: Bytes) -> Result<Bytes, Error> {
        request = request.header(header::HOST, &self.address);
        if let Some(login) = &self.login {
            request = request.header(header::AUTHORIZATION, login);
        }
        let request = request.body(Full::new(body)).map_err(|source| Error::Http { source: source.into() })?;
        let connect = |source| Error::Connect { address: self.address.clone(), source };
        let stream = TcpStream::connect(&self.address).await.map_err(connect)?;
        let Some(tls) = &self.tls else {
            return ask(stream, request).await;
        };
        let name = ServerName::try_from(self.host.clone()).map_err(|_| Error::Url { url: self.host.clone() })?;
        let stream = tokio_rustls::TlsConnector::from(Arc::clone(tls)).connect(name, stream).await.map_err(connect)?;
        ask(stream, request).await
    }
}

fn json(method: Method, path: &str) -> Builder {
    Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, "application/json")
}

async fn ask(stream: impl AsyncRead + AsyncWrite + Unpin, request: Request<Full<Bytes>>) -> Result<Bytes, Error> {
    let http = |source: hyper::Error| Error::Http { source: source.into() };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(http)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        Ok((status, body.map_err(|source| Error::Http { source })?.to_bytes()))
    };
    let mut exchange = std::pin::pin!(exchange);
    let (status, body) = tokio::select! {
        done = &mut exchange => done?,
        broken = connection => match broken {
            // the far end closed after its answer, which is then complete
            Ok(()) => exchange.await?,
            Err(source) => return Err(http(source)),
        },
    };
    if status != StatusCode::OK {
        return Err(Error::Refused { status, body: message_of(&body), digests: digests_of(&body) });
    }
    Ok(body)
}

/// What an error answer says: its message if it is one of this interface, else all of it.
fn message_of(body: &[u8]) -> String {
    let message = serde_json::from_slice::<Value>(body)
        .ok()
        .and_then(|error| error["error"]["message"].as_str().map(str::to_owned));
    message.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned())
}

/// The contents that an error answer names.
fn digests_of(body: &[u8]) -> Vec<String> {
    let error = serde_json::from_slice::<Value>(body).unwrap_or_default();
    let digests = error["error"]["digests"].as_array().into_iter().flatten();
    digests.filter_map(|digest| digest.as_str().map(str::to_owned)).collect()
}

fn trust(ca: Option<&Path>) -> Result<rustls::ClientConfig, Error> {
    let mut roots = rustls::RootCertStore::empty();
    let system = SYSTEM_CERTIFICATES.iter().map(Path::new).find(|path| path.exists());
    if let Some(path) = ca.or(system) {
        let read = |source| Error::Certificates { path: path.to_owned(), source };
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(read)?.collect();
        roots.add_parsable_certificates(certificates.map_err(read)?);
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|source| Error::Tls { source })?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// `Basic` credentials for `user:password`.
fn basic(login: &str) -> HeaderValue {
    let mut value = HeaderValue::from_str(&format!("Basic {}", base64(login.as_bytes()))).expect("base64 is ASCII");
    value.set_sensitive(true);
    value
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0_u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = ALPHABET[(group >> (18 - 6 * place)) as usize & 63];
            text.push(if place <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_answer_is_told_by_its_message() {
        assert_eq!(message_of(br#"{"error":{"code":"c","message":"no quorum"}}"#), "no quorum");
        assert_eq!(message_of(b"not found\n"), "not found\n");
        assert_eq!(digests_of(br#"{"error":{"digests":["a","b"]}}"#), ["a", "b"]);
        assert_eq!(digests_of(b"not found\n"), Vec::<String>::new());
    }

    #[test]
    fn base64_is_as_rfc_4648_has_it() {
        for (plain, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn a_url_gives_address_and_login() {
        let client = Client::new("http://ann:secret@[::1]:5000", None).unwrap();
        assert_eq!((client.host.as_str(), client.address.as_str()), ("::1", "[::1]:5000"));
        assert_eq!(client.login.unwrap(), "Basic YW5uOnNlY3JldA==");
        assert_eq!(Client::new("http://a", None).unwrap().address, "a:80");
        for url in ["", "127.0.0.1:5000", "ftp://a", "http://"] {
            assert!(matches!(Client::new(url, None), Err(Error::Url { .. })), "{url}");
        }
    }

    #[test]
    fn the_environment_gives_a_login_where_the_url_has_none() {
        let login = |url: &str| {
            Client::new(url, None).unwrap().with_login_from(|name| Some(name.to_lowercase())).login.unwrap()
        };
        assert_eq!(login("http://a"), basic("rafthold_user:rafthold_password"));
        assert_eq!(login("http://b:c@a"), basic("b:c"));
    }

    #[tokio::test]
    async fn a_node_is_ready_by_its_status_though_its_answer_is_no_json() {
        for (answer, ready) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nready\n", true),
            ("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", false),
        ] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let client = Client::new(&format!("http://{}", listener.local_addr().unwrap()), None).unwrap();
            let node = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                assert!(tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 1024]).await.unwrap() > 0, "a question");
                tokio::io::AsyncWriteExt::write_all(&mut stream, answer.as_bytes()).await.unwrap();
                stream
            };
            let (is_ready, _open) = tokio::join!(client.is_ready(), node);
            assert_eq!(is_ready, ready);
        }
    }
}
