//! How often and after which pause something that failed is tried again.

use std::time::Duration;

use crate::error::{
    Classified,
    handlers::{self, Retry as Verdict},
};

use super::Error;

/// Longest wait for a `Retry-After` within one operation; beyond it the run is parked by those above (registry rule R15).
pub(super) const LONGEST_WAIT: Duration = Duration::from_mins(5);

/// First and smallest pause: short enough for a hiccup, long enough for a proxy to pick another backend (R21).
const SHORTEST_PAUSE: Duration = Duration::from_millis(250);

/// Largest pause between two attempts (R21).
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A demanded wait of less would let a registry that always says "0 seconds" make us ask without end.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);

/// Counts the failures of one operation and gives the pause before each next attempt. Everything that tries again uses one
/// of these, so that attempts are counted alike everywhere.
#[derive(Debug, Clone)]
pub struct Retry {
    limit: u32,
    failures: u32,
    pause: Duration,
    waited: Duration,
    fetched_again: bool,
    /// Enough bytes arrived since the last failure.
    has_progressed: bool,
}

impl Retry {
    /// Fewer bytes than this are no progress: a connection that breaks after each few kilobytes would be replaced for ever
    /// (R21).
    pub const PROGRESS: u64 = 1024 * 1024;

    /// Allows `limit` consecutive retries.
    pub(super) const fn new(limit: u32) -> Self {
        Self {
            limit,
            failures: 0,
            pause: SHORTEST_PAUSE,
            waited: Duration::ZERO,
            fetched_again: false,
            has_progressed: false,
        }
    }

    /// The pause before the next attempt after `error`, or nothing when there is to be none.
    pub fn next(&mut self, error: &Error) -> Option<Duration> {
        let has_progressed = std::mem::take(&mut self.has_progressed);
        match handlers::retry(error.class()) {
            Verdict::Never => None,
            // What came is not wrong, there is only more to come: a proxy may end every answer at some length.
            Verdict::Once if has_progressed && error.is_too_short() => self.back_off(true),
            Verdict::Once if self.fetched_again => None,
            Verdict::Once => {
                self.fetched_again = true;
                Some(Duration::ZERO)
            }
            Verdict::Backoff if error.is_final() => None,
            Verdict::Backoff | Verdict::Park => match error.retry_after() {
                Some(wait) => self.wait(wait),
                None => self.back_off(error.is_transport()),
            },
        }
    }

    /// Tells that so many bytes arrived since the last failure. With enough of them the failures before count no more: a large
    /// blob on a bad line ends by its size, never by a count (R21).
    pub const fn progressed(&mut self, bytes: u64) {
        if bytes >= Self::PROGRESS {
            self.has_progressed = true;
            self.failures = 0;
            self.pause = SHORTEST_PAUSE;
            self.waited = Duration::ZERO;
        }
    }

    /// A wait that the other side asked for is no retry; but all waits together stay below the limit.
    fn wait(&mut self, wait: Duration) -> Option<Duration> {
        let wait = wait.max(SHORTEST_WAIT);
        self.waited += wait;
        (self.waited <= LONGEST_WAIT).then_some(wait)
    }

