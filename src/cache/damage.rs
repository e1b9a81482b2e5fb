//! Tests of `verify` on caches that something has happened to.

use std::{
    cell::Cell,
    fs::{self, File, OpenOptions},
    os::unix::fs::{FileExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde_json::json;

use crate::image::{Algorithm, Descriptor, Digest, MediaType, RawManifest};

use super::{
    BlobVerdict, Claim, CleanRequest, Error, Problem, VerifyProgress, VerifyReport, VerifyRequest,
    testing::{
        Fixture, blob, config, fixture, image, index_of, layer, put, raw, store_small, stored,
    },
};

/// A tag, and an image for two platforms whose layer has a SHA-512 digest.
async fn filled() -> Fixture {
    let fixture = fixture();
    store_small(&fixture.cache, "app", "1", b"one").await;
    let long = Descriptor {
        digest: Digest::with_algorithm(Algorithm::Sha512, b"long"),
        ..layer(b"long")
    };
    put(&fixture.cache, &long, b"long").await.unwrap();
    let amd = image(&fixture.cache, &config("x", "amd64"), &[b"amd"]).await;
    let configuration = config("x", "arm64");
    let described = blob(&configuration, MediaType::OCI_CONFIG.as_str());
    put(&fixture.cache, &described, &configuration)
        .await
        .unwrap();
    let arm = raw(&json!({
        "schemaVersion": 2, "mediaType": MediaType::OCI_MANIFEST, "config": described, "layers": [long],
    }));
    let mut wanted = stored(
        "team/multi",
        "1",
        &index_of(&[(&amd, "amd64"), (&arm, "arm64")]),
    );
    wanted.children = vec![amd, arm];
    fixture.cache.store_image(wanted).await.unwrap();
    fixture
}

impl Fixture {
    async fn verify(&self, dry_run: bool) -> VerifyReport {
        let request = VerifyRequest {
            only: None,
            dry_run,
        };
        self.reopened().verify(&request, |_| {}).await.unwrap()
    }

    fn path(&self, content: &[u8]) -> PathBuf {
        self.cache.shared.layout.blob(&Digest::of(content))
    }

    fn root(&self) -> &Path {
        self.cache.directory()
    }
}

fn problems(report: &VerifyReport) -> Vec<(Problem, bool)> {
    let faults = report.faults.iter();
    faults
        .map(|fault| (fault.problem, fault.quarantined))
        .collect()
}

/// Changes one bit, as a bad disk or cable does: neither name nor size tells.
fn flip(path: &Path, offset: u64) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o444)).unwrap();
}

#[tokio::test]
async fn a_healthy_cache_has_no_faults_and_every_byte_of_it_is_read() {
    let fixture = filled().await;
    let before = fixture.files();
    let read = Cell::new(0);
    let planned = Cell::new((0, 0));
    let told = |progress| match progress {
        VerifyProgress::Planned { blobs, bytes } => planned.set((blobs, bytes)),
        VerifyProgress::Read { bytes } => read.set(read.get() + bytes),
    };
    let request = VerifyRequest::default();
    let report = fixture.cache.verify(&request, told).await.unwrap();
    assert_eq!(report.faults, []);
    assert_eq!((report.blobs, report.manifests), (6, 4));
    assert_eq!(planned.get(), (6, read.get()));
    let manifests = fixture.root().join("manifests");
    let manifests: u64 = ["app/1", "team/multi/1"]
        .map(|name| manifests.join(name).metadata().unwrap().len())
        .iter()
        .sum();
    assert!(report.bytes > read.get() + manifests, "children count, too");
    assert_eq!(fixture.files(), before);
    assert!(!report.unwritable);
}

