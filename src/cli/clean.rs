//! `clean`: removes images from the cache.

use std::time::Duration;

use clap::{Args, builder::FalseyValueParser};
use serde_json::json;

use crate::{
    cache::{Cache, CleanRequest},
    output::ByteSize,
};

use super::{
    Error, Result,
    options::{CacheOptions, NamedImages, duration},
    render::Screen,
};

/// Remove images from the cache: all of them, or those that are named
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  docker-image-pusher clean --dry-run
  docker-image-pusher clean -r library/ubuntu -t 22.04
  docker-image-pusher clean --keep-within 168h")]
pub(super) struct Clean {
    #[command(flatten)]
    only: NamedImages,
    /// Show what would be removed, remove nothing
    #[arg(long, env = "IMAGE_PUSHER_DRY_RUN", value_parser = FalseyValueParser::new())]
    dry_run: bool,
    /// Keep images that were pulled within this time, for example 90m or 168h
    #[arg(long, env = "IMAGE_PUSHER_KEEP_WITHIN", value_name = "DURATION", value_parser = duration)]
    keep_within: Option<Duration>,
    #[command(flatten)]
    cache: CacheOptions,
}

impl Clean {
    pub(super) async fn run(self, screen: &Screen) -> Result<()> {
        let cache = Cache::open(self.cache.cache_dir, screen.output().clone())?;
        let request = CleanRequest {
            only: self.only.named(),
            keep_within: self.keep_within,
            dry_run: self.dry_run,
        };
        let report = cache.clean(&request).await?;
        let verb = if self.dry_run {
            "would remove"
        } else {
            "removed"
        };
        for image in &report.images {
            screen.output().info(format!("{verb} {image}"));
        }
        for image in &report.in_use {
            screen
                .output()
                .info(format!("kept {image}: another run works on it"));
        }
        for image in &report.kept {
            screen.output().info(format!(
                "kept {image}: pulled recently, or part of another image"
            ));
        }
        let text = format!(
            "{verb} {} images, {} blobs, {}",
            report.images.len(),
            report.blobs,
            ByteSize(report.bytes)
        );
        screen.result(
            &text,
            &json!({ "dryRun": self.dry_run, "images": report.images, "kept": report.kept, "inUse": report.in_use, "blobs": report.blobs, "bytes": report.bytes }),
        )?;
        match report.in_use.len() {
            0 => Ok(()),
            images => Err(Error::CachedImagesInUse {
                directory: cache.directory().display().to_string(),
                images,
            }),
        }
    }
}
