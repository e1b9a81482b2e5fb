//! From an archive into the cache: the images it holds, then the blobs of the chosen ones, and when every one of them was
//! found right, their names.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use futures::{StreamExt, stream};

use crate::{
    cache::{self, Cache, Import, PackedLayer, Spool, StoredImage},
    image::{Algorithm, Digest, ImageName, Platform, RawManifest, Tag},
    output::{OutputManager, Transfer},
};

use super::{
    Archive, Limits,
    check::{BlobUse, Check, Checked, Packed},
    compression::Compression,
    configs::Planning,
    error::{Place, Result},
    plan::{Planned, Source, plan},
    rebuild,
    repack::repacked,
};

/// The door to this room: every archive goes through [`TarUtils::parse_image_info`].
#[derive(Debug, Clone, Copy)]
pub struct TarUtils;

/// An archive whose images are known, and nothing of which can be seen in the cache yet. Dropped, it leaves nothing behind.
#[derive(Debug)]
#[must_use = "what was read is thrown away unless it is stored"]
pub struct ArchiveContents {
    place: Place,
    origin: String,
    images: Vec<ArchiveImage>,
    sources: Vec<Source>,
    import: Import,
    cache: Cache,
    limits: Arc<Limits>,
    compression: Option<Compression>,
    output: OutputManager,
    name: String,
}

/// An image in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveImage {
    /// Where it stands in the archive, from 0.
    pub position: usize,
    /// Its names as the archive gives them: Docker's `app:1` has no host. An image without a name is legal.
    pub names: Vec<ImageName>,
    /// Its tag, where an OCI layout gives no more than that.
    pub tag_only: Option<Tag>,
    /// Its digest, where that is known before the layers were read. A manifest that has to be made depends on their bytes.
    pub digest: Option<Digest>,
    /// Its platforms, as far as the archive tells.
    pub platforms: Vec<Platform>,
}

/// An image that was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredArchiveImage {
    /// Where it stands in the archive.
    pub position: usize,
    /// The digest under which it can be pushed.
    pub digest: Digest,
    /// The names under which it lies in the cache.
    pub names: Vec<ImageName>,
    /// Whether the archive was read for it; not so where it was extracted before and did not change.
    pub is_new: bool,
}

impl TarUtils {
    /// Finds out which images an archive holds, and checks what can be checked without reading layers. Of a plain file only
    /// headers and JSON are read; anything else is read once, into files of the cache that have no name yet. Nothing becomes
    /// visible in the cache.
    pub async fn parse_image_info(
        archive: Archive,
        cache: &Cache,
        limits: &Limits,
        output: &OutputManager,
    ) -> Result<ArchiveContents> {
        let import = cache.import().await?;
        let limits = Arc::new(limits.clone());
        let (place, origin) = (archive.place(), archive.origin());
        let name = archive.name().to_owned();
        let (images, sources) = {
            let (limits, spool) = (Arc::clone(&limits), import.spool());
            let (output, place) = (output.clone(), place.clone());
            blocking(move || read(archive, &place, &limits, &spool, &output)).await?
        };
        Ok(ArchiveContents {
            place,
            origin,
            images,
            sources,
            import,
            cache: cache.with_output(output.clone()),
            limits,
            compression: None,
            output: output.clone(),
            name,
        })
    }
}

/// Manifests of one archive that are warned of by name; an honest archive has one or two.
const SHOWN_WARNINGS: usize = 8;

/// Reads the archive and finds its images. Blocks.
fn read(
    archive: Archive,
    place: &Place,
    limits: &Limits,
    spool: &Spool,
    output: &OutputManager,
) -> Result<(Vec<ArchiveImage>, Vec<Source>)> {
    let entries = archive.read(limits, spool, output)?;
    for warning in &entries.warnings {
        output.warning(format!("{place}: {warning}"));
    }
    let (planned, warnings) = plan(Planning {
        entries: &entries,
        limits,
        spool,
    })?;
    for warning in warnings.iter().take(SHOWN_WARNINGS) {
        output.warning(format!("{place}: {warning}"));
    }
    if warnings.len() > SHOWN_WARNINGS {
        let more = warnings.len() - SHOWN_WARNINGS;
        output.warning(format!(
            "{place}: {more} more of its manifests are not used"
        ));
    }
    let (mut images, mut sources) = (Vec::new(), Vec::new());
    for (position, image) in planned.into_iter().enumerate() {
        spool.ensure_going_on()?;
        let Planned {
            names,
            tag_only,
            platforms,
            source,
        } = image;
        images.push(ArchiveImage {
            position,
            names,
            tag_only,
            digest: source.digest(place)?,
            platforms,
        });
        sources.push(source);
    }
    Ok((images, sources))
}

