//! Answers nodes that have no certificate yet.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tonic::{Code, Request, Response, Status};

use crate::topology::NodeId;

use super::promise::{self, Promise};
use super::proof::{Claim, Exchange};
use super::proto::bootstrap_server::{Bootstrap as Service, BootstrapServer};
use super::proto::{
    BootstrapAnswer, GreetRequest, Greeting, HelloRequest, HelloResponse, JoinByTokenRequest, Promised, RenewRequest,
    Renewed, Sealed,
};
use super::wire::{self, Answer, BYTES_MAX, Join, Membership, Question};
use super::{
    AddNodeError, ClusterHooks, Inner, NodeUri, Pems, Retry, Shown, blocking, ca, describe, fingerprint, peer, token,
};

/// How long a join may take: it is agreed on by a quorum.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn service(inner: Arc<Inner>) -> BootstrapServer<Answerer> {
    BootstrapServer::new(Answerer(inner)).max_decoding_message_size(BYTES_MAX).max_encoding_message_size(BYTES_MAX)
}

/// Answers from what this node is.
pub(super) struct Answerer(Arc<Inner>);

impl Answerer {
    fn admit<T>(&self, request: &Request<T>) -> Result<Shown, Status> {
        let shown = *request.extensions().get::<Shown>().ok_or_else(|| Status::internal("no connection"))?;
        if self.0.admit(shown.address.ip(), Instant::now()) {
            Ok(shown)
        } else {
            Err(Retry::Here.status(Code::ResourceExhausted, "too many calls from this address"))
        }
    }
}

/// Why a node that lacks the authority's key takes nobody in.
fn cannot_sign(hooks: &dyn ClusterHooks) -> String {
    let others: Vec<String> = hooks.nodes().into_iter().map(|node| node.rpc_address).collect();
    format!("this node joined by a token itself and cannot sign: ask another of {}", others.join(", "))
}

#[tonic::async_trait]
impl Service for Answerer {
    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloResponse>, Status> {
        let shown = self.admit(&request)?;
        let hello = request.into_inner();
        if hello.version != wire::VERSION {
            let message = format!("bootstrap protocol {} is not spoken here, only {}", hello.version, wire::VERSION);
            return Err(Retry::GiveUp.status(Code::Unimplemented, message));
        }
        let caller = wire::nonce(&hello.nonce).ok_or_else(|| Status::invalid_argument("nonce is not 32 bytes"))?;
        let answerer = self.0.nonces.issue(&caller, &shown.fingerprint);
        let exchange = Exchange { caller, answerer, shown: shown.fingerprint };
        let proof = exchange.prove(&self.0.options.secret, Claim::Hello);
        Ok(Response::new(HelloResponse { nonce: answerer.to_vec().into(), proof: proof.into() }))
    }

    async fn ask(&self, request: Request<Sealed>) -> Result<Response<Sealed>, Status> {
        let shown = self.admit(&request)?;
        let sealed = request.into_inner();
        let (caller, answerer) = wire::nonce(&sealed.caller_nonce)
            .zip(wire::nonce(&sealed.answerer_nonce))
            .ok_or_else(|| Status::invalid_argument("nonce is not 32 bytes"))?;
        let exchange = Exchange { caller, answerer, shown: shown.fingerprint };
        let secret = &self.0.options.secret;
        if !exchange.holds(secret, Claim::Question { body: &sealed.body }, &sealed.proof) {
            self.0.complain(shown.address);
            return Err(Retry::GiveUp.status(Code::Unauthenticated, "the proof is not for this node's secret"));
        }
        if !self.0.nonces.knows(&answerer, &caller, &shown.fingerprint) {
            return Err(Retry::Here.status(Code::FailedPrecondition, "say hello again"));
        }
        let question = wire::decode_question(&sealed.body)
            .ok_or_else(|| Retry::GiveUp.status(Code::Unimplemented, "the question is of another version"))?;
        let body = wire::encode_answer(self.0.answer(question).await?);
        let proof = exchange.prove(secret, Claim::Answer { question: &sealed.body, body: &body });
        Ok(Response::new(Sealed { body: body.into(), proof: proof.into(), ..sealed }))
    }

    async fn greet(&self, request: Request<GreetRequest>) -> Result<Response<Greeting>, Status> {
        self.admit(&request)?;
        let version = request.into_inner().version;
        if version != wire::VERSION {
            let message = format!("bootstrap protocol {version} is not spoken here, only {}", wire::VERSION);
            return Err(Retry::GiveUp.status(Code::Unimplemented, message));
        }
        let identity = self.0.credentials.identity();
        let identity =
            identity.ok_or_else(|| Retry::Here.status(Code::Unavailable, "the node is in no cluster yet"))?;
        Ok(Response::new(Greeting { ca_certificate_pem: identity.ca().certificate_pem().to_owned() }))
    }