#[tokio::test]
async fn a_flipped_bit_is_found_moved_away_and_fetched_again() {
    let fixture = filled().await;
    flip(&fixture.path(b"one"), 1);
    assert!(fixture.cache.has_blob(&layer(b"one")).await.unwrap());
    let report = fixture.verify(false).await;
    assert_eq!(problems(&report), [(Problem::WrongContent, true)]);
    let fault = &report.faults[0];
    let digest = Digest::of(b"one");
    assert_eq!(fault.path, format!("blobs/sha256/{}", digest.hex()));
    assert_eq!(fault.digest.as_ref(), Some(&digest));
    assert_eq!(fault.images, ["app:1"]);
    assert!(!fixture.cache.has_blob(&layer(b"one")).await.unwrap());
    let moved = fixture.root().join(".quarantine").join(digest.to_string());
    assert_eq!(fs::read(moved).unwrap(), b"ooe");
    // What is gone is a fault until it was fetched again.
    assert_eq!(
        problems(&fixture.verify(false).await),
        [(Problem::BlobMissing, false)]
    );
    put(&fixture.cache, &layer(b"one"), b"one").await.unwrap();
    assert_eq!(fixture.verify(false).await.faults, []);
    // The same blob may go bad once more.
    flip(&fixture.path(b"one"), 1);
    assert_eq!(
        problems(&fixture.verify(false).await),
        [(Problem::WrongContent, true)]
    );
    assert_eq!(
        fs::read_dir(fixture.root().join(".quarantine"))
            .unwrap()
            .count(),
        2
    );
}

#[tokio::test]
async fn a_sha512_blob_is_compared_with_its_own_digest() {
    let fixture = filled().await;
    let digest = Digest::with_algorithm(Algorithm::Sha512, b"long");
    flip(&fixture.cache.shared.layout.blob(&digest), 0);
    let report = fixture.verify(false).await;
    assert_eq!(problems(&report), [(Problem::WrongContent, true)]);
    assert_eq!(report.faults[0].digest, Some(digest));
    assert_eq!(report.faults[0].images, ["team/multi:1"]);
}

#[tokio::test]
async fn cut_and_swapped_blobs_are_found() {
    let fixture = filled().await;
    let cut = fixture.path(b"one");
    fs::set_permissions(&cut, fs::Permissions::from_mode(0o644)).unwrap();
    File::options()
        .write(true)
        .open(&cut)
        .unwrap()
        .set_len(2)
        .unwrap();
    let (one, other) = (fixture.path(&config("1", "amd64")), fixture.path(b"amd"));
    let aside = fixture.folder.path().join("aside");
    fs::rename(&one, &aside).unwrap();
    fs::rename(&other, &one).unwrap();
    fs::rename(&aside, &other).unwrap();
    let mut found = problems(&fixture.verify(false).await);
    found.sort_by_key(|(problem, _)| format!("{problem:?}"));
    assert_eq!(found, [(Problem::WrongSize, true); 3]);
    for path in [cut, one, other] {
        assert!(!path.exists(), "{}", path.display());
    }
}

