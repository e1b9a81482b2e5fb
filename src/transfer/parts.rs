//! Which bytes of a blob are asked for next, and how many at a time. Pure arithmetic.

use std::{collections::VecDeque, ops::Range, time::Duration};

use crate::registry::{ENOUGH, FAR, NEAR};

const MIB: u64 = 1024 * 1024;

/// A blob up to this size comes in one piece (registry rule D9): 64 MiB and a rest that is not worth a round trip.
const ONE_PIECE: u64 = 64 * MIB + SMALLEST;

/// The part of a blob that is asked for before anything is known about the way.
const FIRST: u64 = 4 * MIB;

/// Each part costs a round trip in which its connection is idle; this small it still is less than a tenth of the time on a
/// loopback or in a data centre, and the hash stays close behind.
const SMALLEST: u64 = 4 * MIB;

/// More gains nothing, and the end of the blob would wait for one connection.
const LARGEST: u64 = 64 * MIB;

/// A part takes this many times as long as the idle round trip before it. More would save little where the connections fill
/// the link together, and leave more to be hashed and sent on when the last byte is here: parts come side by side.
const ROUND_TRIPS: f64 = 8.0;

/// Near the end of a blob parts get smaller, down to this, so that all connections end together.
const LAST: u64 = 2 * MIB;

/// So long a connection is watched before it is judged.
const JUDGED_AFTER: Duration = Duration::from_millis(250);

/// Connections for one blob. How many a registry bears is its limiter's business; this bounds what we hold: a fast connection
/// has buffers of about a megabyte.
const SHARED_BY: usize = 8;
const SEVERAL: usize = 16;
const MANY: usize = 32;

/// What of a blob nobody has asked for yet.
#[derive(Debug)]
pub(super) struct Parts {
    rest: VecDeque<Range<u64>>,
    is_one_piece: bool,
    way: Way,
    pace: Option<Pace>,
}

/// How a blob comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Nobody knows yet.
    Unknown,
    /// From near: through one connection, in order.
    Near,
    /// From near, but one connection is slow: through some.
    Shared,
    /// From some way off: through several.
    Distant,
    /// From afar: through many.
    Far,
}

/// What the connections of this blob reach.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// Until the first byte of an answer, in seconds.
    round_trip: f64,
    /// Bytes per second of one connection.
    rate: f64,
}

/// What is kept of an older measurement when a new one comes in.
const MEMORY: f64 = 0.7;

impl Parts {
    /// The missing ranges of a blob of this size.
    pub(super) fn new(size: u64, missing: Vec<Range<u64>>) -> Self {
        Self {
            rest: missing.into(),
            is_one_piece: size <= ONE_PIECE,
            way: Way::Unknown,
            pace: None,
        }
    }

    /// Learns from the first byte of an answer how long the way is.
    pub(super) fn begun(&mut self, first_byte: Duration) {
        if self.way == Way::Unknown {
            self.way = if first_byte < NEAR {
                Way::Near
            } else if first_byte < FAR {
                Way::Distant
            } else {
                Way::Far
            };
        }
    }

    /// How many connections may bring parts at once.
    pub(super) const fn at_once(&self) -> usize {
        match self.way {
            Way::Unknown | Way::Near => 1,
            Way::Shared => SHARED_BY,
            Way::Distant => SEVERAL,
            Way::Far => MANY,
        }
    }

    /// Whether one connection is to bring it all.
    fn is_near(&self) -> bool {
        self.way == Way::Near
    }

    /// Where a part of which `bytes` came is to end, having waited so long for them while there were so many connections. One
    /// that is to bring it all goes on as long as they are fast; else others get the rest.
    pub(super) fn end(
        &mut self,
        part: &Range<u64>,
        bytes: u64,
        waited: Duration,
        connections: usize,
    ) -> u64 {
        if self.is_one_piece || !self.is_near() || waited < JUDGED_AFTER {
            return part.end;
        }
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let is_fast = bytes as f64 * connections as f64 >= ENOUGH as f64 * waited.as_secs_f64();
        if is_fast {
            return part.end;
        }
        let end = part.start + bytes + SMALLEST;
        if part.end < end + SMALLEST {
            return part.end;
        }
        self.way = Way::Shared;
        end
    }

