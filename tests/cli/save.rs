//! `save`: what is in the cache as one archive, read back by this program and by others.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::Value;

use crate::commands::{pull, with};
use crate::support::{
    Context, Result,
    binary::{Sandbox, program},
    images::Image,
    podman::Podman,
    process::{poll, run},
    registry::Registry,
    skopeo::{self, End},
};

const PLATFORMS: [&str; 2] = ["linux/amd64", "linux/arm64/v8"];

/// A sandbox whose cache holds `team/app:1` for two platforms and `team/tool:1` for one.
pub(crate) struct World {
    pub(crate) sandbox: Sandbox,
    pub(crate) app: Image,
    pub(crate) tool: Image,
}

impl World {
    pub(crate) fn new() -> Result<Self> {
        let registry = Registry::open()?;
        let sandbox = Sandbox::new()?;
        let app = Image::builder()
            .layers(2, 300_000)
            .platforms(&PLATFORMS)
            .build()?;
        let tool = Image::builder().layers(2, 50_000).build()?;
        for (image, repository) in [(&app, "team/app"), (&tool, "team/tool")] {
            image.push(registry.access(), &format!("{repository}:1"))?;
            sandbox
                .run(&pull(repository, "1", registry.address()))?
                .expect_code(0)?;
        }
        Ok(Self { sandbox, app, tool })
    }

    /// A path in the sandbox.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.sandbox.path().join(name)
    }

    /// Saves images and returns the report.
    pub(crate) fn save(&self, names: &[&str], file: &str, options: &[&str]) -> Result<Value> {
        let mut command = vec!["save", "-f", file, "--output", "json"];
        for name in names {
            command.extend(["-s", name]);
        }
        let saved = self.sandbox.run(&with(&command, options))?.expect_code(0)?;
        let last = saved.stdout.lines().last().context("no result")?;
        serde_json::from_str(last).context("the result is no JSON")
    }

    /// That there is no file whose name contains this.
    pub(crate) fn assert_no_file(&self, name: &str) {
        let left: Vec<_> = fs::read_dir(self.sandbox.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|file| file.contains(name))
            .collect();
        assert_eq!(left, Vec::<String>::new());
    }
}

/// The digest of what an OCI layout names first.
pub(crate) fn layout_digest(folder: &Path) -> Result<String> {
    let bytes = fs::read(folder.join("index.json")).context("the copy has no index")?;
    let index: Value = serde_json::from_slice(&bytes).context("the index is no JSON")?;
    let digest = index["manifests"][0]["digest"].as_str();
    Ok(digest.context("the index names nothing")?.to_owned())
}

fn members(file: &Path) -> Result<Vec<String>> {
    let listed = run(Command::new("tar").arg("-tvf").arg(file).arg("--full-time"))?;
    Ok(String::from_utf8_lossy(&listed)
        .lines()
        .map(str::to_owned)
        .collect())
}

#[test]
fn an_archive_of_several_images_is_read_by_skopeo_with_the_same_digests() -> Result<()> {
    let world = World::new()?;
    let report = world.save(&["team/tool:1", "team/app:1"], "images.tar", &[])?;
    assert_eq!(report["version"], 1);
    assert_eq!(report["format"], "oci");
    assert_eq!(report["images"][0]["name"], "docker.io/team/app:1");
    assert_eq!(report["images"][0]["digest"], world.app.digest);
    let file = world.path("images.tar");
    assert_eq!(report["bytes"], fs::metadata(&file).unwrap().len());
    // Blobs, manifests and the index, each once.
    let expected = world.app.blobs().len() + world.tool.blobs().len() + 2 + 1 + 1;
    assert_eq!(report["blobs"].as_array().map(Vec::len), Some(expected));
    for (name, image) in [
        ("docker.io/team/app:1", &world.app),
        ("docker.io/team/tool:1", &world.tool),
    ] {
        let copy = world.path("copy");
        skopeo::copy(
            End::Local(&format!("oci-archive:{}:{name}", file.display())),
            End::Local(&format!("oci:{}:copy", copy.display())),
        )?;
        assert_eq!(layout_digest(&copy)?, image.digest);
        fs::remove_dir_all(copy).unwrap();
    }
    Ok(())
}

