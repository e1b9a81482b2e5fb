//! Where the bytes of an upload go, and how far the registry says they came.

use http::{HeaderMap, header};
use url::Url;

use super::super::address;
use crate::image::Digest;

/// A place for the bytes of an upload.
pub(in super::super) struct Location {
    pub(in super::super) url: Url,
    /// The registry named itself with `http://` although it was asked over TLS.
    pub(super) has_forgotten_tls: bool,
}

/// Why there is no such place.
#[derive(Debug)]
pub(in super::super) enum Unusable {
    Missing,
    Unreadable,
    Refused {
        target: Url,
        reason: address::Refusal,
    },
}

impl Location {
    /// The `Location` of an answer: relative to the URL that answered, absolute, or at another host (registry rule U6).
    pub(in super::super) fn of(answered: &Url, headers: &HeaderMap) -> Result<Self, Unusable> {
        let value = headers.get(header::LOCATION).ok_or(Unusable::Missing)?;
        let named = value
            .to_str()
            .ok()
            .and_then(|value| answered.join(value).ok())
            .ok_or(Unusable::Unreadable)?;
        let kept = keep_tls(answered, &named);
        let has_forgotten_tls = kept.is_some();
        let url = kept.unwrap_or(named);
        match address::refusal(answered, &url) {
            None => Ok(Self {
                url,
                has_forgotten_tls,
            }),
            Some(reason) => Err(Unusable::Refused {
                target: url,
                reason,
            }),
        }
    }
}

/// A registry behind a proxy that ends TLS often does not know of it and names itself with `http://` (registry rule U7;
/// distribution#2862): on the same host our own scheme and port hold. Nothing where the location can stay as it is.
fn keep_tls(answered: &Url, location: &Url) -> Option<Url> {
    let is_downgrade = answered.scheme() == "https" && location.scheme() == "http";
    if !is_downgrade || answered.host() != location.host() {
        return None;
    }
    let mut kept = answered.clone();
    kept.set_path(location.path());
    kept.set_query(location.query());
    Some(kept)
}

/// Appends the digest to whatever query the registry gave; that one is a signature or a state and stays as it is (U5).
pub(super) fn with_digest(location: &Url, digest: &Digest) -> Url {
    let mut url = location.clone();
    let digest = digest.to_string().replace(':', "%3A");
    let query = match location.query() {
        Some(query) if !query.is_empty() => format!("{query}&digest={digest}"),
        _ => format!("digest={digest}"),
    };
    url.set_query(Some(&query));
    url
}

/// How many bytes a registry says to have, from `0-999` or `bytes=0-999`. Registries write `0-0` for none, and for a single
/// byte too: that one is sent again.
pub(in super::super) fn received(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(header::RANGE)?.to_str().ok()?;
    let range = range.trim();
    let range = range.strip_prefix("bytes").map_or(range, |range| {
        range.trim_start_matches(|char: char| char == '=' || char.is_whitespace())
    });
    let (start, end) = range.split_once('-')?;
    let (start, end) = (start.parse::<u64>().ok()?, end.parse::<u64>().ok()?);
    match (start, end) {
        (0, 0) => Some(0),
        (0, end) => end.checked_add(1),
        // Only of the last chunk (Aliyun; regclient#627): that says nothing about the whole.
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_appended_to_a_query_that_stays_as_it_is() {
        let digest = Digest::of(b"");
        let encoded = digest.to_string().replace(':', "%3A");
        for (location, expected) in [
            (
                "https://r.example/u/1",
                format!("https://r.example/u/1?digest={encoded}"),
            ),
            (
                "https://r.example/u/1?",
                format!("https://r.example/u/1?digest={encoded}"),
            ),
            (
                "https://r.example/u/a%2Fb?_state=x-_%3D%3D&b=%2F+",
                format!("https://r.example/u/a%2Fb?_state=x-_%3D%3D&b=%2F+&digest={encoded}"),
            ),
        ] {
            assert_eq!(
                with_digest(&location.parse().unwrap(), &digest).as_str(),
                expected
            );
        }
    }

    #[test]
    fn a_registry_that_forgets_its_tls_is_still_asked_with_it() {
        for (answered, location, expected) in [
            (
                "https://r.example:5000/v2/",
                "http://r.example/u?a=b",
                Some("https://r.example:5000/u?a=b"),
            ),
            ("https://r.example/v2/", "http://other.example/u", None),
            ("http://r.example/v2/", "http://r.example:81/u", None),
            ("https://r.example/v2/", "https://r.example:444/u", None),
        ] {
            let kept = keep_tls(&answered.parse().unwrap(), &location.parse().unwrap());
            assert_eq!(kept.as_ref().map(Url::as_str), expected);
        }
    }

    #[test]
    fn what_a_registry_has_is_read_from_all_the_ways_to_say_it() {
        for (range, expected) in [
            ("0-999", Some(1000)),
            ("bytes=0-999", Some(1000)),
            ("bytes 0-999", Some(1000)),
            ("0-0", Some(0)),
            ("500-999", None),
            ("0-18446744073709551615", None),
            ("0--1", None),
            ("nonsense", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, range.parse().unwrap());
            assert_eq!(received(&headers), expected, "{range}");
        }
        assert_eq!(received(&HeaderMap::new()), None);
    }
}
