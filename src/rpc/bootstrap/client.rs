//! Asks one seed.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::env::Env;

use super::proof::{Claim, Exchange};
use super::proto::bootstrap_client::BootstrapClient;
use super::proto::{HelloRequest, Sealed};
use super::wire::{self, Answer, BYTES_MAX, Question};
use super::{Credentials, Secret, describe, describe_status, dial, fingerprint, within};

/// What came of asking.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum AskError {
    #[error("{0}")]
    Silent(String),
    #[error("it does not know this node's secret")]
    WrongSecret,
}

/// One proved exchange with one seed, over one connection.
pub(super) struct Session<'a> {
    pub(super) client: BootstrapClient<Channel>,
    pub(super) exchange: Exchange,
    pub(super) secret: &'a Secret,
}

/// What every session needs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asker<'a> {
    pub(super) env: &'a Env,
    pub(super) credentials: &'a Credentials,
    pub(super) secret: &'a Secret,
}

impl<'a> Asker<'a> {
    /// Connects, and has the seed prove that it knows the secret, before it is told anything.
    ///
    /// # Errors
    ///
    /// - [`AskError::Silent`] if it cannot be reached or does not answer in time.
    /// - [`AskError::WrongSecret`] if its proof is for another secret, or for another certificate than it showed: then
    ///   someone stands in between.
    pub(super) async fn open(self, address: &str, deadline: Duration) -> Result<Session<'a>, AskError> {
        let silent = |error: &dyn std::error::Error| AskError::Silent(describe(error));
        let name = ServerName::try_from("bootstrap.rafthold.internal").expect("a constant host name");
        let config = self.credentials.stranger().map_err(|error| silent(&error))?;
        let stream = dial::dial(self.env, address, name, config).await.map_err(|error| silent(&error))?;
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let shown = fingerprint(certificate.ok_or_else(|| AskError::Silent("no certificate".to_owned()))?);
        // This one connection or none: the proofs below are bound to the certificate it showed.
        let stream = Mutex::new(Some(TokioIo::new(stream)));
        let connector = tower::service_fn(move |_: Uri| {
            let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
            async move { stream.ok_or_else(|| io::Error::other("the connection is closed")) }
        });
        let endpoint = Endpoint::from_static("http://seed");
        let channel = tokio::time::timeout(deadline, endpoint.connect_with_connector(connector))
            .await
            .map_err(|late| silent(&late))?
            .map_err(|error| silent(&error))?;
        let mut client =
            BootstrapClient::new(channel).max_decoding_message_size(BYTES_MAX).max_encoding_message_size(BYTES_MAX);
        let mut caller = [0; 32];
        self.env.seed.fill(&mut caller);
        let hello = HelloRequest { version: wire::VERSION, nonce: caller.to_vec().into() };
        let answer = within(deadline, client.hello(hello)).await.map_err(|status| refused(&status))?.into_inner();
        let answerer = wire::nonce(&answer.nonce).ok_or(AskError::WrongSecret)?;
        let exchange = Exchange { caller, answerer, shown };
        if !exchange.holds(self.secret, Claim::Hello, &answer.proof) {
            return Err(AskError::WrongSecret);
        }
        Ok(Session { client, exchange, secret: self.secret })
    }
}

impl Session<'_> {
    /// Asks one question.
    ///
    /// # Errors
    ///
    /// As [`Asker::open`].
    pub(super) async fn ask(&mut self, question: Question, deadline: Duration) -> Result<Answer, AskError> {
        let body = wire::encode_question(question);
        let sealed = Sealed {
            caller_nonce: self.exchange.caller.to_vec().into(),
            answerer_nonce: self.exchange.answerer.to_vec().into(),
            proof: self.exchange.prove(self.secret, Claim::Question { body: &body }).into(),
            body: body.clone().into(),
        };
        let answer = within(deadline, self.client.ask(sealed)).await.map_err(|status| refused(&status))?.into_inner();
        let claim = Claim::Answer { question: &body, body: &answer.body };
        if !self.exchange.holds(self.secret, claim, &answer.proof) {
            return Err(AskError::WrongSecret);
        }
        wire::decode_answer(&answer.body).ok_or_else(|| AskError::Silent("it answers in another version".to_owned()))
    }
}

fn refused(status: &Status) -> AskError {
    match status.code() {
        Code::Unauthenticated => AskError::WrongSecret,
        _ => AskError::Silent(describe_status(status)),
    }
}
