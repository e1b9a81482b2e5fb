//! The figures a command ends with.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use serde::Serialize;

use super::Direction;

/// Counts while the work goes on; counters only grow and need no order among each other.
#[derive(Debug)]
pub struct Statistics {
    started: Instant,
    downloaded: AtomicU64,
    uploaded: AtomicU64,
    extracted: AtomicU64,
    existing: AtomicU64,
    bytes_downloaded: AtomicU64,
    bytes_uploaded: AtomicU64,
    bytes_extracted: AtomicU64,
    retries: AtomicU64,
}

impl Default for Statistics {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            downloaded: AtomicU64::new(0),
            uploaded: AtomicU64::new(0),
            extracted: AtomicU64::new(0),
            existing: AtomicU64::new(0),
            bytes_downloaded: AtomicU64::new(0),
            bytes_uploaded: AtomicU64::new(0),
            bytes_extracted: AtomicU64::new(0),
            retries: AtomicU64::new(0),
        }
    }
}

impl Statistics {
    pub(super) fn count_copied(&self, direction: Direction) {
        let counter = match direction {
            Direction::Download => &self.downloaded,
            Direction::Upload => &self.uploaded,
            Direction::Extract => &self.extracted,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_existing(&self) {
        self.existing.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_bytes(&self, direction: Direction, bytes: u64) {
        let counter = match direction {
            Direction::Download => &self.bytes_downloaded,
            Direction::Upload => &self.bytes_uploaded,
            Direction::Extract => &self.bytes_extracted,
        };
        counter.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn count_retry(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn totals(&self) -> Totals {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Totals {
            downloaded: read(&self.downloaded),
            uploaded: read(&self.uploaded),
            extracted: read(&self.extracted),
            existing: read(&self.existing),
            bytes_downloaded: read(&self.bytes_downloaded),
            bytes_uploaded: read(&self.bytes_uploaded),
            bytes_extracted: read(&self.bytes_extracted),
            retries: read(&self.retries),
            duration_seconds: self.started.elapsed().as_secs_f64(),
        }
    }
}

/// The figures at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// Blobs copied from a registry into the cache.
    pub downloaded: u64,
    /// Blobs copied from the cache to a registry.
    pub uploaded: u64,
    /// Blobs copied from an archive into the cache.
    pub extracted: u64,
    /// Blobs that were in place already.
    pub existing: u64,
    /// Bytes of blobs read from registries, repeats included.
    pub bytes_downloaded: u64,
    /// Bytes of blobs sent to registries, repeats included.
    pub bytes_uploaded: u64,
    /// Bytes read from archives.
    pub bytes_extracted: u64,
    /// Operations that were tried again.
    pub retries: u64,
    /// Time since the start, in seconds.
    pub duration_seconds: f64,
}

impl Totals {
    /// Bytes that travelled, whichever way.
    const fn bytes(&self) -> u64 {
        self.bytes_downloaded + self.bytes_uploaded + self.bytes_extracted
    }

    /// Bytes per second over the whole time, all directions together.
    #[expect(
        clippy::cast_precision_loss,
        reason = "a rate for people: 52 bits are plenty"
    )]
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes() as f64 / self.duration_seconds.max(0.001)
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "blobs copied {}, existing {}; {} at {}/s; retries {}; {:.1} s",
            self.downloaded + self.uploaded + self.extracted,
            self.existing,
            ByteSize(self.bytes()),
            ByteSize::rounded(self.bytes_per_second()),
            self.retries,
            Duration::from_secs_f64(self.duration_seconds).as_secs_f64(),
        )
    }
}

/// A number of bytes, shown in binary units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// From a computed rate.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "rates are positive and far below 2^64"
    )]
    pub fn rounded(bytes: f64) -> Self {
        Self(bytes.max(0.0) as u64)
    }
}

impl fmt::Display for ByteSize {
    #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
        if self.0 < 1024 {
            return write!(formatter, "{} B", self.0);
        }
        let mut value = self.0 as f64 / 1024.0;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        write!(formatter, "{value:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_shown_in_the_largest_unit_that_fits() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (512 << 20, "512.0 MiB"),
            (3 << 40, "3.0 TiB"),
        ] {
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
    }
}
