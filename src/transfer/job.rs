//! What a run is asked to do, as plain data: it can be written down, sent to another process and read back.

use std::{collections::BTreeMap, fmt, num::NonZeroU64};

use serde::{Deserialize, Serialize};

use crate::{
    image::{self, Digest, Host, ImageName, Reference, RepositoryPath, Tag},
    registry::RegistryClient,
};

/// Names one registry access of a run: an address with one credential. Two destinations at the same address with different
/// passwords have two.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RegistryId(pub String);

impl fmt::Display for RegistryId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The clients of a run. They hold credentials, so they stay apart from the jobs.
pub type Registries = BTreeMap<RegistryId, RegistryClient>;

/// An image in a registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryImage {
    /// Which registry access.
    pub registry: RegistryId,
    /// The repository there.
    pub repository: RepositoryPath,
    /// Tag or digest there.
    pub reference: Reference,
}

impl RegistryImage {
    /// `host/repository:tag` or `host/repository@digest`.
    pub(super) fn full_name(&self, host: &Host) -> String {
        let Self {
            registry: _,
            repository,
            reference,
        } = self;
        format!("{host}/{repository}{}{reference}", reference.separator())
    }
}

/// A place an image is to be copied to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destination {
    /// The destination's name in reports.
    pub name: String,
    /// Which registry access.
    pub registry: RegistryId,
    /// The repository there.
    pub repository: RepositoryPath,
    /// The name of the image in the repository.
    pub reference: TargetReference,
}

impl Destination {
    /// The place, where its name does not depend on the image.
    pub(super) fn known_image(&self) -> Option<RegistryImage> {
        match &self.reference {
            TargetReference::Known(reference) => Some(self.image_at(reference.clone())),
            TargetReference::WithDigest(_) => None,
        }
    }

    /// The place, once the digest of the image is known.
    pub(super) fn image(&self, digest: &Digest) -> image::Result<RegistryImage> {
        let reference = self.reference.resolve(digest)?;
        Ok(self.image_at(reference))
    }

    fn image_at(&self, reference: Reference) -> RegistryImage {
        RegistryImage {
            registry: self.registry.clone(),
            repository: self.repository.clone(),
            reference,
        }
    }
}

/// The name of an image at its destination, which may depend on its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TargetReference {
    /// Known before the copy.
    Known(Reference),
    /// A tag that holds [`TargetReference::DIGEST`]: known once the source was asked.
    WithDigest(String),
}

impl TargetReference {
    /// The placeholder for [`digest_tag`].
    pub const DIGEST: &str = "{digest}";

    /// The reference for an image with this digest.
    pub fn resolve(&self, digest: &Digest) -> image::Result<Reference> {
        match self {
            Self::Known(reference) => Ok(reference.clone()),
            Self::WithDigest(template) => template
                .replace(Self::DIGEST, digest_tag(digest).as_str())
                .parse()
                .map(Reference::Tag),
        }
    }
}

impl fmt::Display for TargetReference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(reference) => reference.fmt(formatter),
            Self::WithDigest(template) => formatter.write_str(template),
        }
    }
}

/// A tag that stands for a digest, since a tag cannot hold a colon: `digest-<hex>`, of SHA-512 the first 64 digits, which keep
/// it below the 128 characters of a tag.
#[expect(
    clippy::expect_used,
    reason = "hex digits after a word are a tag by the grammar, and a test says so"
)]
pub fn digest_tag(digest: &Digest) -> Tag {
    let hex = &digest.hex()[..64];
    format!("digest-{hex}")
        .parse()
        .expect("'digest-' and 64 hex digits are a tag")
}

/// One image to copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageJob {
    /// The name under which the image lies in the cache.
    pub cached: ImageName,
    /// The digest that is meant by an image of the cache, where it is known: the name may stand for another one by now.
    pub pinned: Option<Digest>,
    /// Where it comes from; `None` when it lies in the cache already.
    pub source: Option<RegistryImage>,
    /// Where it goes; none means that it only fills the cache.
    pub destinations: Vec<Destination>,
}

impl ImageJob {
    /// The names under which the image lies in the cache: its own and, where that is known, its digest.
    pub fn cached_names(&self) -> impl Iterator<Item = ImageName> {
        let pinned = self.pinned.as_ref();
        let pinned = pinned.map(|digest| self.cached.pinned(digest));
        pinned.into_iter().chain([self.cached.clone()])
    }
}

/// What to do about blobs a destination has already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ExistingBlobs {
    /// Ask first, and send only what is missing.
    #[default]
    Skip,
    /// Send blobs and manifests whether they are there or not: mends a registry whose storage lost content.
    Upload,
}

/// Limits and habits of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferOptions {
    /// Blob transfers at once, over all images of the run: so many from the source, and so many to each destination, which then
    /// do not wait for each other. Manifests, questions and the ranges of one blob are not counted.
    pub max_concurrent: usize,
    /// What to do about blobs that are there already.
    pub existing_blobs: ExistingBlobs,
    /// Bytes per second that are read from the source, and as many that are sent to each destination.
    pub bandwidth_limit: Option<NonZeroU64>,
}

impl TransferOptions {
    /// Blob transfers at once where nobody says otherwise (design, `transfer.maxConcurrent`).
    pub const DEFAULT_MAX_CONCURRENT: usize = 8;
}

impl Default for TransferOptions {
    fn default() -> Self {
        Self {
            max_concurrent: Self::DEFAULT_MAX_CONCURRENT,
            existing_blobs: ExistingBlobs::default(),
            bandwidth_limit: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Algorithm;

    #[test]
    fn a_job_survives_being_written_down() {
        let job = ImageJob {
            cached: "registry.example:5000/team/app:1.0".parse().unwrap(),
            pinned: None,
            source: Some(RegistryImage {
                registry: RegistryId("source".into()),
                repository: "team/app".parse().unwrap(),
                reference: "1.0".parse().unwrap(),
            }),
            destinations: vec![Destination {
                name: "default".into(),
                registry: RegistryId("destination default".into()),
                repository: "mirror/team/app".parse().unwrap(),
                reference: TargetReference::WithDigest("1.0-{digest}".into()),
            }],
        };
        let text = serde_json::to_string(&job).unwrap();
        assert_eq!(serde_json::from_str::<ImageJob>(&text).unwrap(), job);
    }

    #[test]
    fn a_digest_becomes_a_tag_of_legal_length() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let digest = Digest::with_algorithm(algorithm, b"");
            assert_eq!(
                digest_tag(&digest).as_str(),
                format!("digest-{}", &digest.hex()[..64])
            );
            let reference = TargetReference::WithDigest("1.0-{digest}".into())
                .resolve(&digest)
                .unwrap();
            assert_eq!(
                reference.to_string(),
                format!("1.0-digest-{}", &digest.hex()[..64])
            );
        }
    }
}