    /// Decorrelated jitter: each pause is drawn between the smallest one and three times the last, so that many clients that
    /// failed at one moment do not come back at one moment.
    fn back_off(&mut self, is_transport: bool) -> Option<Duration> {
        if self.failures >= self.limit {
            return None;
        }
        self.failures += 1;
        // A connection that broke is mostly an idle one the server had given up: that costs no pause (R13).
        if is_transport && self.failures == 1 {
            return Some(Duration::ZERO);
        }
        let ceiling = (self.pause * 3).min(LONGEST_PAUSE);
        let spread = ceiling.saturating_sub(SHORTEST_PAUSE);
        self.pause = SHORTEST_PAUSE + spread.mul_f64(fastrand::f64());
        Some(self.pause)
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::registry::{Answer, Cause, Operation};

    fn unavailable(retry_after: Option<u64>) -> Error {
        Error::RegistryUnavailable {
            operation: Operation::new("x"),
            answer: Answer::of_status(StatusCode::BAD_GATEWAY),
            retry_after: retry_after.map(Duration::from_secs),
        }
    }

    fn broken() -> Error {
        Error::ConnectionFailed {
            operation: Operation::new("x"),
            source: Cause::of(&std::fmt::Error),
        }
    }

    fn denied() -> Error {
        Error::AccessDenied {
            operation: Operation::new("x"),
            answer: Answer::of_status(StatusCode::FORBIDDEN),
            permission: "pull",
        }
    }

    fn full() -> Error {
        Error::RegistryQuotaExceeded {
            operation: Operation::new("x"),
            answer: Answer::of_status(StatusCode::FORBIDDEN),
        }
    }

    fn wrong_size(longer: bool) -> Error {
        Error::SizeMismatch {
            operation: Operation::new("x"),
            expected: 2,
            actual: 1,
            longer,
        }
    }

    #[test]
    fn there_are_as_many_retries_as_allowed() {
        for limit in [0, 1, 3] {
            let mut retry = Retry::new(limit);
            let retries = (0..10)
                .filter(|_| retry.next(&unavailable(None)).is_some())
                .count();
            assert_eq!(retries, limit as usize);
        }
    }

    #[test]
    fn what_cannot_succeed_is_not_tried_again() {
        assert_eq!(Retry::new(3).next(&denied()), None);
        assert_eq!(Retry::new(3).next(&full()), None);
    }

    #[test]
    fn wrong_bytes_are_fetched_once_more() {
        for longer in [false, true] {
            let mut retry = Retry::new(3);
            assert_eq!(retry.next(&wrong_size(longer)), Some(Duration::ZERO));
            assert_eq!(retry.next(&wrong_size(longer)), None);
        }
    }

    #[test]
    fn a_broken_connection_is_replaced_at_once_and_then_with_pauses() {
        let mut retry = Retry::new(3);
        assert_eq!(retry.next(&broken()), Some(Duration::ZERO));
        assert!(retry.next(&broken()).unwrap() >= SHORTEST_PAUSE);
    }

    #[test]
    fn a_mebibyte_of_progress_makes_the_count_start_again() {
        let mut retry = Retry::new(1);
        for _ in 0..100 {
            assert_eq!(retry.next(&broken()), Some(Duration::ZERO));
            retry.progressed(Retry::PROGRESS);
        }
        assert_eq!(retry.next(&broken()), Some(Duration::ZERO));
        retry.progressed(Retry::PROGRESS - 1);
        assert_eq!(retry.next(&broken()), None);
        retry.progressed(Retry::PROGRESS);
        assert_eq!(retry.next(&unavailable(Some(300))), Some(LONGEST_WAIT));
        retry.progressed(Retry::PROGRESS);
        assert_eq!(retry.next(&unavailable(Some(300))), Some(LONGEST_WAIT));
    }

    #[test]
    fn too_many_bytes_are_not_forgiven_for_progress() {
        let mut retry = Retry::new(3);
        assert_eq!(retry.next(&wrong_size(true)), Some(Duration::ZERO));
        retry.progressed(Retry::PROGRESS);
        assert_eq!(retry.next(&wrong_size(true)), None);
    }

    #[test]
    fn a_body_that_ends_early_after_progress_is_a_broken_connection() {
        let mut retry = Retry::new(1);
        for _ in 0..100 {
            retry.progressed(Retry::PROGRESS);
            assert_eq!(retry.next(&wrong_size(false)), Some(Duration::ZERO));
        }
        // Counted as one, too.
        assert_eq!(retry.next(&broken()), None);
        // Without progress it is no more than a blob that is too short.
        retry.progressed(Retry::PROGRESS - 1);
        assert_eq!(retry.next(&wrong_size(false)), Some(Duration::ZERO));
        assert_eq!(retry.next(&wrong_size(false)), None);
    }

    #[test]
    fn pauses_stay_within_their_limits() {
        let mut retry = Retry::new(1000);
        for _ in 0..1000 {
            let pause = retry.next(&unavailable(None)).unwrap();
            assert!(
                (SHORTEST_PAUSE..=LONGEST_PAUSE).contains(&pause),
                "{pause:?}"
            );
        }
    }

    #[test]
    fn a_demanded_wait_counts_no_retry_but_has_an_end() {
        let mut retry = Retry::new(0);
        assert_eq!(
            retry.next(&unavailable(Some(100))),
            Some(Duration::from_secs(100))
        );
        assert_eq!(retry.next(&unavailable(Some(0))), Some(SHORTEST_WAIT));
        assert_eq!(
            retry.next(&unavailable(Some(199))),
            Some(Duration::from_secs(199))
        );
        assert_eq!(retry.next(&unavailable(Some(1))), None);
        assert_eq!(Retry::new(9).next(&unavailable(Some(301))), None);
    }
}
