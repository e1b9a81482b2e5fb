//! How many connections a registry bears, learned from how fast bytes come and from what it refuses (registry rule P13).
//! Nothing here waits or looks at a clock: [`limiter`](super::limiter) does.

use std::time::Duration;

use tokio::time::Instant;

/// Beyond it no link gets faster, and each connection costs memory.
const MOST: usize = 64;

/// Over less the bytes of a window say more about buffers than about the way.
const SHORTEST_WINDOW: Duration = Duration::from_millis(100);

/// So many percent have to come through twice the connections for the next doubling: more than windows differ by chance.
const WORTHWHILE_PERCENT: u64 = 115;

/// Over a way this long a connection needs a second until it is fast: twice as many begin.
pub const FAR: Duration = Duration::from_millis(100);

/// Through a window of 3 MiB, which is what Linux offers by default, one connection fills 1 Gbit/s over a way as long as this.
pub const NEAR: Duration = Duration::from_millis(20);

/// What the connections there are must reach to be left alone, in bytes per second: about what a link of 1 Gbit/s carries.
pub const ENOUGH: u64 = 100 * 1024 * 1024;

/// Begin at a registry that is near: more take memory, half a megabyte each and more, and bring nothing.
const FROM_NEAR: usize = 8;

/// One connection more after each such time without a refusal (P13), or all that were taken away after a long one: a bad
/// hour of a registry is not to slow down the next day.
const STEP_PAUSE: Duration = Duration::from_secs(8);

/// How many connections there may be at once.
#[derive(Debug)]
pub(super) struct ConnectionLimit {
    limit: usize,
    /// What it began with.
    first: usize,
    phase: Phase,
    /// How long a request takes until its first byte comes, smoothed.
    round_trip: Duration,
    /// Whether any request was answered from near: under load not all are.
    is_near: bool,
    refused: Option<Refused>,
}

/// The last refusal that counted.
#[derive(Debug, Clone, Copy)]
struct Refused {
    at: Instant,
    /// Whether there may have been several connections.
    had_several: bool,
}

#[derive(Debug)]
enum Phase {
    /// Twice as many, as long as that brings more.
    Doubling {
        /// Since when the limit is what it is.
        since: Instant,
        /// What came through before the last doubling.
        before: Option<Measured>,
        /// What came through in the window before this one, in bytes per second.
        last: Option<u64>,
        window: Option<Window>,
    },
    /// One more now and then.
    Creeping { next: Instant },
}

/// What came through so many connections.
#[derive(Debug, Clone, Copy)]
struct Measured {
    limit: usize,
    bytes_per_second: u64,
}

/// A time over which bytes are counted.
#[derive(Debug)]
struct Window {
    began: Instant,
    bytes: u64,
}

impl ConnectionLimit {
    pub(super) const fn new(connections: usize, now: Instant) -> Self {
        Self {
            limit: connections,
            first: connections,
            phase: Phase::Doubling {
                since: now,
                before: None,
                last: None,
                window: None,
            },
            round_trip: Duration::ZERO,
            is_near: false,
            refused: None,
        }
    }

    /// The limit as it is now.
    pub(super) const fn get(&self) -> usize {
        self.limit
    }

    /// Something was answered so soon, be it no blob.
    pub(super) fn answered(&mut self, took: Duration) {
        if self.is_near || took >= NEAR {
            return;
        }
        self.is_near = true;
        // What was learned since it began counts for more.
        let is_new = matches!(self.phase, Phase::Doubling { before: None, .. });
        if is_new && self.limit == self.first {
            self.limit = self.limit.min(FROM_NEAR);
        }
    }

    /// The first byte came of what was asked for at `asked`. What comes is counted from here on if that was since the last
    /// change: before, the connections it brought were still being made.
    pub(super) fn begun(&mut self, asked: Instant, now: Instant) {
        let took = now.saturating_duration_since(asked);
        let is_first = self.round_trip.is_zero();
        self.round_trip = if is_first {
            took
        } else {
            (self.round_trip * 7 + took) / 8
        };
        if let Phase::Doubling { since, window, .. } = &mut self.phase
            && asked >= *since
        {
            // A single one is meant.
            if is_first && took >= FAR && self.limit > 1 {
                self.limit = (self.limit * 2).min(MOST);
            }
            window.get_or_insert(Window {
                began: now,
                bytes: 0,
            });
        }
    }

