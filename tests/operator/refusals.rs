//! What a mirror says when something outside its spec stands in the way.

use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use crate::bed::{Bed, cluster, condition, destination, source};
use crate::support::faults::{Action, Rule};
use crate::support::gateway::Gateway;
use crate::support::images::Image;
use crate::support::registry::Registry;
use crate::support::{Result, skopeo};

struct Parts {
    from: Registry,
    to: Registry,
}

fn parts() -> Result<Parts> {
    let from = Registry::open()?;
    Image::builder().build()?.push(from.access(), "app:1")?;
    let to = Registry::with_htpasswd("robot", "right")?;
    Ok(Parts { from, to })
}

impl Parts {
    fn spec(&self, secret: &str) -> Value {
        let mut to = destination("default", self.to.access());
        to["secretRef"] = json!({"name": secret});
        // Two mirrors must not write one place.
        to["repository"] = json!(format!("{}/{secret}", self.to.access().address));
        json!({
            "source": source(self.from.access(), "app", &["1"]),
            "destinations": [to],
            "interval": "1h",
        })
    }
}

#[tokio::test]
async fn each_trouble_with_a_secret_has_its_name_and_stalls_its_mirror_alone() -> Result<()> {
    let parts = parts()?;
    let bed = Bed::new("secrets").await?;
    bed.secret("wrong-keys", "Opaque", &json!({"user": "robot-canary"}))?;
    bed.secret(
        "wrong-password",
        "kubernetes.io/basic-auth",
        &json!({"username": "robot", "password": "wrong-canary"}),
    )?;
    bed.secret(
        "right",
        "kubernetes.io/basic-auth",
        &json!({"username": "robot", "password": "right"}),
    )?;
    let operator = bed.operator()?;
    for name in ["missing", "wrong-keys", "wrong-password", "right"] {
        bed.mirror(name, &parts.spec(name))?;
    }
    bed.wait_ready("right", "True", "Succeeded")?;
    for (name, reason, text) in [
        (
            "missing",
            "SecretNotFound",
            format!(
                "Secret missing does not exist in namespace {}",
                bed.namespace
            ),
        ),
        (
            "wrong-keys",
            "SecretInvalid",
            "the key username is missing".to_owned(),
        ),
        (
            "wrong-password",
            "AuthenticationFailed",
            "1 of 1 image failed".to_owned(),
        ),
    ] {
        let object = bed.wait_ready(name, "False", reason)?;
        let stalled = condition(&object, "Stalled");
        assert_eq!(
            (&stalled["status"], &stalled["reason"]),
            (&json!("True"), &json!(reason))
        );
        assert!(
            stalled["message"].as_str().unwrap().contains(&text),
            "{stalled:#}"
        );
        assert!(condition(&object, "Reconciling").is_null(), "{object:#}");
        // The cause lies outside the spec: looked at again within ten minutes, though the interval is an hour.
        let field = |name: &str| {
            object["status"][name]
                .as_str()
                .unwrap()
                .parse::<k8s_openapi::jiff::Timestamp>()
                .unwrap()
        };
        let pause = field("nextSyncTime")
            .duration_since(field("lastSyncTime"))
            .as_secs();
        assert!((570..=630).contains(&pause), "{pause}");
        let everything = format!("{object} {:?} {}", bed.events(name)?, operator.log());
        assert!(!everything.contains("canary"), "{everything}");
    }
    Ok(())
}

#[tokio::test]
async fn an_image_that_is_not_there_is_named_and_the_others_are_copied() -> Result<()> {
    let from = Registry::open()?;
    Image::builder().build()?.push(from.access(), "app:1")?;
    let to = Registry::open()?;
    let bed = Bed::new("absent").await?;
    let _operator = bed.operator()?;
    bed.mirror(
        "app",
        &json!({
            "source": source(from.access(), "app", &["1", "absent"]),
            "destinations": [destination("default", to.access())],
        }),
    )?;
    let object = bed.wait_until("app", crate::bed::PATIENCE, |object| {
        object["status"]["synced"] == "1/2"
    })?;
    let ready = condition(&object, "Ready");
    assert_eq!(
        (&ready["status"], &ready["reason"]),
        (&json!("False"), &json!("ManifestUnknown"))
    );
    let failures = object["status"]["failures"].as_array().unwrap();
    assert_eq!(failures.len(), 1);
    assert_eq!(
        failures[0]["source"],
        format!("{}/app:absent", from.address())
    );
    Ok(())
}

