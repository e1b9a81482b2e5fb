//! An archive as source: finding the file, choosing its images, and bringing them into the cache.

use std::{fs::File, sync::Arc};

use crate::{
    api::{ArchiveImage as WantedImage, ArchiveSource, LayerCompression},
    archive::{
        self, Archive, ArchiveImage, Choice, Chosen, Compression, Limits, Method,
        StoredArchiveImage,
    },
    cache::Cache,
    image::{ImageName, Repository},
    output::OutputManager,
};

use super::{
    ArchiveFolder, Error, Result,
    destination::DEFAULT_HOST,
    folder::Reading,
    source::SelectedImage,
    validate::{invalid, named},
};

/// An archive that can be looked for, as far as the spec can tell.
#[derive(Debug, Clone)]
pub(super) struct ValidatedArchive {
    path: String,
    /// None in the spec means all that have a name.
    images: Vec<Wanted>,
    compression: Option<Compression>,
}

/// One image that the spec wants.
#[derive(Debug, Clone)]
struct Wanted {
    choice: Choice,
    /// The name it goes by; `None` = its own names.
    known_as: Option<ImageName>,
}

impl ValidatedArchive {
    /// Checks the source of a spec.
    pub(super) fn new(source: &ArchiveSource) -> Result<Self> {
        let ArchiveSource {
            path,
            images,
            compression,
        } = source;
        if path
            .0
            .split('/')
            .any(|part| matches!(part, "" | "." | ".."))
        {
            return Err(invalid(
                "spec.source.archive.path",
                "must be relative and without empty, . and .. segments",
            ));
        }
        Ok(Self {
            path: path.0.clone(),
            images: images
                .iter()
                .enumerate()
                .map(|(position, image)| wanted(position, image))
                .collect::<Result<_>>()?,
            compression: match compression {
                LayerCompression::None => None,
                LayerCompression::Gzip => Some(Compression::new(Method::Gzip)),
                LayerCompression::Zstd => Some(Compression::new(Method::Zstd)),
            },
        })
    }

    /// The path of the archive below its folder.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// The names that images of the archive go by, as far as the spec has them.
    pub(super) fn names(&self) -> Vec<ImageName> {
        let names = self.images.iter().filter_map(|wanted| {
            let known = wanted.known_as.as_ref();
            known.or(match &wanted.choice {
                Choice::Named(name) => Some(name),
                Choice::At(_) => None,
            })
        });
        names.map(hosted).collect()
    }

    /// Brings the chosen images into the cache.
    pub(super) async fn extract(
        &self,
        folder: Option<&ArchiveFolder>,
        cache: &Cache,
        output: &OutputManager,
    ) -> Result<Vec<ExtractedImage>> {
        let folder = folder.ok_or_else(|| Error::ArchiveFolderMissing {
            path: self.path.clone(),
        })?;
        let file = folder.open(&self.path).await?;
        let stored = self.read(file, folder, cache, output).await;
        let stored = stored.map_err(Error::Archive)?;
        Ok(stored.into_iter().flat_map(extracted).collect())
    }

    /// Reads the file, unless it was refused for the same images before and did not change.
    async fn read(
        &self,
        file: File,
        folder: &ArchiveFolder,
        cache: &Cache,
        output: &OutputManager,
    ) -> Result<Vec<StoredArchiveImage>, Arc<archive::Error>> {
        let archive = Archive::from_file(file, self.path.clone())?;
        let reading = archive.identity().map(|file| Reading {
            file: file.clone(),
            images: self
                .images
                .iter()
                .map(|image| image.choice.clone())
                .collect(),
        });
        let verdict = reading
            .as_ref()
            .and_then(|reading| folder.refused.verdict(reading));
        if let Some(error) = verdict {
            return Err(error);
        }
        let choose = |found: &[ArchiveImage]| self.choose(found);
        let (limits, compression) = (Limits::default(), self.compression);
        let stored = archive::extract(archive, cache, &limits, compression, output, choose);
        stored.await.map_err(|error| {
            let error = Arc::new(error);
            if let Some(reading) = reading {
                folder.refused.note(reading, &error);
            }
            error
        })
    }

    /// The images to take and the names they go by, each with a host.
    fn choose(&self, found: &[ArchiveImage]) -> archive::Result<Chosen> {
        let mut chosen: Chosen = Vec::new();
        if self.images.is_empty() {
            chosen = archive::all_named(&self.path, found)?;
        }
        for wanted in &self.images {
            let image = archive::find(&self.path, found, &wanted.choice)?;
            let names = match &wanted.known_as {
                Some(name) => vec![name.clone()],
                None => archive::all_named(&self.path, std::slice::from_ref(image))?
                    .into_iter()
                    .flat_map(|(_, names)| names)
                    .collect(),
            };
            chosen.push((image.position, names));
        }
        for (_, names) in &mut chosen {
            for name in names {
                *name = hosted(name);
            }
        }
        archive::refuse_shared_names(&self.path, &chosen)?;
        Ok(merged(chosen))
    }
}

fn wanted(position: usize, image: &WantedImage) -> Result<Wanted> {
    let field = format!("spec.source.archive.images[{position}]");
    let WantedImage {
        name,
        index,
        known_as,
    } = image;
    let choice = match (name, index) {
        (Some(name), None) => Choice::Named(named(&field, "name", name.parse::<ImageName>())?),
        (None, Some(index)) => Choice::At(
            usize::try_from(*index)
                .map_err(|_| invalid(format!("{field}.index"), "must be 0 or more"))?,
        ),
        _ => return Err(invalid(field, "exactly one of name and index must be set")),
    };
    let known_as = known_as
        .as_deref()
        .map(|name| named(&field, "as", name.parse::<ImageName>()))
        .transpose()?;
    if known_as
        .as_ref()
        .is_some_and(|name| name.reference.tag().is_none())
    {
        return Err(invalid(
            format!("{field}.as"),
            "must be [host/]repository:tag, for example team/app:1.2",
        ));
    }
    Ok(Wanted { choice, known_as })
}

/// A name without host counts as one of Docker Hub.
fn hosted(name: &ImageName) -> ImageName {
    let ImageName {
        repository,
        reference,
    } = name;
    let repository = match repository.host() {
        Some(_) => repository.clone(),
        None => format!("{DEFAULT_HOST}/{}", repository.path())
            .parse::<Repository>()
            .unwrap_or_else(|_| repository.clone()),
    };
    ImageName {
        repository,
        reference: reference.clone(),
    }
}

/// An image that was chosen twice goes by the names of both.
fn merged(chosen: Chosen) -> Chosen {
    let mut merged: Chosen = Vec::new();
    for (position, names) in chosen {
        match merged.iter_mut().find(|(other, _)| *other == position) {
            Some((_, known)) => {
                for name in names {
                    if !known.contains(&name) {
                        known.push(name);
                    }
                }
            }
            None => merged.push((position, names)),
        }
    }
    merged
}

/// An image of an archive that lies in the cache now.
pub(super) struct ExtractedImage {
    pub(super) image: SelectedImage,
    /// Whether the archive had to be read for it.
    pub(super) is_new: bool,
}

/// An extracted image, once for each of its names.
fn extracted(image: StoredArchiveImage) -> impl Iterator<Item = ExtractedImage> {
    let StoredArchiveImage {
        names,
        digest,
        is_new,
        ..
    } = image;
    names.into_iter().map(move |cached| ExtractedImage {
        image: SelectedImage {
            digest: Some(digest.clone()),
            ..SelectedImage::named(cached)
        },
        is_new,
    })
}
