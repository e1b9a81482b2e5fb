//! Certificates and proxies, as they lie in Secrets of the mirror's namespace.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::bed::{Bed, condition};
use crate::support::forward_proxy::{ForwardProxy, behind};
use crate::support::images::Image;
use crate::support::process::Guarded;
use crate::support::registry::Registry;
use crate::support::{Context, Result, skopeo};

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).context(format!("could not read {}", file.display()))
}

/// A Secret with the registry's CA, and the client's certificate and key if `client` has some.
fn certificates(bed: &Bed<'_>, name: &str, ca: &Registry, client: Option<&Registry>) -> Result<()> {
    let mut data = json!({"ca.crt": ca.ca_pem().unwrap()});
    if let Some((certificate, key)) = client.and_then(Registry::client_files) {
        data["tls.crt"] = json!(read(&certificate)?);
        data["tls.key"] = json!(read(&key)?);
    }
    bed.secret(name, "Opaque", &data)
}

/// A source of `app:1` behind TLS, with the Secrets that these fields name.
fn source(address: &str, access: &Value) -> Value {
    let mut registry = json!({"repository": format!("{address}/app"), "tags": ["1"]});
    merge(&mut registry, access);
    json!({"registry": registry})
}

/// A destination behind TLS, with the Secrets that these fields name.
fn destination(registry: &Registry, name: &str, access: &Value) -> Value {
    let address = &registry.access().address;
    let mut destination = json!({"repository": format!("{address}/{name}")});
    merge(&mut destination, access);
    destination
}

fn merge(target: &mut Value, fields: &Value) {
    for (field, value) in fields.as_object().unwrap() {
        target[field] = value.clone();
    }
}

/// What the mirror's condition says once it has failed for this reason until somebody mends the cause.
fn wait_stalled(bed: &Bed<'_>, name: &str, reason: &str) -> Result<String> {
    let object = bed.wait_ready(name, "False", reason)?;
    let stalled = condition(&object, "Stalled");
    assert_eq!(stalled["reason"], reason, "{object:#}");
    Ok(stalled["message"].as_str().unwrap().to_owned())
}

/// Nothing that people get to see holds any of these.
fn assert_hidden(
    bed: &Bed<'_>,
    operator: &Guarded,
    names: &[&str],
    secrets: &[&str],
) -> Result<()> {
    let mut seen = operator.log();
    for name in names {
        let report = bed.kubectl(&["get", "configmap", &format!("{name}-report"), "-o", "yaml"])?;
        let (object, events) = (bed.object(name)?, bed.events(name)?);
        seen = format!("{seen} {} {events:?} {report}", object["status"]);
    }
    for secret in secrets {
        assert!(!seen.contains(secret), "{secret} in {seen}");
    }
    Ok(())
}

