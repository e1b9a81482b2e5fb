//! The whole way of an archive into the cache, and the short way for one that was extracted before.

use crate::{
    cache::{Cache, ExtractedImage, FileIdentity, StoredImage},
    image::ImageName,
    output::OutputManager,
};

use super::{
    Archive, ArchiveImage, Chosen, Limits, StoredArchiveImage, TarUtils,
    error::{Error, Result},
    source::Watch,
};

/// Brings images of an archive into the cache. `choose` decides which, and their names, once the images are known; an error
/// of it stops everything before anything is visible.
///
/// A file that was extracted before and has not changed since is not read again, as long as the cache still has the whole of
/// what is chosen.
pub async fn extract<E>(
    archive: Archive,
    cache: &Cache,
    limits: &Limits,
    output: &OutputManager,
    choose: impl FnOnce(&[ArchiveImage]) -> Result<Chosen, E>,
) -> Result<Vec<StoredArchiveImage>, E>
where
    E: From<Error>,
{
    let known = match archive.identity() {
        Some(identity) => cache.extraction(identity).await.map_err(Error::from)?,
        None => None,
    };
    let watch = archive.watch();
    let (images, stored) = match &known {
        None => {
            let contents = TarUtils::parse_image_info(archive, cache, limits, output).await?;
            let images = contents.images().to_vec();
            let chosen = choose(&images)?;
            (images, contents.store(&chosen).await?)
        }
        Some(known) => {
            let images: Vec<ArchiveImage> = known.iter().map(ArchiveImage::from).collect();
            let chosen = choose(&images)?;
            let short = store_again(cache, &archive, known, &chosen).await?;
            let stored = if let Some(stored) = short {
                let place = archive.place();
                output.detail(format!("{place} did not change since it was extracted"));
                stored
            } else {
                read_again(archive, cache, limits, output, &images, &chosen).await?
            };
            (images, stored)
        }
    };
    if let Some(watch) = watch.filter(Watch::is_unchanged) {
        let known = known.unwrap_or_default();
        remember(cache, &watch.identity, &images, &known, &stored).await;
    }
    Ok(stored)
}

/// Reads an archive whose images are known, since the cache has lost something of it.
async fn read_again(
    archive: Archive,
    cache: &Cache,
    limits: &Limits,
    output: &OutputManager,
    images: &[ArchiveImage],
    chosen: &Chosen,
) -> Result<Vec<StoredArchiveImage>> {
    let place = archive.place();
    let contents = TarUtils::parse_image_info(archive, cache, limits, output).await?;
    if !same_images(contents.images(), images) {
        return Err(
            place.invalid("it changed while it was looked at; try again when nobody writes to it")
        );
    }
    contents.store(chosen).await
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

/// Whether two readings of an archive found the same; the note may know digests that a reading does not.
fn same_images(read: &[ArchiveImage], known: &[ArchiveImage]) -> bool {
    read.len() == known.len()
        && read.iter().zip(known).all(|(read, known)| {
            let digest = read.digest.clone().or_else(|| known.digest.clone());
            ArchiveImage {
                digest,
                ..read.clone()
            } == *known
        })
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
        for name in names {
            let image = StoredImage {
                repository: name.repository.clone(),
                reference: name.reference.clone(),
                registry: archive.origin(),
                root: root.clone(),
                children: children.clone(),
            };
            cache.store_image(image).await?;
        }
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
    cache.remember_extraction(file, note).await;
}