#[test]
fn extract_finds_the_same_digests_in_the_file_and_in_a_stream() -> Result<()> {
    let world = World::new()?;
    world.save(&["team/app:1", "team/tool:1"], "images.tar", &[])?;
    for stream in [false, true] {
        let other = Sandbox::new()?;
        let file = world.path("images.tar");
        let extracted = if stream {
            other.run_with_stdin(&["extract", "-f", "-"], &file)?
        } else {
            other.run(&["extract", "-f", file.to_str().unwrap()])?
        }
        .expect_code(0)?;
        for (name, image) in [
            ("docker.io/team/app:1", &world.app),
            ("docker.io/team/tool:1", &world.tool),
        ] {
            let told = format!("extracted {name} {}", image.digest);
            assert!(extracted.stdout.contains(&told), "{}", extracted.stdout);
        }
        // And saved from there, the same bytes.
        other
            .run(&[
                "save",
                "-f",
                "again.tar",
                "-s",
                "docker.io/team/tool:1",
                "-s",
                "docker.io/team/app:1",
            ])?
            .expect_code(0)?;
        let again = fs::read(other.path().join("again.tar")).unwrap();
        assert!(again == fs::read(&file).unwrap(), "the bytes differ");
    }
    Ok(())
}

#[test]
fn two_archives_of_the_same_images_are_the_same_bytes() -> Result<()> {
    let world = World::new()?;
    for format in ["oci", "docker"] {
        let options = ["--format", format, "--platform", "linux/amd64"];
        world.save(
            &["team/app:1", "team/tool:1"],
            "one.tar",
            &with(&options, &["--force"]),
        )?;
        world.save(
            &["team/tool:1", "team/app:1"],
            "two.tar",
            &with(&options, &["--force"]),
        )?;
        let (one, two) = (world.path("one.tar"), world.path("two.tar"));
        assert!(
            fs::read(&one).unwrap() == fs::read(two).unwrap(),
            "{format}"
        );
        for member in members(&one)? {
            let mode = if member.starts_with('d') {
                "drwxr-xr-x 0/0"
            } else {
                "-r--r--r-- 0/0"
            };
            assert!(
                member.starts_with(mode) && member.contains(" 1970-01-01 "),
                "{member}"
            );
        }
    }
    Ok(())
}

#[test]
fn an_archive_for_docker_is_read_by_skopeo_podman_and_extract() -> Result<()> {
    let world = World::new()?;
    let report = world.save(
        &["team/app:1", "team/tool:1"],
        "docker.tar",
        &["--format", "docker", "--platform", "linux/arm64"],
    );
    // The other image has no such platform.
    assert!(report.is_err());
    world.assert_no_file("docker.tar");
    world.save(
        &["team/app:1", "team/tool:1"],
        "docker.tar",
        &["--format", "docker", "--platform", "linux/amd64"],
    )?;
    let file = world.path("docker.tar");
    let expected = [
        ("docker.io/team/app:1", &world.app.manifests[0]),
        ("docker.io/team/tool:1", &world.tool.manifests[0]),
    ];
    for (name, made) in expected {
        let source = format!("docker-archive:{}:{name}", file.display());
        let diff_ids: Vec<_> = made
            .layers
            .iter()
            .map(|layer| layer.diff_id.clone())
            .collect();
        assert_eq!(skopeo::layers(End::Local(&source))?, diff_ids);
    }
    let podman = Podman::new(&world.path("podman"));
    let ids = podman.load(&file)?;
    for (name, made) in expected {
        assert!(
            ids.contains(&format!("{name} {}", made.config.digest)),
            "{ids:?}"
        );
    }
    let other = Sandbox::new()?;
    let extracted = other
        .run(&["extract", "-f", file.to_str().unwrap()])?
        .expect_code(0)?;
    for (name, _) in expected {
        assert!(extracted.stdout.contains(name), "{}", extracted.stdout);
    }
    Ok(())
}

#[test]
fn podman_loads_an_image_in_the_oci_layout_under_its_name() -> Result<()> {
    let world = World::new()?;
    for (name, full, made) in [
        (
            "team/app:1",
            "docker.io/team/app:1",
            &world.app.manifests[0],
        ),
        (
            "team/tool:1",
            "docker.io/team/tool:1",
            &world.tool.manifests[0],
        ),
    ] {
        let file = format!("{}.tar", name.len());
        world.save(&[name], &file, &[])?;
        let podman = Podman::new(&world.path(&format!("podman-{}", name.len())));
        let ids = podman.load(&world.path(&file))?;
        assert_eq!(ids, [format!("{full} {}", made.config.digest)]);
    }
    Ok(())
}

#[test]
fn the_format_docker_asks_which_platform_and_lists_them() -> Result<()> {
    let world = World::new()?;
    for (options, told) in [
        (
            &[][..],
            "choose one with --platform: linux/amd64, linux/arm64/v8",
        ),
        (
            &["--platform", "linux/s390x"],
            "for linux/s390x, but for linux/amd64, linux/arm64/v8",
        ),
    ] {
        let command = [
            "save",
            "-s",
            "team/app:1",
            "-f",
            "x.tar",
            "--format",
            "docker",
        ];
        let refused = world
            .sandbox
            .run(&with(&command, options))?
            .expect_code(2)?;
        assert!(refused.stderr.contains(told), "{}", refused.stderr);
    }
    world.assert_no_file("x.tar");
    let report = world.save(&["team/app:1"], "x.tar", &["--platform", "linux/arm64"])?;
    assert_eq!(report["images"][0]["digest"], world.app.manifests[1].digest);
    Ok(())
}

