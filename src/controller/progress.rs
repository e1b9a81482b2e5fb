//! Turns the engine's events into the numbers of a status, and into metrics.
//!
//! The sums are those of [`output::Progress`], whose bytes never fall (design part 3); here come the rate, the time left and
//! the moment from which on there is something to copy.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    api::Progress,
    output::{self, Direction, Event, Level, Renderer},
};

use super::metrics::Metrics;

/// The rate is measured over this time: long enough to be calm, short enough to show a stall.
const RATE_WINDOW: Duration = Duration::from_secs(30);

/// Called once, when the first transfer of a run begins.
type Nudge = Box<dyn Fn() + Send + Sync>;

/// The account of one run. Clones share it.
#[derive(Clone)]
pub(super) struct Tracker {
    shared: Arc<Shared>,
}

struct Shared {
    account: Mutex<Account>,
    metrics: Metrics,
    first_transfer: Nudge,
}

impl fmt::Debug for Tracker {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Tracker")
            .field("account", &self.shared.account)
            .finish_non_exhaustive()
    }
}

impl Tracker {
    /// Counts into `metrics` too; `first_transfer` is called when there is something to copy.
    pub(super) fn new(metrics: Metrics, first_transfer: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            shared: Arc::new(Shared {
                account: Mutex::default(),
                metrics,
                first_transfer: Box::new(first_transfer),
            }),
        }
    }

    /// Whether anything was or is copied.
    pub(super) fn is_copying(&self) -> bool {
        self.account(|account| account.copying)
    }

    /// The numbers at this moment; `images_total` is 0 while nobody knows.
    pub(super) fn progress(&self, images_total: usize, now: Instant) -> Progress {
        self.account(|account| account.progress(images_total, now))
    }

    fn account<T>(&self, use_it: impl FnOnce(&mut Account) -> T) -> T {
        // The account is plain numbers: a panic elsewhere leaves it as good as before.
        let mut account = self
            .shared
            .account
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        use_it(&mut account)
    }
}

impl Renderer for Tracker {
    fn handle(&self, event: &Event<'_>) {
        match event {
            Event::Message { level, text } => match level {
                Level::Detail => tracing::debug!("{text}"),
                Level::Info => tracing::info!("{text}"),
                Level::Warning => tracing::warn!("{text}"),
            },
            Event::Retrying {
                operation,
                cause,
                pause,
            } => {
                self.shared.metrics.retry();
                tracing::warn!(operation, cause, ?pause, "trying again");
            }
            Event::Planned { .. }
            | Event::Skipped { .. }
            | Event::Started { .. }
            | Event::Reading { .. }
            | Event::Writing { .. }
            | Event::Advanced { .. }
            | Event::Restarted { .. }
            | Event::Ended { .. } => {
                let first = self.account(|account| account.take(event, &self.shared.metrics));
                if first {
                    (self.shared.first_transfer)();
                }
            }
        }
    }
}

#[derive(Debug, Default)]
struct Account {
    sums: output::Progress,
    copying: bool,
    directions: HashMap<u64, Direction>,
    samples: VecDeque<(Instant, u64)>,
}

impl Account {
    /// Takes notice of an event; whether it was the first transfer.
    fn take(&mut self, event: &Event<'_>, metrics: &Metrics) -> bool {
        self.sums.observe(event);
        match event {
            Event::Skipped { .. } => metrics.blob("exists"),
            Event::Started { id, direction, .. } => {
                self.directions.insert(*id, *direction);
                return !std::mem::replace(&mut self.copying, true);
            }
            Event::Reading { id, .. } => {
                self.directions.insert(*id, Direction::Extract);
                return !std::mem::replace(&mut self.copying, true);
            }
            Event::Advanced { id, bytes } => {
                if let Some(direction) = self.directions.get(id) {
                    metrics.bytes(*direction, *bytes);
                }
            }
            Event::Ended { id, complete } => {
                let ended = self.directions.remove(id);
                match ended.filter(|_| *complete) {
                    Some(Direction::Download) => metrics.blob("downloaded"),
                    Some(Direction::Upload) => metrics.blob("uploaded"),
                    // The end of an archive, which is no blob.
                    Some(Direction::Extract) | None => {}
                }
            }
            // The operator writes no archives.
            Event::Writing { .. }
            | Event::Planned { .. }
            | Event::Restarted { .. }
            | Event::Message { .. }
            | Event::Retrying { .. } => {}
        }
        false
    }

