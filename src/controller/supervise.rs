//! Owns the runs: starts them, keeps as many waiting as have no slot, stops them, and tells how far they are. Nothing here
//! waits for a copy (operator rule K1).
//!
//! A mirror has at most one run, known by the object's uid and the key of what is copied. A run that is replaced or deleted
//! is dropped at its next await; its successor begins when it and all before it are gone, so two never write the same thing.
//! For that each task holds the turn of its mirror's name until it is dropped, wherever that finds it.

use std::{
    any::Any,
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use futures::FutureExt as _;
use tokio::sync::{Semaphore, TryAcquireError};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tracing::Instrument as _;

use crate::{api::Progress, output::OutputManager};

use super::{
    decide::RunView,
    engine::Prepared,
    metrics::Metrics,
    present::short_key,
    progress::Tracker,
    reports::{Kept, ReportKeeper},
    secrets::SecretSource,
    target::{Name, Target},
    verdict::RunOutcome,
};

/// How long a stopped run may take to let go of what it holds. It ends at its next await, so this is for a disk that hangs.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Asks for another look at a mirror.
pub(super) type Trigger = Arc<dyn Fn(&Name) + Send + Sync>;

/// What is to be copied, and for whom.
pub(super) struct Order {
    /// The mirror.
    pub(super) target: Target,
    /// The spec, judged.
    pub(super) prepared: Box<dyn Prepared>,
    /// Whether it repeats a run of the same spec.
    pub(super) again: bool,
    /// The request that it answers.
    pub(super) requested: Option<String>,
}

/// A run that is over.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) outcome: RunOutcome,
    /// What became of its report.
    pub(super) kept: Kept,
}

/// All runs.
pub(super) struct Supervisor {
    runs: Mutex<HashMap<Name, Run>>,
    /// Held by every task that may still write, known here by name for as long as there is one.
    turns: Mutex<HashMap<Name, Weak<Turn>>>,
    slots: Arc<Semaphore>,
    tasks: TaskTracker,
    secrets: Arc<dyn SecretSource>,
    reports: Arc<dyn ReportKeeper>,
    trigger: Trigger,
    metrics: Metrics,
}

/// Whoever holds it is the only one who copies for a mirror.
type Turn = tokio::sync::Mutex<()>;

struct Run {
    uid: String,
    key: String,
    again: bool,
    requested: Option<String>,
    images: Option<usize>,
    phase: Arc<Mutex<Phase>>,
    tracker: Tracker,
    /// Held, not used: the run is stopped when it is dropped.
    _task: AbortOnDropHandle<()>,
}

#[derive(Debug)]
enum Phase {
    Queued,
    Running,
    Finished(Finished),
}

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// It waits for a slot.
    Queued,
    /// It goes on.
    Running,
    /// It is over and waits to be judged.
    Finished,
}

/// How a run goes, at one moment.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    pub(super) uid: String,
    pub(super) run_key: String,
    pub(super) again: bool,
    pub(super) stage: Stage,
    pub(super) copying: bool,
    pub(super) requested: Option<String>,
    pub(super) images: Option<usize>,
    pub(super) progress: Progress,
}

impl Snapshot {
    /// What the decision needs of it.
    pub(super) fn view(&self) -> RunView<'_> {
        RunView {
            uid: &self.uid,
            run_key: &self.run_key,
            finished: self.stage == Stage::Finished,
        }
    }
}

impl Supervisor {
    /// At most `slots` mirrors are copied at once; `trigger` is called when a run starts copying and when it is over.
    pub(super) fn new(
        slots: usize,
        secrets: Arc<dyn SecretSource>,
        reports: Arc<dyn ReportKeeper>,
        trigger: Trigger,
        metrics: Metrics,
    ) -> Self {
        Self {
            runs: Mutex::default(),
            turns: Mutex::default(),
            slots: Arc::new(Semaphore::new(slots)),
            tasks: TaskTracker::new(),
            secrets,
            reports,
            trigger,
            metrics,
        }
    }

