//! kill -9 at exactly one moment of a run, for each moment that could leave something half done. Every time the cache is
//! right to a stranger's eyes and to `verify`, and the same command again succeeds with the same digests.

use std::{
    fs,
    path::{Path, PathBuf},
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
    process::poll,
    registry::Registry,
    skopeo,
    strace::{Fault, kill_when},
};

const MIB: u64 = 1024 * 1024;

/// A registry with an image, a gateway that counts what is fetched of it, and an empty cache.
struct World {
    registry: Registry,
    gateway: Gateway,
    address: String,
    sandbox: Sandbox,
    image: Image,
    cache: PathBuf,
}

impl World {
    /// With `team/app:1`, of a layer of 3 MiB and a small one.
    fn new() -> Result<Self> {
        let registry = Registry::open()?;
        let gateway = Gateway::before(&registry).start()?;
        let image = image(1)?;
        image.push(registry.access(), "team/app:1")?;
        let sandbox = Sandbox::new()?;
        Ok(Self {
            address: gateway.address(),
            cache: sandbox.path().join(".cache"),
            registry,
            gateway,
            sandbox,
            image,
        })
    }

    fn pull(&self) -> Vec<&str> {
        pull("team/app", "1", &self.address)
    }

    fn in_cache(&self, path: &str) -> PathBuf {
        self.cache.join(path)
    }

    /// The unfinished download of the large layer.
    fn partial(&self) -> PathBuf {
        let digest = &self.image.manifests[0].layers[0].blob.digest;
        self.in_cache("blobs/.partial").join(digest)
    }

    fn notes(&self) -> PathBuf {
        self.partial().with_extension("state")
    }

    fn large(&self) -> u64 {
        self.image.manifests[0].layers[0].blob.size
    }

    /// Bytes of blobs that were fetched since the last question.
    fn fetched(&self) -> u64 {
        let bytes = self
            .gateway
            .answer_bytes(|exchange| exchange.path.contains("/blobs/"));
        self.gateway.forget();
        bytes
    }

    /// Runs a command up to the call at which it is killed, and looks at what is left.
    fn killed(&self, fault: &Fault, command: &[&str]) -> Result<()> {
        let finished = fault.run(&self.sandbox, command)?;
        self.look(&finished)
    }

    fn killed_when(
        &self,
        calls: &'static str,
        command: &[&str],
        looks: impl Fn() -> bool,
    ) -> Result<()> {
        let finished = kill_when(&self.sandbox, calls, command, looks)?;
        self.look(&finished)
    }

    fn look(&self, finished: &Finished) -> Result<()> {
        assert_eq!(finished.code(), None, "{finished:?}");
        check(&self.cache)?;
        self.sandbox.run(&["verify"])?.expect_code(0)?;
        check(&self.cache)
    }

    /// The same command again. The answer is how many bytes of blobs it fetched.
    fn again(&self, command: &[&str]) -> Result<u64> {
        self.fetched();
        self.sandbox.run(command)?.expect_code(0)?;
        check(&self.cache)?;
        self.sandbox.run(&["verify"])?.expect_code(0)?;
        Ok(self.fetched())
    }

    /// What the cache has under this name, as skopeo sees it after a push.
    fn cached(&self, name: &str) -> Result<String> {
        let address = self.registry.address();
        let command = push(name, "copy/of", "it", address);
        self.sandbox.run(&command)?.expect_code(0)?;
        skopeo::digest(self.registry.access(), "copy/of:it")
    }

    /// The killed pull again: all is right, and nothing else is left but what `clean` removes.
    fn completes(&self) -> Result<u64> {
        let fetched = self.again(&self.pull())?;
        assert_eq!(self.cached("team/app:1")?, self.image.digest);
        Ok(fetched)
    }

    fn leases(&self) -> usize {
        count(&self.in_cache(".leases"))
    }
}

fn image(seed: u64) -> Result<Image> {
    Image::builder()
        .layer_sizes(&[3 * MIB, 70_000])
        .gzip_level(0)
        .seed(seed)
        .build()
}

fn count(folder: &Path) -> usize {
    fs::read_dir(folder).map_or(0, Iterator::count)
}

/// Files that nobody gave a name yet.
fn temporaries(folder: &Path) -> usize {
    let names = fs::read_dir(folder).into_iter().flatten().flatten();
    names
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(".tmp-"))
        .count()
}

