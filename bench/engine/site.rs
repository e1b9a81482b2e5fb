//! Where a job is done: the source that all runs of a row share, and what each run has for itself.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tempfile::TempDir;

use crate::files;
use crate::proxy::SlowLink;
use crate::rows::{Row, Task};
use crate::support::images::{Blob, Image};
use crate::support::process::temporary_folder;
use crate::support::registry::Registry;
use crate::support::{Context, Failure, Result};

pub(crate) const SOURCE_REPOSITORY: &str = "bench/app";
pub(crate) const DESTINATION_REPOSITORY: &str = "copy/app";
/// skopeo's `sync` is told this, and adds the last part of the source's name itself.
pub(crate) const DESTINATION_PARENT: &str = "copy";
/// The name of the archive in the home of a run.
pub(crate) const ARCHIVE: &str = "app.tar";

/// A registry with the images of a row; their layers are random and new in each row.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) registry: Registry,
    images: Vec<Image>,
    /// The folder of the archive, where the row has one.
    archive: Option<TempDir>,
}

/// What one run has for itself: an empty home, empty destinations, a link of its own.
#[derive(Debug)]
pub(crate) struct Site {
    home: TempDir,
    /// Where tools find the source: it, or the link before it.
    pub(crate) source: String,
    pub(crate) link: Option<SlowLink>,
    pub(crate) tags: Vec<String>,
    pub(crate) destinations: Vec<Registry>,
}

impl Source {
    pub(crate) fn new(row: &Row) -> Result<Self> {
        let builder = || {
            // Where the archive is of other things, the image only gives the tag.
            let layer_bytes = match row.task {
                Task::Compress => 1000,
                _ => row.layer_bytes,
            };
            Image::builder()
                .layers(row.layers, layer_bytes)
                .gzip_level(0)
                .build()
        };
        let images: Vec<_> = (0..row.images).map(|_| builder()).collect::<Result<_>>()?;
        let registry = Registry::open()?;
        put_into(&registry, SOURCE_REPOSITORY, &images)?;
        let archive = match (&images[..], row.task) {
            ([image, ..], Task::Archive) => {
                let folder = temporary_folder("archive")?;
                image.save_docker_archive(&folder.path().join(ARCHIVE), "bench/app:1")?;
                Some(folder)
            }
            (_, Task::Compress) => {
                let folder = temporary_folder("archive")?;
                let file = folder.path().join(ARCHIVE);
                files::save(&file, "bench/app:1", row.layers, row.layer_bytes)?;
                Some(folder)
            }
            _ => None,
        };
        Ok(Self {
            registry,
            images,
            archive,
        })
    }

    /// What all images of the row weigh, without their manifests; of an archive, the file.
    pub(crate) fn bytes(&self) -> u64 {
        let archive = self.archive.as_ref();
        let archive = archive.and_then(|folder| folder.path().join(ARCHIVE).metadata().ok());
        archive.map_or_else(
            || self.images.iter().map(Image::size).sum(),
            |archive| archive.len(),
        )
    }

    pub(crate) fn site(&self, row: &Row) -> Result<Site> {
        let server: SocketAddr = self
            .registry
            .address()
            .parse()
            .context("a registry without an address")?;
        let link = row
            .link
            .map(|link| SlowLink::start(server, link))
            .transpose()?;
        let source = link
            .as_ref()
            .map_or_else(|| server.to_string(), SlowLink::address);
        let destinations: Vec<_> = (0..row.destinations())
            .map(|_| Registry::open())
            .collect::<Result<_>>()?;
        if row.task == Task::NothingToDo {
            for destination in &destinations {
                put_into(destination, DESTINATION_REPOSITORY, &self.images)?;
            }
        }
        let home = temporary_folder("bench")?;
        if let Some(folder) = &self.archive {
            std::fs::hard_link(folder.path().join(ARCHIVE), home.path().join(ARCHIVE))
                .context("could not put the archive into a run's home")?;
        }
        Ok(Site {
            home,
            source,
            link,
            tags: (1..=self.images.len()).map(|tag| tag.to_string()).collect(),
            destinations,
        })
    }

