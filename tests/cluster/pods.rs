//! The operator as a pod, under its shipped manifests, in a real cluster.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::json;

use crate::examples::Scene;
use crate::support::cluster::{Cluster, OPERATOR};
use crate::support::faults::{Action, Rule};
use crate::support::images::Image;
use crate::support::process::{poll, run, temporary_folder};
use crate::support::registry::{Access, Registry};
use crate::support::{Context, Result, skopeo};

/// What the kernel says of the operator's process: its `status`, and its mounts as `point` and options.
struct Process {
    status: String,
    mounts: Vec<(String, String)>,
}

impl Process {
    /// Empty where the process is gone meanwhile.
    fn read(pid: u32) -> Option<Self> {
        let read = |file| std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
        let mounts = read("mountinfo")?
            .lines()
            .filter_map(|line| {
                let mut fields = line.split(' ').skip(4);
                Some((fields.next()?.to_owned(), fields.next()?.to_owned()))
            })
            .collect();
        Some(Self {
            status: read("status")?,
            mounts,
        })
    }

    fn field(&self, name: &str) -> Vec<&str> {
        let line = self
            .status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().split_whitespace().collect()
    }

    fn is_writable(&self, point: &str) -> Result<bool> {
        let found = self.mounts.iter().find(|(mounted, _)| mounted == point);
        let (_, options) = found.context(format!("nothing is mounted at {point}"))?;
        Ok(options.split(',').any(|option| option == "rw"))
    }
}

fn source(access: &Access, repository: &str) -> serde_json::Value {
    json!({"registry": {
        "repository": format!("{}/{repository}", access.address), "tags": ["1"], "insecure": true,
    }})
}

fn destination(access: &Access) -> serde_json::Value {
    json!({"insecure": true, "repository": format!("{}/mirror/{{repository}}", access.address)})
}

/// Operator rules P1 and P4, as the kernel sees them and not as the manifest promises.
#[tokio::test]
async fn the_operators_process_has_no_right_that_it_does_not_need() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let process = poll(Duration::from_mins(1), || {
        let ids = cluster.operator_process_ids().ok()?;
        ids.into_iter().find_map(Process::read)
    })
    .context("the operator has no process")?;
    for field in ["Uid", "Gid"] {
        assert_eq!(process.field(field), ["65534"; 4], "{field}");
    }
    for field in ["CapEff", "CapPrm", "CapBnd", "CapAmb"] {
        assert_eq!(process.field(field), ["0000000000000000"], "{field}");
    }
    assert_eq!(process.field("NoNewPrivs"), ["1"]);
    assert_eq!(process.field("Seccomp"), ["2"], "no filter of system calls");
    assert!(!process.is_writable("/")?);
    assert!(!process.is_writable("/var/lib/imagepusher/archives")?);
    assert!(process.is_writable("/var/cache/imagepusher")?);
    Ok(())
}

#[tokio::test]
async fn a_mirror_becomes_ready_and_its_blobs_are_on_the_claimed_volume() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let from = cluster.registry().start()?;
    let to = cluster.registry().htpasswd("robot", "canary").start()?;
    let image = Image::builder()
        .layers(3, 200_000)
        .platforms(&["linux/amd64", "linux/arm64"])
        .build()?;
    image.push(from.access(), "team/app:1")?;
    let namespace = cluster.kubernetes().namespace("mirror")?;
    cluster.apply(
        &json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/basic-auth",
            "metadata": {"name": "login", "namespace": namespace},
            "stringData": {"username": "robot", "password": "canary"},
        })
        .to_string(),
    )?;
    let mut to_registry = destination(to.access());
    to_registry["secretRef"] = json!({"name": "login"});
    cluster.mirror(
        &namespace,
        "app",
        &json!({"source": source(from.access(), "team/app"), "destinations": [to_registry]}),
    )?;
    cluster.wait_ready(&namespace, "app")?;
    assert_eq!(
        skopeo::digest(to.access(), "mirror/team/app:1")?,
        image.digest
    );
    let cache = cluster
        .volume_folder(OPERATOR.0, "imagepusher-cache")?
        .join(&namespace);
    for blob in image.blobs() {
        let file = cache.join("blobs").join(blob.digest.replace(':', "/"));
        assert!(file.exists(), "{} is missing", file.display());
    }
    Ok(())
}

