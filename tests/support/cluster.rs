//! A real Kubernetes cluster of one node, in which the operator runs as a pod under its shipped manifests.
//!
//! `hack/cluster-run.sh` runs it in namespaces of its own, so it needs root. Its pods reach this machine at one address
//! and nothing else: [`Cluster::registry`] and [`Cluster::gateway`] make what listens there.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::binary::program;
use super::control_plane::{ControlPlane, programs};
use super::gateway::{Gateway, GatewayBuilder};
use super::process::{Guarded, hack, poll, run, temporary_folder};
use super::registry::{Registry, RegistryBuilder};
use super::skopeo::sha256;
use super::web::{Server, answer};
use super::{Context, Failure, Result};

/// The script has its own limit and says more about what went wrong, so this one is longer.
const START_LIMIT: Duration = Duration::from_mins(4);
/// Long enough for a pod that replaces another on a machine that compiles meanwhile.
const PATIENCE: Duration = Duration::from_mins(2);

/// Where the operator lives, and under which name.
pub const OPERATOR: (&str, &str) = ("imagepusher-system", "imagepusher");

/// The cluster that all tests of a binary share. It ends with the process, see [`super::process`].
static SHARED: OnceCell<Result<Cluster>> = OnceCell::const_new();

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    process: Guarded,
    kubernetes: ControlPlane,
    host_address: Ipv4Addr,
}

