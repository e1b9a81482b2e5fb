//! How registries are reached with what lies in the mirror's namespace.

use hyper::Method;
use serde_json::{Value, json};

use crate::bed::{Bed, PATIENCE, condition, destination, source};
use crate::support::faults::{Action, Rule};
use crate::support::gateway::Gateway;
use crate::support::images::Image;
use crate::support::process::poll;
use crate::support::registry::{Access, Registry};
use crate::support::{Result, skopeo};

struct Parts {
    from: Registry,
    to: Registry,
    bed: Bed<'static>,
}

async fn parts(prefix: &str) -> Result<Parts> {
    let from = Registry::open()?;
    Image::builder().build()?.push(from.access(), "app:1")?;
    let to = Registry::with_htpasswd("robot", "right-canary")?;
    let bed = Bed::new(prefix).await?;
    Ok(Parts { from, to, bed })
}

impl Parts {
    /// A mirror whose destination has these fields besides.
    fn mirror(&self, name: &str, access: &Value) -> Result<()> {
        let mut place = destination("default", self.to.access());
        place["repository"] = json!(format!("{}/{name}", self.to.access().address));
        for (field, value) in access.as_object().unwrap() {
            place[field] = value.clone();
        }
        self.bed.mirror(
            name,
            &json!({"source": source(self.from.access(), "app", &["1"]), "destinations": [place]}),
        )
    }

    /// A Secret as kubelets use it, for this registry.
    fn pull_secret(&self, name: &str, registry: &str) -> Result<()> {
        let config =
            json!({"auths": {registry: {"username": "robot", "password": "right-canary"}}});
        let data = json!({".dockerconfigjson": config.to_string()});
        self.bed
            .secret(name, "kubernetes.io/dockerconfigjson", &data)
    }

    fn account(&self, name: &str, secrets: &[&str]) -> Result<()> {
        let secrets: Vec<Value> = secrets.iter().map(|name| json!({"name": name})).collect();
        self.bed.apply(&json!({
            "apiVersion": "v1", "kind": "ServiceAccount", "imagePullSecrets": secrets,
            "metadata": {"name": name, "namespace": self.bed.namespace},
        }))
    }
}

#[tokio::test]
async fn the_pull_secrets_of_a_service_account_are_the_login() -> Result<()> {
    let parts = parts("account").await?;
    parts.pull_secret("elsewhere", "elsewhere.example")?;
    parts.pull_secret("login", &parts.to.access().address)?;
    parts.account("puller", &["gone", "elsewhere", "login"])?;
    // A path, were it one, that leads to a Secret which exists.
    parts.account(
        "sly",
        &[&format!("../../{}/secrets/login", parts.bed.namespace)],
    )?;
    let operator = parts.bed.operator()?;
    for (name, account) in [("right", "puller"), ("absent", "nobody"), ("sly", "sly")] {
        parts.mirror(name, &json!({"serviceAccountName": account}))?;
    }
    parts.bed.wait_ready("right", "True", "Succeeded")?;
    let absent = parts
        .bed
        .wait_ready("absent", "False", "ServiceAccountNotFound")?;
    let message = condition(&absent, "Stalled")["message"].to_string();
    assert!(
        message.contains("ServiceAccount nobody does not exist"),
        "{message}"
    );
    // Asked anonymously, as by a kubelet.
    let sly = parts
        .bed
        .wait_ready("sly", "False", "AuthenticationRequired")?;
    let everything = format!("{absent} {sly} {}", operator.log());
    assert!(!everything.contains("canary"), "{everything}");
    Ok(())
}

