//! Archives as a source: what lies below the folder of a mirror's namespace arrives, and nothing else is ever read.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::bed::{Bed, PATIENCE, condition};
use crate::support::binary::Sandbox;
use crate::support::images::Image;
use crate::support::podman::Podman;
use crate::support::process::{Guarded, temporary_folder};
use crate::support::registry::Registry;
use crate::support::{Context, Result, skopeo};

/// A namespace, its folder of archives, and a registry to which they go.
struct Shelf {
    bed: Bed<'static>,
    folder: TempDir,
    to: Registry,
}

impl Shelf {
    async fn new(prefix: &str) -> Result<Self> {
        let shelf = Self {
            bed: Bed::new(prefix).await?,
            folder: temporary_folder("shelf")?,
            to: Registry::open()?,
        };
        fs::create_dir(shelf.path("")).context("could not make the namespace's folder")?;
        Ok(shelf)
    }

    fn operator(&self) -> Result<Guarded> {
        self.operator_with(&[])
    }

    /// An operator with these options besides the usual ones.
    fn operator_with(&self, options: &[&str]) -> Result<Guarded> {
        let folder = self.folder.path().to_str().unwrap();
        let usual = [
            "--watch-namespace",
            &self.bed.namespace,
            "--archive-dir",
            folder,
        ];
        self.bed.operator_with(&[&usual, options].concat())
    }

    /// Where the mirrors of the namespace find `path`.
    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(&self.bed.namespace).join(path)
    }

    /// Puts a file there that has stood still for long, so that nobody waits for it.
    fn put(&self, path: &str, content: impl AsRef<[u8]>) -> Result<()> {
        fs::write(self.path(path), content).context("could not write an archive")?;
        self.settle(path)
    }

    fn settle(&self, path: &str) -> Result<()> {
        let long_ago = SystemTime::now() - Duration::from_hours(1);
        let file = File::options().append(true).open(self.path(path));
        file.and_then(|file| file.set_modified(long_ago))
            .context("could not set the time of an archive")
    }

    /// A fresh image as a docker archive at `path`, by this name.
    fn put_image(&self, path: &str, name: &str) -> Result<Image> {
        let image = Image::builder().layers(2, 60_000).build()?;
        // skopeo writes into no archive that is there.
        let fresh = self.path("fresh.tar");
        image.save_docker_archive(&fresh, name)?;
        fs::rename(&fresh, self.path(path)).context("could not name an archive")?;
        self.settle(path)?;
        Ok(image)
    }

    /// A mirror that sends images of the archive `path` to a part of the registry that has the mirror's name.
    fn mirror(&self, name: &str, path: &str, images: &Value) -> Result<()> {
        self.mirror_to(name, path, images, &format!("{name}/{{repository}}"))
    }

    fn mirror_to(&self, name: &str, path: &str, images: &Value, repository: &str) -> Result<()> {
        let repository = format!("{}/{repository}", self.to.access().address);
        let spec = json!({
            "source": {"archive": {"path": path, "images": images}},
            "destinations": [{"repository": repository, "insecure": true}],
        });
        self.bed.mirror(name, &spec)
    }

    fn wait_succeeded(&self, name: &str) -> Result<Value> {
        self.bed.wait_ready(name, "True", "Succeeded")
    }

    /// Waits until the mirror has failed for this reason for good, and returns what it says.
    fn wait_stalled(&self, name: &str, reason: &str) -> Result<String> {
        let object = self.bed.wait_ready(name, "False", reason)?;
        let stalled = condition(&object, "Stalled");
        assert_eq!(
            (&stalled["status"], &stalled["reason"]),
            (&json!("True"), &json!(reason))
        );
        assert!(condition(&object, "Reconciling").is_null(), "{object:#}");
        // Another file may lie there by then.
        assert!(object["status"]["nextSyncTime"].is_string(), "{object:#}");
        Ok(stalled["message"].as_str().unwrap().to_owned())
    }
}

/// Two images in one archive, with these names.
fn two_images(file: &Path, names: [&str; 2]) -> Result<[Image; 2]> {
    let folder = temporary_folder("podman")?;
    let podman = Podman::new(folder.path());
    let images = [Image::builder().build()?, Image::builder().build()?];
    for (image, name) in images.iter().zip(names) {
        podman.add(image, name)?;
    }
    let options = ["--format=docker-archive", "--multi-image-archive"];
    podman.save(&[&options[..], &names].concat(), file)?;
    Ok(images)
}

