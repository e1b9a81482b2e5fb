//! Wrong input and broken registries: one clear sentence with the thing, the reason and the remedy, the right exit code, and
//! a cache that stays as it was.

use std::time::Duration;

use hyper::Method;

use crate::commands::{pull, push};
use crate::support::{
    Result,
    binary::Sandbox,
    gateway::{Action, Gateway, Rule},
    images::Image,
    ports::free_port,
    process::poll,
    registry::Registry,
};

/// Runs a command that must fail, and checks its exit code and that its last line holds every part.
fn fails(sandbox: &Sandbox, arguments: &[&str], code: i32, parts: &[&str]) -> Result<()> {
    let run = sandbox.run(arguments)?.expect_code(code)?;
    for part in parts {
        assert!(
            run.stderr.contains(part),
            "{}\n'{part}' is not in\n{}",
            run.command,
            run.stderr
        );
    }
    assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
    Ok(())
}

#[test]
fn names_addresses_and_files_that_cannot_be_right_are_usage_errors() -> Result<()> {
    let sandbox = Sandbox::new()?;
    for (arguments, parts) in [
        (
            &pull("Team/App", "1", "localhost:1")[..],
            &["Team", "lower case"][..],
        ),
        (&pull("../etc", "1", "localhost:1"), &["../etc"]),
        (
            &pull("team/app", "not a tag", "localhost:1"),
            &["not a tag", "128"],
        ),
        (
            &pull("team/app", "sha256:abc", "localhost:1"),
            &["sha256:abc", "64 hex digits"],
        ),
        (&pull("team/app", "1", "ftp://localhost"), &["ftp"]),
        (&pull("team/app", "1", "http://localhost:99999"), &["99999"]),
        (&pull("team/app", "1", "http://localhost:1/path"), &["path"]),
        (
            &pull("a.example/app", "1", "https://b.example"),
            &["a.example", "b.example", "leave one of them out"],
        ),
        (&["pull", "-r", "team/app"], &["--reference"]),
        (
            &[
                "pull",
                "-r",
                "a",
                "-t",
                "1",
                "-u",
                "user",
                "--registry",
                "localhost:1",
            ],
            &["--password-stdin"],
        ),
        (
            &[
                "pull",
                "-r",
                "a",
                "-t",
                "1",
                "-p",
                "secret",
                "--registry",
                "localhost:1",
            ],
            &["--username"],
        ),
        (
            &[
                "pull",
                "-r",
                "a",
                "-t",
                "1",
                "--ca-file",
                "missing.pem",
                "--registry",
                "localhost:1",
            ],
            &["missing.pem", "--ca-file"],
        ),
        (&push("app", "a", "1", "localhost:1"), &["app", "TAG"]),
        (&["clean", "--keep-within", "soon"], &["soon", "30m"]),
        (&["clean", "-t", "1"], &["--repository"]),
    ] {
        fails(&sandbox, arguments, 2, parts)?;
    }
    let garbage = sandbox
        .file("garbage.pem", "no certificate")?
        .display()
        .to_string();
    fails(
        &sandbox,
        &[
            "pull",
            "-r",
            "a",
            "-t",
            "1",
            "--registry",
            "https://localhost:1",
            "--ca-file",
            &garbage,
        ],
        2,
        &["certificate"],
    )
}

#[test]
fn broken_login_files_are_named_and_not_shown() -> Result<()> {
    let sandbox = Sandbox::new()?;
    sandbox.file(
        ".docker/config.json",
        r#"{"auths": {"localhost:1": {"auth": "s3cret"#,
    )?;
    let run = sandbox
        .run(&pull("a", "1", "localhost:1"))?
        .expect_code(2)?;
    assert!(
        run.stderr.contains("config.json") && !run.stderr.contains("s3cret"),
        "{}",
        run.stderr
    );
    Ok(())
}

