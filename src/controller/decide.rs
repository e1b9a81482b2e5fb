//! The state machine of a mirror: from what is known, the one thing to do now. Pure, so that it can be read in one sitting
//! and tested as a table.

use std::time::Duration;

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::{SignedDuration, Timestamp},
};

use crate::api::{
    ImageMirrorStatus,
    condition::{READY, RECONCILING, STALLED, find},
};

use super::{
    schedule::{Jitter, Next, failures_behind, next_run},
    verdict::PROGRESSING_WITH_RETRY,
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
    /// A run is over: judge it.
    Conclude,
    /// Nothing to do before this time, if any.
    Rest(Option<Timestamp>),
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
            } else {
                Step::Watch
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

    /// What the status tells of the last run, where nothing else does. Once remembered, it outlives an edit that asks for
    /// the same copies (operator rules S3 and G2); the status itself is of no use then, since it does not hold the key.
    pub(super) fn recall(&self, sample: f64) -> Option<Memory> {
        let nothing_known = self.run.is_none() && self.own_memory().is_none();
        if !nothing_known || self.verdict_of_status() != Standing::Counts {
            return None;
        }
        let time = |time: &Option<Time>| time.as_ref().map(|time| time.0);
        let ended = time(&self.status.last_sync_time).unwrap_or(self.now);
        let stated = time(&self.status.next_sync_time);
        let conditions = &self.status.conditions;
        let next = if find(conditions, READY).is_some_and(|ready| ready.status == "True") {
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
            // What was promised stands; what was reckoned may differ by the jitter.
            at: stated.or(reckoned),
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
        let judged = self.status.observed_generation == self.generation
            && find(conditions, READY).is_some_and(|ready| ready.status != "Unknown");
        // A newer operator may know better.
        let given_up = find(conditions, READY).is_some_and(|ready| ready.status != "True")
            && self.status.next_sync_time.is_none();
        let interrupted = find(conditions, RECONCILING)
            .is_some_and(|reconciling| reconciling.reason != PROGRESSING_WITH_RETRY);
        match judged {
            false => Standing::Nothing,
            true if given_up || interrupted || ended.is_some_and(|ended| self.is_ahead(ended)) => {
                Standing::Void
            }
            true => Standing::Counts,
        }
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
            fixtures,
            present::{Going, Scene},
            verdict::{RunOutcome, judge},
        },
        error::Class,
    };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn concluded(outcome: &RunOutcome, next: Option<i64>) -> ImageMirrorStatus {
        let base = ImageMirrorStatus::default();
        let scene = Scene {
            base: &base,
            generation: 1,
            now: at(0),
        };
        scene.concluded(&judge(outcome, &[], 0), false, next.map(at))
    }

    fn facts<'a>(status: &'a ImageMirrorStatus, memory: Option<&'a Memory>) -> Facts<'a> {
        Facts {
            uid: "u",
            run_key: "k",
            generation: 1,
            interval: Some(Duration::from_hours(1)),
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
            images: 1,
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
        let interrupted = Scene {
            base: &base,
            generation: 1,
            now: at(0),
        }
        .going(&copying(false));
        let ready = concluded(&reported(None), Some(50));
        let interrupted_again = Scene {
            base: &ready,
            generation: 1,
            now: at(50),
        }
        .going(&copying(true));
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
                "ready, older spec",
                concluded(&reported(None), None),
                2,
                Step::Start { again: false },
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
}
