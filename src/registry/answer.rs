//! What a registry's answer means when it is not the one hoped for.
//!
//! The status decides first, the error code second, the message never (registry rule G3): bodies are often `UNKNOWN`, a web
//! page, or empty. The one exception is storage trouble, which registries only put into words (R14).

use std::{
    fmt::{self, Write as _},
    time::Duration,
};

use http::StatusCode;
use serde::Deserialize;

use crate::image::Digest;

use super::{
    body,
    error::{Error, Operation},
    retry::LONGEST_WAIT,
    retry_after,
};

/// Registries explain themselves in a sentence; more does not fit a condition (design §4).
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
    WebPage,
    /// An error by the distribution specification.
    Error {
        code: String,
        text: String,
        names: Storage,
        digests: Vec<Digest>,
    },
}

/// Whether an error text is about the registry's own storage.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Storage {
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
    pub(super) const fn of_status(status: StatusCode) -> Self {
        Self { status, said: None }
    }

    /// An answer that was made for a browser.
    pub(super) fn web_page(status: StatusCode) -> Self {
        Self {
            status,
            said: Some(Box::new(Said::WebPage)),
        }
    }

    /// Takes in an answer's status and as much of its body as an error may have.
    pub(super) async fn read(response: reqwest::Response) -> Self {
        let status = response.status();
        let is_web_page = body::is_web_page(&response);
        let bytes = body::read_error(response).await;
        Self::new(status, is_web_page, &bytes)
    }

    fn new(status: StatusCode, is_web_page: bool, bytes: &[u8]) -> Self {
        let said = match serde_json::from_slice::<ErrorBody>(bytes) {
            Ok(body) => said_by(&body.errors),
            Err(_) if is_web_page || looks_like_a_page(bytes) => Some(Said::WebPage),
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
            Some(Said::WebPage) | None => None,
        }
    }

    /// Whether the answer was made for a browser.
    pub fn is_web_page(&self) -> bool {
        matches!(self.said.as_deref(), Some(Said::WebPage))
    }

    /// Digests that the details of the error named.
    fn digests(&self) -> Vec<Digest> {
        match self.said.as_deref() {
            Some(Said::Error { digests, .. }) => digests.clone(),
            Some(Said::WebPage) | None => Vec::new(),
        }
    }

    fn storage(&self) -> Storage {
        match self.said.as_deref() {
            Some(Said::Error { names, .. }) => *names,
            Some(Said::WebPage) | None => Storage::NotNamed,
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.status)?;
        match self.said.as_deref() {
            None => Ok(()),
            Some(Said::WebPage) => {
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
        text: text_of(&first.message),
        names,
        digests,
    })
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

/// What was asked: the same status means different things for different questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject {
    /// A manifest to read.
    Manifest,
    /// A manifest to write.
    ManifestUpload,
    /// A blob to read.
    Blob,
    /// A new upload.
    UploadStart,
    /// The bytes of an upload.
    UploadCommit,
    /// A list of tags.
    Tags,
    /// A token service.
    Token,
}

impl Subject {
    /// The permission the question needs, in the words of token scopes.
    pub(super) const fn permission(self) -> &'static str {
        match self {
            Self::ManifestUpload | Self::UploadStart | Self::UploadCommit => "push",
            Self::Manifest | Self::Blob | Self::Tags | Self::Token => "pull",
        }
    }
}

/// The error that an answer other than success is. `retry_after` is what its header asked for; `anonymous` tells that no
/// credential was given, so that the remedy is to give one.
pub(super) fn judge(
    operation: Operation,
    subject: Subject,
    answer: Answer,
    retry_after: Option<Duration>,
    anonymous: bool,
) -> Error {
    let status = answer.status.as_u16();
    match status {
        401 if anonymous => Error::AuthenticationRequired { operation, answer },
        401 => Error::AuthenticationFailed { operation, answer },
        400 | 403 | 412 | 413 if answer.storage() == Storage::QuotaExceeded => {
            Error::RegistryQuotaExceeded { operation, answer }
        }
        403 => Error::AccessDenied {
            operation,
            answer,
            permission: subject.permission(),
        },
        408 => Error::RegistryUnavailable {
            operation,
            answer,
            retry_after,
        },
        413 => Error::RequestTooLarge { operation, answer },
        429 => Error::TooManyRequests {
            operation,
            answer,
            retry_after,
        },
        501 | 505 => Error::RequestRefused { operation, answer },
        500..=599 => judge_failure(operation, answer, retry_after),
        400..=499 => judge_refusal(operation, subject, answer),
        _ => Error::UnexpectedAnswer {
            operation,
            answer,
            problem: "this status does not fit the request",
        },
    }
}

