//! A Kubernetes control plane: etcd and kube-apiserver, with the controller manager where a test needs what it does
//! (default `ServiceAccounts`, garbage collection, namespaces that go away).
//!
//! `hack/controlplane.sh` builds the programs, or finds them where `KUBEBUILDER_ASSETS` says; `hack/controlplane-run.sh`
//! knows how they are started. Where `KUBECONFIG` is set and `KUBEBUILDER_ASSETS` is not, that cluster serves instead.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use tempfile::TempPath;
use tokio::sync::OnceCell;

use super::process::{Guarded, hack, run, temporary_folder};
use super::{Context, Failure, Result};

/// The script has its own limit and says more about what went wrong, so this one is longer.
const START_LIMIT: Duration = Duration::from_mins(3);

/// A control plane that all tests of a binary share. It ends with the process, see [`super::process`].
static SHARED: OnceCell<Result<ControlPlane>> = OnceCell::const_new();

/// The same with a controller manager.
static SHARED_WITH_CONTROLLERS: OnceCell<Result<ControlPlane>> = OnceCell::const_new();

/// Whether the controller manager runs too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Controllers {
    With,
    Without,
}

/// A running control plane, or somebody's cluster.
#[derive(Debug)]
pub struct ControlPlane {
    /// Empty for somebody's cluster.
    process: Option<Guarded>,
    kubectl: PathBuf,
    kubeconfig: PathBuf,
}

/// One request that the API server answered, from its audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEvent {
    /// `system:serviceaccount:NAMESPACE:NAME`, or `admin` for what tests do themselves.
    pub user: String,
    pub user_agent: String,
    pub verb: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub status: u16,
}

impl ControlPlane {
    /// etcd and kube-apiserver, started once per test binary.
    pub async fn shared() -> Result<&'static Self> {
        Self::shared_in(&SHARED, Controllers::Without).await
    }

    /// With the controller manager, also once; a second control plane beside [`ControlPlane::shared`].
    pub async fn shared_with_controllers() -> Result<&'static Self> {
        Self::shared_in(&SHARED_WITH_CONTROLLERS, Controllers::With).await
    }

    async fn shared_in(
        cell: &'static OnceCell<Result<Self>>,
        controllers: Controllers,
    ) -> Result<&'static Self> {
        // A failed start is kept too: the next test would only wait as long for the same.
        let started = cell
            .get_or_init(|| async move {
                tokio::task::spawn_blocking(move || Self::start(controllers))
                    .await
                    .context("could not wait for the control plane")
                    .flatten()
            })
            .await;
        started.as_ref().map_err(Failure::clone)
    }

    /// One of its own, for tests that break it.
    pub fn start(controllers: Controllers) -> Result<Self> {
        if let Some(kubeconfig) = existing_cluster() {
            return Ok(Self::of_cluster("kubectl".into(), kubeconfig.into()));
        }
        let mut wanted = vec!["etcd", "kube-apiserver", "kubectl"];
        if controllers == Controllers::With {
            wanted.push("kube-controller-manager");
        }
        let programs = programs(&wanted)?;
        let folder = temporary_folder("control-plane")?;
        let path = folder.path().to_owned();
        let script = hack("controlplane-run.sh");
        let process = Guarded::spawn("control plane", folder, script, |command| {
            command.arg(&path).arg(&programs);
            if controllers == Controllers::With {
                command.arg("kube-controller-manager");
            }
        })?;
        process.wait_for("ready", START_LIMIT, || {
            path.join("ready").exists().then_some(())
        })?;
        Ok(Self {
            process: Some(process),
            kubectl: programs.join("kubectl"),
            kubeconfig: path.join("admin.kubeconfig"),
        })
    }

    /// The one of a cluster that somebody else runs.
    pub(super) fn of_cluster(kubectl: PathBuf, kubeconfig: PathBuf) -> Self {
        Self {
            process: None,
            kubectl,
            kubeconfig,
        }
    }

    /// Who has it may do everything.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The script that runs the programs; empty for somebody's cluster. The programs' logs lie in its folder.
    pub fn process(&self) -> Option<&Guarded> {
        self.process.as_ref()
    }

    /// `kubectl` as admin, for the caller to add a verb.
    pub fn kubectl(&self) -> Command {
        self.kubectl_as(&self.kubeconfig)
    }

    /// `kubectl` as whoever a kubeconfig is for.
    pub fn kubectl_as(&self, kubeconfig: &Path) -> Command {
        let mut command = Command::new(&self.kubectl);
        command.arg("--kubeconfig").arg(kubeconfig);
        command
    }

    /// Runs `kubectl` as admin and returns what it wrote.
    pub fn run_kubectl(&self, arguments: &[&str]) -> Result<String> {
        run(self.kubectl().args(arguments)).map(|output| text(&output))
    }

    /// Server-side apply of one or more YAML documents.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        let mut command = self.kubectl();
        command.args(["apply", "--server-side", "--force-conflicts", "-f", "-"]);
        run_with_input(&mut command, yaml)
    }

    /// Server-side apply of a file, or of a folder, which may be one for kustomize.
    pub fn apply_path(&self, path: &Path) -> Result<String> {
        let how = if path.join("kustomization.yaml").exists() {
            "-k"
        } else {
            "-f"
        };
        let mut command = self.kubectl();
        run(command
            .args(["apply", "--server-side", "--force-conflicts", how])
            .arg(path))
        .map(|output| text(&output))
    }

    /// Applies CRDs and waits until the API server serves them.
    pub fn install_crds(&self, path: &Path) -> Result<()> {
        self.apply_path(path)?;
        let established = "--for=condition=Established";
        self.run_kubectl(&["wait", established, "--timeout=60s", "crd", "--all"])
            .map(drop)
    }

    /// A new namespace with a name that nobody else has.
    pub fn namespace(&self, prefix: &str) -> Result<String> {
        let name = format!("{prefix}-{:08x}", fastrand::u32(..));
        self.run_kubectl(&["create", "namespace", &name])?;
        Ok(name)
    }

    /// A kubeconfig for a `ServiceAccount`, which is made if it is missing; it may do what RBAC gives it and nothing
    /// else. The file goes away with the returned path.
    pub fn kubeconfig_for_service_account(&self, namespace: &str, name: &str) -> Result<TempPath> {
        self.apply(
            &json!({
                "apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": {"name": name, "namespace": namespace},
            })
            .to_string(),
        )?;
        let token =
            self.run_kubectl(&["-n", namespace, "create", "token", name, "--duration=2h"])?;
        let admin = self.run_kubectl(&["config", "view", "--raw", "--minify", "-o", "json"])?;
        let mut config: Value =
            serde_json::from_str(&admin).context("kubectl config view wrote no JSON")?;
        config["users"][0]["user"] = json!({"token": token.trim()});
        write_private(&config.to_string())
    }

    /// A client as admin. Each test needs its own: a client belongs to the runtime that it was made in.
    pub async fn client(&self) -> Result<kube::Client> {
        client(&self.kubeconfig).await
    }

    /// Every request that was answered so far, in the order of the answers. A watch counts when it starts.
    pub fn audit_events(&self) -> Result<Vec<AuditEvent>> {
        let process = self
            .process
            .as_ref()
            .context("somebody's cluster shows no audit log to tests")?;
        let file = process.folder().join("audit.log");
        let log =
            std::fs::read_to_string(&file).context(format!("could not read {}", file.display()))?;
        // The last line may be half written.
        Ok(log
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .filter(counts_once)
            .map(|event| AuditEvent::from_json(&event))
            .collect())
    }

    /// How many requests a `ServiceAccount` made; the filter narrows it down.
    pub fn count_requests(
        &self,
        namespace: &str,
        service_account: &str,
        filter: impl Fn(&AuditEvent) -> bool,
    ) -> Result<usize> {
        let user = format!("system:serviceaccount:{namespace}:{service_account}");
        let events = self.audit_events()?;
        Ok(events
            .iter()
            .filter(|event| event.user == user && filter(event))
            .count())
    }
}

