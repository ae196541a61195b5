//! Settings of `auth`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where the users are listed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// A htpasswd file with bcrypt hashes (`htpasswd -B`); without one everybody may do everything.
    pub htpasswd: Option<PathBuf>,
}

impl Config {
    /// Checks what can be checked without the disk.
    ///
    /// # Errors
    ///
    /// A sentence that names the setting.
    pub fn validate(&self) -> Result<(), String> {
        match &self.htpasswd {
            Some(path) if path.as_os_str().is_empty() => Err("auth.htpasswd must not be empty".to_owned()),
            _ => Ok(()),
        }
    }
}
