//! The control plane starts, keeps people to what they may do, tells what they did, and stops.

use std::path::Path;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use kube::api::{ListParams, PostParams};

use crate::support::control_plane::{ControlPlane, Controllers, client};
use crate::support::process::run;
use crate::support::{Context, Result};

/// Lets a `ServiceAccount` read the `ConfigMaps` of its own namespace.
fn reader_role(namespace: &str) -> String {
    format!(
        r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{name: reader, namespace: {namespace}}}
rules: [{{apiGroups: [""], resources: [configmaps], verbs: [get, list]}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: reader, namespace: {namespace}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}}
subjects: [{{kind: ServiceAccount, name: reader, namespace: {namespace}}}]
"#
    )
}

#[tokio::test]
async fn a_service_account_may_do_what_rbac_gives_it_and_the_audit_log_tells() -> Result<()> {
    let cluster = ControlPlane::shared().await?;
    let namespace = cluster.namespace("rbac")?;
    let kubeconfig = cluster.kubeconfig_for_service_account(&namespace, "reader")?;
    cluster.apply(&reader_role(&namespace))?;

    let reader = client(&kubeconfig).await?;
    let configmaps: Api<ConfigMap> = Api::namespaced(reader.clone(), &namespace);
    configmaps
        .list(&ListParams::default())
        .await
        .context("could not list ConfigMaps")?;
    let secrets: Api<Secret> = Api::namespaced(reader, &namespace);
    let refusal = secrets.list(&ListParams::default()).await.unwrap_err();
    assert!(
        matches!(&refusal, kube::Error::Api(status) if status.code == 403),
        "{refusal}"
    );
    assert!(
        run(cluster
            .kubectl_as(&kubeconfig)
            .args(["get", "secrets", "-n", &namespace]))
        .is_err()
    );

    let counted = |resource: &str, status| {
        cluster.count_requests(&namespace, "reader", |event| {
            event.verb == "list" && event.resource == resource && event.status == status
        })
    };
    assert_eq!(
        (counted("configmaps", 200)?, counted("secrets", 403)?),
        (1, 2)
    );
    Ok(())
}

#[tokio::test]
async fn the_admins_client_works_in_every_test() -> Result<()> {
    let cluster = ControlPlane::shared().await?;
    let namespace = cluster.namespace("client")?;
    let configmaps: Api<ConfigMap> = Api::namespaced(cluster.client().await?, &namespace);
    let mut made = ConfigMap::default();
    made.metadata.name = Some("made".to_owned());
    configmaps
        .create(&PostParams::default(), &made)
        .await
        .context("could not create")?;
    let shown = cluster.run_kubectl(&["get", "configmap", "-n", &namespace, "-o", "name"])?;
    assert_eq!(shown.trim(), "configmap/made");
    Ok(())
}

#[tokio::test]
async fn yaml_that_the_server_refuses_is_a_failure_that_shows_it() -> Result<()> {
    let cluster = ControlPlane::shared().await?;
    let yaml = "apiVersion: v1\nkind: NoSuchKind\nmetadata: {name: x}\n";
    let failure = cluster.apply(yaml).unwrap_err().to_string();
    assert!(
        failure.contains("NoSuchKind\" in version \"v1\""),
        "{failure}"
    );
    assert!(failure.ends_with(yaml), "{failure}");
    Ok(())
}

#[tokio::test]
async fn installed_crds_are_served() -> Result<()> {
    let cluster = ControlPlane::shared().await?;
    let crds = Path::new(env!("CARGO_MANIFEST_DIR")).join("crds");
    cluster.install_crds(&crds)?;
    let served =
        cluster.run_kubectl(&["api-resources", "--api-group=imagepusher.io", "-o=name"])?;
    assert_eq!(served.trim(), "imagemirrors.imagepusher.io");
    Ok(())
}

#[test]
fn a_control_plane_of_its_own_is_gone_when_it_is_dropped() -> Result<()> {
    let cluster = ControlPlane::start(Controllers::With)?;
    // Made by the controller manager in every namespace.
    let namespace = cluster.namespace("controllers")?;
    let wait = "--for=create";
    cluster.run_kubectl(&[
        "wait",
        wait,
        "serviceaccount/default",
        "-n",
        &namespace,
        "--timeout=60s",
    ])?;

    let Some(process) = cluster.process() else {
        return Ok(());
    };
    let folder = process.folder().to_owned();
    assert_eq!(programs_started_from(&folder).len(), 3);
    drop(cluster);
    assert!(!folder.exists());
    assert_eq!(programs_started_from(&folder), Vec::<String>::new());
    Ok(())
}

/// The running programs whose arguments name a folder, without the scripts that do.
fn programs_started_from(folder: &Path) -> Vec<String> {
    let folder = folder.to_string_lossy();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|process| std::fs::read_to_string(process.path().join("cmdline")).ok())
        .filter(|arguments| arguments.contains(&*folder) && !arguments.contains(".sh\0"))
        .map(|arguments| arguments.replace('\0', " "))
        .collect()
}
