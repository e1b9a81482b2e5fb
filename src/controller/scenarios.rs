//! Looks at mirrors against an API server that is played request by request (operator rule K26): a call too many finds
//! nobody to answer it, a call too few is waited for in vain.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use http::{Method, Request, Response};
use http_body_util::BodyExt as _;
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::{Client, Resource as _, client::Body, runtime::controller::Action};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tower_test::mock;

use super::{
    cluster::{ClusterStatuses, Watches, check_served},
    engine::{Engine, Failure, Prepared},
    error::Error,
    events,
    fixtures::{self, concluded, scene},
    guard::Guarded,
    metrics::Metrics,
    reconcile::{Book, Context, FINALIZER, after_failure, reconcile},
    reports::Forgetful,
    schedule::Jitter,
    secrets::ClusterSecrets,
    supervise::Supervisor,
    target::{Name, Target},
    verdict::RunOutcome,
    watch::open_watches,
    writer::{StatusSink as _, StatusWriter, Written},
};
use crate::{
    api::{
        CANCEL, ImageMirror, ImageMirrorSpec, ImageMirrorStatus, REQUESTED_AT,
        REQUESTED_AT_OF_FLUX, Transfer,
        condition::{READY, RECONCILING, STALLED, find},
        parse_duration,
    },
    error::Class,
};

mod objects;

type Handle = mock::Handle<Request<Body>, Response<Body>>;

fn server() -> (Client, Handle) {
    let (service, handle) = mock::pair();
    (Client::new(service, "default"), handle)
}

/// One request of the operator, as the server sees it.
struct Call {
    method: Method,
    uri: String,
    content_type: String,
    body: Value,
    answer: mock::SendResponse<Response<Body>>,
}

impl Call {
    async fn next(handle: &mut Handle) -> Self {
        let wait = tokio::time::timeout(Duration::from_secs(1), handle.next_request());
        let (request, answer) = wait.await.expect("a call was expected").unwrap();
        let (parts, body) = request.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let header = parts.headers.get("content-type");
        Self {
            method: parts.method,
            uri: parts.uri.to_string(),
            content_type: header
                .map_or("", |value| value.to_str().unwrap())
                .to_owned(),
            body: serde_json::from_slice(&bytes).unwrap_or_default(),
            answer,
        }
    }

    fn answer(self, code: u16, body: &Value) {
        let response = Response::builder()
            .status(code)
            .body(Body::from(serde_json::to_vec(body).unwrap()))
            .unwrap();
        self.answer.send_response(response);
    }

    fn refuse(self, code: u16, reason: &str) {
        let message = format!("the server says {reason}");
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
            "code": code, "reason": reason, "message": message});
        self.answer(code, &status);
    }
}

/// An engine whose runs end when they are let go, and that tells when one is dropped.
#[derive(Default)]
struct Endless {
    prepared: Arc<AtomicU32>,
    dropped: Arc<Mutex<u32>>,
    let_go: Arc<Notify>,
}

struct EndlessRun(Arc<Mutex<u32>>);

impl Drop for EndlessRun {
    fn drop(&mut self) {
        *self.0.lock().unwrap() += 1;
    }
}

impl Engine for Endless {
    fn release(&self, _mirror: &Name) -> futures::future::BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }

    fn prepare(&self, spec: &ImageMirrorSpec) -> Result<Box<dyn Prepared>, Failure> {
        self.prepared.fetch_add(1, Ordering::SeqCst);
        assert_ne!(spec.interval.as_deref(), Some("13h"), "unlucky");
        if spec.destinations.is_empty() {
            return Err(fixtures::failure(Class::Config));
        }
        let run = EndlessRun(Arc::clone(&self.dropped));
        let let_go = Arc::clone(&self.let_go);
        let key = if spec.transfer.is_some() {
            "another key"
        } else {
            "key"
        };
        let destinations = spec.destinations.iter();
        Ok(Box::new(fixtures::TestRun {
            key,
            interval: spec.interval.as_deref().and_then(parse_duration),
            places: destinations.map(|each| each.repository.clone()).collect(),
            work: Box::pin(async move {
                let_go.notified().await;
                drop(run);
            }),
        }))
    }
}

