//! `pull`: from a registry into the cache.

use clap::Args;
use serde_json::json;

use crate::{
    cache::Cache,
    image::ImageName,
    registry::RegistryClient,
    transfer::{ImageManager, OperationMode, TransferOptions},
};

use super::{
    Result, access,
    options::{CacheOptions, DEFAULT_RETRY_ATTEMPTS, RegistryOptions},
    render::Screen,
};

/// Pull an image from a registry into the cache
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  docker-image-pusher pull -r library/ubuntu -t 22.04
  docker-image-pusher pull -r team/app -t 1.0 --registry http://localhost:5000
  echo \"$PASSWORD\" | docker-image-pusher pull -r registry.example/team/app -t 1.0 -u ci --password-stdin

The image lies in the cache under the name given with -r; `push -s NAME:TAG` finds it there.")]
pub(super) struct Pull {
    #[command(flatten)]
    registry: RegistryOptions,
    #[command(flatten)]
    cache: CacheOptions,
}

impl Pull {
    /// Whether the password comes from standard input.
    pub(super) const fn reads_password(&self) -> bool {
        self.registry.password.password_stdin
    }

    /// The client that the options describe. Apart from the work, since it may wait for somebody to type a password.
    pub(super) fn client(&self, screen: &Screen) -> Result<RegistryClient> {
        Ok(access::client(
            &self.registry,
            DEFAULT_RETRY_ATTEMPTS,
            screen.output(),
        )?)
    }

    pub(super) async fn run(self, client: RegistryClient, screen: &Screen) -> Result<()> {
        let cache = Cache::open(self.cache.cache_dir, screen.output().clone())?;
        // Before the first request: nobody waits for a download that cannot be kept.
        cache.ensure_writable().await?;
        let RegistryOptions {
            repository,
            reference,
            ..
        } = self.registry;
        let name = ImageName {
            repository: repository.clone(),
            reference: reference.clone(),
        };
        let mode = OperationMode::PullAndCache {
            repository,
            reference,
        };
        let mut manager = ImageManager::new(
            cache.clone(),
            screen.output().clone(),
            TransferOptions::default(),
        );
        manager
            .execute_operation(&mode, Some(&client), None)
            .await?;
        let manifest = cache.manifest(&name.repository, &name.reference).await?;
        let digest = manifest
            .map(|manifest| manifest.digest().to_string())
            .unwrap_or_default();
        screen.summary(
            &format!("pulled {name} {digest}"),
            json!({ "image": name, "digest": digest }),
        )
    }
}
