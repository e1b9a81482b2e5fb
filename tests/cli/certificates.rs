//! Registries with a CA of their own, and registries that want a certificate of the client.

use std::path::Path;

use crate::commands::{pull, push, with};
use crate::support::{
    Result,
    binary::{Finished, Sandbox},
    images::Image,
    registry::Registry,
    reverse_proxy::ReverseProxy,
    skopeo,
};

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn ca_of(registry: &Registry) -> String {
    text(&registry.ca_file().unwrap())
}

/// The run failed for want of a good client certificate, and says which options give one.
fn assert_wants_certificate(run: &Finished) {
    for words in [
        "client certificate",
        "certSecretRef",
        "--cert-file FILE",
        "--key-file",
    ] {
        assert!(run.stderr.contains(words), "{words} in\n{}", run.stderr);
    }
}

#[test]
fn source_and_destination_may_have_a_ca_each() -> Result<()> {
    let (source, destination) = (Registry::with_tls()?, Registry::with_tls()?);
    let image = Image::builder().layers(2, 50_000).build()?;
    image.push(source.access(), "team/app:1.0")?;
    let (source_url, destination_url) = (source.url(), destination.url());
    let (source_ca, destination_ca) = (ca_of(&source), ca_of(&destination));
    let pull = pull("team/app", "1.0", &source_url);
    let push = push("team/app:1.0", "team/copy", "1.0", &destination_url);
    let sandbox = Sandbox::new()?;
    let refused = |command: &[&str], ca: &str| {
        let run = sandbox
            .run(&with(command, &["--ca-file", ca]))?
            .expect_code(1)?;
        let words = "not signed by a trusted authority";
        assert!(run.stderr.contains(words), "{}", run.stderr);
        Ok(())
    };
    refused(&pull, &destination_ca)?;
    sandbox
        .run(&with(&pull, &["--ca-file", &source_ca]))?
        .expect_code(0)?;
    refused(&push, &source_ca)?;
    sandbox
        .run(&with(&push, &["--ca-file", &destination_ca]))?
        .expect_code(0)?;
    assert_eq!(
        skopeo::digest(destination.access(), "team/copy:1.0")?,
        image.digest
    );
    Ok(())
}

#[test]
fn a_registry_that_wants_a_certificate_gets_the_one_of_the_options() -> Result<()> {
    let registry = Registry::builder().mutual_tls().start()?;
    let foreign = Registry::builder().mutual_tls().start()?;
    let image = Image::builder().layers(2, 50_000).build()?;
    image.push(registry.access(), "team/app:1.0")?;
    let (url, ca) = (registry.url(), ca_of(&registry));
    let sandbox = Sandbox::new()?;
    let commands = [
        pull("team/app", "1.0", &url),
        push("team/app:1.0", "team/copy", "1.0", &url),
    ];
    for command in commands {
        let run = |files: Option<(&Path, &Path)>| {
            let files = files.map(|(certificate, key)| [text(certificate), text(key)]);
            let mut options = vec!["--ca-file", &ca];
            if let Some([certificate, key]) = &files {
                options.extend(["--cert-file", certificate, "--key-file", key]);
            }
            sandbox.run(&with(&command, &options))
        };
        let (foreign_certificate, foreign_key) = foreign.client_files().unwrap();
        let (certificate, key) = registry.client_files().unwrap();
        assert_wants_certificate(&run(None)?.expect_code(1)?);
        let refused = run(Some((&foreign_certificate, &foreign_key)))?.expect_code(1)?;
        assert_wants_certificate(&refused);
        let mixed = run(Some((&certificate, &foreign_key)))?.expect_code(2)?;
        let words = "certificate and key do not belong together";
        assert!(mixed.stderr.contains(words), "{}", mixed.stderr);
        run(Some((&certificate, &key)))?.expect_code(0)?;
    }
    assert_eq!(
        skopeo::digest(registry.access(), "team/copy:1.0")?,
        image.digest
    );
    Ok(())
}

#[test]
fn half_a_client_certificate_is_an_error_of_usage() -> Result<()> {
    let registry = Registry::builder().mutual_tls().start()?;
    let (certificate, key) = registry.client_files().unwrap();
    let (certificate, key, url) = (text(&certificate), text(&key), registry.url());
    for (option, file, missing) in [
        ("--cert-file", &certificate, "--key-file"),
        ("--key-file", &key, "--cert-file"),
    ] {
        let run = Sandbox::new()?
            .run(&with(&pull("team/app", "1.0", &url), &[option, file]))?
            .expect_code(2)?;
        let words = format!("{option} needs {missing} beside it");
        assert!(run.stderr.contains(&words), "{}", run.stderr);
    }
    let swapped = ["--cert-file", &key, "--key-file", &certificate];
    let sandbox = Sandbox::new()?;
    // Both texts hold what is looked for, only in the other order.
    sandbox
        .run(&with(
            &pull("team/app", "1.0", &url),
            &[&swapped[..], &["--ca-file", &ca_of(&registry)]].concat(),
        ))?
        .expect_code(1)?;
    let twice = ["--cert-file", &certificate, "--key-file", &certificate];
    let run = sandbox
        .run(&with(&pull("team/app", "1.0", &url), &twice))?
        .expect_code(2)?;
    let words = "there is no private key in it";
    assert!(run.stderr.contains(words), "{}", run.stderr);
    Ok(())
}

#[test]
fn certificates_are_found_where_podman_keeps_them() -> Result<()> {
    let registry = Registry::builder().mutual_tls().start()?;
    Image::builder()
        .build()?
        .push(registry.access(), "team/app:1.0")?;
    let (url, sandbox) = (registry.url(), Sandbox::new()?);
    let pull = pull("team/app", "1.0", &url);
    sandbox.run(&pull)?.expect_code(1)?;
    let (certificate, key) = registry.client_files().unwrap();
    for (name, file) in [
        ("ca.crt", registry.ca_file().unwrap()),
        ("client.cert", certificate),
        ("client.key", key),
    ] {
        let path = format!(".config/containers/certs.d/{}/{name}", registry.address());
        sandbox.file(&path, std::fs::read(file).unwrap())?;
    }
    sandbox.run(&pull)?.expect_code(0)?;
    Ok(())
}

#[test]
fn a_web_server_that_wants_a_certificate_is_still_a_registry() -> Result<()> {
    let registry = Registry::open()?;
    let (nginx, foreign) = (
        ReverseProxy::before(&registry)
            .wants_certificate()
            .start()?,
        Registry::builder().mutual_tls().start()?,
    );
    let image = Image::builder().build()?;
    image.push(registry.access(), "team/app:1.0")?;
    let ca = text(&nginx.certificate_file("ca.crt"));
    let url = nginx.url();
    let run = |files: Option<[String; 2]>| {
        let mut options = vec!["--ca-file", &ca];
        if let Some([certificate, key]) = &files {
            options.extend(["--cert-file", certificate, "--key-file", key]);
        }
        Sandbox::new()?.run(&with(&pull("team/app", "1.0", &url), &options))
    };
    assert_wants_certificate(&run(None)?.expect_code(1)?);
    let (certificate, key) = foreign.client_files().unwrap();
    assert_wants_certificate(&run(Some([text(&certificate), text(&key)]))?.expect_code(1)?);
    let own = ["client.cert", "client.key"].map(|name| text(&nginx.certificate_file(name)));
    run(Some(own))?.expect_code(0)?;
    Ok(())
}
