//! Archives on the command line: `extract`, and `push` with a tar as its source.

use std::{
    fs::File,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::commands::{push, with};
use crate::support::{
    Context, Result,
    binary::Sandbox,
    images::Image,
    podman::Podman,
    registry::{Access, Registry},
    skopeo,
};

/// The same limit as for copies between registries.
const MEMORY_LIMIT: u64 = 64 * 1024 * 1024;

/// The path as an argument.
fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A docker archive of a fresh image under this name.
fn docker_archive(sandbox: &Sandbox, name: &str) -> Result<(Image, PathBuf)> {
    let image = Image::builder().layers(3, 200_000).build()?;
    let file = sandbox.path().join("app.tar");
    image.save_docker_archive(&file, name)?;
    Ok((image, file))
}

/// The digests of the layers before compression, as the registry's image has them.
fn diff_ids(access: &Access, name: &str) -> Result<Vec<String>> {
    let config = skopeo::config(access, name)?;
    let ids = config["rootfs"]["diff_ids"].as_array();
    let ids = ids.context("no diff_ids in the config")?;
    Ok(ids
        .iter()
        .map(|id| id.as_str().unwrap_or_default().to_owned())
        .collect())
}

fn expected_diff_ids(image: &Image) -> Vec<String> {
    let layers = image.manifests[0].layers.iter();
    layers.map(|layer| layer.diff_id.clone()).collect()
}

#[test]
fn an_extracted_docker_archive_is_pushed_with_one_digest_on_every_machine() -> Result<()> {
    let registry = Registry::open()?;
    let (first, second) = (Sandbox::new()?, Sandbox::new()?);
    let (image, file) = docker_archive(&first, "team/app:1.0")?;
    let mut digests = Vec::new();
    for (sandbox, tag) in [(&first, "one"), (&second, "two")] {
        let extracted = sandbox
            .run(&["extract", "-f", text(&file)])?
            .expect_code(0)?;
        assert!(
            extracted
                .stdout
                .contains("extracted docker.io/team/app:1.0 sha256:"),
            "{}",
            extracted.stdout
        );
        sandbox
            .run(&push(
                "docker.io/team/app:1.0",
                "team/app",
                tag,
                registry.address(),
            ))?
            .expect_code(0)?;
        digests.push(skopeo::digest(
            registry.access(),
            &format!("team/app:{tag}"),
        )?);
    }
    let third = Sandbox::new()?;
    third
        .run(&push(text(&file), "team/app", "three", registry.address()))?
        .expect_code(0)?;
    digests.push(skopeo::digest(registry.access(), "team/app:three")?);
    assert!(
        digests.iter().all(|digest| digest == &digests[0]),
        "{digests:?}"
    );
    assert_eq!(
        diff_ids(registry.access(), "team/app:three")?,
        expected_diff_ids(&image)
    );
    skopeo::download(
        registry.access(),
        "team/app:three",
        &third.path().join("copy"),
    )
}

#[test]
fn the_manifest_of_an_oci_archive_arrives_unchanged() -> Result<()> {
    let registry = Registry::open()?;
    let sandbox = Sandbox::new()?;
    let image = Image::builder()
        .layers(2, 100_000)
        .platforms(&["linux/amd64", "linux/arm64"])
        .build()?;
    let file = sandbox.path().join("app.tar");
    image.save_oci_archive(&file, "1.0")?;
    // Its name is a tag alone, so the repository has to be given.
    let refused = sandbox
        .run(&["extract", "-f", text(&file)])?
        .expect_code(2)?;
    assert!(refused.stderr.contains("@0"), "{}", refused.stderr);
    sandbox
        .run(&["extract", "-f", text(&file), "-r", "team/app", "-t", "1.0"])?
        .expect_code(0)?;
    sandbox
        .run(&push("team/app:1.0", "team/app", "1.0", registry.address()))?
        .expect_code(0)?;
    assert_eq!(
        skopeo::digest(registry.access(), "team/app:1.0")?,
        image.digest
    );
    let raw = skopeo::raw_manifest(registry.access(), "team/app:1.0")?;
    let written = std::fs::read(image.blob_file(&image.digest)).context("no index")?;
    assert_eq!(raw, written);
    Ok(())
}

#[test]
fn what_podman_saves_arrives_in_both_formats() -> Result<()> {
    let registry = Registry::open()?;
    let sandbox = Sandbox::new()?;
    let image = Image::builder().layers(3, 200_000).build()?;
    let podman = Podman::new(sandbox.path());
    podman.add(&image, "localhost/team/app:1.0")?;
    for format in ["docker-archive", "oci-archive"] {
        let saved = sandbox.path().join(format!("{format}.tar"));
        let option = format!("--format={format}");
        podman.save(&[&option, "localhost/team/app:1.0"], &saved)?;
        let pushed = push(text(&saved), "team/app", format, registry.address());
        sandbox.run(&pushed)?.expect_code(0)?;
        assert_eq!(
            diff_ids(registry.access(), &format!("team/app:{format}"))?,
            expected_diff_ids(&image),
            "{format}"
        );
    }
    Ok(())
}

#[test]
fn compressed_archives_and_pipes_give_the_same_digest() -> Result<()> {
    let registry = Registry::open()?;
    let sandbox = Sandbox::new()?;
    let (_, file) = docker_archive(&sandbox, "team/app:1.0")?;
    let plain = std::fs::read(&file).context("no archive")?;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &plain).context("gzip")?;
    let gzip = sandbox.file("app.tar.gz", gzip.finish().context("gzip")?)?;
    let zstd = sandbox.file(
        "app.tar.zst",
        zstd::encode_all(plain.as_slice(), 1).context("zstd")?,
    )?;
    let mut digests = Vec::new();
    for (tag, source, stdin) in [
        ("plain", text(&file), None),
        ("gzip", text(&gzip), None),
        ("zstd", text(&zstd), None),
        ("pipe", "-", Some(&file)),
        ("gzip-pipe", "-", Some(&gzip)),
    ] {
        let command = push(source, "team/app", tag, registry.address());
        let fresh = sandbox.path().join(tag);
        let command = with(&command, &["--cache-dir", text(&fresh)]);
        let finished = match stdin {
            Some(stdin) => sandbox.run_with_stdin(&command, stdin)?,
            None => sandbox.run(&command)?,
        };
        finished.expect_code(0)?;
        digests.push(skopeo::digest(
            registry.access(),
            &format!("team/app:{tag}"),
        )?);
    }
    assert!(
        digests.iter().all(|digest| digest == &digests[0]),
        "{digests:?}"
    );
    Ok(())
}

