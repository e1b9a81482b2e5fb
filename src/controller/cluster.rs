//! The API server as the rest of the room sees it: the client, the check at the start, the reflected objects, and the sink
//! of statuses.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::{channel::mpsc, future::BoxFuture};
use kube::{
    Api, Client, Config, Resource as _,
    api::{ListParams, Patch, PatchParams},
    runtime::reflector::{ObjectRef, Store},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::api::{ImageMirror, ImageMirrorStatus};

use super::{
    call::{CALL_LIMIT, CallError, within},
    error::{Error, Result},
    guard::Guarded,
    target::{Name, Target},
    writer::{StatusSink, Written},
};

/// Owns our fields of the status. It never changes: what an earlier name owns could never be removed again (CRD finding
/// F29).
const FIELD_MANAGER: &str = "imagemirror-controller";
/// A status write is small, and the next one says the same and more.
const WRITE_LIMIT: Duration = Duration::from_secs(5);

/// A client for the cluster that the environment names.
pub(super) async fn connect() -> Result<Client> {
    let mut config = Config::infer()
        .await
        .map_err(|error| Error::NoCluster(Box::new(error)))?;
    // Each call has a limit of its own; this one lets a wrong address be told from a slow answer.
    config.connect_timeout = Some(CALL_LIMIT / 2);
    Client::try_from(config).map_err(|error| Error::ClientInvalid(error.to_string()))
}

/// The mirrors of one namespace, or of all.
pub(super) fn mirrors(client: &Client, namespace: Option<&str>) -> Api<Guarded> {
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// Lists one mirror, so that a missing CRD or permission is told at the start, with its remedy (operator rule K25).
pub(super) async fn check_served(client: &Client, namespace: Option<&str>) -> Result<()> {
    let operation = match namespace {
        Some(namespace) => format!("list ImageMirrors in namespace {namespace}"),
        None => "list ImageMirrors".to_owned(),
    };
    let api = mirrors(client, namespace);
    let first = ListParams::default().limit(1);
    match within(CALL_LIMIT, api.list(&first)).await {
        Ok(_) => Ok(()),
        // The code alone: the answer to an unknown path is plain text, without the reason that kube would look at.
        Err(error) if error.status().is_some_and(|status| status.code == 404) => {
            Err(Error::CrdMissing)
        }
        Err(error) => Err(error.into_error(&operation)),
    }
}

/// What one watch holds, and how to ask for another look at one of its objects.
#[derive(Clone)]
pub(super) struct Watched {
    /// The objects as last seen.
    pub(super) store: Store<Guarded>,
    /// Names sent here are reconciled.
    pub(super) again: mpsc::UnboundedSender<ObjectRef<Guarded>>,
    /// Cancelled when the first list has arrived. The store could tell as well, but of several who wait for it only one is
    /// woken (`kube-runtime` 5.0.0, `utils/delayed_init.rs`), and the controller waits for it already.
    pub(super) listed: CancellationToken,
}

/// All watches: one for the whole cluster, or one per watched namespace.
#[derive(Clone, Default)]
pub(super) struct Watches {
    by_namespace: Arc<HashMap<Option<String>, Watched>>,
}

impl Watches {
    pub(super) fn new(by_namespace: HashMap<Option<String>, Watched>) -> Self {
        Self {
            by_namespace: Arc::new(by_namespace),
        }
    }

    /// Asks for another look at this object.
    pub(super) fn look_again(&self, name: &Name) {
        if let Some(watched) = self.of(name) {
            // It fails only when the controller is gone, and with it everybody who would look.
            drop(watched.again.unbounded_send(ObjectRef::from(name)));
        }
    }

    /// Whether this very object is the one that was last seen under its name.
    pub(super) fn holds(&self, target: &Target) -> bool {
        let seen = self
            .of(&target.name)
            .and_then(|watched| watched.store.get(&ObjectRef::from(&target.name)));
        seen.is_some_and(|object| object.meta().uid.as_deref() == Some(&target.uid))
    }

    /// Waits until every watch has listed its objects once.
    pub(super) async fn wait_until_listed(&self) {
        for watched in self.by_namespace.values() {
            watched.listed.cancelled().await;
        }
    }

    fn of(&self, name: &Name) -> Option<&Watched> {
        self.by_namespace
            .get(&Some(name.namespace.clone()))
            .or_else(|| self.by_namespace.get(&None))
    }
}

/// Writes statuses by server-side apply (operator rule K15).
pub(super) struct ClusterStatuses {
    pub(super) client: Client,
    pub(super) watches: Watches,
}

impl StatusSink for ClusterStatuses {
    fn exists(&self, target: &Target) -> bool {
        self.watches.holds(target)
    }

    fn write(&self, target: Target, status: ImageMirrorStatus) -> BoxFuture<'static, Written> {
        let api: Api<Guarded> = Api::namespaced(self.client.clone(), &target.name.namespace);
        Box::pin(async move {
            let body = json!({
                "apiVersion": ImageMirror::api_version(&()),
                "kind": ImageMirror::kind(&()),
                "status": status,
            });
            let parameters = PatchParams::apply(FIELD_MANAGER).force();
            let patch = Patch::Apply(&body);
            let write = api.patch_status(&target.name.name, &parameters, &patch);
            match within(WRITE_LIMIT, write).await {
                Ok(object) if is(&object, &target) => Written::Succeeded,
                Ok(_) => {
                    tracing::warn!(mirror = %target.name, "it was replaced while its status was written");
                    Written::Astray
                }
                Err(error) => refused(&target.name, error),
            }
        })
    }
}

/// Whether the object that was written to is the one that was meant.
fn is(object: &Guarded, target: &Target) -> bool {
    object.meta().uid.as_deref() == Some(&target.uid)
}

fn refused(name: &Name, error: CallError) -> Written {
    let status = error.status();
    if status.is_some_and(kube::core::Status::is_not_found) {
        return Written::Gone;
    }
    let outdated_crd = status.is_some_and(|status| {
        status.code == 500 && status.message.contains("field not declared in schema")
    });
    let written = match &error {
        CallError::Silent(_) => Written::TimedOut,
        CallError::Refused(_) => Written::Failed,
    };
    if outdated_crd {
        // CRD finding F30: Helm does not upgrade CRDs, so this happens.
        tracing::error!(
            mirror = %name,
            "the installed CRD is older than this operator and lacks a field of the status: install the current one with \
             `docker-image-pusher crd | kubectl apply --server-side -f -`"
        );
    } else {
        tracing::warn!(mirror = %name, "{}", error.into_error("write the status"));
    }
    written
}
