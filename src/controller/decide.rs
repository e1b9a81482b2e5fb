//! The state machine of a mirror: from what is known, the one thing to do now. Pure, so that it can be read in one sitting
//! and tested as a table.

use std::time::Duration;

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::{SignedDuration, Timestamp},
};

use crate::api::{
    ImageMirrorStatus,
    condition::{READY, RECONCILING, STALLED, find},
};

use super::{
    annotations::Wishes,
    present::{says_suspended, short_key},
    schedule::{Jitter, Next, failures_behind, next_run},
    verdict::{CANCELLED, PROGRESSING_WITH_RETRY},
};

/// How far clocks may differ before they count as wrong.
const CLOCK_SLACK: SignedDuration = SignedDuration::from_mins(1);

/// What is remembered of the last run of a mirror. Lost at a restart; the status then says what is needed.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Memory {
    /// Which object: a new one of the same name remembers nothing.
    pub(super) uid: String,
    /// What was copied.
    pub(super) run_key: String,
    /// Why to look again.
    pub(super) next: Next,
    /// When it ended.
    ended: Timestamp,
    /// The random number of its pause; kept, so that the same question has the same answer.
    sample: f64,
    /// The interval that `at` was reckoned with.
    interval: Option<Duration>,
    /// When to look again.
    at: Option<Timestamp>,
}

impl Memory {
    /// When to look again with this interval, which may have been edited meanwhile.
    pub(super) fn at(&self, interval: Option<Duration>, jitter: Jitter) -> Option<Timestamp> {
        match self.next {
            Next::Interval | Next::Outside if self.interval != interval => {
                next_run(self.next, interval, self.ended, jitter, self.sample)
            }
            _ => self.at,
        }
    }
}

/// A run that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RunView<'a> {
    /// Which object it is for.
    pub(super) uid: &'a str,
    /// What it copies.
    pub(super) run_key: &'a str,
    /// Whether it is over and waits to be judged.
    pub(super) finished: bool,
}

/// What is known of a mirror.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts<'a> {
    pub(super) uid: &'a str,
    pub(super) run_key: &'a str,
    pub(super) generation: i64,
    pub(super) interval: Option<Duration>,
    pub(super) suspended: bool,
    pub(super) wishes: &'a Wishes,
    pub(super) now: Timestamp,
    pub(super) jitter: Jitter,
    pub(super) run: Option<RunView<'a>>,
    pub(super) memory: Option<&'a Memory>,
    pub(super) status: &'a ImageMirrorStatus,
}

/// What is to be done with a mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Begin a run; one for something else is stopped.
    Start {
        /// Whether it repeats a run of the same spec.
        again: bool,
    },
    /// A run goes on: tell how far it is.
    Watch,
    /// Somebody asked that the run be stopped.
    Cancel,
    /// A run is over: judge it.
    Conclude,
    /// Nothing to do before this time, if any.
    Rest(Option<Timestamp>),
    /// Nothing starts before the mirror is resumed.
    Suspend {
        /// Whether these copies have a verdict, which stays.
        judged: bool,
    },
}

