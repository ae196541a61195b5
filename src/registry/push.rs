//! How a blob comes to be: the closing PUT of a session, and a whole blob in one POST.

use bytes::Bytes;
use futures::StreamExt;

use crate::env::BoxFuture;
use crate::meta::Upload;
use crate::meta::command::{Command, HeldExtent, Response};
use crate::oci::{Digest, HashState, Hasher, RepositoryName, UploadId};
use crate::replica::{Body, HeldPart, ReceivedExtent};
use crate::topology::NodeId;

use super::session::{check_chunk, check_length, part};
use super::uploads::target_extent;
use super::view::{Budget, refused};
use super::{BlobPushed, Caller, Chunk, Error, Registry, Result};

/// A body of at most this many bytes is hashed even where it cannot be stored, to tell a wrong digest from bad luck (I11).
const JUDGED_BYTES_MAX: u64 = 4 << 20;

/// How long the empty blob may take to reach its holders.
const EMPTY_WITHIN: std::time::Duration = std::time::Duration::from_secs(3);

impl Registry {
    /// Appends the last bytes, if any, checks the digest, makes the blob of the session's extents, links and closes (P27).
    ///
    /// # Errors
    ///
    /// - [`Error::DigestMismatch`] if the bytes are others, or the session was closed with another digest; nothing is appended.
    /// - [`Error::RangeInvalid`] if last bytes begin elsewhere than the session ends.
    /// - [`Error::UploadUnknown`] as for [`Self::append`].
    /// - [`Error::BodyBroken`] if the body broke off; what arrived is appended.
    /// - [`Error::TooFewCopies`], [`Error::NoSpace`], [`Error::NoQuorum`]; the session stays, the same PUT may be sent again.
    ///
    /// # Cancel safety
    ///
    /// Once the last byte has arrived, the push goes on without the caller.
    ///
    /// Spec: distribution-spec v1.1.1 end-6.
    #[expect(clippy::too_many_arguments, reason = "who, where and what: each has a type of its own")]
    pub async fn commit(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        id: UploadId,
        digest: Digest,
        last: Chunk,
    ) -> Result<BlobPushed> {
        let session = match self.session(caller, repository, id, last.offset).await {
            Ok(session) => session,
            Err(error @ Error::NoQuorum { .. }) => {
                let here = self.session_here(caller, repository, id);
                return match here.filter(|here| last.offset.is_none_or(|offset| offset == here.length)) {
                    Some(here) => Err(judge(here.hash_state, last, &digest).await),
                    None => Err(error),
                };
            }
            Err(error) => return Err(error),
        };
        if let Some(closed) = &session.closed {
            if *closed != digest {
                return Err(Error::DigestMismatch { expected: digest, actual: closed.clone() });
            }
            drain(last.body).await;
            return self.committed_before(caller, repository, digest).await;
        }
        // An empty PUT says nothing of where it begins, whatever state its URL carries: the digest decides.
        if !last.is_empty() {
            check_chunk(&session, last.offset, last.length)?;
        }
        // A session without bytes yet may as well be hashed by what is asked for in the end.
        let resume = match session.length {
            0 => HashState::initial(digest.algorithm()),
            _ => session.hash_state.clone(),
        };
        let principal = caller.principal.as_str().to_owned();
        let holders = session.holders.clone();
        let closing =
            Closing { registry: self.clone(), repository: repository.clone(), principal, id, session, digest };
        if last.is_empty() {
            let close = async move { closing.close(resume, None).await };
            return self.0.replicas.supervised("close upload", close).await?;
        }
        let request = self.extent_request(resume, holders, last.length);
        let promised = last.length;
        let then = move |extent: ReceivedExtent| -> BoxFuture<'static, Result<BlobPushed>> {
            Box::pin(closing.close_with(extent, promised))
        };
        self.0.replicas.receive_extent(request, last.body, then).await?
    }

    /// Stores a whole blob sent in one request and links it.
    ///
    /// # Errors
    ///
    /// As for [`Self::commit`]; nothing is kept of a body that is not the digest's, or broke off.
    ///
    /// # Cancel safety
    ///
    /// As for [`Self::commit`].
    ///
    /// Spec: distribution-spec v1.1.1 end-4b.
    pub async fn push_blob(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        digest: Digest,
        body: Chunk,
    ) -> Result<BlobPushed> {
        if body.offset.is_some_and(|offset| offset != 0) {
            return Err(Error::RangeInvalid { length: 0 });
        }
        let resume = HashState::initial(digest.algorithm());
        match self.fresh().await {
            Ok(view) if !view.state.is_open() => return Err(Error::NotOpen),
            Ok(_) => {}
            Err(Error::NoQuorum { .. }) => return Err(judge(resume, body, &digest).await),
            Err(error) => return Err(error),
        }
        let push = Whole {
            registry: self.clone(),
            repository: repository.clone(),
            principal: caller.principal.as_str().to_owned(),
            digest,
        };
        if body.is_empty() {
            let link = async move { push.link(&[], &[], resume, 0).await };
            return self.0.replicas.supervised("link empty blob", link).await?;
        }
        let request = self.extent_request(resume, self.0.replicas.choose_holders(), body.length);
        let promised = body.length;
        let then = move |extent: ReceivedExtent| -> BoxFuture<'static, Result<BlobPushed>> {
            Box::pin(push.finish(extent, promised))
        };
        self.0.replicas.receive_extent(request, body.body, then).await?
    }

    /// Answers a PUT that was answered before (P27): the blob has its copies, or gets them again (P19).
    async fn committed_before(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        digest: Digest,
    ) -> Result<BlobPushed> {
        let find = |state: &crate::meta::State| state.blob(repository, &digest);
        // Deleted since: the session is as good as forgotten.
        let size = self.look_up(caller, find, |_| Error::UploadUnknown).await?.found;
        let copies = self.0.replicas.ensure_copies(&digest, size).await?.len();
        if !self.promise_blob(repository, &digest).await? {
            return Err(Error::no_quorum());
        }
        Ok(BlobPushed { digest, size, copies, index: self.index() })
    }

    /// Makes a blob of its parts on enough nodes, and returns those that hold it.
    async fn assemble(
        &self,
        digest: &Digest,
        size: u64,
        parts: &[HeldPart],
        holders: &[NodeId],
    ) -> Result<Vec<NodeId>> {
        if size > 0 {
            return Ok(self.0.replicas.assemble(digest, size, parts, holders).await?);
        }
        // The empty blob has no parts that anybody could hold.
        let needed = self.0.replicas.write_copies();
        let enough = |nodes: &[NodeId]| self.0.replicas.counted(nodes) >= needed;
        let nodes = self.0.replicas.put_body(digest, Bytes::new(), &enough, EMPTY_WITHIN).await?;
        if enough(&nodes) {
            Ok(nodes)
        } else {
            let reason = self.0.replicas.with_uncounted("other nodes did not answer".to_owned());
            Err(Error::TooFewCopies { made: self.0.replicas.counted(&nodes), needed, reason })
        }
    }
}

