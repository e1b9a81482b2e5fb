//! What a registry wants people to know: `Warning: 299 - "..."` (registry rule R12).

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use http::{HeaderMap, header::WARNING};

use crate::image::Digest;

use super::answer::shown;

/// Longest text that counts, by the specification.
const TEXT_LIMIT: usize = 4096;

/// A registry that has something new to say each time is no longer listened to.
const NOTICE_LIMIT: usize = 100;

/// The texts that a registry was heard to say, as their hashes.
#[derive(Debug, Default)]
pub(super) struct Notices(Mutex<HashSet<Digest>>);

impl Notices {
    /// The texts of an answer that were not heard before, fit to be shown.
    pub(super) fn news(&self, headers: &HeaderMap) -> Vec<String> {
        let texts: Vec<_> = headers
            .get_all(WARNING)
            .iter()
            .filter_map(|value| text_of(&String::from_utf8_lossy(value.as_bytes())))
            .collect();
        if texts.is_empty() {
            return Vec::new();
        }
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        texts
            .into_iter()
            .filter(|text| heard.len() < NOTICE_LIMIT && heard.insert(Digest::of(text.as_bytes())))
            .map(|text| shown(&text))
            .collect()
    }
}

/// The text of a warning: the code 299, no agent, quoted; nothing for any other.
fn text_of(value: &str) -> Option<String> {
    let quoted = value.trim().strip_prefix("299 - \"")?;
    let mut text = String::new();
    let mut characters = quoted.chars();
    loop {
        match characters.next()? {
            '"' => break,
            '\\' => text.push(characters.next()?),
            other => text.push(other),
        }
    }
    (!text.is_empty() && text.len() <= TEXT_LIMIT).then_some(text)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn said(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WARNING, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn a_warning_is_a_quoted_text_after_its_code() {
        for (value, text) in [
            (r#"299 - "it moves""#, Some("it moves")),
            (
                r#" 299 - "it \"moves\", soon""#,
                Some(r#"it "moves", soon"#),
            ),
            (r#"299 - "it moves" "date""#, Some("it moves")),
            (r#"199 - "it moves""#, None),
            (r#"299 agent "it moves""#, None),
            (r#"299 - "it moves"#, None),
            (r#"299 - """#, None),
            ("299 - it moves", None),
            ("", None),
        ] {
            assert_eq!(text_of(value).as_deref(), text, "{value}");
        }
        assert_eq!(text_of(&format!("299 - \"{}\"", "x".repeat(4097))), None);
    }

    #[test]
    fn a_text_is_news_once() {
        let notices = Notices::default();
        let first = said(&[r#"299 - "a""#, r#"299 - "b""#, r#"299 - "a""#]);
        assert_eq!(notices.news(&first), ["a", "b"]);
        assert!(notices.news(&first).is_empty());
        assert_eq!(notices.news(&said(&[r#"299 - "c""#])), ["c"]);
    }

    #[test]
    fn a_registry_that_never_stops_is_no_longer_listened_to() {
        let notices = Notices::default();
        let all =
            (0..1000).flat_map(|number| notices.news(&said(&[&format!("299 - \"{number}\"")])));
        assert_eq!(all.count(), NOTICE_LIMIT);
    }

    proptest! {
        #[test]
        fn any_warning_is_survived(value in r#"299 - "[a-z\\"]{0,12}"#) {
            text_of(&value);
        }
    }
}
