//! Which part of a blob an answer brings, by its `Content-Range` (RFC 9110, 14.4).

use std::ops::Range;

use http::{HeaderMap, header};

/// `bytes 0-9/100`: which bytes, and of how many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ContentRange {
    pub(super) bytes: Range<u64>,
    /// Unknown where a star stands.
    pub(super) total: Option<u64>,
}

impl ContentRange {
    /// What the headers say; nothing where they say nothing that makes sense.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(header::CONTENT_RANGE).iter();
        let value = values.next()?.to_str().ok()?;
        if values.next().is_some() {
            return None;
        }
        Self::parse(value)
    }

    fn parse(value: &str) -> Option<Self> {
        let (unit, rest) = value.trim().split_once(' ')?;
        if !unit.eq_ignore_ascii_case("bytes") {
            return None;
        }
        let (bytes, total) = rest.trim().split_once('/')?;
        let (first, last) = bytes.split_once('-')?;
        let bytes = number(first)?..number(last)?.checked_add(1)?;
        let total = match total {
            "*" => None,
            total => Some(number(total)?),
        };
        (!bytes.is_empty() && total.is_none_or(|total| bytes.end <= total))
            .then_some(Self { bytes, total })
    }

    /// Whether this is what was asked for, of a blob of that size; it may be less of it, but from the same beginning.
    pub(super) fn answers(&self, asked: &Range<u64>, size: u64) -> bool {
        self.bytes.start == asked.start
            && self.bytes.end <= asked.end
            && self.total.is_none_or(|total| total == size)
    }
}

/// Digits only: `u64::from_str` would take a sign too.
fn number(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_makes_sense_is_a_range() {
        for (value, expected) in [
            ("bytes 0-9/100", Some((0..10, Some(100)))),
            ("Bytes  5-5/6 ", Some((5..6, Some(6)))),
            ("bytes 5-9/*", Some((5..10, None))),
            ("bytes 9-5/100", None),
            ("bytes 5-9/9", None),
            ("bytes */100", None),
            ("bytes 0-18446744073709551615/*", None),
            ("bytes -5-9/100", None),
            ("bytes +5-9/100", None),
            ("bytes=0-9/100", None),
            ("chunks 0-9/100", None),
            ("", None),
        ] {
            let expected = expected.map(|(bytes, total)| ContentRange { bytes, total });
            assert_eq!(ContentRange::parse(value), expected, "{value}");
        }
    }

    #[test]
    fn two_ranges_are_none() {
        let mut headers = HeaderMap::new();
        headers.append(header::CONTENT_RANGE, "bytes 0-9/100".parse().unwrap());
        assert!(ContentRange::of(&headers).is_some());
        headers.append(header::CONTENT_RANGE, "bytes 0-9/100".parse().unwrap());
        assert_eq!(ContentRange::of(&headers), None);
    }

    #[test]
    fn an_answer_begins_where_it_was_asked_to_and_is_not_longer() {
        for (value, answers) in [
            ("bytes 10-19/100", true),
            ("bytes 10-19/*", true),
            ("bytes 10-14/100", true),
            ("bytes 10-20/100", false),
            ("bytes 11-19/100", false),
            ("bytes 9-19/100", false),
            ("bytes 10-19/101", false),
        ] {
            let range = ContentRange::parse(value).unwrap();
            assert_eq!(range.answers(&(10..20), 100), answers, "{value}");
        }
    }
}