    /// Bytes came or went. `wanted` tells whether somebody waits for a connection: as long as nobody does, more of them are
    /// of no use.
    pub(super) fn moved(&mut self, bytes: usize, wanted: bool, now: Instant) {
        let round_trip = self.shortest_round_trip();
        let is_near = self.is_near;
        match &mut self.phase {
            Phase::Doubling {
                window: Some(window),
                last,
                ..
            } => {
                window.bytes += bytes as u64;
                let elapsed = now.saturating_duration_since(window.began);
                if elapsed < round_trip {
                    return;
                }
                let milliseconds = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
                let rate = window.bytes * 1000 / milliseconds.max(1);
                let is_enough = is_near && rate >= ENOUGH;
                // A connection gets faster with each of its first round trips: as long as more comes through the same ones,
                // nobody knows what they bring.
                let is_steady = last.is_some_and(|last| !is_more(rate, last));
                if wanted && is_steady && !is_enough {
                    self.judge(rate, now);
                } else {
                    *last = Some(rate);
                    *window = Window {
                        began: now,
                        bytes: 0,
                    };
                }
            }
            Phase::Creeping { next } if wanted && now >= *next => {
                let late = now.saturating_duration_since(*next).as_secs() / STEP_PAUSE.as_secs();
                let steps = usize::try_from(late).map_or(MOST, |late| late.min(MOST) + 1);
                let most = self.first.max(self.limit + 1).min(MOST);
                self.limit = (self.limit + steps).min(most);
                *next = now + STEP_PAUSE;
            }
            Phase::Doubling { window: None, .. } | Phase::Creeping { .. } => {}
        }
    }

    /// Doubles if the last doubling was worth it, else takes it back: fewer connections bring as much.
    fn judge(&mut self, bytes_per_second: u64, now: Instant) {
        let Phase::Doubling { before, .. } = self.phase else {
            return;
        };
        let stays = match before {
            Some(before) if !is_more(bytes_per_second, before.bytes_per_second) => {
                Some(before.limit)
            }
            _ if self.limit >= MOST => Some(self.limit),
            _ => None,
        };
        if let Some(limit) = stays {
            self.limit = limit;
            self.phase = Phase::Creeping {
                next: now + STEP_PAUSE,
            };
            return;
        }
        self.phase = Phase::Doubling {
            since: now,
            before: Some(Measured {
                limit: self.limit,
                bytes_per_second,
            }),
            last: None,
            window: None,
        };
        self.limit = (self.limit * 2).min(MOST);
    }

    /// The registry refused, since too much was asked of it. Refusals of one moment count once: they were all asked before
    /// the first of them was known. Whether there may have been several connections at that moment: then fewer may help.
    pub(super) fn refused(&mut self, now: Instant) -> bool {
        self.phase = Phase::Creeping {
            next: now + STEP_PAUSE,
        };
        if let Some(last) = self.refused
            && now.saturating_duration_since(last.at) < self.shortest_round_trip()
        {
            return last.had_several;
        }
        let had_several = self.limit > 1;
        self.refused = Some(Refused {
            at: now,
            had_several,
        });
        self.limit = (self.limit / 2).max(1);
        had_several
    }

    fn shortest_round_trip(&self) -> Duration {
        self.round_trip.max(SHORTEST_WINDOW)
    }
}

