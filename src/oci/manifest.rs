//! Manifests and indexes: what a registry reads in them, and what it refuses.

use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::json::{self, Object, Value};
use super::{Digest, MediaType};

/// Keys that mean something at the top of a manifest or index; another spelling of one is refused, since parsers that
/// ignore case would read it and others would not.
const TOP_KEYS: [&str; 9] = [
    "schemaVersion",
    "mediaType",
    "artifactType",
    "config",
    "layers",
    "manifests",
    "subject",
    "annotations",
    "fsLayers",
];

/// Keys that mean something in a descriptor.
const DESCRIPTOR_KEYS: [&str; 8] =
    ["mediaType", "digest", "size", "urls", "annotations", "data", "artifactType", "platform"];

const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+json";
const DOCKER_SCHEMA1_SIGNED: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";

/// Sizes beyond this are not kept exactly by parsers that read numbers as doubles.
const SIZE_MAX: u64 = 1 << 53;

/// Annotations of a manifest with a subject are kept in agreed state and shown in one page of referrers.
const REFERRER_ANNOTATION_BYTES_MAX: usize = 1 << 20;

/// What a manifest or index says, as far as a registry needs to know; everything else stays in the bytes.
///
/// Spec: image-spec manifest.md, image-index.md; Docker image manifest version 2, schema 2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// One of the four types that the registry knows, without parameters.
    pub media_type: MediaType,
    /// The configuration; `None` in an index.
    pub config: Option<Descriptor>,
    /// The layers, in order; empty in an index.
    pub layers: Vec<Descriptor>,
    /// The entries of an index, in order: manifests, or blobs where [`Descriptor::is_manifest`] says so.
    pub manifests: Vec<Descriptor>,
    /// The manifest that this one refers to, which need not exist.
    pub subject: Option<Descriptor>,
    /// `artifactType`, else the config's media type; `None` for an index without one.
    pub artifact_type: Option<String>,
    /// The manifest's own annotations.
    pub annotations: BTreeMap<String, String>,
}

/// Points at content: its media type, digest and size in bytes.
///
/// Spec: image-spec descriptor.md.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// The content's media type, without parameters.
    pub media_type: MediaType,
    /// The content's digest.
    pub digest: Digest,
    /// The content's length in bytes, at most 2^53.
    pub size: u64,
}

impl Descriptor {
    /// Says whether a registry is expected to hold the content: not so for foreign and non-distributable layers.
    #[must_use]
    pub fn is_distributable(&self) -> bool {
        let text = self.media_type.as_str();
        !text.starts_with("application/vnd.oci.image.layer.nondistributable.")
            && !text.starts_with("application/vnd.docker.image.rootfs.foreign.")
    }

    /// Says whether the content is a manifest or index: other entries of an index are blobs, as build caches write them.
    #[must_use]
    pub fn is_manifest(&self) -> bool {
        let text = self.media_type.as_str();
        kind_of(text).is_some() || is_schema1(text)
    }
}

/// Says why a body is not accepted as a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// A schema 1 manifest.
    #[error("schema 1 manifests are not supported")]
    Unsupported,
    /// Not a manifest as the specifications have it; the text says which rule it breaks.
    #[error("{0}")]
    Invalid(&'static str),
}

use ManifestError::{Invalid, Unsupported};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Image,
    Index,
}

fn kind_of(media_type: &str) -> Option<Kind> {
    match media_type {
        MediaType::OCI_MANIFEST | MediaType::DOCKER_MANIFEST => Some(Kind::Image),
        MediaType::OCI_INDEX | MediaType::DOCKER_LIST => Some(Kind::Index),
        _ => None,
    }
}

fn is_schema1(media_type: &str) -> bool {
    matches!(media_type, DOCKER_SCHEMA1 | DOCKER_SCHEMA1_SIGNED)
}

