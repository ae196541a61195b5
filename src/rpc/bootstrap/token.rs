//! Join tokens: how a node without the shared secret comes by a certificate, and never by the authority's key.
//!
//! A token carries a random part, of which the cluster knows only the hash, and the fingerprint of the cluster's authority.
//! The joiner sends the random part only over a connection whose far end has proved, by a certificate of that very
//! authority, that it is a node of the cluster.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, ServerName};
use tonic::transport::{Channel, Endpoint};

use crate::env::{Env, Seed};
use crate::topology::{ClusterId, NodeId};

use super::promise::PromiseFile;
use super::proto::bootstrap_client::BootstrapClient;
use super::proto::{GreetRequest, JoinByTokenRequest};
use super::wire::{self, Answer, BYTES_MAX, Join};
use super::{
    Credentials, Identity, IdentityDir, NodeDescription, NodeFile, NodeUri, blocking, ca, describe, describe_status,
    dial, fingerprint, refuse_if_filled, within,
};
use super::{Error, Result};

/// How long one member may take for one answer.
const GREET_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a member may take for the join: longer than it gives itself.
const JOIN_TIMEOUT: Duration = Duration::from_secs(12);
/// What a token begins with: its form.
const PREFIX: &str = "rafthold-join-1-";

/// What an operator gives to one node so that it may join once; its random part is never printed by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    random: [u8; 32],
    authority: [u8; 32],
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinToken")
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        self.random.iter().chain(&self.authority).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The text is no join token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a join token: it begins with `{PREFIX}` and ends with 128 hex digits")]
pub struct BadToken;

impl FromStr for JoinToken {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        let digits = text.trim().strip_prefix(PREFIX).ok_or(BadToken)?.as_bytes();
        if digits.len() != 128 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(BadToken);
        }
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok()).unwrap_or(0);
        let mut bytes = [0; 64];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = digit(pair[0]) << 4 | digit(pair[1]);
        }
        let (random, authority) = bytes.split_at(32);
        let half = |half: &[u8]| half.try_into().map_err(|_| BadToken);
        Ok(Self { random: half(random)?, authority: half(authority)? })
    }
}

impl JoinToken {
    /// Draws a token for the cluster of `identity`.
    #[must_use]
    pub fn draw(seed: &Seed, identity: &Identity) -> Self {
        let mut random = [0; 32];
        seed.fill(&mut random);
        Self { random, authority: fingerprint(identity.ca().certificate()) }
    }

    /// The SHA-256 by which the cluster knows the token.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        hash_of(&self.random)
    }
}

/// The SHA-256 by which the cluster knows a token with that random part.
pub(super) fn hash_of(random: &[u8]) -> [u8; 32] {
    fingerprint(random)
}

