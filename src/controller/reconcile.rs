//! One look at one mirror: the finalizer first, then the spec is judged, the one thing to do is decided and done, and the
//! status is handed to the writer. Nothing here waits for a copy or for a registry (operator rules K1, K18, G6).

use std::{
    collections::{BTreeSet, HashMap},
    convert::Infallible,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures::FutureExt as _;
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Api, Client, Resource as _,
    core::{PartialObjectMeta, PartialObjectMetaExt as _},
    runtime::{
        controller::Action,
        finalizer::{self, Event, finalizer},
    },
};

use tokio_util::sync::CancellationToken;

use crate::{
    api::{ImageMirror, ImageMirrorStatus, Progress},
    error::Class,
};

use super::{
    annotations::Wishes,
    call::CALL_LIMIT,
    claims::{Claimant, Claims},
    decide::{Facts, Memory, Step},
    engine::{Engine, Failure, Prepared},
    error::{Error, Result, api_error},
    events::{Announcement, Events, transition},
    guard::Guarded,
    metrics::Metrics,
    present::{Ended, Going, Scene},
    reports::Kept,
    schedule::{Jitter, Next, backoff},
    supervise::{Finished, Order, Snapshot, Stage, Supervisor, Trigger, panic_text},
    target::{Name, Target},
    verdict::{RunOutcome, judge},
    writer::StatusWriter,
};

/// Keeps a deleted mirror until its copy is stopped. Documented, since it has to be removed by hand where no operator runs.
pub(super) const FINALIZER: &str = "imagepusher.io/stop-copies";
/// Reason of the event that tells of a report that was not written.
const REPORT_NOT_WRITTEN: &str = "ReportNotWritten";
/// How often a copy that people see is looked at.
const TICK: Duration = Duration::from_secs(5);
/// How often a run is looked at that waits for a slot or has found nothing to copy so far; when that changes, it asks for a
/// look itself.
const QUIET_TICK: Duration = Duration::from_mins(1);
/// When an object is looked at again that had changed between our reading and our writing (CRD finding F40).
const OUTDATED_PAUSE: Duration = Duration::from_secs(1);

/// Everything a look needs.
pub(super) struct Context {
    pub(super) client: Client,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) supervisor: Supervisor,
    pub(super) writer: StatusWriter,
    pub(super) events: Events,
    pub(super) metrics: Metrics,
    pub(super) jitter: Jitter,
    /// The clock.
    pub(super) now: fn() -> Timestamp,
    /// A random number between 0 and 1.
    pub(super) sample: fn() -> f64,
    pub(super) book: Book,
    /// Asks for a look at a mirror.
    pub(super) look_again: Trigger,
    /// Cancelled when all mirrors there are have claimed what they write. A look before that could begin a copy for the
    /// younger of two.
    pub(super) surveyed: CancellationToken,
}

/// What is remembered between looks. Lost at a restart, which costs nothing but a look more.
#[derive(Debug, Default)]
pub(super) struct Book {
    runs: Mutex<HashMap<Name, Memory>>,
    /// What was judged of each spec: the look of every tick needs no more, and judging thousands of images is work.
    briefs: Mutex<HashMap<Name, Brief>>,
    /// Looks in a row that failed at the API server.
    failures: Mutex<HashMap<Name, u32>>,
    /// What kept the last report of a mirror from being written: said once, not after every run.
    report_troubles: Mutex<HashMap<Name, String>>,
    claims: Mutex<Claims>,
}

/// What of a spec decides whether and when it is carried out.
#[derive(Debug, Clone)]
struct Brief {
    /// Whose spec; with the generation, which.
    uid: String,
    generation: i64,
    run_key: String,
    interval: Option<Duration>,
    images: Option<usize>,
}

/// A spec that is right.
struct Judged<'a> {
    mirror: &'a ImageMirror,
    brief: Brief,
    /// Where it was judged just now.
    prepared: Option<Box<dyn Prepared>>,
}