struct Bed {
    context: Arc<Context>,
    handle: Handle,
    specs_prepared: Arc<AtomicU32>,
    runs_dropped: Arc<Mutex<u32>>,
    let_go: Arc<Notify>,
    looked_again: Arc<Mutex<Vec<Name>>>,
}

fn bed() -> Bed {
    let bed = bed_at_the_start();
    bed.context.surveyed.cancel();
    bed
}

/// Before the mirrors that there are have claimed what they write.
fn bed_at_the_start() -> Bed {
    let (client, handle) = server();
    let engine = Endless::default();
    let runs_dropped = Arc::clone(&engine.dropped);
    let specs_prepared = Arc::clone(&engine.prepared);
    let let_go = Arc::clone(&engine.let_go);
    let metrics = Metrics::default();
    let (events, _publisher) = events::events(client.clone(), None, metrics.clone());
    let secrets = Arc::new(ClusterSecrets::new(client.clone()));
    let looked_again = Arc::<Mutex<Vec<Name>>>::default();
    let told = Arc::clone(&looked_again);
    let context = Arc::new(Context {
        client,
        engine: Arc::new(engine),
        supervisor: Supervisor::new(
            1,
            secrets,
            Arc::new(Forgetful),
            Arc::new(|_| {}),
            metrics.clone(),
        ),
        writer: StatusWriter::new(),
        events,
        metrics,
        jitter: Jitter::new(0),
        now: || Timestamp::UNIX_EPOCH,
        sample: || 0.5,
        book: Book::default(),
        look_again: Arc::new(move |name| told.lock().unwrap().push(name.clone())),
        surveyed: CancellationToken::new(),
    });
    Bed {
        context,
        handle,
        specs_prepared,
        runs_dropped,
        let_go,
        looked_again,
    }
}

fn object() -> Guarded {
    Guarded::Valid(Box::new(fixtures::mirror()))
}

fn malformed() -> Guarded {
    let mut value = serde_json::to_value(fixtures::mirror()).unwrap();
    value["spec"]["transfer"] = json!({"existingBlobs": "Sideways"});
    serde_json::from_value(value).unwrap()
}

fn deleted(mut object: Guarded) -> Guarded {
    object.meta_mut().deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    object
}

/// One look, while `answer` plays the server.
async fn look(
    bed: &mut Bed,
    object: Guarded,
    answer: impl AsyncFnOnce(&mut Handle),
) -> Result<Action, Error> {
    let look = reconcile(Arc::new(object), Arc::clone(&bed.context));
    let (result, ()) = tokio::join!(look, answer(&mut bed.handle));
    result
}

async fn nobody(_handle: &mut Handle) {}

fn status(bed: &Bed) -> ImageMirrorStatus {
    let target = Target::of(&object()).unwrap();
    bed.context.writer.current(&target).unwrap()
}

#[tokio::test]
async fn a_new_mirror_gets_our_finalizer_before_anything_else() {
    let mut bed = bed();
    let mut new = object();
    new.meta_mut().finalizers = None;
    let action = look(&mut bed, new, async |handle| {
        let call = Call::next(handle).await;
        assert_eq!(call.method, Method::PATCH);
        assert!(
            call.uri
                .starts_with("/apis/imagepusher.io/v1alpha1/namespaces/team/imagemirrors/mirror?"),
            "{}",
            call.uri
        );
        assert_eq!(call.body[1]["value"], json!([FINALIZER]));
        call.answer(200, &json!({"metadata": {"name": "mirror"}}));
    })
    .await
    .unwrap();
    assert_eq!(action, Action::await_change());
    assert!(
        bed.context
            .supervisor
            .inspect(
                &Target::of(&object()).unwrap().name,
                std::time::Instant::now()
            )
            .is_none()
    );
}