/// Says why a node could not join by a token.
#[derive(Debug, thiserror::Error)]
pub enum TokenJoinError {
    /// The data directory belongs to a node already.
    #[error("the data directory belongs to node {node} of cluster {cluster} already")]
    Member {
        /// The node.
        node: NodeId,
        /// Its cluster.
        cluster: ClusterId,
    },
    /// The data directory has been promised to a cluster that is being formed.
    #[error("this node has promised itself to cluster {cluster}; if that one will never be, remove the file `promise`")]
    Promised {
        /// The cluster.
        cluster: ClusterId,
    },
    /// No member took it in.
    #[error("{}", problems.join("; "))]
    Refused {
        /// What each one that was asked said.
        problems: Vec<String>,
    },
    /// The data directory cannot be used.
    #[error(transparent)]
    Local(#[from] Error),
}

/// Makes the identity of a node by a token, in its data directory; a later start runs it.
///
/// The node's key is on disk before it is first used, so that a retry with the same directory gets the same id.
///
/// # Errors
///
/// [`TokenJoinError`].
pub async fn join_by_token(
    env: &Env,
    data_dir: &Path,
    node: NodeDescription,
    (token, members): (&JoinToken, &[String]),
) -> Result<Identity, TokenJoinError> {
    let (dir, promise) = (IdentityDir::of(data_dir), PromiseFile(data_dir.join("promise")));
    if let Some((identity, _)) = dir.load(env)? {
        return Err(TokenJoinError::Member { node: identity.node(), cluster: identity.cluster() });
    }
    if let Some(promise) = promise.load()? {
        return Err(TokenJoinError::Promised { cluster: promise.cluster });
    }
    for name in ["raft", "snapshots"] {
        refuse_if_filled(&data_dir.join(name))?;
    }
    let keys = dir.clone();
    let key = blocking(move || keys.key()).await?;
    let request = ca::request(&key)?;
    let mut problems = Vec::new();
    for address in members {
        let join = Join { node: node.clone(), certificate_request: request.clone(), promised: None };
        let membership = match ask(env, address, token, join).await {
            Ok(membership) => membership,
            Err(problem) => {
                problems.push(format!("{address}: {problem}"));
                continue;
            }
        };
        let uri = NodeUri { cluster: membership.cluster, epoch: membership.epoch, node: membership.node };
        let identity = Identity::assemble(env, uri, key.clone(), &membership.pems)?;
        let file = NodeFile::new(&identity, None, membership.nodes);
        let (store, stored) = (dir.clone(), identity.clone());
        blocking(move || store.store(&stored, &file)).await?;
        return Ok(identity);
    }
    Err(TokenJoinError::Refused { problems })
}

/// Asks one member; the error is for people.
async fn ask(env: &Env, address: &str, token: &JoinToken, join: Join) -> Result<wire::Membership, String> {
    let (mut client, shown) = connect(env, address).await?;
    let greeting = within(GREET_TIMEOUT, client.greet(GreetRequest { version: wire::VERSION })).await;
    let greeting = greeting.map_err(|status| describe_status(&status))?.into_inner();
    let authority = ca::certificate_from_pem(&greeting.ca_certificate_pem).map_err(|error| describe(&error))?;
    if fingerprint(&authority) != token.authority {
        return Err("it belongs to another cluster than the token".to_owned());
    }
    // From here on it is a node of the token's cluster, or the token is not sent.
    super::check_chain(&authority, &shown, env.clock.now()).map_err(|error| describe(&error))?;
    NodeUri::of_certificate(&shown).map_err(|error| describe(&error))?;
    let request = JoinByTokenRequest { token: token.random.to_vec().into(), join: Some(wire::join_question(join)) };
    let answer = within(JOIN_TIMEOUT, client.join_by_token(request)).await;
    match answer.map_err(|status| describe_status(&status))?.into_inner().answer {
        Some(Answer::Joined(told)) => match wire::joined(told) {
            Some(membership) if membership.pems.ca_key.is_none() => Ok(membership),
            _ => Err("its answer is of another version".to_owned()),
        },
        Some(Answer::Refused(refused)) => Err(refused.reason),
        _ => Err("it answers another question".to_owned()),
    }
}

/// Opens one connection, and returns the certificate that its far end has the key of.
async fn connect(env: &Env, address: &str) -> Result<(BootstrapClient<Channel>, CertificateDer<'static>), String> {
    let credentials = Credentials::anonymous(env).map_err(|error| describe(&error))?;
    let config = credentials.stranger().map_err(|error| describe(&error))?;
    let name = ServerName::try_from("bootstrap.rafthold.internal").expect("a constant host name");
    let stream = dial::dial(env, address, name, config).await.map_err(|error| describe(&error))?;
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).cloned();
    let shown = shown.ok_or_else(|| "it shows no certificate".to_owned())?;
    // This one connection or none: what it showed is true of no other.
    let stream = Mutex::new(Some(TokioIo::new(stream)));
    let connector = tower::service_fn(move |_: http::Uri| {
        let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        async move { stream.ok_or_else(|| std::io::Error::other("the connection is closed")) }
    });
    let channel = within_connect(Endpoint::from_static("http://member").connect_with_connector(connector)).await?;
    let client =
        BootstrapClient::new(channel).max_decoding_message_size(BYTES_MAX).max_encoding_message_size(BYTES_MAX);
    Ok((client, shown))
}

async fn within_connect(
    connecting: impl Future<Output = Result<Channel, tonic::transport::Error>>,
) -> Result<Channel, String> {
    match tokio::time::timeout(GREET_TIMEOUT, connecting).await {
        Ok(channel) => channel.map_err(|error| describe(&error)),
        Err(_) => Err("it does not answer".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_is_printed_and_hides_in_logs() {
        let token = JoinToken { random: [0xa5; 32], authority: [0x0f; 32] };
        let text = token.to_string();
        assert_eq!(text.parse(), Ok(token.clone()));
        assert_eq!(format!("\n{text} ").parse(), Ok(token.clone()));
        assert_eq!(format!("{token:?}"), "JoinToken");
        for bad in ["", "rafthold-join-1-", &text[..text.len() - 1], &text.replace("-1-", "-2-"), &format!("{text}0")] {
            assert_eq!(bad.parse::<JoinToken>(), Err(BadToken), "{bad}");
        }
    }
}