impl AuditEvent {
    fn from_json(event: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let object = &event["objectRef"];
        Self {
            user: text(&event["user"]["username"]),
            user_agent: text(&event["userAgent"]),
            verb: text(&event["verb"]),
            resource: text(&object["resource"]),
            subresource: text(&object["subresource"]),
            namespace: text(&object["namespace"]),
            name: text(&object["name"]),
            status: event["responseStatus"]["code"]
                .as_u64()
                .and_then(|code| u16::try_from(code).ok())
                .unwrap_or_default(),
        }
    }
}

/// A watch is logged at its start and at its end, other requests at their end only.
fn counts_once(event: &Value) -> bool {
    (event["verb"] == "watch") == (event["stage"] == "ResponseStarted")
}

/// A client for whoever a kubeconfig is for.
pub async fn client(kubeconfig: &Path) -> Result<kube::Client> {
    super::install_crypto_provider();
    let about = || format!("could not use {}", kubeconfig.display());
    let content = Kubeconfig::read_from(kubeconfig).context(about())?;
    let config = kube::Config::from_custom_kubeconfig(content, &KubeConfigOptions::default())
        .await
        .context(about())?;
    kube::Client::try_from(config).context(about())
}

/// Where the user wants tests to run, if anywhere.
fn existing_cluster() -> Option<OsString> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    set("KUBECONFIG").filter(|_| set("KUBEBUILDER_ASSETS").is_none())
}

/// The folder with the programs. Building them takes minutes: its progress goes to the terminal.
pub(super) fn programs(wanted: &[&str]) -> Result<PathBuf> {
    let mut command = Command::new(hack("controlplane.sh"));
    command.args(wanted);
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context(format!("could not start {command:?}"))?;
    if output.status.success() {
        Ok(text(&output.stdout).trim_end().into())
    } else {
        Err(Failure::new(format!(
            "{command:?} ended with {}; it says why above",
            output.status
        )))
    }
}

fn run_with_input(command: &mut Command, input: &str) -> Result<String> {
    let mut file = tempfile::tempfile().context("could not make a temporary file")?;
    file.write_all(input.as_bytes())
        .context("could not write a temporary file")?;
    std::io::Seek::rewind(&mut file).context("could not rewind a temporary file")?;
    let output = command
        .stdin(file)
        .output()
        .context(format!("could not start {command:?}"))?;
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    let complaint = text(&output.stderr);
    Err(Failure::new(format!(
        "{command:?} ended with {}:\n{}\nwith this on its stdin:\n{input}",
        output.status,
        complaint.trim_end()
    )))
}

/// Only its owner may read it: there is a token in it.
fn write_private(content: &str) -> Result<TempPath> {
    let mut file = tempfile::Builder::new()
        .prefix("image-pusher-")
        .suffix(".kubeconfig")
        .tempfile()
        .context("could not make a kubeconfig")?;
    file.write_all(content.as_bytes())
        .context("could not write a kubeconfig")?;
    Ok(file.into_temp_path())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