#[tokio::test]
async fn each_registry_is_trusted_by_the_authority_in_its_own_secret() -> Result<()> {
    let (from, to) = (Registry::with_tls()?, Registry::with_tls()?);
    let image = Image::builder().layers(2, 50_000).build()?;
    image.push(from.access(), "app:1")?;
    let bed = Bed::new("authorities").await?;
    certificates(&bed, "of-source", &from, None)?;
    certificates(&bed, "of-destination", &to, None)?;
    let _operator = bed.operator()?;
    let with = |secret: &str| json!({"certSecretRef": {"name": secret}});
    let mirror = |name: &str, at_source: &Value, at_destination: &Value| {
        let spec = json!({
            "source": source(from.address(), at_source),
            "destinations": [destination(&to, name, at_destination)],
        });
        bed.mirror(name, &spec)
    };
    let (right, wrong) = (with("of-source"), with("of-destination"));
    mirror("right", &right, &wrong)?;
    // What one registry may be signed by says nothing of the other.
    mirror("swapped", &wrong, &right)?;
    mirror("half", &right, &right)?;
    mirror("none", &json!({}), &wrong)?;
    mirror("skipped", &right, &json!({"skipTLSVerify": true}))?;
    for name in ["right", "skipped"] {
        bed.wait_ready(name, "True", "Succeeded")?;
        assert_eq!(
            skopeo::digest(to.access(), &format!("{name}:1"))?,
            image.digest
        );
    }
    for (name, untrusted) in [("swapped", &from), ("half", &to), ("none", &from)] {
        let said = wait_stalled(&bed, name, "CertificateInvalid")?;
        for part in [untrusted.address(), "give the registry's CA certificate"] {
            assert!(said.contains(part), "{name}: {said}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn registries_that_want_a_certificate_get_the_one_in_the_secret() -> Result<()> {
    let [from, to, foreign] = [(); 3].map(|()| Registry::builder().mutual_tls().start());
    let (from, to, foreign) = (from?, to?, foreign?);
    let image = Image::builder().layers(2, 50_000).build()?;
    image.push(from.access(), "app:1")?;
    let bed = Bed::new("mutual").await?;
    certificates(&bed, "of-source", &from, Some(&from))?;
    certificates(&bed, "of-destination", &to, Some(&to))?;
    certificates(&bed, "only-trust", &to, None)?;
    certificates(&bed, "foreign", &to, Some(&foreign))?;
    let operator = bed.operator()?;
    let names = ["right", "without", "foreign"];
    for (name, secret) in names
        .into_iter()
        .zip(["of-destination", "only-trust", "foreign"])
    {
        let spec = json!({
            "source": source(from.address(), &json!({"certSecretRef": {"name": "of-source"}})),
            "destinations": [destination(&to, name, &json!({"certSecretRef": {"name": secret}}))],
        });
        bed.mirror(name, &spec)?;
    }
    bed.wait_ready("right", "True", "Succeeded")?;
    assert_eq!(skopeo::digest(to.access(), "right:1")?, image.digest);
    for name in ["without", "foreign"] {
        let said = wait_stalled(&bed, name, "ClientCertificateRefused")?;
        for part in [to.address(), "certSecretRef"] {
            assert!(said.contains(part), "{name}: {said}");
        }
    }
    // The Secret is read anew: the next run has the certificate.
    certificates(&bed, "only-trust", &to, Some(&to))?;
    bed.request("without", "mended")?;
    bed.wait_ready("without", "True", "Succeeded")?;

    let mut keys = Vec::new();
    for registry in [&from, &to, &foreign] {
        let (_, key) = registry.client_files().unwrap();
        keys.push(read(&key)?.lines().nth(1).unwrap().to_owned());
    }
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    assert_hidden(&bed, &operator, &names, &keys)
}

#[tokio::test]
async fn a_source_is_reached_through_the_proxy_in_its_secret_and_the_destination_is_not()
-> Result<()> {
    let (from, to) = (Registry::with_tls()?, Registry::open()?);
    let image = Image::builder().layers(2, 50_000).build()?;
    image.push(from.access(), "app:1")?;
    let proxy = ForwardProxy::start("gate", "keeper-canary")?;
    let bed = Bed::new("proxied").await?;
    certificates(&bed, "authority", &from, None)?;
    let address = format!("http://{}", proxy.address());
    for (name, data) in [
        (
            "right",
            json!({"address": address, "username": "gate", "password": "keeper-canary"}),
        ),
        (
            "wrong",
            json!({"address": address, "username": "gate", "password": "wrong-canary"}),
        ),
        ("nobody", json!({"address": address})),
    ] {
        bed.secret(name, "Opaque", &data)?;
    }
    let operator = bed.operator()?;
    // Only who comes by the proxy finds a host of this name.
    let name_there = behind(from.address());
    let names = ["right", "wrong", "nobody"];
    for name in names {
        let access =
            json!({"certSecretRef": {"name": "authority"}, "proxySecretRef": {"name": name}});
        let spec = json!({
            "source": source(&name_there, &access),
            "destinations": [destination(&to, name, &json!({"insecure": true}))],
        });
        bed.mirror(name, &spec)?;
    }
    bed.wait_ready("right", "True", "Succeeded")?;
    assert_eq!(skopeo::digest(to.access(), "right:1")?, image.digest);
    let heads = proxy.sent_on();
    assert!(!heads.is_empty());
    for head in heads {
        let expected = format!("CONNECT {name_there} ");
        assert!(head.starts_with(&expected), "{head}");
    }
    for name in ["wrong", "nobody"] {
        let said = wait_stalled(&bed, name, "ProxyAuthenticationRequired")?;
        assert!(said.contains(&address), "{said}");
    }
    // The logins in plain, and in base64 as they are sent.
    let secrets = [
        "canary",
        "Z2F0ZTp3cm9uZy1jYW5hcnk",
        "Z2F0ZTprZWVwZXItY2FuYXJ5",
    ];
    assert_hidden(&bed, &operator, &names, &secrets)?;

    let right = json!({"address": address, "username": "gate", "password": "keeper-canary"});
    bed.secret("wrong", "Opaque", &right)?;
    bed.request("wrong", "mended")?;
    bed.wait_ready("wrong", "True", "Succeeded").map(drop)
}

/// Registry rule R7: what listens on the operator's machine for it alone is not for whoever writes mirrors.
#[tokio::test]
async fn a_registry_on_the_operators_own_machine_is_not_asked_unless_that_is_allowed() -> Result<()>
{
    let registry = Registry::open()?;
    let bed = Bed::new("loopback").await?;
    let operator = bed.strict_operator_with(&["--watch-namespace", &bed.namespace])?;
    let spec = json!({"source": source(registry.address(), &json!({"insecure": true}))});
    bed.mirror("app", &spec)?;
    let said = wait_stalled(&bed, "app", "AddressRefused")?;
    assert!(said.contains("127.0.0.1"), "{said}");
    assert!(registry.requests().is_empty());
    drop(operator);

    Image::builder().build()?.push(registry.access(), "app:1")?;
    let _lenient = bed.operator()?;
    bed.request("app", "allowed")?;
    bed.wait_ready("app", "True", "Succeeded").map(drop)
}
