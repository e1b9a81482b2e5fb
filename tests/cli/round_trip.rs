//! What goes in comes out: images put into one registry by skopeo arrive in another with the same digests.

use std::{collections::BTreeSet, path::Path};

use serde_json::{Value, json};

use crate::commands::{pull, push, with};
use crate::support::{Result, binary::Sandbox, images::Image, registry::Registry, skopeo};

const USER: &str = "pusher";
const PASSWORD: &str = "correct horse battery staple";

fn files_below(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else {
                found.push(
                    entry
                        .path()
                        .strip_prefix(folder)
                        .unwrap()
                        .display()
                        .to_string(),
                );
            }
        }
    }
    found.sort();
    found
}

#[test]
fn an_image_with_several_layers_arrives_with_the_same_digest() -> Result<()> {
    let (source, destination) = (Registry::open()?, Registry::with_htpasswd(USER, PASSWORD)?);
    let image = Image::builder().layers(5, 300_000).build()?;
    image.push(source.access(), "team/app:1.0")?;
    let sandbox = Sandbox::new()?;
    let pulled = sandbox
        .run(&pull("team/app", "1.0", source.address()))?
        .expect_code(0)?;
    assert!(pulled.stdout.contains(&image.digest), "{}", pulled.stdout);
    assert!(
        pulled.stdout.contains("blobs copied 6, existing 0"),
        "{}",
        pulled.stdout
    );
    let to = destination.address();
    let sandbox = sandbox.variable("IMAGE_PUSHER_PASSWORD", PASSWORD);
    sandbox
        .run(&with(
            &push("team/app:1.0", "mirror/app", "copy", to),
            &["-u", USER],
        ))?
        .expect_code(0)?;
    assert_eq!(
        skopeo::digest(destination.access(), "mirror/app:copy")?,
        image.digest
    );
    // skopeo reads and checks every blob.
    skopeo::download(
        destination.access(),
        "mirror/app:copy",
        &sandbox.path().join("copy"),
    )
}

#[test]
fn an_image_for_several_platforms_travels_whole() -> Result<()> {
    let (source, destination) = (Registry::open()?, Registry::open()?);
    let image = Image::builder()
        .layers(2, 50_000)
        .platforms(&["linux/amd64", "linux/arm64/v8"])
        .build()?;
    image.push(source.access(), "team/app:1.0")?;
    let sandbox = Sandbox::new()?;
    sandbox
        .run(&pull("team/app", "1.0", source.address()))?
        .expect_code(0)?;
    sandbox
        .run(&push(
            "team/app:1.0",
            "team/app",
            "1.0",
            destination.address(),
        ))?
        .expect_code(0)?;
    assert_eq!(
        skopeo::digest(destination.access(), "team/app:1.0")?,
        image.digest
    );
    skopeo::download(
        destination.access(),
        "team/app:1.0",
        &sandbox.path().join("copy"),
    )?;

    let listed = sandbox.run(&["list", "--output", "json"])?.expect_code(0)?;
    let listed: Value = serde_json::from_str(&listed.stdout).unwrap();
    let images = listed["images"].as_array().unwrap();
    assert_eq!(
        images.len(),
        1,
        "children of an index are no images: {listed}"
    );
    assert_eq!(
        (&images[0]["name"], &images[0]["digest"]),
        (&json!("team/app:1.0"), &json!(image.digest))
    );
    assert_eq!(images[0]["platforms"].as_array().unwrap().len(), 2);

    sandbox.run(&["clean"])?.expect_code(0)?;
    let left = files_below(&sandbox.path().join(".cache"));
    assert!(
        !left
            .iter()
            .any(|file| file.starts_with("blobs/") || file.starts_with("manifests/")),
        "{left:?}"
    );
    Ok(())
}

#[test]
fn dockers_media_types_are_kept() -> Result<()> {
    let (source, destination) = (Registry::open()?, Registry::open()?);
    let image = Image::builder().layers(2, 50_000).build()?;
    image.push_with(source.access(), "team/app:docker", &["--format", "v2s2"])?;
    let digest = skopeo::digest(source.access(), "team/app:docker")?;
    assert_ne!(digest, image.digest);
    let sandbox = Sandbox::new()?;
    sandbox
        .run(&pull("team/app", "docker", source.address()))?
        .expect_code(0)?;
    sandbox
        .run(&push("team/app:docker", "a", "b", destination.address()))?
        .expect_code(0)?;
    assert_eq!(skopeo::digest(destination.access(), "a:b")?, digest);
    Ok(())
}

#[test]
fn an_image_can_be_pulled_and_pushed_by_digest() -> Result<()> {
    let (source, destination) = (Registry::open()?, Registry::open()?);
    let image = Image::builder().build()?;
    image.push(source.access(), "team/app:1.0")?;
    let sandbox = Sandbox::new()?;
    let digest = image.digest.as_str();
    sandbox
        .run(&pull("team/app", digest, source.address()))?
        .expect_code(0)?;
    let name = format!("team/app@{digest}");
    sandbox
        .run(&push(&name, "team/app", digest, destination.address()))?
        .expect_code(0)?;
    assert_eq!(skopeo::digest(destination.access(), &name)?, digest);
    Ok(())
}