    /// The next part, from the front: the hash follows from there. `at_work` others are on their way.
    pub(super) fn take(&mut self, at_work: usize) -> Option<Range<u64>> {
        let length = if self.is_one_piece || self.is_near() {
            u64::MAX
        } else {
            self.length().min(self.share(at_work))
        };
        let first = self.rest.front_mut()?;
        let end = first.start.saturating_add(length).min(first.end);
        // A rest that is not worth a round trip comes along.
        let end = if first.end - end < LAST {
            first.end
        } else {
            end
        };
        let part = first.start..end;
        first.start = end;
        if first.is_empty() {
            self.rest.pop_front();
        }
        Some(part)
    }

    /// Takes back what did not come.
    pub(super) fn give_back(&mut self, part: Range<u64>) {
        if part.is_empty() {
            return;
        }
        let place = self.rest.partition_point(|rest| rest.start < part.start);
        self.rest.insert(place, part);
    }

    /// Where the next part begins, if there is one.
    pub(super) fn next(&self) -> Option<u64> {
        self.rest.front().map(|range| range.start)
    }

    /// Learns from a part that came.
    pub(super) fn note(&mut self, bytes: u64, first_byte: Duration, whole: Duration) {
        let transfer = whole.saturating_sub(first_byte).as_secs_f64().max(1e-6);
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let new = Pace {
            round_trip: first_byte.as_secs_f64(),
            rate: bytes as f64 / transfer,
        };
        let mix = |old: f64, new: f64| old.mul_add(MEMORY, new * (1.0 - MEMORY));
        self.pace = Some(self.pace.map_or(new, |old| Pace {
            round_trip: mix(old.round_trip, new.round_trip),
            rate: mix(old.rate, new.rate),
        }));
    }

    /// Half of what each connection has left to bring.
    fn share(&self, at_work: usize) -> u64 {
        let rest: u64 = self.rest.iter().map(|range| range.end - range.start).sum();
        (rest / (2 * (at_work as u64 + 1))).max(LAST)
    }

    /// How long a part is worth being.
    fn length(&self) -> u64 {
        let Some(Pace { round_trip, rate }) = self.pace else {
            return FIRST;
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "positive, and bounded right after"
        )]
        let worth = (round_trip * rate * ROUND_TRIPS) as u64;
        worth.clamp(SMALLEST, LARGEST)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(size: u64) -> Vec<Range<u64>> {
        std::iter::once(0..size).collect()
    }

    #[test]
    fn a_blob_of_common_size_comes_in_one_piece() {
        let mut parts = Parts::new(ONE_PIECE, whole(ONE_PIECE));
        assert_eq!(parts.take(0), Some(0..ONE_PIECE));
        assert_eq!(parts.take(0), None);
    }

    #[test]
    fn parts_grow_with_the_length_of_the_way() {
        let size = 1024 * MIB;
        for (milliseconds, mib_per_second, expected) in
            [(1, 100, 4), (40, 20, 6), (150, 8, 9), (150, 60, 64)]
        {
            let mut parts = Parts::new(size, whole(size));
            let first_byte = Duration::from_millis(milliseconds);
            parts.note(
                mib_per_second * MIB,
                first_byte,
                first_byte + Duration::from_secs(1),
            );
            let part = parts.take(0).unwrap();
            assert_eq!((part.end - part.start) / MIB, expected);
        }
    }

    #[test]
    fn a_blob_from_near_comes_through_one_connection_as_long_as_that_is_fast() {
        let size = 1024 * MIB;
        let second = Duration::from_secs(1);
        // Bytes in a second through one connection, how many connections there are, and whether they are left alone.
        for (mib, connections, is_fast) in [(100, 1, true), (99, 1, false), (25, 4, true)] {
            let mut parts = Parts::new(size, whole(size));
            let first = parts.take(0).unwrap();
            assert_eq!(first, 0..FIRST);
            parts.begun(NEAR / 2);
            let rest = parts.take(0).unwrap();
            assert_eq!(rest, FIRST..size);
            let early = parts.end(&rest, 1, JUDGED_AFTER / 2, 1);
            assert_eq!((early, parts.is_near()), (size, true));
            let end = parts.end(&rest, mib * MIB, second, connections);
            assert_eq!(parts.at_once(), if is_fast { 1 } else { SHARED_BY });
            let shortened = FIRST + mib * MIB + SMALLEST;
            assert_eq!(end, if is_fast { size } else { shortened });
        }
    }

