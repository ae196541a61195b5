//! Listing tags.

use crate::oci::{RepositoryName, Tag};

use super::{Caller, Error, Page, Registry, Result};

/// The most items in one page of names, whatever a client asks for.
pub(super) const PAGE_ITEMS_MAX: usize = 10_000;

impl Registry {
    /// Lists the tags after `after`, in byte order, at most `limit` of them (and never more than 10,000).
    ///
    /// `after` need not be a tag. A limit of 0 gives an empty page that says there is no more.
    ///
    /// # Errors
    ///
    /// [`Error::NameUnknown`] if the repository holds nothing; [`Error::NoQuorum`] if that could not be confirmed.
    ///
    /// Spec: distribution-spec v1.1.1 end-8a, end-8b.
    pub async fn tags(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page<Tag>> {
        let view = self.view(caller).await?;
        if !view.state.repository_exists(repository) {
            return Err(if view.fresh { Error::NameUnknown } else { Error::no_quorum() });
        }
        let (items, more) = page(limit, |count| view.state.tags(repository, after, count));
        Ok(Page { items, more, stale: !view.fresh })
    }
}

/// Takes one item more than is wanted, to know whether there is one.
pub(super) fn page<T>(limit: usize, take: impl FnOnce(usize) -> Vec<T>) -> (Vec<T>, bool) {
    let limit = limit.min(PAGE_ITEMS_MAX);
    if limit == 0 {
        return (Vec::new(), false);
    }
    let mut items = take(limit + 1);
    let more = items.len() > limit;
    items.truncate(limit);
    (items, more)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_says_whether_there_is_more() {
        let take = |count: usize| (0..5).take(count).collect::<Vec<_>>();
        assert_eq!(page(4, take), (vec![0, 1, 2, 3], true));
        assert_eq!(page(5, take), (vec![0, 1, 2, 3, 4], false));
        assert_eq!(page(usize::MAX, take), (vec![0, 1, 2, 3, 4], false));
        assert_eq!(page(0, take), (Vec::new(), false));
    }

    #[test]
    fn no_page_is_without_bounds() {
        let (items, more) = page(usize::MAX, |count| vec![(); count]);
        assert_eq!((items.len(), more), (PAGE_ITEMS_MAX, true));
    }
}
