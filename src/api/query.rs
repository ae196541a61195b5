//! The parameters of a request (pure).

use http::StatusCode;

use crate::oci::{Digest, ErrorCode};

use super::error::Failure;
use super::route::percent_decode;

/// Pairs of one request.
const PAIRS_MAX: usize = 256;

/// Items of one page of a list, unless fewer are asked for.
const PAGE_MAX: usize = 1000;

/// The decoded parameters of a request, in order; unknown ones are nobody's business.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// Decodes a query: `+` is a space, escapes are decoded once, control characters are refused.
    pub(super) fn parse(text: Option<&str>) -> Result<Self, Failure> {
        let mut pairs = Vec::new();
        for pair in text.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            if pairs.len() >= PAIRS_MAX {
                return Err(invalid("too many query parameters"));
            }
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            pairs.push((decode(key)?, decode(value)?));
        }
        Ok(Self(pairs))
    }

    /// Returns every value of a parameter.
    pub(super) fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Returns the value of a parameter that may be given once.
    pub(super) fn one(&self, key: &'static str) -> Result<Option<&str>, Failure> {
        let mut values = self.all(key);
        match (values.next(), values.next()) {
            (value, None) => Ok(value),
            (_, Some(_)) => Err(invalid(&format!("query parameter {key} is given more than once"))),
        }
    }

    /// Returns a digest.
    pub(super) fn digest(&self, key: &'static str) -> Result<Option<Digest>, Failure> {
        let refused = |error: crate::oci::ParseDigestError| {
            Failure::new(StatusCode::BAD_REQUEST, ErrorCode::DigestInvalid, &error.to_string())
        };
        self.one(key)?.map(|text| text.parse().map_err(refused)).transpose()
    }

    /// Returns how many items a page may have: `n`, at most a thousand.
    pub(super) fn limit(&self) -> Result<usize, Failure> {
        let Some(text) = self.one("n")? else { return Ok(PAGE_MAX) };
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(invalid("n is not a whole number"));
        }
        // More digits than fit are more items than anybody gets.
        Ok(text.parse().map_or(PAGE_MAX, |n: usize| n.min(PAGE_MAX)))
    }
}

fn decode(text: &str) -> Result<String, Failure> {
    let spaced = text.replace('+', " ");
    let decoded = percent_decode(&spaced).ok_or_else(|| invalid("query is not percent-encoded UTF-8"))?;
    if decoded.chars().any(char::is_control) {
        return Err(invalid("query holds control characters"));
    }
    Ok(decoded.into_owned())
}

fn invalid(message: &str) -> Failure {
    Failure::new(StatusCode::BAD_REQUEST, ErrorCode::Unsupported, message)
}

/// Encodes a value for a query: everything but letters, digits and `-._~/:` is escaped.
pub(super) fn encode(text: &str) -> String {
    use std::fmt::Write;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/:".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").expect("a string takes every text");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn query(text: &str) -> Query {
        Query::parse(Some(text)).unwrap()
    }

    #[test]
    fn parameters_are_decoded_once() {
        let query = query("digest=sha256%3Aab&tag=a&tag=b%2Bc&&empty&x=1=2&s=a+b&d=%2541");
        assert_eq!(query.one("digest").unwrap(), Some("sha256:ab"));
        assert_eq!(query.all("tag").collect::<Vec<_>>(), ["a", "b+c"]);
        assert_eq!(query.one("empty").unwrap(), Some(""));
        assert_eq!(query.one("x").unwrap(), Some("1=2"));
        assert_eq!(query.one("s").unwrap(), Some("a b"));
        assert_eq!(query.one("d").unwrap(), Some("%41"));
        assert_eq!(query.one("absent").unwrap(), None);
        assert_eq!(Query::parse(None).unwrap(), Query::default());
    }

    #[test]
    fn repeated_malformed_and_endless_parameters_are_refused() {
        assert!(query("digest=a&digest=a").one("digest").is_err());
        for text in ["a=%", "a=%4", "a=%zz", "a=%ff", "a=%0d%0a", "a=%00", "a=%7f", "%0a=1", "a=%c2%85"] {
            assert!(Query::parse(Some(text)).is_err(), "{text}");
        }
        assert!(Query::parse(Some(&"a=1&".repeat(256))).is_ok());
        assert!(Query::parse(Some(&"a=1&".repeat(257))).is_err());
    }

    #[test]
    fn page_sizes_are_clamped_or_refused() {
        for (text, limit) in [
            ("", 1000),
            ("n=5", 5),
            ("n=0", 0),
            ("n=1000000000", 1000),
            ("n=9999999999999999999999", 1000),
            ("n=007", 7),
        ] {
            assert_eq!(query(text).limit().ok(), Some(limit), "{text}");
        }
        for text in ["n=-1", "n=abc", "n=1.5", "n=", "n=%2B1", "n=1&n=1", "n=0x1", "n=٣"] {
            assert!(query(text).limit().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn encoded_values_come_back(text in "[^\\pC]{0,30}") {
            let query = query(&format!("a={}", encode(&text)));
            prop_assert_eq!(query.one("a").unwrap(), Some(text.as_str()));
        }
    }
}
