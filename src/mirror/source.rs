//! Where images come from: what each kind of source selects.

use std::collections::BTreeSet;

use crate::{
    api::{ArchiveSource, CacheSource, RegistrySource, Source},
    image::{Digest, ImageName, Reference, Repository, Tag},
};

use super::{
    Result,
    access::ValidatedAccess,
    archive::ValidatedArchive,
    validate::{invalid, named},
};

/// One image of a source.
#[derive(Debug, Clone)]
pub(super) struct SelectedImage {
    /// Its name in the cache: host, repository, and what selected it.
    pub(super) cached: ImageName,
    /// The tag it is known by, if any: of `tag@digest`, the tag.
    pub(super) tag: Option<Tag>,
    /// Its digest, where that is known before anything is asked.
    pub(super) digest: Option<Digest>,
}

impl SelectedImage {
    /// The image that goes by this name.
    pub(super) fn named(cached: ImageName) -> Self {
        Self {
            tag: cached.reference.tag().cloned(),
            digest: cached.reference.digest().cloned(),
            cached,
        }
    }
}

/// A source that can be read, as far as the spec can tell.
#[derive(Debug, Clone)]
pub(super) enum ValidatedSource {
    Registry {
        access: ValidatedAccess,
        images: Vec<SelectedImage>,
    },
    Archive(ValidatedArchive),
    Cache(SelectedImage),
}

/// Checks the source of a spec.
pub(super) fn validate(source: &Source) -> Result<ValidatedSource> {
    match source {
        Source {
            registry: Some(registry),
            archive: None,
            cache: None,
        } => from_registry(registry),
        Source {
            registry: None,
            archive: Some(archive),
            cache: None,
        } => from_archive(archive),
        Source {
            registry: None,
            archive: None,
            cache: Some(cache),
        } => from_cache(cache),
        _ => Err(invalid(
            "spec.source",
            "exactly one of registry, archive and cache must be set",
        )),
    }
}

fn from_registry(registry: &RegistrySource) -> Result<ValidatedSource> {
    let field = "spec.source.registry";
    let repository = hosted(field, &registry.repository)?;
    Ok(ValidatedSource::Registry {
        access: ValidatedAccess::new(field, &registry.access)?,
        images: selected(registry, &repository)?,
    })
}

fn from_archive(archive: &ArchiveSource) -> Result<ValidatedSource> {
    ValidatedArchive::new(archive).map(ValidatedSource::Archive)
}

fn from_cache(cache: &CacheSource) -> Result<ValidatedSource> {
    let field = "spec.source.cache";
    let CacheSource {
        repository,
        reference,
    } = cache;
    let repository = hosted(field, repository)?;
    let reference = named(field, "reference", reference.parse::<Reference>())?;
    Ok(ValidatedSource::Cache(image(&repository, reference)))
}

/// A repository with its host.
fn hosted(field: &str, text: &str) -> Result<Repository> {
    let repository = named(field, "repository", text.parse::<Repository>())?;
    if repository.host().is_none() {
        return Err(invalid(
            format!("{field}.repository"),
            "must be host[:port]/path, for example docker.io/library/nginx",
        ));
    }
    Ok(repository)
}

/// The images a registry source selects, each once.
fn selected(registry: &RegistrySource, repository: &Repository) -> Result<Vec<SelectedImage>> {
    let mut seen = BTreeSet::new();
    let mut images = Vec::new();
    for (position, tag) in registry.tags.iter().enumerate() {
        if seen.insert(tag.0.as_str()) {
            let field = format!("spec.source.registry.tags[{position}]");
            let tag = named(&field, "", tag.0.parse())?;
            images.push(image(repository, Reference::Tag(tag)));
        }
    }
    for (position, pinned) in registry.digests.iter().enumerate() {
        if !seen.insert(pinned.0.as_str()) {
            continue;
        }
        let field = format!("spec.source.registry.digests[{position}]");
        let (tag, digest) = match pinned.0.split_once('@') {
            Some((tag, digest)) => (Some(named(&field, "", tag.parse::<Tag>())?), digest),
            None => (None, pinned.0.as_str()),
        };
        let digest = named(&field, "", digest.parse::<Digest>())?;
        images.push(SelectedImage {
            tag,
            ..image(repository, Reference::Digest(digest))
        });
    }
    if images.is_empty() {
        return Err(invalid(
            "spec.source.registry",
            "nothing selected: set at least one of tags and digests",
        ));
    }
    Ok(images)
}

/// The image under `reference`. In the cache it lies under what selected it: a pinned digest and the tag of the same name
/// are two images.
fn image(repository: &Repository, reference: Reference) -> SelectedImage {
    SelectedImage::named(ImageName {
        repository: repository.clone(),
        reference,
    })
}
