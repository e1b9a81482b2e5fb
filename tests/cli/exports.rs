//! Exports for where no registry is: in parts of a size, and without what an earlier export carried.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::Value;

use crate::commands::{pull, push, with};
use crate::save::{World, layout_digest, with_large_image};
use crate::support::{
    Context, Result,
    binary::{Sandbox, program},
    images::Image,
    process::{poll, run},
    registry::Registry,
    skopeo::{self, End},
};

/// Files whose name contains this, in order.
fn files(folder: &Path, part: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains(part))
        .collect();
    names.sort();
    names
}

/// The parts of an archive joined by the shell, as a user would do it.
fn joined(folder: &Path, name: &str) -> Result<PathBuf> {
    run(Command::new("sh")
        .arg("-c")
        .arg(format!("cat {name}.[0-9]* > {name}"))
        .current_dir(folder))?;
    Ok(folder.join(name))
}

#[test]
fn an_archive_in_parts_is_verified_extracted_and_pushed_and_joined_it_is_the_archive() -> Result<()>
{
    let world = World::new()?;
    let names = ["team/app:1", "team/tool:1"];
    world.save(&names, "whole.tar", &[])?;
    let report = world.save(&names, "parts.tar", &["--split-size", "200Ki"])?;
    let parts = report["parts"].as_array().context("no parts")?;
    assert!(parts.len() > 5, "{parts:?}");
    let folder = world.path("");
    let mut expected: Vec<String> = (0..parts.len())
        .map(|number| format!("parts.tar.{number:03}"))
        .collect();
    for (part, name) in parts.iter().zip(&expected) {
        assert_eq!(part["file"], **name);
        let bytes = fs::read(world.path(name)).unwrap();
        assert_eq!(part["size"], bytes.len());
        assert!(bytes.len() <= 200 * 1024);
        assert_eq!(part["digest"], skopeo::sha256(&bytes));
    }
    expected.push("parts.tar.sha256".to_owned());
    assert_eq!(files(&folder, "parts.tar"), expected);
    run(Command::new("sha256sum")
        .args(["--check", "--strict", "parts.tar.sha256"])
        .current_dir(&folder))?;

    let destination = Registry::open()?;
    for file in ["parts.tar.000", "parts.tar.sha256"] {
        let other = Sandbox::new()?;
        let path = world.path(file).display().to_string();
        let extracted = other.run(&["extract", "-f", &path])?.expect_code(0)?;
        for (name, image) in [("app", &world.app), ("tool", &world.tool)] {
            let told = format!("extracted docker.io/team/{name}:1 {}", image.digest);
            assert!(extracted.stdout.contains(&told), "{}", extracted.stdout);
        }
        other.run(&["verify"])?.expect_code(0)?;
        let repository = format!("copy/{}", file.len());
        let command = push(&path, &repository, "1", destination.address());
        let options = ["--image", "docker.io/team/app:1"];
        Sandbox::new()?
            .run(&with(&command, &options))?
            .expect_code(0)?;
        let digest = skopeo::digest(destination.access(), &format!("{repository}:1"))?;
        assert_eq!(digest, world.app.digest);
    }

    let joined = joined(&folder, "parts.tar")?;
    assert!(fs::read(&joined).unwrap() == fs::read(world.path("whole.tar")).unwrap());
    let copy = world.path("copy");
    skopeo::copy(
        End::Local(&format!(
            "oci-archive:{}:docker.io/team/app:1",
            joined.display()
        )),
        End::Local(&format!("oci:{}:copy", copy.display())),
    )?;
    assert_eq!(layout_digest(&copy)?, world.app.digest);
    Ok(())
}

/// Does something to parts, which it gets by number.
type Harm = fn(&dyn Fn(usize) -> PathBuf);

#[test]
fn a_bad_part_is_named_and_nothing_of_the_archive_is_in_the_cache() -> Result<()> {
    let world = World::new()?;
    let harms: [(Harm, &str); 5] = [
        (
            |part| {
                let mut bytes = fs::read(part(2)).unwrap();
                bytes[99_999] ^= 1;
                fs::write(part(2), bytes).unwrap();
            },
            "parts.tar.002 of the archive should have the digest",
        ),
        (
            |part| {
                let bytes = fs::read(part(1)).unwrap();
                fs::write(part(1), &bytes[..5_000]).unwrap();
            },
            "it has 5000 bytes, where ",
        ),
        (
            |part| {
                fs::rename(part(3), part(99)).unwrap();
                fs::rename(part(4), part(3)).unwrap();
                fs::rename(part(99), part(4)).unwrap();
            },
            "parts.tar.003 of the archive should have the digest",
        ),
        (
            |part| fs::remove_file(part(2)).unwrap(),
            "parts.tar.002 of the archive is missing: copy it beside the others",
        ),
        (
            |part| fs::write(part(50), "from elsewhere").unwrap(),
            "parts.tar.050, which lies beside it",
        ),
    ];
    for (harm, told) in harms {
        let options = ["--split-size", "100k", "--force"];
        world.save(&["team/app:1"], "parts.tar", &options)?;
        let part = |number: usize| world.path(&format!("parts.tar.{number:03}"));
        harm(&part);
        let other = Sandbox::new()?;
        let first = part(0).display().to_string();
        let refused = other.run(&["extract", "-f", &first])?.expect_code(1)?;
        assert!(refused.stderr.contains(told), "{}", refused.stderr);
        let listed = other.run(&["list"])?.expect_code(0)?;
        assert!(!listed.stdout.contains("team/app"), "{}", listed.stdout);
        let blobs = other.path().join(".cache/blobs/sha256");
        assert!(!blobs.exists() || fs::read_dir(blobs).unwrap().next().is_none());
    }
    Ok(())
}

