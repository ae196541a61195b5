//! Opening, filling, asking about and cancelling an upload session; `push.rs` ends it.

use crate::meta::Upload;
use crate::meta::command::{Command, HeldExtent, Response};
use crate::oci::{Algorithm, ExtentId, HashState, RepositoryName, UploadId};
use crate::replica::{ExtentRequest, ReceivedExtent};

use super::session::{check_chunk, check_length, part};
use super::view::{Budget, refused};
use super::{Caller, Chunk, Error, Registry, Result, UploadProgress};

impl Registry {
    /// Opens an upload session whose bytes are hashed by `algorithm` as they arrive (P26).
    ///
    /// # Errors
    ///
    /// [`Error::TooManyUploads`], [`Error::NotOpen`], [`Error::NoQuorum`], [`Error::NoSpace`].
    ///
    /// Spec: distribution-spec v1.1.1 end-4a, end-4c.
    pub async fn start_upload(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        algorithm: Algorithm,
    ) -> Result<UploadProgress> {
        let holders = self.0.replicas.choose_holders();
        if holders.is_empty() && self.0.blobs.refuses_writes() {
            return Err(Error::NoSpace);
        }
        let id = UploadId::from_random(self.0.env.seed.draw_u128());
        let command = Command::OpenUpload {
            session: id,
            repository: repository.clone(),
            algorithm,
            holders,
            principal: caller.principal.as_str().to_owned(),
            ttl_ms: u64::try_from(self.0.config.upload_ttl.as_millis()).unwrap_or(u64::MAX),
            sessions_max: self.0.config.uploads_per_principal_max,
        };
        let index = self.propose_done(command, Budget::start()).await?;
        Ok(UploadProgress { id, length: 0, index })
    }

    /// Says where an open session stands, confirmed by a quorum: the client goes on from there.
    ///
    /// # Errors
    ///
    /// [`Error::UploadUnknown`], [`Error::NoQuorum`].
    ///
    /// Spec: distribution-spec v1.1.1 end-13.
    pub async fn upload(&self, caller: &Caller, repository: &RepositoryName, id: UploadId) -> Result<UploadProgress> {
        let session = self.session(caller, repository, id, None).await?;
        match session.closed {
            None => Ok(UploadProgress { id, length: session.length, index: self.index() }),
            Some(_) => Err(Error::UploadUnknown),
        }
    }

    /// Appends the bytes of one PATCH; on return they are synced on `write_copies` nodes and agreed on.
    ///
    /// # Errors
    ///
    /// - [`Error::UploadUnknown`] if the session is closed, somebody else's, or not there.
    /// - [`Error::RangeInvalid`] if the chunk begins elsewhere, or another PATCH was faster.
    /// - [`Error::SizeInvalid`] if the body is longer than it said; nothing is appended.
    /// - [`Error::BodyBroken`] if it broke off; what arrived is appended.
    /// - [`Error::TooFewCopies`], [`Error::NoSpace`], [`Error::NoQuorum`]; the session stays.
    ///
    /// # Cancel safety
    ///
    /// A dropped call leaves a task that keeps and appends what arrived (P28).
    ///
    /// Spec: distribution-spec v1.1.1 end-5.
    pub async fn append(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        id: UploadId,
        chunk: Chunk,
    ) -> Result<UploadProgress> {
        let session = self.session(caller, repository, id, chunk.offset).await?;
        check_chunk(&session, chunk.offset, chunk.length)?;
        if chunk.is_empty() {
            return Ok(UploadProgress { id, length: session.length, index: self.index() });
        }
        let request = self.extent_request(session.hash_state.clone(), session.holders.clone(), chunk.length);
        let (this, target, promised) = (self.clone(), (repository.clone(), id), chunk.length);
        let then = move |extent: ReceivedExtent| -> crate::env::BoxFuture<'static, Result<UploadProgress>> {
            Box::pin(async move {
                let held = target_extent(&session, &extent);
                if let Err(error) = check_length(promised, extent.length, extent.complete) {
                    // Never proposed: nobody else can name it.
                    this.0.replicas.free_extents(vec![part(&held)]);
                    return Err(error);
                }
                this.append_extent(&target.0, target.1, &session, extent).await
            })
        };
        self.0.replicas.receive_extent(request, chunk.body, then).await?
    }

    /// Cancels an open session; its bytes are freed.
    ///
    /// # Errors
    ///
    /// [`Error::UploadUnknown`], [`Error::NoQuorum`].
    ///
    /// Spec: distribution-spec main, end-14.
    pub async fn cancel(&self, caller: &Caller, repository: &RepositoryName, id: UploadId) -> Result<()> {
        let budget = Budget::start();
        let session = self.session(caller, repository, id, None).await?;
        if session.closed.is_some() {
            return Err(Error::UploadUnknown);
        }
        let command = Command::CancelUpload { session: id, repository: repository.clone() };
        self.propose_done(command, budget).await?;
        // Extents that a PATCH adds between the look and the cancel are left to the reaper.
        self.0.replicas.free_extents(session.extents.iter().map(part).collect());
        Ok(())
    }

    /// One attempt to store bytes, under an id that no other attempt has (P24).
    pub(super) fn extent_request(
        &self,
        resume: HashState,
        holders: Vec<crate::topology::NodeId>,
        promised_length: Option<u64>,
    ) -> ExtentRequest {
        let id = ExtentId::from_random(self.0.env.seed.draw_u128());
        ExtentRequest { id, resume, holders, promised_length }
    }

    /// Appends a stored extent to its session, whole or salvaged, and says where the session stands.
    pub(super) async fn append_extent(
        &self,
        repository: &RepositoryName,
        id: UploadId,
        session: &Upload,
        received: ReceivedExtent,
    ) -> Result<UploadProgress> {
        let complete = received.complete;
        let progress = if received.length == 0 {
            UploadProgress { id, length: session.length, index: self.index() }
        } else {
            let extent = target_extent(session, &received);
            let freed = part(&extent);
            let command = Command::AppendExtent {
                session: id,
                repository: repository.clone(),
                extent,
                hash_state: received.hash_state,
            };
            match self.propose(command, Budget::start()).await? {
                (index, Response::Appended { length }) => {
                    self.replace_holders(id, session, &freed.holders);
                    UploadProgress { id, length, index }
                }
                (_, other) => {
                    // A definite refusal: no retry of this command can still append it.
                    self.0.replicas.free_extents(vec![freed]);
                    return Err(refused(other));
                }
            }
        };
        if complete { Ok(progress) } else { Err(Error::BodyBroken) }
    }

    /// Notes, in the background, that other nodes hold the session's bytes from now on (P25).
    fn replace_holders(&self, id: UploadId, session: &Upload, holders: &[crate::topology::NodeId]) {
        let enough = holders.len() >= session.holders.len();
        if !enough || session.holders.iter().all(|holder| holders.contains(holder)) {
            return;
        }
        let command = Command::ReplaceHolders { session: id, holders: holders.to_vec() };
        let this = self.clone();
        let work = Box::pin(async move {
            // A hint for the next chunk: without it that chunk finds out again who is away.
            if let Err(error) = this.propose_done(command, Budget::start()).await {
                tracing::debug!(upload = %id, error = &error as &dyn std::error::Error, "holders of an upload not replaced");
            }
        });
        self.0.env.spawner.spawn("replace upload holders", work);
    }
}

/// A received extent as it would stand in its session.
pub(super) fn target_extent(session: &Upload, received: &ReceivedExtent) -> HeldExtent {
    HeldExtent { id: received.id, offset: session.length, length: received.length, holders: received.holders.clone() }
}
