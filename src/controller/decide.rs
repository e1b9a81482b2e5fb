//! The state machine of a mirror: from what is known, the one thing to do now. Pure, so that it can be read in one sitting
//! and tested as a table.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use crate::api::{
    ImageMirrorStatus,
    condition::{READY, RECONCILING, STALLED, find},
};

use super::{
    schedule::{Jitter, Next, next_run},
    verdict::PROGRESSING_WITH_RETRY,
};

/// What is remembered of the last run of a mirror. Lost at a restart; the status then says what is needed.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Memory {
    /// Which object: a new one of the same name remembers nothing.
    pub(super) uid: String,
    /// What was copied.
    pub(super) run_key: String,
    /// When to look again, and why.
    pub(super) next: Next,
    /// When it ended.
    pub(super) ended: Timestamp,
    /// The random number of its pause; kept, so that the same question has the same answer.
    pub(super) sample: f64,
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
        let memory = self
            .memory
            .filter(|memory| memory.uid == self.uid && memory.run_key == self.run_key);
        let next = match memory {
            Some(memory) => next_run(
                memory.next,
                self.interval,
                memory.ended,
                self.jitter,
                memory.sample,
            ),
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

    /// What a status that was written before a restart is worth.
    fn verdict_of_status(&self) -> Standing {
        let conditions = &self.status.conditions;
        let judged = self.status.observed_generation == self.generation
            && find(conditions, READY).is_some_and(|ready| ready.status != "Unknown");
        // A newer operator may know better.
        let given_up = find(conditions, STALLED).is_some() && self.status.next_sync_time.is_none();
        let interrupted = find(conditions, RECONCILING)
            .is_some_and(|reconciling| reconciling.reason != PROGRESSING_WITH_RETRY);
        match judged {
            false => Standing::Nothing,
            true if given_up || interrupted => Standing::Void,
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

    fn memory(next: Next) -> Memory {
        Memory {
            uid: "u".to_owned(),
            run_key: "k".to_owned(),
            next,
            ended: at(0),
            sample: 0.5,
        }
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
            (Next::Backoff(1), Some(3600), Step::Start { again: true }),
            (Next::Backoff(5), Some(3600), Step::Rest(Some(at(160)))),
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
        let memory = memory(Next::Backoff(5));
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
}
