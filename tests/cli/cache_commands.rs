//! `list` and `clean` on a cache that `pull` has filled.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::Duration,
};

use crate::commands::{pull, push};
use crate::support::{Context, Result, binary::Sandbox, images::Image, registry::Registry, skopeo};

/// A sandbox whose cache holds `team/app:1` and `team/app:2`, which share a layer.
fn with_two_images() -> Result<(Sandbox, Registry)> {
    let registry = Registry::open()?;
    let sandbox = Sandbox::new()?;
    for (tag, layers) in [("1", &[40_000, 50_000][..]), ("2", &[40_000, 60_000])] {
        let image = Image::builder().seed(7).layer_sizes(layers).build()?;
        image.push(registry.access(), &format!("team/app:{tag}"))?;
        sandbox
            .run(&pull("team/app", tag, registry.address()))?
            .expect_code(0)?;
    }
    Ok((sandbox, registry))
}

fn blobs(sandbox: &Sandbox) -> usize {
    std::fs::read_dir(sandbox.path().join(".cache/blobs/sha256")).map_or(0, Iterator::count)
}

#[test]
fn list_shows_name_digest_platform_and_origin() -> Result<()> {
    let (sandbox, registry) = with_two_images()?;
    let listed = sandbox.run(&["list"])?.expect_code(0)?;
    let lines: Vec<_> = listed.stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{}", listed.stdout);
    let digest = skopeo::digest(registry.access(), "team/app:1")?;
    for part in [
        "team/app:1",
        &digest[..19],
        "linux/amd64",
        registry.address(),
    ] {
        assert!(lines[1].contains(part), "{part} is not in {}", lines[1]);
    }
    Ok(())
}

#[test]
fn an_empty_or_missing_cache_is_listed_and_not_created() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let listed = sandbox.run(&["list"])?.expect_code(0)?;
    assert!(listed.stdout.contains("no images"), "{}", listed.stdout);
    assert!(!sandbox.path().join(".cache").exists());
    Ok(())
}

#[test]
fn clean_of_one_tag_keeps_what_the_other_needs() -> Result<()> {
    let (sandbox, registry) = with_two_images()?;
    assert_eq!(blobs(&sandbox), 5);
    let dry = sandbox
        .run(&["clean", "-r", "team/app", "-t", "1", "--dry-run"])?
        .expect_code(0)?;
    assert!(
        dry.stdout.contains("would remove 1 images, 2 blobs"),
        "{}",
        dry.stdout
    );
    assert_eq!(blobs(&sandbox), 5);
    sandbox
        .run(&["clean", "-r", "team/app", "-t", "1"])?
        .expect_code(0)?;
    assert_eq!(blobs(&sandbox), 3);
    sandbox
        .run(&push("team/app:2", "left", "2", registry.address()))?
        .expect_code(0)?;
    let gone = sandbox
        .run(&push("team/app:1", "left", "1", registry.address()))?
        .expect_code(1)?;
    assert!(
        gone.stderr.contains("team/app:1 is not in the cache"),
        "{}",
        gone.stderr
    );
    Ok(())
}

#[test]
fn clean_keeps_what_is_young_enough_and_removes_all_otherwise() -> Result<()> {
    let (sandbox, _registry) = with_two_images()?;
    sandbox
        .run(&["clean", "--keep-within", "1h"])?
        .expect_code(0)?;
    assert_eq!(blobs(&sandbox), 5);
    let cleaned = sandbox.run(&["clean"])?.expect_code(0)?;
    assert!(
        cleaned.stdout.contains("removed 2 images, 5 blobs"),
        "{}",
        cleaned.stdout
    );
    assert_eq!(blobs(&sandbox), 0);
    Ok(())
}

#[test]
fn an_index_that_was_lost_or_torn_is_built_again() -> Result<()> {
    let (sandbox, _registry) = with_two_images()?;
    let before = sandbox
        .run(&["list"])?
        .expect_code(0)?
        .stdout
        .lines()
        .count();
    for content in [None, Some("{\"team/app/1\": {\"repo")] {
        let file = sandbox.path().join(".cache/index.json");
        match content {
            None => std::fs::remove_file(&file).unwrap(),
            Some(content) => std::fs::write(&file, content).unwrap(),
        }
        let listed = sandbox.run(&["list"])?.expect_code(0)?;
        assert_eq!(listed.stdout.lines().count(), before, "{}", listed.stdout);
    }
    Ok(())
}

#[test]
fn what_an_archive_brought_before_is_looked_for_when_nobody_cleans() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let archive = sandbox.path().join("app.tar");
    let image = Image::builder().layers(2, 100_000).build()?;
    image.save_docker_archive(&archive, "team/app:1")?;
    let extract = ["extract", "-f", archive.to_str().unwrap()];
    sandbox.run(&extract)?.expect_code(0)?;

    // As a `clean` of another process does.
    let cache = sandbox.path().join(".cache");
    let mut clean = Command::new("flock")
        .arg(cache.join(".locks/store"))
        .args(["sh", "-c", "echo locked; read end"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("could not start flock")?;
    let mut line = String::new();
    BufReader::new(clean.stdout.take().unwrap())
        .read_line(&mut line)
        .context("flock said nothing")?;
    let waiting = sandbox.start(&extract)?;
    std::thread::sleep(Duration::from_millis(500));
    std::fs::remove_dir_all(cache.join("blobs")).context("could not clean")?;
    drop(clean.stdin.take());
    clean.wait().context("flock does not end")?;

    waiting.wait()?.expect_code(0)?;
    for layer in &image.manifests[0].layers {
        let hex = layer.diff_id.replace("sha256:", "blobs/sha256/");
        assert!(cache.join(&hex).exists(), "{hex} is not there");
    }
    Ok(())
}
