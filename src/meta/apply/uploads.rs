//! Upload sessions (P24 to P28).

use super::{
    Answer, Context, Digest, HashState, HeldExtent, LogTime, NodeId, Rejection, RepositoryName, Response, State,
    Upload, UploadId,
};

/// How many extents a session may list: 50 GB in chunks of 5 MB, and about 1 MiB of state.
const EXTENTS_MAX: u32 = 10_000;

impl State {
    pub(super) fn open_upload(&mut self, id: UploadId, upload: Upload, sessions_max: u32) -> Answer {
        if let Some(old) = self.uploads.get(&id) {
            // The same session proposed under a new request id, as ids are drawn from 128 bits.
            let same = old.repository == upload.repository && old.principal == upload.principal;
            return if same { Ok(Response::Done) } else { Err(Rejection::UploadUnknown) };
        }
        let open = self.uploads_of.get(&upload.principal).copied().unwrap_or(0);
        if open >= sessions_max {
            return Err(Rejection::TooManyUploads { max: sessions_max });
        }
        self.put_upload(id, upload);
        Ok(Response::Done)
    }

    /// Finds a session of a repository; another repository's is as unknown as none (I10).
    pub(super) fn find_upload(&self, id: UploadId, repository: &RepositoryName) -> Result<&Upload, Rejection> {
        self.upload(repository, id).ok_or(Rejection::UploadUnknown)
    }

    pub(super) fn append_extent(
        &mut self,
        context: Context,
        id: UploadId,
        extent: &HeldExtent,
        hash_state: &HashState,
    ) -> Answer {
        let upload = self.uploads.get(&id).ok_or(Rejection::UploadUnknown)?;
        if upload.closed.is_some() {
            return Err(Rejection::UploadClosed);
        }
        let length = if self.extents.get(&extent.id) == Some(&id) {
            upload.length
        } else {
            let length = self.length_with(upload, extent)?;
            if extent.length > 0 {
                self.put_extent(id, extent);
            }
            length
        };
        self.change_upload(id, |upload| {
            if upload.length != length {
                upload.length = length;
                upload.hash_state = hash_state.clone();
            }
            renew(upload, context);
        });
        Ok(Response::Appended { length })
    }

    /// The session's length with a new extent, which must begin where the session ends.
    fn length_with(&self, upload: &Upload, extent: &HeldExtent) -> Result<u64, Rejection> {
        let end = extent.offset.checked_add(extent.length);
        let Some(end) = end.filter(|_| extent.offset == upload.length && !self.extents.contains(&extent.id)) else {
            return Err(Rejection::OffsetMismatch { length: upload.length });
        };
        if upload.extents.len() >= EXTENTS_MAX as usize {
            return Err(Rejection::TooManyExtents { max: EXTENTS_MAX });
        }
        Ok(end)
    }

    pub(super) fn replace_holders(&mut self, context: Context, id: UploadId, holders: &[NodeId]) -> Answer {
        let upload = self.uploads.get(&id).ok_or(Rejection::UploadUnknown)?;
        if upload.closed.is_some() {
            return Err(Rejection::UploadClosed);
        }
        self.change_upload(id, |upload| {
            upload.holders = holders.to_vec();
            renew(upload, context);
        });
        Ok(Response::Done)
    }

    /// Appends, links and closes in one step; a repeated commit of the same blob is answered alike (P27).
    pub(super) fn commit_upload(
        &mut self,
        context: Context,
        id: UploadId,
        last: Option<&HeldExtent>,
        (digest, size): (&Digest, u64),
    ) -> Answer {
        let upload = self.uploads.get(&id).ok_or(Rejection::UploadUnknown)?;
        let committed = Response::Committed { digest: digest.clone(), size };
        match &upload.closed {
            Some(closed) if closed == digest => {
                return Ok(Response::Committed { digest: digest.clone(), size: upload.length });
            }
            Some(_) => return Err(Rejection::UploadClosed),
            None => {}
        }
        let length = match last.filter(|last| self.extents.get(&last.id) != Some(&id)) {
            Some(last) => self.length_with(upload, last)?,
            None => upload.length,
        };
        // The proposer hashed other bytes than the session now has: somebody appended in between.
        if length != size {
            return Err(Rejection::OffsetMismatch { length: upload.length });
        }
        self.check_size(digest, size)?;
        let repository = upload.repository.clone();
        self.link(context, &repository, digest, size);
        self.clear_extents(id);
        self.upload_ends(context, id);
        self.change_upload(id, |upload| {
            upload.length = size;
            upload.closed = Some(digest.clone());
            renew(upload, context);
        });
        Ok(committed)
    }

    pub(super) fn cancel_upload(&mut self, context: Context, id: UploadId, repository: &RepositoryName) -> Answer {
        // A closed session is kept for the answer to a repeated `PUT`; to cancel, there is nothing left.
        if self.find_upload(id, repository)?.closed.is_some() {
            return Err(Rejection::UploadUnknown);
        }
        self.upload_ends(context, id);
        self.remove_upload(id);
        Ok(Response::Done)
    }

    pub(super) fn expire_uploads(&mut self, context: Context, ids: &[UploadId]) -> Response {
        for id in ids {
            // Used since the leader looked: spared.
            if self.uploads.get(id).is_some_and(|upload| upload.expires <= context.now) {
                self.upload_ends(context, *id);
                self.remove_upload(*id);
            }
        }
        Response::Done
    }
}

fn renew(upload: &mut Upload, context: Context) {
    upload.expires = LogTime(context.now.0.saturating_add(upload.ttl_ms));
}
