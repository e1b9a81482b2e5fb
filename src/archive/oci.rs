//! The OCI side of an archive: `index.json`, and what lies below each of its descriptors.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use crate::image::{
    Descriptor, Digest, ImageManifest, ImageName, Manifest, MediaType, Platform, RawManifest, Tag,
};

use super::{
    check::BlobUse,
    configs::{Configs, Planning},
    entries::{Content, Entries},
    error::{Error, Result, escaped},
    json::{Annotations, LayoutIndex, check_digests, digest, is_image_config, is_tar_layer, parse},
    limits::Limits,
};

/// A descriptor of `index.json` with everything below it.
#[derive(Debug)]
pub(super) struct Root {
    pub(super) names: Vec<ImageName>,
    pub(super) tag_only: Option<Tag>,
    pub(super) tree: Tree,
}

/// A manifest or index, and what of it is in the archive.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) manifest: RawManifest,
    /// The manifests below an index, each before what names it.
    pub(super) children: Vec<RawManifest>,
    /// The image manifests: the root itself, or those below it.
    pub(super) images: Vec<OciImage>,
    /// What an index names and the archive does not have, in words.
    pub(super) missing: Vec<String>,
}

/// An image manifest with its blobs.
#[derive(Debug)]
pub(super) struct OciImage {
    pub(super) manifest: RawManifest,
    pub(super) platform: Option<Platform>,
    pub(super) config: Option<Digest>,
    config_blob: Option<BlobUse>,
    /// Those that are in the archive, in order.
    pub(super) layers: Vec<BlobUse>,
    pub(super) missing: Vec<String>,
    /// What of that an earlier archive has.
    absent: Vec<Digest>,
}

impl OciImage {
    /// Every blob that is in the archive.
    pub(super) fn blobs(&self) -> impl Iterator<Item = BlobUse> {
        self.config_blob.iter().chain(&self.layers).cloned()
    }
}

impl Tree {
    /// Whether all of it is there.
    pub(super) fn is_whole(&self) -> bool {
        self.missing.is_empty() && self.images.iter().all(|image| image.missing.is_empty())
    }

    /// Everything that is missing, for a message.
    pub(super) fn missing(&self) -> Vec<String> {
        let of_images = self.images.iter().flat_map(|image| &image.missing);
        self.missing.iter().chain(of_images).cloned().collect()
    }

    /// What the archive leaves out because an earlier one has it, and the cache has not.
    pub(super) fn absent(&self) -> Vec<String> {
        let all = self.images.iter().flat_map(|image| &image.absent);
        let unique: HashSet<_> = all.collect();
        let mut unique: Vec<String> = unique.into_iter().map(ToString::to_string).collect();
        unique.sort();
        unique
    }

    /// The platforms that are there.
    pub(super) fn platforms(&self) -> Vec<Platform> {
        let mut platforms: Vec<Platform> = Vec::new();
        let whole = self.images.iter().filter(|image| image.missing.is_empty());
        for platform in whole.filter_map(|image| image.platform.clone()) {
            // Attestations say `unknown/unknown`.
            if platform.os != "unknown" && !platforms.contains(&platform) {
                platforms.push(platform);
            }
        }
        platforms
    }

    /// All its blobs.
    pub(super) fn blobs(&self) -> Vec<BlobUse> {
        self.images.iter().flat_map(OciImage::blobs).collect()
    }
}

/// Reads the OCI side. The counters are those of the whole archive.
pub(super) struct Reader<'a, 'c> {
    planning: Planning<'a>,
    entries: &'a Entries,
    limits: &'a Limits,
    configs: &'c mut Configs<'a>,
    descriptors: usize,
    manifest_bytes: u64,
    /// Whether the archive relies on blobs of the cache.
    is_incremental: bool,
    cached: HashMap<Digest, Arc<Content>>,
}

impl<'a, 'c> Reader<'a, 'c> {
    pub(super) fn new(planning: Planning<'a>, configs: &'c mut Configs<'a>) -> Self {
        Self {
            planning,
            entries: planning.entries,
            limits: planning.limits,
            configs,
            descriptors: 0,
            manifest_bytes: 0,
            is_incremental: false,
            cached: HashMap::new(),
        }
    }

