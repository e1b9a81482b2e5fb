//! Which images an archive holds, and what each consists of. Both descriptions are read where there are two: Docker's
//! `manifest.json` and the OCI layout (the hybrid rule of archive reference part 1).

use std::{collections::HashSet, sync::Arc};

use crate::image::{Algorithm, Digest, ImageName, Platform, RawManifest, Tag};

use super::{
    check::BlobUse,
    configs::{Configs, KnownConfig, Planning},
    entries::{Content, Entries},
    error::{Error, Place, Result, escaped},
    json::{Element, elements},
    oci::{OciImage, Reader, Root, count_mismatch, layer_name},
    outer::Form,
    rebuild,
};

/// An image of the archive.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) names: Vec<ImageName>,
    pub(super) tag_only: Option<Tag>,
    pub(super) platforms: Vec<Platform>,
    pub(super) source: Source,
}

/// What an image is made of.
#[derive(Debug)]
pub(super) enum Source {
    /// Manifests that the archive has; their bytes are kept.
    Kept {
        root: RawManifest,
        children: Vec<RawManifest>,
        blobs: Vec<BlobUse>,
    },
    /// The manifest is made of these.
    Rebuilt {
        config: BlobUse,
        layers: Vec<BlobUse>,
    },
}

impl Source {
    /// Everything that is to be in the cache for it.
    pub(super) fn blobs(&self) -> Vec<&BlobUse> {
        match self {
            Self::Kept { blobs, .. } => blobs.iter().collect(),
            Self::Rebuilt { config, layers } => std::iter::once(config).chain(layers).collect(),
        }
    }

    /// The digest of the image, as far as it is known without reading layers.
    pub(super) fn digest(&self, archive: &Place) -> Result<Option<Digest>> {
        let (config, layers) = match self {
            Self::Kept { root, .. } => return Ok(Some(root.digest().clone())),
            Self::Rebuilt { config, layers } => (config, layers),
        };
        let mut descriptors = Vec::with_capacity(layers.len());
        for layer in layers {
            let place = layer.content.place(archive);
            let form = layer.content.form(archive)?;
            let Some(digest) = presumed(layer, form) else {
                return Ok(None);
            };
            descriptors.push(rebuild::layer(form, digest, layer.content.size, &place)?);
        }
        let Some(digest) = config.digest.clone() else {
            return Ok(None);
        };
        let config = rebuild::config(digest, config.content.size);
        let manifest = rebuild::manifest(&config, &descriptors, archive)?;
        Ok(Some(manifest.digest().clone()))
    }
}

/// The digest a blob must have if the archive is sound.
pub(super) fn presumed(wanted: &BlobUse, form: Form) -> Option<Digest> {
    let content = &wanted.content;
    let is_plain = form == Form::Plain;
    content
        .known_digest()
        .cloned()
        .or_else(|| content.named_digest())
        .or_else(|| wanted.digest.clone())
        .or_else(|| wanted.diff_id.clone().filter(|_| is_plain))
}

/// Finds the images of an archive. The second value is what is odd about it.
pub(super) fn plan(planning: Planning<'_>) -> Result<(Vec<Planned>, Vec<String>)> {
    let entries = planning.entries;
    let docker = entries.find("manifest.json")?;
    let layout = entries.find("index.json")?;
    let mut configs = Configs::new(planning);
    let mut reader = Reader::new(planning, &mut configs);
    let (images, warnings) = match (docker, layout) {
        (None, None) => return Err(old_format(entries)),
        (None, Some(layout)) => (of_layout(reader.roots(layout, true)?, entries)?, Vec::new()),
        (Some(docker), layout) => {
            let roots = match layout {
                Some(layout) => usable(reader.roots(layout, false)?),
                None => (Vec::new(), Vec::new()),
            };
            of_docker(docker, roots, planning, &mut configs)?
        }
    };
    if images.is_empty() {
        return Err(entries.archive().invalid("it holds no image"));
    }
    Ok((images, warnings))
}