#[test]
fn parts_that_exist_are_replaced_only_when_asked_to_and_then_all_of_them() -> Result<()> {
    let world = World::new()?;
    let small = ["--split-size", "50Ki"];
    world.save(&["team/tool:1"], "x.tar", &small)?;
    let before = files(&world.path(""), "x.tar");
    let save = ["save", "-s", "team/tool:1", "-f", "x.tar", "--split-size"];
    let refused = world.sandbox.run(&with(&save, &["60Ki"]))?.expect_code(2)?;
    assert!(refused.stderr.contains("x.tar"), "{}", refused.stderr);
    assert!(refused.stderr.contains("--force"), "{}", refused.stderr);
    assert_eq!(files(&world.path(""), "x.tar"), before);
    world
        .sandbox
        .run(&with(&save, &["90Ki", "--force"]))?
        .expect_code(0)?;
    let after = files(&world.path(""), "x.tar");
    assert!(after.len() < before.len(), "{after:?}");
    world
        .sandbox
        .run(&["extract", "-f", "x.tar.000"])?
        .expect_code(0)?;
    for (options, told) in [
        (&["1"][..], "of which there may be 1000"),
        (&["1.5Mi"], "expected a size such as 4Gi"),
        (&["1Mi", "-f", "-"], "--split-size"),
    ] {
        let save = ["save", "-s", "team/tool:1", "-f", "y.tar", "--split-size"];
        let save = if options.len() > 1 {
            with(&["save", "-s", "team/tool:1", "--split-size"], options)
        } else {
            with(&save, options)
        };
        let refused = world.sandbox.run(&save)?.expect_code(2)?;
        assert!(refused.stderr.contains(told), "{}", refused.stderr);
    }
    world.assert_no_file("y.tar");
    Ok(())
}

#[test]
fn a_save_in_parts_that_is_killed_leaves_no_part_that_looks_whole() -> Result<()> {
    let (sandbox, image) = with_large_image(64 * 1024 * 1024)?;
    let save = [
        "save",
        "-s",
        "big/app:1",
        "-f",
        "saved.tar",
        "--split-size",
        "1Mi",
    ];
    for signal in ["KILL", "INT"] {
        let running = sandbox.start(&save)?;
        poll(Duration::from_secs(20), || {
            (files(sandbox.path(), ".saved.tar.005").len() == 1).then_some(())
        })
        .context("no sixth part is begun")?;
        running.signal(signal)?;
        let ended = running.wait()?;
        assert_ne!(ended.code(), Some(0));
        let left = files(sandbox.path(), "saved.tar");
        let temporary = |name: &String| name.starts_with(".saved.tar.");
        assert!(left.iter().all(temporary), "{left:?}");
        // What is killed cannot clean up, what is interrupted does.
        assert_eq!(left.is_empty(), signal == "INT", "{left:?}");
        for name in left {
            fs::remove_file(sandbox.path().join(name)).unwrap();
        }
    }
    sandbox.run(&save)?.expect_code(0)?;
    let other = Sandbox::new()?;
    let first = sandbox.path().join("saved.tar.000").display().to_string();
    let extracted = other.run(&["extract", "-f", &first])?;
    // Its name in the archive is whole, since it was saved under one.
    let extracted = extracted.expect_code(0)?;
    assert!(extracted.stdout.contains(&image.digest));
    let megabytes = extracted.peak_rss_bytes / 1_000_000;
    assert!(megabytes <= 64, "{megabytes} MB");
    Ok(())
}

/// Saves an image and writes the report into a file; the report comes back, too.
fn save_since(world: &World, image: &str, file: &str, since: &[&str]) -> Result<Value> {
    let mut options = Vec::new();
    for report in since {
        options.extend(["--since", *report]);
    }
    let report = world.save(&[image], file, &options)?;
    let text = serde_json::to_string_pretty(&report).context("no JSON")?;
    world.sandbox.file(&format!("{file}.json"), text)?;
    Ok(report)
}

