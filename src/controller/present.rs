//! Builds every status the operator writes. Pure: the status that stands, the generation and the clock come in.
//!
//! Three promises to those who wait for health (operator rules S2 to S5): Ready is always there; what is said of an older
//! spec never looks like an answer to a newer one; and a mirror that is looked at again keeps its verdict until there is
//! something to copy.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

use crate::api::{
    ImageMirrorStatus, Progress, ReportReference, bounded,
    condition::{READY, RECONCILING, STALLED, Truth, condition, find, merged},
};

use super::{
    annotations::Wishes,
    engine::Failure,
    verdict::{PROGRESSING, PROGRESSING_WITH_RETRY, SUSPENDED, Verdict, counted},
};

/// Our condition types; others belong to others and are never sent.
const OURS: [&str; 3] = [READY, RECONCILING, STALLED];
/// What Ready's message begins with while the mirror is suspended; the verdict itself stays.
const SUSPENDED_MARK: &str = "suspended: ";
/// Digits of a run's key that a status holds: enough to tell apart what one mirror was ever asked for.
const SHORT_KEY_LENGTH: usize = 16;

/// What a status is built from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scene<'a> {
    /// The status that stands.
    pub(super) base: &'a ImageMirrorStatus,
    /// The generation that is spoken of.
    pub(super) generation: i64,
    /// Names the copies that the spec asks for; `None` for a spec that is wrong.
    pub(super) run_key: Option<&'a str>,
    /// Whether nothing new may start.
    pub(super) suspended: bool,
    /// What the annotations say.
    pub(super) wishes: &'a Wishes,
    /// The clock.
    pub(super) now: Timestamp,
}

/// What a run that goes on is about.
#[derive(Debug, Clone)]
pub(super) struct Going {
    /// Whether it repeats a run of the same spec, so that the verdict of that one still counts.
    pub(super) again: bool,
    /// Whether it waits for its turn.
    pub(super) queued: bool,
    /// Whether it found something to copy.
    pub(super) copying: bool,
    /// Images the mirror selects, once that is known.
    pub(super) images: Option<usize>,
    /// How far it is.
    pub(super) progress: Progress,
}

/// A run that is over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended<'a> {
    /// What it means.
    pub(super) verdict: &'a Verdict,
    /// Whether it repeated a run of the same spec.
    pub(super) again: bool,
    /// When the mirror is looked at again.
    pub(super) next: Option<Timestamp>,
    /// The request that it answers.
    pub(super) requested: Option<&'a str>,
    /// Where its report lies; `None` where the one before stays.
    pub(super) reports: Option<&'a [ReportReference]>,
}

impl Going {
    /// Whether nobody needs to hear of it: a look at a mirror that was judged, with nothing to do so far.
    pub(super) fn is_quiet(&self) -> bool {
        self.again && !self.copying
    }
}

/// As much of a run's key as tells it apart from others in a status or a log.
pub(super) fn short_key(run_key: &str) -> &str {
    run_key.get(..SHORT_KEY_LENGTH).unwrap_or(run_key)
}

/// Whether the status tells that the mirror is suspended.
pub(super) fn says_suspended(status: &ImageMirrorStatus) -> bool {
    find(&status.conditions, READY).is_some_and(|ready| ready.message.starts_with(SUSPENDED_MARK))
}

