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
    ImageMirrorStatus, Progress, bounded,
    condition::{READY, RECONCILING, STALLED, Truth, condition, find, merged},
};

use super::{
    engine::Failure,
    verdict::{PROGRESSING, PROGRESSING_WITH_RETRY, Verdict, counted},
};

/// Our condition types; others belong to others and are never sent.
const OURS: [&str; 3] = [READY, RECONCILING, STALLED];

/// What a status is built from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scene<'a> {
    /// The status that stands.
    pub(super) base: &'a ImageMirrorStatus,
    /// The generation that is spoken of.
    pub(super) generation: i64,
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
    /// Images the mirror selects.
    pub(super) images: usize,
    /// How far it is.
    pub(super) progress: Progress,
}

impl Going {
    /// Whether nobody needs to hear of it: a look at a mirror that was judged, with nothing to do so far.
    pub(super) fn is_quiet(&self) -> bool {
        self.again && !self.copying
    }
}

impl Scene<'_> {
    /// The spec is wrong: nothing happens before it changes.
    pub(super) fn invalid(&self, failure: &Failure) -> ImageMirrorStatus {
        let wanted = vec![
            self.condition(READY, Truth::False, failure.reason, &failure.message),
            self.condition(STALLED, Truth::True, failure.reason, &failure.message),
        ];
        self.finished(wanted, self.fresh())
    }

    /// A run goes on or waits for its turn.
    pub(super) fn going(&self, going: &Going) -> ImageMirrorStatus {
        if going.is_quiet() {
            return self.at_rest(self.base.next_sync_time.clone());
        }
        let message = if going.queued {
            "waiting for a free slot".to_owned()
        } else {
            format!("copying {}", counted(going.images, "image"))
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

    /// A run ended with this verdict, and the mirror is looked at again at `next`.
    pub(super) fn concluded(
        &self,
        verdict: &Verdict,
        again: bool,
        next: Option<Timestamp>,
    ) -> ImageMirrorStatus {
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
        } else if !ready {
            wanted.push(self.condition(RECONCILING, Truth::True, PROGRESSING_WITH_RETRY, message));
        }
        let mut status = if again {
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
        let wanted = OURS
            .into_iter()
            .filter_map(|type_| find(&self.base.conditions, type_))
            .map(|standing| self.restamped(standing))
            .collect();
        let mut status = self.base.clone();
        status.next_sync_time = next;
        status.progress = None;
        self.finished(wanted, status)
    }

    /// What is left of the status when the spec asks for something else: the times, which are history.
    fn fresh(&self) -> ImageMirrorStatus {
        ImageMirrorStatus {
            last_sync_time: self.base.last_sync_time.clone(),
            last_successful_sync_time: self.base.last_successful_sync_time.clone(),
            ..ImageMirrorStatus::default()
        }
    }

    fn finished(&self, wanted: Vec<Condition>, mut status: ImageMirrorStatus) -> ImageMirrorStatus {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::condition::check::{Moment, violations},
        controller::{
            fixtures,
            verdict::{RunOutcome, judge},
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
            images: 2,
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
        let scene = Scene {
            base,
            generation,
            now: NOW,
        };
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
                    all.push((format!("{going:?}"), scene.going(&going), Moment::Mid));
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
            for outcome in outcomes {
                let verdict = judge(&outcome, &["a".to_owned(), "b".to_owned()], 0);
                let status = scene.concluded(&verdict, again, Some(NOW));
                all.push((format!("{outcome:?}"), status, Moment::End));
            }
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
                base: &base,
                generation: 2,
                now: NOW,
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

    fn ready(generation: i64) -> ImageMirrorStatus {
        let verdict = judge(
            &RunOutcome::Reported(fixtures::report(&[&[None]])),
            &["a".to_owned()],
            0,
        );
        Scene {
            base: &ImageMirrorStatus::default(),
            generation,
            now: NOW,
        }
        .concluded(&verdict, false, None)
    }

    #[test]
    fn a_ready_mirror_stays_so_while_it_is_looked_at_and_while_it_copies() {
        let base = ready(1);
        let scene = Scene {
            base: &base,
            generation: 1,
            now: NOW,
        };
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
        let scene = Scene {
            base: &base,
            generation: 2,
            now: NOW,
        };
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
}
