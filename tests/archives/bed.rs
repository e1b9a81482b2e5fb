//! What these tests share: a cache in a folder of its own, into which an archive is extracted under its own names.

use std::io::Read;
use std::path::Path;

use docker_image_pusher::{
    archive::{Archive, ArchiveImage, Error, Limits, StoredArchiveImage, extract},
    cache::Cache,
    image::{ImageManifest, ImageName, Manifest, RawManifest},
    output::OutputManager,
};
use tempfile::TempDir;

pub(super) struct Bed {
    pub(super) cache: Cache,
    pub(super) output: OutputManager,
    pub(super) folder: TempDir,
}

pub(super) fn bed() -> Bed {
    let folder = super::support::process::temporary_folder("archives").unwrap();
    let output = OutputManager::silent();
    Bed {
        cache: Cache::open(folder.path().join("cache"), output.clone()).unwrap(),
        output,
        folder,
    }
}

impl Bed {
    /// Extracts every image under its own names; one that has only a tag becomes `tagged:<tag>`.
    pub(super) async fn extract(
        &self,
        archive: Archive,
    ) -> (Vec<ArchiveImage>, Vec<StoredArchiveImage>) {
        let mut seen = Vec::new();
        let stored = extract(
            archive,
            &self.cache,
            &Limits::default(),
            None,
            &self.output,
            |images| {
                seen = images.to_vec();
                Ok::<_, Error>(
                    images
                        .iter()
                        .map(|image| (image.position, names(image)))
                        .collect(),
                )
            },
        )
        .await
        .unwrap();
        (seen, stored)
    }

    pub(super) async fn extract_file(
        &self,
        file: &Path,
    ) -> (Vec<ArchiveImage>, Vec<StoredArchiveImage>) {
        self.extract(Archive::open(file).unwrap()).await
    }

    pub(super) async fn extract_stream(
        &self,
        stream: impl Read + Send + Sync + 'static,
    ) -> (Vec<ArchiveImage>, Vec<StoredArchiveImage>) {
        self.extract(Archive::from_reader(stream, "standard input".to_owned()))
            .await
    }

    pub(super) async fn manifest(&self, name: &ImageName) -> RawManifest {
        self.cache
            .manifest(&name.repository, &name.reference)
            .await
            .unwrap()
            .unwrap()
    }

    /// The manifest of a single image.
    pub(super) async fn image(&self, name: &ImageName) -> ImageManifest {
        let image = match self.manifest(name).await.parse().unwrap() {
            Manifest::Image(image) => Some(*image),
            Manifest::Index(_) => None,
        };
        image.unwrap()
    }

    /// That everything in the cache is whole, and that nothing unfinished lies about.
    pub(super) async fn assert_whole(&self) {
        for image in self.cache.list().await.unwrap() {
            assert!(image.is_complete(), "{}", image.name);
        }
        let partials = self.cache.directory().join("blobs/.partial");
        assert_eq!(std::fs::read_dir(partials).unwrap().count(), 0);
    }
}

fn names(image: &ArchiveImage) -> Vec<ImageName> {
    if !image.names.is_empty() {
        return image.names.clone();
    }
    let tag = image.tag_only.as_ref().unwrap();
    vec![format!("tagged:{tag}").parse().unwrap()]
}