/// CRD finding F40: the cache did not show our finalizer yet.
#[tokio::test]
async fn a_finalizer_that_is_there_already_is_no_error() {
    let mut bed = bed();
    let mut new = object();
    new.meta_mut().finalizers = None;
    let action = look(&mut bed, new, async |handle| {
        Call::next(handle).await.refuse(422, "Invalid");
    })
    .await
    .unwrap();
    assert_eq!(action, Action::requeue(Duration::from_secs(1)));
}

#[tokio::test]
async fn a_look_starts_the_copy_and_returns_at_once() {
    let mut bed = bed();
    let action = look(&mut bed, object(), nobody).await.unwrap();
    assert_eq!(action, Action::requeue(Duration::from_secs(5)));
    let status = status(&bed);
    assert_eq!(status.observed_generation, 1);
    assert_eq!(find(&status.conditions, READY).unwrap().status, "Unknown");
    assert!(find(&status.conditions, RECONCILING).is_some());
}

#[tokio::test]
async fn a_deleted_mirror_loses_its_copy_and_then_our_finalizer() {
    let mut bed = bed();
    look(&mut bed, object(), nobody).await.unwrap();
    // The run has to begin before it can be stopped.
    tokio::task::yield_now().await;
    let runs_dropped = Arc::clone(&bed.runs_dropped);
    let before = *runs_dropped.lock().unwrap();
    look(&mut bed, deleted(object()), async |handle| {
        let call = Call::next(handle).await;
        assert!(
            *runs_dropped.lock().unwrap() > before,
            "the copy is gone first"
        );
        assert_eq!(
            call.body[1],
            json!({"op": "remove", "path": "/metadata/finalizers/0"})
        );
        // Somebody else removed the object meanwhile: that is as good (operator rule K18).
        call.refuse(404, "NotFound");
    })
    .await
    .unwrap();
    let target = Target::of(&object()).unwrap();
    assert!(bed.context.writer.current(&target).is_none());
}