/// Operator rules K19 and L4: the pod is gone in time, and the next one takes its volume and its work over.
#[tokio::test]
async fn a_pod_deleted_during_a_copy_is_followed_by_one_that_finishes_it() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let from = Registry::open()?;
    let to = cluster.registry().start()?;
    Image::builder()
        .layers(1, 2_000_000)
        .build()?
        .push(from.access(), "app:1")?;
    let slow = Rule::on(&Method::GET, "/blobs/", Action::SlowAnswer(10_000));
    let gateway = cluster.gateway(&from).rule(slow).start()?;
    let namespace = cluster.kubernetes().namespace("deleted-pod")?;
    cluster.mirror(
        &namespace,
        "app",
        &json!({
            "source": source(&gateway.access(None), "app"),
            "destinations": [destination(to.access())],
        }),
    )?;
    cluster.wait_until(&namespace, "app", |object| {
        object["status"]["progress"]["bytesDone"].as_i64() > Some(0)
    })?;

    // What is under way stays slow; only the next pod finds a quick registry.
    gateway.clear_rules();
    let before = cluster.operator_pod()?;
    let started = Instant::now();
    let name = before["metadata"]["name"].as_str().unwrap();
    cluster.kubectl(OPERATOR.0, &["delete", "pod", name, "--wait"])?;
    assert!(
        started.elapsed() < Duration::from_secs(25),
        "the pod took {:?} to go",
        started.elapsed()
    );

    cluster.wait_ready(&namespace, "app")?;
    let after = cluster.operator_pod()?;
    assert_ne!(before["metadata"]["uid"], after["metadata"]["uid"]);
    assert_eq!(
        skopeo::digest(to.access(), "mirror/app:1")?,
        skopeo::digest(from.access(), "app:1")?
    );
    Ok(())
}

/// Nobody tells a process that is killed: what it noted on the way is all that the next one has.
#[tokio::test]
async fn a_process_killed_in_the_middle_of_a_layer_is_followed_by_one_that_goes_on_with_it()
-> Result<()> {
    let cluster = Cluster::shared().await?;
    let from = Registry::open()?;
    let to = cluster.registry().start()?;
    let image = Image::builder()
        .layers(1, 200_000_000)
        .gzip_level(0)
        .build()?;
    image.push(from.access(), "large:1")?;
    let slow = Rule::on(&Method::GET, "/blobs/", Action::SlowAnswer(2_000_000));
    let gateway = cluster.gateway(&from).rule(slow).start()?;
    let fetched = || gateway.answer_bytes(|exchange| exchange.path.contains("/blobs/"));
    let whole = image.manifests[0].layers[0].blob.size;
    let namespace = cluster.kubernetes().namespace("killed-pod")?;
    cluster.mirror(
        &namespace,
        "large",
        &json!({
            "source": source(&gateway.access(None), "large"),
            "destinations": [destination(to.access())],
        }),
    )?;
    let half = poll(Duration::from_mins(2), || {
        (fetched() > whole / 2).then_some(())
    });
    half.context("half of it never came")?;
    for process in cluster.operator_process_ids()? {
        run(Command::new("kill").args(["-KILL", &process.to_string()]))?;
    }
    assert!(fetched() < whole, "it was faster than the signal");
    gateway.clear_rules();

    cluster.wait_ready(&namespace, "large")?;
    let twice = fetched().saturating_sub(whole);
    assert!(twice <= whole / 20, "{twice} bytes were fetched twice");
    assert_eq!(skopeo::digest(to.access(), "mirror/large:1")?, image.digest);
    Ok(())
}

#[tokio::test]
async fn the_job_of_the_examples_puts_whole_archives_where_the_operator_reads_them() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let namespace = cluster.kubernetes().namespace("archive")?;
    let content: Vec<u8> = (0..100_000).map(|_| fastrand::u8(..)).collect();
    cluster.put_archive(&namespace, "team/app.tar", &content)?;
    let failure = cluster
        .put_archive_as(
            &namespace,
            "team/torn.tar",
            &content[1..],
            &skopeo::sha256(&content),
        )
        .unwrap_err()
        .to_string();
    assert!(failure.contains("torn.tar.part: FAILED"), "{failure}");

    let folder = cluster
        .volume_folder(OPERATOR.0, "imagepusher-archives")?
        .join(&namespace)
        .join("team");
    let names: Vec<_> = std::fs::read_dir(&folder)
        .context("the Job left no folder")?
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert_eq!(names, ["app.tar"]);
    let read = std::fs::read(folder.join("app.tar")).context("could not read the archive")?;
    assert!(read == content, "other bytes arrived");
    Ok(())
}

