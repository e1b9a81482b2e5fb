//! What must hold for any bytes of a registry's answer.

#![expect(
    clippy::expect_used,
    reason = "a property that does not hold ends the process"
)]

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use url::Url;

use super::{
    address,
    answer::Answer,
    challenge::{Challenge, RawChallenge, parse},
    content_range::ContentRange,
    notice::Notices,
    quota::Quota,
    retry_after,
    tags::next_link,
    upload::location::{Location, received},
};

/// Challenges are made of what stands in the lines and nothing else, a password is the last resort, and where a line is
/// correct, a parser of the grammar agrees.
pub(crate) fn challenge(bytes: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(header::WWW_AUTHENTICATE, value);
        }
        if let Ok(line) = std::str::from_utf8(line) {
            agrees_with_the_grammar(line);
        }
    }
    let text = String::from_utf8_lossy(bytes);
    let challenges = Challenge::all(&headers);
    assert!(challenges.is_sorted_by_key(|challenge| *challenge == Challenge::Basic));
    for challenge in challenges {
        let Challenge::Bearer {
            realm,
            service,
            scopes,
            error,
        } = challenge
        else {
            continue;
        };
        assert!(!realm.is_empty());
        for word in [Some(realm), service, error]
            .into_iter()
            .flatten()
            .chain(scopes)
        {
            assert!(is_part_of(&word, &text), "{word:?} of {text:?}");
        }
    }
}

fn agrees_with_the_grammar(line: &str) {
    let Ok(expected) = http_auth::parse_challenges(line) else {
        return;
    };
    let expected = expected.iter().map(|challenge| {
        let parameters = challenge.params.iter();
        let parameters = parameters.map(|(name, value)| ((*name).to_owned(), value.to_unescaped()));
        RawChallenge {
            scheme: challenge.scheme.to_owned(),
            parameters: parameters.collect(),
        }
    });
    assert_eq!(parse(line), expected.collect::<Vec<_>>(), "{line:?}");
}

/// Whether the letters of a word stand in a text, in this order.
fn is_part_of(word: &str, text: &str) -> bool {
    let mut letters = text.chars();
    word.chars()
        .all(|letter| letters.any(|other| other == letter))
}

/// Headers as lines, an empty line, the body of an error: nothing of it sends us where we must not go, makes us wait for more
/// than a day, or reaches the terminal as it is.
pub(crate) fn answers(bytes: &[u8]) {
    let end = bytes.windows(2).position(|pair| pair == b"\n\n");
    let (head, body) = end.map_or((bytes, &b""[..]), |end| (&bytes[..end], &bytes[end + 2..]));
    let headers = headers_of(head);
    range(&headers);
    places(&headers);
    pauses(&headers);
    for notice in Notices::default().news(&headers) {
        can_be_shown(&notice);
    }
    for is_web_page in [false, true] {
        let answer = Answer::new(StatusCode::BAD_REQUEST, is_web_page, body);
        can_be_shown(&answer.to_string());
        can_be_shown(answer.code().unwrap_or_default());
    }
}

fn headers_of(lines: &[u8]) -> HeaderMap {
    let header = |line: &[u8]| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?;
        Some((name, value))
    };
    lines.split(|byte| *byte == b'\n').filter_map(header).fold(
        HeaderMap::new(),
        |mut headers, (name, value)| {
            headers.append(name, value);
            headers
        },
    )
}

fn range(headers: &HeaderMap) {
    let Some(found) = ContentRange::of(headers) else {
        return;
    };
    let ContentRange { bytes, total } = &found;
    assert!(!bytes.is_empty() && total.is_none_or(|total| bytes.end <= total));
    let total_text = total.map_or_else(|| "*".to_owned(), |total| total.to_string());
    let text = format!("bytes {}-{}/{total_text}", bytes.start, bytes.end - 1);
    let value = HeaderValue::try_from(text).expect("digits");
    assert_eq!(
        ContentRange::of(&HeaderMap::from_iter([(header::CONTENT_RANGE, value)])),
        Some(found)
    );
}

/// Where the next page is, and where an upload goes on.
fn places(headers: &HeaderMap) {
    for asked in [
        "https://registry.example/v2/app/tags/list?n=1000",
        "http://127.0.0.1:5000/v2/app/blobs/uploads/",
    ] {
        let asked = Url::parse(asked).expect("a URL");
        if let Some(link) = next_link(headers) {
            let named = headers
                .get_all(header::LINK)
                .iter()
                .filter_map(|value| value.to_str().ok());
            assert!(
                { named }.any(|value| value.contains(&format!("<{link}>"))),
                "{link}"
            );
        }
        if let Ok(Location { url, .. }) = Location::of(&asked, headers) {
            assert_eq!(address::refusal(&asked, &url), None);
            assert!(url.scheme() == "https" || asked.scheme() == "http", "{url}");
            assert!(
                url.host().is_some() && url.username().is_empty() && url.password().is_none(),
                "{url}"
            );
        }
    }
    if let Some(received) = received(headers) {
        let range = headers
            .get(header::RANGE)
            .and_then(|value| value.to_str().ok());
        let last = received.saturating_sub(1).to_string();
        assert!(
            range.is_some_and(|range| range.contains(&last)),
            "{range:?}: {received}"
        );
    }
}

fn pauses(headers: &HeaderMap) {
    let longest = Duration::from_hours(24);
    let value = headers
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok());
    let pause = value.and_then(|value| retry_after::parse(value, SystemTime::now()));
    assert!(pause.unwrap_or_default() <= longest);
    let pause = Quota::of(headers).map(|quota| quota.pause());
    assert!(pause.unwrap_or_default() <= longest);
}

/// Whether a text that came from a stranger is short and cannot command a terminal.
fn can_be_shown(text: &str) {
    assert!(text.chars().count() <= 1024, "{text}");
    assert!(!text.chars().any(char::is_control), "{text:?}");
}
