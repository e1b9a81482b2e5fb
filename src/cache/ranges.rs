//! A set of byte ranges: which parts of a blob are there. Pure.

use std::{collections::BTreeMap, ops::Range};

/// Ranges that neither overlap nor touch: start to end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Adds a range, joining it with those it overlaps or touches.
    pub(super) fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let Range { mut start, mut end } = range;
        if let Some((&before, &its_end)) = self.0.range(..=start).next_back()
            && its_end >= start
        {
            start = before;
            end = end.max(its_end);
        }
        while let Some((&next, &its_end)) = self.0.range(start..=end).next() {
            end = end.max(its_end);
            self.0.remove(&next);
        }
        self.0.insert(start, end);
    }

    /// The end of the range that holds `position`; `position` itself if none does.
    pub(super) fn end_from(&self, position: u64) -> u64 {
        match self.0.range(..=position).next_back() {
            Some((_, &end)) => end.max(position),
            None => position,
        }
    }

    /// What is missing of a range, in order.
    pub(super) fn gaps(&self, within: Range<u64>) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut position = self.end_from(within.start);
        for (&start, &end) in self.0.range(within.start..within.end) {
            if start > position {
                gaps.push(position..start);
            }
            position = position.max(end);
        }
        if position < within.end {
            gaps.push(position..within.end);
        }
        gaps
    }

    /// How many bytes all of them have.
    pub(super) fn total(&self) -> u64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The ranges in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.0.iter().map(|(&start, &end)| start..end)
    }
}

impl FromIterator<Range<u64>> for Ranges {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(ranges: I) -> Self {
        let mut set = Self::default();
        for range in ranges {
            set.insert(range);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_set_of_ranges_is_a_set_of_positions(ranges in prop::collection::vec((0_u64..60, 0_u64..20), 0..12)) {
            let mut marks = [false; 80];
            let mut set = Ranges::default();
            for (start, length) in ranges {
                set.insert(start..start + length);
                for position in start..start + length {
                    marks[usize::try_from(position).unwrap()] = true;
                }
            }
            prop_assert_eq!(set.total(), marks.iter().filter(|mark| **mark).count() as u64);
            let mut missing = [false; 80];
            for gap in set.gaps(0..80) {
                prop_assert!(!gap.is_empty());
                for position in gap {
                    missing[usize::try_from(position).unwrap()] = true;
                }
            }
            for position in 0..80 {
                prop_assert_eq!(marks[position], !missing[position]);
                let end = marks[position..].iter().take_while(|mark| **mark).count() + position;
                prop_assert_eq!(set.end_from(position as u64), end as u64);
            }
            // Joined, so that as few as possible are noted.
            let all: Vec<_> = set.iter().collect();
            prop_assert!(all.windows(2).all(|pair| pair[0].end < pair[1].start));
            prop_assert_eq!(all.into_iter().collect::<Ranges>(), set);
        }

        #[test]
        fn gaps_stay_within_what_was_asked(start in 0_u64..40, length in 0_u64..40, hole in 0_u64..40) {
            let set: Ranges = [0..hole, hole + 1..60].into_iter().collect();
            let gaps = set.gaps(start..start + length);
            let expected: Vec<_> = (start..start + length)
                .filter(|position| *position == hole || *position >= 60)
                .collect();
            prop_assert_eq!(gaps.into_iter().flatten().collect::<Vec<_>>(), expected);
        }
    }
}