#[test]
fn a_lease_of_the_dead_pins_nothing_and_goes() -> Result<()> {
    let world = World::new()?;
    // Without content, half written, and whole.
    world.killed_when("flock", &world.pull(), || world.leases() == 1)?;
    world.killed(&Fault::kill("/^statfs").of(&world.partial()), &world.pull())?;
    assert!(world.leases() >= 1, "no lease is left");
    world.completes()?;
    world.sandbox.run(&["clean"])?.expect_code(0)?;
    assert_eq!(world.leases(), 0);
    assert!(files_below(&world.in_cache("blobs"))?.is_empty());
    Ok(())
}

#[test]
fn the_length_of_an_unfinished_blob_is_no_progress() -> Result<()> {
    let world = World::new()?;
    let fault = Fault::kill("/^pwrite").of(&world.partial());
    world.killed(&fault, &world.pull())?;
    let metadata = fs::metadata(world.partial()).context("no partial")?;
    assert_eq!(metadata.len(), world.large());
    assert!(!world.notes().exists());
    assert!(world.completes()? >= world.large());
    Ok(())
}

#[test]
fn what_was_noted_serves_until_the_system_starts_anew() -> Result<()> {
    for is_same_boot in [true, false] {
        let world = World::new()?;
        let slow = Rule::on(&Method::GET, "/blobs/", Action::SlowAnswer(2_000_000));
        world.gateway.add_rule(slow);
        world.killed_when("fdatasync", &world.pull(), || {
            fs::read_to_string(world.notes()).is_ok_and(|text| text.lines().count() > 1)
        })?;
        world.gateway.clear_rules();
        let large = world.large();
        if is_same_boot {
            let fetched = world.completes()?;
            assert!(fetched < large - MIB / 2, "{fetched} bytes came again");
        } else {
            world.fetched();
            after_a_new_start(&world.sandbox, &world.pull())?.expect_code(0)?;
            assert!(world.fetched() >= large, "unsynced bytes were trusted");
            world.completes()?;
        }
    }
    Ok(())
}

/// Runs the program as on a system that was started since: with another boot id.
pub(crate) fn after_a_new_start(sandbox: &Sandbox, command: &[&str]) -> Result<Finished> {
    let id = sandbox.file("boot_id", "11111111-2222-3333-4444-555555555555\n")?;
    let script = "mount --bind \"$1\" /proc/sys/kernel/random/boot_id; shift; exec \"$@\"";
    let id = id.display().to_string();
    let own = ["unshare", "--user", "--map-root-user", "--mount"];
    let wrapper = [&own[..], &["sh", "-ec", script, "sh", &id]].concat();
    sandbox.start_under(&wrapper, command)?.wait()
}

#[test]
fn half_a_note_is_none_and_a_checkpoint_without_its_name_costs_nothing() -> Result<()> {
    let world = World::new()?;
    let fault = Fault::kill("write").of(&world.notes());
    world.killed(&fault, &world.pull())?;
    let notes = fs::metadata(world.notes()).context("no notes")?;
    assert_eq!(notes.len(), 0);
    assert!(world.completes()? >= world.large());

    // Whoever is asked to stop writes a checkpoint beside the notes: it dies before that takes their place.
    let world = World::new()?;
    let slow = Rule::on(&Method::GET, "/blobs/", Action::SlowAnswer(2_000_000));
    world.gateway.add_rule(slow);
    let fault = Fault::kill("fsync");
    let traced = fault.start(&world.sandbox, &world.pull())?;
    poll(Duration::from_secs(30), || {
        fs::read_to_string(world.notes())
            .is_ok_and(|text| text.lines().count() > 1)
            .then_some(())
    })
    .expect("notes are written");
    traced.signal("TERM")?;
    world.look(&traced.running.wait()?)?;
    assert_eq!(temporaries(&world.in_cache("blobs/.partial")), 1);
    world.gateway.clear_rules();
    let fetched = world.completes()?;
    assert!(fetched < world.large() - MIB / 2, "{fetched} came again");
    world.sandbox.run(&["clean"])?.expect_code(0)?;
    assert_eq!(count(&world.in_cache("blobs/.partial")), 0);
    Ok(())
}

#[test]
fn a_whole_blob_without_its_name_needs_no_second_download() -> Result<()> {
    let world = World::new()?;
    let fault = Fault::kill("/^rename").of(&world.partial());
    world.killed(&fault, &world.pull())?;
    assert!(world.partial().exists());
    // Small blobs are not kept, and ranges are noted once there is a mebibyte of them.
    let fetched = world.completes()?;
    assert!(fetched < 3 * MIB / 2, "{fetched} bytes came again");
    Ok(())
}