/// The four modes of the engine, as four resources.
#[tokio::test]
async fn the_pod_carries_out_the_examples() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let namespace = cluster.kubernetes().namespace("examples")?;
    let scene = Scene::set(&cluster.registry())?;
    let folder = temporary_folder("archive")?;
    let file = folder.path().join("app.tar");
    scene.archive(&file)?;
    let archive = std::fs::read(&file).context("no archive")?;
    cluster.put_archive(&namespace, "app.tar", &archive)?;
    let apply = |name: &str| cluster.apply(&scene.example(name, &namespace)?);
    apply("archive-into-cache.yaml")?;
    apply("archive-to-registry.yaml")?;
    apply("pull-into-cache.yaml")?;
    cluster.wait_ready(&namespace, "nginx-cached")?;
    apply("cache-to-registry.yaml")?;
    cluster.wait_ready(&namespace, "nginx-from-cache")?;
    scene.assert_pushed_from_cache()?;

    let extracted = cluster.wait_ready(&namespace, "app-extracted")?;
    cluster.wait_ready(&namespace, "app-from-archive")?;
    let digest = scene.assert_pushed_from_archive()?;
    assert_eq!(extracted["status"]["images"][0]["digest"], digest);

    apply("registry-to-registry.yaml")?;
    cluster.wait_ready(&namespace, "nginx")?;
    scene.assert_both_have_all()
}

/// Processes whose command line names this folder: all parts of a cluster have it among their arguments. So has the guard,
/// which stays to remove the folder.
fn processes_of(folder: &Path) -> Vec<u32> {
    let folder = folder.display().to_string();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            line.contains(&folder) && !line.contains("guard.sh")
        })
        .collect()
}

/// The interface of this machine that has the address at which pods reach it.
fn interface_of(cluster: &Cluster) -> Option<String> {
    let output = std::process::Command::new("ip")
        .args(["-4", "-o", "address", "show"])
        .output()
        .ok()?;
    let address = format!(" {}/30 ", cluster.host_address());
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .find(|line| line.contains(&address))
        .and_then(|line| line.split_whitespace().nth(1)?.split('@').next())
        .map(str::to_owned)
}

#[tokio::test]
async fn two_clusters_do_not_meet_and_one_that_is_killed_leaves_nothing_running() -> Result<()> {
    let first = Cluster::shared().await?;
    let second = tokio::task::spawn_blocking(Cluster::start).await.unwrap()?;
    second.kubernetes().run_kubectl(&["get", "nodes"])?;
    let folder = second.process().folder().to_owned();
    let interface = interface_of(&second).context("it has no interface")?;
    let processes = processes_of(&folder);
    // etcd, API server, controller manager, scheduler, containerd, kubelet, proxy and the scripts around them.
    assert!(processes.len() >= 8, "{processes:?}");

    // Nobody is left who would tidy up: the guard only ends what it started, and this is what it started.
    second.process().signal("KILL")?;
    let gone = poll(Duration::from_secs(10), || {
        (processes_of(&folder).is_empty() && interface_of(&second).is_none()).then_some(())
    });
    assert!(
        gone.is_some(),
        "{:?} still run, or {interface} is still there",
        processes_of(&folder)
    );
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("no mounts")?;
    assert!(!mounts.contains(&folder.display().to_string()), "{mounts}");
    // The cluster's cgroups bear the interface's name.
    let cgroups = poll(Duration::from_secs(5), || {
        let listed = std::process::Command::new("find")
            .args(["/sys/fs/cgroup", "-maxdepth", "2", "-name", &interface])
            .output()
            .ok()?;
        listed.stdout.is_empty().then_some(())
    });
    assert!(cgroups.is_some(), "the cgroups {interface} are left");

    first.kubernetes().run_kubectl(&["get", "nodes"])?;
    first.wait_for_operator()
}
