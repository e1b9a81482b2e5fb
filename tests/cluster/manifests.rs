//! The shipped manifests, as the API server takes them.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::support::binary::Sandbox;
use crate::support::control_plane::{ControlPlane, Controllers};
use crate::support::images::Image;
use crate::support::process::run;
use crate::support::registry::Registry;
use crate::support::{Context, Failure, Result, skopeo};

/// The base is applied once: what is in a namespace can only be tried where the namespace is.
static INSTALLED: OnceCell<Result<()>> = OnceCell::const_new();

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn base() -> PathBuf {
    project().join("deploy/kustomize/base")
}

/// The control plane with the shipped manifests, and the namespace that overlays and examples are for.
pub(crate) async fn control_plane() -> Result<&'static ControlPlane> {
    let control_plane = ControlPlane::shared().await?;
    let installed = INSTALLED
        .get_or_init(|| async {
            control_plane.install_crds(&project().join("crds"))?;
            control_plane.apply_path(&base())?;
            // Which the overlay names, and which has to be there before.
            control_plane
                .run_kubectl(&["create", "namespace", "team-a"])
                .map(drop)
        })
        .await;
    installed.as_ref().map_err(Failure::clone)?;
    Ok(control_plane)
}

/// Builds a folder and has the API server check all of it, which returns each object as it would be.
fn dry_run(control_plane: &ControlPlane, folder: &Path) -> Result<Vec<Value>> {
    let mut command = control_plane.kubectl();
    command
        .args(["apply", "--server-side", "--force-conflicts"])
        .args(["--dry-run=server", "-o", "json", "-k"])
        .arg(folder);
    let list: Value =
        serde_json::from_slice(&run(&mut command)?).context("kubectl wrote no JSON")?;
    Ok(list["items"].as_array().unwrap().clone())
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> Result<&'a Value> {
    objects
        .iter()
        .find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
        .context(format!("there is no {kind} {name}"))
}

fn has_kind(objects: &[Value], kind: &str) -> bool {
    objects.iter().any(|object| object["kind"] == kind)
}

/// Operator rule D3.
#[tokio::test]
async fn every_overlay_builds_and_the_api_server_takes_it() -> Result<()> {
    let control_plane = control_plane().await?;
    let overlays = std::fs::read_dir(project().join("deploy/kustomize/overlays"))
        .context("there are no overlays")?;
    let mut folders: Vec<PathBuf> = overlays.flatten().map(|entry| entry.path()).collect();
    assert!(!folders.is_empty());
    folders.push(base());
    for folder in folders {
        let objects = dry_run(control_plane, &folder)?;
        for (kind, name) in [
            ("CustomResourceDefinition", "imagemirrors.imagepusher.io"),
            ("Namespace", "imagepusher-system"),
            ("ServiceAccount", "imagepusher"),
            ("Deployment", "imagepusher"),
            ("PersistentVolumeClaim", "imagepusher-cache"),
            ("PersistentVolumeClaim", "imagepusher-archives"),
        ] {
            find(&objects, kind, name)?;
        }
    }
    Ok(())
}

/// Operator rules R1 and R2.
#[tokio::test]
async fn the_role_is_what_the_operator_needs_and_nothing_else() -> Result<()> {
    let objects = dry_run(control_plane().await?, &base())?;
    let role = find(&objects, "ClusterRole", "imagepusher")?;
    assert_eq!(
        role["rules"],
        json!([
            {"apiGroups": ["imagepusher.io"], "resources": ["imagemirrors"], "verbs": ["list", "watch", "patch"]},
            {"apiGroups": ["imagepusher.io"], "resources": ["imagemirrors/status"], "verbs": ["patch"]},
            {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]},
            {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]},
            {"apiGroups": [""], "resources": ["serviceaccounts"], "verbs": ["get"]},
            {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "create", "patch", "delete"]},
        ])
    );
    let binding = find(&objects, "ClusterRoleBinding", "imagepusher")?;
    assert_eq!(
        binding["subjects"],
        json!([{"kind": "ServiceAccount", "name": "imagepusher", "namespace": "imagepusher-system"}])
    );
    assert!(!has_kind(&objects, "Role"));
    Ok(())
}

/// Operator rule R2: scoped RBAC goes with `--watch-namespace`.
#[tokio::test]
async fn the_overlay_of_one_namespace_gives_the_same_rights_there_and_none_elsewhere() -> Result<()>
{
    let control_plane = control_plane().await?;
    let everywhere = dry_run(control_plane, &base())?;
    let folder = project().join("deploy/kustomize/overlays/single-namespace");
    let objects = dry_run(control_plane, &folder)?;
    assert!(!has_kind(&objects, "ClusterRole") && !has_kind(&objects, "ClusterRoleBinding"));
    let role = find(&objects, "Role", "imagepusher")?;
    assert_eq!(
        role["rules"],
        find(&everywhere, "ClusterRole", "imagepusher")?["rules"]
    );
    let binding = find(&objects, "RoleBinding", "imagepusher")?;
    assert_eq!(binding["roleRef"]["kind"], "Role");
    for object in [role, binding] {
        assert_eq!(object["metadata"]["namespace"], "team-a");
    }
    assert_eq!(
        binding["subjects"][0]["namespace"], "imagepusher-system",
        "the operator itself stays where it is"
    );
    let deployment = find(&objects, "Deployment", "imagepusher")?;
    let containers = &deployment["spec"]["template"]["spec"]["containers"];
    let env = containers[0]["env"].as_array().unwrap();
    assert!(env.contains(&json!({"name": "IMAGE_PUSHER_WATCH_NAMESPACE", "value": "team-a"})));
    let everywhere = find(&everywhere, "Deployment", "imagepusher")?;
    let before = &everywhere["spec"]["template"]["spec"]["containers"][0]["env"];
    assert_eq!(env.len(), before.as_array().unwrap().len() + 1);
    Ok(())
}

