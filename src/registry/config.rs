//! Policies of the registry.

use std::time::Duration;

use crate::meta::Consistency;
use crate::meta::command::CollectionRules;

/// What is decided once for all repositories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// How fresh answers are unless a request asks otherwise.
    pub read: Consistency,
    /// Accept manifests and indexes whose references are not there.
    pub sparse: bool,
    /// How long an upload session may lie untouched.
    pub upload_ttl: Duration,
    /// Open upload sessions per principal.
    pub uploads_per_principal_max: u32,
    /// The largest manifest, in bytes.
    pub manifest_bytes_max: usize,
    /// How long collection spares what nothing names (P23).
    pub rules: CollectionRules,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            read: Consistency::Linearizable,
            sparse: false,
            upload_ttl: Duration::from_secs(24 * 60 * 60),
            uploads_per_principal_max: 10_000,
            manifest_bytes_max: 4 << 20,
            rules: CollectionRules { lease_ms: 3_600_000, untagged_ms: None },
        }
    }
}

impl Config {
    /// Checks what serde cannot.
    ///
    /// # Errors
    ///
    /// A setting and what would be right.
    pub fn validate(&self) -> std::result::Result<(), (&'static str, String)> {
        if self.upload_ttl < Duration::from_secs(60) {
            return Err((
                "registry.upload_ttl",
                "it is less than a minute: uploads would end while they run".to_owned(),
            ));
        }
        if self.uploads_per_principal_max == 0 {
            return Err(("registry.uploads_per_principal_max", "it is 0: nobody could push".to_owned()));
        }
        // The specification asks for 4 MiB; a command of the log carries a manifest's references and annotations.
        if !(4 << 20..=16 << 20).contains(&self.manifest_bytes_max) {
            return Err(("registry.manifest_bytes_max", "it is not between 4MiB and 16MiB".to_owned()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_senseless_settings_are_not() {
        assert_eq!(Config::default().validate(), Ok(()));
        for (config, key) in [
            (Config { upload_ttl: Duration::ZERO, ..Config::default() }, "registry.upload_ttl"),
            (Config { uploads_per_principal_max: 0, ..Config::default() }, "registry.uploads_per_principal_max"),
            (Config { manifest_bytes_max: 1 << 20, ..Config::default() }, "registry.manifest_bytes_max"),
        ] {
            assert_eq!(config.validate().unwrap_err().0, key);
        }
    }
}