/// A session about to be closed under a digest.
struct Closing {
    registry: Registry,
    repository: RepositoryName,
    principal: String,
    id: UploadId,
    session: Upload,
    digest: Digest,
}

impl Closing {
    /// Closes with the extent that the PUT's body became.
    async fn close_with(self, extent: ReceivedExtent, promised: Option<u64>) -> Result<BlobPushed> {
        let held = target_extent(&self.session, &extent);
        if let Err(error) = check_length(promised, extent.length, extent.complete) {
            self.registry.0.replicas.free_extents(vec![part(&held)]);
            return Err(error);
        }
        if !extent.complete {
            return Err(self.salvage(extent).await);
        }
        let hash_state = extent.hash_state;
        self.close(hash_state, (held.length > 0).then_some(held)).await
    }

    /// Keeps what arrived of a broken body, so that the client can go on from there (P28).
    async fn salvage(self, extent: ReceivedExtent) -> Error {
        // Hashed by the PUT's algorithm from the first byte: the session could not go on from this state.
        if extent.hash_state.algorithm != self.session.algorithm {
            self.registry.0.replicas.free_extents(vec![part(&target_extent(&self.session, &extent))]);
            return Error::BodyBroken;
        }
        match self.registry.append_extent(&self.repository, self.id, &self.session, extent).await {
            Ok(_) => Error::BodyBroken,
            Err(error) => error,
        }
    }

