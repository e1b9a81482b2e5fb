//! What a run means: the table of outcomes of design part 3, as a pure function of the report.
//!
//! What mends a failure is decided by its class, in `error::handlers`, for every room alike; here the answers of many images
//! become one. Reasons are the errors' own names, or one of [`SUCCEEDED`], [`PROGRESSING`], [`PROGRESSING_WITH_RETRY`].

use std::time::Duration;

use crate::{
    api::{
        DestinationStatus, FailureStatus, ImageOutcome, ImageStatus, MAX_FAILURES, MAX_IMAGES,
        Summary,
    },
    error::{
        Class,
        handlers::{Recovery, recovery},
    },
    transfer::{Failure, ImageReport, RunReport},
};

use super::schedule::{Next, backoff};

/// Reason of Ready: all images are at all destinations.
pub(super) const SUCCEEDED: &str = "Succeeded";
/// Reason of Reconciling: a run goes on, or waits for its turn.
pub(super) const PROGRESSING: &str = "Progressing";
/// Reason of Reconciling and Ready: something failed and is tried again soon.
pub(super) const PROGRESSING_WITH_RETRY: &str = "ProgressingWithRetry";
/// Reason of Ready: nothing may start, and nothing was copied yet for this spec.
pub(super) const SUSPENDED: &str = "Suspended";
/// Reason of Ready: the run was stopped by the annotation.
pub(super) const CANCELLED: &str = "Cancelled";
/// Name of the failure of a run that ended by a bug of ours.
pub(super) const RUN_PANICKED: &str = "RunPanicked";

/// How a run ended.
#[derive(Debug, Clone)]
pub(super) enum RunOutcome {
    /// It went through all images.
    Reported(RunReport),
    /// It could not begin.
    Refused(Failure),
    /// It ended by a bug of ours.
    Panicked(String),
    /// Somebody asked that it be stopped.
    Cancelled,
}

/// What a run means for its mirror.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Verdict {
    /// Whether all images are at all destinations.
    pub(super) ready: bool,
    /// Reason of Ready.
    pub(super) reason: &'static str,
    /// What Ready says.
    pub(super) message: String,
    /// When the mirror is looked at again.
    pub(super) next: Next,
    /// The figures, when there is a report.
    pub(super) figures: Option<Figures>,
}

impl Verdict {
    /// Whether the run could not look at its source yet and found nothing wrong: an archive that is still written.
    pub(super) const fn is_postponed(&self) -> bool {
        !self.ready && matches!(self.next, Next::Backoff { failures: 0, .. })
    }

    /// Whether nothing happens before somebody mends the cause.
    pub(super) fn is_stalled(&self) -> bool {
        !self.ready && !matches!(self.next, Next::Backoff { .. })
    }
}

/// What the status tells of a report.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Figures {
    pub(super) summary: Summary,
    pub(super) synced: String,
    pub(super) images: Vec<ImageStatus>,
    pub(super) failures: Vec<FailureStatus>,
    pub(super) destinations: Vec<DestinationStatus>,
}

/// Judges a run. `destinations` are the names in the spec, `failed_before` the runs in a row that time was to mend.
pub(super) fn judge(outcome: &RunOutcome, destinations: &[String], failed_before: u32) -> Verdict {
    let failures = failed_before.saturating_add(1);
    match outcome {
        RunOutcome::Reported(report) => judge_report(report, destinations, failures),
        RunOutcome::Refused(failure) => {
            let (reason, next) = match recovery(failure.class) {
                Recovery::SpecChange => (failure.reason, after_final(failure.class)),
                Recovery::Outside => (failure.reason, Next::Outside),
                Recovery::Time => {
                    // A known time needs no growing pauses.
                    let next = failure.retry_after.map_or_else(
                        || Next::backoff(failures, Duration::ZERO),
                        |asked| Next::backoff(0, asked),
                    );
                    (PROGRESSING_WITH_RETRY, next)
                }
            };
            Verdict {
                ready: false,
                reason,
                message: said(reason, failure),
                next,
                figures: None,
            }
        }
        RunOutcome::Panicked(text) => Verdict {
            ready: false,
            reason: PROGRESSING_WITH_RETRY,
            message: format!(
                "{RUN_PANICKED}: the run ended by a bug of this program and is tried again: {text}"
            ),
            next: Next::backoff(failures, Duration::ZERO),
            figures: None,
        },
        RunOutcome::Cancelled => Verdict {
            ready: false,
            reason: CANCELLED,
            message: "the run was stopped on request; what was copied until then stays".to_owned(),
            next: Next::Interval,
            figures: None,
        },
    }
}

