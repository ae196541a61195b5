//! The htpasswd file: users and their bcrypt hashes.

use std::collections::HashMap;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::Error;
use super::basic::Credentials;

/// The largest file that is read, in bytes.
pub(super) const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The longest user name, in bytes.
pub(super) const USER_BYTES_MAX: usize = 255;

/// The highest cost that is accepted, as a power of two: one more check of it takes seconds.
const COST_MAX: u32 = 15;

/// Compared against when there is no user at all; no password is known for it.
const STAND_IN: &str = "$2b$10$L6Bc/AlTQHyd9liGgGEZyOFLPHNgyxeEPfgYfBCVxJ7JIlwxyVU3u";

/// What tells one version of the file from another: device, inode, length, and times in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    file: (u64, u64),
    length_bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            file: (metadata.dev(), metadata.ino()),
            length_bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// The users of one version of the file. Not `Debug`: it is made of secrets.
#[derive(Default)]
pub(super) struct Users {
    /// Hashes by user, 60 bytes each.
    hashes: HashMap<String, String>,
    /// The hashes again, in the file's order, for stand-ins.
    order: Vec<String>,
}

/// Returns the stamp of the file as it is now.
pub(super) fn stamp(path: &Path) -> std::io::Result<Stamp> {
    std::fs::metadata(path).map(|metadata| Stamp::of(&metadata))
}

/// Reads and checks the file; the stamp is of the very file that was read.
pub(super) fn read(path: &Path) -> Result<(Users, Stamp), Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(failed)?;
    let stamp = Stamp::of(&file.metadata().map_err(failed)?);
    let mut text = String::new();
    let length = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if length as u64 > FILE_BYTES_MAX {
        return Err(Error::TooLarge { path: path.to_owned(), max: FILE_BYTES_MAX });
    }
    let users = Users::parse(&text).map_err(|(line, reason)| Error::Line { path: path.to_owned(), line, reason })?;
    Ok((users, stamp))
}

impl Users {
    /// Parses the text of a file: `user:hash` per line, empty lines and lines that start with `#` ignored.
    ///
    /// The error is a line, counted from 1, and what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, (usize, &'static str)> {
        let mut users = Self::default();
        for (line, number) in text.lines().zip(1..) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (user, hash) = line.split_once(':').ok_or((number, "not user:hash"))?;
            if user.is_empty() || user.len() > USER_BYTES_MAX || user.chars().any(char::is_control) {
                return Err((number, "the user is empty, longer than 255 bytes or has control characters"));
            }
            check_hash(hash).map_err(|reason| (number, reason))?;
            if users.hashes.insert(user.to_owned(), hash.to_owned()).is_some() {
                return Err((number, "the user is listed above already"));
            }
            users.order.push(hash.to_owned());
        }
        Ok(users)
    }

    /// Says whether the password is the user's; one bcrypt whether the user exists or not.
    pub(super) fn verify(&self, secret: &[u8; 32], credentials: &Credentials) -> bool {
        let known = self.hashes.get(&credentials.user);
        let hash = known.map_or_else(|| self.stand_in(secret, &credentials.user), String::as_str);
        // The comparison inside is constant-time; a stand-in's verdict counts for nothing.
        let equal = bcrypt::verify(&credentials.password, hash).unwrap_or(false);
        equal & known.is_some()
    }

    /// A hash for a user that does not exist: always the same for one name, and drawn from the users' own, so that its
    /// cost says nothing even where costs differ.
    fn stand_in(&self, secret: &[u8; 32], user: &str) -> &str {
        if self.order.is_empty() {
            return STAND_IN;
        }
        let drawn = Sha256::new().chain_update(secret).chain_update(b"stand-in").chain_update(user).finalize();
        let drawn = drawn.iter().take(8).fold(0_u64, |word, byte| word << 8 | u64::from(*byte));
        let index = usize::try_from(drawn % self.order.len() as u64).expect("less than a length");
        &self.order[index]
    }
}

/// Accepts bcrypt in its sound forms only.
fn check_hash(hash: &str) -> Result<(), &'static str> {
    if !["$2a$", "$2b$", "$2y$"].iter().any(|prefix| hash.starts_with(prefix)) {
        return Err("the hash is not bcrypt (make it with htpasswd -B)");
    }
    let parts: bcrypt::HashParts = hash.parse().map_err(|_| "the bcrypt hash is malformed")?;
    if (4..=COST_MAX).contains(&parts.get_cost()) { Ok(()) } else { Err("the bcrypt cost is not between 4 and 15") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(password: &str) -> String {
        bcrypt::hash(password, 4).unwrap()
    }

    fn credentials(user: &str, password: &str) -> Credentials {
        Credentials { user: user.to_owned(), password: password.to_owned() }
    }

    #[test]
    fn right_passwords_pass_and_others_do_not() {
        let text = format!("# users\n\nann:{}\r\nbob:{}\n", hash("one"), hash("two").replacen("$2b$", "$2y$", 1));
        let users = Users::parse(&text).unwrap();
        let secret = [7; 32];
        assert!(users.verify(&secret, &credentials("ann", "one")));
        assert!(users.verify(&secret, &credentials("bob", "two")));
        assert!(!users.verify(&secret, &credentials("ann", "two")));
        assert!(!users.verify(&secret, &credentials("Ann", "one")));
        // A stand-in is somebody's hash: his password opens nothing under another name.
        for name in ["carl", "dora", "emil", "fay"] {
            assert!(!users.verify(&secret, &credentials(name, "one")));
            assert!(!users.verify(&secret, &credentials(name, "two")));
        }
    }

    #[test]
    fn a_file_without_users_lets_nobody_in() {
        let users = Users::parse("\n# none\n").unwrap();
        assert!(!users.verify(&[0; 32], &credentials("ann", "one")));
        assert!(STAND_IN.parse::<bcrypt::HashParts>().is_ok());
    }

    #[test]
    fn bad_lines_are_named() {
        let good = hash("x");
        for (line, reason) in [
            ("ann".to_owned(), "user:hash"),
            (format!(":{good}"), "user is empty"),
            (format!("a\u{7}n:{good}"), "control"),
            ("ann:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=".to_owned(), "not bcrypt"),
            ("ann:$apr1$abc$def".to_owned(), "not bcrypt"),
            ("ann:plain".to_owned(), "not bcrypt"),
            (format!("ann:{}", good.replacen("$2b$", "$2x$", 1)), "not bcrypt"),
            (format!("ann:{}", &good[..59]), "malformed"),
            (format!("ann:{}", good.replacen("$04$", "$31$", 1)), "cost"),
            (format!("ann:{good}\nann:{good}"), "listed above"),
        ] {
            let (number, said) = Users::parse(&line).err().unwrap();
            assert_eq!(number, line.lines().count());
            assert!(said.contains(reason), "{said}");
        }
    }
}