#[test]
fn an_unreachable_registry_is_told_by_its_cause() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let closed = format!("localhost:{}", free_port()?);
    fails(
        &sandbox,
        &pull("team/app", "1", &closed),
        1,
        &[&closed, "refused"],
    )?;
    fails(
        &sandbox,
        &pull("team/app", "1", "https://no-such-host.invalid"),
        1,
        &["no-such-host.invalid"],
    )?;
    let plain = Registry::open()?;
    let as_https = format!("https://{}", plain.address());
    fails(
        &sandbox,
        &pull("team/app", "1", &as_https),
        1,
        &[plain.address(), "http://"],
    )?;
    let tls = Registry::with_tls()?;
    fails(
        &sandbox,
        &pull("team/app", "1", &tls.url()),
        1,
        &[tls.address(), "certificate", "--ca-file", "--skip-tls"],
    )?;
    fails(
        &sandbox,
        &pull("team/app", "1", &format!("http://{}", tls.address())),
        1,
        &[tls.address(), "https"],
    )
}

#[test]
fn what_a_registry_refuses_is_told_with_the_image_and_the_remedy() -> Result<()> {
    let registry = Registry::open()?;
    Image::builder()
        .build()?
        .push(registry.access(), "team/app:1.0")?;
    let sandbox = Sandbox::new()?;
    fails(
        &sandbox,
        &pull("team/app", "2.0", registry.address()),
        1,
        &["team/app:2.0"],
    )?;
    fails(
        &sandbox,
        &pull("team/none", "1", registry.address()),
        1,
        &["team/none:1"],
    )?;
    let protected = Registry::with_htpasswd("user", "right")?;
    fails(
        &sandbox,
        &pull("team/app", "1", protected.address()),
        1,
        &["team/app:1", "--username"],
    )?;
    let sandbox = sandbox.variable("IMAGE_PUSHER_PASSWORD", "wrong-password");
    let options = [
        &pull("team/app", "1", protected.address())[..],
        &["-u", "user"],
    ]
    .concat();
    fails(
        &sandbox,
        &options,
        1,
        &["team/app:1", "user name and password"],
    )
}

#[test]
fn answers_that_are_no_answers_of_a_registry_are_recognised() -> Result<()> {
    let registry = Registry::open()?;
    Image::builder()
        .build()?
        .push(registry.access(), "team/app:1.0")?;
    let sandbox = Sandbox::new()?;
    for (action, code, parts) in [
        (Action::html_page(200), 1, &["web page"][..]),
        (Action::html_page(404), 1, &["team/app:1.0"]),
        (Action::status(500), 1, &["500"]),
        (
            Action::registry_error(403, "DENIED", "you may not"),
            1,
            &["you may not"],
        ),
        (
            Action::registry_error(404, "UNKNOWN", "Not Found"),
            1,
            &["team/app:1.0"],
        ),
    ] {
        let gateway = Gateway::before(&registry)
            .rule(Rule::on_any("/manifests/", action))
            .start()?;
        fails(
            &sandbox,
            &pull("team/app", "1.0", &gateway.address()),
            code,
            parts,
        )?;
    }
    let listed = sandbox.run(&["list"])?.expect_code(0)?;
    assert!(listed.stdout.contains("no images"), "{}", listed.stdout);
    Ok(())
}

#[test]
fn a_used_up_quota_is_said_and_waited_for() -> Result<()> {
    let registry = Registry::open()?;
    Image::builder()
        .build()?
        .push(registry.access(), "team/app:1.0")?;
    let limited = Rule::on_any("/manifests/", Action::too_many_requests(3600));
    let gateway = Gateway::before(&registry).rule(limited).start()?;
    let sandbox = Sandbox::new()?;
    let running = sandbox.start(&pull("team/app", "1.0", &gateway.address()))?;
    let said = poll(Duration::from_secs(30), || {
        running.stderr().contains("team/app:1.0").then_some(())
    });
    said.expect("it says what it waits for");
    // It asks nobody while it waits, and the user can end that at any time.
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(gateway.count(&Method::GET, "/manifests/"), 1);
    running.signal("INT")?;
    let stopped = running.wait()?.expect_code(130)?;
    for part in ["quota", "3600 s"] {
        assert!(stopped.stderr.contains(part), "{}", stopped.stderr);
    }
    Ok(())
}

