//! What a large registry holds: every manifest, link and tag of it follows from a few numbers, so nothing has to be kept.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use anyhow::{Context, Result, bail, ensure};
use rafthold::meta::Preload;
use rafthold::meta::command::{Command, ManifestReference, PutManifest, ReferenceKind, Rejection, Response};
use rafthold::oci::{Algorithm, Digest, RepositoryName};

const MANIFESTS_PER_REPOSITORY: usize = 500;
/// Layers of a manifest beside its config.
const LAYERS: usize = 10;
/// Distinct blobs: a base layer is linked in many repositories.
const BLOBS_MAX: usize = 50_000;

pub(super) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// The shape of the registry. Manifest `n` of a repository names a config and ten layers; the next one brings some new
/// blobs and shares the others with it, as images that are built again do. Each has one tag.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) repositories: usize,
    pub(super) manifests: usize,
    pub(super) links: usize,
    blobs: Vec<Digest>,
}

/// The bytes of a blob.
fn blob(n: usize) -> Vec<u8> {
    format!("blob {n}\n").into_bytes()
}

impl Content {
    /// Plans about so many manifests and links, in whole repositories.
    pub(super) fn new(manifests: usize, links: usize) -> Result<Self> {
        let repositories = manifests / MANIFESTS_PER_REPOSITORY;
        ensure!(repositories > 0, "at least {MANIFESTS_PER_REPOSITORY} manifests");
        let links = links / repositories;
        ensure!(links > LAYERS, "too few links for a manifest of {LAYERS} layers");
        let blobs = BLOBS_MAX.min(links * repositories).max(links);
        let blobs = (0..blobs).map(|n| Digest::of(Algorithm::Sha256, &blob(n))).collect();
        let manifests = repositories * MANIFESTS_PER_REPOSITORY;
        Ok(Self { repositories, manifests, links: links * repositories, blobs })
    }

    pub(super) fn repository(n: usize) -> String {
        format!("team-{:02}/service-{n:04}", n % 50)
    }

    pub(super) fn tag(n: usize) -> String {
        format!("v1.{n}")
    }

    /// The blob that link `n` of a repository is of.
    fn linked(&self, repository: usize, n: usize) -> usize {
        (repository * self.links_each() + n) % self.blobs.len()
    }

    fn links_each(&self) -> usize {
        self.links / self.repositories
    }

    /// The blobs that a manifest names, the config first.
    fn named(&self, repository: usize, manifest: usize) -> impl Iterator<Item = usize> {
        let first = manifest * self.links_each() / MANIFESTS_PER_REPOSITORY;
        (0..=LAYERS).map(move |n| self.linked(repository, (first + n) % self.links_each()))
    }

