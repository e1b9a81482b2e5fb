//! Tests on disks that are full or read-only. Root may write everywhere, so permissions prove nothing: each test runs again
//! as a process of its own with a small volume in its own mount namespace.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    error::{Class, Classified},
    output::OutputManager,
};

use super::{
    Cache, Claim, CleanRequest, Error, VerifyRequest,
    testing::{Messages, config, image, layer, on_a_volume, open, put, read, store_small, stored},
};

fn volume(test: &str, options: &str) -> Option<PathBuf> {
    on_a_volume("cache::faults", test, options)
}

fn remount_read_only(volume: &Path) {
    let done = Command::new("mount")
        .args(["-o", "remount,ro"])
        .arg(volume)
        .status();
    assert!(done.unwrap().success());
}

/// Writes zeros until there are only about `rest` bytes left.
fn fill(volume: &Path, rest: u64) -> PathBuf {
    let path = volume.join("ballast");
    let free = rustix::fs::statvfs(volume).unwrap();
    let length = usize::try_from(free.f_bavail * free.f_frsize - rest).unwrap();
    File::create(&path)
        .unwrap()
        .write_all(&vec![0; length])
        .unwrap();
    path
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().unwrap().is_dir() {
            found.extend(files_below(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found
}

fn assert_unwritable<T: std::fmt::Debug>(result: Result<T, Error>, path: &Path) {
    let error = result.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::CacheUnwritable { .. }), "{error:?}");
    assert!(text.contains(&path.display().to_string()), "{text}");
    assert!(text.contains("--cache-dir"), "{text}");
    assert_eq!(
        (error.reason(), error.class()),
        ("CacheUnwritable", Class::Storage)
    );
}

#[tokio::test]
async fn a_read_only_cache_can_be_read_and_says_why_it_cannot_be_written() {
    let Some(volume) = volume(
        "a_read_only_cache_can_be_read_and_says_why_it_cannot_be_written",
        "size=4m",
    ) else {
        return;
    };
    let (cache, _) = open(&volume);
    store_small(&cache, "app", "1", b"one").await;
    remount_read_only(&volume);

    for (cache, messages) in [open(&volume), (cache, Messages::default())] {
        let _guard = cache.read_shared().await.unwrap();
        assert_eq!(cache.list().await.unwrap().len(), 1);
        assert!(read(&cache, "app", "1").await.is_some());
        assert!(cache.open_blob(&layer(b"one")).await.unwrap().is_some());
        assert!(matches!(
            cache.claim_blob(&layer(b"one")).await,
            Ok(Claim::Present)
        ));
        let dry = CleanRequest {
            dry_run: true,
            ..CleanRequest::default()
        };
        assert_eq!(cache.clean(&dry).await.unwrap().images, ["app:1"]);

        assert_unwritable(cache.ensure_writable().await, cache.directory());
        assert_unwritable(cache.use_shared().await, cache.directory());
        assert_unwritable(cache.claim_blob(&layer(b"two")).await, cache.directory());
        assert_unwritable(
            cache.clean(&CleanRequest::default()).await,
            cache.directory(),
        );
        assert_eq!(messages.all(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn an_empty_read_only_volume_is_an_empty_cache() {
    let Some(volume) = volume("an_empty_read_only_volume_is_an_empty_cache", "ro") else {
        return;
    };
    let (cache, messages) = open(&volume);
    assert_eq!(cache.list().await.unwrap(), []);
    let _guard = cache.read_shared().await.unwrap();
    assert_eq!(read(&cache, "app", "1").await, None);
    assert_unwritable(cache.ensure_writable().await, cache.directory());
    assert_eq!(messages.all(), Vec::<String>::new());
}

#[tokio::test]
async fn a_file_where_the_folder_should_be_is_unwritable() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    File::create(&file).unwrap();
    for cache_dir in [file.clone(), file.join("below")] {
        let cache = Cache::open(&cache_dir, OutputManager::silent()).unwrap();
        assert_unwritable(cache.ensure_writable().await, &cache_dir);
        assert_unwritable(cache.use_shared().await, &cache_dir);
        assert_eq!(read(&cache, "app", "1").await, None);
    }
}

#[tokio::test]
async fn a_blob_larger_than_the_volume_is_refused_before_its_first_byte() {
    let Some(volume) = volume(
        "a_blob_larger_than_the_volume_is_refused_before_its_first_byte",
        "size=1m",
    ) else {
        return;
    };
    let (cache, _) = open(&volume);
    let error = cache
        .claim_blob(&layer(&vec![0; 2 << 20]))
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::CacheFull { needed, .. } if needed == 2 << 20),
        "{error:?}"
    );
    let text = error.to_string();
    assert!(text.contains("2.0 MiB more are needed"), "{text}");
    assert!(text.contains("1.0 MiB are free"), "{text}");
    assert!(text.contains("clean"), "{text}");
    assert_eq!(
        (error.reason(), error.class()),
        ("CacheFull", Class::Storage)
    );
}

#[tokio::test]
async fn a_volume_that_fills_up_during_a_small_download_keeps_nothing_of_it() {
    let Some(volume) = volume(
        "a_volume_that_fills_up_during_a_small_download_keeps_nothing_of_it",
        "size=4m",
    ) else {
        return;
    };
    let (cache, _) = open(&volume);
    store_small(&cache, "app", "1", b"one").await;
    let before = files_below(&volume.join("cache/blobs"));
    // Small enough that no space is reserved for it.
    let content = vec![1; 1_000_000];
    let Claim::Fetch(mut writer) = cache.claim_blob(&layer(&content)).await.unwrap() else {
        panic!("nobody has fetched it")
    };
    let reader = writer.reader();
    let ballast = fill(&volume, 300_000);
    // It may show while bytes are still handed over, or later.
    drop(writer.write_at(0, content.clone().into()).await);
    reader.read(999_999, 1).await.unwrap_err();
    // It stays failed, until there is room and it starts again.
    let again = writer.write_at(0, content.clone().into()).await;
    assert!(matches!(again, Err(Error::CacheFull { .. })), "{again:?}");
    std::fs::remove_file(&ballast).unwrap();
    writer.restart().await.unwrap();
    fill(&volume, 300_000);
    drop(writer.write_at(0, content.clone().into()).await);
    let error = writer.finish().await.unwrap_err();
    assert!(matches!(error, Error::CacheFull { .. }), "{error:?}");
    // Who is told of the trouble may be faster than who clears up after it.
    let late = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while files_below(&volume.join("cache/blobs")) != before {
        assert!(std::time::Instant::now() < late, "something stays");
        tokio::task::yield_now().await;
    }
    assert_eq!(cache.list().await.unwrap().len(), 1);
    std::fs::remove_file(&ballast).unwrap();
    put(&cache, &layer(&content), &content).await.unwrap();
}

#[tokio::test]
async fn the_space_of_a_blob_is_reserved_before_its_first_byte() {
    let Some(volume) = volume(
        "the_space_of_a_blob_is_reserved_before_its_first_byte",
        "size=4m",
    ) else {
        return;
    };
    let (cache, _) = open(&volume);
    let content = vec![1; 3 << 20];
    let Claim::Fetch(writer) = cache.claim_blob(&layer(&content)).await.unwrap() else {
        panic!("nobody has fetched it")
    };
    fill(&volume, 64 * 1024);
    // Another one has no place, and leaves nothing behind.
    let other = vec![2; 2 << 20];
    let error = cache.claim_blob(&layer(&other)).await.unwrap_err();
    assert!(matches!(error, Error::CacheFull { .. }), "{error:?}");
    assert_eq!(files_below(&volume.join("cache/blobs")).len(), 1);
    writer.write_at(0, content.into()).await.unwrap();
    writer.finish().await.unwrap();
}

#[tokio::test]
async fn a_full_volume_never_gets_half_a_reference() {
    let Some(volume) = volume("a_full_volume_never_gets_half_a_reference", "size=1m") else {
        return;
    };
    let (cache, _) = open(&volume);
    store_small(&cache, "app", "1", b"one").await;
    let old = read(&cache, "app", "1").await.unwrap();
    let new = image(&cache, &config("2", "amd64"), &[b"two"]).await;
    let ballast = fill(&volume, 0);
    let error = cache
        .store_image(stored("app", "1", &new))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::CacheFull { .. }), "{error:?}");
    assert_eq!(read(&cache, "app", "1").await.unwrap(), old);
    assert_eq!(files_below(&volume.join("cache/manifests")).len(), 1);
    std::fs::remove_file(&ballast).unwrap();
    cache.store_image(stored("app", "1", &new)).await.unwrap();
    assert_eq!(read(&cache, "app", "1").await.unwrap(), new);
}

