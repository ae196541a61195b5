//! Answers other nodes that ask for this one's report.

use tonic::{Request, Response, Status};

use crate::oci::Digest;
use crate::rpc::proto::admin_server::{Admin, AdminServer};
use crate::rpc::proto::{ReportRequest, ReportResponse, VerifyBlobRequest, VerifyBlobResponse};
use crate::rpc::{MESSAGE_BYTES_MAX, peer};

use super::{Parts, report, verify};

/// The gRPC side of `ops`.
#[derive(Debug, Clone)]
pub struct AdminService(Parts);

impl AdminService {
    /// Makes the service for this node's rpc server.
    #[must_use]
    pub fn server(parts: Parts) -> AdminServer<Self> {
        AdminServer::new(Self(parts)).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn report(&self, request: Request<ReportRequest>) -> Result<Response<ReportResponse>, Status> {
        peer(&request)?;
        Ok(Response::new(report::own(&self.0).into()))
    }

    async fn verify_blob(&self, request: Request<VerifyBlobRequest>) -> Result<Response<VerifyBlobResponse>, Status> {
        peer(&request)?;
        let VerifyBlobRequest { digest, size } = request.into_inner();
        let digest = digest.as_ref().map(Digest::try_from).and_then(Result::ok);
        let digest = digest.ok_or_else(|| Status::invalid_argument("digest is malformed"))?;
        let verdict = verify::here(&self.0, &digest, size).await.to_owned();
        Ok(Response::new(VerifyBlobResponse { verdict }))
    }
}
