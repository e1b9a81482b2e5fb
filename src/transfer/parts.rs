//! Which bytes of a blob are asked for next, and how many at a time. Pure arithmetic.

use std::{collections::VecDeque, ops::Range, time::Duration};

const MIB: u64 = 1024 * 1024;

/// A blob up to this size comes in one piece (registry rule D9).
const ONE_PIECE: u64 = 64 * MIB;

/// The part of a blob that is asked for before anything is known about the way.
const FIRST: u64 = 8 * MIB;

/// Each part costs a round trip in which its connection is idle; this small it still is less than a tenth of the time on a
/// loopback or in a data centre, and the hash stays close behind.
const SMALLEST: u64 = 4 * MIB;

/// More gains nothing, and the end of the blob would wait for one connection.
const LARGEST: u64 = 64 * MIB;

/// A part takes this many times as long as the idle round trip before it.
const ROUND_TRIPS: f64 = 20.0;

/// What of a blob nobody has asked for yet.
#[derive(Debug)]
pub(super) struct Parts {
    rest: VecDeque<Range<u64>>,
    is_one_piece: bool,
    pace: Option<Pace>,
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
            pace: None,
        }
    }

    /// The next part, from the front: the hash follows from there.
    pub(super) fn take(&mut self) -> Option<Range<u64>> {
        let length = if self.is_one_piece {
            u64::MAX
        } else {
            self.length()
        };
        let first = self.rest.front_mut()?;
        let end = first.start.saturating_add(length).min(first.end);
        // A rest that is not worth a round trip comes along.
        let end = if first.end - end < SMALLEST {
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
        assert_eq!(parts.take(), Some(0..ONE_PIECE));
        assert_eq!(parts.take(), None);
    }

    #[test]
    fn parts_grow_with_the_length_of_the_way() {
        let size = 1024 * MIB;
        for (milliseconds, mib_per_second, expected) in
            [(1, 100, 4), (40, 8, 6), (150, 4, 12), (150, 40, 64)]
        {
            let mut parts = Parts::new(size, whole(size));
            let first_byte = Duration::from_millis(milliseconds);
            parts.note(
                mib_per_second * MIB,
                first_byte,
                first_byte + Duration::from_secs(1),
            );
            let part = parts.take().unwrap();
            assert_eq!((part.end - part.start) / MIB, expected);
        }
    }

    #[test]
    fn what_did_not_come_is_asked_for_first_again() {
        let size = 100 * MIB;
        let mut parts = Parts::new(size, whole(size));
        let (first, _second) = (parts.take().unwrap(), parts.take().unwrap());
        parts.give_back(first.start + 5..first.end);
        assert_eq!(parts.take(), Some(first.start + 5..first.end));
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
            while let Some(part) = parts.take() {
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
