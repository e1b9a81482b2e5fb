//! Finds in the cache what belongs to the images that are to be saved.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Read,
};

use crate::{
    cache::Cache,
    image::{
        Descriptor, Digest, ImageManifest, ImageName, Index, Manifest, MediaType, Platform,
        RawManifest, Reference,
    },
    output::OutputManager,
};

use super::{
    super::choose::in_full, Result, SaveError, SaveFormat, SaveRequest, SavedBlob, blocking,
    near::near,
};

/// A configuration is small; a larger one says nothing worth the memory.
const MAX_CONFIG_SIZE: u64 = 8 * 1024 * 1024;

/// An image with all of it that goes into the archive.
#[derive(Debug)]
pub(super) struct Picked {
    /// With host, as all readers understand it.
    pub(super) name: ImageName,
    pub(super) root: RawManifest,
    /// The root and all below it, by the digests they are named by.
    pub(super) manifests: BTreeMap<Digest, RawManifest>,
    pub(super) blobs: BTreeSet<SavedBlob>,
    /// Those of the blobs that are configurations.
    pub(super) configs: BTreeSet<Digest>,
}

/// The images of a request by name, each once.
pub(super) async fn images(
    cache: &Cache,
    request: &SaveRequest,
    output: &OutputManager,
) -> Result<Vec<Picked>> {
    let mut picked: BTreeMap<ImageName, Picked> = BTreeMap::new();
    for name in &request.images {
        let search = Search {
            cache,
            output,
            image: name,
        };
        let root = search.root(request).await?;
        let image = search.collect(root).await?;
        if let Some(known) = picked.get(&image.name)
            && known.root != image.root
        {
            return Err(SaveError::SavedNameShared { name: image.name });
        }
        picked.insert(image.name.clone(), image);
    }
    Ok(picked.into_values().collect())
}

/// Opens a blob that was there before.
pub(super) async fn open(cache: &Cache, blob: &SavedBlob) -> Result<File> {
    let file = cache.open_blob(&blob.descriptor()).await?;
    file.ok_or_else(|| SaveError::CachedBlobMissing {
        digest: blob.digest.clone(),
    })
}

impl SavedBlob {
    /// As the cache is asked for it, which goes by digest and size alone.
    fn descriptor(&self) -> Descriptor {
        Descriptor {
            media_type: MediaType::from(""),
            digest: self.digest.clone(),
            size: self.size,
            urls: Vec::new(),
            platform: None,
        }
    }
}

impl From<&Descriptor> for SavedBlob {
    fn from(descriptor: &Descriptor) -> Self {
        Self {
            digest: descriptor.digest.clone(),
            size: descriptor.size,
        }
    }
}

/// Looks for one image.
struct Search<'a> {
    cache: &'a Cache,
    output: &'a OutputManager,
    image: &'a ImageName,
}

