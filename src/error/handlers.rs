//! What follows from the class of an error. Every question is answered here once, for the command line and the operator
//! alike.

use std::error::Error;

use super::Class;

/// What to do with the operation that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// It would fail again: give up on this image, go on with the others.
    Never,
    /// Try again after a pause, as often as the retry limit allows.
    Backoff,
    /// Wait until the time the other side named; a wait is not counted as a retry.
    Park,
    /// Throw the bytes away and fetch them once more.
    Once,
}

/// Who or what can mend a failed mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// A change of the resource: nothing is tried before.
    SpecChange,
    /// Something outside the resource (a Secret, a permission, the registry): tried again at the next interval.
    Outside,
    /// Time: tried again soon, with growing pauses.
    Time,
}

/// Exit code when nothing failed.
pub const EXIT_DONE: u8 = 0;
/// Exit code when the command failed.
pub const EXIT_FAILED: u8 = 1;
/// Exit code for wrong arguments or files, found before anything started.
pub const EXIT_USAGE: u8 = 2;
/// Exit code when some images failed while others are where they should be.
pub const EXIT_PARTLY_FAILED: u8 = 3;
/// Exit code after an interrupt, as shells give it (128 + SIGINT).
pub const EXIT_INTERRUPTED: u8 = 130;

/// Whether an operation that failed with this class is worth another attempt within the run.
#[deny(clippy::wildcard_enum_match_arm)]
pub const fn retry(class: Class) -> Retry {
    match class {
        Class::Config
        | Class::Auth
        | Class::NotFound
        | Class::Policy
        | Class::Archive
        | Class::Storage
        | Class::Cancelled => Retry::Never,
        Class::Network | Class::RegistryStorage => Retry::Backoff,
        Class::RateLimited => Retry::Park,
        Class::Digest => Retry::Once,
    }
}

/// What has to happen before a mirror that failed with this class can succeed.
#[deny(clippy::wildcard_enum_match_arm)]
pub const fn recovery(class: Class) -> Recovery {
    match class {
        // A mirror of an archive is also tried again when the file changes.
        Class::Config | Class::Archive => Recovery::SpecChange,
        Class::Auth | Class::NotFound | Class::Policy => Recovery::Outside,
        Class::RateLimited
        | Class::Network
        | Class::RegistryStorage
        | Class::Digest
        | Class::Storage
        | Class::Cancelled => Recovery::Time,
    }
}

/// The exit code of a command that ended with an error of this class. `started` tells whether work had begun: a wrong
/// argument found before is a usage error, the same found later a failure.
#[deny(clippy::wildcard_enum_match_arm)]
pub const fn exit_code(class: Class, started: bool) -> u8 {
    match class {
        Class::Config if !started => EXIT_USAGE,
        Class::Cancelled => EXIT_INTERRUPTED,
        Class::Config
        | Class::Auth
        | Class::NotFound
        | Class::Policy
        | Class::RateLimited
        | Class::Network
        | Class::RegistryStorage
        | Class::Digest
        | Class::Archive
        | Class::Storage => EXIT_FAILED,
    }
}

/// The error and its causes as one sentence. Our messages do not repeat their source's text, so the chain is joined here,
/// once, at the edge; a cause that only repeats what was said (some libraries do) is left out.
pub fn message(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use strum::IntoEnumIterator;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        #[source]
        source: Option<Box<Self>>,
    }

    fn layer(text: &'static str, source: Option<Layer>) -> Layer {
        Layer {
            text,
            source: source.map(Box::new),
        }
    }

    #[test]
    fn a_message_joins_the_causes_and_repeats_nothing() {
        let error = layer(
            "could not pull app:1",
            Some(layer(
                "connection reset: by peer",
                Some(layer("by peer", None)),
            )),
        );
        assert_eq!(
            message(&error),
            "could not pull app:1: connection reset: by peer"
        );
    }

    #[test]
    fn every_class_has_one_answer_to_each_question() {
        for class in Class::iter() {
            let name: &str = class.into();
            let expected = match name {
                "Config" => (Retry::Never, Recovery::SpecChange, EXIT_USAGE, EXIT_FAILED),
                "Archive" => (Retry::Never, Recovery::SpecChange, EXIT_FAILED, EXIT_FAILED),
                "Auth" | "NotFound" | "Policy" => {
                    (Retry::Never, Recovery::Outside, EXIT_FAILED, EXIT_FAILED)
                }
                "RateLimited" => (Retry::Park, Recovery::Time, EXIT_FAILED, EXIT_FAILED),
                "Network" | "RegistryStorage" => {
                    (Retry::Backoff, Recovery::Time, EXIT_FAILED, EXIT_FAILED)
                }
                "Digest" => (Retry::Once, Recovery::Time, EXIT_FAILED, EXIT_FAILED),
                "Storage" => (Retry::Never, Recovery::Time, EXIT_FAILED, EXIT_FAILED),
                "Cancelled" => (
                    Retry::Never,
                    Recovery::Time,
                    EXIT_INTERRUPTED,
                    EXIT_INTERRUPTED,
                ),
                other => panic!("{other} is not in this table"),
            };
            assert_eq!(
                (
                    retry(class),
                    recovery(class),
                    exit_code(class, false),
                    exit_code(class, true)
                ),
                expected,
                "{name}"
            );
        }
    }
}