#[test]
fn an_archive_that_did_not_change_is_not_read_again_and_another_of_its_looks_is() -> Result<()> {
    const SHORT: &str = "did not change since it was extracted";
    let registry = Registry::open()?;
    let sandbox = Sandbox::new()?;
    let (_, file) = docker_archive(&sandbox, "team/app:1.0")?;
    let old = std::time::SystemTime::UNIX_EPOCH + Duration::from_hours(1);
    let date = |file: &Path| {
        let file = File::options().append(true).open(file);
        let dated = file.and_then(|file| file.set_modified(old));
        dated.context("could not date an archive")
    };
    date(&file)?;
    let command = push(text(&file), "team/app", "1", registry.address());
    let command = with(&command, &["-v"]);
    let first = sandbox.run(&command)?.expect_code(0)?;
    assert!(!first.stderr.contains(SHORT), "{}", first.stderr);
    let again = sandbox.run(&command)?.expect_code(0)?;
    assert!(again.stderr.contains(SHORT), "{}", again.stderr);
    // Another image of the same size and time in its place, perhaps with its inode number: as builds with set times do.
    let digest = skopeo::digest(registry.access(), "team/app:1")?;
    std::fs::remove_file(&file).context("could not remove an archive")?;
    docker_archive(&sandbox, "team/app:1.0")?;
    date(&file)?;
    let other = sandbox.run(&command)?.expect_code(0)?;
    assert!(!other.stderr.contains(SHORT), "{}", other.stderr);
    assert_ne!(skopeo::digest(registry.access(), "team/app:1")?, digest);
    Ok(())
}