fn digests(report: &Value, field: &str) -> BTreeSet<String> {
    let list = report[field].as_array().cloned().unwrap_or_default();
    list.iter()
        .map(|blob| blob["digest"].as_str().unwrap_or_default().to_owned())
        .collect()
}

/// Three images of which each has the layers of the one before and one more, and three archives, each since the one before.
fn chain() -> Result<(World, Vec<Image>, Vec<Value>)> {
    let world = World::new()?;
    let registry = Registry::open()?;
    let sizes = [400_000, 30_000, 20_000, 10_000];
    let mut images = Vec::new();
    let mut reports = Vec::new();
    for number in 2..=4_usize {
        // Layers of one seed and size are the same.
        let image = Image::builder()
            .layer_sizes(&sizes[..number])
            .platforms(&["linux/amd64", "linux/arm64"])
            .seed(7)
            .build()?;
        let tag = number.to_string();
        image.push(registry.access(), &format!("team/chain:{tag}"))?;
        world
            .sandbox
            .run(&pull("team/chain", &tag, registry.address()))?
            .expect_code(0)?;
        let before = format!("{}.tar.json", number - 1);
        let since = if number == 2 {
            vec![]
        } else {
            vec![before.as_str()]
        };
        let name = format!("team/chain:{tag}");
        let report = save_since(&world, &name, &format!("{tag}.tar"), &since)?;
        images.push(image);
        reports.push(report);
    }
    Ok((world, images, reports))
}

#[test]
fn a_chain_of_exports_carries_each_layer_once_and_arrives_whole() -> Result<()> {
    let (world, images, reports) = chain()?;
    assert_eq!(reports[0]["version"], 1);
    assert_eq!(reports[0].get("relies"), None);
    let mut known = digests(&reports[0], "blobs");
    for (report, image) in reports[1..].iter().zip(&images[1..]) {
        assert_eq!(report["version"], 2);
        let (carried, relied) = (digests(report, "blobs"), digests(report, "relies"));
        assert!(!relied.is_empty() && relied.is_subset(&known));
        assert!(carried.is_disjoint(&relied));
        let needed: BTreeSet<String> = image
            .blobs()
            .iter()
            .map(|blob| blob.digest.clone())
            .collect();
        let here: BTreeSet<String> = carried.union(&relied).cloned().collect();
        assert!(needed.is_subset(&here));
        assert!(report["bytes"].as_u64() < reports[0]["bytes"].as_u64());
        known.extend(carried);
    }
    let other = Sandbox::new()?;
    let destination = Registry::open()?;
    for (number, image) in (2..).zip(&images) {
        let file = world.path(&format!("{number}.tar")).display().to_string();
        let extracted = other.run(&["extract", "-f", &file])?.expect_code(0)?;
        assert!(
            extracted.stdout.contains(&image.digest),
            "{}",
            extracted.stdout
        );
        let source = format!("docker.io/team/chain:{number}");
        let tag = number.to_string();
        other
            .run(&push(&source, "team/chain", &tag, destination.address()))?
            .expect_code(0)?;
        let name = format!("team/chain:{number}");
        assert_eq!(skopeo::digest(destination.access(), &name)?, image.digest);
    }
    other.run(&["verify"])?.expect_code(0)?;
    // All reports together leave out what any of the archives carried; the same bytes each time.
    let all = ["2.tar.json", "3.tar.json", "4.tar.json"];
    let nothing = save_since(&world, "team/chain:4", "again.tar", &all)?;
    let once = fs::read(world.path("again.tar")).unwrap();
    assert!(digests(&nothing, "blobs").is_disjoint(&digests(&nothing, "relies")));
    assert!(nothing["bytes"].as_u64() < reports[2]["bytes"].as_u64());
    fs::remove_file(world.path("again.tar")).unwrap();
    save_since(&world, "team/chain:4", "again.tar", &["4.tar.json"])?;
    assert!(once == fs::read(world.path("again.tar")).unwrap());
    Ok(())
}