/// The controller's entry point.
pub(super) async fn reconcile(object: Arc<Guarded>, context: Arc<Context>) -> Result<Action> {
    let _timer = context.metrics.reconcile_timer();
    let Some(target) = Target::of(&object) else {
        return Ok(Action::await_change());
    };
    if tokio::time::timeout(CALL_LIMIT, context.surveyed.cancelled())
        .await
        .is_err()
    {
        // One watch that cannot list must not hold up the others for good.
        context.surveyed.cancel();
    }
    // A panic must cost this look alone: it would take the whole watch with it (operator rule K23).
    let result = AssertUnwindSafe(look(&target, &object, &context))
        .catch_unwind()
        .await
        .unwrap_or_else(|panic| {
            let text = panic_text(&*panic);
            Err(Error::LookPanicked { text })
        });
    context
        .metrics
        .reconcile(if result.is_ok() { "ok" } else { "error" });
    if result.is_ok() {
        lock(&context.book.failures).remove(&target.name);
    }
    result
}

/// What follows from a failed look: another one, after a growing pause.
pub(super) fn after_failure(object: &Guarded, context: &Context) -> Action {
    let Some(target) = Target::of(object) else {
        return Action::await_change();
    };
    let mut failures = lock(&context.book.failures);
    let count = failures.entry(target.name).or_default();
    *count = count.saturating_add(1);
    Action::requeue(backoff(*count))
}

async fn look(target: &Target, object: &Guarded, context: &Context) -> Result<Action> {
    let api: Api<PartialObjectMeta<ImageMirror>> =
        Api::namespaced(context.client.clone(), &target.name.namespace);
    // The metadata alone, so that malformed objects can be deleted too (CRD finding F40).
    let metadata = Arc::new(object.meta().clone().into_response_partial());
    let work = finalizer(&api, FINALIZER, metadata, |event| async move {
        match event {
            Event::Apply(_) => Ok::<_, Infallible>(context.apply(target, object)),
            Event::Cleanup(_) => {
                context.clean_up(&target.name).await;
                Ok(Action::await_change())
            }
        }
    });
    // The work itself makes no call besides that of the finalizer, and stopping a copy has a limit below this one.
    match tokio::time::timeout(CALL_LIMIT, work).await {
        Ok(Ok(action)) => Ok(action),
        Ok(Err(error)) => after_finalizer(error),
        Err(_) => Err(Error::ApiServerSilent {
            operation: "change the finalizers".to_owned(),
            limit: CALL_LIMIT,
        }),
    }
}

fn after_finalizer(error: finalizer::Error<Infallible>) -> Result<Action> {
    let (operation, error) = match error {
        finalizer::Error::AddFinalizer(error) => ("add the finalizer", error),
        finalizer::Error::RemoveFinalizer(error) => ("remove the finalizer", error),
        finalizer::Error::ApplyFailed(never) | finalizer::Error::CleanupFailed(never) => {
            match never {}
        }
        finalizer::Error::UnnamedObject | finalizer::Error::InvalidFinalizer => {
            return Ok(Action::await_change());
        }
    };
    match &error {
        // It is gone: nobody needs the finalizer.
        kube::Error::Api(status) if status.is_not_found() => Ok(Action::await_change()),
        kube::Error::Api(status) if status.is_invalid() || status.is_conflict() => {
            Ok(Action::requeue(OUTDATED_PAUSE))
        }
        _ => Err(api_error(operation, &error)),
    }
}

impl Context {
    /// Forgets a mirror that is gone, and stops its copy.
    pub(super) fn forget(&self, name: &Name) {
        self.supervisor.discard(name);
        self.forget_all_but_run(name);
    }

    async fn clean_up(&self, name: &Name) {
        self.supervisor.stop(name).await;
        self.engine.release(name).await;
        self.forget_all_but_run(name);
    }

    fn forget_all_but_run(&self, name: &Name) {
        self.writer.forget(name);
        lock(&self.book.runs).remove(name);
        lock(&self.book.briefs).remove(name);
        lock(&self.book.failures).remove(name);
        lock(&self.book.report_troubles).remove(name);
        self.unclaim(name);
    }