/// A content to be read, how, and whether it may be compressed.
type Key = (u64, Option<Algorithm>, bool);

fn key(wanted: &BlobUse) -> Key {
    (
        wanted.content.number,
        wanted.diff_id.as_ref().map(Digest::algorithm),
        wanted.may_be_packed,
    )
}

impl ArchiveContents {
    /// The images, in the order of the archive.
    pub fn images(&self) -> &[ArchiveImage] {
        &self.images
    }

    /// Plain layers are to be compressed. The digest of an image that has some is not known any more before they were read.
    ///
    /// # Errors
    /// When the archive cannot be read.
    pub fn compressed(mut self, compression: Compression) -> Result<Self> {
        self.compression = Some(compression);
        for (image, source) in self.images.iter_mut().zip(&self.sources) {
            for used in source.blobs() {
                if used.to_pack(&self.place)?.is_some() {
                    image.digest = None;
                    break;
                }
            }
        }
        Ok(self)
    }

    /// Copies the blobs of the chosen images and checks them, all of them. Only then they get their names: each image is stored
    /// under those that were chosen for it. `chosen` gives positions in [`ArchiveContents::images`].
    pub async fn store(
        self,
        chosen: &[(usize, Vec<ImageName>)],
    ) -> Result<Vec<StoredArchiveImage>> {
        self.require_sense(chosen)?;
        let wanted: Vec<&BlobUse> = chosen
            .iter()
            .flat_map(|(position, _)| self.sources[*position].blobs())
            .collect();
        let checked = self.check(&wanted).await?;
        for used in &wanted {
            if let Some(checked) = checked.get(&key(used)) {
                checked.fits(used, &self.place)?;
            }
        }
        let mut trees = Vec::with_capacity(chosen.len());
        for (position, _) in chosen {
            trees.push(self.tree(&self.sources[*position], &checked)?);
        }
        let known = |checked: &&Checked| checked.packed.is_some() && checked.blob.is_none();
        let known = checked.values().filter(known).count();
        if known > 0 {
            self.output
                .detail(format!("{known} layers were compressed before"));
        }
        let packed = self.packed_layers(&checked);
        for checked in checked.into_values() {
            self.keep(checked).await?;
        }
        self.cache.remember_packed(packed).await;
        let mut stored = Vec::with_capacity(chosen.len());
        for ((position, names), (root, children)) in chosen.iter().zip(trees) {
            let (cache, origin) = (&self.cache, &self.origin);
            store_tree(cache, origin, names, &root, &children).await?;
            stored.push(StoredArchiveImage {
                position: *position,
                digest: root.digest().clone(),
                names: names.clone(),
                is_new: true,
            });
        }
        Ok(stored)
    }

    /// Every position exists, and no name is to stand for two images.
    fn require_sense(&self, chosen: &[(usize, Vec<ImageName>)]) -> Result<()> {
        let mut owners: HashMap<&ImageName, usize> = HashMap::new();
        for (position, names) in chosen {
            if *position >= self.images.len() {
                return Err(self
                    .place
                    .invalid(format!("it has no image number {}", position + 1)));
            }
            for name in names {
                let owner = *owners.entry(name).or_insert(*position);
                if owner != *position {
                    return Err(self.place.invalid(format!(
                        "the images number {} and {} cannot both be stored as {name}",
                        owner + 1,
                        position + 1
                    )));
                }
            }
        }
        Ok(())
    }

    /// Reads every content once, the largest first, some at a time.
    async fn check(&self, wanted: &[&BlobUse]) -> Result<BTreeMap<Key, Checked>> {
        let mut unique: BTreeMap<Key, &BlobUse> = BTreeMap::new();
        for used in wanted {
            unique.entry(key(used)).or_insert(used);
        }
        let mut jobs: Vec<(Key, &BlobUse)> = unique.into_iter().collect();
        jobs.sort_by_key(|(_, used)| std::cmp::Reverse(used.content.size));
        let reading = self.reading(&jobs);
        let work: Vec<_> = jobs
            .into_iter()
            .map(|(key, used)| {
                let check = self.job(used, reading.clone());
                async move { Ok::<_, super::Error>((key, blocking(move || check.run()).await?)) }
            })
            .collect();
        let mut running = stream::iter(work).buffer_unordered(self.limits.layers_at_once);
        let mut checked = BTreeMap::new();
        let mut failure = None;
        while let Some(outcome) = running.next().await {
            match outcome {
                Ok((key, found)) => {
                    checked.insert(key, found);
                }
                // The others are waited for, so that they leave no file behind; what they say then is of no interest.
                Err(error) => {
                    self.import.stop();
                    failure.get_or_insert(error);
                }
            }
        }
        if let Some(failure) = failure {
            return Err(failure);
        }
        if let Some(reading) = reading.and_then(Arc::into_inner) {
            reading.complete();
        }
        Ok(checked)
    }

