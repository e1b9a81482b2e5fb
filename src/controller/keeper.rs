//! Looks after the caches while the operator runs: reads blobs again, slowly, and removes what nobody needs any more.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    cache::{BlobVerdict, Cache, Result, Tenants},
    error::handlers,
};

use super::metrics::Metrics;

/// Bytes per second that are read for this: a hundred gigabytes take some hours, and copies do not feel it.
const BYTES_PER_SECOND: f64 = 16.0 * 1024.0 * 1024.0;

/// Between two rounds through all caches.
const ROUND: Duration = Duration::from_hours(1);

/// Keeps the caches of all tenants in order.
pub(super) struct Keeper {
    pub(super) caches: Arc<Tenants>,
    /// A blob is read again when it was not for this long; never if it is zero.
    pub(super) scrub_interval: Duration,
    pub(super) metrics: Metrics,
}

impl Keeper {
    /// Works for ever.
    pub(super) async fn run(self) {
        loop {
            let next = Instant::now() + ROUND.min(self.pause());
            self.round().await;
            tokio::time::sleep_until(next).await;
        }
    }

    /// A shorter interval than that of the rounds wants shorter ones.
    fn pause(&self) -> Duration {
        match self.scrub_interval {
            Duration::ZERO => ROUND,
            interval => interval.max(Duration::from_secs(1)),
        }
    }

    async fn round(&self) {
        let caches = match self.caches.all().await {
            Ok(caches) => caches,
            Err(error) => return tell(&error),
        };
        for cache in caches {
            if let Err(error) = self.look_after(&cache).await {
                tell(&error);
            }
        }
    }

    async fn look_after(&self, cache: &Cache) -> Result<()> {
        let bytes = cache.tidy().await?;
        if bytes > 0 {
            tracing::info!(directory = %cache.directory().display(), bytes, "removed what nobody needs any more");
        }
        if self.scrub_interval.is_zero() {
            return Ok(());
        }
        for digest in cache.unread_for(self.scrub_interval).await? {
            match cache.scrub(&digest).await? {
                BlobVerdict::Absent => {}
                BlobVerdict::Right(bytes) => {
                    self.metrics.scrubbed("right");
                    #[expect(clippy::cast_precision_loss, reason = "a pause need not be exact")]
                    let pause = bytes as f64 / BYTES_PER_SECOND;
                    tokio::time::sleep(Duration::from_secs_f64(pause)).await;
                }
                BlobVerdict::Wrong(fault) => {
                    self.metrics.scrubbed("wrong");
                    tracing::error!(
                        directory = %cache.directory().display(),
                        path = fault.path,
                        quarantined = fault.quarantined,
                        images = fault.images.join(", "),
                        "a blob in the cache {}; it is fetched again when a mirror needs it", fault.detail
                    );
                }
            }
        }
        Ok(())
    }
}

fn tell(error: &crate::cache::Error) {
    tracing::warn!(
        "the caches could not be looked after: {}",
        handlers::message(error)
    );
}
