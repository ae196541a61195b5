//! The `Basic` scheme: a header's text to a user and a password (pure).
//!
//! Spec: RFC 7617.

use std::fmt;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// Standard base64, padded or not: clients differ. Bits that do not fit are refused, so each text has one value.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The longest header that is looked at, in bytes: a name and a password need far less.
const HEADER_BYTES_MAX: usize = 4096;

/// bcrypt looks at no more than this many bytes, so longer passwords would be equal to their first part.
const PASSWORD_BYTES_MAX: usize = 72;

/// A user's name and a password, both not empty. The password is never shown.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) user: String,
    pub(super) password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

impl Credentials {
    /// Parses the value of an `Authorization` header.
    ///
    /// `None` for another scheme, bad base64, text that is not UTF-8, no colon, an empty or endless part, or control
    /// characters. (A NUL would make bcrypt take `a\0a` for `a`.)
    pub(super) fn parse(header: &str) -> Option<Self> {
        if header.len() > HEADER_BYTES_MAX {
            return None;
        }
        let (scheme, rest) = header.trim_matches([' ', '\t']).split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let text = String::from_utf8(BASE64.decode(rest.trim_start_matches(' ')).ok()?).ok()?;
        let (user, password) = text.split_once(':')?;
        let is_good = |part: &str, max: usize| {
            !part.is_empty() && part.len() <= max && !part.chars().any(|character| character.is_ascii_control())
        };
        (is_good(user, super::htpasswd::USER_BYTES_MAX) && is_good(password, PASSWORD_BYTES_MAX))
            .then(|| Self { user: user.to_owned(), password: password.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(header: &str, expected: Option<(&str, &str)>) {
        let found = Credentials::parse(header);
        let found = found.as_ref().map(|found| (found.user.as_str(), found.password.as_str()));
        assert_eq!(found, expected, "{header}");
    }

    #[test]
    fn good_headers_parse() {
        check("Basic dXNlcjpwYXNz", Some(("user", "pass")));
        check("basic   dXNlcjpwYXNz", Some(("user", "pass")));
        check("BASIC YTpi", Some(("a", "b")));
        check("Basic YWE6Yg==", Some(("aa", "b")));
        check("Basic YWE6Yg", Some(("aa", "b")));
        check("Basic YWE6YmI=", Some(("aa", "bb")));
        check("Basic dXNlcjpwYTpzcw==", Some(("user", "pa:ss")));
        check("Basic 77+9OsOk", Some(("\u{fffd}", "\u{e4}")));
    }

    #[test]
    fn malformed_headers_are_nobody() {
        for header in [
            "",
            "Basic",
            "Basic ",
            "Bearer",
            "Bearer dXNlcjpwYXNz",
            "Basic dXNlcg==",  // no colon
            "Basic dXNlcjo=",  // empty password
            "Basic OnBhc3M=",  // empty user
            "Basic OjpwYXNz",  // empty user, a colon in the password
            "Basic /zph",      // not UTF-8
            "Basic YQBhOmI=",  // NUL in the user
            "Basic YTphAGE=",  // NUL in the password
            "Basic YTpiCg==",  // newline
            "Basic YTpi=",     // padding that is not wanted
            "Basic YWE6Yg===", // too much padding
            "Basic YWE6Yh==",  // bits that do not fit
            "Basic YWE6Y",     // five letters of a group
            "Basic YTp%",      // not the alphabet
            "Basic YT pi",     // inner space
            "Basic dXNlcjpwYXNz, Basic dXNlcjpwYXNz",
        ] {
            check(header, None);
        }
    }

    #[test]
    fn long_parts_are_nobody() {
        let encode = |text: &str| {
            const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
            let letters = text.as_bytes().chunks(3).flat_map(|group| {
                let word = group.iter().chain([&0; 2]).take(3).fold(0_u32, |word, byte| word << 8 | u32::from(*byte));
                (0..=group.len()).map(move |n| char::from(DIGITS[(word >> (18 - 6 * n)) as usize & 63]))
            });
            format!("Basic {}", letters.collect::<String>())
        };
        assert!(Credentials::parse(&encode(&format!("u:{}", "x".repeat(72)))).is_some());
        assert!(Credentials::parse(&encode(&format!("u:{}", "x".repeat(73)))).is_none());
        assert!(Credentials::parse(&encode(&format!("{}:p", "x".repeat(256)))).is_none());
        assert!(Credentials::parse(&encode(&"x".repeat(1_000_000))).is_none());
    }

    #[test]
    fn passwords_are_not_shown() {
        let credentials = Credentials::parse("Basic dXNlcjpwYXNz").unwrap();
        assert!(!format!("{credentials:?}").contains("pass"));
    }
}