/// Whoever may write mirrors but not read Secrets must not send one to a registry of his own.
#[tokio::test]
async fn a_secret_that_names_its_registry_goes_nowhere_else() -> Result<()> {
    let parts = parts("bound").await?;
    let _operator = parts.bed.operator()?;
    for (name, registry) in [
        ("here", parts.to.access().address.clone()),
        ("elsewhere", "elsewhere.example".to_owned()),
    ] {
        parts.bed.apply(&json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/basic-auth",
            "stringData": {"username": "robot", "password": "right-canary"},
            "metadata": {
                "name": name, "namespace": parts.bed.namespace,
                "annotations": {"imagepusher.io/registry": registry},
            },
        }))?;
        parts.mirror(name, &json!({"secretRef": {"name": name}}))?;
    }
    parts.bed.wait_ready("here", "True", "Succeeded")?;
    let object = parts
        .bed
        .wait_ready("elsewhere", "False", "SecretInvalid")?;
    let message = condition(&object, "Stalled")["message"].to_string();
    let expected = format!(
        "imagepusher.io/registry keeps it from {}",
        parts.to.access().address
    );
    assert!(message.contains(&expected), "{message}");
    assert_eq!(parts.to.count("PUT", "/elsewhere/"), 0);
    Ok(())
}

#[tokio::test]
async fn the_secret_of_a_proxy_is_asked_for_like_the_others() -> Result<()> {
    let parts = parts("proxy").await?;
    let _operator = parts.bed.operator()?;
    parts.mirror("app", &json!({"proxySecretRef": {"name": "proxy"}}))?;
    let object = parts.bed.wait_ready("app", "False", "SecretNotFound")?;
    let message = condition(&object, "Stalled")["message"].to_string();
    assert!(message.contains("Secret proxy does not exist"), "{message}");
    Ok(())
}

/// Registry rule A20: whoever rotates a login changes it at the registry and in the Secret, in the middle of a copy too.
#[tokio::test]
async fn a_login_that_changes_during_a_copy_is_read_again_from_its_secret() -> Result<()> {
    let parts = parts("rotated").await?;
    Image::builder()
        .layers(1, 2_000_000)
        .gzip_level(0)
        .build()?
        .push(parts.from.access(), "slow:1")?;
    let slow = Rule::on(&Method::GET, "/blobs/", Action::SlowAnswer(200_000));
    let gateway = Gateway::before(&parts.from).rule(slow).start()?;
    let operator = parts.bed.operator()?;
    let login = |name: &str, password: &str| {
        let data = json!({"username": "robot", "password": password});
        parts.bed.secret(name, "kubernetes.io/basic-auth", &data)
    };
    for name in ["rotated", "forgotten"] {
        login(name, "right-canary")?;
        let mut place = destination("default", parts.to.access());
        place["repository"] = json!(format!("{}/{name}", parts.to.access().address));
        place["secretRef"] = json!({"name": name});
        let from = source(&gateway.access(None), "slow", &["1"]);
        parts
            .bed
            .mirror(name, &json!({"source": from, "destinations": [place]}))?;
    }
    // By then both have read the Secret and asked the registry with it; the layer takes ten seconds more.
    for name in ["rotated", "forgotten"] {
        let asked = format!("/{name}/manifests/");
        let asked = poll(PATIENCE, || {
            (parts.to.count("HEAD", &asked) > 0).then_some(())
        });
        asked.expect("the destination is asked");
    }
    assert!(parts.to.count("PUT", "/manifests/") == 0, "it was faster");
    parts.to.change_password("robot", "next-canary")?;
    login("rotated", "next-canary")?;

    let done = parts.bed.wait_ready("rotated", "True", "Succeeded")?;
    // It was this run: nothing failed before.
    assert!(done["status"].get("failures").is_none(), "{done:#}");
    let failed = parts
        .bed
        .wait_ready("forgotten", "False", "AuthenticationFailed")?;
    assert_eq!(
        condition(&failed, "Stalled")["reason"],
        "AuthenticationFailed"
    );
    let new = Access {
        credentials: Some(("robot".to_owned(), "next-canary".to_owned())),
        ..parts.to.access().clone()
    };
    assert_eq!(
        skopeo::digest(&new, "rotated:1")?,
        skopeo::digest(parts.from.access(), "slow:1")?
    );
    let everything = format!("{done} {failed} {}", operator.log());
    assert!(!everything.contains("canary"), "{everything}");
    Ok(())
}
