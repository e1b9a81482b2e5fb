//! `extract`: from an archive into the cache.

use clap::Args;
use serde_json::json;

use crate::{
    archive::{Choice, StoredArchiveImage},
    cache::Cache,
    image::{ImageName, Reference, Repository, Tag},
    transfer::{ImageManager, OperationMode, TarImages, TransferOptions},
};

use super::{
    Result,
    error::Usage,
    options::{CacheOptions, CompressionOptions, tar_of},
    render::Screen,
};

/// Extract the images of a docker save or OCI archive into the cache
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  docker-image-pusher extract -f app.tar
  docker save team/app:1.0 | docker-image-pusher extract -f -
  docker-image-pusher extract -f unnamed.tar -r team/app -t 1.0
  docker-image-pusher extract -f several.tar --image team/app:1.0
  docker-image-pusher extract -f app.tar --compress zstd

Archives of docker save, podman save, skopeo, buildx and others, plain or compressed with gzip or zstd. Nothing is unpacked
to disk but verified blobs; an archive that was extracted before and did not change is not read again.")]
pub(super) struct Extract {
    /// The archive, or the first of its parts (NAME.000), or their checksums (NAME.sha256); - reads standard input
    #[arg(short, long, env = "IMAGE_PUSHER_FILE", value_name = "FILE")]
    file: String,
    /// One image of several: its name in the archive, or @0 for the first [default: all that have a name]
    #[arg(long, env = "IMAGE_PUSHER_IMAGE", value_name = "NAME|@NUMBER")]
    image: Option<Choice>,
    /// Repository that the image goes by, where the archive has no name for it or another one
    #[arg(
        short,
        long,
        env = "IMAGE_PUSHER_REPOSITORY",
        value_name = "REPOSITORY"
    )]
    repository: Option<Repository>,
    /// Tag that the image goes by, together with --repository
    #[arg(short = 't', long, env = "IMAGE_PUSHER_REFERENCE", value_name = "TAG")]
    reference: Option<Tag>,
    #[command(flatten)]
    compression: CompressionOptions,
    #[command(flatten)]
    cache: CacheOptions,
}

impl Extract {
    pub(super) async fn run(self, screen: &Screen) -> Result<()> {
        let name = self.name()?;
        let compression = self.compression.compression()?;
        let cache = Cache::open(self.cache.cache_dir, screen.output().clone())?;
        // Before the first byte is read: nobody waits for an extraction that cannot be kept.
        cache.ensure_writable().await?;
        let images = match (self.image, name) {
            (None, None) => TarImages::Named,
            (choice, name) => TarImages::One { choice, name },
        };
        let mode = OperationMode::ExtractAndCache {
            tar: tar_of(&self.file),
            images,
            compression,
        };
        let options = TransferOptions::default();
        let mut manager = ImageManager::new(cache, screen.output().clone(), options);
        manager.execute_operation(&mode, None, None).await?;
        let lines: Vec<String> = manager.extracted().iter().flat_map(lines).collect();
        let images: Vec<_> = manager
            .extracted()
            .iter()
            .map(|image| json!({ "names": image.names, "digest": image.digest }))
            .collect();
        screen.summary(
            &lines.join("\n"),
            json!({ "archive": self.file, "images": images }),
        )
    }

    /// The name given with the options, which make one only together.
    fn name(&self) -> Result<Option<ImageName>, Usage> {
        match (&self.repository, &self.reference) {
            (Some(repository), Some(tag)) => Ok(Some(ImageName {
                repository: repository.clone(),
                reference: Reference::Tag(tag.clone()),
            })),
            (None, None) => Ok(None),
            _ => Err(Usage::NameIncomplete),
        }
    }
}

fn lines(image: &StoredArchiveImage) -> impl Iterator<Item = String> {
    image
        .names
        .iter()
        .map(|name| format!("extracted {name} {}", image.digest))
}