    /// Checks the digest, makes the blob, links and closes. `hash_state` is that after the last byte.
    async fn close(self, hash_state: HashState, last: Option<HeldExtent>) -> Result<BlobPushed> {
        let replicas = &self.registry.0.replicas;
        let parts: Vec<HeldPart> = self.session.extents.iter().chain(&last).map(part).collect();
        let size = self.session.length + last.as_ref().map_or(0, |extent| extent.length);
        let actual = self.registry.digest_of(hash_state, &parts, &self.digest).await;
        let checked = actual.and_then(|actual| check_digest(&self.digest, actual));
        if let Err(error) = checked {
            // The last extent was never proposed; those before it stay with the session.
            replicas.free_extents(last.iter().map(part).collect());
            return Err(error);
        }
        // Whoever holds the newest bytes was alive a moment ago.
        let holders = parts.last().map_or(&self.session.holders, |part| &part.holders);
        let nodes = self.registry.assemble(&self.digest, size, &parts, holders).await?;
        let command = Command::CommitUpload {
            session: self.id,
            repository: self.repository.clone(),
            last,
            digest: self.digest.clone(),
            size,
            principal: self.principal.clone(),
        };
        match self.registry.propose(command, Budget::start()).await? {
            (index, Response::Committed { digest, size }) => {
                replicas.free_extents(parts);
                Ok(BlobPushed { digest, size, copies: nodes.len(), index })
            }
            (_, other) => Err(refused(other)),
        }
    }
}

/// A whole blob on its way.
struct Whole {
    registry: Registry,
    repository: RepositoryName,
    principal: String,
    digest: Digest,
}

impl Whole {
    async fn finish(self, extent: ReceivedExtent, promised: Option<u64>) -> Result<BlobPushed> {
        let held = HeldExtent { id: extent.id, offset: 0, length: extent.length, holders: extent.holders };
        // No command names the extent, so it goes whatever comes of the push.
        let freed = (held.length > 0).then(|| part(&held));
        let registry = self.registry.clone();
        let pushed = match check_length(promised, extent.length, extent.complete) {
            Err(error) => Err(error),
            Ok(()) if !extent.complete => Err(Error::BodyBroken),
            Ok(()) if held.length == 0 => self.link(&[], &[], extent.hash_state, 0).await,
            Ok(()) => self.link(&[part(&held)], &held.holders, extent.hash_state, held.length).await,
        };
        registry.0.replicas.free_extents(freed.into_iter().collect());
        pushed
    }

    async fn link(
        &self,
        parts: &[HeldPart],
        holders: &[NodeId],
        hash_state: HashState,
        size: u64,
    ) -> Result<BlobPushed> {
        let actual = self.registry.digest_of(hash_state, parts, &self.digest).await?;
        check_digest(&self.digest, actual)?;
        let nodes = self.registry.assemble(&self.digest, size, parts, holders).await?;
        let command = Command::LinkBlob {
            repository: self.repository.clone(),
            digest: self.digest.clone(),
            size,
            principal: self.principal.clone(),
        };
        match self.registry.propose(command, Budget::start()).await? {
            (index, Response::Committed { .. } | Response::Done) => {
                Ok(BlobPushed { digest: self.digest.clone(), size, copies: nodes.len(), index })
            }
            (_, other) => Err(refused(other)),
        }
    }
}

impl Registry {
    /// The digest of bytes whose running hash is known, by the algorithm of the `wanted` one (P26).
    async fn digest_of(&self, hash_state: HashState, parts: &[HeldPart], wanted: &Digest) -> Result<Digest> {
        if hash_state.algorithm == wanted.algorithm() {
            let hasher = Hasher::resume(&hash_state).map_err(Error::internal)?;
            return Ok(hasher.finish());
        }
        Ok(self.0.replicas.hash_parts(parts, wanted.algorithm()).await?)
    }
}

