//! When a mirror is looked at again. Pure: the end of the last run and the random number come in as arguments.

use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};

/// How soon a cause that lies outside the spec (a Secret, a permission, the registry) is looked at again: long enough not
/// to lock an account, short enough that nobody waits who has mended it.
pub(super) const OUTSIDE_PAUSE: Duration = Duration::from_mins(10);
/// First pause after a failure that time mends.
const FIRST_BACKOFF: Duration = Duration::from_secs(10);
/// Longest pause after failures that time mends.
const LONGEST_BACKOFF: Duration = Duration::from_mins(10);

/// The longest pause that a registry may ask for: quotas are counted by the hour or the day, and a date that is years away
/// is an error.
const LONGEST_ASKED: Duration = Duration::from_hours(24);

/// Why a mirror is looked at again, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// At its interval; without one, at the next change of the spec.
    Interval,
    /// After the interval, but within ten minutes: the cause lies outside the spec.
    Outside,
    /// Soon, with growing pauses: the cause goes away by itself.
    Backoff {
        /// Failures in a row.
        failures: u32,
        /// The pause that the other side asked for; it is not asked again before.
        asked: Duration,
    },
    /// At the next change of the spec.
    SpecChange,
}

impl Next {
    /// After the growing pause of so many failures in a row, or the one that was asked for if that is longer.
    pub(super) fn backoff(failures: u32, asked: Duration) -> Self {
        Self::Backoff {
            failures,
            asked: asked.min(LONGEST_ASKED),
        }
    }
}

/// The share by which pauses differ at random, so that mirrors made together do not ask together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Jitter {
    share: f64,
}

impl Jitter {
    /// `percentage` less or more, below 100.
    pub(super) fn new(percentage: u8) -> Self {
        Self {
            share: f64::from(percentage.min(99)) / 100.0,
        }
    }

    /// `pause`, moved by a sample between 0 and 1.
    fn apply(self, pause: Duration, sample: f64) -> Duration {
        let factor = 1.0 + self.share * (2.0 * sample.clamp(0.0, 1.0) - 1.0);
        Duration::try_from_secs_f64(pause.as_secs_f64() * factor).unwrap_or(pause)
    }

    /// `pause`, moved like that but never shortened.
    fn lengthen(self, pause: Duration, sample: f64) -> Duration {
        pause.max(self.apply(pause, 0.5 + sample.clamp(0.0, 1.0) / 2.0))
    }
}

/// When a mirror whose run ended at `ended` is looked at again; in whole seconds, as the status holds it.
pub(super) fn next_run(
    next: Next,
    interval: Option<Duration>,
    ended: Timestamp,
    jitter: Jitter,
    sample: f64,
) -> Option<Timestamp> {
    let pause = match next {
        Next::Interval => jitter.apply(interval?, sample),
        Next::Outside => {
            let pause = interval.map_or(OUTSIDE_PAUSE, |interval| interval.min(OUTSIDE_PAUSE));
            jitter.apply(pause, sample)
        }
        Next::Backoff { failures, asked } => jitter
            .apply(backoff(failures), sample)
            .max(jitter.lengthen(asked, sample)),
        Next::SpecChange => return None,
    };
    let seconds = i64::try_from(pause.as_secs()).unwrap_or(i64::MAX).max(1);
    let at = ended
        .checked_add(SignedDuration::from_secs(seconds))
        .unwrap_or(Timestamp::MAX);
    Timestamp::from_second(at.as_second()).ok()
}

/// The pause after `failures` failures in a row: doubled each time, up to ten minutes.
pub(super) fn backoff(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    FIRST_BACKOFF
        .saturating_mul(1 << doublings)
        .min(LONGEST_BACKOFF)
}

/// How many failures in a row made for this pause: what [`backoff`] would have given nearest to it.
pub(super) fn failures_behind(pause: Duration) -> u32 {
    let mut failures = 1;
    while backoff(failures) < LONGEST_BACKOFF && pause > backoff(failures).mul_f64(1.5) {
        failures += 1;
    }
    failures
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(next: Next, interval: Option<u64>, sample: f64) -> Option<i64> {
        let at = next_run(
            next,
            interval.map(Duration::from_secs),
            Timestamp::UNIX_EPOCH,
            Jitter::new(5),
            sample,
        );
        at.map(Timestamp::as_second)
    }

    fn back_off(failures: u32, asked: u64) -> Next {
        Next::backoff(failures, Duration::from_secs(asked))
    }

    #[test]
    fn each_cause_has_its_pause() {
        for (next, interval, expected) in [
            (Next::Interval, Some(3600), Some(3600)),
            (Next::Interval, None, None),
            (Next::Outside, Some(3600), Some(600)),
            (Next::Outside, Some(60), Some(60)),
            (Next::Outside, None, Some(600)),
            (back_off(1, 0), Some(3600), Some(10)),
            (back_off(2, 0), None, Some(20)),
            (back_off(7, 0), None, Some(600)),
            (back_off(u32::MAX, 0), None, Some(600)),
            (back_off(4, 30), None, Some(80)),
            // What was asked for is drawn between it and 5 percent more.
            (back_off(1, 3600), Some(60), Some(3690)),
            (back_off(1, u64::MAX), None, Some(88_560)),
            (Next::SpecChange, Some(60), None),
        ] {
            assert_eq!(
                seconds(next, interval, 0.5),
                expected,
                "{next:?} {interval:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn jitter_stays_within_5_percent_of_every_interval(interval in 60_u64..10_000_000, sample in 0.0_f64..1.0) {
            let at = seconds(Next::Interval, Some(interval), sample).unwrap();
            let interval = i64::try_from(interval).unwrap();
            prop_assert!(at * 100 >= interval * 95 - 100 && at * 100 <= interval * 105, "{at} for {interval}");
        }
    }

    /// Operator rule G4: mirrors that were made together spread over the whole range.
    #[test]
    fn jitter_is_spread_evenly_over_its_range() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut tenths = [0_u32; 10];
        for _ in 0..10_000 {
            let at = seconds(Next::Interval, Some(100_000), random.f64()).unwrap();
            let tenth = usize::try_from((at - 95_000) / 1_000).unwrap().min(9);
            tenths[tenth] += 1;
        }
        assert!(
            tenths.iter().all(|count| (900..1100).contains(count)),
            "{tenths:?}"
        );
    }

    proptest! {
        #[test]
        fn nobody_is_asked_before_the_pause_it_asked_for(
            failures in 0_u32..20,
            asked in 0_u64..86_400,
            sample in 0.0_f64..1.0,
        ) {
            let at = seconds(back_off(failures, asked), Some(60), sample).unwrap();
            prop_assert!(at >= i64::try_from(asked).unwrap(), "{at} for {asked}");
        }
    }

    #[test]
    fn the_failures_behind_a_pause_are_found_again() {
        for failures in 1..=7 {
            for percent in [95, 100, 105] {
                let pause = backoff(failures) * percent / 100;
                assert_eq!(failures_behind(pause), failures, "{pause:?}");
            }
        }
        assert_eq!(failures_behind(Duration::from_hours(5)), 7);
    }

    #[test]
    fn the_longest_interval_is_a_time_all_the_same() {
        assert!(seconds(Next::Interval, Some(u64::MAX), 1.0).is_some());
    }
}
