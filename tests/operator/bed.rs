//! A namespace with an operator of its own that watches it alone, on the control plane that all tests share.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempPath;
use tokio::sync::OnceCell;

use crate::support::binary::Sandbox;
use crate::support::control_plane::ControlPlane;
use crate::support::process::{Guarded, poll};
use crate::support::registry::Access;
use crate::support::{Context, Failure, Result};

/// Namespace and name of the account that the shipped role is bound to.
pub(crate) const ACCOUNT: (&str, &str) = ("imagepusher-system", "imagepusher");
/// Long enough for a machine that compiles meanwhile; what a test measures has limits of its own.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// The shipped manifests are applied once.
static INSTALLED: OnceCell<Result<()>> = OnceCell::const_new();

pub(crate) struct Bed<'a> {
    pub(crate) cluster: &'a ControlPlane,
    pub(crate) namespace: String,
    sandbox: Sandbox,
    _kubeconfig: TempPath,
}

/// The control plane with the shipped manifests.
pub(crate) async fn cluster() -> Result<&'static ControlPlane> {
    let cluster = ControlPlane::shared().await?;
    let installed = INSTALLED
        .get_or_init(|| async { install(cluster) })
        .await
        .clone();
    installed.map(|()| cluster)
}

/// Applies what is shipped, as a user would; the CRD has to be served before anything of its kind is applied.
pub(crate) fn install(cluster: &ControlPlane) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    cluster.install_crds(&root.join("crds"))?;
    cluster
        .apply_path(&root.join("deploy/kustomize/base"))
        .map(drop)
}

impl Bed<'static> {
    /// A namespace on the shared control plane, and whose account the operators of this test have.
    pub(crate) async fn new(prefix: &str) -> Result<Self> {
        let cluster = cluster().await?;
        Self::on(cluster, prefix, ACCOUNT)
    }
}

impl<'a> Bed<'a> {
    pub(crate) fn on(
        cluster: &'a ControlPlane,
        prefix: &str,
        account: (&str, &str),
    ) -> Result<Self> {
        let namespace = cluster.namespace(prefix)?;
        let kubeconfig = cluster.kubeconfig_for_service_account(account.0, account.1)?;
        let sandbox = Sandbox::new()?
            .variable("KUBECONFIG", kubeconfig.to_str().unwrap())
            .variable("POD_NAME", "imagepusher-test");
        Ok(Self {
            cluster,
            namespace,
            sandbox,
            _kubeconfig: kubeconfig,
        })
    }

    /// A variable for its operators.
    pub(crate) fn with_variable(mut self, name: &str, value: &str) -> Self {
        self.sandbox = self.sandbox.variable(name, value);
        self
    }

    /// The folder that its operators start in.
    pub(crate) fn path(&self) -> &Path {
        self.sandbox.path()
    }

    /// Starts an operator for this namespace and waits until it is ready.
    pub(crate) fn operator(&self) -> Result<Guarded> {
        self.operator_with(&["--watch-namespace", &self.namespace])
    }

    /// Starts an operator with these options besides the usual ones; the registries of the tests are on this machine.
    pub(crate) fn operator_with(&self, options: &[&str]) -> Result<Guarded> {
        self.strict_operator_with(&[&["--allow-loopback"], options].concat())
    }