/// The registry has this image, as far as its content before compression goes.
fn assert_same_content(registry: &Registry, name: &str, image: &Image) -> Result<()> {
    let config = skopeo::config(registry.access(), name)?;
    let layers = image.manifests[0].layers.iter();
    let expected: Vec<&str> = layers.map(|layer| layer.diff_id.as_str()).collect();
    assert_eq!(config["rootfs"]["diff_ids"], json!(expected), "{name}");
    Ok(())
}

#[tokio::test]
async fn a_docker_archive_arrives_with_the_digest_that_push_gives_it() -> Result<()> {
    let shelf = Shelf::new("docker-archive").await?;
    let image = shelf.put_image("app.tar", "team/app:1.2")?;
    let _operator = shelf.operator()?;
    shelf.mirror("app", "app.tar", &json!([]))?;
    let object = shelf.wait_succeeded("app")?;
    let arrived = skopeo::digest(shelf.to.access(), "app/team/app:1.2")?;
    let shown = &object["status"]["images"][0];
    assert_eq!(shown["digest"], arrived, "{object:#}");
    assert_same_content(&shelf.to, "app/team/app:1.2", &image)?;
    let copy = temporary_folder("copy")?;
    skopeo::download(shelf.to.access(), "app/team/app:1.2", copy.path())?;

    let other = Registry::open()?;
    let file = shelf.path("app.tar").display().to_string();
    let sandbox = Sandbox::new()?;
    sandbox
        .run(&[
            "push",
            "-s",
            &file,
            "-r",
            "team/app",
            "-t",
            "1",
            "--registry",
            other.address(),
        ])?
        .expect_code(0)?;
    assert_eq!(skopeo::digest(other.access(), "team/app:1")?, arrived);
    Ok(())
}

#[tokio::test]
async fn the_manifests_of_an_oci_archive_arrive_byte_for_byte() -> Result<()> {
    let shelf = Shelf::new("oci-archive").await?;
    let image = Image::builder()
        .layers(2, 60_000)
        .platforms(&["linux/amd64", "linux/arm64"])
        .build()?;
    for (path, name) in [
        ("named.tar", "registry.example/team/app:1"),
        ("tag.tar", "1"),
    ] {
        image.save_oci_archive(&shelf.path(path), name)?;
        shelf.settle(path)?;
    }
    let _operator = shelf.operator()?;
    shelf.mirror("named", "named.tar", &json!([]))?;
    // Its name is a tag alone, so the mirror has to say the rest.
    shelf.mirror("nameless", "tag.tar", &json!([]))?;
    let chosen = json!([{"index": 0, "as": "team/tool:3"}]);
    shelf.mirror("chosen", "tag.tar", &chosen)?;
    let written = fs::read(image.blob_file(&image.digest)).context("no index")?;
    for (name, place) in [
        ("named", "named/team/app:1"),
        ("chosen", "chosen/team/tool:3"),
    ] {
        shelf.wait_succeeded(name)?;
        let arrived = skopeo::raw_manifest(shelf.to.access(), place)?;
        assert_eq!(arrived, written, "{name}");
    }
    let copy = temporary_folder("copy")?;
    skopeo::download(shelf.to.access(), "named/team/app:1", copy.path())?;
    let said = shelf.wait_stalled("nameless", "ArchiveImageUnnamed")?;
    assert!(said.contains("index and as"), "{said}");
    Ok(())
}