impl Cluster {
    /// A cluster with the operator in it, started once per test binary.
    pub async fn shared() -> Result<&'static Self> {
        // A failed start is kept too: the next test would only wait as long for the same.
        let started = SHARED
            .get_or_init(|| async {
                tokio::task::spawn_blocking(|| {
                    let cluster = Self::start()?;
                    cluster.install_operator()?;
                    Ok(cluster)
                })
                .await
                .context("could not wait for the cluster")
                .flatten()
            })
            .await;
        started.as_ref().map_err(Failure::clone)
    }

    /// One of its own, with nothing in it.
    pub fn start() -> Result<Self> {
        let programs = programs(&[
            "etcd",
            "kube-apiserver",
            "kubectl",
            "kube-controller-manager",
            "kube-scheduler",
            "kubelet",
            "kube-proxy",
        ])?;
        let folder = temporary_folder("cluster")?;
        let path = folder.path().to_owned();
        let script = hack("cluster-run.sh");
        let process = Guarded::spawn("cluster", folder, script, |command| {
            command.arg(&path).arg(&programs);
        })?;
        process.wait_for("ready", START_LIMIT, || {
            path.join("ready").exists().then_some(())
        })?;
        let host_address = std::fs::read_to_string(path.join("host-address"))
            .context("the cluster left no host-address")?
            .trim()
            .parse()
            .context("the cluster's host-address is none")?;
        Ok(Self {
            process,
            kubernetes: ControlPlane::of_cluster(
                programs.join("kubectl"),
                path.join("admin.kubeconfig"),
            ),
            host_address,
        })
    }

    /// `kubectl`, clients, namespaces: all that needs no node.
    pub fn kubernetes(&self) -> &ControlPlane {
        &self.kubernetes
    }

    /// The script that runs the cluster. The programs' logs lie in its folder.
    pub fn process(&self) -> &Guarded {
        &self.process
    }

    /// Where pods reach this machine.
    pub fn host_address(&self) -> Ipv4Addr {
        self.host_address
    }

    /// A registry that pods reach, in the flavours of [`RegistryBuilder`].
    pub fn registry(&self) -> RegistryBuilder {
        Registry::builder().at(self.host_address)
    }

    /// A gateway that pods reach, before a registry wherever it listens.
    pub fn gateway(&self, registry: &Registry) -> GatewayBuilder {
        Gateway::before(registry).at(self.host_address)
    }

    /// Server-side apply of one or more YAML documents.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        self.kubernetes.apply(yaml)
    }

    /// Makes the images of an archive known to the node, as `docker load` would.
    pub fn load_image(&self, archive: &Path) -> Result<()> {
        let mut command = Command::new("ctr");
        command
            .arg("--address")
            .arg(self.process.folder().join("containerd.sock"))
            .args(["--namespace", "k8s.io", "images", "import"])
            .arg(archive);
        run(&mut command).map(drop)
    }

    /// What a user does: the image of the binary that cargo built for this test, and the shipped manifests as they are.
    pub fn install_operator(&self) -> Result<()> {
        let folder = temporary_folder("image")?;
        let archive = folder.path().join("image.tar");
        make_image(&archive)?;
        self.load_image(&archive)?;
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        self.kubernetes.install_crds(&root.join("crds"))?;
        self.kubernetes
            .apply_path(&root.join("deploy/kustomize/base"))?;
        self.wait_for_operator()
    }

    /// Waits until the operator's pod is ready.
    pub fn wait_for_operator(&self) -> Result<()> {
        let (namespace, name) = OPERATOR;
        let deployment = format!("deployment/{name}");
        let waited = self.kubectl(
            namespace,
            &["rollout", "status", &deployment, "--timeout=120s"],
        );
        waited.map(drop).map_err(|failure| {
            let pods = self.kubectl(namespace, &["describe", "pods"]);
            let log = self.operator_log();
            Failure::new(format!(
                "{failure}\n{}\n{}",
                pods.unwrap_or_default(),
                log.unwrap_or_default()
            ))
        })
    }

    /// The operator's only pod that is not on its way out.
    pub fn operator_pod(&self) -> Result<Value> {
        let (namespace, name) = OPERATOR;
        let selector = format!("app.kubernetes.io/name={name}");
        let list = self.json(namespace, &["get", "pods", "-l", &selector])?;
        list["items"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .cloned()
            .context("the operator has no pod")
    }

    /// What the operator's pod wrote so far.
    pub fn operator_log(&self) -> Result<String> {
        let (namespace, name) = OPERATOR;
        self.kubectl(namespace, &["logs", &format!("deployment/{name}")])
    }

    /// `kubectl` in a namespace, as admin.
    pub fn kubectl(&self, namespace: &str, arguments: &[&str]) -> Result<String> {
        let mut all = vec!["-n", namespace];
        all.extend(arguments);
        self.kubernetes.run_kubectl(&all)
    }

    /// What `kubectl` prints with `-o json`.
    pub fn json(&self, namespace: &str, arguments: &[&str]) -> Result<Value> {
        let mut all = arguments.to_vec();
        all.extend(["-o", "json"]);
        let text = self.kubectl(namespace, &all)?;
        serde_json::from_str(&text).context("kubectl wrote no JSON")
    }

    /// A mirror with this spec.
    pub fn mirror(&self, namespace: &str, name: &str, spec: &Value) -> Result<()> {
        let object = json!({
            "apiVersion": "imagepusher.io/v1alpha1", "kind": "ImageMirror", "spec": spec,
            "metadata": {"name": name, "namespace": namespace},
        });
        self.apply(&object.to_string()).map(drop)
    }

    /// Waits until the mirror is as `wanted` says, and returns it.
    pub fn wait_until(
        &self,
        namespace: &str,
        name: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let mut last = Value::Null;
        let found = poll(PATIENCE, || {
            last = self
                .json(namespace, &["get", "imir", name])
                .unwrap_or_default();
            wanted(&last).then(|| last.clone())
        });
        found.ok_or_else(|| {
            let log = self.operator_log().unwrap_or_default();
            Failure::new(format!(
                "{name} never came to be what was waited for; it is {last:#}\nthe operator says:\n{log}"
            ))
        })
    }

    /// Waits until the mirror is Ready, as far as its newest spec goes.
    pub fn wait_ready(&self, namespace: &str, name: &str) -> Result<Value> {
        self.wait_until(namespace, name, |object| {
            object["status"]["ready"] == "True"
                && object["status"]["observedGeneration"] == object["metadata"]["generation"]
        })
    }

    /// Puts a file on the volume of archives, as `path` for the mirrors of a namespace, with the Job of `examples/`.
    pub fn put_archive(&self, namespace: &str, path: &str, content: &[u8]) -> Result<()> {
        self.put_archive_as(namespace, path, content, &sha256(content))
    }

    /// The same with a digest that may be wrong.
    pub fn put_archive_as(
        &self,
        namespace: &str,
        path: &str,
        content: &[u8],
        digest: &str,
    ) -> Result<()> {
        self.load_busybox()?;
        let archive = content.to_vec();
        let server = Server::start_at(self.host_address, move |_| {
            let body = archive.clone();
            async move { answer(200, &[], body) }
        })?;
        let job = self.archive_job(&[
            ("NAMESPACE", namespace),
            ("FILE", path),
            ("URL", &format!("http://{}/", server.address())),
            ("SHA256", digest.trim_start_matches("sha256:")),
        ])?;
        self.run_job(&job)
    }

    /// The shipped example under a name of its own, with these variables.
    pub fn archive_job(&self, variables: &[(&str, &str)]) -> Result<Value> {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/archive-upload-job.yaml");
        let mut command = self.kubernetes.kubectl();
        command
            .args(["create", "--dry-run=client", "-o", "json", "-f"])
            .arg(file);
        let mut job: Value =
            serde_json::from_slice(&run(&mut command)?).context("kubectl wrote no JSON")?;
        job["metadata"]["name"] = format!("archive-upload-{:08x}", fastrand::u32(..)).into();
        // What fails here fails again, later and later each time.
        job["spec"]["backoffLimit"] = 0.into();
        let env = &mut job["spec"]["template"]["spec"]["containers"][0]["env"];
        for variable in env.as_array_mut().into_iter().flatten() {
            let given = variables.iter().find(|(name, _)| variable["name"] == *name);
            let (_, value) = given.context(format!("the example has also {variable}"))?;
            variable["value"] = (*value).into();
        }
        Ok(job)
    }

    /// Runs a Job to its end; the failure of one that fails shows what it wrote.
    pub fn run_job(&self, job: &Value) -> Result<()> {
        self.apply(&job.to_string())?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let metadata = &job["metadata"];
        let (namespace, name) = (text(&metadata["namespace"]), text(&metadata["name"]));
        let ended = poll(PATIENCE, || {
            let job = self.json(&namespace, &["get", "job", &name]).ok()?;
            ["succeeded", "failed"]
                .into_iter()
                .find(|end| job["status"][end].as_u64() > Some(0))
        });
        if ended == Some("succeeded") {
            return Ok(());
        }
        let selector = format!("job-name={name}");
        let log = self.kubectl(&namespace, &["logs", "-l", &selector, "--tail=50"]);
        let pods = self.kubectl(&namespace, &["describe", "pods", "-l", &selector]);
        Err(Failure::new(format!(
            "the Job {name} {}; it wrote:\n{}\n{}",
            ended.unwrap_or("does not end"),
            log.unwrap_or_default(),
            pods.unwrap_or_default()
        )))
    }

    /// The image that the example names, of Debian's static busybox: there is nothing to pull it from.
    fn load_busybox(&self) -> Result<()> {
        let folder = temporary_folder("busybox")?;
        let (root, archive) = (folder.path().join("root"), folder.path().join("image.tar"));
        install_busybox(&root.join("bin"))?;
        let mut pack = Command::new(hack("pack-image.sh"));
        pack.arg(&root)
            .args(["busybox:1.37", r#"{"Env":["PATH=/bin"]}"#])
            .arg(&archive);
        run(&mut pack)?;
        self.load_image(&archive)
    }

    /// Processes of this machine that are the operator's, by their ids: the node's are ours too, seen from outside.
    pub fn operator_process_ids(&self) -> Result<Vec<u32>> {
        let pod = self.operator_pod()?;
        let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
        let processes = std::fs::read_dir("/proc").context("could not read /proc")?;
        Ok(processes
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| is_operator(*pid, uid))
            .collect())
    }

    /// Where what lies on a claim's volume is to be seen on this machine.
    pub fn volume_folder(&self, namespace: &str, claim: &str) -> Result<PathBuf> {
        let claim = self.json(namespace, &["get", "pvc", claim])?;
        let volume = claim["spec"]["volumeName"].as_str().unwrap_or_default();
        let volume = self.json(namespace, &["get", "pv", volume])?;
        volume["spec"]["hostPath"]["path"]
            .as_str()
            .map(PathBuf::from)
            .context("the claim has no volume of this cluster")
    }
}

/// Packs the binary that cargo built for this test as `make image` packs a release.
pub fn make_image(archive: &Path) -> Result<()> {
    let mut command = Command::new(hack("image.sh"));
    run(command.arg(archive).arg(program())).map(drop)
}

/// The program under each of its names.
fn install_busybox(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).context("could not make a folder")?;
    let names = run(Command::new("busybox").arg("--list"))?;
    let names = String::from_utf8_lossy(&names);
    let program = run(Command::new("sh").args(["-c", "command -v busybox"]))?;
    let program = String::from_utf8_lossy(&program);
    std::fs::copy(program.trim(), folder.join("busybox")).context("could not copy busybox")?;
    for name in names.lines().filter(|name| *name != "busybox") {
        std::os::unix::fs::symlink("busybox", folder.join(name))
            .context(format!("could not link {name}"))?;
    }
    Ok(())
}

fn is_operator(pid: u32, pod_uid: &str) -> bool {
    let read = |file| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    read("cgroup").contains(pod_uid) && read("cmdline").contains("docker-image-pusher")
}