    /// The same, for mirrors that may not ask this machine.
    pub(crate) fn strict_operator_with(&self, options: &[&str]) -> Result<Guarded> {
        let mut arguments = vec![
            "controller",
            "--cache-dir",
            "cache",
            "--metrics-addr",
            "127.0.0.1:0",
            "--log-format",
            "json",
        ];
        arguments.extend(options);
        let operator = self.sandbox.start_guarded(&arguments)?;
        operator.wait_for("ready", PATIENCE, || {
            operator
                .log()
                .contains(r#""message":"ready""#)
                .then_some(())
        })?;
        Ok(operator)
    }

    pub(crate) fn apply(&self, object: &Value) -> Result<()> {
        self.cluster.apply(&object.to_string()).map(drop)
    }

    /// A Secret with these texts.
    pub(crate) fn secret(&self, name: &str, kind: &str, data: &Value) -> Result<()> {
        self.apply(&json!({
            "apiVersion": "v1", "kind": "Secret", "type": kind, "stringData": data,
            "metadata": {"name": name, "namespace": self.namespace},
        }))
    }

    /// A mirror with this spec.
    pub(crate) fn mirror(&self, name: &str, spec: &Value) -> Result<()> {
        self.apply(&json!({
            "apiVersion": "imagepusher.io/v1alpha1", "kind": "ImageMirror", "spec": spec,
            "metadata": {"name": name, "namespace": self.namespace},
        }))
    }

    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let mut all = vec!["-n", self.namespace.as_str()];
        all.extend(arguments);
        self.cluster.run_kubectl(&all)
    }

    /// Sets an annotation of a mirror, in place of what it said before.
    pub(crate) fn annotate(&self, name: &str, annotation: &str, value: &str) -> Result<()> {
        let pair = format!("{annotation}={value}");
        self.kubectl(&["annotate", "imir", name, &pair, "--overwrite"])
            .map(drop)
    }

    /// Asks for a run, and waits until one has answered.
    pub(crate) fn request(&self, name: &str, token: &str) -> Result<Value> {
        self.annotate(name, "imagepusher.io/requestedAt", token)?;
        self.wait_until(name, PATIENCE, |object| {
            object["status"]["lastHandledReconcileAt"] == token
        })
    }

    /// The whole object.
    pub(crate) fn object(&self, name: &str) -> Result<Value> {
        let text = self.kubectl(&["get", "imir", name, "-o", "json"])?;
        serde_json::from_str(&text).context("kubectl wrote no JSON")
    }

    /// Waits until the object is as `wanted` says.
    pub(crate) fn wait_until(
        &self,
        name: &str,
        limit: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let mut last = Value::Null;
        let found = poll(limit, || {
            last = self.object(name).unwrap_or_default();
            wanted(&last).then(|| last.clone())
        });
        found.ok_or_else(|| {
            Failure::new(format!(
                "{name} never came to be what was waited for; it is {last:#}"
            ))
        })
    }

    /// Waits until Ready has this status and reason.
    pub(crate) fn wait_ready(&self, name: &str, status: &str, reason: &str) -> Result<Value> {
        self.wait_until(name, PATIENCE, |object| {
            let ready = condition(object, "Ready");
            (ready["status"].as_str(), ready["reason"].as_str()) == (Some(status), Some(reason))
        })
    }

    /// Type, reason and note of every event about this object, the oldest first.
    pub(crate) fn events(&self, name: &str) -> Result<Vec<(String, String, String)>> {
        let text = self.kubectl(&["get", "events.events.k8s.io", "-o", "json"])?;
        let list: Value = serde_json::from_str(&text).context("kubectl wrote no JSON")?;
        let mut events: Vec<&Value> = list["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|event| event["regarding"]["name"] == name)
            .collect();
        events.sort_by_key(|event| event["eventTime"].as_str());
        let field = |event: &Value, name: &str| event[name].as_str().unwrap_or_default().to_owned();
        Ok(events
            .into_iter()
            .map(|event| {
                (
                    field(event, "type"),
                    field(event, "reason"),
                    field(event, "note"),
                )
            })
            .collect())
    }
}

/// The condition of this type, null if there is none.
pub(crate) fn condition(object: &Value, type_: &str) -> Value {
    object["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == type_)
        .cloned()
        .unwrap_or_default()
}

/// A source without login.
pub(crate) fn source(access: &Access, repository: &str, tags: &[&str]) -> Value {
    json!({"registry": {
        "repository": format!("{}/{repository}", access.address), "tags": tags, "insecure": true,
    }})
}

/// A destination that keeps the source's path.
pub(crate) fn destination(name: &str, access: &Access) -> Value {
    json!({
        "name": name, "insecure": true,
        "repository": format!("{}/mirror/{{repository}}", access.address),
    })
}
