//! What a registry's answer means when it is not the one hoped for.
//!
//! The status decides first, the error code second, the message never (registry rule G3): bodies are often `UNKNOWN`, a web
//! page, or empty. The one exception is storage trouble, which registries only put into words (R14).

use std::time::Duration;

use super::{
    answer::{Answer, Storage},
    error::{Error, Operation},
    retry::LONGEST_WAIT,
    retry_after,
};

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
    let status = answer.status().as_u16();
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
    match (answer.storage(), answer.status().as_u16()) {
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
    let status = answer.status().as_u16();
    match (subject, status, code) {
        (
            Subject::ManifestUpload,
            400 | 404,
            "MANIFEST_BLOB_UNKNOWN" | "BLOB_UNKNOWN" | "MANIFEST_UNKNOWN",
        ) => Error::ManifestBlobUnknown {
            operation,
            missing: answer.digests(),
            answer,
        },
        // Harbor says 412, ECR 400 with TAG_INVALID, others 409 (registry rule M11).
        (Subject::ManifestUpload, 400, "TAG_INVALID") | (Subject::ManifestUpload, 409 | 412, _) => {
            Error::TagImmutable { operation, answer }
        }
        (Subject::ManifestUpload, 400, "MANIFEST_INVALID") if answer.wraps_a_refusal() => {
            Error::AccessDenied {
                operation,
                answer,
                permission: "push, and to overwrite what is there",
            }
        }
        (Subject::ManifestUpload | Subject::UploadStart | Subject::Tags, 404, _)
        | (_, 404, "NAME_UNKNOWN") => Error::RepositoryUnknown { operation, answer },
        (Subject::UploadCommit, 404 | 416, _)
        | (Subject::UploadCommit, 400, "BLOB_UPLOAD_UNKNOWN" | "BLOB_UPLOAD_INVALID") => {
            Error::UploadSessionLost { operation, answer }
        }
        (Subject::ManifestUpload, 400 | 415 | 422, _) => Error::ManifestRejected {
            operation,
            answer,
            remedy: String::new(),
        },
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
    use http::StatusCode;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        error::{Class, Classified},
        image::Digest,
    };

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
            (
                ManifestUpload,
                404,
                code("MANIFEST_UNKNOWN"),
                "ManifestBlobUnknown",
            ),
            (ManifestUpload, 403, code("DENIED"), "AccessDenied"),
            (ManifestUpload, 415, String::new(), "ManifestRejected"),
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
    fn what_a_registry_hides_in_the_details_is_shown_and_a_wrapped_refusal_found() {
        for (detail, reason, shown) in [
            (
                r#"{"description":"HTTP 403 Forbidden"}"#,
                "AccessDenied",
                "HTTP 403 Forbidden",
            ),
            (
                r#"{"message":"manifest schema version not supported"}"#,
                "ManifestRejected",
                "manifest invalid: manifest schema version not supported",
            ),
            (
                r#""layer type is not allowed""#,
                "ManifestRejected",
                "layer type is not allowed",
            ),
            (r#"{"at":1403}"#, "ManifestRejected", "manifest invalid)"),
            ("null", "ManifestRejected", "manifest invalid)"),
            (
                r#"{"description":"layer sha256:1403"}"#,
                "ManifestRejected",
                "sha256:1403",
            ),
        ] {
            let body = format!(
                r#"{{"errors":[{{"code":"MANIFEST_INVALID","message":"manifest invalid","detail":{detail}}}]}}"#
            );
            let error = judged(Subject::ManifestUpload, 400, &body);
            assert_eq!(error.reason(), reason, "{detail}");
            assert!(error.to_string().contains(shown), "{error}");
        }
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
