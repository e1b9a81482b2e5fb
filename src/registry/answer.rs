//! What an answer said, as far as it may be repeated: status, and text only from a registry's own error JSON.

use std::fmt::{self, Write as _};

use http::StatusCode;
use serde::Deserialize;

use crate::image::Digest;

use super::body;

/// Registries explain themselves in a sentence; more does not fit a condition.
const TEXT_LIMIT: usize = 256;

/// Escapes what a stranger wrote and keeps it short enough for a message.
pub(super) fn shown(text: &str) -> String {
    let mut escaped = text
        .chars()
        .flat_map(char::escape_debug)
        .take(TEXT_LIMIT + 1)
        .collect::<String>();
    if let Some((cut, _)) = escaped.char_indices().nth(TEXT_LIMIT) {
        escaped.truncate(cut);
    }
    escaped
}

/// What an answer was, fit to be shown: its status, and text only where it came as a registry's error JSON.
#[derive(Clone, PartialEq, Eq)]
pub struct Answer {
    status: StatusCode,
    /// Boxed, since answers are part of errors and errors of every result.
    said: Option<Box<Said>>,
}

/// What the body of an answer said, where it said anything that can be repeated.
#[derive(Clone, PartialEq, Eq)]
enum Said {
    /// A page for a browser: somebody else answers there.
    WebPage {
        /// It is about a client's certificate.
        about_certificate: bool,
    },
    /// An error by the distribution specification.
    Error {
        code: String,
        text: String,
        names: Storage,
        digests: Vec<Digest>,
    },
}

/// What wraps another failure: Artifactory answers "manifest invalid" and hides in the details that it was not allowed to
/// overwrite a tag (registry rule M12; kaniko#1095).
const WRAPPED_REFUSAL: &str = "403";

/// Whether an error text is about the registry's own storage.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Storage {
    NotNamed,
    Failing,
    QuotaExceeded,
}

#[derive(Deserialize)]
struct ErrorBody {
    errors: Vec<ErrorEntry>,
}

#[derive(Deserialize)]
struct ErrorEntry {
    #[serde(default)]
    code: serde_json::Value,
    #[serde(default)]
    message: serde_json::Value,
    #[serde(default)]
    detail: serde_json::Value,
}

impl Answer {
    /// An answer of which only the status counts.
    pub(crate) const fn of_status(status: StatusCode) -> Self {
        Self { status, said: None }
    }

    /// An answer that was made for a browser.
    pub(super) fn web_page(status: StatusCode) -> Self {
        Self {
            status,
            said: Some(Box::new(Said::WebPage {
                about_certificate: false,
            })),
        }
    }

    /// Takes in an answer's status and as much of its body as an error may have.
    pub(super) async fn read(response: reqwest::Response) -> Self {
        let status = response.status();
        let is_web_page = body::is_web_page(&response);
        let bytes = body::read_error(response).await;
        Self::new(status, is_web_page, &bytes)
    }

    pub(super) fn new(status: StatusCode, is_web_page: bool, bytes: &[u8]) -> Self {
        let said = match serde_json::from_slice::<ErrorBody>(bytes) {
            Ok(body) => said_by(&body.errors),
            Err(_) if is_web_page || looks_like_a_page(bytes) => Some(Said::WebPage {
                about_certificate: is_about_certificate(bytes),
            }),
            Err(_) => None,
        };
        Self {
            status,
            said: said.map(Box::new),
        }
    }

    /// The HTTP status.
    pub const fn status(&self) -> StatusCode {
        self.status
    }

    /// The error code, where a registry gave one.
    pub fn code(&self) -> Option<&str> {
        match self.said.as_deref() {
            Some(Said::Error { code, .. }) => Some(code),
            Some(Said::WebPage { .. }) | None => None,
        }
    }

    /// Whether the answer was made for a browser.
    pub fn is_web_page(&self) -> bool {
        matches!(self.said.as_deref(), Some(Said::WebPage { .. }))
    }

    /// Whether the page says that our certificate is missing or wrong: nginx lets everybody in and then answers with 400.
    pub(super) fn wants_certificate(&self) -> bool {
        self.status == StatusCode::BAD_REQUEST
            && matches!(
                self.said.as_deref(),
                Some(Said::WebPage {
                    about_certificate: true
                })
            )
    }