/// When a mirror is looked at again that no time and nobody outside mends. An archive changes without the spec, so it is
/// looked at all the same.
fn after_final(class: Class) -> Next {
    match class {
        Class::Archive => Next::Interval,
        _ => Next::SpecChange,
    }
}

/// The failure's message, and its name where that is not the reason already.
fn said(reason: &str, failure: &Failure) -> String {
    if reason == failure.reason {
        failure.message.clone()
    } else {
        format!("{}: {}", failure.reason, failure.message)
    }
}

fn judge_report(report: &RunReport, destinations: &[String], failed_runs: u32) -> Verdict {
    let figures = figures(report, destinations);
    let failures: Vec<(&ImageReport, Option<&str>, &Failure)> =
        report.images.iter().flat_map(failures_of).collect();
    let Some((image, destination, leading)) = leading(&failures) else {
        return Verdict {
            ready: true,
            reason: SUCCEEDED,
            message: success_message(report.images.len(), destinations.len()),
            next: Next::Interval,
            figures: Some(figures),
        };
    };
    let (reason, next) = match recovery(leading.class) {
        Recovery::Time => (
            PROGRESSING_WITH_RETRY,
            Next::backoff(failed_runs, asked_for(&failures)),
        ),
        Recovery::Outside => (leading.reason, Next::Outside),
        // The other images want to be kept up to date all the same.
        Recovery::SpecChange if figures.summary.failed < figures.summary.total => {
            (leading.reason, Next::Interval)
        }
        Recovery::SpecChange => (leading.reason, after_final(leading.class)),
    };
    let verb = match next {
        Next::Backoff { failures, asked } if asked > backoff(failures) => format!(
            "failed, to be tried again after a pause of {} s as the registry asked",
            asked.as_secs()
        ),
        Next::Backoff { .. } => "failed, to be tried again".to_owned(),
        Next::Interval | Next::Outside | Next::SpecChange => "failed".to_owned(),
    };
    let target = destination.map_or_else(String::new, |name| format!(" to {name}"));
    Verdict {
        ready: false,
        reason,
        message: format!(
            "{} of {} {verb}: {}{target}: {}",
            figures.summary.failed,
            counted(report.images.len(), "image"),
            image.source,
            said(reason, leading)
        ),
        next,
        figures: Some(figures),
    }
}

/// Every failure of an image, with the name of the destination where there is one.
fn failures_of(
    image: &ImageReport,
) -> impl Iterator<Item = (&ImageReport, Option<&str>, &Failure)> {
    image.failures().map(move |(destination, failure)| {
        (
            image,
            destination.map(|destination| destination.name.as_str()),
            failure,
        )
    })
}