/// Row 41.
fn old_format(entries: &Entries) -> Error {
    let archive = entries.archive();
    let is_old = matches!(entries.find("repositories"), Ok(Some(_)));
    archive.unsupported(if is_old {
        "old format, of Docker before 1.10; save it again with a current Docker"
    } else {
        "it has neither manifest.json nor index.json; an image archive is what `docker save`, `podman save` or \
         `skopeo copy` write, `docker export` writes the files of a container"
    })
}

/// The images of a mere OCI layout. Descriptors of one digest are one image with several names.
fn of_layout(roots: Vec<Result<Root>>, entries: &Entries) -> Result<Vec<Planned>> {
    let mut images: Vec<Planned> = Vec::new();
    for (position, root) in roots.into_iter().enumerate() {
        let root = root?;
        require_whole(&root, position, entries)?;
        add(&mut images, root);
    }
    Ok(images)
}

/// Adds an image, or its names to those of the same image.
fn add(images: &mut Vec<Planned>, root: Root) {
    let same = images.iter_mut().find(|image| {
        matches!(&image.source, Source::Kept { root: known, .. } if *known == root.tree.manifest)
    });
    if let Some(same) = same {
        let new = root
            .names
            .into_iter()
            .filter(|name| !same.names.contains(name));
        let new: Vec<ImageName> = new.collect();
        same.names.extend(new);
        same.tag_only = same.tag_only.take().or(root.tag_only);
        return;
    }
    images.push(kept(root));
}

fn kept(root: Root) -> Planned {
    let Root {
        names,
        tag_only,
        tree,
    } = root;
    Planned {
        names,
        tag_only,
        platforms: tree.platforms(),
        source: Source::Kept {
            blobs: tree.blobs(),
            root: tree.manifest,
            children: tree.children,
        },
    }
}

/// Missing parts that a message names; more do not help the reader.
const SHOWN: usize = 8;

/// An index without some of its children would be another index: it is refused, by the names of what is missing. A single
/// image without a blob is broken (row 40).
fn require_whole(root: &Root, position: usize, entries: &Entries) -> Result<()> {
    if root.tree.is_whole() {
        return Ok(());
    }
    let absent = root.tree.absent();
    if root.tree.missing.is_empty() && !absent.is_empty() {
        return Err(Error::ArchiveBaseMissing {
            place: entries.archive().clone(),
            missing: listed(&absent),
        });
    }
    let missing = root.tree.missing();
    let first = missing.first().cloned().unwrap_or_default();
    if root.tree.images.len() == 1 && root.tree.children.is_empty() && root.tree.missing.is_empty()
    {
        return Err(entries
            .archive()
            .invalid(format!("{first} is listed but not in the archive")));
    }
    let mut text = listed(&missing);
    text.push_str(if missing.len() == 1 { " is" } else { " are" });
    Err(Error::ArchiveIncomplete {
        place: entries.archive().clone(),
        image: root
            .names
            .first()
            .map(ToString::to_string)
            .or_else(|| root.tag_only.as_ref().map(ToString::to_string))
            .unwrap_or_else(|| format!("number {}", position + 1)),
        missing: text,
    })
}

/// The first of what is missing, as a list in a sentence.
fn listed(missing: &[String]) -> String {
    let mut text = missing[..missing.len().min(SHOWN)].join(", ");
    if missing.len() > SHOWN {
        text.push_str(" and others");
    }
    text
}

/// The roots that can be used where there is another description, and why others cannot.
fn usable(roots: Vec<Result<Root>>) -> (Vec<Root>, Vec<String>) {
    let (mut found, mut warnings) = (Vec::new(), Vec::new());
    for root in roots {
        match root {
            Ok(root) => found.push(root),
            Err(error) => {
                warnings.push(format!("a manifest of the OCI layout is not used: {error}"));
            }
        }
    }
    (found, warnings)
}

