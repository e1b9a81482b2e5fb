//! The watches: how objects come in, which of their changes count, and what happens to errors.

use std::{collections::HashMap, sync::Arc};

use futures::{StreamExt as _, channel::mpsc};
use kube::{
    Client, Resource as _,
    runtime::{
        Controller, Predicate as _, PredicateConfig, WatchStreamExt as _,
        controller::{self, Error as ControllerError},
        predicates, reflector,
        watcher::{self, watcher},
    },
};
use tokio_util::sync::CancellationToken;

use super::{
    annotations,
    cluster::{self, Watched, Watches},
    error::{self, Error},
    guard::Guarded,
    reconcile::{self, Context},
    target::{Name, Target},
};

/// Looks at once: they make no calls but for finalizers, so a few are enough (operator rule K10).
const PARALLEL_LOOKS: u16 = 16;
/// Objects per page of a list: some hundred kilobytes.
const PAGE_SIZE: u32 = 200;
/// One watch that is to be run.
pub(super) struct Intake {
    namespace: Option<String>,
    writer: reflector::store::Writer<Guarded>,
    again: mpsc::UnboundedReceiver<reflector::ObjectRef<Guarded>>,
    listed: CancellationToken,
}

/// Opens one watch per scope: a namespace, or `None` for the whole cluster.
pub(super) fn open_watches(scopes: Vec<Option<String>>) -> (Watches, Vec<Intake>) {
    let mut watched = HashMap::new();
    let mut intakes = Vec::new();
    for namespace in scopes {
        let (store, writer) = reflector::store();
        let (sender, receiver) = mpsc::unbounded();
        let listed = CancellationToken::new();
        watched.insert(
            namespace.clone(),
            Watched {
                store,
                again: sender,
                listed: listed.clone(),
            },
        );
        intakes.push(Intake {
            namespace,
            writer,
            again: receiver,
            listed,
        });
    }
    (Watches::new(watched), intakes)
}

impl Intake {
    /// Watches and reconciles until told to stop. Errors of single looks or of the watch never end it (operator rule K21).
    pub(super) async fn run(self, client: Client, context: Arc<Context>, stop: CancellationToken) {
        let Self {
            namespace,
            writer,
            again,
            listed,
        } = self;
        let api = cluster::mirrors(&client, namespace.as_deref());
        let config = watcher::Config::default()
            .any_semantic()
            .page_size(PAGE_SIZE);
        let store = writer.as_reader();
        let forgetting = Arc::clone(&context);
        // Reflected before it is filtered, so that a look asked for sees the newest object (operator rule K7).
        let stream = watcher(api, config)
            .default_backoff()
            .modify(|object| object.meta_mut().managed_fields = None)
            .reflect(writer)
            .inspect(move |event| match event {
                Ok(watcher::Event::InitDone) => listed.cancel(),
                // Mostly forgotten already, before our finalizer went; this one is for finalizers removed by hand.
                Ok(watcher::Event::Delete(object)) => {
                    if let Some(target) = Target::of(object) {
                        forgetting.forget(&target.name);
                    }
                }
                _ => {}
            })
            .applied_objects()
            .predicate_filter(
                predicates::generation
                    .combine(predicates::finalizers)
                    .combine(annotations::fingerprint),
                PredicateConfig::default(),
            );
        let results = Controller::for_stream(stream, store)
            .with_config(controller::Config::default().concurrency(PARALLEL_LOOKS))
            .reconcile_on(again)
            .graceful_shutdown_on(stop.cancelled_owned())
            .run(
                reconcile::reconcile,
                |object, _, context| reconcile::after_failure(&object, &context),
                Arc::clone(&context),
            );
        results
            .for_each(|result| {
                if let Err(error) = result {
                    note(&error, &context);
                }
                std::future::ready(())
            })
            .await;
    }
}

/// Logs what went wrong, once; a mirror that vanished takes its copy with it.
fn note(error: &ControllerError<Error, watcher::Error>, context: &Context) {
    match error {
        ControllerError::ObjectNotFound(object) => {
            if let Some(namespace) = &object.namespace {
                context.forget(&Name {
                    namespace: namespace.clone(),
                    name: object.name.clone(),
                });
            }
        }
        ControllerError::ReconcilerFailed(error, object) => {
            tracing::warn!(mirror = %object, "{error}");
        }
        ControllerError::QueueError(error) => {
            tracing::warn!(
                "the watch of ImageMirrors is interrupted: {}",
                watch_text(error)
            );
        }
        ControllerError::RunnerError(error) => tracing::error!("{error}"),
    }
}

fn watch_text(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => error::api_text(error),
        watcher::Error::WatchError(status) => status.message.clone(),
        error @ watcher::Error::NoResourceVersion => error.to_string(),
    }
}
