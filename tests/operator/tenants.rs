//! Who has what another tenant fetched, and who has not (design part 4; archive reference 5.7).

use serde_json::{Value, json};
use tempfile::TempPath;

use crate::bed::Bed;
use crate::support::{
    Context, Result,
    fake::{Content, Document, FakeRegistry, Fault, WrongBlob},
    images::Image,
    registry::Registry,
};

const USER: &str = "reader";
const PASSWORD: &str = "reader-canary";

/// A registry for those who have its password, that certificate authorities of the operator's own vouch for.
struct Vault {
    registry: Registry,
    image: Image,
    /// The operator's certificate authorities.
    roots: TempPath,
}

impl Vault {
    /// `others` are further authorities that the operator trusts.
    fn new(others: &[&str]) -> Result<Self> {
        let registry = Registry::builder().tls().htpasswd(USER, PASSWORD).start()?;
        let image = Image::builder().layers(2, 300_000).build()?;
        image.push(registry.access(), "secret/app:1")?;
        let roots = tempfile::NamedTempFile::new().context("no file for roots")?;
        let pems = [&[registry.ca_pem().unwrap()], others].concat();
        std::fs::write(roots.path(), pems.join("\n")).context("could not write the roots")?;
        Ok(Self {
            registry,
            image,
            roots: roots.into_temp_path(),
        })
    }

    /// A mirror of the secret image that only fills the cache.
    fn mirror(&self, bed: &Bed<'_>, name: &str, access: &Value) -> Result<()> {
        mirror(
            bed,
            name,
            &format!("{}/secret/app", self.registry.address()),
            access,
        )
    }

    fn layer(&self) -> String {
        self.image.manifests[0].layers[0].blob.digest.clone()
    }

    /// How often anybody asked whether the layer is there, skopeo at first.
    fn asked_for(&self) -> usize {
        self.registry
            .count("HEAD", &format!("/blobs/{}", self.layer()))
    }

    /// How often the bytes of the layer were asked for.
    fn fetched(&self) -> usize {
        self.registry
            .count("GET", &format!("/blobs/{}", self.layer()))
    }
}

fn mirror(bed: &Bed<'_>, name: &str, repository: &str, access: &Value) -> Result<()> {
    let mut registry = json!({"repository": repository, "tags": ["1"]});
    for (field, value) in access.as_object().into_iter().flatten() {
        registry[field] = value.clone();
    }
    bed.mirror(name, &json!({"source": {"registry": registry}}))
}

fn give_login(bed: &Bed<'_>) -> Result<()> {
    let data = json!({"username": USER, "password": PASSWORD});
    bed.secret("login", "kubernetes.io/basic-auth", &data)
}

fn login() -> Value {
    json!({"secretRef": {"name": "login"}})
}

/// Two namespaces under one operator that trusts `roots`.
async fn two(roots: &TempPath) -> Result<(Bed<'static>, Bed<'static>)> {
    let owner = Bed::new("owner").await?;
    let owner = owner.with_variable("SSL_CERT_FILE", roots.to_str().unwrap());
    Ok((owner, Bed::new("other").await?))
}

fn watched<'a>(owner: &'a Bed<'_>, other: &'a Bed<'_>) -> [&'a str; 4] {
    [
        "--watch-namespace",
        &owner.namespace,
        "--watch-namespace",
        &other.namespace,
    ]
}

fn blob_in_cache(owner: &Bed<'_>, namespace: &str, digest: &str) -> std::path::PathBuf {
    let hex = digest.strip_prefix("sha256:").unwrap();
    owner
        .path()
        .join(format!("cache/{namespace}/blobs/sha256/{hex}"))
}

#[tokio::test]
async fn what_the_registry_lets_both_tenants_have_is_fetched_once() -> Result<()> {
    let vault = Vault::new(&[])?;
    let (owner, other) = two(&vault.roots).await?;
    give_login(&owner)?;
    give_login(&other)?;
    let _operator = owner.operator_with(&watched(&owner, &other))?;
    vault.mirror(&owner, "app", &login())?;
    owner.wait_ready("app", "True", "Succeeded")?;
    assert_eq!(vault.fetched(), 1);
    let asked_for = vault.asked_for();
    vault.mirror(&other, "app", &login())?;
    other.wait_ready("app", "True", "Succeeded")?;
    assert_eq!(vault.fetched(), 1);
    assert_eq!(vault.asked_for(), asked_for + 1);
    for bed in [&owner, &other] {
        assert!(blob_in_cache(&owner, &bed.namespace, &vault.layer()).exists());
    }
    Ok(())
}