#[test]
fn a_blob_with_a_flipped_bit_leaves_no_archive() -> Result<()> {
    let world = World::new()?;
    let digest = &world.tool.blobs()[1].digest;
    let blob = world.path(".cache/blobs/sha256").join(&digest[7..]);
    let mut bytes = fs::read(&blob).unwrap();
    bytes[1000] ^= 1;
    fs::remove_file(&blob).unwrap();
    fs::write(&blob, &bytes).unwrap();
    // One that is writable would be read before it is used, and counts as missing then.
    fs::set_permissions(&blob, fs::Permissions::from_mode(0o444)).unwrap();
    let save = ["save", "-s", "team/tool:1", "-f", "tool.tar"];
    let failed = world.sandbox.run(&save)?.expect_code(1)?;
    let told = format!("{digest} in the cache is damaged");
    assert!(failed.stderr.contains(&told), "{}", failed.stderr);
    world.assert_no_file("tool.tar");
    fs::remove_file(&blob).unwrap();
    let failed = world.sandbox.run(&save)?.expect_code(1)?;
    let told = format!("{digest} is missing");
    assert!(failed.stderr.contains(&told), "{}", failed.stderr);
    world.assert_no_file("tool.tar");
    Ok(())
}

#[test]
fn an_unknown_name_is_told_with_names_like_it() -> Result<()> {
    let world = World::new()?;
    for (name, near) in [
        ("team/tol:1", "names like it are team/tool:1;"),
        ("docker.io/team/tool:1", "names like it are team/tool:1;"),
        ("team/app", "names like it are team/app:1;"),
    ] {
        let unknown = world
            .sandbox
            .run(&["save", "-s", name, "-f", "x.tar"])?
            .expect_code(1)?;
        assert!(unknown.stderr.contains(near), "{}", unknown.stderr);
    }
    world.assert_no_file("x.tar");
    Ok(())
}

#[test]
fn a_file_that_exists_is_replaced_only_when_asked_to() -> Result<()> {
    let world = World::new()?;
    world.sandbox.file("x.tar", "precious")?;
    let save = ["save", "-s", "team/tool:1", "-f", "x.tar"];
    let refused = world.sandbox.run(&save)?.expect_code(2)?;
    assert!(refused.stderr.contains("--force"), "{}", refused.stderr);
    assert_eq!(fs::read(world.path("x.tar")).unwrap(), b"precious");
    world
        .sandbox
        .run(&with(&save, &["--force"]))?
        .expect_code(0)?;
    assert!(fs::metadata(world.path("x.tar")).unwrap().len() > 50_000);
    let folder = ["save", "-s", "team/tool:1", "-f", ".cache", "--force"];
    let refused = world.sandbox.run(&folder)?.expect_code(2)?;
    assert!(
        refused.stderr.contains("no regular file"),
        "{}",
        refused.stderr
    );
    Ok(())
}

#[test]
fn standard_output_holds_the_archive_and_nothing_else() -> Result<()> {
    let world = World::new()?;
    world.save(&["team/app:1"], "x.tar", &[])?;
    let streamed = Command::new(program())
        .args(["save", "-s", "team/app:1", "-f", "-"])
        .current_dir(world.sandbox.path())
        .output()
        .context("could not run save")?;
    assert!(streamed.status.success());
    assert!(streamed.stdout == fs::read(world.path("x.tar")).unwrap());
    let told = String::from_utf8_lossy(&streamed.stderr);
    assert!(told.contains("saved docker.io/team/app:1"), "{told}");
    let both = ["save", "-s", "team/app:1", "-f", "-", "--output", "json"];
    let refused = world.sandbox.run(&both)?.expect_code(2)?;
    assert!(
        refused.stderr.contains("standard output"),
        "{}",
        refused.stderr
    );
    Ok(())
}

#[test]
fn a_full_disk_is_named() -> Result<()> {
    let world = World::new()?;
    let full = File::options()
        .write(true)
        .open("/dev/full")
        .context("no /dev/full")?;
    let failed = Command::new(program())
        .args(["save", "-s", "team/app:1", "-f", "-"])
        .current_dir(world.sandbox.path())
        .stdout(Stdio::from(full))
        .output()
        .context("could not run save")?;
    assert_eq!(failed.status.code(), Some(1));
    let told = String::from_utf8_lossy(&failed.stderr);
    assert!(told.contains("no room for the archive"), "{told}");
    Ok(())
}

