//! What becomes of content that nothing needs any more.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::units::duration;

/// Collection: content that nothing needs any more goes while the registry runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gc {
    /// How often the leader collects; 0: only when asked to.
    #[serde(with = "duration")]
    pub every: Duration,
    /// How long a blob that no manifest names is kept after a push, a mount or a client's question.
    #[serde(with = "duration")]
    pub lease: Duration,
    /// How long a manifest is kept that no tag, index or subject keeps.
    pub untagged: Untagged,
    /// How long bytes that nothing links stay on a disk.
    #[serde(with = "duration")]
    pub grace: Duration,
}

impl Default for Gc {
    fn default() -> Self {
        let hour = Duration::from_secs(3600);
        Self { every: hour, lease: hour, untagged: Untagged::Keep, grace: hour }
    }
}

/// What becomes of a manifest that nothing names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Untagged {
    /// It is kept.
    #[default]
    Keep,
    /// It goes when nothing has named it for so long.
    After(Duration),
}

impl Serialize for Untagged {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Keep => serializer.serialize_str("keep"),
            Self::After(age) => duration::serialize(age, serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Untagged {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "keep" {
            return Ok(Self::Keep);
        }
        let age = duration::parse(&text);
        age.map(Self::After).ok_or_else(|| {
            serde::de::Error::custom(format!("`{text}` is neither \"keep\" nor a duration like \"30d\""))
        })
    }
}

impl Gc {
    /// Checks what serde cannot.
    ///
    /// # Errors
    ///
    /// A setting and what would be right.
    pub(super) fn validate(&self) -> Result<(), (&'static str, String)> {
        if self.lease < Duration::from_secs(1) {
            return Err(("gc.lease", "it is less than a second: no push would come to its end".to_owned()));
        }
        match self.untagged {
            Untagged::After(age) if age < self.lease => {
                Err(("gc.untagged", "it is shorter than `gc.lease`: an index is pushed after its manifests".to_owned()))
            }
            _ => Ok(()),
        }
    }
}