impl Search<'_> {
    /// The manifest or index that is saved: what the name stands for, or one platform of it.
    async fn root(&self, request: &SaveRequest) -> Result<RawManifest> {
        let Some(root) = self.manifest(&self.image.reference).await? else {
            let listed = self.cache.list().await?;
            return Err(SaveError::CachedImageUnknown {
                image: self.image.clone(),
                near: near(
                    self.image,
                    listed.into_iter().map(|image| image.name).collect(),
                ),
            });
        };
        let wanted = request.platform.as_ref();
        match (self.parse(&root)?, wanted) {
            (Manifest::Index(index), _)
                if wanted.is_some() || request.format == SaveFormat::Docker =>
            {
                self.child(&root, &index, wanted).await
            }
            (Manifest::Image(manifest), Some(wanted)) => {
                let own = self.config_platform(&manifest).await?;
                if own.as_ref().is_some_and(|own| is_for(own, wanted)) {
                    return Ok(root);
                }
                Err(self.without(wanted, own.into_iter().collect()))
            }
            _ => Ok(root),
        }
    }

    /// The manifest of the platform that is wanted, or of the only one there is.
    async fn child(
        &self,
        root: &RawManifest,
        index: &Index,
        wanted: Option<&Platform>,
    ) -> Result<RawManifest> {
        let mut here = Vec::new();
        for child in &index.manifests {
            // Attestations are for the platform unknown/unknown.
            let platform = child.platform.as_ref();
            if let Some(platform) = platform.filter(|platform| platform.os != "unknown")
                && let Some(manifest) = self.by_digest(&child.digest).await?
            {
                here.push((platform.clone(), manifest));
            }
        }
        let platforms: Vec<Platform> = here.iter().map(|(platform, _)| platform.clone()).collect();
        let mut fitting = here;
        if let Some(wanted) = wanted {
            fitting.retain(|(platform, _)| is_for(platform, wanted));
            if let Some(exact) = fitting.iter().position(|(platform, _)| platform == wanted) {
                return Ok(fitting.swap_remove(exact).1);
            }
        }
        let image = self.image.clone();
        match (fitting.pop(), wanted) {
            (Some((_, manifest)), _) if fitting.is_empty() => Ok(manifest),
            (Some(_), _) => Err(SaveError::PlatformAmbiguous { image, platforms }),
            (None, Some(wanted)) => Err(self.without(wanted, platforms)),
            (None, None) => Err(self.incomplete(root.digest())),
        }
    }

    /// Everything below a root.
    async fn collect(&self, root: RawManifest) -> Result<Picked> {
        let mut manifests = BTreeMap::new();
        let mut blobs = BTreeSet::new();
        let mut configs = BTreeSet::new();
        let mut absent = BTreeSet::new();
        let mut images = 0;
        let mut open = vec![(root.digest().clone(), root.clone())];
        while let Some((digest, manifest)) = open.pop() {
            if manifests.contains_key(&digest) {
                continue;
            }
            match self.parse(&manifest)? {
                Manifest::Image(image) => {
                    images += 1;
                    self.add_blobs(&image, &mut blobs).await?;
                    configs.extend(image.config.map(|config| config.digest));
                }
                Manifest::Index(index) => {
                    for child in index.manifests {
                        match self.by_digest(&child.digest).await? {
                            Some(manifest) => open.push((child.digest, manifest)),
                            None => drop(absent.insert(child.digest)),
                        }
                    }
                }
            }
            manifests.insert(digest, manifest);
        }
        if let Some(first) = absent.first() {
            if images == 0 {
                return Err(self.incomplete(first));
            }
            self.output.warning(format!(
                "{} is saved with {images} of the {} manifests of its index, since the cache has no others; some readers \
                 refuse such an archive, --platform saves one platform alone",
                self.image,
                images + absent.len()
            ));
        }
        Ok(Picked {
            name: self.full_name(&root)?,
            root,
            manifests,
            blobs,
            configs,
        })
    }

    /// The blobs of a manifest; what only its publisher may serve may be absent.
    async fn add_blobs(
        &self,
        manifest: &ImageManifest,
        blobs: &mut BTreeSet<SavedBlob>,
    ) -> Result<()> {
        for blob in manifest.blobs() {
            let saved = SavedBlob::from(blob);
            if blobs.contains(&saved) {
                continue;
            }
            if self.cache.has_blob(blob).await? {
                blobs.insert(saved);
            } else if !blob.stays_with_its_publisher() {
                return Err(self.incomplete(&blob.digest));
            }
        }
        Ok(())
    }

    /// The name with host. A digest is that of what is saved, which may be one platform.
    fn full_name(&self, root: &RawManifest) -> Result<ImageName> {
        let (repository, reference) = in_full(self.image);
        // What is in the cache has a good name, and a host in front leaves it good unless it gets too long.
        let repository = repository
            .parse()
            .map_err(|_| self.incomplete(root.digest()))?;
        let reference = match reference {
            Reference::Tag(tag) => Reference::Tag(tag.clone()),
            Reference::Digest(digest) if root.has_digest(digest) => {
                Reference::Digest(digest.clone())
            }
            Reference::Digest(_) => Reference::Digest(root.digest().clone()),
        };
        Ok(ImageName {
            repository,
            reference,
        })
    }

    async fn manifest(&self, reference: &Reference) -> Result<Option<RawManifest>> {
        let repository = &self.image.repository;
        Ok(self.cache.manifest(repository, reference).await?)
    }

    async fn by_digest(&self, digest: &Digest) -> Result<Option<RawManifest>> {
        self.manifest(&Reference::Digest(digest.clone())).await
    }

    /// Manifests were parsed when they were read.
    fn parse(&self, manifest: &RawManifest) -> Result<Manifest> {
        manifest
            .parse()
            .map_err(|_| self.incomplete(manifest.digest()))
    }

    /// The platform that the configuration names, if it is one of an image.
    async fn config_platform(&self, manifest: &ImageManifest) -> Result<Option<Platform>> {
        let Some(config) = &manifest.config else {
            return Ok(None);
        };
        let Some(file) = self.cache.open_blob(config).await? else {
            return Err(self.incomplete(&config.digest));
        };
        let digest = config.digest.clone();
        blocking(move || {
            let mut bytes = Vec::new();
            file.take(MAX_CONFIG_SIZE)
                .read_to_end(&mut bytes)
                .map_err(|source| SaveError::CachedBlobUnreadable { digest, source })?;
            Ok(serde_json::from_slice(&bytes).ok())
        })
        .await
    }

    fn incomplete(&self, digest: &Digest) -> SaveError {
        SaveError::CachedImageIncomplete {
            image: self.image.clone(),
            digest: digest.clone(),
        }
    }

    fn without(&self, platform: &Platform, platforms: Vec<Platform>) -> SaveError {
        SaveError::PlatformMissing {
            image: self.image.clone(),
            platform: platform.clone(),
            platforms,
        }
    }
}

/// Whether an image for `own` is one for `wanted`, which may leave the variant open. Version 8 of arm64 is the only one that
/// images are made for, with the variant or without.
fn is_for(own: &Platform, wanted: &Platform) -> bool {
    let variant = |platform: &Platform| match platform.variant.as_deref() {
        Some("v8") if platform.architecture == "arm64" => None,
        variant => variant.map(str::to_owned),
    };
    own.os == wanted.os
        && own.architecture == wanted.architecture
        && (variant(wanted).is_none() || variant(own) == variant(wanted))
}