#[test]
fn of_a_sparse_index_what_is_there_is_saved_and_the_rest_is_told() -> Result<()> {
    let world = World::new()?;
    let [amd, arm] = &world.app.manifests[..] else {
        panic!("two platforms were made")
    };
    let child = world.path(".cache/manifests/team/app").join(&arm.digest);
    fs::remove_file(child).unwrap();
    let saved = world
        .sandbox
        .run(&["save", "-s", "team/app:1", "-f", "sparse.tar"])?
        .expect_code(0)?;
    let told = "saved with 1 of the 2 manifests of its index";
    assert!(saved.stderr.contains(told), "{}", saved.stderr);
    let file = world.path("sparse.tar");
    let copy = world.path("copy");
    skopeo::copy_with(
        End::Local(&format!("oci-archive:{}", file.display())),
        End::Local(&format!("oci:{}:copy", copy.display())),
        &["--preserve-digests"],
    )?;
    assert_eq!(layout_digest(&copy)?, amd.digest);
    Ok(())
}

#[test]
fn an_image_saved_by_its_digest_is_extracted_by_it() -> Result<()> {
    let world = World::new()?;
    let digest = &world.app.manifests[0].digest;
    let report = world.save(&[&format!("team/app@{digest}")], "child.tar", &[])?;
    let name = format!("docker.io/team/app@{digest}");
    assert_eq!(report["images"][0]["name"], name);
    let other = Sandbox::new()?;
    let file = world.path("child.tar");
    let extracted = other
        .run(&["extract", "-f", file.to_str().unwrap()])?
        .expect_code(0)?;
    let told = format!("extracted {name} {digest}");
    assert!(extracted.stdout.contains(&told), "{}", extracted.stdout);
    Ok(())
}

#[test]
fn two_images_of_one_whole_name_are_refused() -> Result<()> {
    let world = World::new()?;
    world.save(&["team/tool:1"], "tool.tar", &[])?;
    world
        .sandbox
        .run(&[
            "extract",
            "-f",
            "tool.tar",
            "-r",
            "docker.io/team/app",
            "-t",
            "1",
        ])?
        .expect_code(0)?;
    let both = [
        "save",
        "-f",
        "x.tar",
        "-s",
        "team/app:1",
        "-s",
        "docker.io/team/app:1",
    ];
    let refused = world.sandbox.run(&both)?.expect_code(2)?;
    let told = "would go by the name docker.io/team/app:1";
    assert!(refused.stderr.contains(told), "{}", refused.stderr);
    world.assert_no_file("x.tar");
    Ok(())
}

/// A sandbox with `big/app:1` in its cache, of one layer of this size.
pub(crate) fn with_large_image(bytes: u64) -> Result<(Sandbox, Image)> {
    let sandbox = Sandbox::new()?;
    let image = Image::builder().layers(1, bytes).gzip_level(0).build()?;
    let source = sandbox.path().join("source.tar");
    image.save_oci_archive(&source, "1")?;
    sandbox
        .run(&["extract", "-f", "source.tar", "-r", "big/app", "-t", "1"])?
        .expect_code(0)?;
    fs::remove_file(source).unwrap();
    Ok((sandbox, image))
}

#[test]
fn a_large_layer_is_saved_in_64_mb_and_an_interrupted_archive_leaves_nothing() -> Result<()> {
    let (sandbox, _) = with_large_image(512 * 1024 * 1024)?;
    let left = || -> Vec<(String, u64)> {
        let entries = fs::read_dir(sandbox.path()).unwrap().flatten();
        entries
            .map(|entry| {
                let name = entry.file_name().into_string().unwrap();
                (name, entry.metadata().map_or(0, |metadata| metadata.len()))
            })
            .filter(|(name, _)| name.contains("saved.tar"))
            .collect()
    };
    let save = ["save", "-s", "big/app:1", "-f", "saved.tar"];
    let running = sandbox.start(&save)?;
    poll(Duration::from_secs(20), || {
        left()
            .iter()
            .any(|(_, size)| *size > 1_000_000)
            .then_some(())
    })
    .context("no archive is begun")?;
    running.signal("INT")?;
    running.wait()?.expect_code(130)?;
    assert_eq!(left(), []);
    let saved = sandbox.run(&save)?.expect_code(0)?;
    assert_eq!(left().len(), 1);
    let megabytes = saved.peak_rss_bytes / 1_000_000;
    println!("{megabytes} MB, {:.2} s", saved.duration.as_secs_f64());
    assert!(megabytes <= 64, "{megabytes} MB");
    Ok(())
}