    /// Lets all these mirrors claim what they write, before the first of them is looked at.
    pub(super) fn survey(&self, objects: &[Arc<Guarded>]) {
        for object in objects {
            if let (Guarded::Valid(mirror), Some(target)) = (&**object, Target::of(object))
                && mirror.metadata.deletion_timestamp.is_none()
            {
                // What is wrong with a spec is told by its look, a bug of ours too.
                let judged = || self.engine.prepare(&mirror.spec);
                if let Ok(Ok(prepared)) = catch_unwind(AssertUnwindSafe(judged)) {
                    self.claim(&target, mirror, &*prepared);
                }
            }
        }
        self.surveyed.cancel();
    }

    fn claim(&self, target: &Target, mirror: &ImageMirror, prepared: &dyn Prepared) {
        let created = mirror.metadata.creation_timestamp.as_ref();
        let claimant = Claimant {
            created: created.map(|time| time.0),
            uid: target.uid.clone(),
            name: target.name.clone(),
        };
        let concerned = lock(&self.book.claims).put(&claimant, prepared.places());
        self.look_again_at(&concerned);
    }

    fn unclaim(&self, name: &Name) {
        let concerned = lock(&self.book.claims).remove(name);
        self.look_again_at(&concerned);
    }

    fn look_again_at(&self, names: &BTreeSet<Name>) {
        for name in names {
            (self.look_again)(name);
        }
    }

    /// Refuses a mirror that would write what an older one writes.
    fn refuse_conflict(&self, name: &Name) -> Result<(), Failure> {
        let claims = lock(&self.book.claims);
        let Some((place, older)) = claims.older(name) else {
            return Ok(());
        };
        // Who else has a namespace is nobody's business.
        let older = if older.namespace == name.namespace {
            format!("the ImageMirror {}", older.name)
        } else {
            "an ImageMirror of another namespace".to_owned()
        };
        Err(Failure::new(
            "DestinationConflict",
            Class::Config,
            format!(
                "{place} is written by {older}, which is older: give one of them another tag or repository"
            ),
        ))
    }

    /// Judges the spec and does the one thing to do.
    fn apply(&self, target: &Target, object: &Guarded) -> Action {
        let standing = object.status();
        let base = self
            .writer
            .current(target)
            .or_else(|| standing.cloned())
            .unwrap_or_default();
        let wishes = Wishes::of(object.meta());
        let scene = Scene {
            base: &base,
            generation: object.meta().generation.unwrap_or(1),
            run_key: None,
            suspended: is_suspended(object),
            wishes: &wishes,
            now: (self.now)(),
        };
        let outcome = match object {
            Guarded::Valid(mirror) => self
                .judge(target, mirror, scene.generation)
                .and_then(|judged| self.supervise(target, judged, &scene)),
            Guarded::Malformed(malformed) => {
                self.unclaim(&target.name);
                let problem = malformed.problem.clone();
                Err(Failure::new("InvalidSpec", Class::Config, problem))
            }
        };
        let (status, action) = outcome.unwrap_or_else(|failure| {
            self.supervisor.discard(&target.name);
            lock(&self.book.runs).remove(&target.name);
            lock(&self.book.briefs).remove(&target.name);
            (scene.invalid(&failure), Action::await_change())
        });
        if let Some(announcement) = transition(&base, &status) {
            self.events.announce(target, announcement);
        }
        self.writer.submit(target, standing, status);
        action
    }

