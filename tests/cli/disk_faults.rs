//! A disk that refuses, fails, is full or read-only, and files that somebody else has changed: what is not safe on the disk
//! has no reference, whoever cannot go on says why, and the next run on a good disk completes.

use std::{
    fs,
    os::unix::fs::{FileExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use hyper::Method;

use crate::checker::{check, files_below};
use crate::commands::{pull, push};
use crate::support::{
    Context, Result,
    binary::{Finished, Sandbox},
    gateway::{Action, Gateway, Rule},
    images::Image,
    process::{poll, run},
    registry::Registry,
    skopeo,
    strace::{self, Fault},
};

const MIB: u64 = 1024 * 1024;

/// What somebody does to a file.
type Damage<'a> = &'a dyn Fn(&Path) -> std::io::Result<()>;

/// A registry with two images, the first of which is in the cache.
struct World {
    registry: Registry,
    sandbox: Sandbox,
    cache: PathBuf,
    old: Image,
    new: Image,
}

impl World {
    fn new() -> Result<Self> {
        let registry = Registry::open()?;
        let build = |seed| {
            let builder = Image::builder().layer_sizes(&[2 * MIB, 50_000]);
            builder.gzip_level(0).seed(seed).build()
        };
        let (old, new) = (build(1)?, build(2)?);
        old.push(registry.access(), "team/old:1")?;
        new.push(registry.access(), "team/new:1")?;
        let sandbox = Sandbox::new()?;
        let world = Self {
            cache: sandbox.path().join(".cache"),
            registry,
            sandbox,
            old,
            new,
        };
        world.pull("old")?.expect_code(0)?;
        Ok(world)
    }

    fn pull(&self, name: &str) -> Result<Finished> {
        let repository = format!("team/{name}");
        let command = pull(&repository, "1", self.registry.address());
        self.sandbox.run(&command)
    }

    fn pulling_new(&self) -> Vec<&str> {
        pull("team/new", "1", self.registry.address())
    }

    fn pushing_old(&self) -> Vec<&str> {
        push("team/old:1", "copy/old", "1", self.registry.address())
    }

    fn in_cache(&self, path: &str) -> PathBuf {
        self.cache.join(path)
    }

    fn blob(&self, image: &Image) -> PathBuf {
        let digest = &image.manifests[0].layers[0].blob.digest;
        self.in_cache(&digest.replace("sha256:", "blobs/sha256/"))
    }

    fn partial(&self, image: &Image) -> PathBuf {
        let digest = &image.manifests[0].layers[0].blob.digest;
        self.in_cache("blobs/.partial").join(digest)
    }

    fn has_new(&self) -> bool {
        self.in_cache("manifests/team/new/1").exists()
    }

    /// Both images are whole, in the cache and at a registry that got them from there.
    fn completes(&self) -> Result<()> {
        for (name, image) in [("old", &self.old), ("new", &self.new)] {
            self.pull(name)?.expect_code(0)?;
            let source = format!("team/{name}:1");
            let address = self.registry.address();
            let command = push(&source, "copy/of", name, address);
            self.sandbox.run(&command)?.expect_code(0)?;
            let digest = skopeo::digest(self.registry.access(), &format!("copy/of:{name}"))?;
            assert_eq!(digest, image.digest);
        }
        self.sandbox.run(&["verify"])?.expect_code(0)?;
        check(&self.cache)
    }
}

fn assert_said(finished: &Finished, parts: &[&str]) {
    for part in parts {
        let said = &finished.stderr;
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
}

#[test]
fn what_cannot_be_written_or_synced_is_thrown_away_and_gets_no_reference() -> Result<()> {
    let world = World::new()?;
    let folder = world.in_cache("manifests/team/new");
    for fault in [
        Fault::error("/^pwrite", "EIO"),
        Fault::error("/^rename", "EIO").of(&world.partial(&world.new)),
        Fault::error("syncfs", "EIO"),
        Fault::error("fsync", "EIO"),
    ] {
        let failed = fault
            .run(&world.sandbox, &world.pulling_new())?
            .expect_code(1)?;
        assert_said(&failed, &["in the cache", "Input/output error"]);
        assert!(!world.has_new(), "{fault:?}");
        check(&world.cache).context(format!("{fault:?}"))?;
    }
    // The tag has its name, but nobody knows whether that is on the disk: it is not said to be done.
    let fault = Fault::error("fsync", "EIO").of(&folder);
    fault
        .run(&world.sandbox, &world.pulling_new())?
        .expect_code(1)?;
    world.completes()
}

#[test]
fn a_sync_that_failed_is_not_asked_again() -> Result<()> {
    let world = World::new()?;
    let fault = Fault::error("syncfs", "EIO");
    fault
        .run(&world.sandbox, &world.pulling_new())?
        .expect_code(1)?;
    let log = strace::read(&world.sandbox.path().join("strace.log"));
    assert_eq!(log.matches("syncfs(").count(), 1, "{log}");
    assert!(!world.blob(&world.new).exists(), "its fate is unknown");
    world.completes()
}

#[test]
fn a_download_whose_checkpoint_cannot_be_synced_is_thrown_away() -> Result<()> {
    let world = World::new()?;
    let slow = Rule::on(&Method::GET, "/blobs/", Action::SlowAnswer(1_500_000));
    let gateway = Gateway::before(&world.registry).rule(slow).start()?;
    let (address, partial) = (gateway.address(), world.partial(&world.new));
    let traced =
        Fault::error("fdatasync", "EIO").start(&world.sandbox, &pull("team/new", "1", &address))?;
    let notes = partial.with_extension("state");
    poll(Duration::from_secs(30), || notes.exists().then_some(())).expect("it is noted");
    traced.signal("TERM")?;
    traced.running.wait()?.expect_code(130)?;
    assert!(strace::read(&traced.log).contains("INJECTED"));
    assert!(!partial.exists() && !notes.exists());
    world.completes()
}

#[test]
fn a_full_volume_is_said_wherever_it_shows_and_pushes_go_on() -> Result<()> {
    for errno in ["ENOSPC", "EDQUOT"] {
        let world = World::new()?;
        for fault in [
            Fault::error("fallocate", errno),
            Fault::error("/^pwrite", errno),
            Fault::error("/^rename", errno).of(&world.partial(&world.new)),
            Fault::error("/^mkdir", errno).of(&world.in_cache("manifests/team/new")),
            // Of manifests.
            Fault::error("fsync", errno),
        ] {
            let failed = fault.run(&world.sandbox, &world.pulling_new())?;
            let failed = failed.expect_code(1).context(format!("{fault:?}"))?;
            assert_said(&failed, &["the cache volume is full", "free"]);
            assert!(!world.has_new(), "{fault:?}");
            check(&world.cache).context(format!("{fault:?}"))?;
        }
        let full = "/^pwrite,fallocate,fsync,/^rename,/^mkdir";
        let full = Fault::error(full, errno);
        let pushing = full.start(&world.sandbox, &world.pushing_old())?;
        pushing.running.wait()?.expect_code(0)?;
        world.completes()?;
    }
    Ok(())
}

#[test]
fn a_finished_image_does_not_fail_for_its_index() -> Result<()> {
    for errno in ["ENOSPC", "EIO"] {
        let world = World::new()?;
        let fault = Fault::error("fsync", errno).of(&world.cache);
        let pulled = fault
            .run(&world.sandbox, &world.pulling_new())?
            .expect_code(0)?;
        assert_said(&pulled, &["the cache index could not be written"]);
        let fault = Fault::error("read", errno).of(&world.in_cache("index.json"));
        if errno == "EIO" {
            let listed = fault.run(&world.sandbox, &["list"])?.expect_code(0)?;
            assert!(listed.stdout.contains("team/new:1"), "{}", listed.stdout);
        }
        world.completes()?;
    }
    Ok(())
}

#[test]
fn what_the_disk_does_not_give_back_is_told_and_comes_again() -> Result<()> {
    let world = World::new()?;
    let manifest = world.in_cache("manifests/team/old/1");
    for path in [world.blob(&world.old), manifest] {
        let reading = Fault::error("read,/^pread,/^preadv,/^sendfile", "EIO").of(&path);
        let failed = reading
            .run(&world.sandbox, &world.pushing_old())?
            .expect_code(1)?;
        assert_said(&failed, &["Input/output error"]);
        assert!(skopeo::digest(world.registry.access(), "copy/old:1").is_err());
        let verified = reading.run(&world.sandbox, &["verify"])?;
        assert_ne!(verified.code(), Some(0), "{verified:?}");
        world.completes()?;
    }
    Ok(())
}

/// Runs the program where nothing can be written: on a read-only mount, or without permission.
fn run_unwritable(world: &World, way: &str, command: &[&str]) -> Result<Finished> {
    let cache = world.cache.display().to_string();
    let mount = "mount --bind \"$1\" \"$1\"; mount -o remount,bind,ro \"$1\"; shift; exec \"$@\"";
    let read_only = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-ec",
        mount,
        "sh",
        &cache,
    ];
    // Root of nothing: permissions count.
    let nobody = ["unshare", "--user"];
    let wrapper: &[&str] = if way == "EROFS" { &read_only } else { &nobody };
    world.sandbox.start_under(wrapper, command)?.wait()
}

#[test]
fn a_cache_that_cannot_be_written_is_listed_and_pushed_from() -> Result<()> {
    let world = World::new()?;
    let archive = world.sandbox.path().join("new.tar");
    world.new.save_docker_archive(&archive, "team/new:1")?;
    let archive = archive.display().to_string();
    let chmod = |mode| run(Command::new("chmod").args(["-R", mode]).arg(&world.cache));
    for way in ["EROFS", "EACCES"] {
        if way == "EACCES" {
            chmod("a-w")?;
        }
        let listed = run_unwritable(&world, way, &["list"])?.expect_code(0)?;
        assert!(listed.stdout.contains("team/old:1"), "{}", listed.stdout);
        let copy = push("team/old:1", "copy/old", way, world.registry.address());
        run_unwritable(&world, way, &copy)?.expect_code(0)?;
        let digest = skopeo::digest(world.registry.access(), &format!("copy/old:{way}"))?;
        assert_eq!(digest, world.old.digest);
        for command in [&world.pulling_new()[..], &["extract", "-f", &archive]] {
            let refused = run_unwritable(&world, way, command)?.expect_code(1)?;
            let cache = world.cache.display().to_string();
            assert_said(&refused, &["cannot be written", &cache]);
        }
        assert_eq!(world.registry.count("GET", "team/new/blobs/"), 0);
    }
    chmod("u+w")?;
    world.completes()
}

#[test]
fn an_index_of_strangers_is_read_for_nothing_but_what_it_may_say() -> Result<()> {
    let world = World::new()?;
    let index = world.in_cache("index.json");
    let sound = fs::read_to_string(&index).context("no index")?;
    let outside = sound.replace("manifests/team", "../../manifests/team");
    let elsewhere = sound.replace("blobs/sha256/", "../../../etc/");
    let digest = &world.old.manifests[0].config.digest;
    let unknown = sound.replace(digest.as_str(), &format!("sha256:{}", "0".repeat(64)));
    let half = &sound[..sound.len() / 2];
    for content in [
        "",
        half,
        "\0\0\0\0",
        "[1, 2]",
        "{\"a/b\": 7}",
        &outside,
        &elsewhere,
        &unknown,
    ] {
        fs::write(&index, content).context("could not write")?;
        let listed = world.sandbox.run(&["list"])?.expect_code(0)?;
        assert!(
            listed.stdout.contains("team/old:1"),
            "{content}: {}",
            listed.stdout
        );
        world.sandbox.run(&world.pushing_old())?.expect_code(0)?;
        world
            .sandbox
            .run(&["verify"])?
            .expect_code(0)
            .context(content)?;
    }
    let huge = fs::File::create(&index).context("no index")?;
    huge.set_len(1 << 30).context("could not grow")?;
    let listed = world.sandbox.run(&["list"])?.expect_code(0)?;
    assert!(
        listed.peak_rss_bytes < 256 * MIB,
        "{}",
        listed.peak_rss_bytes
    );
    assert!(listed.stdout.contains("team/old:1"), "{}", listed.stdout);
    world.completes()
}

#[test]
fn a_blob_that_was_cut_changed_or_replaced_is_found_and_comes_again() -> Result<()> {
    let world = World::new()?;
    let path = world.blob(&world.old);
    let outside = world.sandbox.file("outside", "not to be read or changed")?;
    let damages: [(&str, Damage<'_>); 4] = [
        ("cut", &|path| fs::File::create(path)?.set_len(1000)),
        ("flipped", &|path| {
            let file = fs::OpenOptions::new().write(true).open(path)?;
            file.write_all_at(b"flip", MIB)
        }),
        ("a symlink", &|path| {
            fs::remove_file(path)?;
            symlink(&outside, path)
        }),
        ("a folder", &|path| {
            fs::remove_file(path)?;
            fs::create_dir(path)
        }),
    ];
    for (what, damage) in damages {
        let writable = fs::Permissions::from_mode(0o644);
        fs::set_permissions(&path, writable).context(what)?;
        damage(&path).context(what)?;
        let fresh = Registry::open()?;
        let command = push("team/old:1", "copy/old", "1", fresh.address());
        world.sandbox.run(&command)?.expect_code(1).context(what)?;
        assert!(
            skopeo::digest(fresh.access(), "copy/old:1").is_err(),
            "{what}"
        );
        world
            .sandbox
            .run(&["verify"])?
            .expect_code(1)
            .context(what)?;
        assert!(!path.exists(), "{what} is still served");
        world.completes().context(what)?;
    }
    let outside = fs::read_to_string(outside).context("it is gone")?;
    assert_eq!(outside, "not to be read or changed");
    Ok(())
}

#[test]
fn nothing_goes_early_when_the_clock_was_ahead() -> Result<()> {
    let world = World::new()?;
    let files = files_below(&world.cache)?;
    let mut touch = Command::new("touch");
    run(touch.args(["-d", "next year"]).args(&files))?;
    let cleaned = world
        .sandbox
        .run(&["clean", "--keep-within", "1h"])?
        .expect_code(0)?;
    assert!(
        cleaned.stdout.contains("removed 0 images, 0 blobs"),
        "{}",
        cleaned.stdout
    );
    world.completes()
}

#[test]
fn who_is_asked_to_stop_leaves_a_checkpoint_and_no_lease() -> Result<()> {
    let world = World::new()?;
    let slow = Rule::on(&Method::GET, "/blobs/", Action::SlowAnswer(1_500_000));
    let gateway = Gateway::before(&world.registry).rule(slow).start()?;
    let address = gateway.address();
    let command = pull("team/new", "1", &address);
    let running = world.sandbox.start(&command)?;
    let notes = world.partial(&world.new).with_extension("state");
    poll(Duration::from_secs(30), || notes.exists().then_some(())).expect("it is noted");
    let asked = std::time::Instant::now();
    running.signal("TERM")?;
    running.wait()?.expect_code(130)?;
    assert!(
        asked.elapsed() < Duration::from_secs(5),
        "{:?}",
        asked.elapsed()
    );
    assert!(files_below(&world.in_cache(".leases"))?.is_empty());
    check(&world.cache)?;
    gateway.clear_rules();
    gateway.forget();
    world.sandbox.run(&command)?.expect_code(0)?;
    let fetched = gateway.answer_bytes(|exchange| exchange.path.contains("/blobs/"));
    assert!(fetched < world.new.size() - MIB / 2, "{fetched} came again");
    world.completes()
}
