//! Logins that a program knows: `docker-credential-*` (registry rules A18, A20).

use std::{fs, os::unix::fs::PermissionsExt};

use serde_json::{Value, json};

use crate::commands::{pull, with};
use crate::support::{
    Context, Result,
    binary::{Finished, Sandbox},
    images::Image,
    registry::Registry,
    skopeo,
};

const USER: &str = "robot";
const PASSWORD: &str = "a-canary-password-0815";

/// A registry with login and an image, and a sandbox whose helper `docker-credential-cloud` runs these lines of shell.
struct World {
    registry: Registry,
    sandbox: Sandbox,
}

impl World {
    fn new(lines: &str) -> Result<Self> {
        let registry = Registry::with_htpasswd(USER, PASSWORD)?;
        Image::builder()
            .build()?
            .push(registry.access(), "team/app:1.0")?;
        let sandbox = Sandbox::new()?;
        let helper = sandbox.file(
            "bin/docker-credential-cloud",
            format!("#!/bin/sh\n{lines}\n"),
        )?;
        fs::set_permissions(&helper, fs::Permissions::from_mode(0o700))
            .context("could not make the helper a program")?;
        let path = std::env::var("PATH").unwrap_or_default();
        let folder = sandbox.path().join("bin");
        let sandbox = sandbox.variable("PATH", &format!("{}:{path}", folder.display()));
        Ok(Self { registry, sandbox })
    }

    fn configure(&self, config: &Value) -> Result<()> {
        let written = self.sandbox.file(".docker/config.json", config.to_string());
        written.map(drop)
    }

    fn pull(&self) -> Result<Finished> {
        let address = self.registry.address();
        let done = self
            .sandbox
            .run(&with(&pull("team/app", "1.0", address), &["-vv"]))?;
        let told = format!("{}{}", done.stdout, done.stderr);
        assert!(!told.contains(PASSWORD), "{told}");
        Ok(done)
    }
}

/// Gives the login for the registry it is asked about, and for no other.
fn knowing(registry: &str) -> String {
    format!(
        r#"[ "$1" = get ] || exit 9
if [ "$(cat)" = "{registry}" ]; then
  echo '{{"ServerURL":"{registry}","Username":"{USER}","Secret":"{PASSWORD}"}}'
else
  echo credentials not found in native keychain; exit 1
fi"#
    )
}

#[test]
fn a_helper_gives_the_login_for_one_registry_or_for_all() -> Result<()> {
    let world = World::new("exit 9")?;
    let address = world.registry.address();
    world.sandbox.file(
        "bin/docker-credential-cloud",
        format!("#!/bin/sh\n{}\n", knowing(address)),
    )?;
    // What the file says beside its helpers is the login of yesterday: robot:wrong
    let stale = json!({address: {"auth": "cm9ib3Q6d3Jvbmc="}});
    for config in [
        json!({"credHelpers": {address: "cloud"}}),
        json!({"credsStore": "cloud"}),
        json!({"credsStore": "cloud", "auths": {address: {}}}),
        json!({"credHelpers": {address: "cloud"}, "credsStore": "none", "auths": stale}),
    ] {
        world.configure(&config)?;
        let done = world.pull()?.expect_code(0)?;
        assert!(
            done.stderr.contains("from docker-credential-cloud, which"),
            "{}",
            done.stderr
        );
    }
    Ok(())
}

#[test]
fn a_helper_that_knows_nothing_leaves_the_login_to_the_file_or_to_nobody() -> Result<()> {
    let world = World::new(&knowing("other.example"))?;
    let address = world.registry.address();
    world.configure(&json!({"credsStore": "cloud"}))?;
    let refused = world.pull()?.expect_code(1)?;
    assert!(
        refused.stderr.contains("asks for a login"),
        "{}",
        refused.stderr
    );
    let auths = json!({address: {"username": USER, "password": PASSWORD}});
    world.configure(&json!({"credsStore": "cloud", "auths": auths}))?;
    world.pull()?.expect_code(0)?;
    Ok(())
}

#[test]
fn a_helper_that_is_missing_or_fails_is_named_before_anything_starts() -> Result<()> {
    let world = World::new(&format!("echo {PASSWORD}; echo {PASSWORD} >&2; exit 1"))?;
    for (name, told) in [
        ("absent", "docker-credential-absent, which is not installed"),
        (
            "cloud",
            "docker-credential-cloud, and it ended with an error",
        ),
        ("../cloud", "its name is not one of"),
    ] {
        world.configure(&json!({"credsStore": name}))?;
        let done = world.pull()?.expect_code(2)?;
        assert!(done.stderr.contains(told), "{}", done.stderr);
    }
    Ok(())
}

#[test]
fn a_login_that_ended_is_asked_for_once_more() -> Result<()> {
    let lines = format!(
        r#"if [ -e asked ]; then secret={PASSWORD}; else secret=ended; fi
echo x >> asked
echo '{{"Username":"{USER}","Secret":"'$secret'"}}'"#
    );
    let world = World::new(&lines)?;
    world.configure(&json!({"credsStore": "cloud"}))?;
    world.pull()?.expect_code(0)?;
    let asked = fs::read_to_string(world.sandbox.path().join("asked"))
        .context("the helper was never asked")?;
    assert_eq!(asked.lines().count(), 2);
    Ok(())
}

#[test]
fn mirrors_of_files_get_their_logins_from_helpers_too() -> Result<()> {
    let world = World::new("exit 9")?;
    let address = world.registry.address();
    world.sandbox.file(
        "bin/docker-credential-cloud",
        format!("#!/bin/sh\n{}\n", knowing(address)),
    )?;
    let mirror = json!({
        "apiVersion": "imagepusher.io/v1alpha1", "kind": "ImageMirror",
        "metadata": {"name": "app", "namespace": "team"},
        "spec": {
            "source": {"registry": {"repository": format!("{address}/team/app"), "tags": ["1.0"],
                "serviceAccountName": "robot", "insecure": true}},
            "destinations": [{"repository": format!("{address}/mirror/app"), "serviceAccountName": "robot",
                "insecure": true}],
        },
    });
    world.sandbox.file("mirror.yaml", mirror.to_string())?;
    let sync = ["sync", "-f", "mirror.yaml", "--docker-auth"];
    world.configure(&json!({"credsStore": "absent"}))?;
    let refused = world.sandbox.run(&sync)?.expect_code(2)?;
    assert!(
        refused.stderr.contains("docker-credential-absent"),
        "{}",
        refused.stderr
    );
    world.configure(&json!({"credsStore": "cloud"}))?;
    world.sandbox.run(&sync)?.expect_code(0)?;
    skopeo::digest(world.registry.access(), "mirror/app:1.0")?;
    Ok(())
}