    /// Judges a spec, once per generation.
    fn judge<'a>(
        &self,
        target: &Target,
        mirror: &'a ImageMirror,
        generation: i64,
    ) -> Result<Judged<'a>, Failure> {
        let known = lock(&self.book.briefs)
            .get(&target.name)
            .filter(|brief| brief.uid == target.uid && brief.generation == generation)
            .cloned();
        if let Some(brief) = known {
            return Ok(Judged {
                mirror,
                brief,
                prepared: None,
            });
        }
        let prepared = self.engine.prepare(&mirror.spec);
        let prepared = prepared.inspect_err(|_| self.unclaim(&target.name))?;
        self.claim(target, mirror, &*prepared);
        let brief = Brief {
            uid: target.uid.clone(),
            generation,
            run_key: prepared.run_key(),
            interval: prepared.interval(),
            images: prepared.image_count(),
        };
        lock(&self.book.briefs).insert(target.name.clone(), brief.clone());
        Ok(Judged {
            mirror,
            brief,
            prepared: Some(prepared),
        })
    }

    /// Starts, watches or judges the run of a mirror whose spec is right.
    fn supervise(
        &self,
        target: &Target,
        judged: Judged<'_>,
        scene: &Scene<'_>,
    ) -> Result<(ImageMirrorStatus, Action), Failure> {
        self.refuse_conflict(&target.name)?;
        let brief = &judged.brief.clone();
        let scene = &Scene {
            run_key: Some(&brief.run_key),
            ..*scene
        };
        let run = self.supervisor.inspect(&target.name, Instant::now());
        let memory = lock(&self.book.runs).get(&target.name).cloned();
        let mut facts = Facts {
            uid: &target.uid,
            run_key: &brief.run_key,
            generation: scene.generation,
            interval: brief.interval,
            suspended: scene.suspended,
            wishes: scene.wishes,
            now: scene.now,
            jitter: self.jitter,
            run: run.as_ref().map(Snapshot::view),
            memory: memory.as_ref(),
            status: scene.base,
        };
        let recalled = facts.recall((self.sample)());
        if let Some(recalled) = &recalled {
            lock(&self.book.runs).insert(target.name.clone(), recalled.clone());
            facts.memory = Some(recalled);
        }
        Ok(match facts.step() {
            Step::Start { again } => self.start(target, judged, scene, again)?,
            Step::Conclude => self.conclude(target, judged.mirror, &facts, scene, run.as_ref()),
            Step::Cancel => self.cancel(target, &facts, scene, run.as_ref()),
            Step::Watch => watched(scene, brief.images, run.as_ref()),
            Step::Rest(next) => (scene.at_rest(next.map(Time)), at(next, scene.now)),
            Step::Suspend { judged } => {
                // What still goes on was asked for by an earlier spec.
                self.supervisor.discard(&target.name);
                (scene.paused(judged), Action::await_change())
            }
        })
    }

    /// Begins a run.
    fn start(
        &self,
        target: &Target,
        judged: Judged<'_>,
        scene: &Scene<'_>,
        again: bool,
    ) -> Result<(ImageMirrorStatus, Action), Failure> {
        let prepared = match judged.prepared {
            Some(prepared) => prepared,
            None => self.engine.prepare(&judged.mirror.spec)?,
        };
        if !again {
            lock(&self.book.runs).remove(&target.name);
        }
        self.supervisor.start(Order {
            target: target.clone(),
            prepared,
            again,
            requested: scene.wishes.run.clone(),
        });
        let run = self.supervisor.inspect(&target.name, Instant::now());
        Ok(watched(scene, judged.brief.images, run.as_ref()))
    }

    /// Judges a run that is over.
    fn conclude(
        &self,
        target: &Target,
        mirror: &ImageMirror,
        facts: &Facts<'_>,
        scene: &Scene<'_>,
        run: Option<&Snapshot>,
    ) -> (ImageMirrorStatus, Action) {
        let Some(Finished { outcome, kept }) = self.supervisor.take_finished(&target.name) else {
            return watched(scene, run.and_then(|run| run.images), run);
        };
        self.tell_of_report(target, &kept);
        let names: Vec<String> = mirror
            .spec
            .destinations
            .iter()
            .map(|destination| destination.name.clone())
            .collect();
        let failed_before = match facts.memory {
            Some(Memory {
                next: Next::Backoff { failures, .. },
                ..
            }) => *failures,
            _ => 0,
        };
        let verdict = judge(&outcome, &names, failed_before);
        let ended = Ended {
            verdict: &verdict,
            again: run.is_some_and(|run| run.again),
            next: None,
            requested: run.and_then(|run| run.requested.as_deref()),
            reports: kept.references.as_deref(),
        };
        self.end(target, facts, scene, ended)
    }

    /// Stops a run because somebody asked for it.
    fn cancel(
        &self,
        target: &Target,
        facts: &Facts<'_>,
        scene: &Scene<'_>,
        run: Option<&Snapshot>,
    ) -> (ImageMirrorStatus, Action) {
        self.supervisor.discard(&target.name);
        let verdict = judge(&RunOutcome::Cancelled, &[], 0);
        let ended = Ended {
            verdict: &verdict,
            again: run.map_or_else(|| facts.is_judged(), |run| run.again),
            next: None,
            // Of a run that a restart cut off nobody knows any more what it answered.
            requested: match run {
                Some(run) => run.requested.as_deref(),
                None => scene.wishes.run.as_deref(),
            },
            reports: None,
        };
        self.end(target, facts, scene, ended)
    }

    /// Remembers a run that is over, says what it means, and when to look again.
    fn end(
        &self,
        target: &Target,
        facts: &Facts<'_>,
        scene: &Scene<'_>,
        ended: Ended<'_>,
    ) -> (ImageMirrorStatus, Action) {
        let memory = facts.remember(ended.verdict.next, (self.sample)());
        let next = memory.at(facts.interval, self.jitter);
        lock(&self.book.runs).insert(target.name.clone(), memory);
        let status = scene.concluded(&Ended { next, ..ended });
        let asked_again = scene.wishes.run != status.last_handled_reconcile_at;
        let action = match scene.wishes.run {
            _ if scene.suspended => Action::await_change(),
            // Asked for while the run went on: it may have passed by what changed meanwhile.
            Some(_) if asked_again => Action::requeue(Duration::ZERO),
            _ => at(next, scene.now),
        };
        (status, action)
    }

    /// Says once that a report could not be written.
    fn tell_of_report(&self, target: &Target, kept: &Kept) {
        let mut troubles = lock(&self.book.report_troubles);
        let Some(trouble) = &kept.trouble else {
            troubles.remove(&target.name);
            return;
        };
        let before = troubles.insert(target.name.clone(), trouble.clone());
        if before.as_ref() != Some(trouble) {
            let announcement = Announcement {
                warning: true,
                reason: REPORT_NOT_WRITTEN.to_owned(),
                note: format!("the report of the run could not be kept: {trouble}"),
            };
            self.events.announce(target, announcement);
        }
    }
}

