//! Durations as users write them: `90s`, `30m`, `1h30m`. The grammar is that of the rule on `spec.interval` (operator rule
//! G1), so that a file for `sync` and an object in the cluster mean the same.

use std::time::Duration;

/// Digits a number may have before and after the point; the rule in the CRD says the same.
const MAX_DIGITS: usize = 6;

/// Reads `[0-9]{1,6}(.[0-9]{1,6})?(ms|s|m|h)`, repeated; `None` when `text` is anything else.
pub fn parse_duration(text: &str) -> Option<Duration> {
    if text.is_empty() {
        return None;
    }
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let (whole, after) = digits(rest)?;
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => digits(after)?,
            None => ("", after),
        };
        let (unit_nanoseconds, after) = unit(after)?;
        sum = sum.checked_add(scaled(whole, fraction, unit_nanoseconds)?)?;
        rest = after;
    }
    Some(sum)
}

/// One to six digits at the start of `text`, and what follows.
fn digits(text: &str) -> Option<(&str, &str)> {
    let count = text.bytes().take_while(u8::is_ascii_digit).count();
    (1..=MAX_DIGITS)
        .contains(&count)
        .then(|| text.split_at(count))
}

/// The nanoseconds of the unit at the start of `text`, and what follows.
fn unit(text: &str) -> Option<(u64, &str)> {
    // "ms" before "m".
    [
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60 * 1_000_000_000),
        ("h", 3600 * 1_000_000_000),
    ]
    .into_iter()
    .find_map(|(name, nanoseconds)| Some((nanoseconds, text.strip_prefix(name)?)))
}

/// `whole.fraction` times a unit, exactly.
fn scaled(whole: &str, fraction: &str, unit_nanoseconds: u64) -> Option<Duration> {
    let whole: u64 = whole.parse().ok()?;
    let mut nanoseconds = whole.checked_mul(unit_nanoseconds)?;
    if !fraction.is_empty() {
        let digits = u32::try_from(fraction.len()).ok()?;
        let fraction: u64 = fraction.parse().ok()?;
        let part = u128::from(fraction) * u128::from(unit_nanoseconds) / 10_u128.pow(digits);
        nanoseconds = nanoseconds.checked_add(u64::try_from(part).ok()?)?;
    }
    Some(Duration::from_nanos(nanoseconds))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read_as_written() {
        for (text, expected) in [
            ("90s", Duration::from_secs(90)),
            ("30m", Duration::from_mins(30)),
            ("1h30m", Duration::from_mins(90)),
            ("1.5h", Duration::from_mins(90)),
            ("0.000001s", Duration::from_micros(1)),
            ("250ms", Duration::from_millis(250)),
            ("1m1m", Duration::from_mins(2)),
            ("999999h", Duration::from_hours(999_999)),
        ] {
            assert_eq!(parse_duration(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "", "1", "h", "1 h", "-1h", "1.h", ".5h", "1d", "1H", "1h ", "1234567s", "1µs",
        ] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_text_of_the_grammar_is_read(text in r"([0-9]{1,6}(\.[0-9]{1,6})?(ms|s|m|h)){1,3}") {
            prop_assert!(parse_duration(&text).is_some());
        }

        #[test]
        fn no_other_text_is(text in r"[0-9.msh -]{0,8}") {
            let by_grammar = {
                let mut rest = text.as_str();
                loop {
                    let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
                    let (number, after) = rest.split_at(number);
                    let fits = |part: &str| (1..=6).contains(&part.len());
                    let well_formed = match number.split_once('.') {
                        Some((whole, fraction)) => fits(whole) && fits(fraction) && !fraction.contains('.'),
                        None => fits(number),
                    };
                    let after = ["ms", "s", "m", "h"].iter().find_map(|unit| after.strip_prefix(unit));
                    match (well_formed, after) {
                        (true, Some("")) => break true,
                        (true, Some(after)) => rest = after,
                        _ => break false,
                    }
                }
            };
            prop_assert_eq!(parse_duration(&text).is_some(), by_grammar);
        }
    }
}
