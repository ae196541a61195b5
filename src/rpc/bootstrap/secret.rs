//! The secret that all first nodes share.

use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use aws_lc_rs::hmac;

use crate::env::Env;

use super::files;
use super::{Error, Result};

/// Fewer bytes could be guessed.
const BYTES_MIN: usize = 32;

/// The secret that all first nodes share: 32 random bytes or more; never printed.
#[derive(Clone)]
pub struct Secret(pub(super) hmac::Key);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// Reads the secret from a file: raw bytes, or hex with blanks around it.
    ///
    /// # Errors
    ///
    /// - [`Error::SecretExposed`] if every user of the machine may read or change the file.
    /// - [`Error::SecretShort`] if it holds fewer than 32 bytes.
    /// - [`Error::File`] if it cannot be read.
    pub fn load(path: &Path) -> Result<Self> {
        let wrap = |source| Error::File { doing: "read", path: path.to_owned(), source };
        let mode = fs::metadata(path).map_err(wrap)?.permissions().mode() & 0o777;
        if mode & 0o007 != 0 {
            return Err(Error::SecretExposed { path: path.to_owned(), mode });
        }
        let bytes = decode(&fs::read(path).map_err(wrap)?);
        if bytes.len() < BYTES_MIN {
            return Err(Error::SecretShort { path: path.to_owned(), bytes: bytes.len() });
        }
        Ok(Self::of(&bytes))
    }

    /// Draws a new secret and writes it to a file that only this user may read.
    ///
    /// # Errors
    ///
    /// [`Error::File`].
    pub fn generate(env: &Env, path: &Path) -> Result<Self> {
        let mut bytes = [0; BYTES_MIN];
        env.seed.fill(&mut bytes);
        let mut text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        text.push('\n');
        files::write_private(path, text.as_bytes())?;
        Ok(Self::of(&bytes))
    }

    /// Draws a secret that nobody else knows: for a node that joined by a token and lets nobody in by a secret.
    #[must_use]
    pub fn unknown(env: &Env) -> Self {
        let mut bytes = [0; BYTES_MIN];
        env.seed.fill(&mut bytes);
        Self::of(&bytes)
    }

    pub(super) fn of(bytes: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }
}

/// Hex if it is nothing else, raw bytes as they stand otherwise.
fn decode(content: &[u8]) -> Vec<u8> {
    let text = content.trim_ascii();
    if text.is_empty() || !text.len().is_multiple_of(2) || !text.iter().all(u8::is_ascii_hexdigit) {
        return content.to_vec();
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok()).unwrap_or(0);
    text.chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::testing::env;

    fn load(content: &[u8], mode: u32) -> Result<Secret> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        Secret::load(&path)
    }

    #[test]
    fn hex_and_raw_are_read_and_short_or_open_files_refused() {
        assert!(load(&[0xfe; 32], 0o600).is_ok());
        assert!(load(&[0xfe; 32], 0o640).is_ok());
        assert!(load(format!("{}\n", "ab".repeat(32)).as_bytes(), 0o400).is_ok());
        assert!(matches!(load(&[0xfe; 31], 0o600), Err(Error::SecretShort { bytes: 31, .. })));
        assert!(matches!(load("ab".repeat(31).as_bytes(), 0o600), Err(Error::SecretShort { bytes: 31, .. })));
        assert!(matches!(load(b"", 0o600), Err(Error::SecretShort { bytes: 0, .. })));
        assert!(matches!(load(&[0xfe; 32], 0o604), Err(Error::SecretExposed { mode: 0o604, .. })));
    }

    #[test]
    fn a_generated_secret_is_private_and_loads() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        Secret::generate(&env(), &path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        Secret::load(&path).unwrap();
    }

    #[test]
    fn hex_and_the_bytes_it_stands_for_are_one_secret() {
        assert_eq!(decode("aB".repeat(32).as_bytes()), vec![0xab; 32]);
        assert_eq!(decode(b"  00ff \n"), [0, 255]);
        assert_eq!(decode(b"0x"), b"0x");
    }
}