#[tokio::test]
async fn what_was_planted_is_moved_and_never_followed() {
    let fixture = filled().await;
    let secret = fixture.folder.path().join("secret");
    fs::create_dir(&secret).unwrap();
    fs::copy(fixture.path(b"one"), secret.join("one")).unwrap();
    let (link, folder) = (fixture.path(b"one"), fixture.path(b"amd"));
    for path in [&link, &folder] {
        fs::remove_file(path).unwrap();
    }
    // The bytes behind the symlink would be right.
    symlink(secret.join("one"), &link).unwrap();
    fs::create_dir(&folder).unwrap();
    File::create(folder.join("inside")).unwrap();
    let blobs = fixture.root().join("blobs");
    symlink(&secret, blobs.join("sha256/not-a-digest")).unwrap();
    File::create(blobs.join("sha512/README")).unwrap();
    symlink(&secret, blobs.join("md5")).unwrap();
    let manifests = fixture.root().join("manifests");
    symlink(&secret, manifests.join("app/2")).unwrap();
    symlink(&secret, manifests.join("elsewhere")).unwrap();
    let report = fixture.verify(false).await;
    assert!(
        report.faults.iter().all(|fault| fault.quarantined),
        "{report:?}"
    );
    let count = |problem| {
        let faults = report.faults.iter();
        faults.filter(|fault| fault.problem == problem).count()
    };
    assert_eq!(
        (count(Problem::NotAFile), count(Problem::UnknownName)),
        (6, 1)
    );
    assert_eq!(report.faults.len(), 7);
    assert!(secret.join("one").exists());
    let report = fixture.verify(false).await;
    assert_eq!(problems(&report), [(Problem::BlobMissing, false); 2]);
    let removed = fixture.cache.clean(&CleanRequest::default()).await.unwrap();
    assert_eq!(removed.images.len(), 2);
    assert_eq!(
        fs::read_dir(fixture.root().join(".quarantine"))
            .unwrap()
            .count(),
        0
    );
    assert!(
        secret.join("one").exists(),
        "what a symlink names is not removed"
    );
}

#[tokio::test]
async fn a_folder_that_is_a_symlink_is_told_and_left_alone() {
    let fixture = filled().await;
    let (folder, real) = (
        fixture.root().join("blobs"),
        fixture.folder.path().join("real"),
    );
    fs::rename(&folder, &real).unwrap();
    symlink(&real, &folder).unwrap();
    let report = fixture.verify(false).await;
    assert_eq!(problems(&report), [(Problem::NotAFolder, false)]);
    assert_eq!(report.faults[0].path, "blobs");
    assert_eq!(report.faults[0].images, ["app:1", "team/multi:1"]);
    assert_eq!(report.blobs, 0);
    fs::remove_file(&folder).unwrap();
    fs::rename(&real, &folder).unwrap();
    assert_eq!(fixture.verify(false).await.faults, []);
}

#[tokio::test]
async fn wrong_and_missing_manifests_are_found() {
    let fixture = filled().await;
    let index = fixture.root().join("manifests/team/multi");
    let mut children: Vec<PathBuf> = fs::read_dir(&index)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| !path.ends_with("1"))
        .collect();
    children.sort();
    fs::remove_file(&children[0]).unwrap();
    flip(&children[1], 3);
    // No JSON any more.
    flip(&fixture.root().join("manifests/app/1"), 0);
    let report = fixture.verify(false).await;
    let mut found = problems(&report);
    found.sort_by_key(|(problem, _)| format!("{problem:?}"));
    assert_eq!(
        found,
        [
            (Problem::ManifestMissing, false),
            (Problem::WrongManifest, true),
            (Problem::WrongManifest, true)
        ]
    );
    for fault in &report.faults {
        let expected = if fault.path == "manifests/app/1" {
            "app:1"
        } else {
            "team/multi:1"
        };
        assert_eq!(fault.images, [expected]);
    }
    assert!(!children[1].exists());
}

#[tokio::test]
async fn a_manifest_that_says_another_size_than_a_right_blob_has_is_wrong() {
    let fixture = filled().await;
    let path = fixture.root().join("manifests/app/1");
    let text = fs::read_to_string(&path).unwrap();
    let lie = text.replace("\"size\":3", "\"size\":4");
    assert_ne!(text, lie);
    OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .write_all_at(lie.as_bytes(), 0)
        .unwrap();
    let report = fixture.verify(false).await;
    assert_eq!(problems(&report), [(Problem::WrongManifest, true)]);
    assert_eq!(report.faults[0].path, "manifests/app/1");
    assert!(fixture.path(b"one").exists());
}