    /// Begins a run, or lets it wait for a slot. One that goes on for the same name is stopped.
    pub(super) fn start(&self, order: Order) {
        let Order {
            target,
            prepared,
            again,
            requested,
        } = order;
        let phase = Arc::new(Mutex::new(Phase::Queued));
        let (run_key, images) = (prepared.run_key(), prepared.image_count());
        let tracker = {
            let (trigger, name) = (Arc::clone(&self.trigger), target.name.clone());
            Tracker::new(self.metrics.clone(), move || trigger(&name))
        };
        let mut runs = self.runs();
        // Dropped, and so stopped; how long that takes is a matter of turns.
        drop(runs.remove(&target.name));
        let span = tracing::info_span!("run", mirror = %target.name, run = short_key(&run_key));
        let work = Work {
            target: target.clone(),
            prepared,
            turn: self.turn_of(&target.name),
            slots: Arc::clone(&self.slots),
            secrets: Arc::clone(&self.secrets),
            reports: Arc::clone(&self.reports),
            trigger: Arc::clone(&self.trigger),
            metrics: self.metrics.clone(),
            tracker: tracker.clone(),
            phase: Arc::clone(&phase),
        };
        let task = self.tasks.spawn(work.carry_out().instrument(span));
        let run = Run {
            uid: target.uid,
            key: run_key,
            again,
            requested,
            images,
            phase,
            tracker,
            _task: AbortOnDropHandle::new(task),
        };
        runs.insert(target.name, run);
    }

    /// How the mirror's run goes, if there is one.
    pub(super) fn inspect(&self, name: &Name, now: Instant) -> Option<Snapshot> {
        let runs = self.runs();
        let run = runs.get(name)?;
        let stage = match *run.phase.lock().unwrap_or_else(PoisonError::into_inner) {
            // For a moment only when a slot is free: not worth a word.
            Phase::Queued if self.slots.available_permits() > 0 => Stage::Running,
            Phase::Queued => Stage::Queued,
            Phase::Running => Stage::Running,
            Phase::Finished(_) => Stage::Finished,
        };
        Some(Snapshot {
            uid: run.uid.clone(),
            run_key: run.key.clone(),
            again: run.again,
            stage,
            copying: run.tracker.is_copying(),
            requested: run.requested.clone(),
            images: run.images,
            progress: run.tracker.progress(run.images.unwrap_or_default(), now),
        })
    }

    /// Takes the result of a run that is over, and forgets the run.
    pub(super) fn take_finished(&self, name: &Name) -> Option<Finished> {
        let mut runs = self.runs();
        let finished = {
            let run = runs.get(name)?;
            let mut phase = run.phase.lock().unwrap_or_else(PoisonError::into_inner);
            match std::mem::replace(&mut *phase, Phase::Running) {
                Phase::Finished(finished) => Some(finished),
                other => {
                    *phase = other;
                    None
                }
            }
        };
        if finished.is_some() {
            runs.remove(name);
        }
        finished
    }

    /// Stops the mirror's run, if there is one, without waiting for its end.
    pub(super) fn discard(&self, name: &Name) {
        let run = self.runs().remove(name);
        if run.is_some() {
            tracing::info!(mirror = %name, "the running copy is stopped");
        }
    }

    /// Stops the mirror's run, if there is one, and waits until it and those before it have let go of everything.
    pub(super) async fn stop(&self, name: &Name) {
        self.discard(name);
        let turn = self.turn_of(name);
        if tokio::time::timeout(STOP_LIMIT, turn.lock()).await.is_err() {
            tracing::warn!(mirror = %name, "the stopped copy still holds its resources");
        }
    }

    /// The turn of this name.
    fn turn_of(&self, name: &Name) -> Arc<Turn> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = turns.get(name).and_then(Weak::upgrade) {
            return turn;
        }
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::new(Turn::default());
        turns.insert(name.clone(), Arc::downgrade(&turn));
        turn
    }

    /// Stops all runs and waits until they have let go of everything.
    pub(super) async fn shut_down(&self, limit: Duration) {
        self.tasks.close();
        self.slots.close();
        let runs = std::mem::take(&mut *self.runs());
        let count = runs.len();
        drop(runs);
        if tokio::time::timeout(limit, self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("some of {count} stopped copies still hold their resources");
        }
    }

    fn runs(&self) -> std::sync::MutexGuard<'_, HashMap<Name, Run>> {
        // Entries are inserted and removed whole: a panic elsewhere leaves the map as good as before.
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All that the task of a run needs.
struct Work {
    target: Target,
    prepared: Box<dyn Prepared>,
    turn: Arc<Turn>,
    slots: Arc<Semaphore>,
    secrets: Arc<dyn SecretSource>,
    reports: Arc<dyn ReportKeeper>,
    trigger: Trigger,
    metrics: Metrics,
    tracker: Tracker,
    phase: Arc<Mutex<Phase>>,
}