#[tokio::test]
async fn a_volume_without_inodes_is_full() {
    let Some(volume) = volume("a_volume_without_inodes_is_full", "size=1m,nr_inodes=24") else {
        return;
    };
    let (cache, _) = open(&volume);
    cache.ensure_writable().await.unwrap();
    let mut number = 0;
    while File::create(volume.join(format!("file-{number}"))).is_ok() {
        number += 1;
    }
    let error = cache.ensure_writable().await.unwrap_err();
    assert!(matches!(error, Error::CacheFull { .. }), "{error:?}");
    assert!(
        error.to_string().contains("no inode for another file"),
        "{error}"
    );
}

#[tokio::test]
async fn an_image_is_complete_even_if_its_entry_cannot_be_written() {
    let Some(volume) = volume(
        "an_image_is_complete_even_if_its_entry_cannot_be_written",
        "size=2m",
    ) else {
        return;
    };
    let (cache, messages) = open(&volume);
    for number in 0..40 {
        store_small(&cache, "app", &number.to_string(), &[number]).await;
    }
    let new = image(&cache, &config("new", "amd64"), &[b"new"]).await;
    cache.flush_index().await;
    // Room for a manifest, not for the index, which has a kibibyte for each image.
    let ballast = fill(&volume, 16 * 1024);
    cache.store_image(stored("app", "new", &new)).await.unwrap();
    cache.flush_index().await;
    assert_eq!(
        messages.count("index could not be written"),
        1,
        "{:?}",
        messages.all()
    );
    assert_eq!(read(&cache, "app", "new").await.unwrap(), new);
    assert_eq!(cache.list().await.unwrap().len(), 41);
    std::fs::remove_file(&ballast).unwrap();
    // The next write brings the lost entry along.
    store_small(&cache, "app", "last", b"last").await;
    cache.flush_index().await;
    let index = std::fs::read_to_string(cache.directory().join("index.json")).unwrap();
    assert!(index.contains("\"app/new\"") && index.contains("\"app/last\""));
}

#[tokio::test]
async fn faults_of_a_read_only_cache_are_told_and_stay() {
    let Some(volume) = volume("faults_of_a_read_only_cache_are_told_and_stay", "size=4m") else {
        return;
    };
    let (cache, _) = open(&volume);
    store_small(&cache, "app", "1", b"one").await;
    let path = cache.shared.layout.blob(&layer(b"one").digest);
    std::fs::remove_file(&path).unwrap();
    File::create(&path).unwrap().write_all(b"two").unwrap();
    remount_read_only(&volume);
    let (cache, _) = open(&volume);
    let request = VerifyRequest::default();
    let report = cache.verify(&request, |_| {}).await.unwrap();
    assert!(report.unwritable);
    assert_eq!(report.faults.len(), 1);
    assert!(!report.faults[0].quarantined);
    assert!(path.exists());
}
