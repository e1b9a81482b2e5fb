//! What somebody asks of the operator besides a spec: to hold still, to run now, to stop.

use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};

use crate::bed::{Bed, PATIENCE, condition, destination, source};
use crate::edits::{PROMPT, slow};
use crate::support::faults::{Action, Rule};
use crate::support::gateway::{Exchange, Gateway};
use crate::support::images::Image;
use crate::support::process::poll;
use crate::support::registry::Registry;
use crate::support::{Result, skopeo};

/// Long enough for an operator that means to do something to have begun.
const A_WHILE: Duration = Duration::from_secs(3);

fn ready_message(object: &Value) -> String {
    let message = &condition(object, "Ready")["message"];
    message.as_str().unwrap_or_default().to_owned()
}

/// Operator rule G2.
#[tokio::test]
async fn a_mirror_suspended_during_a_copy_finishes_it_and_does_nothing_until_it_is_resumed()
-> Result<()> {
    let (from, to) = (Registry::open()?, Registry::open()?);
    let image = Image::builder().layers(1, 400_000).build()?;
    image.push(from.access(), "app:1")?;
    // Eight seconds: time to suspend it, and to see that it goes on.
    let gateway = Gateway::before(&from)
        .rule(Rule::on(
            &Method::GET,
            "/blobs/",
            Action::SlowAnswer(50_000),
        ))
        .start()?;
    let bed = Bed::new("suspend").await?;
    let _operator = bed.operator()?;
    let spec = |suspend: bool| {
        json!({
            "source": source(&gateway.access(None), "app", &["1"]),
            "destinations": [destination("default", to.access())],
            "interval": "1h", "suspend": suspend,
        })
    };
    bed.mirror("app", &spec(false))?;
    let copying = poll(PATIENCE, || {
        let exchanges = gateway.exchanges();
        let is_blob = |exchange: &Exchange| exchange.path.contains("/blobs/");
        exchanges.iter().any(is_blob).then_some(())
    });
    assert!(copying.is_some(), "{:?}", gateway.exchanges());
    bed.mirror("app", &spec(true))?;
    let mid = bed.wait_until("app", PROMPT, |object| {
        object["status"]["observedGeneration"] == 2
    })?;
    assert!(
        ready_message(&mid).starts_with("suspended: copying"),
        "{mid:#}"
    );

    let end = bed.wait_ready("app", "True", "Succeeded")?;
    assert_eq!(
        ready_message(&end),
        "suspended: 1 image is at 1 destination"
    );
    assert!(end["status"].get("nextSyncTime").is_none(), "{end:#}");
    assert_eq!(
        skopeo::digest(to.access(), "mirror/app:1")?,
        skopeo::digest(from.access(), "app:1")?
    );

    let asked = gateway.exchanges().len();
    bed.annotate("app", "imagepusher.io/requestedAt", "now")?;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(gateway.exchanges().len(), asked, "nothing new starts");
    let object = bed.object("app")?;
    assert!(
        object["status"].get("lastHandledReconcileAt").is_none(),
        "{object:#}"
    );

    bed.mirror("app", &spec(false))?;
    let object = bed.wait_until("app", PATIENCE, |object| {
        object["status"]["lastHandledReconcileAt"] == "now"
    })?;
    assert_eq!(ready_message(&object), "1 image is at 1 destination");
    assert!(object["status"]["nextSyncTime"].is_string() && gateway.exchanges().len() > asked);
    Ok(())
}

#[tokio::test]
async fn a_mirror_suspended_from_the_start_asks_nobody_and_runs_when_it_is_resumed() -> Result<()> {
    let (from, to) = (Registry::open()?, Registry::open()?);
    Image::builder().build()?.push(from.access(), "app:1")?;
    let bed = Bed::new("held").await?;
    let operator = bed.operator()?;
    let mut spec = json!({
        "source": source(from.access(), "app", &["1"]),
        "destinations": [destination("default", to.access())],
        "suspend": true,
    });
    let asked = from.requests().len();
    bed.mirror("app", &spec)?;
    let object = bed.wait_ready("app", "Unknown", "Suspended")?;
    assert!(condition(&object, "Reconciling").is_null(), "{object:#}");
    // Nor does an operator that starts while it is suspended.
    operator.signal("TERM")?;
    assert_eq!(operator.wait_for_exit(Duration::from_secs(20))?, 0);
    let _again = bed.operator()?;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(from.requests().len(), asked);
    let suspended = bed.kubectl(&[
        "get",
        "imir",
        "-o",
        "name",
        "--field-selector",
        "spec.suspend=true",
    ])?;
    assert!(suspended.contains("/app"), "{suspended}");
    spec["suspend"] = json!(false);
    bed.mirror("app", &spec)?;
    bed.wait_ready("app", "True", "Succeeded").map(drop)
}

