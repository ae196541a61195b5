//! How a manifest comes to be: checked, its body spread, then one entry of the log (P18).

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::meta::command::{Command, ManifestReference, PutManifest, ReferenceKind, Rejection, Response};
use crate::meta::{State, VoterSets};
use crate::oci::{Algorithm, Descriptor, Digest, Manifest, Reference, RepositoryName, Tag};
use crate::topology::NodeId;

use super::view::{Budget, refused};
use super::{Caller, Error, ManifestPushed, ManifestUpload, Registry, Result};

/// How often a body is spread again because the voters changed meanwhile.
const SPREADS_MAX: usize = 3;

impl Registry {
    /// Stores a manifest, with its tags if any, in one step.
    ///
    /// On return its body is synced on a majority of the voters and on `write_copies` nodes, and agreed on.
    ///
    /// # Errors
    ///
    /// - [`Error::ManifestTooLarge`], [`Error::ManifestInvalid`], [`Error::DigestMismatch`], [`Error::SizeInvalid`] if the
    ///   bytes are at fault; said without a quorum too.
    /// - [`Error::ManifestReferencesUnknown`] with everything that the repository lacks.
    /// - [`Error::ConditionFailed`] with what the tag points at.
    /// - [`Error::TooFewCopies`], [`Error::NoQuorum`], [`Error::NotOpen`], [`Error::Busy`].
    ///
    /// # Cancel safety
    ///
    /// A dropped call leaves all or nothing of the change; a body that nothing names is collected.
    ///
    /// Spec: distribution-spec v1.1.1 end-7a; main, end-7b.
    pub async fn put_manifest(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        upload: ManifestUpload,
    ) -> Result<ManifestPushed> {
        let budget = Budget::start();
        let ManifestUpload { reference, content_type, body, tags, condition } = upload;
        let max = self.0.config.manifest_bytes_max;
        if body.len() > max {
            return Err(Error::ManifestTooLarge { max });
        }
        let (digest, tags) = name(&reference, tags, &body)?;
        let manifest = Manifest::parse(&body, content_type.as_deref()).map_err(Error::ManifestInvalid)?;
        let references = references(&manifest)?;
        self.check_references(repository, &references).await?;
        let subject = manifest.subject.map(|subject| subject.digest);
        let put = PutManifest {
            repository: repository.clone(),
            digest: digest.clone(),
            media_type: manifest.media_type,
            size: body.len() as u64,
            references,
            annotations: if subject.is_some() { manifest.annotations } else { BTreeMap::new() },
            subject: subject.clone(),
            artifact_type: manifest.artifact_type,
            tags: tags.clone(),
            condition,
            membership_index: 0,
            sparse: self.0.config.sparse,
            principal: caller.principal.as_str().to_owned(),
        };
        let (index, copies) = self.spread_and_propose(put, body, budget).await?;
        Ok(ManifestPushed { digest, subject, tags, copies, index })
    }

    /// Refuses what references make impossible, before the body goes anywhere.
    ///
    /// Sizes are final whatever the freshness: a digest has one. What is absent is so only in a fresh view; out of touch it
    /// is left to the proposal, which then fails for want of a quorum.
    async fn check_references(&self, repository: &RepositoryName, references: &[ManifestReference]) -> Result<()> {
        let here = self.0.meta.view_local();
        let missing = missing(&here.state, repository, references)?;
        if self.0.config.sparse || missing.is_empty() {
            return Ok(());
        }
        // The blobs may have been pushed through another node a moment ago.
        let view = self.fresh().await?;
        if !view.state.is_open() {
            return Err(Error::NotOpen);
        }
        let missing = self::missing(&view.state, repository, references)?;
        if missing.is_empty() { Ok(()) } else { Err(Error::ManifestReferencesUnknown { digests: missing }) }
    }

