//! How many bytes per second a mirror may move in one direction.

use std::{num::NonZeroU64, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

/// Unused time that may be made up for: a burst of this length.
const BURST: Duration = Duration::from_millis(100);

/// A limit that all transfers of one direction share. Whoever wants bytes gets a time for them, one after the other, so the
/// sum is exact and nobody starves.
#[derive(Debug)]
pub(super) struct Bandwidth {
    bytes_per_second: Option<NonZeroU64>,
    /// When the next bytes may move.
    next: Mutex<Instant>,
}

impl Bandwidth {
    /// A limit, or none.
    pub(super) fn new(bytes_per_second: Option<NonZeroU64>) -> Self {
        Self {
            bytes_per_second,
            next: Mutex::new(Instant::now()),
        }
    }

    /// Waits until so many bytes may move.
    pub(super) async fn take(&self, bytes: usize) {
        let Some(rate) = self.bytes_per_second else {
            return;
        };
        let at = self.reserve(bytes, rate);
        tokio::time::sleep_until(at).await;
    }

    fn reserve(&self, bytes: usize, rate: NonZeroU64) -> Instant {
        let now = Instant::now();
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let nanoseconds = (bytes as u128 * 1_000_000_000) / u128::from(rate.get());
        let duration = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        let mut next = self.next.lock();
        let at = (*next).max(earliest);
        // A limit of a byte per second must not overflow the clock.
        *next = at + duration.min(Duration::from_hours(24));
        at
    }
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_transfers_together_keep_the_limit() {
        let bandwidth = Bandwidth::new(NonZeroU64::new(1_000_000));
        let started = Instant::now();
        join_all((0..10).map(|_| async {
            for _ in 0..10 {
                bandwidth.take(100_000).await;
            }
        }))
        .await;
        let seconds = started.elapsed().as_secs_f64();
        assert!((9.7..=10.0).contains(&seconds), "{seconds}");
    }

    #[tokio::test(start_paused = true)]
    async fn time_that_was_not_used_is_not_saved_up() {
        let bandwidth = Bandwidth::new(NonZeroU64::new(1_000_000));
        tokio::time::advance(Duration::from_mins(10)).await;
        let started = Instant::now();
        for _ in 0..11 {
            bandwidth.take(100_000).await;
        }
        let seconds = started.elapsed().as_secs_f64();
        assert!((0.85..=1.0).contains(&seconds), "{seconds}");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_nobody_waits() {
        let bandwidth = Bandwidth::new(None);
        let started = Instant::now();
        bandwidth.take(usize::MAX).await;
        assert_eq!(started.elapsed(), Duration::ZERO);
    }
}