    /// Digests that the details of the error named.
    pub(super) fn digests(&self) -> Vec<Digest> {
        match self.said.as_deref() {
            Some(Said::Error { digests, .. }) => digests.clone(),
            Some(Said::WebPage { .. }) | None => Vec::new(),
        }
    }

    /// Whether the text is about a refusal within the registry, whatever the answer's own status is.
    pub(super) fn wraps_a_refusal(&self) -> bool {
        match self.said.as_deref() {
            Some(Said::Error { text, .. }) => text
                .split(|letter: char| !letter.is_ascii_alphanumeric())
                .any(|word| word == WRAPPED_REFUSAL),
            Some(Said::WebPage { .. }) | None => false,
        }
    }

    pub(super) fn storage(&self) -> Storage {
        match self.said.as_deref() {
            Some(Said::Error { names, .. }) => *names,
            Some(Said::WebPage { .. }) | None => Storage::NotNamed,
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.status)?;
        match self.said.as_deref() {
            None => Ok(()),
            Some(Said::WebPage { .. }) => {
                formatter.write_str(", answered with a web page, not with the registry API")
            }
            Some(Said::Error { code, text, .. }) if text.is_empty() => {
                write!(formatter, ", {code}")
            }
            Some(Said::Error { code, text, .. }) if code.is_empty() => {
                write!(formatter, ", {text}")
            }
            Some(Said::Error { code, text, .. }) => write!(formatter, ", {code}: {text}"),
        }
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Answer({self})")
    }
}

/// Reads the first error and what all of them say about storage and missing content.
fn said_by(errors: &[ErrorEntry]) -> Option<Said> {
    let first = errors.first()?;
    let mut all = String::new();
    for error in errors {
        // Writing into a string cannot fail.
        write!(all, "{} {} ", error.message, error.detail).ok();
    }
    all.make_ascii_lowercase();
    let names_any = |words: &[&str]| words.iter().any(|word| all.contains(word));
    let names = if names_any(&["quota"]) {
        Storage::QuotaExceeded
    } else if names_any(&["disk", "driver", "no space"]) {
        Storage::Failing
    } else {
        Storage::NotNamed
    };
    let digests = errors
        .iter()
        .filter_map(|error| match &error.detail {
            serde_json::Value::String(text) => text.parse().ok(),
            detail => detail.get("digest")?.as_str()?.parse().ok(),
        })
        .collect();
    let text_of = |value: &serde_json::Value| shown(value.as_str().unwrap_or_default());
    Some(Said::Error {
        code: text_of(&first.code).chars().take(64).collect(),
        text: shown(&text_of_error(first)),
        names,
        digests,
    })
}

/// The message, and the details where they are words: Quay and Artifactory say only there what is wrong (registry rules M12,
/// M13).
fn text_of_error(error: &ErrorEntry) -> String {
    let message = error.message.as_str().unwrap_or_default();
    let named = |field: &str| error.detail.get(field)?.as_str();
    let detail = error.detail.as_str();
    let detail = detail.or_else(|| named("message").or_else(|| named("description")));
    match detail.filter(|detail| !detail.is_empty() && *detail != message) {
        None => message.to_owned(),
        Some(detail) if message.is_empty() => detail.to_owned(),
        Some(detail) => format!("{message}: {detail}"),
    }
}

/// nginx's words, both for a certificate that is missing and for one that it does not trust.
fn is_about_certificate(bytes: &[u8]) -> bool {
    let page = String::from_utf8_lossy(bytes);
    ["No required SSL certificate", "The SSL certificate error"]
        .iter()
        .any(|words| page.contains(words))
}

/// Some servers send pages under `text/plain` or without any type.
fn looks_like_a_page(bytes: &[u8]) -> bool {
    let start = bytes.trim_ascii_start();
    let start = &start[..start.len().min(14)];
    let starts_with = |prefix: &[u8]| {
        start
            .get(..prefix.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    };
    starts_with(b"<!doctype html") || starts_with(b"<html")
}
