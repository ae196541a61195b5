//! Says who is asking and what they may do.
//!
//! CONTRACT (bodies to be written).

use crate::oci::RepositoryName;

#[derive(Debug, Clone, Default)]
pub struct Config {
    /// A htpasswd file with bcrypt hashes; without one everybody may do everything.
    pub htpasswd: Option<std::path::PathBuf>,
}

/// Who is asking: a user's name, or nobody in particular.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Principal {
    Anonymous,
    User(String),
}
impl Principal {
    /// As kept in agreed state: empty for anonymous.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Anonymous => "",
            Self::User(name) => name,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /** `GET /v2/` */
    Base,
    Pull,
    Push,
    Delete,
    Catalog,
    /** `/api`, `/metrics` */
    Administer,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Allowed,
    /** 401 with a challenge */
    Unauthenticated,
    /** 403 */
    Denied,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read {path}")]
    Read { path: std::path::PathBuf, source: std::io::Error },
    #[error("{path} line {line} is not user:bcrypt-hash")]
    Line { path: std::path::PathBuf, line: usize },
}

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Auth {}
impl Auth {
    pub fn open(config: Config) -> Result<Self, Error> {
        let _ = config;
        todo!()
    }
    /// Whether credentials are asked for at all.
    pub fn is_on(&self) -> bool {
        todo!()
    }
    /// Who sends this `Authorization` header; `None` if the credentials are wrong or malformed (401). bcrypt runs off the runtime; verdicts are cached briefly.
    pub async fn authenticate(&self, authorization: Option<&str>) -> Option<Principal> {
        let _ = authorization;
        todo!()
    }
    /// The one authorization point.
    pub fn decide(&self, principal: &Principal, action: Action, repository: Option<&RepositoryName>) -> Decision {
        let _ = (principal, action, repository);
        todo!()
    }
}