#[test]
fn images_of_one_name_in_two_archives_go_where_each_belongs() -> Result<()> {
    let registry = Registry::open()?;
    let sandbox = Sandbox::new()?;
    let mut mirrors = Vec::new();
    for name in ["one", "two", "three"] {
        let image = Image::builder().layers(2, 300_000).build()?;
        let file = sandbox.path().join(format!("{name}.tar"));
        image.save_docker_archive(&file, "team/app:latest")?;
        sandbox
            .run(&with(
                &push(text(&file), "expected", name, registry.address()),
                &["--cache-dir", name],
            ))?
            .expect_code(0)?;
        mirrors.push(format!(
            "---\napiVersion: imagepusher.io/v1alpha1\nkind: ImageMirror\nmetadata: {{name: {name}}}\n\
             spec:\n  source: {{archive: {{path: {name}.tar}}}}\n  destinations:\n  - repository: {}/arrived\n    \
             tag: {name}\n    insecure: true\n",
            registry.access().address
        ));
    }
    let file = sandbox.file("mirrors.yaml", mirrors.concat())?;
    sandbox.run(&["sync", "-f", text(&file)])?.expect_code(0)?;
    for name in ["one", "two", "three"] {
        assert_eq!(
            skopeo::digest(registry.access(), &format!("arrived:{name}"))?,
            skopeo::digest(registry.access(), &format!("expected:{name}"))?,
            "{name}"
        );
    }
    Ok(())
}

#[test]
fn two_archives_for_one_place_are_refused_before_anything_is_read() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let mirror = |name: &str| {
        format!(
            "---\napiVersion: imagepusher.io/v1alpha1\nkind: ImageMirror\nmetadata: {{name: {name}}}\n\
             spec:\n  source: {{archive: {{path: {name}.tar}}}}\n  destinations:\n  \
             - {{repository: registry.example/app, tag: v1}}\n"
        )
    };
    let file = sandbox.file("mirrors.yaml", mirror("one") + &mirror("two"))?;
    let refused = sandbox.run(&["sync", "-f", text(&file)])?.expect_code(2)?;
    assert!(
        refused.stderr.contains("registry.example/app:v1"),
        "{}",
        refused.stderr
    );
    Ok(())
}

#[test]
fn one_image_of_several_is_chosen_by_name_or_position() -> Result<()> {
    let registry = Registry::open()?;
    let sandbox = Sandbox::new()?;
    let file = sandbox.path().join("several.tar");
    let images = [1, 2].map(|layers| Image::builder().layers(layers, 100_000).build());
    let [app, tool] = images;
    let images = [app?, tool?];
    let podman = Podman::new(sandbox.path());
    let names = ["registry.example/app:1", "docker.io/library/tool:2"];
    for (image, name) in images.iter().zip(names) {
        podman.add(image, name)?;
    }
    let options = ["--format=docker-archive", "--multi-image-archive"];
    podman.save(&[&options[..], &names].concat(), &file)?;
    let command = push(text(&file), "team/x", "1", registry.address());
    let refused = sandbox.run(&command)?.expect_code(2)?;
    for part in [
        "@0 registry.example/app:1",
        "@1 docker.io/library/tool:2",
        "--image",
    ] {
        assert!(refused.stderr.contains(part), "{}", refused.stderr);
    }
    for (choice, image) in [("tool:2", &images[1]), ("@0", &images[0])] {
        sandbox
            .run(&with(&command, &["--image", choice]))?
            .expect_code(0)?;
        assert_eq!(
            diff_ids(registry.access(), "team/x:1")?,
            expected_diff_ids(image)
        );
    }
    let refused = sandbox
        .run(&with(&command, &["--image", "other:1"]))?
        .expect_code(2)?;
    assert!(refused.stderr.contains("other:1"), "{}", refused.stderr);
    // Without a choice all that have a name are extracted.
    sandbox
        .run(&["extract", "-f", text(&file)])?
        .expect_code(0)?;
    let listed = sandbox.run(&["list"])?.expect_code(0)?;
    for name in names {
        assert!(listed.stdout.contains(name), "{}", listed.stdout);
    }
    Ok(())
}