    /// Makes sure that the images are at each destination and gives the moment at which the last tag got there. A tool that
    /// reads an archive makes a manifest of its own, so there the digest is not compared.
    pub(crate) fn look_at_destinations(
        &self,
        row: &Row,
        site: &Site,
    ) -> Result<Option<SystemTime>> {
        let mut latest = None;
        for destination in &site.destinations {
            for (image, tag) in self.images.iter().zip(&site.tags) {
                let link = tag_link(destination, DESTINATION_REPOSITORY, tag);
                let digest =
                    std::fs::read_to_string(&link).context(format!("the tag {tag} is missing"))?;
                let metadata = std::fs::metadata(&link).context("could not look at a tag")?;
                latest = latest.max(metadata.modified().ok());
                if row.reads_archive() {
                    continue;
                }
                if digest.trim() != image.digest {
                    return Err(Failure::new(format!("the tag {tag} is another image")));
                }
                for Blob { digest, size } in image.blobs() {
                    let file = destination.blob_file(&digest);
                    let found = std::fs::metadata(file).map(|metadata| metadata.len());
                    if found.ok() != Some(size) {
                        return Err(Failure::new(format!("{digest} is not there")));
                    }
                }
            }
        }
        Ok(latest)
    }
}

impl Site {
    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    /// What the destinations keep: blobs and manifests.
    pub(crate) fn stored_bytes(&self) -> u64 {
        let folders = self.destinations.iter().map(|registry| {
            let folder = registry.process().folder();
            bytes_below(&folder.join("data/docker/registry/v2/blobs"))
        });
        folders.sum()
    }

    /// The address of a destination; empty where there is none.
    pub(crate) fn destination(&self, position: usize) -> String {
        self.destinations
            .get(position)
            .map(|registry| registry.address().to_owned())
            .unwrap_or_default()
    }

    /// The only image of a row that has one.
    pub(crate) fn source_image(&self) -> String {
        format!("{}/{SOURCE_REPOSITORY}:1", self.source)
    }

    pub(crate) fn destination_image(&self, position: usize) -> String {
        format!("{}/{DESTINATION_REPOSITORY}:1", self.destination(position))
    }
}

/// Puts images into a registry the short way, as the files that it would write itself; the tags count from 1. It keeps
/// nothing in memory, so it finds them. Through its door two hundred images take a minute.
fn put_into(registry: &Registry, repository: &str, images: &[Image]) -> Result<()> {
    for (number, image) in images.iter().enumerate() {
        let tag = (number + 1).to_string();
        let repository_folder = repository_folder(registry, repository);
        for Blob { digest, .. } in image.blobs() {
            link_blob(registry, image, &digest)?;
            let layer = repository_folder
                .join("_layers")
                .join(digest.replace(':', "/"));
            write_link(&layer.join("link"), &digest)?;
        }
        let digest = &image.digest;
        link_blob(registry, image, digest)?;
        let revision = digest.replace(':', "/");
        let manifests = repository_folder.join("_manifests");
        write_link(
            &manifests.join("revisions").join(&revision).join("link"),
            digest,
        )?;
        let tag_folder = manifests.join("tags").join(&tag);
        write_link(
            &tag_folder.join("index").join(&revision).join("link"),
            digest,
        )?;
        write_link(&tag_link(registry, repository, &tag), digest)?;
    }
    Ok(())
}

fn bytes_below(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

fn repository_folder(registry: &Registry, repository: &str) -> PathBuf {
    registry
        .process()
        .folder()
        .join("data/docker/registry/v2/repositories")
        .join(repository)
}

fn tag_link(registry: &Registry, repository: &str, tag: &str) -> PathBuf {
    repository_folder(registry, repository)
        .join("_manifests/tags")
        .join(tag)
        .join("current/link")
}

fn link_blob(registry: &Registry, image: &Image, digest: &str) -> Result<()> {
    let file = registry.blob_file(digest);
    make_parent(&file)?;
    std::fs::hard_link(image.blob_file(digest), &file)
        .context(format!("could not put {digest} into a registry"))
}

fn write_link(file: &Path, digest: &str) -> Result<()> {
    make_parent(file)?;
    std::fs::write(file, digest).context(format!("could not write {}", file.display()))
}

fn make_parent(file: &Path) -> Result<()> {
    let parent = file.parent().context("a file without a folder")?;
    std::fs::create_dir_all(parent).context(format!("could not make {}", parent.display()))
}
