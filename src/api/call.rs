//! One request, judged so far.

use http::request::Parts as Head;
use http::{HeaderMap, Method};

use crate::registry::{Caller, Registry};

use super::Parts;
use super::error::Failure;
use super::headers;
use super::query::Query;

/// A request whose caller may make it.
pub(super) struct Call<'a> {
    pub(super) parts: &'a Parts,
    pub(super) method: Method,
    pub(super) headers: HeaderMap,
    pub(super) query: Query,
    pub(super) caller: Caller,
}

impl<'a> Call<'a> {
    pub(super) fn new(parts: &'a Parts, head: Head, principal: crate::auth::Principal) -> Result<Self, Failure> {
        let caller = Caller {
            principal,
            consistency: headers::consistency(&head.headers)?,
            wait_for: headers::wait_for(&head.headers)?,
        };
        let query = Query::parse(head.uri.query())?;
        Ok(Self { parts, method: head.method, headers: head.headers, query, caller })
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.parts.registry
    }

    pub(super) fn is_head(&self) -> bool {
        self.method == Method::HEAD
    }
}
