//! Getting in: certificates, logins, tokens.

use crate::commands::{pull, push, with};
use crate::support::{
    Result,
    binary::{Finished, Sandbox},
    gateway::{Bearer, Gateway},
    images::Image,
    registry::Registry,
    skopeo,
    token_server::TokenAuth,
};

const USER: &str = "pusher";
const PASSWORD: &str = "a-canary-password-0815";

fn pull_from<'a>(registry: &'a str, options: &[&'a str]) -> Vec<&'a str> {
    with(&pull("team/app", "1.0", registry), options)
}

fn push_to<'a>(registry: &'a str, options: &[&'a str]) -> Vec<&'a str> {
    with(&push("team/app:1.0", "team/copy", "1.0", registry), options)
}

#[test]
fn a_registry_with_a_private_ca_is_trusted_by_its_file_or_not_verified_at_all() -> Result<()> {
    let registry = Registry::with_tls()?;
    Image::builder()
        .build()?
        .push(registry.access(), "team/app:1.0")?;
    let url = registry.url();
    let ca = registry.ca_file().unwrap().display().to_string();
    let sandbox = Sandbox::new()?;
    let refused = sandbox.run(&pull_from(&url, &[]))?.expect_code(1)?;
    assert!(
        refused.stderr.contains("certificate") && refused.stderr.contains("--ca-file"),
        "{}",
        refused.stderr
    );
    sandbox
        .run(&pull_from(&url, &["--ca-file", &ca]))?
        .expect_code(0)?;
    sandbox
        .run(&push_to(&url, &["--ca-file", &ca]))?
        .expect_code(0)?;
    sandbox.run(&["clean"])?.expect_code(0)?;
    sandbox
        .run(&pull_from(&url, &["--skip-tls"]))?
        .expect_code(0)?;
    assert_eq!(
        skopeo::digest(registry.access(), "team/copy:1.0")?,
        skopeo::digest(registry.access(), "team/app:1.0")?
    );
    Ok(())
}

#[test]
fn a_password_is_taken_from_standard_input_a_variable_or_an_option() -> Result<()> {
    let registry = Registry::with_htpasswd(USER, PASSWORD)?;
    Image::builder()
        .build()?
        .push(registry.access(), "team/app:1.0")?;
    let from = registry.address();
    let sandbox = Sandbox::new()?;
    let file = sandbox.file("password", format!("{PASSWORD}\n"))?;
    sandbox
        .run_with_stdin(&pull_from(from, &["-u", USER, "--password-stdin"]), &file)?
        .expect_code(0)?;
    let typed = sandbox
        .run(&pull_from(from, &["-u", USER, "-p", PASSWORD]))?
        .expect_code(0)?;
    assert!(
        typed.stderr.contains("--password-stdin") && typed.stderr.contains("IMAGE_PUSHER_PASSWORD"),
        "{}",
        typed.stderr
    );
    let sandbox = sandbox.variable("IMAGE_PUSHER_PASSWORD", PASSWORD);
    let by_variable = sandbox
        .run(&pull_from(from, &["-u", USER]))?
        .expect_code(0)?;
    assert!(
        !by_variable.stderr.contains("warning"),
        "{}",
        by_variable.stderr
    );
    Ok(())
}

#[test]
fn logins_of_docker_and_podman_are_used() -> Result<()> {
    let registry = Registry::with_htpasswd("user", "s3cret")?;
    Image::builder()
        .build()?
        .push(registry.access(), "team/app:1.0")?;
    // dXNlcjpzM2NyZXQ= is user:s3cret, dXNlcjp3cm9uZw== is user:wrong
    let docker = format!(
        r#"{{"auths": {{"{}": {{"auth": "dXNlcjpzM2NyZXQ="}}}}}}"#,
        registry.address()
    );
    let podman = format!(
        r#"{{"auths": {{"{0}": {{"auth": "dXNlcjp3cm9uZw=="}}, "{0}/team": {{"auth": "dXNlcjpzM2NyZXQ="}}}}}}"#,
        registry.address()
    );
    for (file, content) in [
        (".docker/config.json", &docker),
        (".config/containers/auth.json", &podman),
    ] {
        let sandbox = Sandbox::new()?;
        sandbox
            .run(&pull_from(registry.address(), &[]))?
            .expect_code(1)?;
        sandbox.file(file, content)?;
        sandbox
            .run(&pull_from(registry.address(), &[]))?
            .expect_code(0)?;
    }
    Ok(())
}

#[test]
fn a_registry_with_a_token_server_is_pulled_from_and_pushed_to() -> Result<()> {
    let registry = Registry::with_token_auth(TokenAuth::new(USER, PASSWORD))?;
    let image = Image::builder().layers(3, 50_000).build()?;
    image.push(registry.access(), "team/app:1.0")?;
    let sandbox = Sandbox::new()?.variable("IMAGE_PUSHER_PASSWORD", PASSWORD);
    sandbox
        .run(&pull_from(registry.address(), &["-u", USER]))?
        .expect_code(0)?;
    sandbox
        .run(&push_to(registry.address(), &["-u", USER]))?
        .expect_code(0)?;
    assert_eq!(
        skopeo::digest(registry.access(), "team/copy:1.0")?,
        image.digest
    );
    Ok(())
}

#[test]
fn an_anonymous_token_is_enough_where_the_registry_says_so() -> Result<()> {
    let registry = Registry::with_token_auth(TokenAuth::new(USER, PASSWORD).anonymous_pull())?;
    Image::builder()
        .build()?
        .push(registry.access(), "team/app:1.0")?;
    let sandbox = Sandbox::new()?;
    sandbox
        .run(&pull_from(registry.address(), &[]))?
        .expect_code(0)?;
    let refused = sandbox
        .run(&push_to(registry.address(), &[]))?
        .expect_code(1)?;
    assert!(refused.stderr.contains("team/copy"), "{}", refused.stderr);
    Ok(())
}

#[test]
fn a_token_that_expires_in_the_middle_is_replaced() -> Result<()> {
    let registry = Registry::open()?;
    let image = Image::builder().layers(7, 50_000).build()?;
    image.push(registry.access(), "team/app:1.0")?;
    // As many uses as requests are ever under way at once: a fresh token is never used up before its first use.
    let bearer = Bearer::uses_per_token(8).credentials(USER, PASSWORD);
    let gateway = Gateway::before(&registry).bearer(bearer).start()?;
    let address = gateway.address();
    let sandbox = Sandbox::new()?.variable("IMAGE_PUSHER_PASSWORD", PASSWORD);
    let tokens = || {
        gateway
            .exchanges()
            .iter()
            .filter(|exchange| exchange.path == "/token")
            .count()
    };
    sandbox
        .run(&pull_from(&address, &["-u", USER]))?
        .expect_code(0)?;
    assert!(tokens() >= 2, "{} tokens", tokens());
    gateway.forget();
    sandbox
        .run(&push_to(&address, &["-u", USER]))?
        .expect_code(0)?;
    assert!(tokens() >= 3, "{} tokens", tokens());
    assert_eq!(
        skopeo::digest(registry.access(), "team/copy:1.0")?,
        image.digest
    );
    Ok(())
}

/// Everything a run said, which must hold no credential: neither the password, plain or as `user:password` in base64, nor a
/// token, whose signed form begins like every JSON in base64.
fn assert_no_secret(run: &Finished) {
    let said = format!("{}{}", run.stdout, run.stderr);
    for secret in [
        PASSWORD,
        "cHVzaGVyOmEtY2FuYXJ5LXBhc3N3b3JkLTA4MTU",
        "eyJ",
        "token=",
        "_state=",
    ] {
        assert!(
            !said.contains(secret),
            "{secret} in\n{}\n{said}",
            run.command
        );
    }
}

#[test]
fn no_output_holds_a_password_or_a_token_whatever_happens() -> Result<()> {
    let basic = Registry::with_htpasswd(USER, PASSWORD)?;
    let bearer = Registry::with_token_auth(TokenAuth::new(USER, PASSWORD))?;
    let image = Image::builder().build()?;
    for registry in [&basic, &bearer] {
        image.push(registry.access(), "team/app:1.0")?;
    }
    let wrong = Registry::with_htpasswd(USER, "another")?;
    let wrong_bearer = Registry::with_token_auth(TokenAuth::new(USER, "another"))?;
    let sandbox = Sandbox::new()?.variable("IMAGE_PUSHER_PASSWORD", PASSWORD);
    for format in ["text", "json"] {
        let options = [
            "-u",
            USER,
            "-vv",
            "--output",
            format,
            "--log-format",
            format,
        ];
        for (registry, code) in [(&basic, 0), (&bearer, 0), (&wrong, 1), (&wrong_bearer, 1)] {
            let pulled = sandbox
                .run(&pull_from(registry.address(), &options))?
                .expect_code(code)?;
            assert_no_secret(&pulled);
            let pushed = sandbox
                .run(&push_to(registry.address(), &options))?
                .expect_code(code)?;
            assert_no_secret(&pushed);
        }
    }
    Ok(())
}

#[test]
fn a_login_file_that_is_named_must_exist() -> Result<()> {
    let sandbox = Sandbox::new()?.variable("REGISTRY_AUTH_FILE", "/no/such/auth.json");
    let run = sandbox
        .run(&pull_from("localhost:1", &[]))?
        .expect_code(2)?;
    assert!(run.stderr.contains("/no/such/auth.json"), "{}", run.stderr);
    Ok(())
}