#[tokio::test]
async fn what_may_be_absent_is_no_fault() {
    let fixture = fixture();
    let amd = image(&fixture.cache, &config("x", "amd64"), &[b"amd"]).await;
    let arm = image(&fixture.cache, &config("x", "arm64"), &[]).await;
    let mut wanted = stored("app", "1", &index_of(&[(&amd, "amd64"), (&arm, "arm64")]));
    wanted.children = vec![amd];
    wanted.missing = vec![arm.digest().clone()];
    fixture.cache.store_image(wanted).await.unwrap();
    let mut foreign = blob(
        b"far",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    );
    foreign.urls = vec!["https://publisher.example/layer".to_owned()];
    let described = blob(&config("x", "amd64"), MediaType::OCI_CONFIG.as_str());
    let root: RawManifest = raw(&json!({
        "schemaVersion": 2, "config": described, "layers": [foreign],
    }));
    fixture
        .cache
        .store_image(stored("foreign", "1", &root))
        .await
        .unwrap();
    assert_eq!(fixture.verify(false).await.faults, []);
}

#[tokio::test]
async fn a_dry_run_tells_the_same_and_touches_nothing() {
    let fixture = filled().await;
    flip(&fixture.path(b"one"), 1);
    flip(&fixture.root().join("manifests/team/multi/1"), 0);
    symlink("/etc", fixture.root().join("blobs/link")).unwrap();
    let before = fixture.files();
    let dry = fixture.verify(true).await;
    assert_eq!(fixture.files(), before);
    assert!(!fixture.root().join(".quarantine").exists());
    assert!(dry.faults.iter().all(|fault| !fault.quarantined));
    assert!(!dry.unwritable);
    let real = fixture.verify(false).await;
    let told = |report: &VerifyReport| -> Vec<(String, Problem)> {
        let faults = report.faults.iter();
        faults
            .map(|fault| (fault.path.clone(), fault.problem))
            .collect()
    };
    assert_eq!(told(&dry).len(), 3);
    assert_eq!(told(&dry), told(&real));
}

#[tokio::test]
async fn only_what_the_named_image_needs_is_read() {
    let fixture = filled().await;
    flip(&fixture.path(b"one"), 1);
    let only = |repository: &str, reference: Option<&str>| VerifyRequest {
        only: Some((
            repository.parse().unwrap(),
            reference.map(|reference| reference.parse().unwrap()),
        )),
        dry_run: false,
    };
    let request = only("team/multi", None);
    let report = fixture.cache.verify(&request, |_| {}).await.unwrap();
    assert_eq!(
        (report.blobs, report.manifests, report.faults.len()),
        (4, 3, 0)
    );
    let request = only("app", Some("1"));
    let report = fixture.cache.verify(&request, |_| {}).await.unwrap();
    assert_eq!(problems(&report), [(Problem::WrongContent, true)]);
    let request = only("app", Some("3"));
    let error = fixture.cache.verify(&request, |_| {}).await.unwrap_err();
    assert!(matches!(error, Error::CachedImageUnknown { .. }), "{error}");
}

#[tokio::test]
async fn paths_of_a_hostile_index_are_never_followed() {
    let fixture = filled().await;
    let victim = fixture.folder.path().join("victim");
    fs::copy(fixture.path(b"one"), &victim).unwrap();
    let path = fixture.root().join("index.json");
    fixture.flush();
    let text = fs::read_to_string(&path).unwrap();
    let hostile = text
        .replace("manifests/app/1", "../victim")
        .replace("blobs/sha256/", "../../victim/");
    assert_ne!(text, hostile);
    let mut file = File::create(&path).unwrap();
    std::io::Write::write_all(&mut file, hostile.as_bytes()).unwrap();
    let report = fixture.verify(false).await;
    assert_eq!(report.faults, []);
    assert_eq!(report.blobs, 6);
    assert!(victim.exists());
}