    /// Every descriptor of `index.json`, each by itself: whether one that cannot be used is an error depends on whether the
    /// archive has another description of the image. One that nobody could use (a limit, a disk error) ends the reading.
    ///
    /// Blobs that are not there are looked for in the cache only if the archive says that it relies on others, and is `alone`
    /// in describing the images: else what an archive means would depend on what the cache has.
    pub(super) fn roots(&mut self, index: &Content, alone: bool) -> Result<Vec<Result<Root>>> {
        let bytes = index.read_small(
            self.entries.archive(),
            self.limits.manifest_json,
            "manifest_json",
        )?;
        let place = self.entries.place(index);
        let index: LayoutIndex = parse(&bytes, &place)?;
        self.is_incremental = alone && index.is_incremental();
        let listed = index.manifests.unwrap_or_default();
        self.planning.require_images(listed.len())?;
        let mut roots = Vec::new();
        for listed in listed {
            self.planning.ensure_going_on()?;
            self.count(1)?;
            let media_type = listed.media_type.clone();
            let root = digest(&listed.digest, &place).and_then(|digest| {
                let descriptor = Descriptor {
                    media_type: media_type.unwrap_or_else(|| MediaType::from("")),
                    digest,
                    size: listed.size,
                    urls: Vec::new(),
                    platform: None,
                };
                let tree = self.tree(&descriptor)?;
                let (names, tag_only) = names_of(listed.annotations.unwrap_or_default());
                Ok(Root {
                    names,
                    tag_only,
                    tree,
                })
            });
            match root {
                Err(error) if !is_of_this_root(&error) => return Err(error),
                root => roots.push(root),
            }
        }
        Ok(roots)
    }

    fn tree(&mut self, root: &Descriptor) -> Result<Tree> {
        let Some(manifest) = self.manifest(root)? else {
            let shown = root.digest.to_string();
            return Err(self.entries.archive().invalid(format!(
                "the manifest {shown} is listed but not in the archive"
            )));
        };
        let mut tree = Tree {
            manifest: manifest.clone(),
            children: Vec::new(),
            images: Vec::new(),
            missing: Vec::new(),
        };
        let mut seen = HashSet::from([root.digest.clone()]);
        self.descend(&manifest, None, 0, &mut seen, &mut tree)?;
        Ok(tree)
    }

    /// Collects what is below a manifest. A digest cannot name itself, so there are no circles; row 38 bounds the rest.
    fn descend(
        &mut self,
        manifest: &RawManifest,
        platform: Option<&Platform>,
        depth: usize,
        seen: &mut HashSet<Digest>,
        tree: &mut Tree,
    ) -> Result<()> {
        let archive = self.entries.archive();
        if depth > self.limits.index_depth {
            let reason = format!(
                "its indexes nest more than {} levels deep",
                self.limits.index_depth
            );
            return Err(archive.limit("index_depth", reason));
        }
        let index = match manifest.parse().map_err(|error| archive.manifest(&error))? {
            Manifest::Image(image) => {
                let image = self.image(manifest, &image, platform)?;
                tree.images.push(image);
                return Ok(());
            }
            Manifest::Index(index) => index,
        };
        for child in index.manifests {
            self.planning.ensure_going_on()?;
            self.count(1)?;
            if !seen.insert(child.digest.clone()) {
                continue;
            }
            let platform = child.platform.as_ref();
            if let Some(manifest) = self.manifest(&child)? {
                self.descend(&manifest, platform, depth + 1, seen, tree)?;
                tree.children.push(manifest);
            } else {
                tree.missing.push(platform.map_or_else(
                    || format!("manifest {}", child.digest),
                    |platform| format!("platform {}", escaped(platform.to_string().as_bytes())),
                ));
            }
        }
        Ok(())
    }

    /// The manifest a descriptor names, checked against it; none if it is not in the archive.
    fn manifest(&mut self, descriptor: &Descriptor) -> Result<Option<RawManifest>> {
        let Some(content) = self.entries.blob(&descriptor.digest)? else {
            return Ok(None);
        };
        let archive = self.entries.archive();
        let place = self.entries.place(content);
        require_size(content, descriptor.size, self.entries)?;
        let bytes = content.read_small(archive, self.limits.manifest_json, "manifest_json")?;
        self.manifest_bytes += content.size;
        if self.manifest_bytes > self.limits.manifest_bytes {
            let reason = format!(
                "its manifests have more than {} bytes",
                self.limits.manifest_bytes
            );
            return Err(archive.limit("manifest_bytes", reason));
        }
        let algorithm = descriptor.digest.algorithm();
        let actual = Digest::with_algorithm(algorithm, &bytes);
        if actual != descriptor.digest {
            return Err(place.mismatch("a manifest", &descriptor.digest, &actual));
        }
        check_digests(&bytes, &place)?;
        RawManifest::new(bytes.into(), Some(&descriptor.media_type), algorithm)
            .map(Some)
            .map_err(|error| place.manifest(&error))
    }