    async fn join_by_token(&self, request: Request<JoinByTokenRequest>) -> Result<Response<BootstrapAnswer>, Status> {
        self.admit(&request)?;
        let JoinByTokenRequest { token, join } = request.into_inner();
        let token: [u8; 32] =
            token.as_ref().try_into().map_err(|_| Status::invalid_argument("token is not 32 bytes"))?;
        let join = join.and_then(wire::join).ok_or_else(|| Status::invalid_argument("no such node"))?;
        let answer = self.0.join(join, Some(token::hash_of(&token))).await?;
        Ok(Response::new(BootstrapAnswer { answer: Some(answer) }))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<Renewed>, Status> {
        let shown = peer(&request)?;
        let (Some(hooks), Some(identity)) = (self.0.hooks(), self.0.credentials.identity()) else {
            return Err(Retry::Elsewhere.status(Code::Unavailable, "the node is starting"));
        };
        // The certificate of a removed node is still good, and must not become good for longer.
        if !hooks.nodes().iter().any(|node| node.id == shown.node) {
            return Err(Retry::GiveUp.status(Code::PermissionDenied, "this node was removed from the cluster"));
        }
        let uri = NodeUri { cluster: shown.cluster, epoch: shown.epoch, node: shown.node };
        let signed = identity.ca().sign_request(&self.0.env, uri, &request.into_inner().certificate_request);
        let certificate_pem =
            signed.map_err(|error| Retry::Elsewhere.status(Code::FailedPrecondition, describe(&error)))?;
        tracing::info!(peer = %shown.node, "certificate renewed for another node");
        Ok(Response::new(Renewed { certificate_pem }))
    }
}

impl Inner {
    async fn answer(&self, question: Question) -> Result<Answer, Status> {
        match question {
            Question::Standing(_) => Ok(wire::tell_standing(&self.standing().await)),
            Question::Promise(asked) => {
                let asked = wire::promise(asked).ok_or_else(|| Status::invalid_argument("no such promise"))?;
                self.promise(asked).await
            }
            Question::Join(asked) => {
                let join = wire::join(asked).ok_or_else(|| Status::invalid_argument("no such node"))?;
                self.join(join, None).await
            }
        }
    }

    /// Gives a promise, on disk before it is said.
    pub(super) async fn promise(&self, asked: Promise) -> Result<Answer, Status> {
        // Held until the promise is on disk: two who ask at once must not both get one.
        let mut place = self.place.lock().await;
        let own = promise::Standing {
            name: &self.options.node.name,
            expect: self.options.expect,
            member_of: place.identity.as_ref().map(|file| file.cluster),
            promised: place.promise.as_ref(),
            path: &self.promise_file.0,
        };
        if let Err(refusal) = promise::judge(own, &asked) {
            tracing::warn!(asked_by = asked.initialiser, %refusal, "promise to a cluster refused");
            return Ok(wire::refuse(refusal.to_string(), false));
        }
        if place.promise.is_none() {
            let (file, written) = (self.promise_file.clone(), asked.clone());
            blocking(move || file.store(&written)).await.map_err(|error| {
                tracing::error!(error = describe(&error), "promise could not be written");
                Retry::Here.status(Code::Internal, "the promise could not be written")
            })?;
            tracing::info!(cluster = %asked.cluster, initialiser = asked.initialiser, "promised to a cluster");
            place.promise = Some(asked);
        }
        Ok(Answer::Promised(Promised {}))
    }

    /// Takes a node in that has proved the secret, or has the token of that SHA-256.
    async fn join(&self, join: Join, token: Option<[u8; 32]>) -> Result<Answer, Status> {
        let (Some(hooks), Some(identity)) = (self.hooks(), self.credentials.identity()) else {
            return Ok(wire::refuse("the node is starting", true));
        };
        let Some(cluster) = hooks.formed() else {
            return Ok(wire::refuse("the cluster is being formed", true));
        };
        if let Some(promised) = join.promised.filter(|promised| *promised != cluster) {
            let reason = format!("this is cluster {cluster}, the asking node has promised itself to {promised}");
            return Ok(wire::refuse(reason, false));
        }
        if !identity.ca().can_sign() {
            return Ok(wire::refuse(cannot_sign(&*hooks), true));
        }
        let key = ca::public_key_of_request(&join.certificate_request)
            .map_err(|_| Status::invalid_argument("the certificate request is not good"))?;
        let mut node = join.node;
        node.key_fingerprint = fingerprint(&key);
        let name = node.name.clone();
        let adding = match token {
            Some(token) => hooks.join_by_token(token, node),
            None => hooks.add_node(node),
        };
        let added = tokio::time::timeout(JOIN_TIMEOUT, adding).await;
        let node: NodeId = match added {
            Ok(Ok(node)) => node,
            Ok(Err(AddNodeError::Refused(reason))) => return Ok(wire::refuse(reason, false)),
            Ok(Err(AddNodeError::Unavailable)) | Err(_) => {
                return Ok(wire::refuse("the cluster has no quorum at the moment", true));
            }
        };
        let uri = NodeUri { cluster, epoch: identity.epoch(), node };
        let signed = identity.ca().sign_request(&self.env, uri, &join.certificate_request).map_err(|error| {
            tracing::error!(error = describe(&error), "certificate could not be signed");
            Retry::Elsewhere.status(Code::Internal, "the certificate could not be signed")
        })?;
        tracing::info!(peer = %node, name, "node joined");
        Ok(wire::tell_joined(Membership {
            cluster,
            epoch: uri.epoch,
            node,
            pems: Pems {
                certificate: signed,
                ca_certificate: identity.ca().certificate_pem().to_owned(),
                // Who has only a token may serve, and not sign for others.
                ca_key: identity.ca().key_pem().filter(|_| token.is_none()),
            },
            nodes: hooks.nodes(),
        }))
    }
}