/// Somebody took our finalizer away by hand, so no look comes before the end.
#[tokio::test]
async fn a_mirror_that_vanishes_is_forgotten_at_once_and_its_copy_stopped() {
    let Bed {
        context,
        mut handle,
        ..
    } = bed();
    let (_watches, mut intakes) = open_watches(vec![None]);
    let stop = CancellationToken::new();
    let intake = intakes
        .remove(0)
        .run(context.client.clone(), Arc::clone(&context), stop.clone());
    let target = Target::of(&object()).unwrap();
    let until = async |wanted: bool| {
        let known = || context.writer.current(&target).is_some();
        let wait = async {
            while known() != wanted {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        // Sooner than the next tick, which would find out as well.
        let waited = tokio::time::timeout(Duration::from_secs(3), wait).await;
        assert!(waited.is_ok(), "known: {}", known());
    };
    let play = async {
        let mut mirror = fixtures::mirror();
        mirror.metadata.resource_version = Some("1".to_owned());
        let list = json!({"metadata": {"resourceVersion": "1"}, "items": [&mirror]});
        Call::next(&mut handle).await.answer(200, &list);
        let watch = Call::next(&mut handle).await;
        until(true).await;
        watch.answer(200, &json!({"type": "DELETED", "object": &mirror}));
        until(false).await;
        let run = context
            .supervisor
            .inspect(&target.name, std::time::Instant::now());
        assert!(run.is_none());
        stop.cancel();
    };
    // The next watch finds nobody.
    tokio::select! {
        () = intake => panic!("the watch ended by itself"),
        () = play => {}
    }
}

#[tokio::test]
async fn a_malformed_mirror_is_told_which_field_is_wrong_and_can_be_deleted() {
    let mut bed = bed();
    let action = look(&mut bed, malformed(), nobody).await.unwrap();
    assert_eq!(action, Action::await_change());
    let status = status(&bed);
    let stalled = find(&status.conditions, STALLED).unwrap();
    assert_eq!(stalled.reason, "InvalidSpec");
    assert!(
        stalled.message.starts_with("spec.transfer.existingBlobs:"),
        "{}",
        stalled.message
    );
    look(&mut bed, deleted(malformed()), async |handle| {
        Call::next(handle)
            .await
            .answer(200, &json!({"metadata": {"name": "mirror"}}));
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_spec_that_becomes_wrong_stops_the_copy() {
    let mut bed = bed();
    look(&mut bed, object(), nobody).await.unwrap();
    let mut mirror = fixtures::mirror();
    mirror.spec.destinations.clear();
    mirror.metadata.generation = Some(2);
    let wrong = Guarded::Valid(Box::new(mirror));
    let action = look(&mut bed, wrong, nobody).await.unwrap();
    assert_eq!(action, Action::await_change());
    let name = Target::of(&object()).unwrap().name;
    assert!(
        bed.context
            .supervisor
            .inspect(&name, std::time::Instant::now())
            .is_none()
    );
    assert_eq!(status(&bed).observed_generation, 2);
}

#[tokio::test]
async fn a_spec_is_judged_once_however_often_it_is_looked_at() {
    let mut bed = bed();
    for _ in 0..3 {
        look(&mut bed, object(), nobody).await.unwrap();
    }
    assert_eq!(bed.specs_prepared.load(Ordering::SeqCst), 1);
    for (generation, uid) in [(2, "uid-1"), (2, "uid-2")] {
        let mut mirror = fixtures::mirror();
        mirror.metadata.generation = Some(generation);
        mirror.metadata.uid = Some(uid.to_owned());
        let edited = Guarded::Valid(Box::new(mirror));
        look(&mut bed, edited, nobody).await.unwrap();
    }
    assert_eq!(bed.specs_prepared.load(Ordering::SeqCst), 3);
}

/// Operator rules S3 and G2, over a restart.
#[tokio::test]
async fn an_edit_of_the_interval_after_a_restart_keeps_the_verdict() {
    let mut bed = bed();
    let standing = concluded(
        &scene(&ImageMirrorStatus::default(), 1, Timestamp::UNIX_EPOCH),
        &RunOutcome::Reported(fixtures::report(&[&[None]])),
        false,
        None,
    );
    for generation in [1, 2] {
        let mut mirror = fixtures::mirror();
        mirror.metadata.generation = Some(generation);
        mirror.status = Some(standing.clone());
        let object = Guarded::Valid(Box::new(mirror));
        look(&mut bed, object, nobody).await.unwrap();
        let status = status(&bed);
        assert_eq!(status.observed_generation, generation);
        assert_eq!(status.ready.as_deref(), Some("True"));
        assert_eq!(status.synced.as_deref(), Some("1/1"));
    }
}

/// The mirror with this change.
fn changed(change: impl FnOnce(&mut ImageMirror)) -> Guarded {
    let mut mirror = fixtures::mirror();
    change(&mut mirror);
    Guarded::Valid(Box::new(mirror))
}

fn suspended(generation: i64) -> Guarded {
    changed(|mirror| {
        mirror.spec.suspend = Some(true);
        mirror.metadata.generation = Some(generation);
    })
}

fn annotated(name: &str, value: &str) -> Guarded {
    changed(|mirror| {
        let pair = (name.to_owned(), value.to_owned());
        mirror.metadata.annotations = Some([pair].into());
    })
}

fn ready(status: &ImageMirrorStatus) -> (&str, &str, &str) {
    let ready = find(&status.conditions, READY).unwrap();
    (&ready.status, &ready.reason, &ready.message)
}

impl Bed {
    /// Lets the task of a run go on until it waits.
    async fn settle(&self) {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    /// Lets the run end.
    async fn finish_run(&self) {
        self.settle().await;
        self.let_go.notify_one();
        self.settle().await;
    }

    fn runs(&self) -> bool {
        let name = Target::of(&object()).unwrap().name;
        let run = self
            .context
            .supervisor
            .inspect(&name, std::time::Instant::now());
        run.is_some()
    }
}

/// Operator rule G2.
#[tokio::test]
async fn a_mirror_that_is_suspended_during_a_copy_lets_it_finish_and_starts_no_other() {
    let mut bed = bed();
    look(&mut bed, object(), nobody).await.unwrap();
    bed.settle().await;
    look(&mut bed, suspended(2), nobody).await.unwrap();
    let mid = status(&bed);
    assert!(bed.runs(), "it goes on");
    assert_eq!(
        ready(&mid),
        ("Unknown", "Progressing", "suspended: copying 1 image")
    );
    assert_eq!(
        (mid.observed_generation, mid.next_sync_time.clone()),
        (2, None)
    );

    bed.finish_run().await;
    for _ in 0..2 {
        let action = look(&mut bed, suspended(2), nobody).await.unwrap();
        assert_eq!(action, Action::await_change());
        let end = status(&bed);
        assert_eq!((ready(&end).0, ready(&end).1), ("True", "Succeeded"));
        assert!(ready(&end).2.starts_with("suspended: "), "{end:#?}");
        assert_eq!((end.next_sync_time, bed.runs()), (None, false));
    }

    let resumed = changed(|mirror| mirror.metadata.generation = Some(3));
    let action = look(&mut bed, resumed, nobody).await.unwrap();
    assert_eq!(
        action,
        Action::requeue(Duration::from_hours(1)),
        "not due yet"
    );
    let end = status(&bed);
    assert!(!ready(&end).2.contains("suspended"), "{end:#?}");
    assert!(end.next_sync_time.is_some());
}

#[tokio::test]
async fn a_mirror_that_is_suspended_from_the_start_waits_and_runs_when_it_is_resumed() {
    let mut bed = bed();
    let action = look(&mut bed, suspended(1), nobody).await.unwrap();
    assert_eq!(action, Action::await_change());
    let waiting = status(&bed);
    assert_eq!(
        (ready(&waiting).0, ready(&waiting).1),
        ("Unknown", "Suspended")
    );
    assert_eq!(find(&waiting.conditions, RECONCILING), None);
    assert!(!bed.runs());
    let resumed = changed(|mirror| mirror.metadata.generation = Some(2));
    look(&mut bed, resumed, nobody).await.unwrap();
    assert!(bed.runs());
}

#[tokio::test]
async fn a_spec_that_is_edited_and_suspended_at_once_stops_the_copy_of_the_old_one() {
    let mut bed = bed();
    look(&mut bed, object(), nobody).await.unwrap();
    bed.settle().await;
    let edited = changed(|mirror| {
        mirror.spec.suspend = Some(true);
        mirror.spec.transfer = Some(Transfer::default());
        mirror.metadata.generation = Some(2);
    });
    look(&mut bed, edited, nobody).await.unwrap();
    assert!(!bed.runs());
    assert_eq!(ready(&status(&bed)).1, "Suspended");
}

/// Operator rule G3: what is asked for during a run may have changed after the run had read it.
#[tokio::test]
async fn a_request_during_a_run_is_answered_by_another_one_and_only_by_one() {
    let mut bed = bed();
    look(&mut bed, object(), nobody).await.unwrap();
    let asked = || annotated(REQUESTED_AT, "2026-11-22");
    let handled = |bed: &Bed| status(bed).last_handled_reconcile_at;
    look(&mut bed, asked(), nobody).await.unwrap();
    bed.finish_run().await;
    let action = look(&mut bed, asked(), nobody).await.unwrap();
    assert_eq!(action, Action::requeue(Duration::ZERO));
    assert_eq!((handled(&bed), bed.runs()), (None, false));

    look(&mut bed, asked(), nobody).await.unwrap();
    assert_eq!((handled(&bed), bed.runs()), (None, true));
    bed.finish_run().await;
    for _ in 0..2 {
        let action = look(&mut bed, asked(), nobody).await.unwrap();
        assert_eq!(action, Action::requeue(Duration::from_hours(1)));
        assert_eq!(handled(&bed).as_deref(), Some("2026-11-22"));
        assert!(!bed.runs());
    }
}

#[tokio::test]
async fn a_request_to_a_suspended_mirror_waits_until_it_is_resumed() {
    let mut bed = bed();
    let asked = |suspend: bool, generation: i64| {
        changed(|mirror| {
            mirror.spec.suspend = Some(suspend);
            mirror.metadata.generation = Some(generation);
            let pair = (REQUESTED_AT_OF_FLUX.to_owned(), "now".to_owned());
            mirror.metadata.annotations = Some([pair].into());
        })
    };
    look(&mut bed, asked(true, 1), nobody).await.unwrap();
    assert_eq!(
        (status(&bed).last_handled_reconcile_at, bed.runs()),
        (None, false)
    );
    look(&mut bed, asked(false, 2), nobody).await.unwrap();
    bed.finish_run().await;
    look(&mut bed, asked(false, 2), nobody).await.unwrap();
    assert_eq!(
        status(&bed).last_handled_reconcile_at.as_deref(),
        Some("now")
    );
}

#[tokio::test]
async fn a_cancelled_run_is_stopped_said_and_not_begun_again() {
    let mut bed = bed();
    look(&mut bed, object(), nobody).await.unwrap();
    bed.settle().await;
    let before = *bed.runs_dropped.lock().unwrap();
    for _ in 0..2 {
        let cancelled = annotated(CANCEL, "stop");
        let action = look(&mut bed, cancelled, nobody).await.unwrap();
        assert_eq!(action, Action::requeue(Duration::from_hours(1)));
        bed.settle().await;
        assert!(*bed.runs_dropped.lock().unwrap() > before && !bed.runs());
        let status = status(&bed);
        assert_eq!((ready(&status).0, ready(&status).1), ("False", "Cancelled"));
        assert_eq!(status.last_handled_cancel_at.as_deref(), Some("stop"));
        assert!(find(&status.conditions, STALLED).is_some());
    }
    // The same token stops no later run.
    let again = changed(|mirror| {
        let pairs = [(CANCEL, "stop"), (REQUESTED_AT, "now")];
        let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
        mirror.metadata.annotations = Some(pairs.into());
    });
    for _ in 0..2 {
        look(&mut bed, again.clone(), nobody).await.unwrap();
        assert!(bed.runs());
    }
}

/// Design part 3: two mirrors, one destination reference.
#[tokio::test]
async fn the_younger_of_two_that_write_one_place_waits_until_the_older_is_gone() {
    let younger = |namespace: &str| {
        changed(|mirror| {
            mirror.metadata.name = Some("younger".to_owned());
            mirror.metadata.namespace = Some(namespace.to_owned());
            mirror.metadata.uid = Some("uid-2".to_owned());
        })
    };
    for (namespace, who) in [
        ("team", "the ImageMirror mirror"),
        ("other", "an ImageMirror of another namespace"),
    ] {
        let mut bed = bed_at_the_start();
        let target = Target::of(&younger(namespace)).unwrap();
        let told = |bed: &Bed| bed.context.writer.current(&target).unwrap();
        // Whichever is looked at first.
        let context = Arc::clone(&bed.context);
        let action = look(&mut bed, younger(namespace), async |_| {
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            context.survey(&[Arc::new(object()), Arc::new(malformed())]);
        })
        .await
        .unwrap();
        assert_eq!(action, Action::await_change());
        let refused = told(&bed);
        assert_eq!(
            (ready(&refused).0, ready(&refused).1),
            ("False", "DestinationConflict")
        );
        let expected = format!("localhost:2/image is written by {who}, which is older");
        assert!(ready(&refused).2.starts_with(&expected), "{refused:#?}");
        look(&mut bed, object(), nobody).await.unwrap();
        assert_eq!(ready(&status(&bed)).1, "Progressing");

        look(&mut bed, deleted(object()), async |handle| {
            Call::next(handle)
                .await
                .answer(200, &json!({"metadata": {"name": "mirror"}}));
        })
        .await
        .unwrap();
        assert_eq!(
            *bed.looked_again.lock().unwrap(),
            std::slice::from_ref(&target.name)
        );
        look(&mut bed, younger(namespace), nobody).await.unwrap();
        let run = bed
            .context
            .supervisor
            .inspect(&target.name, std::time::Instant::now());
        assert!(run.is_some());
    }
}

/// Operator rule K23.
#[tokio::test]
async fn a_panic_costs_one_look_and_no_more() {
    let mut bed = bed();
    let mut mirror = fixtures::mirror();
    mirror.spec.interval = Some("13h".to_owned());
    let unlucky = Guarded::Valid(Box::new(mirror));
    let result = look(&mut bed, unlucky.clone(), nobody).await;
    assert!(
        matches!(&result, Err(Error::LookPanicked { text }) if text.contains("unlucky")),
        "{result:?}"
    );
    let pauses = [(); 2].map(|()| after_failure(&unlucky, &bed.context));
    assert_eq!(
        pauses,
        [10, 20].map(|seconds| Action::requeue(Duration::from_secs(seconds)))
    );
    look(&mut bed, object(), nobody).await.unwrap();
    assert_eq!(
        after_failure(&object(), &bed.context),
        pauses[0],
        "a look that succeeds starts the count anew"
    );
}

/// Operator rule K3.
#[tokio::test(start_paused = true)]
async fn a_server_that_never_answers_ends_the_look_with_an_error() {
    let mut bed = bed();
    let mut new = object();
    new.meta_mut().finalizers = None;
    let result = look(&mut bed, new, async |handle| {
        let call = Call::next(handle).await;
        tokio::time::sleep(Duration::from_mins(1)).await;
        drop(call);
    })
    .await;
    assert!(
        matches!(result, Err(Error::ApiServerSilent { .. })),
        "{result:?}"
    );
}

#[tokio::test]
async fn a_status_is_applied_whole_under_our_one_name() {
    let (client, mut handle) = server();
    let sink = ClusterStatuses {
        client,
        watches: Watches::default(),
    };
    let target = Target::of(&object()).unwrap();
    assert!(
        !sink.exists(&target),
        "nothing is written to what is not in the store"
    );
    let write = sink.write(target, ImageMirrorStatus::default());
    let (written, ()) = tokio::join!(write, async {
        let call = Call::next(&mut handle).await;
        assert_eq!(call.method, Method::PATCH);
        assert!(
            call.uri.contains("/imagemirrors/mirror/status?"),
            "{}",
            call.uri
        );
        assert!(
            call.uri.contains("force=true")
                && call.uri.contains("fieldManager=imagemirror-controller")
        );
        assert_eq!(call.content_type, "application/apply-patch+yaml");
        let expected = json!({"apiVersion": "imagepusher.io/v1alpha1", "kind": "ImageMirror",
            "status": {"observedGeneration": -1}});
        assert_eq!(call.body, expected);
        call.answer(200, &serde_json::to_value(fixtures::mirror()).unwrap());
    });
    assert_eq!(written, Written::Succeeded);
}

#[tokio::test]
async fn a_status_that_lands_on_a_later_object_is_known_to_be_astray() {
    let (client, mut handle) = server();
    let sink = ClusterStatuses {
        client,
        watches: Watches::default(),
    };
    let write = sink.write(Target::of(&object()).unwrap(), ImageMirrorStatus::default());
    let (written, ()) = tokio::join!(write, async {
        let mut later = fixtures::mirror();
        later.metadata.uid = Some("uid-2".to_owned());
        let later = serde_json::to_value(later).unwrap();
        Call::next(&mut handle).await.answer(200, &later);
    });
    assert_eq!(written, Written::Astray);
}

#[tokio::test]
async fn a_missing_crd_is_told_with_the_command_that_installs_it() {
    let (client, mut handle) = server();
    let (result, ()) = tokio::join!(check_served(&client, None), async {
        let call = Call::next(&mut handle).await;
        assert!(call.uri.contains("limit=1"), "{}", call.uri);
        let plain = Response::builder()
            .status(404)
            .body(Body::from(b"404 page not found\n".to_vec()));
        call.answer.send_response(plain.unwrap());
    });
    let text = result.unwrap_err().to_string();
    assert!(
        text.contains("docker-image-pusher crd | kubectl apply"),
        "{text}"
    );
}
