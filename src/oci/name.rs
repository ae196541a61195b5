//! Repository names.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};

/// Names a repository: the `<name>` of the API, at most 255 bytes.
///
/// Grammar: components of `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` joined by `/`. Cloning shares the text.
///
/// ```
/// use rafthold::oci::RepositoryName;
/// assert!("library/alpine".parse::<RepositoryName>().is_ok());
/// assert!("a..b".parse::<RepositoryName>().is_err());
/// ```
///
/// Spec: distribution-spec v1.1.1, "Pulling manifests".
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct RepositoryName(Arc<str>);

/// Says that a text does not match the grammar of repository names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("repository name does not match the grammar of the specification or is longer than 255 bytes")]
pub struct ParseNameError;

impl RepositoryName {
    /// The longest name, in bytes.
    pub const BYTES_MAX: usize = 255;

    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn component_is_valid(component: &str) -> bool {
    let bytes = component.as_bytes();
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    if !alphanumeric(first) || !alphanumeric(last) {
        return false;
    }
    // Runs between alphanumerics: one dot, one or two underscores, or any number of hyphens.
    bytes
        .split(alphanumeric)
        .filter(|run| !run.is_empty())
        .all(|run| matches!(run, b"." | b"_" | b"__") || run.iter().all(|byte| *byte == b'-'))
}

impl FromStr for RepositoryName {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() <= Self::BYTES_MAX && text.split('/').all(component_is_valid) {
            Ok(Self(text.into()))
        } else {
            Err(ParseNameError)
        }
    }
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for RepositoryName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