    fn progress(&mut self, images_total: usize, now: Instant) -> Progress {
        let numbers = self.sums.numbers();
        let rate = self.rate(numbers.bytes_done, now);
        let left = numbers.bytes_total.saturating_sub(numbers.bytes_done);
        Progress {
            images_total: i32::try_from(images_total).unwrap_or(i32::MAX),
            bytes_done: signed(numbers.bytes_done),
            bytes_total: signed(numbers.bytes_total),
            bytes_per_second: signed(rate),
            eta_seconds: left.checked_div(rate).map(signed),
            text: format!("{}%", numbers.percent()),
        }
    }

    /// Bytes per second since the oldest sample in the window.
    fn rate(&mut self, bytes_done: u64, now: Instant) -> u64 {
        let is_old =
            |(time, _): &(Instant, u64)| now.saturating_duration_since(*time) > RATE_WINDOW;
        while self.samples.front().is_some_and(is_old) {
            self.samples.pop_front();
        }
        self.samples.push_back((now, bytes_done));
        let Some((since, before)) = self.samples.front() else {
            return 0;
        };
        let milliseconds = now.saturating_duration_since(*since).as_millis();
        let moved = u128::from(bytes_done.saturating_sub(*before));
        let rate = (moved * 1000).checked_div(milliseconds).unwrap_or(0);
        u64::try_from(rate).unwrap_or(u64::MAX)
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use proptest::prelude::*;

    use super::*;
    use crate::{image::Digest, output::OutputManager};

    fn tracker() -> Tracker {
        Tracker::new(Metrics::default(), || {})
    }

    #[test]
    fn rate_and_time_left_follow_from_the_last_seconds() {
        let tracker = tracker();
        let output = OutputManager::new(tracker.clone());
        let start = Instant::now();
        output.planned(2, 300);
        output.existing(&Digest::of(b"there"), 100);
        let progress = tracker.progress(3, start);
        assert_eq!(
            (
                progress.images_total,
                progress.bytes_per_second,
                progress.eta_seconds
            ),
            (3, 0, None)
        );
        let download = output.transfer(Direction::Download, &Digest::of(b"x"), 200);
        download.advance(100);
        let progress = tracker.progress(3, start + Duration::from_secs(10));
        assert_eq!(
            (
                progress.bytes_done,
                progress.bytes_total,
                progress.text.as_str()
            ),
            (200, 300, "66%")
        );
        assert_eq!(
            (progress.bytes_per_second, progress.eta_seconds),
            (10, Some(10))
        );
        let stalled = tracker.progress(3, start + Duration::from_mins(1));
        assert_eq!((stalled.bytes_per_second, stalled.eta_seconds), (0, None));
    }

    #[test]
    fn the_first_transfer_is_told_once() {
        let calls = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&calls);
        let tracker = Tracker::new(Metrics::default(), move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        let output = OutputManager::new(tracker.clone());
        output.planned(1, 1);
        output.existing(&Digest::of(b"x"), 1);
        assert!(!tracker.is_copying());
        for _ in 0..2 {
            output
                .transfer(Direction::Upload, &Digest::of(b"x"), 1)
                .complete();
        }
        assert!(tracker.is_copying());
        assert_eq!(calls.load(Ordering::Relaxed), 1);
    }

    proptest! {
        #[test]
        fn reported_bytes_never_fall(
            steps in proptest::collection::vec((0_u8..6, 0_u64..1000), 1..60)) {
            let tracker = tracker();
            let output = OutputManager::new(tracker.clone());
            let digest = Digest::of(b"x");
            let mut transfer = None;
            let mut before = Progress::default();
            let mut now = Instant::now();
            for (step, bytes) in steps {
                match step {
                    0 => output.planned(1, bytes),
                    1 => output.existing(&digest, bytes),
                    2 => transfer = Some(output.transfer(Direction::Download, &digest, bytes)),
                    3 => transfer = Some(output.transfer(Direction::Upload, &digest, bytes)),
                    4 => if let Some(transfer) = &transfer { transfer.advance(bytes) },
                    _ => if let Some(transfer) = &transfer { transfer.restart() },
                }
                now += Duration::from_millis(bytes);
                let progress = tracker.progress(1, now);
                prop_assert!(progress.bytes_done >= before.bytes_done);
                prop_assert!(progress.bytes_total >= before.bytes_total);
                prop_assert!(progress.bytes_per_second >= 0);
                before = progress;
            }
        }
    }
}