#[test]
fn a_bad_archive_is_refused_and_leaves_nothing() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let (_, good) = docker_archive(&sandbox, "team/app:1.0")?;
    let bytes = std::fs::read(&good).context("no archive")?;
    let mut flipped = bytes.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    sandbox.file("empty.tar", "")?;
    sandbox.file("foreign.tar", "this is no archive at all\n".repeat(100))?;
    sandbox.file("cut.tar", &bytes[..bytes.len() / 2])?;
    sandbox.file("flipped.tar", flipped)?;
    std::fs::create_dir(sandbox.path().join("folder")).context("folder")?;
    for (file, code, words) in [
        ("missing.tar", 2, "missing.tar"),
        ("folder", 2, "folder"),
        ("empty.tar", 1, "empty"),
        ("foreign.tar", 1, "foreign.tar"),
        ("cut.tar", 1, "cut.tar"),
        ("flipped.tar", 1, "flipped.tar"),
    ] {
        let refused = sandbox.run(&["extract", "-f", file])?.expect_code(code)?;
        assert!(refused.stderr.contains(words), "{file}: {}", refused.stderr);
        let listed = sandbox.run(&["list"])?.expect_code(0)?;
        assert!(listed.stdout.contains("no images"), "{}", listed.stdout);
        assert_eq!(
            blobs_and_partials(&sandbox),
            Vec::<PathBuf>::new(),
            "{file}"
        );
    }
    Ok(())
}

/// Every file below `blobs/` of the cache.
fn blobs_and_partials(sandbox: &Sandbox) -> Vec<PathBuf> {
    let mut folders = vec![sandbox.path().join(".cache/blobs")];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.path() {
                path if path.is_dir() => folders.push(path),
                path => files.push(path),
            }
        }
    }
    files
}

#[test]
fn contradicting_options_are_refused_before_anything_is_read() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let (_, file) = docker_archive(&sandbox, "team/app:1.0")?;
    let file = text(&file);
    for (command, words) in [
        (vec!["extract", "-f", file, "-r", "team/app"], "--reference"),
        (
            with(
                &push("team/app:1", "team/app", "1", "localhost:1"),
                &["--image", "app:1"],
            ),
            "--image",
        ),
        (
            with(
                &push("-", "team/app", "1", "localhost:1"),
                &["-u", "me", "--password-stdin"],
            ),
            "standard input",
        ),
        (
            push("no such file.tar", "team/app", "1", "localhost:1"),
            "neither a file",
        ),
    ] {
        let refused = sandbox.run(&command)?.expect_code(2)?;
        assert!(refused.stderr.contains(words), "{}", refused.stderr);
    }
    Ok(())
}

#[test]
fn half_a_gibibyte_is_extracted_and_pushed_within_64_mb_from_a_file_and_from_a_pipe() -> Result<()>
{
    let registry = Registry::open()?;
    let sandbox = Sandbox::new()?;
    let image = Image::builder()
        .layers(1, 512 * 1024 * 1024)
        .gzip_level(0)
        .build()?;
    let file = sandbox.path().join("big.tar");
    image.save_docker_archive(&file, "big/app:1")?;
    let from_file = push(text(&file), "big/app", "file", registry.address());
    let from_pipe = push("-", "big/app", "pipe", registry.address());
    let other_cache = with(&from_pipe, &["--cache-dir", "other"]);
    let runs = [
        sandbox.run(&from_file)?.expect_code(0)?,
        sandbox
            .run_with_stdin(&other_cache, &file)?
            .expect_code(0)?,
    ];
    for run in runs {
        let megabytes = run.peak_rss_bytes / 1_000_000;
        println!(
            "{}: {megabytes} MB, {:.2} s",
            run.command,
            run.duration.as_secs_f64()
        );
        assert!(
            run.peak_rss_bytes <= MEMORY_LIMIT,
            "{}: {megabytes} MB",
            run.command
        );
    }
    Ok(())
}
