//! The `Retry-After` header in its three spellings.

use std::time::{Duration, SystemTime};

/// Numbers above this are a moment, not a pause: Docker Hub sends seconds since 1970 (registry rule R15; hub-feedback#2459).
const FIRST_EPOCH: u64 = 1_000_000_000;

/// The pause that `value` asks for at the moment `now`; a moment that has passed is no pause.
pub(super) fn parse(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    let moment = match value.parse::<u64>() {
        Ok(seconds) if seconds < FIRST_EPOCH => return Some(Duration::from_secs(seconds)),
        Ok(epoch) => epoch,
        Err(_) => parse_date(value)?,
    };
    let until = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(moment))?;
    Some(until.duration_since(now).unwrap_or_default())
}

/// An HTTP date in the one form that servers may send (RFC 9110, IMF-fixdate): `Sun, 06 Nov 1994 08:49:37 GMT`.
fn parse_date(value: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let (_, date) = value.split_once(", ")?;
    let [day, month, year, time, "GMT"] = *date.split(' ').collect::<Vec<_>>() else {
        return None;
    };
    let day = number(day, 1..=31)?;
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    let year = number(year, 1970..=9999)?;
    let [hour, minute, second] = *time.split(':').collect::<Vec<_>>() else {
        return None;
    };
    let hour = number(hour, 0..=23)?;
    let minute = number(minute, 0..=59)?;
    let second = number(second, 0..=60)?;
    Some(((days_since_1970(year, month, day) * 24 + hour) * 60 + minute) * 60 + second)
}

fn number(text: &str, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
    text.parse().ok().filter(|value| range.contains(value))
}

/// Days between 1970-01-01 and a date. Years are counted from March, so that the leap day is a year's last.
const fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    /// Days from 0000-03-01 to 1970-01-01.
    const OFFSET: u64 = 719_468;
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    year * 365 + year / 4 - year / 100 + year / 400 + day_of_year - OFFSET
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_comes_in_seconds_as_a_date_or_as_an_epoch() {
        // `date -ud '1994-11-06 08:49:37' +%s`
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (value, expected) in [
            ("5", Some(5)),
            (" 120 ", Some(120)),
            ("0", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sun, 06 Nov 1994 08:48:37 GMT", Some(0)),
            ("Tue, 07 Nov 1995 08:49:37 GMT", Some(366 * 86_400)),
            ("Sun, 06 Nov 1994 08:49:37", None),
            ("Sun, 06 Foo 1994 08:49:37 GMT", None),
            ("-1", None),
            ("soon", None),
            ("", None),
            ("99999999999999999999999", None),
        ] {
            assert_eq!(
                parse(value, now),
                expected.map(Duration::from_secs),
                "{value}"
            );
        }
        let later = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        assert_eq!(parse("1700000060", later), Some(Duration::from_mins(1)));
    }

    #[test]
    fn leap_days_are_counted() {
        // `date -ud 2024-02-29 +%s`, `date -ud 2024-03-01 +%s`, `date -ud 2100-03-01 +%s`
        for ((year, month, day), seconds) in [
            ((1970, 1, 1), 0),
            ((2024, 2, 29), 1_709_164_800),
            ((2024, 3, 1), 1_709_251_200),
            ((2100, 3, 1), 4_107_542_400),
        ] {
            assert_eq!(days_since_1970(year, month, day) * 86_400, seconds);
        }
    }
}