    /// The body of a manifest.
    pub(super) fn body(&self, repository: usize, manifest: usize) -> String {
        let descriptor = |kind: &str, n: usize| {
            let (digest, size) = (&self.blobs[n], blob(n).len());
            format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":{size}}}"#)
        };
        let mut named = self.named(repository, manifest);
        let config = descriptor(CONFIG_TYPE, named.next().unwrap_or_default());
        let layers: Vec<_> = named.map(|n| descriptor(LAYER_TYPE, n)).collect();
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST_TYPE}","config":{config},"layers":[{}],"annotations":{{"org.opencontainers.image.ref.name":"{}:{}"}}}}"#,
            layers.join(","),
            Self::repository(repository),
            Self::tag(manifest),
        )
    }

    /// What the registry proposes when this manifest is pushed.
    fn put(&self, (repository, manifest): (usize, usize), body: &[u8], membership_index: u64) -> Result<PutManifest> {
        let reference = |(at, n): (usize, usize)| ManifestReference {
            digest: self.blobs[n].clone(),
            size: blob(n).len() as u64,
            kind: if at == 0 { ReferenceKind::Config } else { ReferenceKind::Layer },
            required: true,
        };
        Ok(PutManifest {
            repository: Self::repository(repository).parse()?,
            digest: Digest::of(Algorithm::Sha256, body),
            media_type: MANIFEST_TYPE.parse()?,
            size: body.len() as u64,
            references: self.named(repository, manifest).enumerate().map(reference).collect(),
            subject: None,
            artifact_type: Some(CONFIG_TYPE.to_owned()),
            annotations: std::collections::BTreeMap::new(),
            tags: vec![Self::tag(manifest).parse()?],
            condition: None,
            membership_index,
            sparse: false,
            principal: "anonymous".to_owned(),
        })
    }

    /// Puts everything into a stopped cluster: the commands into `preload`, the bytes below each of the data directories.
    /// Files are never changed once they have their name, so one copy with a name in each directory will do.
    pub(super) fn fill(&self, preload: &mut Preload, dirs: &[PathBuf], mut id: u128) -> Result<()> {
        let (send, files) = mpsc::sync_channel::<(Digest, Vec<u8>)>(1024);
        let dirs = dirs.to_vec();
        let writer = std::thread::spawn(move || -> Result<()> {
            for (digest, bytes) in files {
                place(&dirs, &digest, &bytes).with_context(|| digest.to_string())?;
            }
            // Nothing here has to survive a power cut, but the nodes are not to pay for what the laboratory wrote.
            rustix::fs::sync();
            Ok(())
        });
        let gone = "the writer of files ended";
        for (n, digest) in self.blobs.iter().enumerate() {
            send.send((digest.clone(), blob(n))).ok().context(gone)?;
        }
        let mut apply = |preload: &mut Preload, command| {
            id += 1;
            match preload.apply(id, command) {
                Response::Rejected(rejection) => Err(rejection),
                _ => Ok(()),
            }
        };
        let refused = |rejection: Rejection| anyhow::anyhow!("refused: {rejection:?}");
        let membership = preload.state().membership_index();
        for repository in 0..self.repositories {
            let name: RepositoryName = Self::repository(repository).parse()?;
            for n in 0..self.links_each() {
                let n = self.linked(repository, n);
                let (digest, size) = (self.blobs[n].clone(), blob(n).len() as u64);
                let link =
                    Command::LinkBlob { repository: name.clone(), digest, size, principal: "anonymous".to_owned() };
                apply(preload, link).map_err(refused)?;
            }
            for manifest in 0..MANIFESTS_PER_REPOSITORY {
                let body = self.body(repository, manifest).into_bytes();
                let put = self.put((repository, manifest), &body, membership)?;
                send.send((put.digest.clone(), body)).ok().context(gone)?;
                apply(preload, Command::PutManifest(Box::new(put))).map_err(refused)?;
            }
        }
        drop(send);
        match writer.join() {
            Ok(written) => written,
            Err(_) => bail!(gone),
        }
    }
}

/// Writes a blob where the product keeps it, with a name in each data directory.
fn place(dirs: &[PathBuf], digest: &Digest, bytes: &[u8]) -> io::Result<()> {
    let path = |dir: &Path| {
        let hex = digest.hex();
        dir.join("blobs").join(digest.algorithm().as_str()).join(&hex[..2]).join(hex)
    };
    let mut paths = dirs.iter().map(|dir| path(dir));
    let Some(first) = paths.next() else { return Ok(()) };
    fs::write(&first, bytes)?;
    for other in paths {
        match fs::hard_link(&first, other) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            linked => linked?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_link_is_named_and_every_manifest_is_another_one() {
        let content = Content::new(1000, 3000).expect("planned");
        assert_eq!((content.repositories, content.manifests, content.links), (2, 1000, 3000));
        let named: std::collections::BTreeSet<_> =
            (0..MANIFESTS_PER_REPOSITORY).flat_map(|manifest| content.named(0, manifest)).collect();
        let linked: std::collections::BTreeSet<_> = (0..content.links_each()).map(|n| content.linked(0, n)).collect();
        assert_eq!(named, linked);
        assert_eq!(linked.len(), 1500);
        let bodies: std::collections::BTreeSet<_> = (0..2)
            .flat_map(|repository| (0..500).map(move |manifest| (repository, manifest)))
            .map(|(repository, manifest)| content.body(repository, manifest))
            .collect();
        assert_eq!(bodies.len(), 1000);
    }
}
