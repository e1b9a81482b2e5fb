//! The operator stops in time, and starts again where it was; it says so when it cannot start.

use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::json;

use crate::bed::{ACCOUNT, Bed, PATIENCE, condition, destination, source};
use crate::support::binary::Sandbox;
use crate::support::control_plane::{ControlPlane, Controllers};
use crate::support::faults::{Action, Rule};
use crate::support::gateway::Gateway;
use crate::support::images::Image;
use crate::support::process::poll;
use crate::support::registry::Registry;
use crate::support::{Result, skopeo};

/// Operator rule K19.
#[tokio::test]
async fn a_signal_during_a_copy_ends_it_in_time_and_the_next_start_finishes_it() -> Result<()> {
    let (from, to) = (Registry::open()?, Registry::open()?);
    Image::builder()
        .layers(1, 2_000_000)
        .build()?
        .push(from.access(), "app:1")?;
    let gateway = Gateway::before(&from)
        .rule(Rule::on(
            &Method::GET,
            "/blobs/",
            Action::SlowAnswer(10_000),
        ))
        .start()?;
    let bed = Bed::new("stop").await?;
    let operator = bed.operator()?;
    bed.mirror(
        "app",
        &json!({
            "source": source(&gateway.access(None), "app", &["1"]),
            "destinations": [destination("default", to.access())],
        }),
    )?;
    bed.wait_until("app", PATIENCE, |object| {
        object["status"]["progress"]["bytesDone"].as_i64() > Some(0)
    })?;
    let started = Instant::now();
    operator.signal("TERM")?;
    assert_eq!(
        operator.wait_for_exit(Duration::from_secs(30))?,
        0,
        "{}",
        operator.log()
    );
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "{:?}",
        started.elapsed()
    );

    gateway.clear_rules();
    let _again = bed.operator()?;
    bed.wait_ready("app", "True", "Succeeded")?;
    assert_eq!(
        skopeo::digest(to.access(), "mirror/app:1")?,
        skopeo::digest(from.access(), "app:1")?
    );
    Ok(())
}

/// Operator rule K19 for a layer that takes its time: what came is on the disk before the process is gone.
#[tokio::test]
async fn a_signal_in_the_middle_of_a_large_layer_costs_next_to_nothing_of_it() -> Result<()> {
    let (from, to) = (Registry::open()?, Registry::open()?);
    let image = Image::builder()
        .layers(1, 200_000_000)
        .gzip_level(0)
        .build()?;
    image.push(from.access(), "app:1")?;
    let slow = Rule::on(&Method::GET, "/blobs/", Action::SlowAnswer(2_000_000));
    let gateway = Gateway::before(&from).rule(slow).start()?;
    let fetched = || gateway.answer_bytes(|exchange| exchange.path.contains("/blobs/"));
    let whole = image.manifests[0].layers[0].blob.size;
    let bed = Bed::new("large").await?;
    let operator = bed.operator()?;
    bed.mirror(
        "app",
        &json!({
            "source": source(&gateway.access(None), "app", &["1"]),
            "destinations": [destination("default", to.access())],
        }),
    )?;
    poll(PATIENCE, || (fetched() > whole / 2).then_some(())).expect("half of it comes");
    let started = Instant::now();
    operator.signal("TERM")?;
    let code = operator.wait_for_exit(Duration::from_secs(30))?;
    assert_eq!(code, 0, "{}", operator.log());
    let took = started.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert!(fetched() < whole, "it was faster than the signal");

    gateway.clear_rules();
    let _again = bed.operator()?;
    bed.wait_ready("app", "True", "Succeeded")?;
    let twice = fetched().saturating_sub(whole);
    assert!(twice <= whole / 20, "{twice} bytes were fetched twice");
    assert_eq!(skopeo::digest(to.access(), "mirror/app:1")?, image.digest);
    Ok(())
}

/// Operator rules S3 and G2: what was copied is known although this operator did not copy it.
#[tokio::test]
async fn an_edit_of_the_interval_after_a_restart_keeps_the_verdict_and_asks_nobody() -> Result<()> {
    let (from, to) = (Registry::open()?, Registry::open()?);
    Image::builder().build()?.push(from.access(), "app:1")?;
    let bed = Bed::new("recall").await?;
    let operator = bed.operator()?;
    let mut spec = json!({
        "source": source(from.access(), "app", &["1"]),
        "destinations": [destination("default", to.access())],
        "interval": "1h",
    });
    bed.mirror("app", &spec)?;
    let before = bed.wait_ready("app", "True", "Succeeded")?;
    operator.signal("TERM")?;
    assert_eq!(operator.wait_for_exit(Duration::from_secs(20))?, 0);
    let asked = from.requests().len();
    let _again = bed.operator()?;
    // Its first look at the mirror.
    tokio::time::sleep(Duration::from_secs(2)).await;
    spec["interval"] = json!("2h");
    bed.mirror("app", &spec)?;
    let after = bed.wait_until("app", PATIENCE, |object| {
        object["status"]["observedGeneration"] == 2
    })?;
    let ready = condition(&after, "Ready");
    assert_eq!(
        (&ready["status"], &ready["observedGeneration"]),
        (&json!("True"), &json!(2))
    );
    for field in ["summary", "synced", "images", "lastSyncTime"] {
        assert_eq!(after["status"][field], before["status"][field], "{field}");
    }
    assert!(after["status"]["nextSyncTime"].as_str() > before["status"]["nextSyncTime"].as_str());
    assert_eq!(from.requests().len(), asked);
    Ok(())
}

/// Operator rule K25.
#[tokio::test]
async fn without_the_crd_it_ends_with_the_command_that_installs_it() -> Result<()> {
    let cluster = tokio::task::spawn_blocking(|| ControlPlane::start(Controllers::Without))
        .await
        .unwrap()?;
    let sandbox = Sandbox::new()?.variable("KUBECONFIG", cluster.kubeconfig().to_str().unwrap());
    let finished = sandbox
        .run(&["controller", "--metrics-addr", "127.0.0.1:0"])?
        .expect_code(1)?;
    assert!(
        finished
            .stderr
            .contains("docker-image-pusher crd | kubectl apply --server-side -f -"),
        "{}",
        finished.stderr
    );
    // With the CRD but without the role it names the role.
    cluster.install_crds(
        std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("crds")
            .as_path(),
    )?;
    cluster.run_kubectl(&["create", "namespace", ACCOUNT.0])?;
    let kubeconfig = cluster.kubeconfig_for_service_account(ACCOUNT.0, ACCOUNT.1)?;
    let sandbox = Sandbox::new()?.variable("KUBECONFIG", kubeconfig.to_str().unwrap());
    let finished = sandbox
        .run(&["controller", "--metrics-addr", "127.0.0.1:0"])?
        .expect_code(1)?;
    assert!(
        finished
            .stderr
            .contains("apply the ClusterRole in deploy/kustomize/base"),
        "{}",
        finished.stderr
    );
    Ok(())
}
