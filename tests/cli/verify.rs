//! `verify` on a cache that `pull` has filled and that something has happened to.

use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::commands::{pull, push, with};
use crate::support::{Result, binary::Sandbox, images::Image, registry::Registry, skopeo};

/// A sandbox whose cache holds `team/app:1`, an image for two platforms.
fn with_an_image() -> Result<(Sandbox, Registry)> {
    let registry = Registry::open()?;
    let sandbox = Sandbox::new()?;
    let image = Image::builder()
        .seed(11)
        .layer_sizes(&[40_000, 50_000])
        .platforms(&["linux/amd64", "linux/arm64"])
        .build()?;
    image.push(registry.access(), "team/app:1")?;
    pull_it(&sandbox, &registry)?;
    Ok((sandbox, registry))
}

fn pull_it(sandbox: &Sandbox, registry: &Registry) -> Result<()> {
    sandbox
        .run(&pull("team/app", "1", registry.address()))?
        .expect_code(0)?;
    Ok(())
}

fn files_in(sandbox: &Sandbox, folder: &str) -> Vec<PathBuf> {
    let folder = sandbox.path().join(".cache").join(folder);
    let mut found: Vec<_> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path())
        .collect();
    found.sort();
    found
}

fn largest_blob(sandbox: &Sandbox) -> PathBuf {
    let blobs = files_in(sandbox, "blobs/sha256").into_iter();
    let size = |path: &PathBuf| path.metadata().unwrap().len();
    blobs.max_by_key(size).unwrap()
}

fn flip(path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let file = std::fs::File::options();
    let file = file.clone().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 100).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 100).unwrap();
}

#[test]
fn a_healthy_cache_is_verified_with_exit_code_0() -> Result<()> {
    let (sandbox, _registry) = with_an_image()?;
    let done = sandbox.run(&["verify"])?.expect_code(0)?;
    assert!(done.stdout.contains("3 manifests"), "{}", done.stdout);
    assert!(done.stdout.contains(": 0 faults"), "{}", done.stdout);
    assert!(!sandbox.path().join(".cache/.quarantine").exists());
    Ok(())
}

#[test]
fn a_cache_that_is_not_there_has_no_faults_and_is_not_created() -> Result<()> {
    let sandbox = Sandbox::new()?;
    sandbox.run(&["verify"])?.expect_code(0)?;
    assert!(!sandbox.path().join(".cache").exists());
    let unknown = sandbox
        .run(&["verify", "-r", "team/app", "-t", "1"])?
        .expect_code(1)?;
    assert!(
        unknown.stderr.contains("holds no image team/app:1"),
        "{}",
        unknown.stderr
    );
    Ok(())
}

#[test]
fn a_flipped_bit_is_told_moved_away_and_fetched_again_by_the_next_pull() -> Result<()> {
    let (sandbox, registry) = with_an_image()?;
    let blob = largest_blob(&sandbox);
    flip(&blob);
    let dry = sandbox
        .run(&with(&["verify", "--dry-run"], &["--output", "json"]))?
        .expect_code(1)?;
    let lines: Vec<Value> = dry
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let result = lines.iter().find(|line| line["event"] == "result").unwrap();
    assert_eq!(result["version"], 1);
    let fault = &result["faults"][0];
    assert_eq!(fault["problem"], "WrongContent");
    assert_eq!(fault["images"][0], "team/app:1");
    assert_eq!(fault["quarantined"], false);
    assert!(blob.ends_with(fault["path"].as_str().unwrap().rsplit('/').next().unwrap()));
    assert_eq!(lines.last().unwrap()["reason"], "CacheDamaged");
    assert!(blob.exists(), "a dry run moves nothing");

    let found = sandbox.run(&["verify", "-r", "team/app"])?.expect_code(1)?;
    assert!(
        found.stderr.contains("1 fault in the cache"),
        "{}",
        found.stderr
    );
    assert!(found.stderr.contains("pull the images"), "{}", found.stderr);
    assert!(!blob.exists());
    assert_eq!(files_in(&sandbox, ".quarantine").len(), 1);

    pull_it(&sandbox, &registry)?;
    sandbox.run(&["verify"])?.expect_code(0)?;
    sandbox
        .run(&push("team/app:1", "mended", "1", registry.address()))?
        .expect_code(0)?;
    assert_eq!(
        skopeo::digest(registry.access(), "mended:1")?,
        skopeo::digest(registry.access(), "team/app:1")?
    );
    Ok(())
}

#[test]
fn a_wrong_manifest_of_one_platform_is_fetched_again_by_the_next_pull() -> Result<()> {
    let (sandbox, registry) = with_an_image()?;
    let children = files_in(&sandbox, "manifests/team/app");
    let child = children
        .iter()
        .find(|path| path.to_string_lossy().contains("sha256:"))
        .unwrap();
    flip(child);
    let found = sandbox.run(&["verify"])?.expect_code(1)?;
    assert!(found.stdout.contains("WrongManifest"), "{}", found.stdout);
    assert!(!child.exists());
    pull_it(&sandbox, &registry)?;
    assert!(child.exists(), "its blobs were there, itself was not");
    sandbox.run(&["verify"])?.expect_code(0)?;
    Ok(())
}

#[test]
fn a_symlink_in_place_of_a_blob_is_moved_and_what_it_names_stays() -> Result<()> {
    let (sandbox, registry) = with_an_image()?;
    let blob = largest_blob(&sandbox);
    let aside = sandbox.path().join("aside");
    std::fs::rename(&blob, &aside).unwrap();
    symlink(&aside, &blob).unwrap();
    let found = sandbox.run(&["verify"])?.expect_code(1)?;
    assert!(found.stdout.contains("NotAFile"), "{}", found.stdout);
    assert!(blob.symlink_metadata().is_err());
    assert!(aside.exists());
    pull_it(&sandbox, &registry)?;
    sandbox.run(&["verify"])?.expect_code(0)?;
    sandbox.run(&["clean"])?.expect_code(0)?;
    assert_eq!(files_in(&sandbox, ".quarantine").len(), 0);
    assert!(aside.exists());
    Ok(())
}