#[test]
fn blobs_without_an_image_are_used_by_the_next_one() -> Result<()> {
    let world = World::new()?;
    let blobs = world.image.blobs().len();
    world.killed_when("syncfs", &world.pull(), || {
        count(&world.in_cache("blobs/sha256")) == blobs
    })?;
    let listed = world.sandbox.run(&["list"])?.expect_code(0)?;
    assert!(listed.stdout.contains("no images"), "{}", listed.stdout);
    world
        .sandbox
        .run(&["clean", "--keep-within", "1h", "--dry-run"])?
        .expect_code(0)?;
    assert_eq!(world.completes()?, 0);

    let world = World::new()?;
    world.killed(&Fault::kill("syncfs"), &world.pull())?;
    assert_eq!(world.completes()?, 0);
    Ok(())
}

#[test]
fn a_tag_stands_for_the_old_image_or_for_the_new_one_and_the_index_follows() -> Result<()> {
    let world = World::new()?;
    let [old, new] = [3, 4].map(|seed| {
        let builder = Image::builder().layers(1, 50_000).seed(seed);
        builder.platforms(&["linux/amd64", "linux/arm64"]).build()
    });
    let (old, new) = (old?, new?);
    old.push(world.registry.access(), "team/index:1")?;
    let command = pull("team/index", "1", &world.address);
    world.sandbox.run(&command)?.expect_code(0)?;
    let folder = world.in_cache("manifests/team/index");

    // The new image's manifests have their names, its tag has not.
    new.push(world.registry.access(), "team/index:1")?;
    world.killed(&Fault::kill("fsync").of(&folder).at(1), &command)?;
    assert_eq!(count(&folder), 2 + 2 + 1);
    assert_eq!(world.cached("team/index:1")?, old.digest);
    world.again(&command)?;
    assert_eq!(world.cached("team/index:1")?, new.digest);

    // The tag has its name, the index does not know.
    old.push(world.registry.access(), "team/index:1")?;
    let index = world.in_cache("index.json");
    let before = fs::read(&index).context("no index")?;
    world.killed(&Fault::kill("fsync").of(&folder).at(2), &command)?;
    assert_eq!(fs::read(&index).context("no index")?, before);
    assert_eq!(world.cached("team/index:1")?, old.digest);
    let listed = world.sandbox.run(&["list"])?.expect_code(0)?;
    assert!(
        listed.stdout.contains(&old.digest[..19]),
        "{}",
        listed.stdout
    );
    world.again(&command)?;
    assert_eq!(world.cached("team/index:1")?, old.digest);
    Ok(())
}

#[test]
fn an_index_without_its_name_is_forgotten() -> Result<()> {
    let world = World::new()?;
    let tag = world.in_cache("manifests/team/app/1");
    world.killed_when("/^rename", &world.pull(), || {
        tag.exists() && temporaries(&world.cache) == 1
    })?;
    let listed = world.sandbox.run(&["list"])?.expect_code(0)?;
    let digest = &world.image.digest[..19];
    assert!(listed.stdout.contains(digest), "{}", listed.stdout);
    assert_eq!(world.completes()?, 0);
    world.sandbox.run(&["clean"])?.expect_code(0)?;
    assert_eq!(temporaries(&world.cache), 0);
    Ok(())
}

#[test]
fn an_archive_leaves_nothing_visible_until_it_was_read() -> Result<()> {
    let world = World::new()?;
    let archive = world.sandbox.path().join("app.tar");
    world
        .image
        .save_docker_archive(&archive, "team/archived:1")?;
    let archive = archive.display().to_string();
    let command = ["extract", "-f", &archive];
    world.killed_when("/^rename", &command, || {
        count(&world.in_cache("blobs/.partial")) > 0
    })?;
    assert_eq!(count(&world.in_cache("blobs/sha256")), 0);
    let listed = world.sandbox.run(&["list"])?.expect_code(0)?;
    assert!(listed.stdout.contains("no images"), "{}", listed.stdout);
    world.again(&command)?;
    world.cached(&archive)?;
    let config = skopeo::config(world.registry.access(), "copy/of:it")?;
    let layers = &world.image.manifests[0].layers;
    let diff_ids: Vec<_> = layers.iter().map(|layer| &layer.diff_id).collect();
    assert_eq!(config["rootfs"]["diff_ids"], serde_json::json!(diff_ids));
    world.sandbox.run(&["clean"])?.expect_code(0)?;
    assert_eq!(count(&world.in_cache("blobs/.partial")), 0);
    Ok(())
}