/// The failure that decides what happens next: one that goes away by itself before one that somebody must mend outside,
/// and that before one of the spec.
fn leading<'a>(
    failures: &[(&'a ImageReport, Option<&'a str>, &'a Failure)],
) -> Option<(&'a ImageReport, Option<&'a str>, &'a Failure)> {
    let rank = |failure: &Failure| match recovery(failure.class) {
        Recovery::Time => 0,
        Recovery::Outside => 1,
        Recovery::SpecChange => 2,
    };
    failures
        .iter()
        .min_by_key(|(_, _, failure)| rank(failure))
        .copied()
}

/// The longest pause that any registry of this run asked for: the next run asks them all.
fn asked_for(failures: &[(&ImageReport, Option<&str>, &Failure)]) -> Duration {
    failures
        .iter()
        .filter_map(|(_, _, failure)| failure.retry_after)
        .max()
        .unwrap_or_default()
}

fn success_message(images: usize, destinations: usize) -> String {
    let verb = if images == 1 { "is" } else { "are" };
    let images = counted(images, "image");
    match destinations {
        0 => format!("{images} {verb} in the cache"),
        _ => format!(
            "{images} {verb} at {}",
            counted(destinations, "destination")
        ),
    }
}

/// `1 image`, `2 images`.
pub(super) fn counted(count: usize, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

/// What became of the image as a whole.
fn outcome_of(image: &ImageReport) -> ImageOutcome {
    if !image.is_complete() {
        ImageOutcome::Failed
    } else if image.is_copied() {
        ImageOutcome::Copied
    } else {
        ImageOutcome::UpToDate
    }
}

fn figures(report: &RunReport, destinations: &[String]) -> Figures {
    let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
    let total = report.images.len();
    let count_of = |wanted: ImageOutcome| {
        report
            .images
            .iter()
            .filter(|image| outcome_of(image) == wanted)
            .count()
    };
    let failed = count_of(ImageOutcome::Failed);
    let at = |name: &str| {
        let has = |image: &&ImageReport| {
            image.destinations.iter().any(|destination| {
                destination.name == name && destination.outcome.failure().is_none()
            })
        };
        report.images.iter().filter(has).count()
    };
    let all_failures: Vec<FailureStatus> = report
        .images
        .iter()
        .flat_map(failures_of)
        .map(|(image, destination, failure)| FailureStatus {
            source: image.source.clone(),
            destination: destination.map(str::to_owned),
            reason: failure.reason.to_owned(),
            message: failure.message.clone(),
        })
        .collect();
    let surplus = all_failures.len().saturating_sub(MAX_FAILURES);
    Figures {
        summary: Summary {
            total: number(total),
            up_to_date: number(count_of(ImageOutcome::UpToDate)),
            copied: number(count_of(ImageOutcome::Copied)),
            failed: number(failed),
        },
        synced: format!("{}/{total}", total - failed),
        images: report
            .images
            .iter()
            .take(MAX_IMAGES)
            .map(|image| ImageStatus {
                source: image.source.clone(),
                digest: image.digest.as_ref().map(ToString::to_string),
                outcome: outcome_of(image),
            })
            .collect(),
        failures: all_failures.into_iter().skip(surplus).collect(),
        destinations: destinations
            .iter()
            .map(|name| DestinationStatus {
                name: name.clone(),
                synced: format!("{}/{total}", at(name)),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{controller::fixtures, error::Class, transfer::Outcome};

    fn names() -> Vec<String> {
        vec!["a".to_owned(), "b".to_owned()]
    }

    fn judged(images: &[&[Option<Class>]]) -> Verdict {
        judge(&RunOutcome::Reported(fixtures::report(images)), &names(), 2)
    }

    /// Design part 3, table of outcomes, for the fields that exist. `None` stands for a copied image.
    #[test]
    fn every_outcome_has_its_reason_and_its_next_look() {
        use Class::{Archive, Auth, Config, Network, NotFound, Policy};
        type Case<'a> = (&'a [&'a [Option<Class>]], bool, &'a str, Next);
        let cases: [Case<'_>; 9] = [
            (&[&[None, None]], true, "Succeeded", Next::Interval),
            (
                &[&[None, None], &[Some(Network), None]],
                false,
                "ProgressingWithRetry",
                Next::backoff(3, Duration::ZERO),
            ),
            (
                &[&[Some(Auth), None], &[Some(Network), None]],
                false,
                "ProgressingWithRetry",
                Next::backoff(3, Duration::ZERO),
            ),
            (&[&[Some(Auth), None]], false, "AuthFailed", Next::Outside),
            (
                &[&[None, Some(NotFound)]],
                false,
                "NotFoundFailed",
                Next::Outside,
            ),
            (
                &[&[Some(Config), Some(Policy)]],
                false,
                "PolicyFailed",
                Next::Outside,
            ),
            // The file changes without the spec.
            (&[&[Some(Archive)]], false, "OtherFailed", Next::Interval),
            (
                &[&[Some(Config), None]],
                false,
                "ConfigFailed",
                Next::SpecChange,
            ),
            (
                &[&[Some(Config), None], &[None, None]],
                false,
                "ConfigFailed",
                Next::Interval,
            ),
        ];
        for (images, ready, reason, next) in cases {
            let verdict = judged(images);
            assert_eq!(
                (verdict.ready, verdict.reason, verdict.next),
                (ready, reason, next),
                "{images:?}"
            );
            assert_eq!(
                verdict.is_stalled(),
                !ready && !matches!(next, Next::Backoff { .. }),
                "{images:?}"
            );
        }
    }

    #[test]
    fn a_run_that_could_not_begin_is_judged_by_its_class_too() {
        for (class, reason, next) in [
            (Class::Config, "ConfigFailed", Next::SpecChange),
            (Class::Archive, "OtherFailed", Next::Interval),
            (Class::NotFound, "NotFoundFailed", Next::Outside),
            (
                Class::Network,
                "ProgressingWithRetry",
                Next::backoff(1, Duration::ZERO),
            ),
        ] {
            let verdict = judge(&RunOutcome::Refused(fixtures::failure(class)), &names(), 0);
            assert_eq!((verdict.reason, verdict.next), (reason, next));
            assert!(
                verdict.message.contains("went wrong"),
                "{}",
                verdict.message
            );
        }
    }

    #[test]
    fn a_run_that_was_stopped_on_request_comes_again_with_the_interval() {
        let verdict = judge(&RunOutcome::Cancelled, &names(), 5);
        assert_eq!(
            (verdict.ready, verdict.reason, verdict.next),
            (false, "Cancelled", Next::Interval)
        );
        assert!(verdict.is_stalled() && verdict.figures.is_none());
    }

    /// Registry rule R15: a pause that was asked for also holds between runs.
    #[test]
    fn the_longest_pause_asked_for_comes_before_the_next_run() {
        let asked = |seconds| Failure {
            retry_after: Some(Duration::from_secs(seconds)),
            ..fixtures::failure(Class::RateLimited)
        };
        let mut report = fixtures::report(&[&[Some(Class::Network), None], &[None, None]]);
        report.images[1].destinations[0].outcome = Outcome::Failed(asked(3600));
        report.images[1].destinations[1].outcome = Outcome::Failed(asked(60));
        let verdict = judge(&RunOutcome::Reported(report), &names(), 0);
        assert_eq!(verdict.next, Next::backoff(1, Duration::from_hours(1)));
        let expected = "2 of 2 images failed, to be tried again after a pause of 3600 s as the registry asked: ";
        assert!(verdict.message.starts_with(expected), "{}", verdict.message);
    }

    /// As of an archive that somebody is still writing, which is no failure.
    #[test]
    fn a_run_that_could_not_begin_yet_is_tried_again_when_it_said() {
        let refused = Failure {
            retry_after: Some(Duration::from_secs(7)),
            ..fixtures::failure(Class::RateLimited)
        };
        let verdict = judge(&RunOutcome::Refused(refused), &names(), 5);
        assert_eq!(
            (verdict.reason, verdict.next, verdict.is_stalled()),
            (
                "ProgressingWithRetry",
                Next::backoff(0, Duration::from_secs(7)),
                false
            )
        );
    }

    #[test]
    fn figures_count_images_and_destinations() {
        let verdict = judged(&[
            &[None, None],
            &[Some(Class::Network), None],
            &[Some(Class::Auth), Some(Class::Auth)],
        ]);
        let figures = verdict.figures.unwrap();
        assert_eq!(figures.synced, "1/3");
        assert_eq!(
            figures.summary,
            Summary {
                total: 3,
                up_to_date: 0,
                copied: 1,
                failed: 2
            }
        );
        let destinations: Vec<_> = figures
            .destinations
            .iter()
            .map(|each| (each.name.as_str(), each.synced.as_str()))
            .collect();
        assert_eq!(destinations, [("a", "1/3"), ("b", "2/3")]);
        assert_eq!(figures.failures.len(), 3);
    }

    #[test]
    fn messages_are_sentences() {
        for (images, expected) in [
            (vec![[None, None]], "1 image is at 2 destinations"),
            (
                vec![[None, None], [None, Some(Class::Auth)]],
                "1 of 2 images failed: localhost:1/image:1 to b: it went wrong",
            ),
            (
                vec![[None, Some(Class::Network)]],
                "1 of 1 image failed, to be tried again: localhost:1/image:0 to b: NetworkFailed: it went wrong",
            ),
        ] {
            let images: Vec<&[Option<Class>]> = images.iter().map(|each| &each[..]).collect();
            assert_eq!(judged(&images).message, expected);
        }
    }

    #[test]
    fn the_last_10_failures_and_the_first_20_images_are_told() {
        let image: &[Option<Class>] = &[Some(Class::Auth), None];
        let figures = judged(&[image; 30]).figures.unwrap();
        assert_eq!((figures.images.len(), figures.failures.len()), (20, 10));
        assert_eq!(figures.images[0].source, "localhost:1/image:0");
        assert_eq!(figures.failures[9].source, "localhost:1/image:29");
    }
}
