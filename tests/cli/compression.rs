//! Plain layers of archives, compressed on request.

use std::path::{Path, PathBuf};

use crate::commands::{push, with};
use crate::support::{
    Context, Result,
    binary::Sandbox,
    images::Image,
    registry::{Access, Registry},
    skopeo::{self, End},
};

/// What a layer of half a gibibyte may take, as without compression.
const MEMORY_LIMIT: u64 = 48 * 1000 * 1000;

/// The path as an argument.
fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A docker archive of a fresh image, in which layers are plain.
fn docker_archive(sandbox: &Sandbox, name: &str, sizes: &[u64]) -> Result<PathBuf> {
    let image = Image::builder().layer_sizes(sizes).gzip_level(0).build()?;
    let file = sandbox.path().join(name);
    image.save_docker_archive(&file, "team/app:1.0")?;
    Ok(file)
}

/// The types of the layers, as the registry has them.
fn layer_types(access: &Access, name: &str) -> Result<Vec<String>> {
    let manifest = skopeo::raw_manifest(access, name)?;
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).context("no JSON")?;
    let layers = manifest["layers"].as_array().context("no layers")?;
    let types = layers.iter().map(|layer| layer["mediaType"].as_str());
    Ok(types.flatten().map(str::to_owned).collect())
}

/// What `extract` tells of the image, without what it cost.
fn told(stdout: &str) -> &str {
    stdout.lines().next().unwrap_or_default()
}

/// The digest that an archive has in a fresh cache without compression, which is that of its configuration and plain layers.
fn plain_digest(archive: &Path) -> Result<String> {
    let extracted = Sandbox::new()?.run(&["extract", "-f", text(archive)])?;
    let extracted = extracted.expect_code(0)?;
    let digest = told(&extracted.stdout).split(' ').nth(2);
    digest.map(str::to_owned).context("no digest")
}

#[test]
fn a_compressed_image_has_one_digest_on_every_machine_and_skopeo_finds_the_same_layers_in_it()
-> Result<()> {
    let registry = Registry::open()?;
    let home = Sandbox::new()?;
    let file = docker_archive(&home, "app.tar", &[200_000, 3_000_000, 5000])?;
    for method in ["gzip", "zstd"] {
        let mut digests = Vec::new();
        for source in [text(&file), "-"] {
            let sandbox = Sandbox::new()?;
            let tag = format!("{method}-{}", digests.len());
            let command = push(source, "team/app", &tag, registry.address());
            let command = with(&command, &["--compress", method]);
            let pushed = match source {
                "-" => sandbox.run_with_stdin(&command, &file)?,
                _ => sandbox.run(&command)?,
            };
            pushed.expect_code(0)?;
            let name = format!("team/app:{tag}");
            digests.push(skopeo::digest(registry.access(), &name)?);
            let types = layer_types(registry.access(), &name)?;
            assert!(types.iter().all(|each| each.ends_with(method)), "{types:?}");
            skopeo::download(registry.access(), &name, &sandbox.path().join("copy"))?;
            // skopeo expands the layers, and finds what was saved.
            let back = sandbox.path().join("back");
            let destination = format!("dir:{}", text(&back));
            let from = End::Registry(registry.access(), &name);
            skopeo::copy_with(from, End::Local(&destination), &["--dest-decompress"])?;
            let config = skopeo::config(registry.access(), &name)?;
            let diff_ids = config["rootfs"]["diff_ids"]
                .as_array()
                .context("no diff_ids")?;
            assert_eq!(diff_ids.len(), 3);
            for diff_id in diff_ids.iter().filter_map(|diff_id| diff_id.as_str()) {
                let layer = std::fs::read(back.join(diff_id.trim_start_matches("sha256:")));
                assert_eq!(skopeo::sha256(&layer.context("no layer")?), diff_id);
            }
        }
        assert_eq!(digests[0], digests[1], "{method}");
    }
    Ok(())
}

#[test]
fn what_is_compressed_once_is_neither_read_nor_compressed_again() -> Result<()> {
    const SAME_FILE: &str = "did not change since it was extracted";
    const SAME_LAYERS: &str = "3 layers were compressed before";
    let sandbox = Sandbox::new()?;
    let file = docker_archive(&sandbox, "app.tar", &[200_000, 300_000, 5000])?;
    let extract = ["extract", "-f", "app.tar", "-v", "--compress", "gzip"];
    let first = sandbox.run(&extract)?.expect_code(0)?;
    assert!(!first.stderr.contains(SAME_LAYERS), "{}", first.stderr);
    let again = sandbox.run(&extract)?.expect_code(0)?;
    assert!(again.stderr.contains(SAME_FILE), "{}", again.stderr);
    std::fs::copy(&file, sandbox.path().join("other.tar")).context("no copy")?;
    let extract = extract.map(|each| each.replace("app.tar", "other.tar"));
    let extract = extract.each_ref().map(String::as_str);
    let other = sandbox.run(&extract)?.expect_code(0)?;
    assert!(other.stderr.contains(SAME_LAYERS), "{}", other.stderr);
    assert_eq!(
        [told(&again.stdout), told(&other.stdout)],
        [told(&first.stdout); 2]
    );
    // Without compression it is the image that it always was.
    let plain = sandbox.run(&["extract", "-f", "app.tar"])?.expect_code(0)?;
    assert!(
        plain.stdout.contains(&plain_digest(&file)?),
        "{}",
        plain.stdout
    );
    assert_ne!(told(&plain.stdout), told(&first.stdout));
    sandbox.run(&["verify"])?.expect_code(0)?;
    Ok(())
}