/// The registry failed: itself, or its storage.
fn judge_failure(operation: Operation, answer: Answer, retry_after: Option<Duration>) -> Error {
    match (answer.storage(), answer.status.as_u16()) {
        (Storage::QuotaExceeded, _) => Error::RegistryQuotaExceeded { operation, answer },
        (Storage::Failing, _) | (Storage::NotNamed, 507) => {
            Error::RegistryStorageFailed { operation, answer }
        }
        // A pause this long is for the run to be parked, not for a connection to be held.
        (Storage::NotNamed, _) if retry_after.is_some_and(|pause| pause > LONGEST_WAIT) => {
            Error::TooManyRequests {
                operation,
                answer,
                retry_after,
            }
        }
        (Storage::NotNamed, _) => Error::RegistryUnavailable {
            operation,
            answer,
            retry_after,
        },
    }
}

/// The registry refused; what that means depends on what was asked.
fn judge_refusal(operation: Operation, subject: Subject, answer: Answer) -> Error {
    let code = answer.code().unwrap_or_default();
    let status = answer.status.as_u16();
    match (subject, status, code) {
        (Subject::ManifestUpload, 400 | 404, "MANIFEST_BLOB_UNKNOWN" | "BLOB_UNKNOWN") => {
            Error::ManifestBlobUnknown {
                operation,
                missing: answer.digests(),
                answer,
            }
        }
        // Harbor says 412, ECR 400 with TAG_INVALID, others 409 (registry rule M11).
        (Subject::ManifestUpload, 400, "TAG_INVALID") | (Subject::ManifestUpload, 409 | 412, _) => {
            Error::TagImmutable { operation, answer }
        }
        (Subject::ManifestUpload | Subject::UploadStart | Subject::Tags, 404, _)
        | (_, 404, "NAME_UNKNOWN") => Error::RepositoryUnknown { operation, answer },
        (Subject::UploadCommit, 404 | 416, _)
        | (Subject::UploadCommit, 400, "BLOB_UPLOAD_UNKNOWN" | "BLOB_UPLOAD_INVALID") => {
            Error::UploadSessionLost { operation, answer }
        }
        (Subject::ManifestUpload, 400 | 415 | 422, _) => {
            Error::ManifestRejected { operation, answer }
        }
        (Subject::Manifest, 404, _) => Error::ManifestUnknown { operation, answer },
        (Subject::Blob, 404, _) => Error::BlobUnknown { operation, answer },
        _ => Error::RequestRefused { operation, answer },
    }
}

