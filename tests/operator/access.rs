//! How registries are reached with what lies in the mirror's namespace.

use serde_json::{Value, json};

use crate::bed::{Bed, condition, destination, source};
use crate::support::Result;
use crate::support::images::Image;
use crate::support::registry::Registry;

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
