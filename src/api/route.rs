//! Which thing a path names (pure).
//!
//! Paths are read from the right: a repository may be called `blobs`, `a/manifests` or `tags/list`. Each segment is decoded
//! once, and the grammar is held against the decoded text, so that `%2e%2e` and `%2F` gain nothing.

use std::borrow::Cow;

use http::Method;

use crate::auth::Action;
use crate::oci::{Digest, Reference, RepositoryName, UploadId};

/// A thing of the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    /// `/v2/`: end-1.
    Base,
    /// `/v2/_catalog`.
    Catalog,
    /// `/v2/<name>/tags/list`: end-8.
    Tags(RepositoryName),
    /// `/v2/<name>/referrers/<digest>`: end-12.
    Referrers(RepositoryName, Digest),
    /// `/v2/<name>/blobs/<digest>`: end-2, end-10.
    Blob(RepositoryName, Digest),
    /// `/v2/<name>/blobs/uploads/`: end-4, end-11.
    Uploads(RepositoryName),
    /// `/v2/<name>/blobs/uploads/<id>`: end-5, end-6, end-13, end-14.
    Upload(RepositoryName, UploadId),
    /// `/v2/<name>/manifests/<reference>`: end-3, end-7, end-9.
    Manifest(RepositoryName, Reference),
}

/// Says why a path names nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RouteError {
    /// Not a path of the API.
    Unknown,
    /// A segment is not percent-encoded UTF-8, or hides a slash.
    Encoding,
    /// The name breaks the grammar of repository names.
    Name,
    /// The digest is malformed or of an algorithm that is not supported.
    Digest,
    /// The reference is neither tag nor digest.
    Tag,
    /// The upload's id is malformed: there is no such session.
    Upload,
}

impl Route {
    /// Reads a path as it stands in the request, percent-encoding and all.
    pub(super) fn parse(path: &str) -> Result<Self, RouteError> {
        let rest = match path.strip_prefix("/v2") {
            Some("" | "/") => return Ok(Self::Base),
            Some(rest) => rest.strip_prefix('/').ok_or(RouteError::Unknown)?,
            None => return Err(RouteError::Unknown),
        };
        let segments: Vec<Cow<'_, str>> = rest.split('/').map(decode_segment).collect::<Result<_, _>>()?;
        let segments: Vec<&str> = segments.iter().map(AsRef::as_ref).collect();
        match segments.as_slice() {
            ["_catalog"] => Ok(Self::Catalog),
            [name @ .., "tags", "list"] => Ok(Self::Tags(repository(name)?)),
            [name @ .., "blobs", "uploads"] | [name @ .., "blobs", "uploads", ""] => {
                Ok(Self::Uploads(repository(name)?))
            }
            [name @ .., "blobs", "uploads", id] => {
                Ok(Self::Upload(repository(name)?, id.parse().map_err(|_| RouteError::Upload)?))
            }
            [name @ .., "blobs", digest] => {
                Ok(Self::Blob(repository(name)?, digest.parse().map_err(|_| RouteError::Digest)?))
            }
            [name @ .., "manifests", text] => Ok(Self::Manifest(repository(name)?, reference(text)?)),
            [name @ .., "referrers", digest] => {
                Ok(Self::Referrers(repository(name)?, digest.parse().map_err(|_| RouteError::Digest)?))
            }
            _ => Err(RouteError::Unknown),
        }
    }

    /// Returns the methods that the thing knows, as they stand in `Allow`.
    pub(super) const fn methods(&self) -> &'static str {
        match self {
            Self::Base | Self::Catalog | Self::Tags(_) | Self::Referrers(..) => "GET, HEAD",
            Self::Blob(..) => "GET, HEAD, DELETE",
            Self::Uploads(_) => "POST",
            Self::Upload(..) => "GET, HEAD, PATCH, PUT, DELETE",
            Self::Manifest(..) => "GET, HEAD, PUT, DELETE",
        }
    }

    /// Says whether the thing knows a method.
    pub(super) fn allows(&self, method: &Method) -> bool {
        self.methods().split(", ").any(|known| known == method.as_str())
    }

    /// Returns what a caller must be allowed to do for `method`; a method that is not known is judged like a read.
    pub(super) fn action(&self, method: &Method) -> Action {
        match self {
            Self::Base => Action::Base,
            Self::Catalog => Action::Catalog,
            Self::Uploads(_) | Self::Upload(..) => Action::Push,
            Self::Manifest(..) if *method == Method::PUT => Action::Push,
            Self::Manifest(..) | Self::Blob(..) if *method == Method::DELETE => Action::Delete,
            Self::Manifest(..) | Self::Blob(..) | Self::Tags(_) | Self::Referrers(..) => Action::Pull,
        }
    }

    /// Returns the repository that the thing belongs to.
    pub(super) const fn repository(&self) -> Option<&RepositoryName> {
        match self {
            Self::Base | Self::Catalog => None,
            Self::Tags(name)
            | Self::Referrers(name, _)
            | Self::Blob(name, _)
            | Self::Uploads(name)
            | Self::Upload(name, _)
            | Self::Manifest(name, _) => Some(name),
        }
    }
}