    #[test]
    fn a_blob_from_afar_comes_through_many_and_the_last_bytes_are_not_worth_another() {
        let size = 100 * MIB;
        let mut parts = Parts::new(size, whole(size));
        parts.begun(NEAR);
        parts.begun(Duration::ZERO);
        assert_eq!(parts.at_once(), SEVERAL);
        let mut parts = Parts::new(size, whole(size));
        parts.begun(FAR);
        assert_eq!(parts.at_once(), MANY);
        let mut parts = Parts::new(size, whole(size));
        parts.begun(Duration::ZERO);
        let all = parts.take(0).unwrap();
        let slow = parts.end(&all, size - 2 * SMALLEST + 1, 10 * JUDGED_AFTER, 1);
        assert_eq!((slow, parts.is_near()), (size, true));
        let slow = parts.end(&all, size - 2 * SMALLEST, 100 * JUDGED_AFTER, 1);
        assert_eq!((slow, parts.is_near()), (size - SMALLEST, false));
    }

    #[test]
    fn a_blob_in_one_piece_is_never_divided() {
        let mut parts = Parts::new(ONE_PIECE, whole(ONE_PIECE));
        parts.begun(Duration::ZERO);
        let all = parts.take(0).unwrap();
        assert_eq!(parts.end(&all, 1, 10 * JUDGED_AFTER, 1), ONE_PIECE);
    }

    #[test]
    fn the_last_parts_are_small_so_that_all_connections_end_together() {
        let size = 64 * MIB + SMALLEST + 1;
        let mut parts = Parts::new(size, whole(size));
        parts.begun(NEAR);
        let mut lengths = Vec::new();
        while let Some(part) = parts.take(15) {
            lengths.push((part.end - part.start) / LAST);
        }
        assert_eq!(lengths.first(), Some(&1), "{lengths:?}");
        // The last one takes along what is not worth a round trip.
        assert_eq!(lengths.len() as u64, size / LAST - 1);
        let mut parts = Parts::new(4 * size, whole(4 * size));
        assert_eq!(parts.take(15), Some(0..FIRST));
    }

    #[test]
    fn what_did_not_come_is_asked_for_first_again() {
        let size = 100 * MIB;
        let mut parts = Parts::new(size, whole(size));
        let (first, _second) = (parts.take(0).unwrap(), parts.take(0).unwrap());
        parts.give_back(first.start + 5..first.end);
        assert_eq!(parts.take(0), Some(first.start + 5..first.end));
    }

    proptest! {
        #[test]
        fn every_byte_is_asked_for_exactly_once(
            size in 0..400 * MIB,
            kept in proptest::collection::vec((0..400 * MIB, 0..50 * MIB), 0..4),
            notes in proptest::collection::vec((0_u64..500, 0_u64..200), 0..10),
        ) {
            let mut missing = whole(size);
            for (start, length) in kept {
                missing = missing.into_iter().flat_map(|range| {
                    let (low, high) = (start.clamp(range.start, range.end), (start + length).clamp(range.start, range.end));
                    [range.start..low, high..range.end]
                }).filter(|range| !range.is_empty()).collect();
            }
            let mut parts = Parts::new(size, missing.clone());
            let mut notes = notes.into_iter().cycle();
            let mut asked = Vec::new();
            while let Some(part) = parts.take(0) {
                prop_assert!(!part.is_empty());
                if let Some((latency, rate)) = notes.next() {
                    let latency = Duration::from_millis(latency);
                    parts.note(rate * MIB, latency, latency + Duration::from_secs(1));
                    if rate % 3 == 0 {
                        let middle = part.start.midpoint(part.end);
                        parts.give_back(middle + 1..part.end);
                        asked.push(part.start..(middle + 1).min(part.end));
                        continue;
                    }
                }
                asked.push(part);
            }
            prop_assert_eq!(parts.next(), None);
            asked.sort_by_key(|part| part.start);
            let mut joined: Vec<Range<u64>> = Vec::new();
            for part in asked {
                match joined.last_mut() {
                    Some(last) if last.end == part.start => last.end = part.end,
                    Some(last) => { prop_assert!(last.end < part.start); joined.push(part); }
                    None => joined.push(part),
                }
            }
            prop_assert_eq!(joined, missing);
        }
    }
}