/// The pause an answer asks for.
pub(super) fn pause_of(response: &reqwest::Response) -> Option<Duration> {
    let value = response
        .headers()
        .get(http::header::RETRY_AFTER)?
        .to_str()
        .ok()?;
    retry_after::parse(value, std::time::SystemTime::now())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::{Class, Classified};

    fn judged(subject: Subject, status: u16, body: &str) -> Error {
        let answer = Answer::new(
            StatusCode::from_u16(status).unwrap(),
            false,
            body.as_bytes(),
        );
        judge(Operation::new("do something"), subject, answer, None, false)
    }

    #[test]
    fn the_status_decides_first_and_the_code_second() {
        use Subject::{Blob, Manifest, ManifestUpload, Tags, UploadCommit, UploadStart};
        let code = |code: &str| format!(r#"{{"errors":[{{"code":"{code}","message":"m"}}]}}"#);
        for (subject, status, body, reason) in [
            (Manifest, 404, String::new(), "ManifestUnknown"),
            (Manifest, 404, code("UNKNOWN"), "ManifestUnknown"),
            (Manifest, 404, code("NAME_UNKNOWN"), "RepositoryUnknown"),
            (Manifest, 404, "<html>".into(), "ManifestUnknown"),
            (Manifest, 401, String::new(), "AuthenticationFailed"),
            (Manifest, 403, code("DENIED"), "AccessDenied"),
            (Manifest, 429, String::new(), "TooManyRequests"),
            (Manifest, 500, String::new(), "RegistryUnavailable"),
            (Manifest, 408, String::new(), "RegistryUnavailable"),
            (Manifest, 410, String::new(), "RequestRefused"),
            (Manifest, 204, String::new(), "UnexpectedAnswer"),
            (Blob, 404, code("BLOB_UNKNOWN"), "BlobUnknown"),
            (Tags, 404, String::new(), "RepositoryUnknown"),
            (UploadStart, 404, String::new(), "RepositoryUnknown"),
            (
                UploadCommit,
                404,
                code("BLOB_UPLOAD_UNKNOWN"),
                "UploadSessionLost",
            ),
            (UploadCommit, 413, String::new(), "RequestTooLarge"),
            (UploadCommit, 507, String::new(), "RegistryStorageFailed"),
            (
                ManifestUpload,
                400,
                code("MANIFEST_INVALID"),
                "ManifestRejected",
            ),
            (ManifestUpload, 400, code("TAG_INVALID"), "TagImmutable"),
            (ManifestUpload, 412, String::new(), "TagImmutable"),
            (
                ManifestUpload,
                404,
                code("MANIFEST_BLOB_UNKNOWN"),
                "ManifestBlobUnknown",
            ),
            (ManifestUpload, 405, String::new(), "RequestRefused"),
        ] {
            assert_eq!(
                judged(subject, status, &body).reason(),
                reason,
                "{subject:?} {status} {body}"
            );
        }
    }

    #[test]
    fn trouble_of_the_registrys_storage_is_told_apart() {
        for (status, text, reason) in [
            (
                500,
                r#""detail":{"DriverName":"filesystem","Enclosed":{}}"#,
                "RegistryStorageFailed",
            ),
            (
                500,
                r#""message":"write: no space left on device""#,
                "RegistryStorageFailed",
            ),
            (
                503,
                r#""message":"Storage quota exceeded""#,
                "RegistryQuotaExceeded",
            ),
            (
                403,
                r#""message":"will exceed the configured quota""#,
                "RegistryQuotaExceeded",
            ),
            (403, r#""message":"no""#, "AccessDenied"),
        ] {
            let error = judged(
                Subject::UploadCommit,
                status,
                &format!(r#"{{"errors":[{{"code":"UNKNOWN",{text}}}]}}"#),
            );
            assert_eq!(error.reason(), reason, "{text}");
        }
        assert_eq!(
            judged(Subject::UploadCommit, 507, "").class(),
            Class::RegistryStorage
        );
    }

    #[test]
    fn missing_parts_of_a_manifest_are_named() {
        let digest = Digest::of(b"layer");
        let body = format!(
            r#"{{"errors":[{{"code":"MANIFEST_BLOB_UNKNOWN","detail":{{"digest":"{digest}"}}}},{{"code":"X","detail":"{digest}"}}]}}"#
        );
        let Error::ManifestBlobUnknown { missing, .. } =
            judged(Subject::ManifestUpload, 400, &body)
        else {
            panic!("not the expected error")
        };
        assert_eq!(missing, [digest.clone(), digest]);
    }

    #[test]
    fn a_web_page_is_named_and_not_repeated() {
        for body in ["<!DOCTYPE html><p>secret", "  \n<HTML>secret"] {
            let text = judged(Subject::Manifest, 404, body).to_string();
            assert!(
                text.contains("web page") && !text.contains("secret"),
                "{text}"
            );
        }
        let plain = judged(Subject::Manifest, 404, "secret words").to_string();
        assert!(!plain.contains("secret"), "{plain}");
    }

    proptest! {
        #[test]
        fn whatever_a_registry_says_stays_short_and_on_one_line(message in ".{0,600}", code in ".{0,200}") {
            let body = serde_json::json!({"errors": [{"code": code, "message": message}]}).to_string();
            let text = judged(Subject::Manifest, 403, &body).to_string();
            prop_assert!(text.chars().count() < 64 + 256 + 200);
            prop_assert!(!text.chars().any(char::is_control));
        }

        #[test]
        fn any_body_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let answer = Answer::new(StatusCode::BAD_REQUEST, false, &bytes);
            prop_assert!(!answer.to_string().is_empty());
        }
    }
}