#[test]
fn wrong_bytes_are_fetched_once_more_and_then_refused_with_both_digests() -> Result<()> {
    let registry = Registry::open()?;
    let image = Image::builder().layers(1, 100_000).build()?;
    image.push(registry.access(), "team/app:1.0")?;
    let layer = &image.manifests[0].layers[0].blob.digest;
    let corrupt = |times| Rule::on(&Method::GET, layer, Action::CorruptAnswer(500)).times(times);
    let sandbox = Sandbox::new()?;
    let gateway = Gateway::before(&registry)
        .rule(corrupt(usize::MAX))
        .start()?;
    fails(
        &sandbox,
        &pull("team/app", "1.0", &gateway.address()),
        1,
        &[layer, "digest"],
    )?;
    assert_eq!(gateway.count(&Method::GET, layer), 2);
    assert!(
        !sandbox
            .path()
            .join(".cache/blobs/sha256")
            .join(&layer[7..])
            .exists()
    );
    let gateway = Gateway::before(&registry).rule(corrupt(1)).start()?;
    sandbox
        .run(&pull("team/app", "1.0", &gateway.address()))?
        .expect_code(0)?;
    Ok(())
}

#[test]
fn a_layer_of_the_wrong_size_is_fetched_once_more_and_then_refused() -> Result<()> {
    let registry = Registry::open()?;
    let image = Image::builder().layers(1, 100_000).build()?;
    image.push(registry.access(), "team/app:1.0")?;
    let layer = &image.manifests[0].layers[0].blob;
    let sandbox = Sandbox::new()?;
    for size in [layer.size - 1, layer.size + 1] {
        let body = vec![7; usize::try_from(size).unwrap()].into();
        let wrong = Action::Respond {
            status: 200,
            headers: Vec::new(),
            body,
        };
        let gateway = Gateway::before(&registry)
            .rule(Rule::on(&Method::GET, &layer.digest, wrong))
            .start()?;
        let expected = layer.size.to_string();
        fails(
            &sandbox,
            &pull("team/app", "1.0", &gateway.address()),
            1,
            &[&layer.digest, &expected],
        )?;
        assert_eq!(gateway.count(&Method::GET, &layer.digest), 2);
    }
    Ok(())
}

#[test]
fn a_connection_that_breaks_in_a_layer_is_tried_again() -> Result<()> {
    let registry = Registry::open()?;
    let image = Image::builder()
        .layers(1, 3_000_000)
        .gzip_level(0)
        .build()?;
    image.push(registry.access(), "team/app:1.0")?;
    let layer = &image.manifests[0].layers[0].blob.digest;
    // All attempts together stay below the mebibyte that counts as progress (registry rule R21).
    let cut = |times| Rule::on(&Method::GET, layer, Action::CutAnswer(100_000)).times(times);
    let sandbox = Sandbox::new()?;
    let gateway = Gateway::before(&registry).rule(cut(usize::MAX)).start()?;
    fails(
        &sandbox,
        &pull("team/app", "1.0", &gateway.address()),
        1,
        &["team/app"],
    )?;
    let gateway = Gateway::before(&registry).rule(cut(2)).start()?;
    let run = sandbox
        .run(&pull("team/app", "1.0", &gateway.address()))?
        .expect_code(0)?;
    assert!(run.stdout.contains("retries 2"), "{}", run.stdout);
    Ok(())
}

#[test]
fn a_cache_that_cannot_be_written_is_told_before_the_first_request() -> Result<()> {
    let registry = Registry::open()?;
    let gateway = Gateway::before(&registry)
        .rule(Rule::on_any("", Action::Delay(Duration::from_millis(1))))
        .start()?;
    let sandbox = Sandbox::new()?;
    // A file where a folder must be stops root too, as permissions do not.
    let file = sandbox
        .file("occupied", "")?
        .join("cache")
        .display()
        .to_string();
    let address = gateway.address();
    let options = [
        &pull("team/app", "1.0", &address)[..],
        &["--cache-dir", &file],
    ]
    .concat();
    fails(&sandbox, &options, 1, &["occupied", "--cache-dir"])?;
    assert!(gateway.exchanges().is_empty());
    Ok(())
}