#[test]
fn an_export_without_the_one_before_is_refused_by_what_is_missing() -> Result<()> {
    let (world, _, reports) = chain()?;
    let other = Sandbox::new()?;
    let file = |number: u32| world.path(&format!("{number}.tar")).display().to_string();
    other.run(&["extract", "-f", &file(2)])?.expect_code(0)?;
    // The second was left out: what only it carried is told, and nothing of the third is there.
    let refused = other.run(&["extract", "-f", &file(4)])?.expect_code(1)?;
    let mut missing = digests(&reports[2], "relies");
    for known in digests(&reports[0], "blobs") {
        missing.remove(&known);
    }
    assert!(!missing.is_empty());
    for digest in missing {
        assert!(refused.stderr.contains(&digest), "{}", refused.stderr);
    }
    let told = "extract the earlier archives first";
    assert!(refused.stderr.contains(told), "{}", refused.stderr);
    let listed = other.run(&["list"])?.expect_code(0)?;
    assert!(!listed.stdout.contains("chain:4"), "{}", listed.stdout);
    // A layer that rotted in the cache is no layer: the archive's word for it counts nothing.
    let rotten = digests(&reports[1], "relies").into_iter().next().unwrap();
    let blob = other.path().join(".cache/blobs/sha256").join(&rotten[7..]);
    let mut bytes = fs::read(&blob).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::remove_file(&blob).unwrap();
    fs::write(&blob, &bytes).unwrap();
    fs::set_permissions(&blob, fs::Permissions::from_mode(0o444)).unwrap();
    let refused = other.run(&["extract", "-f", &file(3)])?.expect_code(1)?;
    assert!(refused.stderr.contains(&rotten), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("docker-image-pusher verify"),
        "{}",
        refused.stderr
    );
    let listed = other.run(&["list"])?.expect_code(0)?;
    assert!(!listed.stdout.contains("chain:3"), "{}", listed.stdout);
    Ok(())
}

#[test]
fn an_export_since_another_may_be_in_parts_and_a_wrong_report_is_refused() -> Result<()> {
    let world = World::new()?;
    let registry = Registry::open()?;
    world.save(&["team/app:1"], "one.tar", &[])?;
    let printed = world
        .sandbox
        .run(&[
            "save",
            "-s",
            "team/app:1",
            "-f",
            "again.tar",
            "--output",
            "json",
        ])?
        .expect_code(0)?;
    // As it was printed, with all its lines.
    world.sandbox.file("one.json", &printed.stdout)?;
    let options = ["--since", "one.json", "--split-size", "20Ki"];
    let report = world.save(&["team/app:1", "team/tool:1"], "two.tar", &options)?;
    assert_eq!(report["version"], 2);
    assert!(report["parts"].as_array().map_or(0, Vec::len) > 3);
    let other = Sandbox::new()?;
    let path = |name: &str| world.path(name).display().to_string();
    other
        .run(&["extract", "-f", &path("one.tar")])?
        .expect_code(0)?;
    let command = push(&path("two.tar.000"), "copy/tool", "1", registry.address())
        .into_iter()
        .map(str::to_owned)
        .collect::<Vec<_>>();
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let options = ["--image", "docker.io/team/tool:1"];
    other.run(&with(&command, &options))?.expect_code(0)?;
    assert_eq!(
        skopeo::digest(registry.access(), "copy/tool:1")?,
        world.tool.digest
    );

    world.sandbox.file("none.json", "saved team/app:1")?;
    for (options, told) in [
        (&["--since", "none.json"][..], "no report of an archive"),
        (&["--since", "missing.json"], "could not read missing.json"),
        (
            &["--since", "one.json", "--format", "docker"],
            "--format oci",
        ),
    ] {
        let save = ["save", "-s", "team/tool:1", "-f", "x.tar"];
        let refused = world.sandbox.run(&with(&save, options))?.expect_code(2)?;
        assert!(refused.stderr.contains(told), "{}", refused.stderr);
    }
    world.assert_no_file("x.tar");
    Ok(())
}

#[test]
fn parts_that_split_and_sha256sum_made_are_read_too() -> Result<()> {
    let world = World::new()?;
    world.save(&["team/app:1"], "a.tar", &[])?;
    run(Command::new("sh")
        .arg("-c")
        .arg("gzip a.tar && split -b 100k -d -a 3 a.tar.gz a.tar.gz. && sha256sum a.tar.gz.??? > a.tar.gz.sha256")
        .current_dir(world.path("")))?;
    let first = world.path("a.tar.gz.000").display().to_string();
    let other = Sandbox::new()?;
    let extracted = other.run(&["extract", "-f", &first])?.expect_code(0)?;
    assert!(extracted.stdout.contains(&world.app.digest));
    Ok(())
}

/// A limit of the system on the size of a file, for want of a disk that gets full in the middle.
#[test]
fn a_write_that_fails_in_the_middle_leaves_nothing() -> Result<()> {
    let world = World::new()?;
    let save = format!(
        "trap '' XFSZ; ulimit -f 300; exec {} save -s team/app:1 -f x.tar --split-size 400Ki",
        program().display()
    );
    let failed = Command::new("bash")
        .args(["-c", &save])
        .current_dir(world.path(""))
        .output()
        .context("could not run save")?;
    assert_eq!(failed.status.code(), Some(1));
    let told = String::from_utf8_lossy(&failed.stderr);
    assert!(told.contains("x.tar.000"), "{told}");
    world.assert_no_file("x.tar");
    Ok(())
}