/// The images of `manifest.json`, and those of the layout that it does not list.
fn of_docker(
    manifest: &Content,
    (roots, mut warnings): (Vec<Root>, Vec<String>),
    planning: Planning<'_>,
    known: &mut Configs<'_>,
) -> Result<(Vec<Planned>, Vec<String>)> {
    let Planning {
        entries, limits, ..
    } = planning;
    let bytes = manifest.read_small(entries.archive(), limits.manifest_json, "manifest_json")?;
    let place = entries.place(manifest);
    let mut images = Vec::new();
    let mut configs = HashSet::new();
    let elements = elements(&bytes, &place)?;
    planning.require_images(elements.len())?;
    let mut descriptors = 0;
    for element in elements {
        planning.ensure_going_on()?;
        planning.count(&mut descriptors, element.count())?;
        let image = DockerImage::read(element, &place, entries, known)?;
        configs.insert(image.config.digest.clone());
        images.push(image.plan(&roots, planning)?);
    }
    for root in roots {
        let is_listed = root.tree.images.iter().any(|image| {
            image
                .config
                .as_ref()
                .is_some_and(|config| configs.contains(config))
        });
        if is_listed {
            continue;
        }
        if root.tree.is_whole() {
            add(&mut images, root);
        } else {
            let digest = root.tree.manifest.digest();
            warnings.push(format!(
                "{} is not whole in the archive and is left out: {} missing",
                digest,
                listed(&root.tree.missing())
            ));
        }
    }
    Ok((images, warnings))
}

/// An element of `manifest.json` with its configuration.
struct DockerImage {
    names: Vec<ImageName>,
    layers: Vec<String>,
    config_content: Arc<Content>,
    config: Arc<KnownConfig>,
}

impl DockerImage {
    fn read(
        element: Element,
        place: &Place,
        entries: &Entries,
        configs: &mut Configs<'_>,
    ) -> Result<Self> {
        let names = element
            .repo_tags
            .unwrap_or_default()
            .iter()
            .map(|tag| image_name(tag, place))
            .collect::<Result<_>>()?;
        let layers = element.layers.unwrap_or_default();
        let content = entries.require(&element.config, "the configuration")?;
        let config_place = entries.place(content);
        let promised = digest_in_name(&element.config);
        let algorithm = promised
            .as_ref()
            .map_or(Algorithm::Sha256, Digest::algorithm);
        let config = configs.get(content, algorithm)?;
        if let Some(promised) = promised
            && promised != config.digest
        {
            return Err(config_place.mismatch("the configuration", &promised, &config.digest));
        }
        let diff_ids = config.diff_ids.as_ref().map_or(0, Vec::len);
        if layers.len() != diff_ids {
            return Err(config_place.invalid(count_mismatch(layers.len(), diff_ids)));
        }
        Ok(Self {
            names,
            layers,
            config_content: Arc::clone(content),
            config,
        })
    }

    /// The digests of the layers before compression, as many as there are layers.
    fn diff_ids(&self) -> &[Digest] {
        self.config.diff_ids.as_deref().unwrap_or_default()
    }

    /// The image as the layout describes it, if that agrees with `manifest.json`; else with a manifest of our own.
    fn plan(mut self, roots: &[Root], planning: Planning<'_>) -> Result<Planned> {
        let entries = planning.entries;
        let mut matching: Vec<(&Root, &OciImage)> = roots
            .iter()
            .filter_map(|root| Some((root, self.find_in(root)?)))
            .collect();
        // Where one configuration has several manifests, the name decides.
        matching.sort_by_cached_key(|(root, _)| !self.has_name_of(root));
        if self.names.is_empty() {
            let names = matching
                .iter()
                .flat_map(|(root, _)| root.names.iter().cloned());
            self.names = names.collect();
        }
        let tag_only = matching.first().and_then(|(root, _)| root.tag_only.clone());
        for (root, image) in matching {
            planning.ensure_going_on()?;
            if !image.missing.is_empty() || !self.agrees_with(image, entries)? {
                continue;
            }
            let is_whole = root.tree.is_whole();
            let (platforms, source) = if is_whole {
                let source = Source::Kept {
                    root: root.tree.manifest.clone(),
                    children: root.tree.children.clone(),
                    blobs: root.tree.blobs(),
                };
                (root.tree.platforms(), source)
            } else {
                // Of an index that names more than the archive has, `manifest.json` tells which platform was meant.
                let source = Source::Kept {
                    root: image.manifest.clone(),
                    children: Vec::new(),
                    blobs: image.blobs().collect(),
                };
                (image.platform.iter().cloned().collect(), source)
            };
            return Ok(Planned {
                names: self.names,
                tag_only,
                platforms,
                source,
            });
        }
        self.rebuilt(tag_only, entries)
    }

