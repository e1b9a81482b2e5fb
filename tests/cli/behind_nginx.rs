//! Registries behind a web server that ends TLS, set up well and badly.

use crate::commands::{pull, push, with};
use crate::support::{
    Result,
    binary::{Finished, Sandbox},
    images::Image,
    registry::Registry,
    reverse_proxy::ReverseProxy,
    skopeo,
};

/// Pulls an image through nginx and pushes it back under another name. Returns the push.
fn round_trip(image: &Image, registry: &Registry, nginx: &ReverseProxy) -> Result<Finished> {
    image.push(registry.access(), "team/app:1.0")?;
    let ca = nginx.certificate_file("ca.crt").display().to_string();
    let (url, sandbox) = (nginx.url(), Sandbox::new()?);
    sandbox
        .run(&with(&pull("team/app", "1.0", &url), &["--ca-file", &ca]))?
        .expect_code(0)?;
    let push = push("team/app:1.0", "team/copy", "1.0", &url);
    sandbox.run(&with(&push, &["--ca-file", &ca, "--force-upload"]))
}

#[test]
fn an_image_goes_both_ways_whatever_the_registry_believes_its_address_to_be() -> Result<()> {
    for (is_relative, headers, warnings) in [
        (false, None, 0),
        (true, None, 0),
        // The registry answers with `http://` and the address that the client used.
        (false, Some(&["Host $http_host"][..]), 1),
        // The registry answers with `http://` and a port that nobody outside can reach.
        (false, Some(&["Host 127.0.0.1:9"]), 1),
        // The registry answers with its own address, for which nginx puts the one that the client used.
        (false, Some(&[]), 0),
    ] {
        let mut registry = Registry::builder();
        if is_relative {
            registry = registry.relative_locations();
        }
        let registry = registry.start()?;
        let mut nginx = ReverseProxy::before(&registry);
        if let Some(headers) = headers {
            nginx = nginx.headers(headers);
        }
        let nginx = nginx.start()?;
        let image = Image::builder().layers(2, 300_000).build()?;
        let pushed = round_trip(&image, &registry, &nginx)?.expect_code(0)?;
        let told = pushed.stderr.matches("X-Forwarded-Proto").count();
        assert_eq!(told, warnings, "{}", pushed.stderr);
        assert_eq!(
            skopeo::digest(nginx.access(), "team/copy:1.0")?,
            image.digest
        );
    }
    Ok(())
}

#[test]
fn an_upload_that_would_leave_tls_for_another_host_is_refused() -> Result<()> {
    let registry = Registry::open()?;
    let nginx = ReverseProxy::before(&registry)
        .headers(&["Host internal.example:5000"])
        .start()?;
    let image = Image::builder().build()?;
    let refused = round_trip(&image, &registry, &nginx)?.expect_code(1)?;
    for words in ["http://internal.example:5000", "it leaves TLS"] {
        assert!(refused.stderr.contains(words), "{}", refused.stderr);
    }
    assert_eq!(registry.count("PUT", "/team/copy/"), 0);
    Ok(())
}

#[test]
fn a_body_beyond_the_limit_of_the_web_server_is_told_as_such() -> Result<()> {
    // The second is more than any buffer on the way holds: the answer comes while bytes are still being sent.
    for size in [50_000, 8_000_000] {
        let registry = Registry::open()?;
        let nginx = ReverseProxy::before(&registry).body_limit("10k").start()?;
        let image = Image::builder().layers(1, size).build()?;
        let refused = round_trip(&image, &registry, &nginx)?.expect_code(1)?;
        for words in ["too large for the registry or a proxy before it", "413"] {
            assert!(refused.stderr.contains(words), "{}", refused.stderr);
        }
        assert!(!refused.stderr.contains("retrying"), "{}", refused.stderr);
    }
    Ok(())
}