impl Manifest {
    /// Parses a manifest's exact bytes against the `Content-Type` it was sent with.
    ///
    /// Without a content type, or with `application/octet-stream`, the body's `mediaType` decides; otherwise both must agree
    /// where both are given, and one must be. Parameters of the content type are ignored. Time and memory are bounded by the
    /// length of the body, whatever it is.
    ///
    /// # Errors
    ///
    /// - [`ManifestError::Unsupported`] for schema 1.
    /// - [`ManifestError::Invalid`] for anything else that the specifications forbid, or that two parsers could read in two
    ///   ways: duplicate keys, other spellings of known keys, keys of an image and of an index together.
    ///
    /// Spec: image-spec manifest.md and image-index.md; distribution-spec v1.1.1, "Pushing Manifests".
    pub fn parse(body: &[u8], content_type: Option<&str>) -> Result<Self, ManifestError> {
        let declared = declared_type(content_type)?;
        if declared.as_ref().is_some_and(|declared| is_schema1(declared.as_str())) {
            return Err(Unsupported);
        }
        let value = json::parse(body)
            .map_err(|_| Invalid("body is not JSON, has a key twice, or has more parts than a manifest may"))?;
        let Value::Object(top) = value else { return Err(Invalid("body is not an object")) };
        match top.get("schemaVersion") {
            Some(Value::Unsigned(2)) => {}
            Some(Value::Unsigned(1)) => return Err(Unsupported),
            _ => return Err(Invalid("schemaVersion is not 2")),
        }
        refuse_other_spellings(&top, &TOP_KEYS)?;
        let media_type = media_type(&top, declared)?;
        match kind_of(media_type.as_str()) {
            Some(Kind::Image) => Self::image(media_type, &top),
            Some(Kind::Index) => Self::index(media_type, &top),
            None if is_schema1(media_type.as_str()) => Err(Unsupported),
            None => Err(Invalid("media type is not one of a manifest or index")),
        }
    }

    fn image(media_type: MediaType, top: &Object<'_>) -> Result<Self, ManifestError> {
        if top.contains("manifests") || top.contains("fsLayers") {
            return Err(Invalid("an image manifest has keys of another kind of manifest"));
        }
        let config = descriptor(top.get("config").ok_or(Invalid("config is missing"))?)?;
        let artifact_type = artifact_type(top)?.unwrap_or_else(|| config.media_type.to_string());
        Self {
            media_type,
            config: Some(config),
            layers: descriptors(top.get("layers"))?,
            manifests: Vec::new(),
            subject: top.get("subject").map(descriptor).transpose()?,
            artifact_type: Some(artifact_type),
            annotations: annotations(top)?,
        }
        .bounded()
    }

    fn index(media_type: MediaType, top: &Object<'_>) -> Result<Self, ManifestError> {
        if top.contains("config") || top.contains("layers") || top.contains("fsLayers") {
            return Err(Invalid("an index has keys of another kind of manifest"));
        }
        if !top.contains("manifests") {
            return Err(Invalid("manifests is missing"));
        }
        Self {
            media_type,
            config: None,
            layers: Vec::new(),
            manifests: descriptors(top.get("manifests"))?,
            subject: top.get("subject").map(descriptor).transpose()?,
            artifact_type: artifact_type(top)?,
            annotations: annotations(top)?,
        }
        .bounded()
    }

    fn bounded(self) -> Result<Self, ManifestError> {
        let bytes: usize = self.annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
        if self.subject.is_some() && bytes > REFERRER_ANNOTATION_BYTES_MAX {
            return Err(Invalid("annotations of a manifest with a subject are larger than 1 MiB"));
        }
        Ok(self)
    }
}

fn declared_type(content_type: Option<&str>) -> Result<Option<MediaType>, ManifestError> {
    let essence =
        content_type.and_then(|text| text.split(';').next()).map_or("", |text| text.trim_matches([' ', '\t']));
    if essence.is_empty() || essence.eq_ignore_ascii_case(MediaType::OCTET_STREAM) {
        return Ok(None);
    }
    essence.to_ascii_lowercase().parse().map(Some).map_err(|_| Invalid("Content-Type is not a media type"))
}

fn media_type(top: &Object<'_>, declared: Option<MediaType>) -> Result<MediaType, ManifestError> {
    let stated = match top.get("mediaType") {
        None => None,
        Some(Value::String(text)) if text.is_empty() => None,
        Some(Value::String(text)) => {
            Some(text.parse::<MediaType>().map_err(|_| Invalid("mediaType is not a media type"))?)
        }
        Some(_) => return Err(Invalid("mediaType is not a string")),
    };
    match (stated, declared) {
        (Some(stated), Some(declared)) if stated != declared => Err(Invalid("mediaType and Content-Type differ")),
        (Some(stated), _) => Ok(stated),
        // Docker's own formats require it, and without it a body could be taken for another kind later.
        (None, Some(declared)) if matches!(declared.as_str(), MediaType::DOCKER_MANIFEST | MediaType::DOCKER_LIST) => {
            Err(Invalid("mediaType is missing"))
        }
        (None, Some(declared)) => Ok(declared),
        (None, None) => Err(Invalid("neither mediaType nor Content-Type says what it is")),
    }
}