impl Facts<'_> {
    /// The one thing to do now.
    pub(super) fn step(&self) -> Step {
        if let Some(run) = self.run
            && run.uid == self.uid
            && run.run_key == self.run_key
        {
            return if run.finished {
                Step::Conclude
            } else if self.asks_for_cancel() {
                Step::Cancel
            } else {
                Step::Watch
            };
        }
        if self.would_go_on() && self.asks_for_cancel() {
            return Step::Cancel;
        }
        if self.suspended {
            return Step::Suspend {
                judged: self.is_judged(),
            };
        }
        if self.asks_for_run() {
            return Step::Start {
                again: self.is_judged(),
            };
        }
        let next = match self.own_memory() {
            // What was reckoned from a clock that was set back is wrong, perhaps by years.
            Some(memory) if self.is_ahead(memory.ended) => return Step::Start { again: true },
            Some(memory) => memory.at(self.interval, self.jitter),
            None => match self.verdict_of_status() {
                Standing::Nothing => return Step::Start { again: false },
                Standing::Void => return Step::Start { again: true },
                Standing::Counts => self.status.next_sync_time.as_ref().map(|time| time.0),
            },
        };
        match next {
            Some(time) if time <= self.now => Step::Start { again: true },
            next => Step::Rest(next),
        }
    }

    /// Whether an annotation asks for a run that was not carried out yet.
    fn asks_for_run(&self) -> bool {
        let handled = self.status.last_handled_reconcile_at.as_ref();
        self.wishes.run.is_some() && self.wishes.run.as_ref() != handled
    }

    /// Whether an annotation asks that the run be stopped, and nobody has done it yet.
    fn asks_for_cancel(&self) -> bool {
        let handled = self.status.last_handled_cancel_at.as_ref();
        self.wishes.cancel.is_some() && self.wishes.cancel.as_ref() != handled
    }

    /// Whether a run of these copies was cut off by a restart, and would begin again.
    fn would_go_on(&self) -> bool {
        let nothing_known = self.run.is_none() && self.own_memory().is_none();
        nothing_known && self.speaks_of_these_copies() && self.was_interrupted()
    }

    /// Whether there is a verdict on these copies.
    pub(super) fn is_judged(&self) -> bool {
        self.own_memory().is_some() || self.verdict_of_status() != Standing::Nothing
    }

    /// What is to be remembered of a run that ends now.
    pub(super) fn remember(&self, next: Next, sample: f64) -> Memory {
        Memory {
            uid: self.uid.to_owned(),
            run_key: self.run_key.to_owned(),
            next,
            ended: self.now,
            sample,
            interval: self.interval,
            at: next_run(next, self.interval, self.now, self.jitter, sample),
        }
    }

    /// What the status tells of the last run, where nothing else does (operator rules S3 and G2).
    pub(super) fn recall(&self, sample: f64) -> Option<Memory> {
        let nothing_known = self.run.is_none() && self.own_memory().is_none();
        if !nothing_known || self.verdict_of_status() != Standing::Counts {
            return None;
        }
        let time = |time: &Option<Time>| time.as_ref().map(|time| time.0);
        let ended = time(&self.status.last_sync_time).unwrap_or(self.now);
        let stated = time(&self.status.next_sync_time);
        let conditions = &self.status.conditions;
        let keeps_interval =
            |ready: &Condition| ready.status == "True" || ready.reason == CANCELLED;
        let next = if find(conditions, READY).is_some_and(keeps_interval) {
            Next::Interval
        } else if find(conditions, STALLED).is_some() {
            Next::Outside
        } else {
            let pause = stated.map_or(SignedDuration::ZERO, |at| at.duration_since(ended));
            let failures = failures_behind(pause.max(SignedDuration::ZERO).unsigned_abs());
            Next::backoff(failures, Duration::ZERO)
        };
        let reckoned = next_run(next, self.interval, ended, self.jitter, sample);
        Some(Memory {
            uid: self.uid.to_owned(),
            run_key: self.run_key.to_owned(),
            next,
            ended,
            sample,
            interval: self.interval,
            at: match next {
                // It was promised before an edit, perhaps of the interval.
                Next::Interval | Next::Outside
                    if self.status.observed_generation != self.generation =>
                {
                    reckoned
                }
                // What was promised stands; what was reckoned may differ by the jitter.
                _ => stated.or(reckoned),
            },
        })
    }

    /// What is remembered of this object and these copies.
    fn own_memory(&self) -> Option<&Memory> {
        self.memory
            .filter(|memory| memory.uid == self.uid && memory.run_key == self.run_key)
    }

    /// Whether this time lies in the future by more than clocks may differ.
    fn is_ahead(&self, time: Timestamp) -> bool {
        time.duration_since(self.now) > CLOCK_SLACK
    }

    /// What a status that was written before a restart is worth.
    fn verdict_of_status(&self) -> Standing {
        let conditions = &self.status.conditions;
        let ended = self.status.last_sync_time.as_ref().map(|time| time.0);
        let judged = self.speaks_of_these_copies()
            && find(conditions, READY).is_some_and(|ready| ready.status != "Unknown");
        // A newer operator may know better; what was stopped on request stays so.
        let is_failure = |ready: &Condition| ready.status != "True" && ready.reason != CANCELLED;
        let given_up =
            find(conditions, READY).is_some_and(is_failure) && self.status.next_sync_time.is_none();
        // While it was suspended it could not tell when it is due.
        let resumed = !self.suspended && says_suspended(self.status);
        let is_ahead = ended.is_some_and(|ended| self.is_ahead(ended));
        match judged {
            false => Standing::Nothing,
            true if given_up || resumed || is_ahead || self.was_interrupted() => Standing::Void,
            true => Standing::Counts,
        }
    }

    /// Whether the status speaks of what this spec asks for. A spec that was edited back and forth, or only where no copy
    /// depends on it, asks for the same.
    fn speaks_of_these_copies(&self) -> bool {
        self.status.observed_generation == self.generation
            || self.status.run_key.as_deref() == Some(short_key(self.run_key))
    }

    /// Whether the status tells of a run that goes on.
    fn was_interrupted(&self) -> bool {
        find(&self.status.conditions, RECONCILING)
            .is_some_and(|reconciling| reconciling.reason != PROGRESSING_WITH_RETRY)
    }
}

