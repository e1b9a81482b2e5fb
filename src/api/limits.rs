//! Keeps a status small, whatever the mirror's size: etcd and every watcher carry it (operator rule S7).

use super::status::ImageMirrorStatus;

/// Images listed in a status; the rest is in the counters.
pub const MAX_IMAGES: usize = 20;
/// Failures listed in a status, the latest ones.
pub const MAX_FAILURES: usize = 10;
/// Bytes of one message: two lines of a wide terminal hold what a person reads.
pub const MAX_MESSAGE_LENGTH: usize = 512;
/// Bytes of a whole status as JSON.
pub const MAX_STATUS_BYTES: usize = 16 * 1024;

/// `text` in at most `limit` bytes and in one line: control characters become spaces, a cut is marked with '…'.
pub fn shortened(text: &str, limit: usize) -> String {
    const MARK: char = '…';
    let clean = |character: char| {
        if character.is_control() {
            ' '
        } else {
            character
        }
    };
    if text.len() <= limit {
        return text.chars().map(clean).collect();
    }
    let mut room = limit.saturating_sub(MARK.len_utf8());
    let mut cut: String = text
        .chars()
        .take_while(|character| {
            let fits = character.len_utf8() <= room;
            room = room.saturating_sub(character.len_utf8());
            fits
        })
        .map(clean)
        .collect();
    cut.push(MARK);
    cut
}

/// The status with its lists and messages cut to what may be stored. Images go first when it is still too large: they
/// repeat what the counters say; then the oldest failures.
pub fn bounded(mut status: ImageMirrorStatus) -> ImageMirrorStatus {
    status.images.truncate(MAX_IMAGES);
    let surplus = status.failures.len().saturating_sub(MAX_FAILURES);
    status.failures.drain(..surplus);
    for condition in &mut status.conditions {
        condition.message = shortened(&condition.message, MAX_MESSAGE_LENGTH);
    }
    for failure in &mut status.failures {
        failure.message = shortened(&failure.message, MAX_MESSAGE_LENGTH);
    }
    while size(&status) > MAX_STATUS_BYTES {
        if status.images.pop().is_some() {
            continue;
        }
        if status.failures.is_empty() {
            break;
        }
        status.failures.remove(0);
    }
    status
}

/// Bytes of the status as JSON. A status always serialises; should it not, the API call says so.
fn size(status: &ImageMirrorStatus) -> usize {
    serde_json::to_vec(status).map_or(0, |json| json.len())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        apimachinery::pkg::apis::meta::v1::{Condition, Time},
        jiff::Timestamp,
    };
    use proptest::prelude::*;

    use super::*;
    use crate::api::{DestinationStatus, FailureStatus, ImageOutcome, ImageStatus};

    /// The worst names the schema lets through, and a text that doubles when escaped.
    fn huge(images: usize, text: &str) -> ImageMirrorStatus {
        let condition = |type_: &str| Condition {
            type_: type_.to_owned(),
            status: "True".to_owned(),
            reason: "R".repeat(128),
            message: text.repeat(5_000),
            observed_generation: Some(i64::MAX),
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
        };
        let image = |number: usize| ImageStatus {
            source: format!("{:a<500}{number}", "registry.example/"),
            digest: Some(format!("sha512:{}", "f".repeat(128))),
            outcome: ImageOutcome::Failed,
        };
        let failure = |number: usize| FailureStatus {
            source: format!("{:a<500}{number}", "registry.example/"),
            destination: Some("d".repeat(63)),
            reason: "AuthenticationFailed".to_owned(),
            message: text.repeat(1_000),
        };
        let destination = |number: usize| DestinationStatus {
            name: format!("{number:d>63}"),
            synced: "2147483647/2147483647".to_owned(),
        };
        ImageMirrorStatus {
            conditions: ["Ready", "Reconciling"].map(condition).to_vec(),
            images: (0..images).map(image).collect(),
            failures: (0..images).map(failure).collect(),
            destinations: (0..16).map(destination).collect(),
            ..ImageMirrorStatus::default()
        }
    }

    #[test]
    fn a_status_never_exceeds_16_kib() {
        for text in ["x", "\"", "\\", "\u{1}", "ü", "🦀", "\n"] {
            for images in [0, 1, 20, 5_000] {
                let status = bounded(huge(images, text));
                let bytes = serde_json::to_vec(&status).unwrap().len();
                assert!(bytes <= 16 * 1024, "{images} images of {text:?}: {bytes}");
            }
        }
    }

    #[test]
    fn usual_names_leave_room_for_all_20_images_and_10_failures() {
        let mut status = huge(5_000, "x");
        for image in &mut status.images {
            image.source = "registry.example:5000/team/application:1.27.3-alpine".to_owned();
            image.digest = Some(format!("sha256:{}", "f".repeat(64)));
        }
        for failure in &mut status.failures {
            failure.source = "registry.example:5000/team/application:1.27.3-alpine".to_owned();
            failure.message = "x".repeat(200);
        }
        status.failures.last_mut().unwrap().message = "the latest".to_owned();
        let status = bounded(status);
        assert_eq!((status.images.len(), status.failures.len()), (20, 10));
        assert_eq!(status.failures[9].message, "the latest");
    }

    proptest! {
        #[test]
        fn a_shortened_text_fits_and_is_one_line(text in "(?s).{0,80}", limit in 3_usize..60) {
            let short = shortened(&text, limit);
            prop_assert!(short.len() <= limit || text.len() <= limit);
            prop_assert!(short.len() <= limit.max(text.len()));
            prop_assert!(!short.chars().any(char::is_control));
            if text.len() <= limit && !text.chars().any(char::is_control) {
                prop_assert_eq!(short, text);
            }
        }
    }
}