fn repository(segments: &[&str]) -> Result<RepositoryName, RouteError> {
    if segments.is_empty() {
        return Err(RouteError::Unknown);
    }
    segments.join("/").parse().map_err(|_| RouteError::Name)
}

fn reference(text: &str) -> Result<Reference, RouteError> {
    // No tag holds a colon, every digest does.
    if text.contains(':') {
        text.parse().map(Reference::Digest).map_err(|_| RouteError::Digest)
    } else {
        text.parse().map(Reference::Tag).map_err(|_| RouteError::Tag)
    }
}

fn decode_segment(segment: &str) -> Result<Cow<'_, str>, RouteError> {
    let decoded = percent_decode(segment).ok_or(RouteError::Encoding)?;
    if decoded.bytes().any(|byte| matches!(byte, b'/' | b'\\') || byte.is_ascii_control()) {
        return Err(RouteError::Encoding);
    }
    Ok(decoded)
}

/// Decodes `%xx` once; `None` if it is malformed or the bytes are not UTF-8.
pub(super) fn percent_decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit =
            || bytes.next().and_then(|byte| char::from(byte).to_digit(16)).and_then(|digit| u8::try_from(digit).ok());
        let (high, low) = (digit()?, digit()?);
        decoded.push(high << 4 | low);
    }
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
    const ID: &str = "0123456789abcdef0123456789abcdef";

    #[track_caller]
    fn check(path: &str, expected: Result<Route, RouteError>) {
        let path = path.replace("DIGEST", DIGEST).replace("ID", ID);
        assert_eq!(Route::parse(&path), expected, "{path}");
    }

    fn name(text: &str) -> RepositoryName {
        text.parse().unwrap()
    }

    fn blob(text: &str) -> Result<Route, RouteError> {
        Ok(Route::Blob(name(text), DIGEST.parse().unwrap()))
    }

    fn tag(text: &str, tag: &str) -> Result<Route, RouteError> {
        Ok(Route::Manifest(name(text), Reference::Tag(tag.parse().unwrap())))
    }

    #[test]
    fn each_endpoint_has_its_path() {
        check("/v2", Ok(Route::Base));
        check("/v2/", Ok(Route::Base));
        check("/v2/_catalog", Ok(Route::Catalog));
        check("/v2/a/b/tags/list", Ok(Route::Tags(name("a/b"))));
        check("/v2/a/referrers/DIGEST", Ok(Route::Referrers(name("a"), DIGEST.parse().unwrap())));
        check("/v2/library/alpine/blobs/DIGEST", blob("library/alpine"));
        check("/v2/a/blobs/uploads/", Ok(Route::Uploads(name("a"))));
        check("/v2/a/blobs/uploads", Ok(Route::Uploads(name("a"))));
        check("/v2/a/blobs/uploads/ID", Ok(Route::Upload(name("a"), ID.parse().unwrap())));
        check("/v2/a/manifests/v1.0", tag("a", "v1.0"));
        check("/v2/a/manifests/DIGEST", Ok(Route::Manifest(name("a"), Reference::Digest(DIGEST.parse().unwrap()))));
    }

    #[test]
    fn repositories_may_be_called_like_parts_of_the_api() {
        check("/v2/blobs/blobs/DIGEST", blob("blobs"));
        check("/v2/a/blobs/uploads/blobs/DIGEST", blob("a/blobs/uploads"));
        check("/v2/a/blobs/uploads/blobs/uploads/", Ok(Route::Uploads(name("a/blobs/uploads"))));
        check("/v2/a/blobs/uploads/blobs/uploads/ID", Ok(Route::Upload(name("a/blobs/uploads"), ID.parse().unwrap())));
        check("/v2/a/blobs/uploads/manifests/v1", tag("a/blobs/uploads", "v1"));
        check("/v2/manifests/manifests/manifests", tag("manifests", "manifests"));
        check("/v2/a/manifests/tags/list", Ok(Route::Tags(name("a/manifests"))));
        check("/v2/tags/list/tags/list", Ok(Route::Tags(name("tags/list"))));
        check("/v2/referrers/manifests/list", tag("referrers", "list"));
        check("/v2/v2/manifests/v2", tag("v2", "v2"));
        check("/v2/sha256/blobs/DIGEST", blob("sha256"));
        check("/v2/uploads/blobs/uploads/", Ok(Route::Uploads(name("uploads"))));
    }

    #[test]
    fn escapes_are_decoded_once_and_then_judged() {
        check(&format!("/v2/a/blobs/{}", DIGEST.replace(':', "%3A")), blob("a"));
        check("/v2/%61/manifests/%76", tag("a", "v"));
        check("/v2/a%2Fb/manifests/v", Err(RouteError::Encoding));
        check("/v2/%2f%2fetc/manifests/v", Err(RouteError::Encoding));
        check("/v2/..%5cb/manifests/v", Err(RouteError::Encoding));
        check("/v2/a%00/manifests/v", Err(RouteError::Encoding));
        check("/v2/a/manifests/v%0d%0a", Err(RouteError::Encoding));
        check("/v2/a%7f/manifests/v", Err(RouteError::Encoding));
        check("/v2/a%c0%af/manifests/v", Err(RouteError::Encoding));
        check("/v2/a%/manifests/v", Err(RouteError::Encoding));
        check("/v2/a%4/manifests/v", Err(RouteError::Encoding));
        check("/v2/a%zz/manifests/v", Err(RouteError::Encoding));
        check("/v2/%2e%2e/manifests/v", Err(RouteError::Name));
        check("/v2/%252e%252e%252f/manifests/v", Err(RouteError::Name));
        check("/v2/a%e2%80%ae/manifests/v", Err(RouteError::Name));
    }

    #[test]
    fn what_breaks_a_grammar_is_named() {
        check("/v2/A/b/manifests/v", Err(RouteError::Name));
        check("/v2/a//b/manifests/v", Err(RouteError::Name));
        check("/v2//manifests/v", Err(RouteError::Name));
        check("/v2/a/../b/tags/list", Err(RouteError::Name));
        check(&format!("/v2/{}/tags/list", "a".repeat(256)), Err(RouteError::Name));
        check("/v2/a/blobs/sha256:bad", Err(RouteError::Digest));
        check("/v2/a/blobs/", Err(RouteError::Digest));
        check("/v2/a/manifests/sha256:bad", Err(RouteError::Digest));
        check("/v2/a/manifests/md5:d41d8cd98f00b204e9800998ecf8427e", Err(RouteError::Digest));
        check("/v2/a/referrers/latest", Err(RouteError::Digest));
        check("/v2/a/manifests/.bad", Err(RouteError::Tag));
        check("/v2/a/manifests/a+b", Err(RouteError::Tag));
        check("/v2/a/manifests/", Err(RouteError::Tag));
        check("/v2/a/blobs/uploads/nothing", Err(RouteError::Upload));
        check("/v2/a/blobs/uploads/..", Err(RouteError::Upload));
    }

    #[test]
    fn other_paths_are_unknown() {
        for path in [
            "/",
            "/v1/",
            "/v2x",
            "/v2/a",
            "/v2/a/b/c",
            "/v2/tags/list",
            "/v2/manifests/v1",
            "/v2/blobs/DIGEST",
            "/v2/a/tags",
            "/v2/a/tags/list/",
            "/v2/a/manifests/v/",
            "/v2/_catalog/",
            "/v2//",
            "",
        ] {
            check(path, Err(RouteError::Unknown));
        }
    }

    #[test]
    fn every_thing_knows_its_methods_and_what_they_need() {
        let manifest = tag("a", "v").unwrap();
        assert!(
            manifest.allows(&Method::HEAD) && !manifest.allows(&Method::POST) && !manifest.allows(&Method::OPTIONS)
        );
        assert_eq!(manifest.action(&Method::PUT), Action::Push);
        assert_eq!(manifest.action(&Method::DELETE), Action::Delete);
        assert_eq!(manifest.action(&Method::GET), Action::Pull);
        let blob = blob("a").unwrap();
        assert_eq!((blob.action(&Method::DELETE), blob.action(&Method::HEAD)), (Action::Delete, Action::Pull));
        let upload = Route::Upload(name("a"), ID.parse().unwrap());
        assert_eq!((upload.action(&Method::DELETE), upload.action(&Method::GET)), (Action::Push, Action::Push));
        assert_eq!(Route::Catalog.action(&Method::GET), Action::Catalog);
    }
}