/// Whether nothing new may start. Of an object that cannot be read nobody knows; nothing starts there anyhow.
fn is_suspended(object: &Guarded) -> bool {
    match object {
        Guarded::Valid(mirror) => mirror.spec.is_suspended(),
        Guarded::Malformed(_) => false,
    }
}

/// The status of a run that goes on, and when to look again.
fn watched(
    scene: &Scene<'_>,
    images: Option<usize>,
    run: Option<&Snapshot>,
) -> (ImageMirrorStatus, Action) {
    let going = Going {
        again: run.is_some_and(|run| run.again),
        queued: run.is_some_and(|run| run.stage == Stage::Queued),
        copying: run.is_some_and(|run| run.copying),
        images,
        progress: run.map_or_else(Progress::default, |run| run.progress.clone()),
    };
    let pause = if going.is_quiet() || going.queued {
        QUIET_TICK
    } else {
        TICK
    };
    (scene.going(&going), Action::requeue(pause))
}

/// Another look at this time, if there is one.
fn at(time: Option<Timestamp>, now: Timestamp) -> Action {
    let Some(time) = time else {
        return Action::await_change();
    };
    let pause = time.duration_since(now).max(SignedDuration::ZERO);
    Action::requeue(pause.unsigned_abs())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Maps whose entries change whole: a panic elsewhere leaves them as good as before.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