/// Under nothing but the overlay, on a control plane of its own: the base's rights would hide what the overlay's lack.
#[tokio::test]
async fn the_operator_of_one_namespace_does_its_work_there_and_may_do_none_elsewhere() -> Result<()>
{
    let control_plane = tokio::task::spawn_blocking(|| ControlPlane::start(Controllers::Without))
        .await
        .unwrap()?;
    control_plane.install_crds(&project().join("crds"))?;
    control_plane.run_kubectl(&["create", "namespace", "team-a"])?;
    control_plane.apply_path(&project().join("deploy/kustomize/overlays/single-namespace"))?;
    let account = "--as=system:serviceaccount:imagepusher-system:imagepusher";
    let may = |namespace: &str| {
        let question = ["auth", "can-i", "get", "secrets", "-n", namespace, account];
        control_plane.run_kubectl(&question).is_ok()
    };
    assert!(may("team-a") && !may("default") && !may("imagepusher-system"));

    let (from, to) = (Registry::open()?, Registry::open()?);
    Image::builder().build()?.push(from.access(), "app:1")?;
    let kubeconfig =
        control_plane.kubeconfig_for_service_account("imagepusher-system", "imagepusher")?;
    let sandbox = Sandbox::new()?
        .variable("KUBECONFIG", kubeconfig.to_str().unwrap())
        .variable("IMAGE_PUSHER_WATCH_NAMESPACE", "team-a");
    let options = [
        "controller",
        "--metrics-addr",
        "127.0.0.1:0",
        "--allow-loopback",
    ];
    let _operator = sandbox.start_guarded(&options)?;
    control_plane.apply(
        &json!({
            "apiVersion": "imagepusher.io/v1alpha1", "kind": "ImageMirror",
            "metadata": {"name": "app", "namespace": "team-a"},
            "spec": {
                "source": {"registry": {
                    "repository": format!("{}/app", from.address()), "tags": ["1"], "insecure": true,
                }},
                "destinations": [{
                    "repository": format!("{}/app", to.address()), "insecure": true,
                }],
            },
        })
        .to_string(),
    )?;
    control_plane.run_kubectl(&[
        "wait",
        "imir/app",
        "--namespace=team-a",
        "--for=condition=Ready",
        "--timeout=60s",
    ])?;
    assert_eq!(
        skopeo::digest(to.access(), "app:1")?,
        skopeo::digest(from.access(), "app:1")?
    );
    Ok(())
}

/// Operator rules L4 and L5.
#[tokio::test]
async fn one_pod_at_a_time_holds_the_cache_and_has_the_time_to_stop() -> Result<()> {
    let objects = dry_run(control_plane().await?, &base())?;
    let spec = &find(&objects, "Deployment", "imagepusher")?["spec"];
    assert_eq!(spec["replicas"], 1);
    assert_eq!(spec["strategy"], json!({"type": "Recreate"}));
    let pod = &spec["template"]["spec"];
    assert!(pod["terminationGracePeriodSeconds"].as_u64() > Some(20));
    let container = &pod["containers"][0];
    for (probe, path) in [
        ("startupProbe", "/livez"),
        ("livenessProbe", "/livez"),
        ("readinessProbe", "/readyz"),
    ] {
        assert_eq!(container[probe]["httpGet"]["path"], path, "{probe}");
    }
    Ok(())
}

/// The pod that a template would become, in the namespace that enforces `restricted`.
fn pod_of(template: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "spec": template["spec"],
        "metadata": {"name": "tried", "namespace": "imagepusher-system"},
    })
}

fn try_pod(control_plane: &ControlPlane, pod: &Value) -> Result<String> {
    let folder = tempfile::tempdir().context("could not make a folder")?;
    let file = folder.path().join("pod.json");
    std::fs::write(&file, pod.to_string()).context("could not write a pod")?;
    let mut command = control_plane.kubectl();
    command.args(["create", "--dry-run=server", "-f"]).arg(file);
    run(&mut command).map(|output| String::from_utf8_lossy(&output).into_owned())
}

/// Operator rule P1.
#[tokio::test]
async fn pods_of_operator_and_examples_fit_a_namespace_that_enforces_restricted() -> Result<()> {
    let control_plane = control_plane().await?;
    let objects = dry_run(control_plane, &base())?;
    let mut job = control_plane.kubectl();
    job.args(["create", "--dry-run=client", "-o", "json", "-f"])
        .arg(project().join("examples/archive-upload-job.yaml"));
    let job: Value = serde_json::from_slice(&run(&mut job)?).context("kubectl wrote no JSON")?;
    // There is no controller manager that would make the account of pods that name none.
    control_plane.apply(
        r#"{"apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": "default", "namespace": "imagepusher-system"}}"#,
    )?;
    for object in [find(&objects, "Deployment", "imagepusher")?, &job] {
        let mut pod = pod_of(&object["spec"]["template"]);
        try_pod(control_plane, &pod)?;
        // The check checks.
        pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = json!(true);
        let refusal = try_pod(control_plane, &pod).unwrap_err().to_string();
        assert!(
            refusal.contains("violates PodSecurity \"restricted"),
            "{refusal}"
        );
    }
    Ok(())
}
