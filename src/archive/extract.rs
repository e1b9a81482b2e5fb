//! The whole way of an archive into the cache, and the short way for one that was extracted before.

use crate::{
    cache::{Cache, ExtractedImage, FileIdentity},
    image::ImageName,
    output::OutputManager,
};

use super::{
    Archive, ArchiveImage, Chosen, Compression, Limits, StoredArchiveImage, TarUtils,
    contents::{blocking, store_tree},
    error::{Error, Result},
    source::Watch,
};

/// Brings images of an archive into the cache. `choose` decides which, and their names, once the images are known; an error
/// of it stops everything before anything is visible.
///
/// Plain layers are compressed if that is asked for; one that was compressed before in the same way, and is still there, is
/// only hashed.
///
/// A file that was extracted before and has not changed since is not read again, as long as the cache still has the whole of
/// what is chosen.
pub async fn extract<E>(
    archive: Archive,
    cache: &Cache,
    limits: &Limits,
    compression: Option<Compression>,
    output: &OutputManager,
    mut choose: impl FnMut(&[ArchiveImage]) -> Result<Chosen, E>,
) -> Result<Vec<StoredArchiveImage>, E>
where
    E: From<Error>,
{
    // What is here already must stay until the images are stored.
    let _in_use = cache.use_shared().await.map_err(Error::from)?;
    let form = compression
        .map(Compression::fingerprint)
        .unwrap_or_default();
    let known = match archive.identity() {
        Some(file) => cache.extraction(file, &form).await.map_err(Error::from)?,
        None => None,
    };
    let watch = archive.watch();
    if let Some(known) = &known {
        let images: Vec<ArchiveImage> = known.iter().map(ArchiveImage::from).collect();
        let short = store_again(cache, &archive, known, &choose(&images)?).await?;
        if let Some(stored) = short {
            let place = archive.place();
            output.detail(format!("{place} did not change since it was extracted"));
            note(cache, watch, &form, &images, known, &stored).await;
            return Ok(stored);
        }
    }
    let mut contents = TarUtils::parse_image_info(archive, cache, limits, output).await?;
    if let Some(compression) = compression {
        contents = blocking(move || contents.compressed(compression)).await?;
    }
    let images = contents.images().to_vec();
    let stored = contents.store(&choose(&images)?).await?;
    // What the note says of other images counts only while both readings found the same.
    let known = known
        .unwrap_or_default()
        .into_iter()
        .filter(|known| is_same(&images, known))
        .collect::<Vec<_>>();
    note(cache, watch, &form, &images, &known, &stored).await;
    Ok(stored)
}

/// Notes what was extracted, unless somebody wrote to the file meanwhile.
async fn note(
    cache: &Cache,
    watch: Option<Watch>,
    form: &str,
    images: &[ArchiveImage],
    known: &[ExtractedImage],
    stored: &[StoredArchiveImage],
) {
    if let Some(watch) = watch.filter(Watch::is_unchanged) {
        remember(cache, &watch.identity, form, images, known, stored).await;
    }
}

/// Whether a reading found the image that a note tells of; the note may know a digest that a reading does not.
fn is_same(read: &[ArchiveImage], known: &ExtractedImage) -> bool {
    let known = ArchiveImage::from(known);
    read.iter().any(|read| {
        let digest = read.digest.clone().or_else(|| known.digest.clone());
        ArchiveImage {
            digest,
            ..read.clone()
        } == known
    })
}

impl From<&ExtractedImage> for ArchiveImage {
    fn from(image: &ExtractedImage) -> Self {
        Self {
            position: image.position,
            names: image.names.clone(),
            tag_only: image.tag_only.clone(),
            digest: image.digest.clone(),
            platforms: image.platforms.clone(),
        }
    }
}

/// Stores what is chosen from what the cache has; none if it lacks anything.
async fn store_again(
    cache: &Cache,
    archive: &Archive,
    known: &[ExtractedImage],
    chosen: &Chosen,
) -> Result<Option<Vec<StoredArchiveImage>>> {
    let mut trees = Vec::with_capacity(chosen.len());
    for (position, names) in chosen {
        let Some(image) = known.iter().find(|image| image.position == *position) else {
            return Ok(None);
        };
        let Some(digest) = &image.digest else {
            return Ok(None);
        };
        let Some((root, children)) = cache.whole_image(&image.stored, digest).await? else {
            return Ok(None);
        };
        trees.push((position, names, root, children));
    }
    let mut stored = Vec::with_capacity(trees.len());
    for (position, names, root, children) in trees {
        store_tree(cache, &archive.origin(), names, &root, &children).await?;
        stored.push(StoredArchiveImage {
            position: *position,
            digest: root.digest().clone(),
            names: names.clone(),
            is_new: false,
        });
    }
    Ok(Some(stored))
}

/// Notes what the archive holds and where its images lie now.
async fn remember(
    cache: &Cache,
    file: &FileIdentity,
    form: &str,
    images: &[ArchiveImage],
    known: &[ExtractedImage],
    stored: &[StoredArchiveImage],
) {
    let note = images
        .iter()
        .map(|image| {
            let now = stored
                .iter()
                .filter(|stored| stored.position == image.position);
            let before = known
                .iter()
                .filter(|known| known.position == image.position);
            // The newest names first: they are looked at first.
            let mut names: Vec<ImageName> = now
                .clone()
                .flat_map(|stored| stored.names.clone())
                .collect();
            for name in before.flat_map(|known| &known.stored) {
                if !names.contains(name) {
                    names.push(name.clone());
                }
            }
            let digest = now.map(|stored| stored.digest.clone()).next();
            ExtractedImage {
                position: image.position,
                names: image.names.clone(),
                tag_only: image.tag_only.clone(),
                platforms: image.platforms.clone(),
                digest: digest.or_else(|| image.digest.clone()),
                stored: names,
            }
        })
        .collect();
    cache.remember_extraction(file, form, note).await;
}
