//! `push`: from the cache, or from an archive by way of the cache, to a registry.

use std::path::Path;

use clap::{Args, builder::FalseyValueParser};
use serde_json::json;

use crate::{
    archive::{Choice, Compression},
    cache::Cache,
    image::{ImageName, Reference, Repository},
    registry::RegistryClient,
    transfer::{ExistingBlobs, ImageManager, OperationMode, Tar, TransferOptions},
};

use super::{
    Result, access,
    error::Usage,
    options::{
        CacheOptions, CompressionOptions, DEFAULT_RETRY_ATTEMPTS, RegistryOptions, STDIN, tar_of,
    },
    render::Screen,
};

/// Push an image from the cache, or from an archive, to a registry
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  docker-image-pusher push -s library/ubuntu:22.04 -r mirror/ubuntu -t 22.04 --registry https://registry.example
  docker-image-pusher push -s team/app:1.0 -r localhost:5000/team/app -t 1.0 --max-concurrent 8
  docker-image-pusher push -s app.tar -r registry.example/team/app -t 1.0
  docker save team/app:1.0 | docker-image-pusher push -s - -r registry.example/team/app -t 1.0
  docker-image-pusher push -s app.tar --compress gzip -r registry.example/team/app -t 1.0
  echo \"$PASSWORD\" | docker-image-pusher push -s team/app:1.0 -r registry.example/team/app -t 1.0 -u ci --password-stdin

Blobs that the registry has are not sent again; --force-upload sends blobs and manifest anyway.")]
pub(super) struct Push {
    /// Image in the cache, as name:tag or name@digest; or a docker save or OCI archive, - for one on standard input
    #[arg(short, long, env = "IMAGE_PUSHER_SOURCE", value_name = "IMAGE|FILE|-")]
    source: String,
    /// One image of an archive with several: its name there, or @0 for the first
    #[arg(long, env = "IMAGE_PUSHER_IMAGE", value_name = "NAME|@NUMBER")]
    image: Option<Choice>,
    #[command(flatten)]
    compression: CompressionOptions,
    #[command(flatten)]
    registry: RegistryOptions,
    #[command(flatten)]
    cache: CacheOptions,
    /// Retries in a row before a transfer is given up
    #[arg(long, env = "IMAGE_PUSHER_RETRY_ATTEMPTS", default_value_t = DEFAULT_RETRY_ATTEMPTS, value_name = "NUMBER")]
    retry_attempts: u32,
    /// Blobs that are sent at once
    #[arg(
        long,
        env = "IMAGE_PUSHER_MAX_CONCURRENT",
        default_value_t = 1,
        value_name = "NUMBER",
        value_parser = clap::value_parser!(u16).range(1..=256)
    )]
    max_concurrent: u16,
    /// Do not send blobs that the registry has (the default, said aloud)
    #[arg(long, env = "IMAGE_PUSHER_SKIP_EXISTING", value_parser = FalseyValueParser::new())]
    skip_existing: bool,
    /// Send blobs and manifest even if the registry has them
    #[arg(long, env = "IMAGE_PUSHER_FORCE_UPLOAD", value_parser = FalseyValueParser::new())]
    force_upload: bool,
}

impl Push {
    /// Whether blobs are to be skipped and sent.
    pub(super) const fn contradicts_itself(&self) -> bool {
        self.skip_existing && self.force_upload
    }

    /// Whether standard input is to give a password and an archive.
    pub(super) fn reads_input_twice(&self) -> bool {
        self.registry.password.password_stdin && self.source == STDIN
    }

    /// Whether the password comes from standard input.
    pub(super) const fn reads_password(&self) -> bool {
        self.registry.password.password_stdin
    }

    /// The client that the options describe. Apart from the work, since it may wait for somebody to type a password.
    pub(super) fn client(&self, screen: &Screen) -> Result<RegistryClient> {
        Ok(access::client(
            &self.registry,
            self.retry_attempts,
            screen.output(),
        )?)
    }

    pub(super) async fn run(self, client: RegistryClient, screen: &Screen) -> Result<()> {
        let cache = Cache::open(self.cache.cache_dir, screen.output().clone())?;
        let existing_blobs = if self.force_upload {
            ExistingBlobs::Upload
        } else {
            ExistingBlobs::Skip
        };
        if self.skip_existing {
            screen
                .output()
                .info("blobs that the registry has are skipped");
        }
        let options = TransferOptions {
            max_concurrent: self.max_concurrent.into(),
            existing_blobs,
            ..TransferOptions::default()
        };
        let source = Source::of(&self.source, self.image, &self.compression)?;
        let RegistryOptions {
            repository,
            reference,
            ..
        } = self.registry;
        let target = format!(
            "{}/{}{}{reference}",
            client.endpoint().host(),
            repository.path(),
            reference.separator()
        );
        let mode = source.mode(repository, reference);
        let mut manager = ImageManager::new(cache.clone(), screen.output().clone(), options);
        manager
            .execute_operation(&mode, Some(&client), None)
            .await?;
        let digest = match (&source, manager.extracted()) {
            (Source::Cached(name), _) => {
                let manifest = cache.manifest(&name.repository, &name.reference).await?;
                manifest.map(|manifest| manifest.digest().to_string())
            }
            (Source::Tar { .. }, extracted) => {
                extracted.first().map(|image| image.digest.to_string())
            }
        };
        let digest = digest.unwrap_or_default();
        screen.summary(
            &format!("pushed {} to {target} {digest}", self.source),
            json!({ "source": self.source, "image": target, "digest": digest }),
        )
    }
}

/// What is to be pushed.
enum Source {
    Cached(ImageName),
    Tar {
        tar: Tar,
        image: Option<Choice>,
        compression: Option<Compression>,
    },
}

impl Source {
    /// An existing file is an archive, everything else the name of an image.
    fn of(text: &str, image: Option<Choice>, options: &CompressionOptions) -> Result<Self, Usage> {
        let compression = options.compression()?;
        if text == STDIN || Path::new(text).is_file() {
            return Ok(Self::Tar {
                tar: tar_of(text),
                image,
                compression,
            });
        }
        let name = text.parse().map_err(|source| Usage::SourceUnknown {
            path: text.to_owned(),
            source,
        })?;
        if image.is_some() {
            return Err(Usage::ImageWithoutArchive {
                source_name: text.to_owned(),
            });
        }
        if options.is_wanted() {
            return Err(Usage::CompressionWithoutArchive {
                source_name: text.to_owned(),
            });
        }
        Ok(Self::Cached(name))
    }

    fn mode(&self, repository: Repository, reference: Reference) -> OperationMode {
        match self {
            Self::Cached(name) => OperationMode::PushFromCacheUsingManifest {
                source: name.clone(),
                repository: repository.path().clone(),
                reference,
            },
            Self::Tar {
                tar,
                image,
                compression,
            } => OperationMode::PushFromCacheUsingTar {
                tar: tar.clone(),
                image: image.clone(),
                compression: *compression,
                repository,
                reference,
            },
        }
    }
}
