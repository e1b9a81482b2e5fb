//! What became of a run: one entry per image, one outcome per destination.

use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::{
    error::{Class, Classified, handlers},
    image::Digest,
};

use super::Error;

/// Why something failed, without the error itself: it goes into status, reports and events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// The error's own name.
    pub reason: &'static str,
    /// What kind of trouble, and so what happens next.
    #[serde(serialize_with = "class_name")]
    pub class: Class,
    /// The whole sentence, causes included.
    pub message: String,
    /// When the other side said it may be asked again, as a pause from then on.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "seconds")]
    pub retry_after: Option<Duration>,
}

#[expect(clippy::ref_option, reason = "the signature serde asks for")]
fn seconds<S: Serializer>(pause: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    pause.map(|pause| pause.as_secs()).serialize(serializer)
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature serde asks for"
)]
fn class_name<S: Serializer>(class: &Class, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(class.into())
}

impl Failure {
    /// A failure that is no error of a room, with nobody to wait for.
    pub fn new(reason: &'static str, class: Class, message: impl Into<String>) -> Self {
        Self {
            reason,
            class,
            message: message.into(),
            retry_after: None,
        }
    }

    /// An error of any room.
    pub fn of<E: Classified + 'static>(error: &E) -> Self {
        Self::new(error.reason(), error.class(), handlers::message(error))
    }
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        Self {
            retry_after: error.retry_after(),
            ..Self::of(error)
        }
    }
}

/// What became of an image at one destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// It was there already, byte for byte.
    UpToDate,
    /// It was copied.
    Copied,
    /// It is not there.
    Failed(Failure),
}

impl Outcome {
    /// The failure, if it is one.
    pub const fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Failed(failure) => Some(failure),
            Self::UpToDate | Self::Copied => None,
        }
    }
}

/// What became of an image at one destination, with the destination's names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DestinationReport {
    /// The destination's name.
    pub name: String,
    /// The full name of the image there.
    pub target: String,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageReport {
    /// The name of the image at its source.
    pub source: String,
    /// Its digest, once it is known.
    pub digest: Option<Digest>,
    /// What became of the image itself: of the lookup and the way into the cache. It is [`Outcome::UpToDate`] too where
    /// nothing had to be fetched because every destination had the image.
    pub fetched: Outcome,
    /// What became of it at each destination; a failed fetch fails those that needed it.
    pub destinations: Vec<DestinationReport>,
}

impl ImageReport {
    /// Everything that failed, as (destination, failure); a failure of the fetch has no destination.
    pub fn failures(&self) -> impl Iterator<Item = (Option<&DestinationReport>, &Failure)> {
        let fetch = self.fetched.failure().map(|failure| (None, failure));
        // A destination that failed because the fetch did would only repeat it.
        let repeated = self.fetched.failure();
        let destinations = self.destinations.iter().filter_map(move |destination| {
            let failure = destination.outcome.failure()?;
            (Some(failure) != repeated).then_some((Some(destination), failure))
        });
        fetch.into_iter().chain(destinations)
    }

    /// Whether the image is where it should be, everywhere.
    pub fn is_complete(&self) -> bool {
        self.failures().next().is_none()
    }

    /// Whether anything was copied.
    pub fn is_copied(&self) -> bool {
        self.fetched == Outcome::Copied
            || self
                .destinations
                .iter()
                .any(|destination| destination.outcome == Outcome::Copied)
    }
}

/// What became of a run, in the order of its jobs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct RunReport {
    /// One entry per job.
    pub images: Vec<ImageReport>,
}

impl RunReport {
    /// Images that are where they should be and needed no copy.
    pub fn up_to_date(&self) -> usize {
        self.images
            .iter()
            .filter(|image| image.is_complete() && !image.is_copied())
            .count()
    }

    /// Images that were copied to at least one place and failed nowhere.
    pub fn copied(&self) -> usize {
        self.images
            .iter()
            .filter(|image| image.is_complete() && image.is_copied())
            .count()
    }

    /// Images that failed somewhere.
    pub fn failed(&self) -> usize {
        self.images
            .iter()
            .filter(|image| !image.is_complete())
            .count()
    }

    /// Every failure with the image it belongs to.
    pub fn failures(
        &self,
    ) -> impl Iterator<Item = (&ImageReport, Option<&DestinationReport>, &Failure)> {
        self.images.iter().flat_map(|image| {
            image
                .failures()
                .map(move |(destination, failure)| (image, destination, failure))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(reason: &'static str) -> Failure {
        Failure::new(reason, Class::Network, reason)
    }

    fn image(fetched: Outcome, outcomes: Vec<Outcome>) -> ImageReport {
        let destinations = outcomes
            .into_iter()
            .map(|outcome| DestinationReport {
                name: "default".into(),
                target: "b/app:1".into(),
                outcome,
            })
            .collect();
        ImageReport {
            source: "a/app:1".into(),
            digest: None,
            fetched,
            destinations,
        }
    }

    #[test]
    fn each_image_is_counted_once() {
        let report = RunReport {
            images: vec![
                image(
                    Outcome::UpToDate,
                    vec![Outcome::UpToDate, Outcome::UpToDate],
                ),
                image(Outcome::Copied, vec![Outcome::UpToDate, Outcome::Copied]),
                image(
                    Outcome::Copied,
                    vec![Outcome::Copied, Outcome::Failed(failure("AccessDenied"))],
                ),
                image(Outcome::Copied, vec![]),
            ],
        };
        assert_eq!(
            (report.up_to_date(), report.copied(), report.failed()),
            (1, 2, 1)
        );
    }

    #[test]
    fn a_failed_fetch_is_told_once() {
        let outcome = || Outcome::Failed(failure("ManifestUnknown"));
        let other = Outcome::Failed(failure("AccessDenied"));
        let report = RunReport {
            images: vec![image(outcome(), vec![outcome(), other])],
        };
        let reasons: Vec<_> = report
            .failures()
            .map(|(_, _, failure)| failure.reason)
            .collect();
        assert_eq!(reasons, ["ManifestUnknown", "AccessDenied"]);
    }
}
