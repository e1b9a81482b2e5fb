//! The rate that all connections of a link share in one direction.

use std::time::{Duration, Instant};

/// How much of its rate a link can make up for after it stood still. It covers the moments in which a busy machine does
/// not let the link's thread run; a real link would have sent meanwhile.
const LONGEST_PAUSE: Duration = Duration::from_millis(10);

/// Fills with time, and is emptied by those who send.
#[derive(Debug)]
pub(super) struct Bucket {
    bytes_per_second: Option<u64>,
    level: u64,
    filled: Instant,
}

impl Bucket {
    pub(super) fn new(bytes_per_second: Option<u64>) -> Self {
        Self {
            bytes_per_second,
            level: 0,
            filled: Instant::now(),
        }
    }

    pub(super) fn fill(&mut self, now: Instant) {
        let Some(rate) = self.bytes_per_second else {
            self.level = u64::MAX;
            return;
        };
        let arrived = share_of(rate, now.saturating_duration_since(self.filled));
        self.filled = now;
        self.level = (self.level + arrived).min(share_of(rate, LONGEST_PAUSE));
    }

    pub(super) const fn level(&self) -> u64 {
        self.level
    }

    pub(super) const fn take(&mut self, bytes: u64) {
        self.level = self.level.saturating_sub(bytes);
    }
}

fn share_of(rate: u64, time: Duration) -> u64 {
    let bytes = u128::from(rate) * time.as_nanos() / 1_000_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}