impl Scene<'_> {
    /// The spec is wrong: nothing happens before it changes.
    pub(super) fn invalid(&self, failure: &Failure) -> ImageMirrorStatus {
        let wanted = vec![
            self.condition(READY, Truth::False, failure.reason, &failure.message),
            self.condition(STALLED, Truth::True, failure.reason, &failure.message),
        ];
        let mut status = self.fresh();
        if let Some(token) = self.wishes.run.clone().filter(|_| !self.suspended) {
            // There is no more to do than to look at it.
            status.last_handled_reconcile_at = Some(token);
        }
        self.finished(wanted, status)
    }

    /// A run goes on or waits for its turn.
    pub(super) fn going(&self, going: &Going) -> ImageMirrorStatus {
        if going.is_quiet() {
            return self.at_rest(self.base.next_sync_time.clone());
        }
        let message = match going.images {
            _ if going.queued => "waiting for a free slot".to_owned(),
            None => "reading the archive".to_owned(),
            Some(images) => format!("copying {}", counted(images, "image")),
        };
        let ready = match find(&self.base.conditions, READY) {
            Some(verdict) if going.again => self.restamped(verdict),
            _ => self.condition(READY, Truth::Unknown, PROGRESSING, &message),
        };
        let reconciling = self.condition(RECONCILING, Truth::True, PROGRESSING, &message);
        let mut status = if going.again {
            self.base.clone()
        } else {
            self.fresh()
        };
        status.next_sync_time = None;
        status.progress = (!going.queued).then(|| going.progress.clone());
        self.finished(vec![ready, reconciling], status)
    }

    /// A run is over.
    pub(super) fn concluded(&self, ended: &Ended<'_>) -> ImageMirrorStatus {
        let Ended {
            verdict,
            again,
            next,
            requested,
            reports,
        } = ended;
        let ready = find(&self.base.conditions, READY);
        if *again && verdict.is_postponed() && ready.is_some_and(|ready| ready.status == "True") {
            return self.at_rest(next.map(Time));
        }
        let Verdict {
            ready,
            reason,
            message,
            next: _,
            figures,
        } = verdict;
        let truth = if *ready { Truth::True } else { Truth::False };
        let mut wanted = vec![self.condition(READY, truth, reason, message)];
        if verdict.is_stalled() {
            wanted.push(self.condition(STALLED, Truth::True, reason, message));
        } else if !ready && !self.suspended {
            wanted.push(self.condition(RECONCILING, Truth::True, PROGRESSING_WITH_RETRY, message));
        }
        let mut status = if *again {
            self.base.clone()
        } else {
            self.fresh()
        };
        let now = Time(self.now);
        if *ready {
            status.last_successful_sync_time = Some(now.clone());
        }
        status.last_sync_time = Some(now);
        status.next_sync_time = next.map(Time);
        status.progress = None;
        if let Some(token) = requested {
            status.last_handled_reconcile_at = Some((*token).to_owned());
        }
        if let Some(reports) = reports {
            status.report_ref = reports.to_vec();
        }
        if let Some(figures) = figures.clone() {
            status.summary = Some(figures.summary);
            status.synced = Some(figures.synced);
            status.images = figures.images;
            status.failures = figures.failures;
            status.destinations = figures.destinations;
        }
        self.finished(wanted, status)
    }

    /// Nothing goes on: the verdict that stands counts for this generation as well, since both ask for the same copies.
    pub(super) fn at_rest(&self, next: Option<Time>) -> ImageMirrorStatus {
        let standing = |type_| find(&self.base.conditions, type_);
        let mut wanted: Vec<Condition> = OURS
            .into_iter()
            .filter_map(standing)
            .map(|condition| self.restamped(condition))
            .collect();
        // A mirror that was suspended while it waited for its next attempt waits for it again.
        let waits = |ready: &&Condition| ready.reason == PROGRESSING_WITH_RETRY;
        if let Some(ready) = standing(READY).filter(waits)
            && standing(RECONCILING).is_none()
            && !self.suspended
        {
            wanted.push(self.condition(
                RECONCILING,
                Truth::True,
                PROGRESSING_WITH_RETRY,
                without_mark(&ready.message),
            ));
        }
        let mut status = self.base.clone();
        status.next_sync_time = next;
        status.progress = None;
        self.finished(wanted, status)
    }

    /// Nothing starts before somebody resumes the mirror. The verdict on these copies stays, if there is one.
    pub(super) fn paused(&self, judged: bool) -> ImageMirrorStatus {
        if judged {
            let mut status = self.at_rest(None);
            status.conditions.retain(|each| each.type_ != RECONCILING);
            return status;
        }
        let message = "nothing was copied for this specification yet";
        let ready = self.condition(READY, Truth::Unknown, SUSPENDED, message);
        self.finished(vec![ready], self.fresh())
    }

    /// What is left of the status when the spec asks for something else: what is history, and the requests that were
    /// answered.
    fn fresh(&self) -> ImageMirrorStatus {
        let base = self.base;
        ImageMirrorStatus {
            last_handled_reconcile_at: base.last_handled_reconcile_at.clone(),
            last_handled_cancel_at: base.last_handled_cancel_at.clone(),
            last_sync_time: base.last_sync_time.clone(),
            last_successful_sync_time: base.last_successful_sync_time.clone(),
            report_ref: base.report_ref.clone(),
            ..ImageMirrorStatus::default()
        }
    }

    /// What every status has. Whoever builds one has carried out a request to stop: either the run is stopped, or there
    /// is none.
    fn finished(
        &self,
        mut wanted: Vec<Condition>,
        mut status: ImageMirrorStatus,
    ) -> ImageMirrorStatus {
        for ready in wanted.iter_mut().filter(|each| each.type_ == READY) {
            let message = without_mark(&ready.message);
            ready.message = if self.suspended {
                format!("{SUSPENDED_MARK}{message}")
            } else {
                message.to_owned()
            };
        }
        if self.suspended {
            status.next_sync_time = None;
        }
        if let Some(token) = &self.wishes.cancel {
            status.last_handled_cancel_at = Some(token.clone());
        }
        status.run_key = self.run_key.map(|key| short_key(key).to_owned());
        status.observed_generation = self.generation;
        status.conditions = merged(&self.base.conditions, wanted);
        status.ready = find(&status.conditions, READY).map(|ready| ready.status.clone());
        bounded(status)
    }

    fn condition(&self, type_: &str, truth: Truth, reason: &str, message: &str) -> Condition {
        condition(
            type_,
            truth,
            reason,
            message,
            self.generation,
            &Time(self.now),
        )
    }

    fn restamped(&self, standing: &Condition) -> Condition {
        Condition {
            observed_generation: Some(self.generation),
            ..standing.clone()
        }
    }
}