#[tokio::test]
async fn a_way_of_the_tenants_own_to_the_registry_is_no_evidence() -> Result<()> {
    let vault = Vault::new(&[])?;
    let (owner, other) = two(&vault.roots).await?;
    give_login(&owner)?;
    give_login(&other)?;
    other.secret(
        "authority",
        "Opaque",
        &json!({"ca.crt": vault.registry.ca_pem().unwrap()}),
    )?;
    let _operator = owner.operator_with(&watched(&owner, &other))?;
    vault.mirror(&owner, "app", &login())?;
    owner.wait_ready("app", "True", "Succeeded")?;
    assert_eq!(vault.fetched(), 1);
    let asked_for = vault.asked_for();
    // The right registry answers here; another time it may be whoever has the key of that authority.
    let own_authority =
        json!({"secretRef": {"name": "login"}, "certSecretRef": {"name": "authority"}});
    vault.mirror(&other, "app", &own_authority)?;
    other.wait_ready("app", "True", "Succeeded")?;
    assert_eq!(vault.fetched(), 2);
    assert_eq!(vault.asked_for(), asked_for);
    Ok(())
}

#[tokio::test]
async fn who_may_not_read_a_blob_does_not_get_it_from_another_tenants_cache() -> Result<()> {
    let evil = FakeRegistry::builder().tls().start()?;
    let vault = Vault::new(&[evil.ca_pem().unwrap()])?;
    let (owner, stranger) = two(&vault.roots).await?;
    give_login(&owner)?;
    let wrong = json!({"username": USER, "password": "guessed"});
    stranger.secret("wrong", "kubernetes.io/basic-auth", &wrong)?;
    // The stranger knows every digest, and has a registry that says yes to each; but not the bytes of the layer.
    for blob in vault.image.blobs() {
        let bytes = std::fs::read(vault.image.blob_file(&blob.digest)).context("no blob")?;
        evil.put_blob("own/app", &Content::new(bytes));
    }
    let manifest =
        std::fs::read(vault.image.blob_file(&vault.image.digest)).context("no manifest")?;
    let media_type = serde_json::from_slice::<Value>(&manifest).unwrap()["mediaType"].clone();
    evil.put_document(
        "own/app",
        "1",
        Document {
            bytes: manifest.into(),
            media_type: media_type.as_str().unwrap().to_owned(),
        },
    );
    evil.add(Fault::Blob(WrongBlob::Corrupt));

    let operator = owner.operator_with(&watched(&owner, &stranger))?;
    vault.mirror(&owner, "app", &login())?;
    owner.wait_ready("app", "True", "Succeeded")?;
    vault.mirror(&stranger, "anonymous", &json!({}))?;
    vault.mirror(
        &stranger,
        "guessed",
        &json!({"secretRef": {"name": "wrong"}}),
    )?;
    let own = format!("{}/own/app", evil.address());
    mirror(&stranger, "own-registry", &own, &json!({}))?;
    mirror(
        &stranger,
        "unverified",
        &own,
        &json!({"skipTLSVerify": true}),
    )?;
    stranger.wait_ready("anonymous", "False", "AuthenticationRequired")?;
    stranger.wait_ready("guessed", "False", "AuthenticationFailed")?;
    for name in ["own-registry", "unverified"] {
        let told = stranger.wait_ready(name, "False", "ProgressingWithRetry")?;
        assert!(told.to_string().contains("DigestMismatch"), "{told}");
        assert!(!told.to_string().contains(&owner.namespace), "{told}");
    }
    assert!(!blob_in_cache(&owner, &stranger.namespace, &vault.layer()).exists());
    assert!(blob_in_cache(&owner, &owner.namespace, &vault.layer()).exists());
    assert_eq!(vault.fetched(), 1);
    assert!(!operator.log().contains("canary"));
    Ok(())
}
