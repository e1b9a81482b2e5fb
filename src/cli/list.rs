//! `list`: the images in the cache.

use clap::Args;
use serde_json::json;

use crate::{
    cache::{Cache, ListedImage},
    output::ByteSize,
};

use super::{
    Result,
    options::CacheOptions,
    render::{Screen, columns},
};

/// List the images in the cache
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  docker-image-pusher list
  docker-image-pusher list --cache-dir /var/cache/images --output json")]
pub(super) struct List {
    #[command(flatten)]
    cache: CacheOptions,
}

impl List {
    pub(super) async fn run(self, screen: &Screen) -> Result<()> {
        let cache = Cache::open(self.cache.cache_dir, screen.output().clone())?;
        let images = cache.list().await?;
        let text = if images.is_empty() {
            format!("the cache {} holds no images", cache.directory().display())
        } else {
            table(&images)
        };
        screen.content(&text, &json!({ "images": images }))
    }
}

fn table(images: &[ListedImage]) -> String {
    let header = ["IMAGE", "DIGEST", "SIZE", "PLATFORMS", "FROM"];
    columns(header, images.iter().map(row))
}

fn row(image: &ListedImage) -> [String; 5] {
    let platforms: Vec<String> = image.platforms.iter().map(ToString::to_string).collect();
    let size = ByteSize(image.size).to_string();
    [
        image.name.to_string(),
        format!(
            "{}:{}",
            image.digest.algorithm().name(),
            &image.digest.hex()[..12]
        ),
        if image.is_complete() {
            size
        } else {
            format!("{size} (incomplete)")
        },
        platforms.join(","),
        image.registry.clone().unwrap_or_default(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Digest, MediaType};

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let image = |name: &str, missing_blobs| ListedImage {
            name: name.parse().unwrap(),
            digest: Digest::of(b""),
            media_type: MediaType::OCI_MANIFEST,
            platforms: vec!["linux/amd64".parse().unwrap()],
            size: 2048,
            registry: Some("http://localhost:5000".into()),
            missing_manifests: 0,
            missing_blobs,
        };
        let text = table(&[image("app:1", 0), image("team/longer-name:22.04", 1)]);
        let expected = "\
IMAGE                   DIGEST               SIZE                  PLATFORMS    FROM
app:1                   sha256:e3b0c44298fc  2.0 KiB               linux/amd64  http://localhost:5000
team/longer-name:22.04  sha256:e3b0c44298fc  2.0 KiB (incomplete)  linux/amd64  http://localhost:5000";
        assert_eq!(text, expected);
    }
}