#[test]
fn a_clean_that_dies_has_removed_whole_images_or_nothing() -> Result<()> {
    let world = World::new()?;
    world.sandbox.run(&world.pull())?.expect_code(0)?;
    image(2)?.push(world.registry.access(), "team/doomed:1")?;
    let doomed = pull("team/doomed", "1", &world.address);
    let clean = ["clean", "-r", "team/doomed"];
    let trash = world.in_cache(".trash");
    for fault in [
        Fault::kill("/^openat").of(&world.in_cache("manifests/team")),
        Fault::kill("/^rename").at(1),
        Fault::kill("syncfs").at(1),
        Fault::kill("/^rename").at(2),
        Fault::kill("/^rename").at(3),
        Fault::kill("/^openat").of(&trash),
        Fault::kill("/^unlink,rmdir").of(&trash),
        Fault::kill("fsync").of(&world.cache),
    ] {
        world.sandbox.run(&doomed)?.expect_code(0)?;
        world.killed(&fault, &clean)?;
        // It may be gone already, which a clean of it says.
        world.sandbox.run(&clean)?;
        world
            .sandbox
            .run(&["clean", "--keep-within", "1h"])?
            .expect_code(0)?;
        check(&world.cache)?;
        assert!(!trash.exists(), "{fault:?}");
        assert!(!world.in_cache("manifests/team/doomed").exists());
    }
    assert_eq!(world.cached("team/app:1")?, world.image.digest);
    assert_eq!(
        count(&world.in_cache("blobs/sha256")),
        world.image.blobs().len()
    );
    Ok(())
}

#[test]
fn what_a_pull_has_pinned_a_clean_leaves_also_where_one_of_them_dies() -> Result<()> {
    for dies in ["neither", "pull", "clean"] {
        let world = World::new()?;
        let slow = Rule::on(&Method::GET, "/blobs/", Action::SlowAnswer(6_000_000));
        world.gateway.add_rule(slow);
        let pulling = world.sandbox.start(&world.pull())?;
        poll(Duration::from_secs(30), || {
            world.partial().exists().then_some(())
        })
        .expect("a download begins");
        match dies {
            "clean" => {
                let marking = Fault::kill("/^openat").of(&world.in_cache("manifests"));
                drop(marking.run(&world.sandbox, &["clean"])?);
            }
            _ => drop(world.sandbox.run(&["clean"])?.expect_code(0)?),
        }
        assert!(world.partial().exists(), "a pinned download was removed");
        if dies == "pull" {
            pulling.signal("KILL")?;
            world.look(&pulling.wait()?)?;
            world.sandbox.run(&["clean"])?.expect_code(0)?;
            assert!(!world.partial().exists(), "the dead pin something");
        } else {
            pulling.wait()?.expect_code(0)?;
        }
        world.completes()?;
    }
    Ok(())
}

#[test]
fn who_waits_for_a_blob_goes_on_where_the_other_died() -> Result<()> {
    let world = World::new()?;
    let slow = Rule::on(&Method::GET, "/blobs/", Action::SlowAnswer(2_000_000));
    world.gateway.add_rule(slow);
    let command = world.pull();
    let first = world.sandbox.start(&command)?;
    poll(Duration::from_secs(30), || {
        world.notes().exists().then_some(())
    })
    .expect("notes");
    let second = world.sandbox.start(&command)?;
    std::thread::sleep(Duration::from_millis(200));
    first.signal("KILL")?;
    first.wait()?;
    second.wait()?.expect_code(0)?;
    let fetched = world.fetched();
    assert!(
        fetched < world.image.size() + world.large() / 2,
        "{fetched}"
    );
    world.completes()?;
    Ok(())
}

#[test]
fn a_tag_that_makes_room_for_a_folder_is_found_in_either_place() -> Result<()> {
    let from = "manifests/a/b/c";
    for fault in [
        |world: &World| Fault::kill("/^mkdir").of(&world.in_cache("manifests/a/b/.tags")),
        |world: &World| Fault::kill("/^rename").of(&world.in_cache("manifests/a/b/c")),
        |world: &World| Fault::kill("fsync").of(&world.in_cache("manifests/a/b/.tags")),
        |world: &World| Fault::kill("/^mkdir").of(&world.in_cache("manifests/a/b/c")),
    ] {
        let world = World::new()?;
        let second = Image::builder().seed(9).build()?;
        world.image.push(world.registry.access(), "a/b:c")?;
        second.push(world.registry.access(), "a/b/c:1")?;
        world
            .sandbox
            .run(&pull("a/b", "c", &world.address))?
            .expect_code(0)?;
        assert!(world.in_cache(from).is_file());
        let command = pull("a/b/c", "1", &world.address);
        world.killed(&fault(&world), &command)?;
        assert_eq!(world.cached("a/b:c")?, world.image.digest);
        world.again(&command)?;
        assert!(world.in_cache(from).is_dir());
        assert_eq!(world.cached("a/b:c")?, world.image.digest);
        assert_eq!(world.cached("a/b/c:1")?, second.digest);
    }
    Ok(())
}