#[tokio::test]
async fn images_are_picked_by_name_or_position_and_go_by_the_name_they_are_given() -> Result<()> {
    let shelf = Shelf::new("picked").await?;
    let file = shelf.path("two.tar");
    let names = ["registry.example/app:1", "docker.io/library/tool:2"];
    let [app, tool] = two_images(&file, names)?;
    shelf.settle("two.tar")?;
    let _operator = shelf.operator()?;
    shelf.mirror("all", "two.tar", &json!([]))?;
    let renamed = json!([{"name": "tool:2", "as": "team/tool:9"}, {"index": 0}]);
    shelf.mirror("picked", "two.tar", &renamed)?;
    shelf.mirror("unknown", "two.tar", &json!([{"name": "other:1"}]))?;
    for name in ["all", "picked"] {
        assert_eq!(shelf.wait_succeeded(name)?["status"]["synced"], "2/2");
    }
    for (place, image) in [
        ("all/app:1", &app),
        ("all/library/tool:2", &tool),
        ("picked/app:1", &app),
        ("picked/team/tool:9", &tool),
    ] {
        assert_same_content(&shelf.to, place, image)?;
    }
    assert!(skopeo::digest(shelf.to.access(), "picked/library/tool:2").is_err());
    let said = shelf.wait_stalled("unknown", "ArchiveImageUnknown")?;
    for part in ["other:1", "registry.example/app:1", "two.tar"] {
        assert!(said.contains(part), "{said}");
    }
    Ok(())
}

