//! Each option of `push` does what it says, seen from the registry's side.

use std::time::Duration;

use hyper::Method;

use crate::commands::{pull, push, with};
use crate::support::{
    Result,
    binary::Sandbox,
    gateway::{Action, Gateway, Rule},
    images::Image,
    registry::Registry,
    skopeo,
};

const UPLOADS: &str = "/blobs/uploads/";

/// A sandbox whose cache holds `team/app:1.0` with this many layers.
fn with_cached_image(layers: usize) -> Result<(Sandbox, Image)> {
    let source = Registry::open()?;
    let image = Image::builder().layers(layers, 100_000).build()?;
    image.push(source.access(), "team/app:1.0")?;
    let sandbox = Sandbox::new()?;
    sandbox
        .run(&pull("team/app", "1.0", source.address()))?
        .expect_code(0)?;
    Ok((sandbox, image))
}

fn push_to<'a>(registry: &'a str, options: &[&'a str]) -> Vec<&'a str> {
    with(&push("team/app:1.0", "team/app", "1.0", registry), options)
}

#[test]
fn a_broken_registry_is_asked_once_more_than_there_are_retries() -> Result<()> {
    let (sandbox, _image) = with_cached_image(1)?;
    for (retries, requests) in [("0", 1), ("2", 3)] {
        let registry = Registry::open()?;
        let gateway = Gateway::before(&registry)
            .rule(Rule::on(&Method::PUT, "/manifests/", Action::status(500)))
            .start()?;
        let address = gateway.address();
        let failed = sandbox
            .run(&push_to(&address, &["--retry-attempts", retries]))?
            .expect_code(1)?;
        assert_eq!(
            gateway.count(&Method::PUT, "/manifests/"),
            requests,
            "{}",
            failed.stderr
        );
        assert!(failed.stderr.contains("500"), "{}", failed.stderr);
    }
    Ok(())
}

#[test]
fn a_registry_that_recovers_within_the_retries_gets_the_image() -> Result<()> {
    let (sandbox, image) = with_cached_image(2)?;
    let registry = Registry::open()?;
    let gateway = Gateway::before(&registry)
        .rule(Rule::on(&Method::POST, UPLOADS, Action::status(503)).times(1))
        .rule(Rule::on(&Method::PUT, UPLOADS, Action::HangUp).times(1))
        .rule(Rule::on(&Method::PUT, "/manifests/", Action::too_many_requests(1)).times(1))
        .start()?;
    let done = sandbox
        .run(&push_to(&gateway.address(), &[]))?
        .expect_code(0)?;
    assert_eq!(
        skopeo::digest(registry.access(), "team/app:1.0")?,
        image.digest,
        "{}",
        done.stderr
    );
    assert!(done.stderr.contains("retrying"), "{}", done.stderr);
    Ok(())
}

#[test]
fn as_many_blobs_travel_at_once_as_max_concurrent_says() -> Result<()> {
    let (sandbox, _image) = with_cached_image(6)?;
    for (option, expected) in [(None, 1), (Some("3"), 3)] {
        let registry = Registry::open()?;
        let slow = Rule::on(
            &Method::PUT,
            UPLOADS,
            Action::Delay(Duration::from_millis(300)),
        );
        let gateway = Gateway::before(&registry).rule(slow).start()?;
        let address = gateway.address();
        let more: Vec<&str> = option
            .iter()
            .flat_map(|number| ["--max-concurrent", *number])
            .collect();
        sandbox.run(&push_to(&address, &more))?.expect_code(0)?;
        let overlap = gateway.max_overlap(|exchange| {
            exchange.method == Method::PUT && exchange.path.contains(UPLOADS)
        });
        assert_eq!(overlap, expected, "{option:?}");
    }
    Ok(())
}

#[test]
fn blobs_the_registry_has_are_skipped_unless_the_upload_is_forced() -> Result<()> {
    let (sandbox, _image) = with_cached_image(3)?;
    let registry = Registry::open()?;
    let gateway = Gateway::before(&registry).start()?;
    let address = gateway.address();
    sandbox.run(&push_to(&address, &[]))?.expect_code(0)?;
    assert_eq!(gateway.count(&Method::POST, UPLOADS), 4);

    gateway.forget();
    let skipped = sandbox
        .run(&push_to(&address, &["--skip-existing"]))?
        .expect_code(0)?;
    assert_eq!(
        (
            gateway.count(&Method::POST, UPLOADS),
            gateway.count(&Method::PUT, "/manifests/")
        ),
        (0, 0)
    );
    assert!(skipped.stderr.contains("skipped"), "{}", skipped.stderr);
    assert!(skipped.stdout.contains("existing 4"), "{}", skipped.stdout);

    // Another tag needs the manifest, but no layer.
    gateway.forget();
    let renamed = push("team/app:1.0", "team/app", "2.0", &address);
    sandbox.run(&renamed)?.expect_code(0)?;
    assert_eq!(
        (
            gateway.count(&Method::HEAD, "/blobs/"),
            gateway.count(&Method::PUT, "/manifests/")
        ),
        (3, 1)
    );
    assert!(
        gateway.count(&Method::POST, UPLOADS) <= 1,
        "only the small configuration goes without a question"
    );

    gateway.forget();
    sandbox
        .run(&push_to(&address, &["--force-upload"]))?
        .expect_code(0)?;
    assert_eq!(
        (
            gateway.count(&Method::POST, UPLOADS),
            gateway.count(&Method::PUT, "/manifests/")
        ),
        (4, 1)
    );
    assert_eq!(gateway.count(&Method::HEAD, "/blobs/"), 0);
    Ok(())
}

#[test]
fn a_cold_image_of_three_layers_costs_thirteen_requests() -> Result<()> {
    let (sandbox, _image) = with_cached_image(3)?;
    let registry = Registry::open()?;
    let gateway = Gateway::before(&registry).start()?;
    sandbox
        .run(&push_to(&gateway.address(), &[]))?
        .expect_code(0)?;
    assert_eq!(gateway.exchanges().len(), 13);
    Ok(())
}

#[test]
fn contradictory_options_are_refused_before_anything_starts() -> Result<()> {
    let sandbox = Sandbox::new()?;
    for options in [
        &["--skip-existing", "--force-upload"][..],
        &["-p", "x", "--password-stdin"],
        &["-q", "-v"],
        &["--max-concurrent", "0"],
        &["--no-such-option"],
    ] {
        sandbox
            .run(&push_to("localhost:1", options))?
            .expect_code(2)?;
    }
    assert!(!sandbox.path().join(".cache").exists());
    Ok(())
}

#[test]
fn variables_stand_in_for_options() -> Result<()> {
    let (sandbox, image) = with_cached_image(1)?;
    let registry = Registry::open()?;
    let sandbox = sandbox
        .variable("IMAGE_PUSHER_SOURCE", "team/app:1.0")
        .variable("IMAGE_PUSHER_REPOSITORY", "by/variable")
        .variable("IMAGE_PUSHER_REFERENCE", "1")
        .variable("IMAGE_PUSHER_REGISTRY", registry.address())
        .variable("IMAGE_PUSHER_FORCE_UPLOAD", "true")
        .variable("IMAGE_PUSHER_VERBOSE", "1");
    sandbox.run(&["push"])?.expect_code(0)?;
    assert_eq!(
        skopeo::digest(registry.access(), "by/variable:1")?,
        image.digest
    );
    let sandbox = sandbox.variable("IMAGE_PUSHER_QUIET", "false");
    sandbox
        .variable("IMAGE_PUSHER_SKIP_EXISTING", "true")
        .run(&["push"])?
        .expect_code(2)?;
    Ok(())
}