/// Whether what comes through has grown by more than chance.
const fn is_more(now: u64, before: u64) -> bool {
    now.saturating_mul(100) >= before.saturating_mul(WORTHWHILE_PERCENT)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A registry at some distance whose link takes so much, and each of whose connections gives so much.
    struct Link {
        round_trip: Duration,
        per_connection: u64,
        most: u64,
    }

    impl Link {
        /// Runs the limit for a while with more to do than it lets through; the limits it took, in order.
        fn run(&self, limit: &mut ConnectionLimit, seconds: u64, start: Instant) -> Vec<usize> {
            const TICK: Duration = Duration::from_millis(10);
            let mut seen = vec![limit.get()];
            let mut now = start;
            let mut changed = start;
            while now < start + Duration::from_secs(seconds) {
                now += TICK;
                if now == changed + self.round_trip {
                    limit.begun(changed, now);
                }
                let flowing = if now < changed + self.round_trip && seen.len() > 1 {
                    seen[seen.len() - 2]
                } else {
                    limit.get()
                };
                let bytes = (flowing as u64 * self.per_connection).min(self.most) / 100;
                limit.moved(usize::try_from(bytes).unwrap(), true, now);
                if limit.get() != *seen.last().unwrap() {
                    seen.push(limit.get());
                    changed = now;
                }
            }
            seen
        }
    }

    #[test]
    fn connections_double_until_they_bring_no_more() {
        for (start, milliseconds, per_connection, most, expected) in [
            // Every connection brings its share, up to the most there may be.
            (16, 150, 1, 1000, vec![16, 32, 64]),
            (4, 40, 1, 1000, vec![4, 8, 16, 32, 64]),
            // The link is full: the doubling that brought nothing is taken back.
            (16, 40, 10, 100, vec![16, 32, 16]),
            (4, 40, 10, 100, vec![4, 8, 16, 32, 16]),
            // Just enough more, and just too little.
            (4, 40, 100, 400 * 116 / 100, vec![4, 8, 16, 8]),
            (4, 40, 100, 400 * 114 / 100, vec![4, 8, 4]),
        ] {
            let now = Instant::now();
            let mut limit = ConnectionLimit::new(start, now);
            let link = Link {
                round_trip: Duration::from_millis(milliseconds),
                per_connection: per_connection * 1_000_000,
                most: most * 1_000_000,
            };
            assert_eq!(link.run(&mut limit, 5, now), expected);
        }
    }

    #[test]
    fn from_afar_twice_as_many_begin_unless_one_alone_is_meant() {
        let now = Instant::now();
        for (first, milliseconds, expected) in
            [(16, 99, 16), (16, 100, 32), (64, 100, 64), (1, 100, 1)]
        {
            let mut limit = ConnectionLimit::new(first, now);
            for _ in 0..3 {
                limit.begun(now, now + Duration::from_millis(milliseconds));
            }
            assert_eq!(limit.get(), expected);
        }
    }

    #[test]
    fn a_registry_that_is_near_gets_eight_and_more_only_while_they_are_slow() {
        let now = Instant::now();
        for (first, milliseconds, per_connection, expected) in [
            (16, 10, 20, vec![8]),
            (16, 10, 5, vec![8, 16, 32]),
            (16, 20, 5, vec![16, 32]),
            (4, 10, 30, vec![4]),
        ] {
            let mut limit = ConnectionLimit::new(first, now);
            let round_trip = Duration::from_millis(milliseconds);
            limit.answered(Duration::from_secs(1));
            assert_eq!(limit.get(), first);
            limit.answered(round_trip);
            let link = Link {
                round_trip,
                per_connection: per_connection * 1_000_000,
                most: 1_000_000_000,
            };
            let seen = link.run(&mut limit, 2, now);
            assert_eq!(seen[..expected.len().min(seen.len())], expected);
        }
    }

    #[test]
    fn a_near_answer_changes_nothing_that_was_learned() {
        let now = Instant::now();
        let mut far = ConnectionLimit::new(16, now);
        far.begun(now, now + FAR);
        far.answered(Duration::ZERO);
        assert_eq!(far.get(), 32);
        let mut refused = ConnectionLimit::new(64, now);
        refused.refused(now);
        refused.answered(Duration::ZERO);
        assert_eq!(refused.get(), 32);
    }

    #[test]
    fn what_comes_is_compared_once_the_connections_are_as_fast_as_they_get() {
        let now = Instant::now();
        let mut limit = ConnectionLimit::new(16, now);
        limit.begun(now, now);
        let mut seen = Vec::new();
        // Each window brings twice as much as the one before, then as much.
        for (window, bytes) in [1, 2, 4, 8, 8].into_iter().enumerate() {
            let window = u32::try_from(window + 1).unwrap();
            limit.moved(bytes << 20, true, now + SHORTEST_WINDOW * window);
            seen.push(limit.get());
        }
        assert_eq!(seen, [16, 16, 16, 16, 32]);
    }

    #[test]
    fn a_connection_is_added_after_each_quiet_while() {
        let now = Instant::now();
        let mut limit = ConnectionLimit::new(16, now);
        limit.refused(now);
        let link = Link {
            round_trip: Duration::from_millis(40),
            per_connection: 1,
            most: 1000,
        };
        assert_eq!(link.run(&mut limit, 25, now), [8, 9, 10, 11]);
    }

    #[test]
    fn what_a_bad_spell_took_comes_back_with_the_quiet_time_after_it() {
        for (quiet, expected) in [(7, 1), (8, 2), (15, 2), (16, 3), (3600, 16)] {
            let start = Instant::now();
            let mut limit = ConnectionLimit::new(16, start);
            let mut now = start;
            while limit.get() > 1 {
                limit.refused(now);
                now += SHORTEST_WINDOW;
            }
            now = now - SHORTEST_WINDOW + Duration::from_secs(quiet);
            limit.moved(1, true, now);
            assert_eq!(limit.get(), expected, "{quiet} s");
            limit.moved(1, true, now + STEP_PAUSE);
            assert_eq!(limit.get(), expected.max(1) + 1, "{quiet} s");
        }
    }

    #[test]
    fn what_nobody_waits_for_is_not_added() {
        let start = Instant::now();
        let mut limit = ConnectionLimit::new(16, start);
        limit.begun(start, start);
        for second in 1..100 {
            limit.moved(1 << 20, false, start + Duration::from_secs(second));
        }
        assert_eq!(limit.get(), 16);
        limit.refused(start);
        for second in 1..100 {
            limit.moved(1 << 20, false, start + Duration::from_secs(second));
        }
        assert_eq!(limit.get(), 8);
    }

    #[test]
    fn refusals_of_one_moment_count_once_and_one_connection_is_left() {
        let start = Instant::now();
        let mut limit = ConnectionLimit::new(16, start);
        limit.begun(start, start + Duration::from_millis(90));
        let mut seen = Vec::new();
        for milliseconds in (0..2000).step_by(50) {
            let had_several = limit.refused(start + Duration::from_millis(milliseconds));
            seen.push((limit.get(), had_several));
        }
        seen.dedup();
        assert_eq!(
            seen,
            [(8, true), (4, true), (2, true), (1, true), (1, false)]
        );
    }

    #[derive(Debug, Clone)]
    enum Event {
        Answered(u64),
        Begun(u64),
        Moved(usize, bool),
        Refused,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (0_u64..50).prop_map(Event::Answered),
            (0_u64..1000).prop_map(Event::Begun),
            (0_usize..1 << 22, any::<bool>())
                .prop_map(|(bytes, wanted)| Event::Moved(bytes, wanted)),
            Just(Event::Refused),
        ]
    }

    proptest! {
        /// Whatever happens: there is always one connection, never too many, never more than twice as many as before beyond what
        /// it began with, and fewer only by half after a refusal, from near, or back to what was enough.
        #[test]
        fn the_limit_stays_within_its_bounds(
            first in 1_usize..=MOST,
            events in prop::collection::vec((0_u64..500, event()), 0..500),
        ) {
            let mut now = Instant::now();
            let mut limit = ConnectionLimit::new(first, now);
            for (milliseconds, event) in events {
                let asked = now;
                now += Duration::from_millis(milliseconds);
                let before = limit.get();
                match event {
                    Event::Answered(took) => {
                        limit.answered(Duration::from_millis(took));
                        prop_assert!(limit.get() == before || limit.get() == FROM_NEAR);
                    }
                    Event::Begun(earlier) => {
                        limit.begun(asked.checked_sub(Duration::from_millis(earlier)).unwrap(), now);
                        let doubled = earlier + milliseconds >= 100 && limit.get() == (before * 2).min(MOST);
                        prop_assert!(limit.get() == before || doubled);
                    }
                    Event::Moved(bytes, wanted) => {
                        limit.moved(bytes, wanted, now);
                        prop_assert!(wanted || limit.get() == before);
                    }
                    Event::Refused => {
                        let had_several = limit.refused(now);
                        prop_assert!(had_several || before == 1);
                        prop_assert!(limit.get() <= before);
                    }
                }
                prop_assert!((1..=MOST).contains(&limit.get()));
                prop_assert!(limit.get() <= first.max(before * 2));
                prop_assert!(limit.get() >= before / 2 || limit.get() == FROM_NEAR);
            }
        }
    }
}