    /// Tells how much is to be read; nothing of what was read before.
    fn reading(&self, jobs: &[(Key, &BlobUse)]) -> Option<Arc<Transfer>> {
        let bytes: u64 = jobs
            .iter()
            .filter(|(_, used)| used.content.at.is_unread())
            .map(|(_, used)| used.content.size)
            .sum();
        let reading = (bytes > 0).then(|| self.output.reading(&self.name, Some(bytes)));
        reading.map(Arc::new)
    }

    fn job(&self, used: &BlobUse, reading: Option<Arc<Transfer>>) -> Check {
        let reading = reading.filter(|_| used.content.at.is_unread());
        Check {
            wanted: used.clone(),
            archive: self.place.clone(),
            spool: self.import.spool(),
            limits: Arc::clone(&self.limits),
            compression: self.compression,
            reading,
        }
    }

    /// What was compressed just now, for the notes of the cache.
    fn packed_layers(
        &self,
        checked: &BTreeMap<Key, Checked>,
    ) -> Vec<(Digest, String, PackedLayer)> {
        let new = checked.values().filter(|checked| checked.blob.is_some());
        new.filter_map(|checked| {
            let Packed { digest, size, .. } = checked.packed.clone()?;
            let diff_id = checked.diff_id.clone()?;
            let fingerprint = self.compression?.fingerprint();
            Some((diff_id, fingerprint, PackedLayer { digest, size }))
        })
        .collect()
    }

    /// The manifests of an image: those of the archive, unless layers were compressed, or one that is made of what the blobs
    /// turned out to be.
    fn tree(
        &self,
        source: &Source,
        checked: &BTreeMap<Key, Checked>,
    ) -> Result<(RawManifest, Vec<RawManifest>)> {
        let (config, layers) = match source {
            Source::Kept {
                root,
                children,
                blobs,
            } => {
                let packed = blobs.iter().filter_map(|used| {
                    let checked = checked.get(&key(used))?;
                    Some((checked.digest.clone(), checked.packed.clone()?))
                });
                let packed = packed.collect();
                return repacked(&(root.clone(), children.clone()), &packed, &self.place);
            }
            Source::Rebuilt { config, layers } => (config, layers),
        };
        let unknown = |used: &BlobUse| {
            let place = used.content.place(&self.place);
            place.invalid(format!("{} was not read", used.part))
        };
        let found = checked.get(&key(config)).ok_or_else(|| unknown(config))?;
        let config = rebuild::config(found.digest.clone(), config.content.size);
        let mut descriptors = Vec::with_capacity(layers.len());
        for layer in layers {
            let found = checked.get(&key(layer)).ok_or_else(|| unknown(layer))?;
            let place = layer.content.place(&self.place);
            let (form, digest, size) = match &found.packed {
                Some(packed) => (packed.method.form(), &packed.digest, packed.size),
                None => (found.form, &found.digest, layer.content.size),
            };
            descriptors.push(rebuild::layer(form, digest.clone(), size, &place)?);
        }
        Ok((
            rebuild::manifest(&config, &descriptors, &self.place)?,
            Vec::new(),
        ))
    }

    /// Gives a blob its name, unless the cache has it.
    async fn keep(&self, checked: Checked) -> Result<()> {
        let is_new = match checked.blob {
            Some(blob) => self.import.keep(blob).await?,
            None => false,
        };
        if is_new {
            self.output.extracted();
        } else {
            self.output.extracted_before();
        }
        Ok(())
    }
}

/// Runs what reads files where it may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    crate::blocking::blocking(work, || cache::Error::CacheInterrupted.into()).await
}

/// Lets an image whose blobs are in the cache be seen under each of its names.
pub(super) async fn store_tree(
    cache: &Cache,
    origin: &str,
    names: &[ImageName],
    root: &RawManifest,
    children: &[RawManifest],
) -> Result<()> {
    for name in names {
        let image = StoredImage {
            repository: name.repository.clone(),
            reference: name.reference.clone(),
            registry: origin.to_owned(),
            root: root.clone(),
            children: children.to_vec(),
            missing: Vec::new(),
            // Another archive may take the name before this image is sent on.
            pinned: true,
        };
        cache.store_image(image).await?;
    }
    Ok(())
}
