//! The API server as the rest of the room sees it: the client, the check at the start, the reflected objects, and the sink
//! of statuses.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::{channel::mpsc, future::BoxFuture};
use kube::{
    Api, Client, Config, CustomResourceExt as _, Resource as _,
    api::{ListParams, Patch, PatchParams},
    runtime::reflector::{ObjectRef, Store},
};
use serde_json::{Value, json};
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
/// Where the server describes our group; every account may read it.
const OPENAPI: &str = "/openapi/v3/apis/imagepusher.io/v1alpha1";

/// A client for the cluster that the environment names.
pub(super) async fn connect() -> Result<Client> {
    let mut config = Config::infer()
        .await
        .map_err(|error| Error::NoCluster(Box::new(error)))?;
    // What the environment names is for registries, and the client's own word for a proxy would show the login in it.
    if config.proxy_url.take().is_some() {
        tracing::warn!(
            "the API server is asked directly, not through the proxy that is named for it"
        );
    }
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

/// Fields of the status that the operator writes and the served CRD does not know: with one of them missing, no status can
/// be written (CRD finding F30; Helm does not upgrade CRDs). Empty where the server does not tell.
pub(super) async fn missing_status_fields(client: &Client) -> Vec<String> {
    let Ok(request) = http::Request::get(OPENAPI).body(Vec::new()) else {
        return Vec::new();
    };
    match within(CALL_LIMIT, client.request::<Value>(request)).await {
        Ok(document) => served_status(&document).map_or_else(Vec::new, |served| {
            let mut missing = Vec::new();
            collect_missing("status", &our_status(), served, &mut missing);
            missing
        }),
        Err(error) => {
            tracing::debug!("{}", error.into_error("read the served schema"));
            Vec::new()
        }
    }
}

/// The schema of the status as we would install it.
fn our_status() -> Value {
    let definition = serde_json::to_value(ImageMirror::crd()).unwrap_or_default();
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"].clone()
}

/// The schema of the status in the server's description of our group.
fn served_status(document: &Value) -> Option<&Value> {
    let is_ours = |schema: &&Value| {
        let kinds = schema["x-kubernetes-group-version-kind"].as_array();
        let is_kind = |kind: &Value| kind["kind"] == ImageMirror::kind(&()).as_ref();
        kinds.is_some_and(|kinds| kinds.iter().any(is_kind))
    };
    let schemas = document["components"]["schemas"].as_object()?;
    let status = &schemas.values().find(is_ours)?["properties"]["status"];
    status["properties"].is_object().then_some(status)
}

/// Adds the path of every property of `ours` that `served` lacks.
fn collect_missing(path: &str, ours: &Value, served: &Value, missing: &mut Vec<String>) {
    for (name, property) in ours["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        match served["properties"].get(name) {
            Some(served) => collect_missing(&path, property, served, missing),
            None => missing.push(path),
        }
    }
    if ours["items"].is_object() {
        collect_missing(
            &format!("{path}[]"),
            &ours["items"],
            &served["items"],
            missing,
        );
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

    /// Everything that was seen so far.
    pub(super) fn all(&self) -> Vec<Arc<Guarded>> {
        let watched = self.by_namespace.values();
        watched.flat_map(|watched| watched.store.state()).collect()
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
    let written = match &error {
        CallError::Silent(_) => Written::TimedOut,
        CallError::Refused(_) => Written::Failed,
    };
    match error.into_error("write the status") {
        outdated @ Error::CrdOutdated { .. } => tracing::error!(mirror = %name, "{outdated}"),
        other => tracing::warn!(mirror = %name, "{other}"),
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(status: &Value) -> Value {
        json!({"components": {"schemas": {
            "other": {"x-kubernetes-group-version-kind": [{"kind": "ImageMirrorList"}]},
            "ours": {
                "x-kubernetes-group-version-kind": [{"kind": "ImageMirror"}],
                "properties": {"status": status},
            },
        }}})
    }

    fn missing(status: &Value) -> Vec<String> {
        let (document, mut missing) = (served(status), Vec::new());
        collect_missing(
            "status",
            &our_status(),
            served_status(&document).unwrap(),
            &mut missing,
        );
        missing
    }

    #[test]
    fn a_field_that_the_served_crd_lacks_is_found_at_any_depth() {
        let mut status = our_status();
        assert_eq!(missing(&status), Vec::<String>::new());
        let remove = |value: &mut Value, pointer: &str, name: &str| {
            let map = value.pointer_mut(pointer).unwrap().as_object_mut().unwrap();
            map.remove(name).unwrap();
        };
        remove(&mut status, "/properties", "reportRef");
        remove(
            &mut status,
            "/properties/failures/items/properties",
            "reason",
        );
        assert_eq!(
            missing(&status),
            ["status.failures[].reason", "status.reportRef"]
        );
    }

    #[test]
    fn a_server_that_says_nothing_of_the_status_lacks_nothing() {
        for document in [json!({}), served(&Value::Null)] {
            assert_eq!(served_status(&document), None);
        }
    }
}