    /// Puts the body on a majority of the voters and proposes, again if the voters changed meanwhile (P18).
    async fn spread_and_propose(&self, mut put: PutManifest, body: Bytes, budget: Budget) -> Result<(u64, usize)> {
        for _ in 0..SPREADS_MAX {
            let voters = self.0.meta.voter_sets();
            let copies = self.spread(&put.digest, body.clone(), &voters, budget).await?;
            put.membership_index = voters.membership_index;
            match self.propose(Command::PutManifest(Box::new(put.clone())), budget).await? {
                (index, Response::ManifestStored { .. }) => return Ok((index, copies)),
                (_, Response::Rejected(Rejection::MembershipChanged)) => {
                    // Learn of the new voters before the next attempt.
                    self.fresh().await?;
                }
                (_, Response::Rejected(Rejection::BlobUnknown { digests })) => {
                    return Err(Error::ManifestReferencesUnknown { digests });
                }
                (_, other) => return Err(refused(other)),
            }
        }
        Err(Error::no_quorum())
    }

    /// Puts the body on enough nodes; returns how many hold it.
    async fn spread(&self, digest: &Digest, body: Bytes, voters: &VoterSets, budget: Budget) -> Result<usize> {
        let needed = self.0.replicas.write_copies();
        let enough = |nodes: &[NodeId]| self.0.replicas.counted(nodes) >= needed && voters.is_majority(nodes);
        let nodes = self.0.replicas.put_body(digest, body, &enough, budget.to_spread()).await?;
        if enough(&nodes) {
            Ok(nodes.len())
        } else if voters.is_majority(&nodes) {
            let reason = self.0.replicas.with_uncounted("other nodes did not store the body in time".to_owned());
            Err(Error::TooFewCopies { made: self.0.replicas.counted(&nodes), needed, reason })
        } else {
            Err(Error::no_quorum())
        }
    }
}

/// The digest under which a body is stored, and the tags it gets.
fn name(reference: &Reference, tags: Vec<Tag>, body: &[u8]) -> Result<(Digest, Vec<Tag>)> {
    match reference {
        Reference::Tag(tag) => Ok((Digest::of(Algorithm::Sha256, body), vec![tag.clone()])),
        Reference::Digest(expected) => {
            let actual = Digest::of(expected.algorithm(), body);
            if *expected != actual {
                return Err(Error::DigestMismatch { expected: expected.clone(), actual });
            }
            let mut named = Vec::with_capacity(tags.len());
            for tag in tags {
                if !named.contains(&tag) {
                    named.push(tag);
                }
            }
            Ok((actual, named))
        }
    }
}

/// Everything that a manifest names and the repository must have, each once.
///
/// # Errors
///
/// [`Error::SizeInvalid`] if it gives one content two sizes.
fn references(manifest: &Manifest) -> Result<Vec<ManifestReference>> {
    let config = manifest.config.iter().map(|config| (config, ReferenceKind::Config));
    let layers = manifest.layers.iter().map(|layer| (layer, ReferenceKind::Layer));
    let entries = manifest.manifests.iter().map(|entry| (entry, kind_of_entry(entry)));
    let mut seen: BTreeMap<(&Digest, bool), usize> = BTreeMap::new();
    let mut references: Vec<ManifestReference> = Vec::new();
    for (descriptor, kind) in config.chain(layers).chain(entries) {
        let required = descriptor.is_distributable();
        // A config and a layer of one digest (the empty descriptor) are one blob.
        let key = (&descriptor.digest, kind == ReferenceKind::Manifest);
        if let Some(known) = seen.get(&key).map(|at| &mut references[*at]) {
            if known.size != descriptor.size {
                return Err(Error::SizeInvalid { expected: known.size, actual: descriptor.size });
            }
            known.required |= required;
            continue;
        }
        seen.insert(key, references.len());
        references.push(ManifestReference { digest: descriptor.digest.clone(), size: descriptor.size, kind, required });
    }
    Ok(references)
}

/// Build caches are indexes whose entries are layers.
fn kind_of_entry(entry: &Descriptor) -> ReferenceKind {
    if entry.is_manifest() { ReferenceKind::Manifest } else { ReferenceKind::Layer }
}

