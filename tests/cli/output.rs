//! What a command says, to people and to programs.

use serde_json::Value;

use crate::commands::{pull, with};
use crate::support::{
    Result,
    binary::{Sandbox, docker_image_pusher},
    images::Image,
    registry::Registry,
};

#[test]
fn json_output_is_one_object_per_line_and_ends_with_the_figures() -> Result<()> {
    let registry = Registry::open()?;
    let image = Image::builder().layers(3, 100_000).build()?;
    image.push(registry.access(), "team/app:1.0")?;
    let sandbox = Sandbox::new()?;
    let json = ["--output", "json"];
    let run = sandbox
        .run(&with(&pull("team/app", "1.0", registry.address()), &json))?
        .expect_code(0)?;
    let events: Vec<Value> = run
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let result = events.last().unwrap();
    assert_eq!(
        (&result["event"], &result["digest"]),
        (&"result".into(), &image.digest.clone().into())
    );
    assert_eq!(
        (
            &result["totals"]["downloaded"],
            &result["totals"]["retries"]
        ),
        (&4.into(), &0.into())
    );
    assert_eq!(result["totals"]["bytesDownloaded"], image.size());

    let failed = sandbox.run(&with(
        &pull("team/app", "none", registry.address()),
        &["--output", "json"],
    ))?;
    let error: Value =
        serde_json::from_str(failed.expect_code(1)?.stdout.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&error["event"], &error["reason"], &error["class"]),
        (
            &"error".into(),
            &"ManifestUnknown".into(),
            &"NotFound".into()
        )
    );
    Ok(())
}

#[test]
fn a_quiet_command_says_nothing_unless_it_fails() -> Result<()> {
    let registry = Registry::open()?;
    Image::builder()
        .build()?
        .push(registry.access(), "team/app:1.0")?;
    let sandbox = Sandbox::new()?;
    let run = sandbox
        .run(&with(&pull("team/app", "1.0", registry.address()), &["-q"]))?
        .expect_code(0)?;
    assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("", ""));
    let failed = sandbox
        .run(&with(
            &pull("team/app", "none", registry.address()),
            &["-q"],
        ))?
        .expect_code(1)?;
    assert_eq!(failed.stderr.lines().count(), 1, "{}", failed.stderr);
    Ok(())
}

#[test]
fn help_and_version_are_no_errors_and_unknown_commands_are() -> Result<()> {
    let help = docker_image_pusher(&["--help"])?.expect_code(0)?;
    for command in [
        "pull",
        "push",
        "sync",
        "list",
        "clean",
        "controller",
        "crd",
        "completions",
    ] {
        assert!(help.stdout.contains(command), "{command}");
    }
    assert!(
        docker_image_pusher(&["--version"])?
            .expect_code(0)?
            .stdout
            .contains(env!("CARGO_PKG_VERSION"))
    );
    assert!(
        docker_image_pusher(&["pull", "--help"])?
            .expect_code(0)?
            .stdout
            .contains("Examples:")
    );
    docker_image_pusher(&["pul"])?.expect_code(2)?;
    docker_image_pusher(&[])?.expect_code(2)?;
    Ok(())
}

#[test]
fn every_shell_gets_its_completions() -> Result<()> {
    for shell in ["bash", "zsh", "fish"] {
        let run = docker_image_pusher(&["completions", shell])?.expect_code(0)?;
        assert!(
            run.stdout.contains("docker-image-pusher") && run.stdout.contains("skip-existing"),
            "{shell}"
        );
    }
    Ok(())
}

#[test]
fn the_printed_crd_is_the_committed_one() -> Result<()> {
    let committed = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/crds/imagemirrors.yaml"
    ))
    .unwrap();
    assert_eq!(
        docker_image_pusher(&["crd"])?.expect_code(0)?.stdout,
        committed
    );
    Ok(())
}