    fn find_in<'r>(&self, root: &'r Root) -> Option<&'r OciImage> {
        root.tree
            .images
            .iter()
            .find(|image| image.config.as_ref() == Some(&self.config.digest))
    }

    /// Docker writes `app:1` where containerd writes `docker.io/library/app:1`.
    fn has_name_of(&self, root: &Root) -> bool {
        self.names.iter().any(|own| {
            let own = own.to_string();
            root.names.iter().any(|other| {
                let other = other.to_string();
                other == own || other.ends_with(&format!("/{own}"))
            })
        })
    }

    /// The hybrid rule: as many layers as `diff_ids`, and each of them either plain with that digest, or the very blob that
    /// `manifest.json` names. That the blobs hash to their names is checked when they are read.
    fn agrees_with(&self, image: &OciImage, entries: &Entries) -> Result<bool> {
        let layers = &image.layers;
        let diff_ids = self.diff_ids();
        if layers.len() != diff_ids.len() {
            // Layers that only their publisher may serve are absent on both sides; the manifest knows where they are.
            return Ok(layers.len() < diff_ids.len() && self.lacks_the_same(layers, entries)?);
        }
        for ((used, diff_id), path) in layers.iter().zip(diff_ids).zip(&self.layers) {
            let digest = used.digest.as_ref();
            let is_plain = used.content.form(entries.archive())? == Form::Plain;
            let same_blob = digest_in_name(path).as_ref() == digest;
            if !(same_blob || is_plain && digest == Some(diff_id)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the layers that the manifest has are, in order, those of `manifest.json` that are in the archive.
    fn lacks_the_same(&self, layers: &[BlobUse], entries: &Entries) -> Result<bool> {
        let mut present = Vec::new();
        for path in &self.layers {
            if let Some(content) = entries.find(path)? {
                present.push(content.number);
            }
        }
        let kept: Vec<u64> = layers.iter().map(|used| used.content.number).collect();
        Ok(present == kept)
    }

    fn rebuilt(self, tag_only: Option<Tag>, entries: &Entries) -> Result<Planned> {
        let count = self.layers.len();
        let mut layers = Vec::with_capacity(count);
        for (position, (path, diff_id)) in self.layers.iter().zip(self.diff_ids()).enumerate() {
            let part = layer_name(position, count);
            layers.push(BlobUse {
                content: Arc::clone(entries.require(path, &part)?),
                part,
                digest: None,
                diff_id: Some(diff_id.clone()),
                may_be_packed: true,
            });
        }
        Ok(Planned {
            names: self.names,
            tag_only,
            platforms: self.config.platform.iter().cloned().collect(),
            source: Source::Rebuilt {
                config: BlobUse {
                    content: self.config_content,
                    part: "the configuration".to_owned(),
                    digest: Some(self.config.digest.clone()),
                    diff_id: None,
                    may_be_packed: false,
                },
                layers,
            },
        })
    }
}

/// Row 37.
fn image_name(text: &str, place: &Place) -> Result<ImageName> {
    text.parse().map_err(|error: crate::image::Error| {
        let shown = escaped(text.as_bytes());
        place.invalid(format!("bad image name '{shown}': {error}"))
    })
}

/// The digest a name promises: `<hex>.json`, `sha256:<hex>` or `blobs/<algorithm>/<hex>`.
fn digest_in_name(name: &str) -> Option<Digest> {
    let name = name.trim_start_matches("./");
    let text = if let Some(rest) = name.strip_prefix("blobs/") {
        rest.replacen('/', ":", 1)
    } else if let Some(hex) = name.strip_suffix(".json") {
        format!("sha256:{hex}")
    } else {
        name.to_owned()
    };
    text.parse().ok()
}