impl Work {
    async fn carry_out(self) {
        let Self {
            target,
            prepared,
            turn,
            slots,
            secrets,
            reports,
            trigger,
            metrics,
            tracker,
            phase,
        } = self;
        let enter = |next: Phase| {
            *phase.lock().unwrap_or_else(PoisonError::into_inner) = next;
        };
        // Dropped last, after everything that writes.
        let _turn = turn.lock_owned().await;
        let slot = match slots.try_acquire() {
            Ok(slot) => slot,
            // The operator is going down: nobody asks for the result.
            Err(TryAcquireError::Closed) => return,
            Err(TryAcquireError::NoPermits) => {
                let _waiting = metrics.queued();
                let Ok(slot) = slots.acquire().await else {
                    return;
                };
                enter(Phase::Running);
                trigger(&target.name);
                slot
            }
        };
        let running = metrics.running();
        enter(Phase::Running);
        let output = OutputManager::new(tracker);
        let work = async {
            let namespace = &target.name.namespace;
            let given = secrets.read(namespace, &prepared.needs()).await?;
            prepared.run(&target.name, given, output).await
        };
        // A panic must fail this mirror alone (operator rule K23); what it left behind is dropped with the future.
        let outcome = match AssertUnwindSafe(work).catch_unwind().await {
            Ok(Ok(report)) => RunOutcome::Reported(report),
            Ok(Err(failure)) => RunOutcome::Refused(failure),
            Err(panic) => {
                let text = panic_text(&*panic);
                tracing::error!("the run ended by a bug: {text}");
                RunOutcome::Panicked(text)
            }
        };
        drop((running, slot));
        let kept = reports.keep(&target, &outcome).await;
        enter(Phase::Finished(Finished { outcome, kept }));
        trigger(&target.name);
    }
}