#[test]
fn the_host_of_the_repository_is_the_registry_where_none_is_named() -> Result<()> {
    let source = Registry::open()?;
    Image::builder()
        .build()?
        .push(source.access(), "team/app:1.0")?;
    let sandbox = Sandbox::new()?;
    let repository = format!("{}/team/app", source.address());
    sandbox
        .run(&["pull", "-r", &repository, "-t", "1.0"])?
        .expect_code(0)?;
    let target = format!("{}/team/copy", source.address());
    sandbox
        .run(&[
            "push",
            "-s",
            &format!("{repository}:1.0"),
            "-r",
            &target,
            "-t",
            "1.0",
        ])?
        .expect_code(0)?;
    assert_eq!(
        skopeo::digest(source.access(), "team/copy:1.0")?,
        skopeo::digest(source.access(), "team/app:1.0")?
    );
    Ok(())
}

#[test]
fn the_index_of_the_cache_has_the_published_format() -> Result<()> {
    let source = Registry::open()?;
    let image = Image::builder().layers(2, 50_000).build()?;
    image.push(source.access(), "team/app:1.0")?;
    let sandbox = Sandbox::new()?;
    sandbox
        .run(&pull("team/app", "1.0", source.address()))?
        .expect_code(0)?;
    let cache = sandbox.path().join(".cache");
    let index: Value =
        serde_json::from_slice(&std::fs::read(cache.join("index.json")).unwrap()).unwrap();
    let keys: Vec<_> = index.as_object().unwrap().keys().cloned().collect();
    assert!(keys.contains(&"team/app/1.0".to_owned()), "{keys:?}");
    let entry = &index["team/app/1.0"];
    let manifest = &image.manifests[0];
    assert_eq!(entry["repository"], "team/app");
    assert_eq!(entry["reference"], "1.0");
    assert_eq!(entry["manifest_path"], "manifests/team/app/1.0");
    assert_eq!(entry["config_digest"], json!(manifest.config.digest));
    assert_eq!(
        skopeo::sha256(&std::fs::read(cache.join("manifests/team/app/1.0")).unwrap()),
        image.digest
    );
    let blobs = entry["blobs"].as_object().unwrap();
    let expected: BTreeSet<_> = image.blobs().into_iter().map(|blob| blob.digest).collect();
    assert_eq!(blobs.keys().cloned().collect::<BTreeSet<_>>(), expected);
    let seed_fields = [
        "digest",
        "size",
        "path",
        "is_config",
        "compressed",
        "media_type",
    ];
    for (digest, blob) in blobs {
        let hex = digest.strip_prefix("sha256:").unwrap();
        for field in seed_fields {
            assert!(blob.get(field).is_some(), "{digest} has no {field}");
        }
        let is_config = *digest == manifest.config.digest;
        assert_eq!(blob["digest"], json!(digest));
        assert_eq!(blob["path"], json!(format!("blobs/sha256/{hex}")));
        assert_eq!(blob["is_config"], json!(is_config));
        assert_eq!(
            blob["compressed"],
            json!(!is_config),
            "layers are gzip, the config is not"
        );
        let bytes = std::fs::read(cache.join("blobs/sha256").join(hex)).unwrap();
        assert_eq!(blob["size"], json!(bytes.len()));
        assert_eq!(skopeo::sha256(&bytes), *digest);
    }
    assert_eq!(
        blobs[&manifest.config.digest]["media_type"],
        "application/vnd.oci.image.config.v1+json"
    );
    Ok(())
}

#[test]
fn a_second_pull_fetches_nothing_and_a_moved_tag_is_followed() -> Result<()> {
    let source = Registry::open()?;
    let (first, second) = (Image::builder().build()?, Image::builder().build()?);
    first.push(source.access(), "team/app:latest")?;
    let sandbox = Sandbox::new()?;
    let pull = pull("team/app", "latest", source.address());
    sandbox.run(&pull)?.expect_code(0)?;
    let fetched = (
        source.count("GET", "/blobs/"),
        source.count("GET", "/manifests/"),
    );
    let again = sandbox.run(&pull)?.expect_code(0)?;
    assert!(
        again.stdout.contains("blobs copied 0, existing 2"),
        "{}",
        again.stdout
    );
    assert_eq!(
        (
            source.count("GET", "/blobs/"),
            source.count("GET", "/manifests/")
        ),
        fetched
    );
    second.push(source.access(), "team/app:latest")?;
    assert!(
        sandbox
            .run(&pull)?
            .expect_code(0)?
            .stdout
            .contains(&second.digest)
    );
    Ok(())
}

#[test]
fn replacing_an_image_from_another_registry_is_said_aloud() -> Result<()> {
    let (first, second) = (Registry::open()?, Registry::open()?);
    Image::builder()
        .build()?
        .push(first.access(), "team/app:1.0")?;
    Image::builder()
        .build()?
        .push(second.access(), "team/app:1.0")?;
    let sandbox = Sandbox::new()?;
    sandbox
        .run(&pull("team/app", "1.0", first.address()))?
        .expect_code(0)?;
    let replaced = sandbox
        .run(&pull("team/app", "1.0", second.address()))?
        .expect_code(0)?;
    assert!(
        replaced.stderr.contains(first.address()) && replaced.stderr.contains("warning"),
        "{}",
        replaced.stderr
    );
    Ok(())
}