/// Operator rule G3.
#[tokio::test]
async fn each_new_value_of_the_annotation_runs_once_and_at_once() -> Result<()> {
    let (from, to) = (Registry::open()?, Registry::open()?);
    let push = |seed| {
        let image = Image::builder().seed(seed).build()?;
        image.push(from.access(), "app:1")
    };
    let arrived = || -> Result<bool> {
        let there = skopeo::digest(to.access(), "mirror/app:1")?;
        Ok(there == skopeo::digest(from.access(), "app:1")?)
    };
    push(1)?;
    let bed = Bed::new("asked").await?;
    let _operator = bed.operator()?;
    bed.mirror(
        "app",
        &json!({
            "source": source(from.access(), "app", &["1"]),
            "destinations": [destination("default", to.access())],
            "interval": "1h",
        }),
    )?;
    bed.wait_ready("app", "True", "Succeeded")?;
    push(2)?;
    let object = bed.request("app", "first")?;
    assert_eq!(condition(&object, "Ready")["status"], "True");
    assert!(arrived()?, "the answer comes after the run");

    let asked = from.requests().len();
    bed.annotate("app", "unrelated", "x")?;
    bed.annotate("app", "imagepusher.io/requestedAt", "first")?;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(from.requests().len(), asked);

    // What `flux reconcile` would set, in a word of its own.
    push(3)?;
    bed.kubectl(&["annotate", "imir", "app", "imagepusher.io/requestedAt-"])?;
    bed.annotate("app", "reconcile.fluxcd.io/requestedAt", "second")?;
    bed.wait_until("app", PATIENCE, |object| {
        object["status"]["lastHandledReconcileAt"] == "second"
    })?;
    assert!(arrived()?);
    Ok(())
}

#[tokio::test]
async fn a_password_that_is_mended_in_its_secret_is_used_on_request_and_at_the_next_interval()
-> Result<()> {
    let from = Registry::open()?;
    Image::builder().build()?.push(from.access(), "app:1")?;
    let to = Registry::with_htpasswd("robot", "right")?;
    let bed = Bed::new("mended").await?;
    let _operator = bed.operator()?;
    let login = |password: &str| {
        let data = json!({"username": "robot", "password": password});
        bed.secret("login", "kubernetes.io/basic-auth", &data)
    };
    login("wrong")?;
    for (name, interval) in [("asked", "1h"), ("patient", "1m")] {
        let mut place = destination("default", to.access());
        place["secretRef"] = json!({"name": "login"});
        place["repository"] = json!(format!("{}/{name}", to.access().address));
        let spec = json!({
            "source": source(from.access(), "app", &["1"]),
            "destinations": [place], "interval": interval,
        });
        bed.mirror(name, &spec)?;
    }
    for name in ["asked", "patient"] {
        bed.wait_ready(name, "False", "AuthenticationFailed")?;
    }
    login("right")?;
    let object = bed.request("asked", "now")?;
    assert_eq!(condition(&object, "Ready")["status"], "True", "{object:#}");
    let object = bed.wait_until("patient", Duration::from_secs(90), |object| {
        condition(object, "Ready")["status"] == "True"
    })?;
    assert_eq!(object["metadata"]["generation"], 1);
    Ok(())
}

#[tokio::test]
async fn a_cancelled_copy_stops_within_five_seconds_and_stays_so_over_a_restart() -> Result<()> {
    let slow = slow("cancel").await?;
    let bed = &slow.bed;
    let operator = bed.operator()?;
    slow.begin("old")?;
    bed.annotate("app", "imagepusher.io/cancel", "stop")?;
    let object = bed.wait_until("app", PROMPT, |object| {
        condition(object, "Ready")["reason"] == "Cancelled"
    })?;
    assert_eq!(condition(&object, "Stalled")["reason"], "Cancelled");
    assert_eq!(object["status"]["lastHandledCancelAt"], "stop");
    assert!(object["status"]["nextSyncTime"].is_string(), "{object:#}");
    let stopped = poll(PROMPT, || (slow.open_downloads() == 0).then_some(()));
    assert!(stopped.is_some(), "{:?}", slow.gateway.exchanges());

    let asked = slow.gateway.exchanges().len();
    operator.signal("TERM")?;
    assert_eq!(operator.wait_for_exit(Duration::from_secs(20))?, 0);
    let _again = bed.operator()?;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(slow.gateway.exchanges().len(), asked);

    slow.gateway.clear_rules();
    let object = bed.request("app", "now")?;
    assert_eq!(condition(&object, "Ready")["status"], "True", "{object:#}");
    assert!(skopeo::digest(slow.to.access(), "mirror/app:old").is_ok());
    Ok(())
}

#[tokio::test]
async fn a_copy_that_takes_too_long_is_cut_off_and_finished_by_later_ones() -> Result<()> {
    let (from, to) = (Registry::open()?, Registry::open()?);
    let image = Image::builder().layers(1, 400_000).build()?;
    image.push(from.access(), "app:1")?;
    let gateway = Gateway::before(&from)
        .rule(Rule::on(
            &Method::GET,
            "/blobs/",
            Action::SlowAnswer(20_000),
        ))
        .start()?;
    let bed = Bed::new("timeout").await?;
    let _operator = bed.operator()?;
    bed.mirror(
        "app",
        &json!({
            "source": source(&gateway.access(None), "app", &["1"]),
            "destinations": [destination("default", to.access())],
            "timeout": "2s",
        }),
    )?;
    let object = bed.wait_ready("app", "False", "ProgressingWithRetry")?;
    assert!(ready_message(&object).contains("RunTimedOut"), "{object:#}");
    assert_eq!(condition(&object, "Reconciling")["status"], "True");
    assert!(object["status"]["nextSyncTime"].is_string());
    gateway.clear_rules();
    bed.wait_ready("app", "True", "Succeeded").map(drop)
}