/// Folds as parsers do that ignore case: ASCII, and the two other letters that fold into it.
fn folded(key: &str) -> impl Iterator<Item = char> + '_ {
    key.chars().map(|letter| match letter {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        letter => letter.to_ascii_lowercase(),
    })
}

fn refuse_other_spellings(object: &Object<'_>, known: &[&str]) -> Result<(), ManifestError> {
    let another = |key: &str| !known.contains(&key) && known.iter().any(|known| folded(key).eq(folded(known)));
    if object.entries().any(|(key, _)| another(key)) {
        return Err(Invalid("a known key is spelled in another case"));
    }
    Ok(())
}

fn artifact_type(object: &Object<'_>) -> Result<Option<String>, ManifestError> {
    match object.get("artifactType") {
        None => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => {
            let parsed: MediaType = text.parse().map_err(|_| Invalid("artifactType is not a media type"))?;
            Ok(Some(parsed.to_string()))
        }
        Some(_) => Err(Invalid("artifactType is not a string")),
    }
}

fn annotations(object: &Object<'_>) -> Result<BTreeMap<String, String>, ManifestError> {
    let Some(value) = object.get("annotations") else { return Ok(BTreeMap::new()) };
    let Value::Object(map) = value else { return Err(Invalid("annotations are not an object")) };
    map.entries()
        .map(|(key, value)| match value {
            Value::String(text) => Ok((key.to_owned(), text.to_string())),
            _ => Err(Invalid("an annotation is not a string")),
        })
        .collect()
}

fn descriptors(value: Option<&Value<'_>>) -> Result<Vec<Descriptor>, ManifestError> {
    match value {
        None => Ok(Vec::new()),
        Some(Value::Array(array)) => array.iter().map(descriptor).collect(),
        Some(_) => Err(Invalid("a list of descriptors is not an array")),
    }
}

fn descriptor(value: &Value<'_>) -> Result<Descriptor, ManifestError> {
    let Value::Object(object) = value else { return Err(Invalid("a descriptor is not an object")) };
    refuse_other_spellings(object, &DESCRIPTOR_KEYS)?;
    let Some(Value::String(media_type)) = object.get("mediaType") else {
        return Err(Invalid("a descriptor has no mediaType"));
    };
    // Some signers write parameters here. The type is only looked at, so the rest may stay.
    let essence = media_type.split(';').next().unwrap_or_default();
    let media_type = essence.parse().map_err(|_| Invalid("a descriptor's mediaType is not a media type"))?;
    let Some(Value::String(digest)) = object.get("digest") else {
        return Err(Invalid("a descriptor has no digest"));
    };
    let digest: Digest = digest.parse().map_err(|_| Invalid("a descriptor's digest is not one of sha256 or sha512"))?;
    let size = match object.get("size") {
        Some(Value::Unsigned(size)) if *size <= SIZE_MAX => *size,
        Some(_) => return Err(Invalid("a descriptor's size is not a whole number up to 2^53")),
        None => return Err(Invalid("a descriptor has no size")),
    };
    artifact_type(object)?;
    annotations(object)?;
    check_urls(object)?;
    check_data(object, &digest, size)?;
    Ok(Descriptor { media_type, digest, size })
}

/// The registry never follows them; it only keeps other things than texts out.
fn check_urls(object: &Object<'_>) -> Result<(), ManifestError> {
    match object.get("urls") {
        None => Ok(()),
        Some(Value::Array(urls)) if urls.iter().all(|url| matches!(url, Value::String(_))) => Ok(()),
        Some(_) => Err(Invalid("urls are not an array of strings")),
    }
}

fn check_data(object: &Object<'_>, digest: &Digest, size: u64) -> Result<(), ManifestError> {
    let data = match object.get("data") {
        None => return Ok(()),
        Some(Value::String(data)) => data,
        Some(_) => return Err(Invalid("data is not a string")),
    };
    let bytes = BASE64_STANDARD.decode(data.as_bytes()).map_err(|_| Invalid("data is not base64"))?;
    let length_is_right = u64::try_from(bytes.len()).is_ok_and(|length| length == size);
    if !length_is_right || Digest::of(digest.algorithm(), &bytes) != *digest {
        return Err(Invalid("data is not the content that its descriptor names"));
    }
    Ok(())
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
