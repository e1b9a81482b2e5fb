//! Each flavour of registry answers a client that knows its way in, and nobody else.

use crate::support::Result;
use crate::support::images::Image;
use crate::support::registry::{Access, Registry};
use crate::support::skopeo;
use crate::support::token_server::{TokenAuth, TokenServer};

/// Pushes an image of two platforms, and reads it back in three ways.
fn an_image_makes_the_round_trip(registry: &Registry) -> Result<()> {
    let image = Image::builder()
        .layers(2, 50_000)
        .platforms(&["linux/amd64", "linux/arm64/v8"])
        .build()?;
    image.push(registry.access(), "demo/app:1.0")?;
    assert_eq!(
        skopeo::digest(registry.access(), "demo/app:1.0")?,
        image.digest
    );
    for blob in image.blobs() {
        let stored = std::fs::metadata(registry.blob_file(&blob.digest)).map(|file| file.len());
        assert_eq!(stored.ok(), Some(blob.size), "{}", blob.digest);
    }
    let copy = crate::support::process::temporary_folder("copy")?;
    skopeo::download(registry.access(), "demo/app:1.0", copy.path())
}

#[test]
fn an_open_registry_takes_and_gives_an_image_and_logs_the_requests() -> Result<()> {
    let registry = Registry::open()?;
    an_image_makes_the_round_trip(&registry)?;
    let requests = registry.requests();
    let put = requests
        .iter()
        .find(|request| request.method == "PUT" && request.path == "/v2/demo/app/manifests/1.0");
    assert_eq!(
        put.map(|request| request.status),
        Some(201),
        "{requests:#?}"
    );
    assert!(
        requests
            .iter()
            .all(|request| request.user_agent.starts_with("skopeo/")),
        "{requests:#?}"
    );
    // Two platforms with two layers and a config each.
    assert_eq!(registry.count("GET", "/blobs/sha256:"), 6);
    Ok(())
}

#[test]
fn a_registry_with_passwords_refuses_whoever_has_none() -> Result<()> {
    let registry = Registry::with_htpasswd("robot", "secret")?;
    an_image_makes_the_round_trip(&registry)?;
    let stranger = Access {
        credentials: None,
        ..registry.access().clone()
    };
    assert!(skopeo::digest(&stranger, "demo/app:1.0").is_err());
    Ok(())
}

#[test]
fn a_registry_with_tls_is_trusted_with_its_own_ca_only() -> Result<()> {
    let registry = Registry::builder()
        .tls()
        .htpasswd("robot", "secret")
        .start()?;
    an_image_makes_the_round_trip(&registry)?;
    let other = Registry::with_tls()?;
    let mistaken = Access {
        certificates: other.access().certificates.clone(),
        ..registry.access().clone()
    };
    let refusal = skopeo::digest(&mistaken, "demo/app:1.0")
        .unwrap_err()
        .to_string();
    assert!(refusal.contains("x509"), "{refusal}");
    Ok(())
}

#[test]
fn a_registry_with_tokens_lets_an_account_do_what_it_may() -> Result<()> {
    let options = TokenAuth::new("robot", "secret").account("reader", "also-secret", &["pull"]);
    let registry = Registry::with_token_auth(options)?;
    an_image_makes_the_round_trip(&registry)?;

    let reader = Access {
        credentials: Some(("reader".to_owned(), "also-secret".to_owned())),
        ..registry.access().clone()
    };
    assert!(skopeo::digest(&reader, "demo/app:1.0").is_ok());
    let image = Image::builder().build()?;
    assert!(image.push(&reader, "demo/app:2.0").is_err());

    let requests = registry
        .token_server()
        .map(TokenServer::requests)
        .unwrap_or_default();
    let pushes = requests.iter().filter(|request| {
        request
            .scopes
            .iter()
            .any(|scope| scope.ends_with(":pull,push"))
    });
    assert!(pushes.count() > 0, "{requests:#?}");
    assert!(
        requests
            .iter()
            .any(|request| request.user.as_deref() == Some("reader") && request.status == 200)
    );
    Ok(())
}

#[test]
fn a_token_ends_when_its_answer_says() -> Result<()> {
    let registry =
        Registry::with_token_auth(TokenAuth::new("robot", "secret").expires_in_seconds(0))?;
    let image = Image::builder().build()?;
    // Already over when it is used: the registry refuses it.
    assert!(image.push(registry.access(), "demo/app:1.0").is_err());
    Ok(())
}

#[test]
fn anonymous_tokens_are_for_pulling() -> Result<()> {
    let registry = Registry::with_token_auth(TokenAuth::new("robot", "secret").anonymous_pull())?;
    an_image_makes_the_round_trip(&registry)?;
    let anonymous = Access {
        credentials: None,
        ..registry.access().clone()
    };
    assert!(skopeo::digest(&anonymous, "demo/app:1.0").is_ok());
    assert!(
        Image::builder()
            .build()?
            .push(&anonymous, "demo/app:2.0")
            .is_err()
    );
    Ok(())
}