/// What a panic said.
pub(super) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "it left no text".to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::future::BoxFuture;
    use tokio::sync::Notify;

    use super::*;
    use crate::controller::{
        engine::{Failure, Given, Needs},
        fixtures::TestRun,
        reports::Forgetful,
    };

    struct NoSecrets;

    impl SecretSource for NoSecrets {
        fn read<'a>(
            &'a self,
            _namespace: &'a str,
            _needs: &'a Needs,
        ) -> BoxFuture<'a, Result<Given, Failure>> {
            Box::pin(std::future::ready(Ok(Given::default())))
        }
    }

    struct Counted(Arc<AtomicUsize>);

    impl Counted {
        fn new(running: Arc<AtomicUsize>) -> Self {
            running.fetch_add(1, Ordering::SeqCst);
            Self(running)
        }
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    struct Bed {
        supervisor: Supervisor,
        running: Arc<AtomicUsize>,
        let_go: Arc<Notify>,
        triggers: Arc<AtomicUsize>,
    }

    fn bed(slots: usize) -> Bed {
        let triggers = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&triggers);
        let trigger: Trigger = Arc::new(move |_| {
            counter.fetch_add(1, Ordering::SeqCst);
        });
        Bed {
            supervisor: Supervisor::new(
                slots,
                Arc::new(NoSecrets),
                Arc::new(Forgetful),
                trigger,
                Metrics::default(),
            ),
            running: Arc::default(),
            let_go: Arc::default(),
            triggers,
        }
    }

    fn name(name: &str) -> Name {
        Name {
            namespace: "n".to_owned(),
            name: name.to_owned(),
        }
    }

    impl Bed {
        /// A run that lasts until it is let go, or panics at once.
        fn held(&self, key: &'static str, panics: bool) -> Box<dyn Prepared> {
            let (running, let_go) = (Arc::clone(&self.running), Arc::clone(&self.let_go));
            TestRun::boxed(key, async move {
                let _counted = Counted::new(running);
                assert!(!panics, "index out of bounds");
                let_go.notified().await;
            })
        }

        async fn start(&self, mirror: &str, key: &'static str, panics: bool) {
            self.order(mirror, self.held(key, panics));
            self.settle().await;
        }

        fn order(&self, mirror: &str, prepared: Box<dyn Prepared>) {
            self.supervisor.start(Order {
                target: Target {
                    name: name(mirror),
                    uid: "u".to_owned(),
                },
                prepared,
                again: false,
                requested: None,
            });
        }

        /// Starts a run that cannot be stopped before the sender is used, as on a disk that hangs.
        async fn start_stuck(&self, mirror: &str) -> std::sync::mpsc::Sender<()> {
            let (sender, let_go) = std::sync::mpsc::channel();
            let running = Arc::clone(&self.running);
            let stuck = TestRun::boxed("stuck", async move {
                let _counted = Counted::new(running);
                let_go.recv().unwrap();
                std::future::pending::<()>().await;
            });
            self.order(mirror, stuck);
            self.wait_for_running(1).await;
            sender
        }

        /// Waits until exactly so many runs copy.
        async fn wait_for_running(&self, count: usize) {
            let wait = async {
                while self.running.load(Ordering::SeqCst) != count {
                    self.settle().await;
                }
            };
            let waited = tokio::time::timeout(Duration::from_secs(10), wait).await;
            assert!(waited.is_ok(), "{:?} run, not {count}", self.running);
        }

        /// Lets every task go on until all of them wait.
        async fn settle(&self) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }

        fn stage(&self, mirror: &str) -> Option<Stage> {
            let snapshot = self.supervisor.inspect(&name(mirror), Instant::now());
            snapshot.map(|snapshot| snapshot.stage)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn runs_beyond_the_slots_wait_for_their_turn() {
        let bed = bed(1);
        bed.start("a", "k", false).await;
        bed.start("b", "k", false).await;
        assert_eq!(
            (bed.stage("a"), bed.stage("b")),
            (Some(Stage::Running), Some(Stage::Queued))
        );
        bed.let_go.notify_one();
        bed.settle().await;
        assert_eq!(
            (bed.stage("a"), bed.stage("b")),
            (Some(Stage::Finished), Some(Stage::Running))
        );
        // The end of one and the turn of the other.
        assert_eq!(bed.triggers.load(Ordering::SeqCst), 2);
        assert!(matches!(
            bed.supervisor.take_finished(&name("a")),
            Some(Finished {
                outcome: RunOutcome::Reported(_),
                ..
            })
        ));
        assert_eq!(bed.stage("a"), None);
        assert!(bed.supervisor.take_finished(&name("b")).is_none());
        assert_eq!(bed.stage("b"), Some(Stage::Running));
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_that_is_replaced_is_gone_before_its_successor_begins() {
        let bed = bed(2);
        bed.start("a", "old", false).await;
        bed.start("a", "new", false).await;
        assert_eq!(bed.running.load(Ordering::SeqCst), 1);
        let snapshot = bed.supervisor.inspect(&name("a"), Instant::now()).unwrap();
        assert_eq!(snapshot.view().run_key, "new");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn no_run_begins_before_all_that_came_before_it_are_gone() {
        for discards in [false, true] {
            let bed = bed(4);
            let let_go = bed.start_stuck("a").await;
            // The one between is replaced or discarded while it waits for the first.
            bed.start("a", "between", false).await;
            if discards {
                bed.supervisor.discard(&name("a"));
                bed.settle().await;
            }
            bed.start("a", "last", false).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            let running = bed.running.load(Ordering::SeqCst);
            let_go.send(()).unwrap();
            assert_eq!(running, 1, "discards: {discards}");
            // It ends only once it has begun.
            bed.let_go.notify_one();
            bed.wait_for_running(0).await;
            let wait = async {
                while bed.stage("a") != Some(Stage::Finished) {
                    bed.settle().await;
                }
            };
            assert!(
                tokio::time::timeout(Duration::from_secs(10), wait)
                    .await
                    .is_ok()
            );
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn stopping_waits_for_runs_that_were_discarded_before() {
        let bed = bed(4);
        let let_go = bed.start_stuck("a").await;
        bed.supervisor.discard(&name("a"));
        {
            let mirror = name("a");
            let stop = bed.supervisor.stop(&mirror);
            tokio::pin!(stop);
            let early = tokio::time::timeout(Duration::from_millis(50), &mut stop).await;
            let_go.send(()).unwrap();
            assert!(early.is_err(), "the copy still writes");
            stop.await;
        }
        assert_eq!(bed.running.load(Ordering::SeqCst), 0);
        // Nothing is kept of names that are gone.
        let wait = async {
            loop {
                bed.settle().await;
                drop(bed.supervisor.turn_of(&name("b")));
                if bed.supervisor.turns.lock().unwrap().len() == 1 {
                    break;
                }
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(10), wait).await;
        assert!(waited.is_ok(), "{:?}", bed.supervisor.turns);
    }

    #[tokio::test(start_paused = true)]
    async fn stopping_and_shutting_down_drop_the_work() {
        let bed = bed(1);
        bed.start("a", "k", false).await;
        bed.start("b", "k", false).await;
        bed.supervisor.stop(&name("a")).await;
        bed.settle().await;
        assert_eq!(
            (bed.stage("a"), bed.stage("b")),
            (None, Some(Stage::Running))
        );
        bed.supervisor.shut_down(Duration::from_secs(1)).await;
        assert_eq!(bed.running.load(Ordering::SeqCst), 0);
    }

    /// Operator rule K23.
    #[tokio::test(start_paused = true)]
    async fn a_run_that_panics_fails_its_mirror_alone() {
        let bed = bed(2);
        bed.start("a", "k", false).await;
        bed.start("b", "k", true).await;
        let outcome = bed.supervisor.take_finished(&name("b")).unwrap().outcome;
        assert!(
            matches!(&outcome, RunOutcome::Panicked(text) if text.contains("index out of bounds")),
            "{outcome:?}"
        );
        assert_eq!(bed.stage("a"), Some(Stage::Running));
    }
}
