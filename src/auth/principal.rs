//! Who asks, for what, and the answer (pure).

use crate::oci::RepositoryName;

/// Who is asking: a user's name, or nobody in particular.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Principal {
    /// Nobody in particular: no credentials were sent, or none are asked for.
    Anonymous,
    /// A user whose password was right.
    User(String),
}

impl Principal {
    /// Returns the text kept in agreed state: empty for anonymous.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Anonymous => "",
            Self::User(name) => name,
        }
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// `GET /v2/`.
    Base,
    /// Reading a repository.
    Pull,
    /// Writing to a repository.
    Push,
    /// Removing from a repository.
    Delete,
    /// Listing the repositories.
    Catalog,
    /// `/api` and `/metrics`.
    Administer,
}

/// What the asker is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Go on.
    Allowed,
    /// 401 with a challenge.
    Unauthenticated,
    /// 403.
    Denied,
}

/// Decides: without authentication all is allowed, with it users may do everything and others nothing.
pub(super) fn decide(
    is_on: bool,
    principal: &Principal,
    action: Action,
    repository: Option<&RepositoryName>,
) -> Decision {
    // Roles will look at both; listed here so that no action is let through by forgetting it.
    let _ = repository;
    match (is_on, principal, action) {
        (false, _, _) => Decision::Allowed,
        (true, Principal::Anonymous, _) => Decision::Unauthenticated,
        (
            true,
            Principal::User(_),
            Action::Base | Action::Pull | Action::Push | Action::Delete | Action::Catalog | Action::Administer,
        ) => Decision::Allowed,
    }
}