#[tokio::test]
async fn without_the_permission_to_read_secrets_the_mirror_says_which_is_missing() -> Result<()> {
    let parts = parts()?;
    let cluster = cluster().await?;
    let home = cluster.namespace("poor")?;
    cluster.apply(&format!(
        r"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: {home}}}
rules:
- {{apiGroups: [imagepusher.io], resources: [imagemirrors], verbs: [list, watch, patch]}}
- {{apiGroups: [imagepusher.io], resources: [imagemirrors/status], verbs: [patch]}}
- {{apiGroups: [events.k8s.io], resources: [events], verbs: [create, patch]}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: {home}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {home}}}
subjects: [{{kind: ServiceAccount, name: poor, namespace: {home}}}]
"
    ))?;
    let bed = Bed::on(cluster, "denied", (&home, "poor"))?;
    bed.secret(
        "right",
        "kubernetes.io/basic-auth",
        &json!({"username": "robot", "password": "right"}),
    )?;
    let _operator = bed.operator()?;
    bed.mirror("app", &parts.spec("right"))?;
    let object = bed.wait_ready("app", "False", "AccessDenied")?;
    let message = condition(&object, "Stalled")["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        message.contains(&format!(
            "lacks the verb get on secrets in namespace {}",
            bed.namespace
        )),
        "{message}"
    );
    Ok(())
}

/// Also after a restart, whichever of the two is looked at first.
#[tokio::test]
async fn the_younger_of_two_mirrors_with_one_destination_copies_nothing_until_the_older_is_gone()
-> Result<()> {
    let (first, second, to) = (Registry::open()?, Registry::open()?, Registry::open()?);
    for (from, seed) in [(&first, 1), (&second, 2)] {
        let image = Image::builder().seed(seed).build()?;
        image.push(from.access(), "app:1")?;
    }
    let arrived = || skopeo::digest(to.access(), "mirror/app:1");
    let spec = |from: &Registry| {
        json!({
            "source": source(from.access(), "app", &["1"]),
            "destinations": [destination("default", to.access())],
        })
    };
    let bed = Bed::new("conflict").await?;
    let operator = bed.operator()?;
    // Their names say nothing of their age.
    bed.mirror("z-older", &spec(&first))?;
    bed.wait_ready("z-older", "True", "Succeeded")?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    bed.mirror("a-younger", &spec(&second))?;
    let object = bed.wait_ready("a-younger", "False", "DestinationConflict")?;
    let message = condition(&object, "Stalled")["message"].to_string();
    let expected = format!(
        "{}/mirror/app:1 is written by the ImageMirror z-older",
        to.access().address
    );
    assert!(message.contains(&expected), "{message}");

    let asked = second.requests().len();
    operator.signal("TERM")?;
    assert_eq!(operator.wait_for_exit(Duration::from_secs(20))?, 0);
    let _again = bed.operator()?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(second.requests().len(), asked);
    assert_eq!(arrived()?, skopeo::digest(first.access(), "app:1")?);

    bed.kubectl(&["delete", "imir", "z-older", "--timeout=30s"])?;
    bed.wait_ready("a-younger", "True", "Succeeded")?;
    assert_eq!(arrived()?, skopeo::digest(second.access(), "app:1")?);
    Ok(())
}

/// Registry rule R15.
#[tokio::test]
async fn a_registry_that_asks_for_an_hour_is_left_alone_for_an_hour() -> Result<()> {
    let parts = parts()?;
    let limited = || Action::Respond {
        status: 429,
        headers: vec![("Retry-After".to_owned(), "3600".to_owned())],
        body: Bytes::new(),
    };
    let gateway = Gateway::before(&parts.from)
        .rule(Rule::on(&Method::HEAD, "/manifests/", limited()))
        .rule(Rule::on(&Method::GET, "/manifests/", limited()))
        .start()?;
    let bed = Bed::new("limited").await?;
    let _operator = bed.operator()?;
    bed.mirror(
        "app",
        &json!({
            "source": source(&gateway.access(None), "app", &["1"]),
            "destinations": [],
            "interval": "5m",
        }),
    )?;
    let object = bed.wait_ready("app", "False", "ProgressingWithRetry")?;
    let status = &object["status"];
    let time = |field: &str| -> Timestamp { status[field].as_str().unwrap().parse().unwrap() };
    let pause = time("nextSyncTime").duration_since(time("lastSyncTime"));
    assert!(
        (3500..=3800).contains(&pause.as_secs()),
        "{pause:?}: {status:#}"
    );
    let message = condition(&object, "Ready")["message"].to_string();
    assert!(message.contains("as the registry asked"), "{message}");
    // Longer than the first pause of a backoff.
    let asked = gateway.exchanges().len();
    tokio::time::sleep(Duration::from_secs(13)).await;
    assert_eq!(gateway.exchanges().len(), asked);
    Ok(())
}