/// The required references that `state` does not have in the repository.
///
/// # Errors
///
/// [`Error::SizeInvalid`] if it has one at another size.
fn missing(state: &State, repository: &RepositoryName, references: &[ManifestReference]) -> Result<Vec<Digest>> {
    let mut missing = Vec::new();
    for reference in references {
        let size = match reference.kind {
            ReferenceKind::Config | ReferenceKind::Layer => state.blob(repository, &reference.digest),
            ReferenceKind::Manifest => state.manifest(repository, &reference.digest).map(|record| record.size),
        };
        match size {
            Some(size) if size != reference.size => {
                return Err(Error::SizeInvalid { expected: reference.size, actual: size });
            }
            Some(_) => {}
            None if reference.required => missing.push(reference.digest.clone()),
            None => {}
        }
    }
    Ok(missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::MediaType;

    fn digest(n: u8) -> Digest {
        Digest::of(Algorithm::Sha256, &[n])
    }

    fn descriptor(media_type: &str, n: u8, size: u64) -> Descriptor {
        Descriptor { media_type: media_type.parse().unwrap(), digest: digest(n), size }
    }

    fn image(layers: Vec<Descriptor>) -> Manifest {
        Manifest {
            media_type: MediaType::OCI_MANIFEST.parse().unwrap(),
            config: Some(descriptor("application/vnd.oci.empty.v1+json", 1, 2)),
            layers,
            manifests: Vec::new(),
            subject: None,
            artifact_type: None,
            annotations: BTreeMap::new(),
        }
    }

    const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

    #[test]
    fn each_content_is_referenced_once() {
        let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
        let layers = vec![
            descriptor("application/vnd.oci.empty.v1+json", 1, 2),
            descriptor(LAYER, 2, 10),
            descriptor(LAYER, 2, 10),
            descriptor(foreign, 3, 5),
        ];
        let references = references(&image(layers)).unwrap();
        let found: Vec<_> = references.iter().map(|reference| (&reference.digest, reference.required)).collect();
        assert_eq!(found, [(&digest(1), true), (&digest(2), true), (&digest(3), false)]);
    }

    #[test]
    fn one_content_has_one_size() {
        let layers = vec![descriptor(LAYER, 2, 10), descriptor(LAYER, 2, 11)];
        assert!(matches!(references(&image(layers)), Err(Error::SizeInvalid { expected: 10, actual: 11 })));
    }

    #[test]
    fn entries_of_an_index_are_manifests_or_the_layers_of_a_cache() {
        let mut index = image(Vec::new());
        index.config = None;
        index.manifests = vec![
            descriptor(MediaType::OCI_MANIFEST, 1, 1),
            descriptor(MediaType::DOCKER_LIST, 2, 1),
            descriptor(LAYER, 3, 1),
        ];
        let kinds: Vec<_> = references(&index).unwrap().into_iter().map(|reference| reference.kind).collect();
        assert_eq!(kinds, [ReferenceKind::Manifest, ReferenceKind::Manifest, ReferenceKind::Layer]);
    }

    #[test]
    fn a_body_is_named_by_the_algorithm_of_its_reference() {
        let body = b"{}";
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let digest = Digest::of(algorithm, body);
            let tags = ["b", "a", "b"].map(|tag| tag.parse().unwrap()).to_vec();
            let (named, tags) = name(&Reference::Digest(digest.clone()), tags, body).unwrap();
            assert_eq!(named, digest);
            assert_eq!(tags.iter().map(Tag::as_str).collect::<Vec<_>>(), ["b", "a"]);
        }
        let tag: Tag = "v1".parse().unwrap();
        let (named, tags) = name(&Reference::Tag(tag.clone()), Vec::new(), body).unwrap();
        assert_eq!((named, tags), (Digest::of(Algorithm::Sha256, body), vec![tag]));
        let other = Digest::of(Algorithm::Sha256, b"{ }");
        assert!(matches!(name(&Reference::Digest(other), Vec::new(), body), Err(Error::DigestMismatch { .. })));
    }
}