    fn image(
        &mut self,
        raw: &RawManifest,
        manifest: &ImageManifest,
        platform: Option<&Platform>,
    ) -> Result<OciImage> {
        self.count(manifest.layers.len() + 1)?;
        let mut image = OciImage {
            manifest: raw.clone(),
            platform: platform.cloned(),
            config: manifest.config.as_ref().map(|config| config.digest.clone()),
            config_blob: None,
            layers: Vec::new(),
            missing: Vec::new(),
            absent: Vec::new(),
        };
        if let Some(descriptor) = &manifest.config {
            let content = self.entries.blob(&descriptor.digest)?.cloned();
            image.config_blob = self.used(descriptor, content, "the configuration", &mut image)?;
        }
        let mut diff_ids = None;
        if let (Some(descriptor), Some(used)) = (&manifest.config, &image.config_blob)
            && is_image_config(&descriptor.media_type)
        {
            let config = (self.configs).get(&used.content, descriptor.digest.algorithm())?;
            let place = self.entries.place(&used.content);
            image.platform = image.platform.or_else(|| config.platform.clone());
            diff_ids.clone_from(&config.diff_ids);
            let of_tars = manifest
                .layers
                .iter()
                .all(|layer| is_tar_layer(&layer.media_type));
            match &diff_ids {
                Some(list) if of_tars && list.len() != manifest.layers.len() => {
                    return Err(place.invalid(count_mismatch(manifest.layers.len(), list.len())));
                }
                Some(list) if list.len() != manifest.layers.len() => diff_ids = None,
                _ => {}
            }
        }
        for (position, layer) in manifest.layers.iter().enumerate() {
            let part = layer_name(position, manifest.layers.len());
            let content = self.layer(layer)?;
            if content.is_none() && self.is_incremental && !layer.stays_with_its_publisher() {
                image.absent.push(layer.digest.clone());
            }
            if let Some(mut used) = self.used(layer, content, &part, &mut image)? {
                let diff_id = diff_ids.as_ref().and_then(|list| list.get(position));
                used.diff_id = diff_id.filter(|_| is_tar_layer(&layer.media_type)).cloned();
                used.may_be_packed = !layer.media_type.is_nondistributable();
                image.layers.push(used);
            }
        }
        Ok(image)
    }

    /// How an image uses a blob, or a note that it is missing. What only its publisher may serve may be absent.
    fn used(
        &self,
        descriptor: &Descriptor,
        content: Option<Arc<Content>>,
        part: &str,
        image: &mut OciImage,
    ) -> Result<Option<BlobUse>> {
        let Some(content) = content else {
            if !descriptor.stays_with_its_publisher() {
                image.missing.push(match &image.platform {
                    Some(platform) => format!(
                        "{part} of platform {}",
                        escaped(platform.to_string().as_bytes())
                    ),
                    None => format!("{part}, {},", descriptor.digest),
                });
            }
            return Ok(None);
        };
        require_size(&content, descriptor.size, self.entries)?;
        Ok(Some(BlobUse {
            content,
            part: part.to_owned(),
            digest: Some(descriptor.digest.clone()),
            diff_id: None,
            may_be_packed: false,
        }))
    }

    /// A layer of the archive, or one that it leaves out and the cache has.
    fn layer(&mut self, descriptor: &Descriptor) -> Result<Option<Arc<Content>>> {
        if let Some(content) = self.entries.blob(&descriptor.digest)? {
            return Ok(Some(Arc::clone(content)));
        }
        if !self.is_incremental {
            return Ok(None);
        }
        if let Some(known) = self.cached.get(&descriptor.digest) {
            return Ok(Some(Arc::clone(known)));
        }
        // Entries are counted from the other end.
        let number = u64::MAX - self.cached.len() as u64;
        let (archive, spool) = (self.entries.archive(), self.planning.spool);
        let found = Content::cached(number, descriptor, archive, spool)?.map(Arc::new);
        if let Some(content) = &found {
            let digest = descriptor.digest.clone();
            self.cached.insert(digest, Arc::clone(content));
        }
        Ok(found)
    }

    fn count(&mut self, descriptors: usize) -> Result<()> {
        self.planning.count(&mut self.descriptors, descriptors)
    }
}

/// Whether an error says that one descriptor of `index.json` cannot be used. Everything else would stop any reader.
const fn is_of_this_root(error: &Error) -> bool {
    matches!(
        error,
        Error::ArchiveInvalid { .. }
            | Error::ArchiveUnsupported { .. }
            | Error::DigestMismatch { .. }
    )
}

/// Row 39.
fn require_size(content: &Content, expected: u64, entries: &Entries) -> Result<()> {
    if content.size == expected {
        return Ok(());
    }
    Err(entries.place(content).invalid(format!(
        "size mismatch: its descriptor says {expected} bytes, it has {}",
        content.size
    )))
}

/// Row 33.
pub(super) fn count_mismatch(layers: usize, diff_ids: usize) -> String {
    format!("{layers} layers, {diff_ids} diff_ids")
}

/// How messages call a layer.
pub(super) fn layer_name(position: usize, count: usize) -> String {
    format!("layer {} of {count}", position + 1)
}

/// The name in the annotations of a descriptor. Unlike those of `RepoTags`, they may be anything: what is no name for us
/// leaves the image without one.
fn names_of(annotations: Annotations) -> (Vec<ImageName>, Option<Tag>) {
    let Annotations {
        full_name,
        reference_name,
    } = annotations;
    let full = [full_name.as_deref(), reference_name.as_deref()]
        .into_iter()
        .flatten()
        .find_map(|name| name.parse().ok());
    let tag = reference_name.and_then(|name| name.parse().ok());
    (full.into_iter().collect(), tag)
}
