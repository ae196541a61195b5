//! Preconditions: `If-Match`, `If-None-Match`, `If-Range` (pure).
//!
//! The entity tag of content is its digest. Tags that are no digest of ours match nothing; weak ones match only where RFC
//! 9110 compares weakly.

use http::{HeaderMap, HeaderName, StatusCode, header};

use crate::oci::{Digest, ErrorCode};
use crate::registry::Condition;

use super::error::Failure;
use super::headers;

/// The entity tags of one header.
enum Tags {
    Any,
    List(Vec<Listed>),
}

struct Listed {
    weak: bool,
    digest: Digest,
}

impl Tags {
    fn of(headers: &HeaderMap, name: &HeaderName) -> Option<Self> {
        let mut lines = headers.get_all(name).iter().peekable();
        lines.peek()?;
        let mut list = Vec::new();
        for line in lines {
            // Digests hold no comma, so no tag of ours is torn apart.
            for text in line.to_str().unwrap_or_default().split(',').map(str::trim) {
                if text == "*" {
                    return Some(Self::Any);
                }
                list.extend(listed(text));
            }
        }
        Some(Self::List(list))
    }

    fn matches_weakly(&self, digest: &Digest) -> bool {
        match self {
            Self::Any => true,
            Self::List(list) => list.iter().any(|listed| listed.digest == *digest),
        }
    }

    fn matches_strongly(&self, digest: &Digest) -> bool {
        match self {
            Self::Any => true,
            Self::List(list) => list.iter().any(|listed| !listed.weak && listed.digest == *digest),
        }
    }

    fn strong(self) -> Vec<Digest> {
        match self {
            Self::Any => Vec::new(),
            Self::List(list) => list.into_iter().filter(|listed| !listed.weak).map(|listed| listed.digest).collect(),
        }
    }
}

fn listed(text: &str) -> Option<Listed> {
    let (weak, text) = text.strip_prefix("W/").map_or((false, text), |rest| (true, rest));
    // Some clients leave the quotes out.
    let digest = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
    Some(Listed { weak, digest: digest.parse().ok()? })
}

/// What becomes of a GET or HEAD of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// Answer with the content.
    Content,
    /// 304: the client has it.
    NotModified,
}

/// Judges a read of `digest`.
///
/// # Errors
///
/// 412 if `If-Match` names other content only.
pub(super) fn reading(headers: &HeaderMap, digest: &Digest) -> Result<Reading, Failure> {
    if Tags::of(headers, &header::IF_MATCH).is_some_and(|tags| !tags.matches_strongly(digest)) {
        let failure = Failure::new(StatusCode::PRECONDITION_FAILED, ErrorCode::Denied, "If-Match names other content");
        return Err(failure.header(header::ETAG, headers::etag(digest)));
    }
    let known = Tags::of(headers, &header::IF_NONE_MATCH).is_some_and(|tags| tags.matches_weakly(digest));
    Ok(if known { Reading::NotModified } else { Reading::Content })
}

/// Says whether a `Range` counts: not if `If-Range` names something else than `digest`.
pub(super) fn range_counts(headers: &HeaderMap, digest: &Digest) -> bool {
    // A date never equals ours: we send none.
    Tags::of(headers, &header::IF_RANGE)
        .is_none_or(|tags| matches!(&tags, Tags::List(_)) && tags.matches_strongly(digest))
}

/// Returns the condition of a write.
///
/// # Errors
///
/// 400 if there are two: they could contradict each other.
pub(super) fn writing(headers: &HeaderMap) -> Result<Option<Condition>, Failure> {
    let expected = Tags::of(headers, &header::IF_MATCH);
    let unwanted = Tags::of(headers, &header::IF_NONE_MATCH);
    Ok(match (expected, unwanted) {
        (None, None) => None,
        (Some(_), Some(_)) => return Err(Failure::unsupported("If-Match and If-None-Match exclude each other here")),
        (Some(Tags::Any), None) => Some(Condition::Exists),
        (Some(tags), None) => Some(Condition::Is(tags.strong())),
        (None, Some(Tags::Any)) => Some(Condition::Absent),
        (None, Some(Tags::List(list))) => {
            Some(Condition::IsNot(list.into_iter().map(|listed| listed.digest).collect()))
        }
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const ONE: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";
    const TWO: &str = "sha256:2222222222222222222222222222222222222222222222222222222222222222";

    fn headers(lines: &[(HeaderName, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            let value = value.replace("ONE", ONE).replace("TWO", TWO);
            map.append(name, HeaderValue::from_str(&value).unwrap());
        }
        map
    }

    fn one() -> Digest {
        ONE.parse().unwrap()
    }

    #[track_caller]
    fn check_reading(name: HeaderName, value: &str, expected: Option<Reading>) {
        assert_eq!(reading(&headers(&[(name, value)]), &one()).ok(), expected, "{value}");
    }

    #[test]
    fn a_read_is_spared_if_the_client_has_the_content() {
        use Reading::{Content, NotModified};
        for value in ["\"ONE\"", "W/\"ONE\"", "ONE", "\"TWO\", \"ONE\"", "*", "junk, \"ONE\""] {
            check_reading(header::IF_NONE_MATCH, value, Some(NotModified));
        }
        for value in ["\"TWO\"", "junk", "", ",,,", "\"ONE", "\"sha256:zz\""] {
            check_reading(header::IF_NONE_MATCH, value, Some(Content));
        }
        check_reading(header::IF_MATCH, "\"ONE\"", Some(Content));
        check_reading(header::IF_MATCH, "*", Some(Content));
        check_reading(header::IF_MATCH, "\"TWO\"", None);
        check_reading(header::IF_MATCH, "W/\"ONE\"", None);
    }

    #[test]
    fn a_range_counts_only_for_the_content_it_was_meant_for() {
        for (value, expected) in [
            ("\"ONE\"", true),
            ("W/\"ONE\"", false),
            ("\"TWO\"", false),
            ("Mon, 01 Jan 2024 00:00:00 GMT", false),
            ("*", false),
        ] {
            assert_eq!(range_counts(&headers(&[(header::IF_RANGE, value)]), &one()), expected, "{value}");
        }
        assert!(range_counts(&headers(&[]), &one()));
    }

    #[test]
    fn a_write_carries_at_most_one_condition() {
        #[track_caller]
        fn check(lines: &[(HeaderName, &str)], expected: Option<Condition>) {
            assert_eq!(writing(&headers(lines)).unwrap(), expected);
        }
        check(&[], None);
        check(&[(header::IF_MATCH, "*")], Some(Condition::Exists));
        check(&[(header::IF_NONE_MATCH, "*")], Some(Condition::Absent));
        check(&[(header::IF_MATCH, "\"ONE\"")], Some(Condition::Is(vec![one()])));
        check(&[(header::IF_MATCH, "W/\"ONE\", x")], Some(Condition::Is(vec![])));
        check(&[(header::IF_NONE_MATCH, "\"ONE\""), (header::IF_NONE_MATCH, "\"TWO\"")], {
            Some(Condition::IsNot(vec![one(), TWO.parse().unwrap()]))
        });
        assert!(writing(&headers(&[(header::IF_MATCH, "*"), (header::IF_NONE_MATCH, "*")])).is_err());
    }
}
