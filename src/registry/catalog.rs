//! Listing repositories.

use crate::oci::RepositoryName;

use super::tags::page;
use super::{Caller, Page, Registry, Result};

impl Registry {
    /// Lists the repositories after `after`, in byte order, at most `limit` of them (and never more than 10,000).
    ///
    /// # Errors
    ///
    /// [`super::Error::NoQuorum`] only if the caller waits for a log index that does not come.
    ///
    /// Spec: the `_catalog` of the Docker Registry HTTP API V2.
    pub async fn catalog(&self, caller: &Caller, after: Option<&str>, limit: usize) -> Result<Page<RepositoryName>> {
        let view = self.view(caller).await?;
        let (items, more) = page(limit, |count| view.state.repositories(after, count));
        Ok(Page { items, more, stale: !view.fresh })
    }
}