/// Which place each image goes to shows only once the archive is read.
#[tokio::test]
async fn two_images_of_an_archive_that_would_go_to_one_place_are_a_conflict_until_one_is_gone()
-> Result<()> {
    let shelf = Shelf::new("one-place").await?;
    let names = ["first.example/app:1", "second.example/app:1"];
    two_images(&shelf.path("two.tar"), names)?;
    shelf.settle("two.tar")?;
    let _operator = shelf.operator()?;
    shelf.mirror_to("app", "two.tar", &json!([]), "{name}")?;
    let said = shelf.wait_stalled("app", "DestinationConflict")?;
    for part in [&names[..], &["/app:1 would be written by"]].concat() {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(shelf.to.count("PUT", "/app/"), 0);

    let image = shelf.put_image("two.tar", "first.example/app:1")?;
    shelf.bed.request("app", "again")?;
    shelf.wait_succeeded("app")?;
    assert_same_content(&shelf.to, "app:1", &image)
}

#[tokio::test]
async fn an_archive_without_destinations_fills_the_cache_that_another_mirror_pushes_from()
-> Result<()> {
    let shelf = Shelf::new("by-cache").await?;
    let image = shelf.put_image("app.tar", "team/app:1.2")?;
    let _operator = shelf.operator()?;
    let spec = json!({"source": {"archive": {"path": "app.tar"}}, "destinations": []});
    shelf.bed.mirror("extracted", &spec)?;
    let extracted = shelf.wait_succeeded("extracted")?;
    assert_eq!(shelf.to.count("PUT", ""), 0);

    fs::remove_file(shelf.path("app.tar")).context("no archive")?;
    let repository = format!("{}/{{repository}}", shelf.to.access().address);
    let spec = |reference: &str| {
        json!({
            "source": {"cache": {"repository": "docker.io/team/app", "reference": reference}},
            "destinations": [{"repository": repository, "insecure": true}],
        })
    };
    shelf.bed.mirror("pushed", &spec("1.2"))?;
    shelf.wait_succeeded("pushed")?;
    let digest = &extracted["status"]["images"][0]["digest"];
    assert_eq!(
        *digest,
        skopeo::digest(shelf.to.access(), "team/app:1.2")?,
        "{extracted:#}"
    );
    assert_same_content(&shelf.to, "team/app:1.2", &image)?;
    shelf.bed.mirror("absent", &spec("1.3"))?;
    shelf
        .bed
        .wait_ready("absent", "False", "CachedImageUnknown")
        .map(drop)
}

#[tokio::test]
async fn each_trouble_with_an_archive_has_its_name_and_ends_with_a_good_file() -> Result<()> {
    let shelf = Shelf::new("bad-archives").await?;
    shelf.put_image("good.tar", "team/app:1")?;
    let good = fs::read(shelf.path("good.tar")).context("no archive")?;
    let mut flipped = good.clone();
    // Within a layer: the first of them comes first.
    flipped[10_000] ^= 1;
    shelf.put("empty.tar", "")?;
    shelf.put("foreign.tar", "this is no archive\n".repeat(100))?;
    shelf.put("cut.tar", &good[..good.len() / 2])?;
    shelf.put("flipped.tar", flipped)?;
    symlink("good.tar", shelf.path("link.tar")).context("no link")?;
    symlink(".", shelf.path("up")).context("no link")?;
    fs::create_dir(shelf.path("folder.tar")).context("no folder")?;
    let _operator = shelf.operator()?;
    let troubles = [
        ("missing", "missing.tar", "ArchiveNotFound"),
        ("empty", "empty.tar", "ArchiveInvalid"),
        ("foreign", "foreign.tar", "ArchiveInvalid"),
        ("cut", "cut.tar", "ArchiveTruncated"),
        ("flipped", "flipped.tar", "DigestMismatch"),
        ("link", "link.tar", "ArchivePathRefused"),
        ("folder", "folder.tar", "ArchivePathRefused"),
        ("through-link", "up/good.tar", "ArchivePathRefused"),
    ];
    for (name, path, _) in troubles {
        shelf.mirror(name, path, &json!([]))?;
    }
    for (name, path, reason) in troubles {
        let said = shelf.wait_stalled(name, reason)?;
        assert!(said.contains(path), "{said}");
    }
    assert_eq!(shelf.to.count("PUT", ""), 0);

    fs::remove_dir(shelf.path("folder.tar")).context("no folder")?;
    for link in ["link.tar", "up"] {
        fs::remove_file(shelf.path(link)).context("no link")?;
    }
    fs::create_dir(shelf.path("up")).context("no folder")?;
    for (name, path, _) in troubles {
        shelf.put(path, &good)?;
        shelf
            .bed
            .annotate(name, "imagepusher.io/requestedAt", "mended")?;
    }
    let digests: Vec<String> = troubles
        .iter()
        .map(|(name, ..)| {
            shelf.wait_succeeded(name)?;
            skopeo::digest(shelf.to.access(), &format!("{name}/team/app:1"))
        })
        .collect::<Result<_>>()?;
    assert!(
        digests.iter().all(|digest| *digest == digests[0]),
        "{digests:?}"
    );
    Ok(())
}

/// Archive reference A part 4: half a file is never read, whoever writes it in place.
#[tokio::test]
async fn a_file_that_still_grows_is_read_later_and_meanwhile_holds_no_slot() -> Result<()> {
    let shelf = Shelf::new("growing").await?;
    shelf.put_image("whole.tar", "team/app:1")?;
    let whole = fs::read(shelf.path("whole.tar")).context("no archive")?;
    let _operator = shelf.operator_with(&["--concurrency", "1"])?;
    let growing = shelf.path("growing.tar");
    let write = |bytes: &[u8]| fs::write(&growing, bytes).unwrap();
    let half = &whole[..whole.len() / 2];
    write(half);
    shelf.mirror("app", "growing.tar", &json!([]))?;
    let object = shelf.bed.wait_until("app", PATIENCE, |object| {
        write(half);
        condition(object, "Ready")["status"] == "False"
    })?;
    assert_is_unsettled(&object);
    shelf.mirror("other", "whole.tar", &json!([]))?;
    shelf.bed.wait_until("other", PATIENCE, |object| {
        write(half);
        condition(object, "Ready")["status"] == "True"
    })?;
    write(&whole);
    let written = Instant::now();
    shelf.bed.wait_until("app", PATIENCE, |object| {
        let status = condition(object, "Ready")["status"].clone();
        if status == "False" {
            assert_is_unsettled(object);
        }
        status == "True"
    })?;
    let waited = written.elapsed().as_secs();
    assert!((9..30).contains(&waited), "{waited} s");
    skopeo::digest(shelf.to.access(), "app/team/app:1").map(drop)
}

fn assert_is_unsettled(object: &Value) {
    let (ready, reconciling) = (condition(object, "Ready"), condition(object, "Reconciling"));
    let expected = (&json!("ProgressingWithRetry"), &json!("True"));
    assert_eq!(
        (&ready["reason"], &reconciling["status"]),
        expected,
        "{object:#}"
    );
    let said = ready["message"].as_str().unwrap();
    let expected = "ArchiveUnsettled: the archive growing.tar was written to just now";
    assert!(said.starts_with(expected), "{said}");
}

#[tokio::test]
async fn an_operator_without_a_folder_of_archives_says_how_to_give_it_one() -> Result<()> {
    let shelf = Shelf::new("no-shelf").await?;
    let _operator = shelf.bed.operator()?;
    shelf.mirror("app", "app.tar", &json!([]))?;
    let said = shelf.wait_stalled("app", "ArchiveFolderMissing")?;
    assert!(
        said.contains("app.tar") && said.contains("--archive-dir"),
        "{said}"
    );
    Ok(())
}

/// Design part 4: the trust domain is the namespace.
#[tokio::test]
async fn an_archive_of_one_namespace_is_out_of_reach_for_another() -> Result<()> {
    let shelf = Shelf::new("owner").await?;
    let stranger = Bed::new("stranger").await?;
    shelf.put_image("app.tar", "team/app:1")?;
    let (owner, stranger_folder) = (
        &shelf.bed.namespace,
        shelf.folder.path().join(&stranger.namespace),
    );
    fs::create_dir(&stranger_folder).context("no folder")?;
    // Whoever fills the stranger's folder may put links there as well.
    symlink(shelf.path("app.tar"), stranger_folder.join("link.tar")).context("no link")?;
    symlink(shelf.path(""), stranger_folder.join("folder")).context("no link")?;
    let folder = shelf.folder.path().to_str().unwrap();
    let _operator = shelf.bed.operator_with(&[
        "--watch-namespace",
        owner,
        "--watch-namespace",
        &stranger.namespace,
        "--archive-dir",
        folder,
    ])?;
    shelf.mirror("own", "app.tar", &json!([]))?;
    shelf.wait_succeeded("own")?;
    let by_name = format!("{owner}/app.tar");
    let troubles = [
        ("same", "app.tar", "ArchiveNotFound"),
        ("by-name", by_name.as_str(), "ArchiveNotFound"),
        ("link", "link.tar", "ArchivePathRefused"),
        ("folder", "folder/app.tar", "ArchivePathRefused"),
    ];
    let spec = |source: Value| {
        json!({
            "source": source,
            "destinations": [{"repository": format!("{}/stolen", shelf.to.access().address), "insecure": true}],
        })
    };
    for (name, path, _) in troubles {
        // Alone, or it were a conflict of destinations.
        let mut spec = spec(json!({"archive": {"path": path}}));
        spec["destinations"][0]["tag"] = json!(name);
        stranger.mirror(name, &spec)?;
    }
    let cached = json!({"cache": {"repository": "docker.io/team/app", "reference": "1"}});
    stranger.mirror("cached", &spec(cached))?;
    for (name, _, reason) in troubles {
        stranger.wait_ready(name, "False", reason)?;
    }
    stranger.wait_ready("cached", "False", "CachedImageUnknown")?;
    let refused = stranger
        .mirror(
            "dots",
            &spec(json!({"archive": {"path": format!("../{owner}/app.tar")}})),
        )
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("path must be relative and without empty, . and .. segments"),
        "{refused}"
    );
    assert_eq!(shelf.to.count("PUT", "/stolen/"), 0);
    Ok(())
}