fn check_digest(expected: &Digest, actual: Digest) -> Result<()> {
    if *expected == actual { Ok(()) } else { Err(Error::DigestMismatch { expected: expected.clone(), actual }) }
}

/// Says what is wrong with a push that cannot be stored for lack of a quorum: a small body with a wrong digest is the
/// client's fault all the same (I11).
async fn judge(resume: HashState, chunk: Chunk, digest: &Digest) -> Error {
    let unlucky = Error::no_quorum();
    if resume.algorithm != digest.algorithm() || chunk.length.is_some_and(|length| length > JUDGED_BYTES_MAX) {
        return unlucky;
    }
    let Ok(mut hasher) = Hasher::resume(&resume) else { return unlucky };
    let mut body = chunk.body;
    let mut length = 0;
    while let Some(bytes) = body.next().await {
        let Ok(bytes) = bytes else { return Error::BodyBroken };
        length += bytes.len() as u64;
        if length > JUDGED_BYTES_MAX {
            return unlucky;
        }
        hasher.update(&bytes);
    }
    if let Err(error) = check_length(chunk.length, length, true) {
        return error;
    }
    check_digest(digest, hasher.finish()).err().unwrap_or(unlucky)
}

/// Takes in a body that is not needed: a client that still sends would not hear the answer.
async fn drain(mut body: Body) {
    while let Some(Ok(_)) = body.next().await {}
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::oci::Algorithm;

    fn chunk(length: Option<u64>, pieces: Vec<std::io::Result<&'static [u8]>>) -> Chunk {
        let pieces = pieces.into_iter().map(|piece| piece.map(Bytes::from_static));
        Chunk { offset: None, length, body: futures::stream::iter(pieces.collect::<Vec<_>>()).boxed() }
    }

    fn judged(resume: &Hasher, chunk: Chunk, digest: &Digest) -> Error {
        judge(resume.state(), chunk, digest).now_or_never().unwrap()
    }

    #[test]
    fn a_wrong_digest_is_said_without_a_quorum() {
        let mut before = Hasher::new(Algorithm::Sha256);
        before.update(b"one ");
        let right = Digest::of(Algorithm::Sha256, b"one two");
        let two = || chunk(Some(3), vec![Ok(b"t"), Ok(b"wo")]);
        assert!(matches!(judged(&before, two(), &right), Error::NoQuorum { .. }));
        let wrong = Digest::of(Algorithm::Sha256, b"two");
        let refused = judged(&before, two(), &wrong);
        assert!(matches!(refused, Error::DigestMismatch { expected, actual } if expected == wrong && actual == right));
        let short = chunk(Some(4), vec![Ok(b"two")]);
        assert!(matches!(judged(&before, short, &right), Error::SizeInvalid { .. }));
        let broken = chunk(None, vec![Ok(b"two"), Err(std::io::ErrorKind::TimedOut.into())]);
        assert!(matches!(judged(&before, broken, &right), Error::BodyBroken));
    }

    #[test]
    fn large_bodies_are_not_read_in_vain() {
        static PIECE: [u8; 1 << 20] = [0; 1 << 20];
        let before = Hasher::new(Algorithm::Sha256);
        let digest = Digest::of(Algorithm::Sha256, b"");
        let unread = futures::stream::once(async { panic!("read") }).boxed();
        let said = Chunk { offset: None, length: Some(JUDGED_BYTES_MAX + 1), body: unread };
        assert!(matches!(judged(&before, said, &digest), Error::NoQuorum { .. }));
        let endless = futures::stream::repeat_with(|| Ok(Bytes::from_static(&PIECE))).boxed();
        let unsaid = Chunk { offset: None, length: None, body: endless };
        assert!(matches!(judged(&before, unsaid, &digest), Error::NoQuorum { .. }));
    }
}
