//! The `Retry-After` header in its spellings.

use std::time::{Duration, SystemTime};

/// Numbers above this are a moment, not a pause: Docker Hub sends seconds since 1970 (registry rule R15; hub-feedback#2459).
const FIRST_EPOCH: u64 = 1_000_000_000;

/// Nobody is sent away for longer: what says so is a clock gone wrong, and a mirror would never run again.
const LONGEST_PAUSE: Duration = Duration::from_hours(24);

/// The pause that `value` asks for at the moment `now`; a moment that has passed is no pause.
pub(super) fn parse(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    let until = match value.parse::<u64>() {
        Ok(seconds) if seconds < FIRST_EPOCH => {
            return Some(Duration::from_secs(seconds).min(LONGEST_PAUSE));
        }
        Ok(epoch) => SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(epoch))?,
        Err(_) => httpdate::parse_http_date(value).ok()?,
    };
    let pause = until.duration_since(now).unwrap_or_default();
    Some(pause.min(LONGEST_PAUSE))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pause_comes_in_seconds_as_a_date_or_as_an_epoch() {
        // `date -ud '1994-11-06 08:49:37' +%s`
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (value, expected) in [
            ("5", Some(5)),
            (" 120 ", Some(120)),
            ("0", Some(0)),
            ("999999999", Some(86_400)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sun, 06 Nov 1994 08:48:37 GMT", Some(0)),
            // The two old forms, which may no longer be sent but are to be understood (RFC 9110, 5.6.7).
            ("Sunday, 06-Nov-94 08:50:37 GMT", Some(60)),
            ("Sun Nov  6 08:50:37 1994", Some(60)),
            ("Tue, 07 Nov 1995 08:49:37 GMT", Some(86_400)),
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

    proptest! {
        #[test]
        fn no_header_sends_us_away_for_more_than_a_day(value in "([0-9]{0,20}|[A-Za-z0-9 ,:-]{0,32})") {
            let pause = parse(&value, SystemTime::now());
            prop_assert!(pause.unwrap_or_default() <= LONGEST_PAUSE);
        }
    }
}