/// What is wrong with one image of an archive says nothing of the others, whoever looked at which of them first.
#[tokio::test]
async fn the_good_image_of_an_archive_arrives_although_another_one_is_damaged() -> Result<()> {
    let shelf = Shelf::new("one-damaged").await?;
    let names = ["docker.io/library/app:1", "docker.io/library/tool:2"];
    let [app, tool] = two_images(&shelf.path("two.tar"), names)?;
    let mut bytes = fs::read(shelf.path("two.tar")).context("no archive")?;
    // The header of the entry comes right before the layer.
    let layer = &tool.manifests[0].layers[0].diff_id["sha256:".len()..];
    let header = bytes
        .windows(layer.len())
        .position(|window| window == layer.as_bytes());
    bytes[header.context("no layer")? + 2000] ^= 1;
    shelf.put("two.tar", bytes)?;
    let _operator = shelf.operator()?;
    shelf.mirror("early", "two.tar", &json!([{"index": 0}]))?;
    shelf.wait_succeeded("early")?;
    shelf.mirror("damaged", "two.tar", &json!([{"index": 1}]))?;
    shelf.wait_stalled("damaged", "DigestMismatch")?;
    shelf.mirror(
        "late",
        "two.tar",
        &json!([{"index": 0, "as": "team/app:3"}]),
    )?;
    shelf.wait_succeeded("late")?;
    assert_same_content(&shelf.to, "late/team/app:3", &app)
}