#[test]
fn a_compressed_image_is_saved_and_extracted_with_the_same_digest() -> Result<()> {
    let (home, away) = (Sandbox::new()?, Sandbox::new()?);
    docker_archive(&home, "app.tar", &[200_000, 5000])?;
    let home = home.variable("IMAGE_PUSHER_COMPRESS", "zstd");
    let home = home.variable("IMAGE_PUSHER_COMPRESS_LEVEL", "9");
    let name = ["-r", "team/app", "-t", "1.0"];
    let first = home.run(&with(&["extract", "-f", "app.tar"], &name))?;
    let saved = away.path().join("saved.tar");
    home.run(&["save", "-s", "team/app:1.0", "-f", text(&saved)])?
        .expect_code(0)?;
    // Layers that are compressed stay as they are, whatever is asked for.
    let command = ["extract", "-f", "saved.tar", "--compress", "gzip"];
    let second = away.run(&with(&command, &name))?.expect_code(0)?;
    assert_eq!(told(&second.stdout), told(&first.expect_code(0)?.stdout));
    Ok(())
}

#[test]
fn options_of_compression_that_make_no_sense_are_refused_before_anything_starts() -> Result<()> {
    let sandbox = Sandbox::new()?;
    docker_archive(&sandbox, "app.tar", &[5000])?;
    let extract = ["extract", "-f", "app.tar"];
    for (options, words) in [
        (
            &["--compress", "gzip", "--compress-level", "10"][..],
            "from 1 to 9",
        ),
        (
            &["--compress", "gzip", "--compress-level", "0"],
            "from 1 to 9",
        ),
        (
            &["--compress", "zstd", "--compress-level", "20"],
            "from 1 to 19",
        ),
        (&["--compress", "xz"], "possible values: gzip, zstd"),
        (&["--compress-level", "3"], "needs --compress"),
    ] {
        let refused = sandbox.run(&with(&extract, options))?.expect_code(2)?;
        assert!(refused.stderr.contains(words), "{}", refused.stderr);
        assert!(!sandbox.path().join(".cache").exists());
    }
    let cached = push("team/app:1.0", "team/app", "1.0", "http://localhost:1");
    let refused = sandbox
        .run(&with(&cached, &["--compress", "gzip"]))?
        .expect_code(2)?;
    assert!(
        refused.stderr.contains("leave --compress out"),
        "{}",
        refused.stderr
    );
    Ok(())
}

#[test]
fn a_resource_gets_the_image_that_the_command_makes() -> Result<()> {
    let registry = Registry::open()?;
    let sandbox = Sandbox::new()?;
    let file = docker_archive(&sandbox, "app.tar", &[200_000, 5000])?;
    for (compression, method) in [("Gzip", "gzip"), ("Zstd", "zstd")] {
        let command = push(text(&file), "expected", method, registry.address());
        sandbox
            .run(&with(
                &command,
                &["--compress", method, "--cache-dir", method],
            ))?
            .expect_code(0)?;
        let mirror = format!(
            "apiVersion: imagepusher.io/v1alpha1\nkind: ImageMirror\nmetadata: {{name: app}}\nspec:\n  source: \
             {{archive: {{path: app.tar, compression: {compression}}}}}\n  destinations:\n  \
             - {{repository: {}/arrived, tag: {method}, insecure: true}}\n",
            registry.access().address
        );
        let mirror = sandbox.file("mirror.yaml", mirror)?;
        sandbox
            .run(&["sync", "-f", text(&mirror)])?
            .expect_code(0)?;
        assert_eq!(
            skopeo::digest(registry.access(), &format!("arrived:{method}"))?,
            skopeo::digest(registry.access(), &format!("expected:{method}"))?,
        );
    }
    let wrong = "apiVersion: imagepusher.io/v1alpha1\nkind: ImageMirror\nmetadata: {name: app}\nspec:\n  source: \
                 {archive: {path: app.tar, compression: gzip}}\n";
    let wrong = sandbox.file("wrong.yaml", wrong)?;
    let refused = sandbox.run(&["sync", "-f", text(&wrong)])?.expect_code(2)?;
    let words = "spec.source.archive.compression: must be one of None, Gzip, Zstd";
    assert!(refused.stderr.contains(words), "{}", refused.stderr);
    Ok(())
}

#[test]
fn half_a_gibibyte_in_one_layer_is_compressed_in_48_mb() -> Result<()> {
    let sandbox = Sandbox::new()?;
    docker_archive(&sandbox, "app.tar", &[512 * 1024 * 1024])?;
    let command = ["extract", "-f", "app.tar", "--compress", "gzip"];
    let run = sandbox.run(&command)?.expect_code(0)?;
    let megabytes = run.peak_rss_bytes / 1_000_000;
    println!("{megabytes} MB, {:.2} s", run.duration.as_secs_f64());
    assert!(run.peak_rss_bytes <= MEMORY_LIMIT, "{megabytes} MB");
    Ok(())
}

/// How large the compressed layers will be nobody knows beforehand, so the disk is full in the middle of one.
#[test]
fn a_disk_that_is_full_in_the_middle_is_told_and_nothing_is_left() -> Result<()> {
    let sandbox = Sandbox::new()?;
    docker_archive(&sandbox, "app.tar", &[3_000_000, 20_000_000])?;
    let script = "\"$program\" extract -f app.tar --compress gzip || echo \"code $?\"; find \"$IMAGE_PUSHER_CACHE_DIR\" -type f";
    let (_, told, said) = sandbox.script_on_a_volume(6 << 20, script)?;
    assert!(said.contains("the cache volume is full"), "{told}{said}");
    let mut lines = told.lines();
    assert_eq!(lines.next(), Some("code 1"), "{told}{said}");
    let left: Vec<&str> = lines.filter(|file| !file.contains("/.locks/")).collect();
    assert_eq!(left, Vec::<&str>::new());
    Ok(())
}
