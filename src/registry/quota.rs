//! How much of a registry is left to an account: the `ratelimit-*` headers of Docker Hub (registry rule R3).

use std::time::Duration;

use http::HeaderMap;

use super::retry::LONGEST_WAIT;

/// A used-up quota is looked at again after this part of its window: for the 6 h of Docker Hub every 15 minutes.
const LOOKS_PER_WINDOW: u32 = 24;

/// What a registry last said about how often an account may still ask it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Requests that are allowed within the window.
    pub limit: u64,
    /// Requests that are left of them.
    pub remaining: u64,
    /// The window that they are counted in, where it was said.
    pub window: Option<Duration>,
}

impl Quota {
    /// Reads `ratelimit-limit: 100;w=21600` and `ratelimit-remaining: 99;w=21600`. Whoever has no limit gets neither.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let (limit, window) = parse(headers, "ratelimit-limit")?;
        let (remaining, own_window) = parse(headers, "ratelimit-remaining")?;
        Some(Self {
            limit,
            remaining,
            window: window.or(own_window),
        })
    }

    /// Whether nothing is left.
    pub const fn is_used_up(&self) -> bool {
        self.remaining == 0
    }

    /// When to look again after it was used up and the registry did not say when: late enough for the run to be parked.
    pub(super) fn pause(&self) -> Duration {
        let part = self.window.unwrap_or_default() / LOOKS_PER_WINDOW;
        part.clamp(
            LONGEST_WAIT + Duration::from_secs(1),
            Duration::from_hours(1),
        )
    }
}

/// A number with its window: `100;w=21600`.
fn parse(headers: &HeaderMap, name: &str) -> Option<(u64, Option<Duration>)> {
    let value = headers.get(name)?.to_str().ok()?;
    let mut parts = value.split(';').map(str::trim);
    let number = parts.next()?.parse().ok()?;
    let window = parts.find_map(|part| part.strip_prefix("w=")?.parse().ok());
    Some((number, window.map(Duration::from_secs)))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn quota(limit: &str, remaining: &str) -> Option<Quota> {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("ratelimit-limit", limit),
            ("ratelimit-remaining", remaining),
        ] {
            if !value.is_empty() {
                headers.insert(name, HeaderValue::from_str(value).unwrap());
            }
        }
        Quota::of(&headers)
    }

    #[test]
    fn a_quota_is_a_limit_and_a_rest_with_perhaps_a_window() {
        for (limit, remaining, expected) in [
            ("100;w=21600", "99;w=21600", Some((100, 99, Some(21_600)))),
            ("100", "0;w=60", Some((100, 0, Some(60)))),
            ("100 ; w=60", "7", Some((100, 7, Some(60)))),
            ("100;x=1;w=60", "7", Some((100, 7, Some(60)))),
            ("100", "7", Some((100, 7, None))),
            ("100;w=soon", "7", Some((100, 7, None))),
            ("100", "", None),
            ("", "7", None),
            ("many", "7", None),
            ("-1", "7", None),
        ] {
            let expected = expected.map(|(limit, remaining, window)| Quota {
                limit,
                remaining,
                window: window.map(Duration::from_secs),
            });
            assert_eq!(quota(limit, remaining), expected, "{limit} {remaining}");
        }
    }

    #[test]
    fn a_used_up_quota_is_looked_at_now_and_then() {
        for (limit, minutes) in [("100;w=21600", 15), ("100;w=600000", 60)] {
            let quota = quota(limit, "0").unwrap();
            assert!(quota.is_used_up());
            assert_eq!(quota.pause(), Duration::from_mins(minutes));
        }
        assert!(quota("1", "0").unwrap().pause() > LONGEST_WAIT);
    }

    proptest! {
        #[test]
        fn any_header_is_survived(value in "[0-9;w= ]{0,40}") {
            if let Some(quota) = quota(&value, &value) {
                prop_assert!(quota.pause() > LONGEST_WAIT);
            }
        }
    }
}