#[tokio::test]
async fn a_download_on_its_way_is_left_alone_and_an_old_one_is_told() {
    let fixture = filled().await;
    let Claim::Fetch(writer) = fixture.cache.claim_blob(&layer(b"slow")).await.unwrap() else {
        panic!("nobody has fetched it")
    };
    let partials = fixture.root().join("blobs/.partial");
    let old = SystemTime::now() - Duration::from_hours(25);
    for name in [Digest::of(b"slow"), Digest::of(b"left")] {
        let path = partials.join(name.to_string());
        let file = File::options()
            .append(true)
            .create(true)
            .open(path)
            .unwrap();
        file.set_modified(old).unwrap();
    }
    let report = fixture.verify(false).await;
    assert_eq!(report.faults, []);
    assert_eq!(
        report.stale_partials,
        [format!("blobs/.partial/{}", Digest::of(b"left"))]
    );
    writer
        .write_at(0, bytes::Bytes::from_static(b"slow"))
        .await
        .unwrap();
    writer.finish().await.unwrap();
    assert_eq!(fixture.verify(false).await.faults, []);
}

#[tokio::test]
async fn what_is_cleaned_away_meanwhile_is_no_fault() {
    let fixture = filled().await;
    let (gone, wrong) = (fixture.path(b"one"), fixture.path(b"amd"));
    flip(&wrong, 0);
    let told = |progress| {
        if matches!(progress, VerifyProgress::Planned { .. }) {
            fs::remove_file(&gone).unwrap();
        }
    };
    let request = VerifyRequest::default();
    let report = fixture.cache.verify(&request, told).await.unwrap();
    assert_eq!(problems(&report), [(Problem::WrongContent, true)]);
    assert_eq!(report.faults[0].images, ["team/multi:1"]);
    assert_eq!(report.blobs, 5);
}

#[tokio::test]
async fn one_blob_can_be_verified_alone() {
    let fixture = filled().await;
    let digest = Digest::of(b"one");
    let verdict = fixture.cache.verify_blob(&digest).await.unwrap();
    assert_eq!(verdict, BlobVerdict::Right(3));
    flip(&fixture.path(b"one"), 1);
    let BlobVerdict::Wrong(fault) = fixture.cache.verify_blob(&digest).await.unwrap() else {
        panic!("a bit was flipped")
    };
    assert_eq!(fault.images, ["app:1"]);
    assert!(fault.quarantined);
    let verdict = fixture.cache.verify_blob(&digest).await.unwrap();
    assert_eq!(verdict, BlobVerdict::Absent);
}

#[tokio::test]
async fn a_right_file_that_took_the_place_of_a_wrong_one_is_not_moved() {
    use super::quarantine::{Identity, quarantine};
    let fixture = filled().await;
    let (layout, path) = (&fixture.cache.shared.layout, fixture.path(b"one"));
    let wrong = Identity::at(&path).unwrap().unwrap();
    let copy = fixture.folder.path().join("copy");
    fs::copy(&path, &copy).unwrap();
    fs::rename(&copy, &path).unwrap();
    assert!(!quarantine(layout, &path, "name", wrong).unwrap());
    assert_eq!(fixture.verify(false).await.faults, []);
    fs::remove_file(&path).unwrap();
    assert!(!quarantine(layout, &path, "name", wrong).unwrap());
}

#[tokio::test]
async fn clean_keeps_what_was_quarantined_for_a_day_unless_it_removes_everything() {
    let fixture = filled().await;
    flip(&fixture.path(b"one"), 1);
    flip(&fixture.path(b"amd"), 1);
    fixture.verify(false).await;
    let folder = fixture.root().join(".quarantine");
    let some = CleanRequest {
        only: Some(("app".parse().unwrap(), None)),
        ..CleanRequest::default()
    };
    let old = folder.join(Digest::of(b"one").to_string());
    let time = SystemTime::now() - Duration::from_hours(25);
    File::open(&old).unwrap().set_modified(time).unwrap();
    fixture.cache.clean(&some).await.unwrap();
    assert!(!old.exists());
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    fixture.cache.clean(&CleanRequest::default()).await.unwrap();
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
}