/// What a status is worth to an operator that remembers nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It does not speak of this spec.
    Nothing,
    /// It speaks of this spec, but the mirror is to be looked at all the same.
    Void,
    /// It says when the mirror is to be looked at.
    Counts,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::Progress,
        controller::{
            fixtures::{self, NO_WISHES, scene},
            present::{Going, Scene},
            verdict::RunOutcome,
        },
        error::Class,
    };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn concluded(outcome: &RunOutcome, next: Option<i64>) -> ImageMirrorStatus {
        let base = ImageMirrorStatus::default();
        fixtures::concluded(&scene(&base, 1, at(0)), outcome, false, next.map(at))
    }

    fn of_other_copies(status: ImageMirrorStatus) -> ImageMirrorStatus {
        ImageMirrorStatus {
            run_key: Some("other".to_owned()),
            ..status
        }
    }

    fn facts<'a>(status: &'a ImageMirrorStatus, memory: Option<&'a Memory>) -> Facts<'a> {
        Facts {
            uid: "u",
            run_key: "k",
            generation: 1,
            interval: Some(Duration::from_hours(1)),
            suspended: false,
            wishes: &NO_WISHES,
            now: at(100),
            jitter: Jitter::new(0),
            run: None,
            memory,
            status,
        }
    }

    fn copying(again: bool) -> Going {
        Going {
            again,
            queued: false,
            copying: true,
            images: Some(1),
            progress: Progress::default(),
        }
    }

    /// Of a run that ended at 0, with an interval of an hour.
    fn memory(next: Next) -> Memory {
        let status = ImageMirrorStatus::default();
        let facts = Facts {
            now: at(0),
            ..facts(&status, None)
        };
        facts.remember(next, 0.5)
    }

    fn back_off(failures: u32) -> Next {
        Next::backoff(failures, Duration::ZERO)
    }

    #[test]
    fn a_run_is_watched_judged_or_replaced() {
        let status = ImageMirrorStatus::default();
        for (uid, run_key, finished, expected) in [
            ("u", "k", false, Step::Watch),
            ("u", "k", true, Step::Conclude),
            ("u", "other", false, Step::Start { again: false }),
            ("u", "other", true, Step::Start { again: false }),
            ("another", "k", false, Step::Start { again: false }),
        ] {
            let facts = Facts {
                run: Some(RunView {
                    uid,
                    run_key,
                    finished,
                }),
                ..facts(&status, None)
            };
            assert_eq!(facts.step(), expected, "{uid} {run_key} {finished}");
        }
    }

    #[test]
    fn memory_decides_when_to_look_again() {
        let status = ImageMirrorStatus::default();
        for (next, interval, expected) in [
            (Next::Interval, Some(3600), Step::Rest(Some(at(3600)))),
            (Next::Interval, Some(60), Step::Start { again: true }),
            (Next::Interval, None, Step::Rest(None)),
            (Next::Outside, Some(3600), Step::Rest(Some(at(600)))),
            (back_off(1), Some(3600), Step::Start { again: true }),
            (back_off(5), Some(3600), Step::Rest(Some(at(160)))),
            (Next::SpecChange, Some(60), Step::Rest(None)),
        ] {
            let memory = memory(next);
            let facts = Facts {
                interval: interval.map(Duration::from_secs),
                // An edit of the interval alone moves the generation, not the key.
                generation: 2,
                ..facts(&status, Some(&memory))
            };
            assert_eq!(facts.step(), expected, "{next:?} {interval:?}");
        }
    }

    /// Operator rule K13: spurious triggers during a backoff neither start anything nor lengthen it.
    #[test]
    fn triggers_during_a_backoff_change_nothing() {
        let status = ImageMirrorStatus::default();
        let memory = memory(back_off(5));
        let facts = facts(&status, Some(&memory));
        for _ in 0..10 {
            assert_eq!(facts.step(), Step::Rest(Some(at(160))));
        }
    }

    #[test]
    fn what_is_remembered_of_another_spec_or_object_does_not_count() {
        let status = ImageMirrorStatus::default();
        for other in [
            Memory {
                uid: "another".to_owned(),
                ..memory(Next::Interval)
            },
            Memory {
                run_key: "other".to_owned(),
                ..memory(Next::Interval)
            },
        ] {
            assert_eq!(
                facts(&status, Some(&other)).step(),
                Step::Start { again: false }
            );
        }
    }

    #[test]
    fn after_a_restart_the_status_decides() {
        let reported = |class| RunOutcome::Reported(fixtures::report(&[&[class]]));
        let base = ImageMirrorStatus::default();
        let interrupted = scene(&base, 1, at(0)).going(&copying(false));
        let ready = concluded(&reported(None), Some(50));
        let interrupted_again = scene(&ready, 1, at(50)).going(&copying(true));
        for (name, status, generation, expected) in [
            (
                "fresh",
                ImageMirrorStatus::default(),
                1,
                Step::Start { again: false },
            ),
            (
                "ready",
                concluded(&reported(None), Some(3600)),
                1,
                Step::Rest(Some(at(3600))),
            ),
            (
                "ready, overdue",
                concluded(&reported(None), Some(50)),
                1,
                Step::Start { again: true },
            ),
            (
                "ready, once",
                concluded(&reported(None), None),
                1,
                Step::Rest(None),
            ),
            (
                "ready, older spec that asked for the same copies",
                concluded(&reported(None), Some(3600)),
                2,
                Step::Rest(Some(at(3600))),
            ),
            (
                "ready, older spec that asked for others",
                of_other_copies(concluded(&reported(None), None)),
                2,
                Step::Start { again: false },
            ),
            (
                "ready, of an operator that named copies otherwise",
                of_other_copies(concluded(&reported(None), None)),
                1,
                Step::Rest(None),
            ),
            (
                "backing off",
                concluded(&reported(Some(Class::Network)), Some(160)),
                1,
                Step::Rest(Some(at(160))),
            ),
            (
                "stalled, looked at again",
                concluded(&reported(Some(Class::Auth)), Some(600)),
                1,
                Step::Rest(Some(at(600))),
            ),
            (
                "given up",
                concluded(&reported(Some(Class::Config)), None),
                1,
                Step::Start { again: true },
            ),
            (
                "interrupted before any verdict",
                interrupted,
                1,
                Step::Start { again: false },
            ),
            (
                "ready, then interrupted",
                interrupted_again,
                1,
                Step::Start { again: true },
            ),
        ] {
            let facts = Facts {
                generation,
                ..facts(&status, None)
            };
            assert_eq!(facts.step(), expected, "{name}");
        }
    }

    #[test]
    fn an_edit_of_the_interval_after_a_restart_asks_for_no_copy() {
        let reported = |class| RunOutcome::Reported(fixtures::report(&[&[class]]));
        for (name, class, stated, interval, expected) in [
            ("ready", None, Some(3700), Some(7200), Some(7200)),
            ("same interval", None, Some(3700), Some(3600), Some(3700)),
            ("once", None, Some(3700), None, None),
            ("no longer once", None, None, Some(7200), Some(7200)),
            ("stalled", Some(Class::Auth), Some(610), Some(60), Some(60)),
            (
                "backing off",
                Some(Class::Network),
                Some(165),
                Some(60),
                Some(165),
            ),
        ] {
            let status = concluded(&reported(class), stated);
            let before = Facts {
                interval: stated.map(|_| Duration::from_hours(1)),
                now: at(30),
                ..facts(&status, None)
            };
            let memory = before.recall(0.5).unwrap();
            let after = Facts {
                interval: interval.map(Duration::from_secs),
                generation: 2,
                now: at(40),
                ..facts(&status, Some(&memory))
            };
            assert_eq!(after.step(), Step::Rest(expected.map(at)), "{name}");
            assert_eq!(after.recall(0.5), None, "{name}: known already");
        }
    }

    #[test]
    fn a_backoff_goes_on_where_it_was_after_a_restart() {
        let failed = RunOutcome::Reported(fixtures::report(&[&[Some(Class::Network)]]));
        let status = concluded(&failed, Some(162));
        let memory = facts(&status, None).recall(0.5).unwrap();
        assert_eq!(memory.next, back_off(5));
    }

    #[test]
    fn nothing_is_recalled_of_a_status_that_does_not_count() {
        let failed = RunOutcome::Reported(fixtures::report(&[&[Some(Class::Config)]]));
        let given_up = concluded(&failed, None);
        let ready = concluded(&RunOutcome::Reported(fixtures::report(&[&[None]])), None);
        let ready = of_other_copies(ready);
        for (status, generation) in [
            (&ImageMirrorStatus::default(), 1),
            (&given_up, 1),
            (&ready, 2),
        ] {
            let facts = Facts {
                generation,
                ..facts(status, None)
            };
            assert_eq!(facts.recall(0.5), None, "{status:?}");
        }
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_put_a_mirror_to_sleep() {
        let status = concluded(
            &RunOutcome::Reported(fixtures::report(&[&[None]])),
            Some(3600),
        );
        let memory = memory(Next::Interval);
        for memory in [None, Some(&memory)] {
            for (now, expected) in [
                (-30, Step::Rest(Some(at(3600)))),
                (-86_400, Step::Start { again: true }),
            ] {
                let facts = Facts {
                    now: at(now),
                    ..facts(&status, memory)
                };
                assert_eq!(facts.step(), expected, "{now}");
            }
        }
    }

    /// What an operator that was down meanwhile makes of an edit of the interval alone.
    #[test]
    fn a_restart_and_an_edit_of_the_interval_keep_the_verdict_and_reckon_anew() {
        let reported = |class| RunOutcome::Reported(fixtures::report(&[&[class]]));
        for (class, stated, expected) in [
            (None, Some(86_400), Some(7200)),
            (None, None, Some(7200)),
            (Some(Class::Auth), Some(60), Some(600)),
            (Some(Class::Network), Some(160), Some(160)),
        ] {
            let status = concluded(&reported(class), stated);
            let edited = Facts {
                generation: 2,
                interval: Some(Duration::from_hours(2)),
                ..facts(&status, None)
            };
            let memory = edited.recall(0.5).unwrap();
            let after = Facts {
                memory: Some(&memory),
                ..edited
            };
            assert_eq!(after.step(), Step::Rest(expected.map(at)), "{class:?}");
        }
    }

    const RUNNING: RunView<'static> = RunView {
        uid: "u",
        run_key: "k",
        finished: false,
    };
    const OVER: RunView<'static> = RunView {
        finished: true,
        ..RUNNING
    };
    /// For what an earlier spec asked for.
    const STALE: RunView<'static> = RunView {
        run_key: "other",
        ..RUNNING
    };

    #[test]
    fn a_suspended_mirror_starts_nothing_and_lets_what_runs_finish() {
        let ready = concluded(
            &RunOutcome::Reported(fixtures::report(&[&[None]])),
            Some(50),
        );
        let fresh = ImageMirrorStatus::default();
        let known = memory(Next::Interval);
        let asked = Wishes {
            run: Some("now".to_owned()),
            cancel: None,
        };
        for (name, status, memory, run, expected) in [
            ("fresh", &fresh, None, None, Step::Suspend { judged: false }),
            (
                "overdue",
                &ready,
                None,
                None,
                Step::Suspend { judged: true },
            ),
            (
                "overdue, known",
                &ready,
                Some(&known),
                None,
                Step::Suspend { judged: true },
            ),
            ("running", &fresh, None, Some(RUNNING), Step::Watch),
            ("over", &fresh, None, Some(OVER), Step::Conclude),
            (
                "edited while it ran",
                &fresh,
                None,
                Some(STALE),
                Step::Suspend { judged: false },
            ),
        ] {
            for wishes in [&NO_WISHES, &asked] {
                let facts = Facts {
                    suspended: true,
                    wishes,
                    run,
                    ..facts(status, memory)
                };
                assert_eq!(facts.step(), expected, "{name}");
            }
        }
    }

    #[test]
    fn a_resumed_mirror_runs_when_it_is_due() {
        let status = concluded(
            &RunOutcome::Reported(fixtures::report(&[&[None]])),
            Some(3600),
        );
        let paused = Scene {
            suspended: true,
            ..scene(&status, 2, at(10))
        }
        .paused(true);
        let known = memory(Next::Interval);
        for (now, memory, expected) in [
            (100, Some(&known), Step::Rest(Some(at(3600)))),
            (4000, Some(&known), Step::Start { again: true }),
            // After a restart nobody knows when that would be.
            (100, None, Step::Start { again: true }),
        ] {
            let facts = Facts {
                generation: 3,
                now: at(now),
                ..facts(&paused, memory)
            };
            assert_eq!(facts.recall(0.5), None);
            assert_eq!(facts.step(), expected, "{now}");
        }
    }

    /// Operator rule G3.
    #[test]
    fn a_request_starts_a_run_at_once_and_only_once() {
        let reported = |class| RunOutcome::Reported(fixtures::report(&[&[class]]));
        let asked = Wishes {
            run: Some("now".to_owned()),
            cancel: None,
        };
        let answered = |status: ImageMirrorStatus| ImageMirrorStatus {
            last_handled_reconcile_at: Some("now".to_owned()),
            ..status
        };
        let again = Step::Start { again: true };
        for (name, status, memory, run, expected) in [
            (
                "fresh",
                ImageMirrorStatus::default(),
                None,
                None,
                Step::Start { again: false },
            ),
            (
                "ready",
                concluded(&reported(None), Some(3600)),
                Some(memory(Next::Interval)),
                None,
                again,
            ),
            (
                "backing off",
                concluded(&reported(Some(Class::Network)), Some(160)),
                Some(memory(back_off(5))),
                None,
                again,
            ),
            (
                "stalled",
                concluded(&reported(Some(Class::Config)), None),
                Some(memory(Next::SpecChange)),
                None,
                again,
            ),
            (
                "after a restart",
                concluded(&reported(None), Some(3600)),
                None,
                None,
                again,
            ),
            (
                "answered",
                answered(concluded(&reported(None), Some(3600))),
                Some(memory(Next::Interval)),
                None,
                Step::Rest(Some(at(3600))),
            ),
            (
                "while a run goes on",
                ImageMirrorStatus::default(),
                None,
                Some(RUNNING),
                Step::Watch,
            ),
        ] {
            let facts = Facts {
                wishes: &asked,
                run,
                ..facts(&status, memory.as_ref())
            };
            assert_eq!(facts.step(), expected, "{name}");
        }
    }

    #[test]
    fn a_cancel_stops_the_run_that_goes_on_and_nothing_else() {
        let asked = Wishes {
            run: None,
            cancel: Some("stop".to_owned()),
        };
        let base = ImageMirrorStatus::default();
        let cut_off = scene(&base, 1, at(0)).going(&copying(false));
        let answered = ImageMirrorStatus {
            last_handled_cancel_at: Some("stop".to_owned()),
            ..cut_off.clone()
        };
        let start = Step::Start { again: false };
        for (name, status, run, expected) in [
            ("running", &base, Some(RUNNING), Step::Cancel),
            ("answered", &answered, Some(RUNNING), Step::Watch),
            ("over already", &base, Some(OVER), Step::Conclude),
            ("nothing runs", &base, None, start),
            ("a run for something else", &base, Some(STALE), start),
            ("cut off by a restart", &cut_off, None, Step::Cancel),
            ("answered before the restart", &answered, None, start),
        ] {
            for suspended in [false, true] {
                let facts = Facts {
                    suspended,
                    wishes: &asked,
                    run,
                    ..facts(status, None)
                };
                let expected = match expected {
                    Step::Start { .. } if suspended => Step::Suspend { judged: false },
                    other => other,
                };
                assert_eq!(facts.step(), expected, "{name}, suspended: {suspended}");
            }
        }
    }

    #[test]
    fn what_was_cancelled_stays_so_over_a_restart_until_its_interval() {
        for (stated, expected) in [
            (Some(3600), Step::Rest(Some(at(3600)))),
            (None, Step::Rest(None)),
        ] {
            let status = concluded(&RunOutcome::Cancelled, stated);
            let known = Facts {
                interval: stated.map(|_| Duration::from_hours(1)),
                ..facts(&status, None)
            };
            let memory = known.recall(0.5).unwrap();
            assert_eq!(memory.next, Next::Interval);
            let facts = Facts {
                memory: Some(&memory),
                ..known
            };
            assert_eq!(facts.step(), expected);
        }
    }
}
