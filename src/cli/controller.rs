//! `controller`: the operator.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, builder::FalseyValueParser};

use crate::{
    cache::CacheLimit,
    controller::{self, ControllerOptions},
};

use super::{
    Result,
    options::{cache_limit, duration},
};

/// Run the operator: watch ImageMirror resources and carry them out
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  docker-image-pusher controller --cache-dir /var/cache/images
  docker-image-pusher controller --cache-dir ./cache --watch-namespace team-a --watch-namespace team-b
  docker-image-pusher controller --cache-dir /var/cache/images --archive-dir /var/archives
  docker-image-pusher controller --cache-dir ./cache --metrics-addr 127.0.0.1:9090 --log-format json

It connects as KUBECONFIG or ~/.kube/config say, inside a pod as its ServiceAccount.")]
pub(super) struct Controller {
    /// Folder of the cache; each namespace has its own below it
    #[arg(
        long,
        env = "IMAGE_PUSHER_CACHE_DIR",
        default_value = ".cache",
        value_name = "DIR"
    )]
    cache_dir: PathBuf,
    /// Size that the cached blobs may have, such as 20Gi, or a part of the volume; images that all their destinations have leave
    /// when room is needed
    #[arg(long, env = "IMAGE_PUSHER_CACHE_MAX_SIZE", default_value = "80%", value_name = "SIZE|PERCENT",
        value_parser = cache_limit)]
    cache_max_size: CacheLimit,
    /// How often cached blobs are read again, to find what a disk has spoiled; 0 for never
    #[arg(long, env = "IMAGE_PUSHER_SCRUB_INTERVAL", default_value = "168h", value_name = "DURATION",
        value_parser = interval)]
    scrub_interval: Duration,
    /// Folder of archives, read only; each namespace has its own below it
    #[arg(long, env = "IMAGE_PUSHER_ARCHIVE_DIR", value_name = "DIR")]
    archive_dir: Option<PathBuf>,
    /// Let mirrors name registries on this machine, and let registries point there
    #[arg(long, env = "IMAGE_PUSHER_ALLOW_LOOPBACK", value_parser = FalseyValueParser::new())]
    allow_loopback: bool,
    /// Mirrors that are copied at once
    #[arg(long, env = "IMAGE_PUSHER_CONCURRENCY", default_value_t = 4, value_name = "NUMBER",
        value_parser = clap::value_parser!(u16).range(1..=1024))]
    concurrency: u16,
    /// Address of the admin port: /livez, /readyz, /metrics
    #[arg(
        long,
        env = "IMAGE_PUSHER_METRICS_ADDR",
        default_value = "0.0.0.0:8080",
        value_name = "ADDRESS"
    )]
    metrics_addr: SocketAddr,
    /// Watch only this namespace; may be given several times
    #[arg(
        long,
        env = "IMAGE_PUSHER_WATCH_NAMESPACE",
        value_name = "NAMESPACE",
        value_delimiter = ','
    )]
    watch_namespace: Vec<String>,
    /// Percent by which intervals differ at random, so that mirrors do not all begin at once
    #[arg(long, env = "IMAGE_PUSHER_INTERVAL_JITTER_PERCENTAGE", default_value_t = 5, value_name = "PERCENT",
        value_parser = clap::value_parser!(u8).range(0..=99))]
    interval_jitter_percentage: u8,
}

/// A duration as in the resource, or 0.
fn interval(text: &str) -> Result<Duration, String> {
    match text {
        "0" => Ok(Duration::ZERO),
        _ => duration(text),
    }
}

impl Controller {
    pub(super) async fn run(self) -> Result<()> {
        let options = ControllerOptions {
            cache_dir: self.cache_dir,
            cache_limit: self.cache_max_size,
            scrub_interval: self.scrub_interval,
            archive_dir: self.archive_dir,
            allow_loopback: self.allow_loopback,
            concurrency: self.concurrency.into(),
            metrics_addr: self.metrics_addr,
            watch_namespaces: self.watch_namespace,
            interval_jitter_percentage: self.interval_jitter_percentage,
            // Set by the downward API in a pod; it tells in events which replica spoke.
            instance: std::env::var("POD_NAME").ok(),
        };
        Ok(controller::run(options).await?)
    }
}