/// Ready's message as it is while the mirror is not suspended.
fn without_mark(message: &str) -> &str {
    message.strip_prefix(SUSPENDED_MARK).unwrap_or(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::condition::check::{Moment, violations},
        controller::{
            fixtures::{self, concluded, scene},
            verdict::RunOutcome,
        },
        error::Class,
        transfer::RunReport,
    };

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn going(again: bool, queued: bool, copying: bool) -> Going {
        Going {
            again,
            queued,
            copying,
            images: Some(2),
            progress: Progress {
                bytes_total: 10,
                text: "0%".to_owned(),
                ..Progress::default()
            },
        }
    }

    /// Every status that can follow `base` for an object of this generation, with the moment it is written in.
    fn successors(
        base: &ImageMirrorStatus,
        generation: i64,
    ) -> Vec<(String, ImageMirrorStatus, Moment)> {
        let scene = scene(base, generation, NOW);
        let suspended = Scene {
            suspended: true,
            ..scene
        };
        let mut all = successors_in(&scene);
        all.extend(successors_in(&suspended));
        all
    }

    fn successors_in(scene: &Scene<'_>) -> Vec<(String, ImageMirrorStatus, Moment)> {
        let base = scene.base;
        let judged = base.observed_generation >= 1;
        let mut all = vec![(
            "invalid".to_owned(),
            scene.invalid(&fixtures::failure(Class::Config)),
            Moment::End,
        )];
        for again in [false, judged] {
            for queued in [false, true] {
                for copying in [false, true] {
                    let going = going(again, queued, copying);
                    let name = format!("suspended: {}, {going:?}", scene.suspended);
                    all.push((name, scene.going(&going), Moment::Mid));
                }
            }
            let classes = [
                None,
                Some(Class::Config),
                Some(Class::Auth),
                Some(Class::Network),
            ];
            let mut outcomes: Vec<RunOutcome> = classes
                .iter()
                .flat_map(|first| classes.iter().map(move |second| [*first, *second]))
                .map(|image| RunOutcome::Reported(fixtures::report(&[&image])))
                .collect();
            outcomes.push(RunOutcome::Reported(RunReport::default()));
            outcomes.push(RunOutcome::Panicked("index out of bounds".to_owned()));
            for class in classes.into_iter().flatten() {
                outcomes.push(RunOutcome::Refused(fixtures::failure(class)));
            }
            outcomes.push(RunOutcome::Cancelled);
            for outcome in outcomes {
                let status = concluded(scene, &outcome, again, Some(NOW));
                let name = format!("suspended: {}, {outcome:?}", scene.suspended);
                all.push((name, status, Moment::End));
            }
        }
        let standing = |type_| find(&base.conditions, type_);
        let has_verdict = standing(READY).is_some_and(|ready| ready.status != "Unknown");
        let works = standing(RECONCILING).is_some_and(|found| found.reason == PROGRESSING);
        if scene.suspended {
            for judged in [false, has_verdict] {
                let name = format!("paused, judged: {judged}");
                all.push((name, scene.paused(judged), Moment::End));
            }
        } else if has_verdict && !works {
            all.push(("at rest".to_owned(), scene.at_rest(None), Moment::End));
        }
        all
    }

    #[test]
    fn no_chain_of_statuses_ever_misleads_a_waiter() {
        let first = successors(&ImageMirrorStatus::default(), 1);
        for (name, status, moment) in &first {
            assert_eq!(
                violations(status, 1, *moment),
                Vec::<&str>::new(),
                "{name}: {status:#?}"
            );
            // The same generation again, and a newer one.
            for generation in [1, 2] {
                for (second_name, second, moment) in successors(status, generation) {
                    assert_eq!(
                        violations(&second, generation, moment),
                        Vec::<&str>::new(),
                        "{name}, then {second_name}: {second:#?}"
                    );
                }
            }
        }
    }

    #[test]
    fn an_edit_that_changes_no_copy_moves_the_generation_and_nothing_else() {
        for (name, base, moment) in successors(&ImageMirrorStatus::default(), 1) {
            if moment == Moment::Mid {
                continue;
            }
            let scene = Scene {
                suspended: says_suspended(&base),
                ..scene(&base, 2, NOW)
            };
            let mut status = scene.at_rest(base.next_sync_time.clone());
            assert!(violations(&status, 2, Moment::End).is_empty(), "{name}");
            status.observed_generation = 1;
            for condition in &mut status.conditions {
                condition.observed_generation = Some(1);
            }
            assert_eq!(status, base, "{name}");
        }
    }

    /// The status after a run of one image that ended with a failure of this class, or without.
    fn ended(scene: &Scene<'_>, class: Option<Class>) -> ImageMirrorStatus {
        let outcome = RunOutcome::Reported(fixtures::report(&[&[class, None]]));
        concluded(scene, &outcome, false, Some(NOW))
    }

    fn ready(generation: i64) -> ImageMirrorStatus {
        let base = ImageMirrorStatus::default();
        ended(&scene(&base, generation, NOW), None)
    }

    #[test]
    fn a_ready_mirror_stays_so_while_it_is_looked_at_and_while_it_copies() {
        let base = ready(1);
        let scene = scene(&base, 1, NOW);
        assert_eq!(
            scene.going(&going(true, false, false)),
            base,
            "nothing to say yet"
        );
        let copying = scene.going(&going(true, false, true));
        assert_eq!(copying.ready.as_deref(), Some("True"));
        let reconciling = find(&copying.conditions, RECONCILING).unwrap();
        assert_eq!(reconciling.reason, PROGRESSING);
        assert!(copying.progress.is_some());
    }

    #[test]
    fn a_new_spec_makes_ready_unknown_at_once() {
        let base = ready(1);
        let scene = scene(&base, 2, NOW);
        let status = scene.going(&going(false, true, false));
        let ready = find(&status.conditions, READY).unwrap();
        assert_eq!(
            (
                ready.status.as_str(),
                ready.observed_generation,
                ready.message.as_str()
            ),
            ("Unknown", Some(2), "waiting for a free slot")
        );
        assert_eq!((status.synced, status.summary), (None, None));
        assert_eq!(status.last_sync_time, base.last_sync_time);
    }

    /// Design part 3: Ready keeps its verdict and says that the mirror is suspended; resumed, it is as it was.
    #[test]
    fn a_suspended_mirror_keeps_its_verdict_says_so_and_is_as_before_when_it_is_resumed() {
        for class in [None, Some(Class::Auth), Some(Class::Network)] {
            let before = ended(&scene(&ImageMirrorStatus::default(), 1, NOW), class);
            let suspended = Scene {
                suspended: true,
                ..scene(&before, 2, NOW)
            }
            .paused(true);
            let (was, is) = (
                find(&before.conditions, READY).unwrap(),
                find(&suspended.conditions, READY).unwrap(),
            );
            assert_eq!((&is.status, &is.reason), (&was.status, &was.reason));
            assert_eq!(is.message, format!("suspended: {}", was.message));
            assert_eq!(suspended.next_sync_time, None);
            assert_eq!(suspended.observed_generation, 2);
            assert_eq!(find(&suspended.conditions, RECONCILING), None);
            let again = Scene {
                suspended: true,
                ..scene(&suspended, 2, NOW)
            };
            assert_eq!(again.paused(true), suspended, "said once");
            let mut resumed = scene(&suspended, 1, NOW).at_rest(before.next_sync_time.clone());
            resumed.conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
            assert_eq!(resumed, before, "{class:?}");
        }
    }

    #[test]
    fn a_mirror_that_is_suspended_from_the_start_is_unknown_and_not_at_work() {
        let base = ready(1);
        for base in [&ImageMirrorStatus::default(), &base] {
            let status = Scene {
                suspended: true,
                ..scene(base, 2, NOW)
            }
            .paused(false);
            let conditions: Vec<_> = status
                .conditions
                .iter()
                .map(|each| {
                    (
                        each.type_.as_str(),
                        each.status.as_str(),
                        each.reason.as_str(),
                    )
                })
                .collect();
            assert_eq!(conditions, [(READY, "Unknown", SUSPENDED)]);
            assert_eq!((status.synced, status.next_sync_time), (None, None));
        }
    }

    #[test]
    fn a_suspended_mirror_whose_copy_goes_on_says_both() {
        let base = ImageMirrorStatus::default();
        let status = Scene {
            suspended: true,
            ..scene(&base, 1, NOW)
        }
        .going(&going(false, false, true));
        let ready = find(&status.conditions, READY).unwrap();
        assert_eq!(ready.message, "suspended: copying 2 images");
        assert!(find(&status.conditions, RECONCILING).is_some() && status.progress.is_some());
    }

    #[test]
    fn an_archive_is_read_before_its_images_are_counted() {
        let base = ImageMirrorStatus::default();
        let reading = Going {
            images: None,
            ..going(false, false, false)
        };
        let status = scene(&base, 1, NOW).going(&reading);
        let ready = find(&status.conditions, READY).unwrap();
        assert_eq!(ready.message, "reading the archive");
    }

    /// Operator rules G2 and G3: what was answered is never asked again, whatever comes later.
    #[test]
    fn answered_requests_stay_answered() {
        let wishes = Wishes {
            run: Some("run-2".to_owned()),
            cancel: Some("stop-1".to_owned()),
        };
        let base = ImageMirrorStatus {
            last_handled_reconcile_at: Some("run-1".to_owned()),
            ..ready(1)
        };
        let asked = Scene {
            wishes: &wishes,
            ..scene(&base, 2, NOW)
        };
        let suspended = Scene {
            suspended: true,
            ..asked
        };
        let failure = fixtures::failure(Class::Config);
        for (status, answered) in [
            (asked.going(&going(false, false, true)), "run-1"),
            (asked.at_rest(None), "run-1"),
            (suspended.paused(false), "run-1"),
            (suspended.invalid(&failure), "run-1"),
            (ended(&asked, None), "run-1"),
            (asked.invalid(&failure), "run-2"),
        ] {
            assert_eq!(status.last_handled_cancel_at.as_deref(), Some("stop-1"));
            let found = status.last_handled_reconcile_at.as_deref();
            assert_eq!(found, Some(answered), "{status:#?}");
            let later = scene(&status, 3, NOW).going(&going(false, false, true));
            assert_eq!(
                later.last_handled_reconcile_at,
                status.last_handled_reconcile_at
            );
            assert_eq!(later.last_handled_cancel_at, status.last_handled_cancel_at);
        }
    }

    #[test]
    fn a_mirror_stays_ready_while_its_archive_is_written_anew() {
        let fresh = ImageMirrorStatus::default();
        let succeeded = RunOutcome::Reported(fixtures::report(&[&[None]]));
        let base = concluded(&scene(&fresh, 1, NOW), &succeeded, false, None);
        let unsettled = RunOutcome::Refused(crate::transfer::Failure {
            retry_after: Some(std::time::Duration::from_secs(10)),
            ..fixtures::failure(Class::RateLimited)
        });
        let scene = scene(&base, 1, NOW);
        let status = concluded(&scene, &unsettled, true, Some(NOW));
        assert_eq!(status.conditions, base.conditions);
        assert_eq!(status.next_sync_time, Some(Time(NOW)));
        // What other copies were said to be tells nothing of these.
        let status = concluded(&scene, &unsettled, false, Some(NOW));
        let ready = find(&status.conditions, READY).unwrap();
        assert_eq!(ready.reason, PROGRESSING_WITH_RETRY);
    }
}
