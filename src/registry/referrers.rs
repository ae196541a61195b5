//! Listing the manifests that refer to another one.

use crate::meta::Referrer;
use crate::oci::{Digest, RepositoryName};

use super::{Caller, Page, Registry, Result};

/// The most bytes of JSON in one page: what clients read at most (4 MiB), less the frame around the descriptors.
const PAGE_BYTES_MAX: usize = (4 << 20) - (16 << 10);

/// The JSON of a descriptor without its texts: keys, quotes, commas, a size of 20 digits.
const DESCRIPTOR_BYTES: usize = 160;

impl Registry {
    /// Lists the referrers of `subject` after `after` in the order of their digests, one page of at most 4 MiB of JSON.
    ///
    /// With `artifact_types`, only those of one of the types. A subject or repository that is not there has no referrers.
    /// A first page is as large as it may be: some clients read no other.
    ///
    /// # Errors
    ///
    /// [`super::Error::NoQuorum`] only if the caller waits for a log index that does not come.
    ///
    /// Spec: distribution-spec v1.1.1 end-12a, end-12b.
    #[expect(clippy::too_many_arguments, reason = "who, where and what: each has a type of its own")]
    pub async fn referrers(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        subject: &Digest,
        artifact_types: &[String],
        after: Option<&Digest>,
    ) -> Result<Page<Referrer>> {
        let view = self.view(caller).await?;
        let all = view.state.referrers(repository, subject, after);
        let (items, more) = cut(all.filter(|referrer| is_wanted(referrer, artifact_types)), PAGE_BYTES_MAX);
        Ok(Page { items, more, stale: !view.fresh })
    }
}

fn is_wanted(referrer: &Referrer, artifact_types: &[String]) -> bool {
    artifact_types.is_empty()
        || referrer.artifact_type.as_ref().is_some_and(|artifact_type| artifact_types.contains(artifact_type))
}

/// Takes what fits, and at least one: a single descriptor is bounded by the size of its manifest.
fn cut(referrers: impl Iterator<Item = Referrer>, bytes_max: usize) -> (Vec<Referrer>, bool) {
    let mut items = Vec::new();
    let mut bytes = 0_usize;
    for referrer in referrers {
        bytes = bytes.saturating_add(json_bytes(&referrer));
        if bytes > bytes_max && !items.is_empty() {
            return (items, true);
        }
        items.push(referrer);
    }
    (items, false)
}

/// How long the descriptor of a referrer is in JSON, at most.
fn json_bytes(referrer: &Referrer) -> usize {
    // A text of another alphabet is no longer in JSON than these: quotes, and six bytes for a control character.
    let text = |text: &str| {
        text.bytes()
            .map(|byte| if byte < b' ' { 6 } else { 1 + usize::from(byte == b'"' || byte == b'\\') })
            .sum::<usize>()
    };
    let annotations = referrer.annotations.iter().map(|(key, value)| text(key) + text(value) + 6).sum::<usize>();
    DESCRIPTOR_BYTES
        + referrer.digest.hash().len() * 2
        + text(referrer.media_type.as_str())
        + referrer.artifact_type.as_deref().map_or(0, text)
        + annotations
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::oci::{Algorithm, MediaType};

    fn referrer(n: u8, artifact_type: Option<&str>, annotation: &str) -> Referrer {
        Referrer {
            digest: Digest::of(Algorithm::Sha512, &[n]),
            media_type: MediaType::OCI_MANIFEST.parse().unwrap(),
            size: u64::MAX,
            artifact_type: artifact_type.map(str::to_owned),
            annotations: BTreeMap::from([("key".to_owned(), annotation.to_owned())]),
        }
    }

    #[test]
    fn a_page_is_cut_by_its_bytes_and_never_empty() {
        let all = || (0..10).map(|n| referrer(n, None, &"x".repeat(1000)));
        let one = json_bytes(&referrer(0, None, &"x".repeat(1000)));
        let (items, more) = cut(all(), one * 3);
        assert_eq!((items.len(), more), (3, true));
        let (items, more) = cut(all(), one * 10);
        assert_eq!((items.len(), more), (10, false));
        let (items, more) = cut(all(), 1);
        assert_eq!((items.len(), more), (1, true));
        let (items, more) = cut(all().take(1), 1);
        assert_eq!((items.len(), more), (1, false));
    }

    #[test]
    fn a_descriptor_is_no_longer_than_reckoned() {
        for annotation in ["", "plain", "\"quoted\\\"", "\u{1}\u{7f}\n", "日本語", "</script>"] {
            let referrer = referrer(1, Some("application/vnd.example+json"), annotation);
            let json = serde_json::json!({
                "mediaType": referrer.media_type.as_str(),
                "digest": referrer.digest.to_string(),
                "size": referrer.size,
                "artifactType": referrer.artifact_type,
                "annotations": referrer.annotations,
            });
            assert!(json.to_string().len() < json_bytes(&referrer), "{annotation:?}");
        }
    }

    #[test]
    fn a_filter_keeps_any_of_its_types() {
        let types = ["a/b".to_owned(), "c/d".to_owned()];
        assert!(is_wanted(&referrer(1, Some("c/d"), ""), &types));
        assert!(is_wanted(&referrer(1, None, ""), &[]));
        assert!(!is_wanted(&referrer(1, None, ""), &types));
        assert!(!is_wanted(&referrer(1, Some("a/B"), ""), &types));
    }
}
