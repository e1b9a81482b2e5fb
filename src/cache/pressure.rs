//! Tests of what happens when room is short: on small volumes and with a largest size.

use std::{path::Path, sync::Arc, time::Duration};

use super::{
    Cache, CacheLimit, Claim, CleanRequest, Error, Keep, StoredImage,
    testing::{config, fixture, image, layer, on_a_volume, open, put, read, store_small, stored},
};
use crate::image::{Descriptor, ImageName};

const MIB: usize = 1 << 20;

/// A layer of some MiB that no other one equals.
fn content(seed: u8, mebibytes: usize) -> Vec<u8> {
    vec![seed; mebibytes * MIB]
}

fn name(tag: &str) -> ImageName {
    format!("app:{tag}").parse().unwrap()
}

/// An image with its blobs in the cache.
async fn ready(cache: &Cache, tag: &str, content: &[u8]) -> StoredImage {
    let root = image(cache, &config(tag, "amd64"), &[content]).await;
    stored("app", tag, &root)
}

fn plant(path: &Path, text: &str) {
    let mut file = std::fs::File::create(path).unwrap();
    std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
}

async fn tags(cache: &Cache) -> Vec<String> {
    let listed = cache.list().await.unwrap();
    assert!(listed.iter().all(super::ListedImage::is_complete));
    let names = listed.iter().map(|image| image.name.reference.to_string());
    names.collect()
}

/// Brings a whole image through the cache, as a run does.
async fn bring(cache: &Cache, tag: &str, content: &[u8]) -> Result<(), Error> {
    let layer = layer(content);
    let mut lease = cache.lease(&[name(tag)], [&layer.digest]).await?;
    lease
        .reserve(&name(tag), std::slice::from_ref(&layer))
        .await?;
    let Claim::Fetch(writer) = cache.claim_blob(&layer).await? else {
        panic!("nobody has fetched it")
    };
    lease.has_arrived(&layer);
    writer.write_at(0, content.to_vec().into()).await?;
    writer.finish().await?;
    let ready = ready(cache, tag, content).await;
    cache.keeping(Keep::Passing).store_image(ready).await
}

#[tokio::test]
async fn images_that_only_pass_leave_for_others_the_longest_unused_first() {
    let Some(volume) = on_a_volume(
        "cache::pressure",
        "images_that_only_pass_leave_for_others_the_longest_unused_first",
        "size=10m",
    ) else {
        return;
    };
    let (cache, messages) = open(&volume);
    store_small(&cache, "app", "kept", b"somebody wants it here").await;
    for (seed, tag) in [(1, "a"), (2, "b"), (3, "c")] {
        bring(&cache, tag, &content(seed, 2)).await.unwrap();
        // The time of a file is not finer than this.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cache
        .touch(&"app".parse().unwrap(), &"a".parse().unwrap())
        .await
        .unwrap();
    bring(&cache, "d", &content(4, 4)).await.unwrap();
    assert_eq!(tags(&cache).await, ["a", "c", "d", "kept"]);
    assert_eq!(messages.count("to make room"), 1);
    // What is larger than everything that may go is refused before its first byte, and costs nobody anything.
    let error = bring(&cache, "e", &content(5, 11)).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::CacheFull { .. }), "{text}");
    assert!(
        text.contains("make room for app:e") && text.contains("are free"),
        "{text}"
    );
    assert!(tags(&cache).await.contains(&"kept".to_owned()));
}

#[tokio::test]
async fn an_image_larger_than_the_volume_costs_the_others_nothing() {
    let fixture = fixture();
    let cache = fixture
        .cache
        .clone()
        .with_limit(CacheLimit::Bytes(4 * MIB as u64));
    bring(&cache, "a", &content(1, 2)).await.unwrap();
    let error = bring(&cache, "b", &content(2, 5)).await.unwrap_err();
    assert!(error.to_string().contains("largest size"), "{error}");
    assert_eq!(tags(&cache).await, ["a"]);
}

#[tokio::test]
async fn a_cache_does_not_outgrow_its_limit() {
    let fixture = fixture();
    let cache = fixture
        .cache
        .clone()
        .with_limit(CacheLimit::Bytes(5 * MIB as u64));
    for seed in 1..=6 {
        bring(&cache, &seed.to_string(), &content(seed, 2))
            .await
            .unwrap();
        let blobs = fixture.cache.directory().join("blobs/sha256");
        let files = std::fs::read_dir(blobs).unwrap().flatten();
        let used: u64 = files.map(|file| file.metadata().unwrap().len()).sum();
        assert!(used <= 5 * MIB as u64, "{used}");
    }
    assert!(tags(&cache).await.contains(&"6".to_owned()));
}

#[tokio::test]
async fn what_somebody_asked_for_by_name_stays_though_it_passed_before_or_passes_later() {
    let fixture = fixture();
    let cache = fixture
        .cache
        .clone()
        .with_limit(CacheLimit::Bytes(5 * MIB as u64));
    let image = ready(&cache, "a", &content(1, 2)).await;
    for keep in [Keep::Passing, Keep::OnRequest, Keep::Passing] {
        let cache = cache.keeping(keep);
        cache.store_image(image.clone()).await.unwrap();
    }
    bring(&cache, "b", &content(2, 2)).await.unwrap();
    bring(&cache, "c", &content(3, 2)).await.unwrap();
    assert_eq!(tags(&cache).await, ["a", "c"]);
    // Also after the index was lost, which alone knows who only passes.
    std::fs::remove_file(cache.directory().join("index.json")).unwrap();
    let reopened = fixture
        .reopened()
        .with_limit(CacheLimit::Bytes(5 * MIB as u64));
    let refused = bring(&reopened, "d", &content(4, 2)).await;
    assert!(
        matches!(refused, Err(Error::CacheFull { .. })),
        "{refused:?}"
    );
    assert_eq!(tags(&reopened).await, ["a", "c"]);
}

#[tokio::test]
async fn what_an_owner_keeps_stays_until_he_lets_it_go() {
    let fixture = fixture();
    let limit = CacheLimit::Bytes(5 * MIB as u64);
    let cache = fixture.cache.clone().with_limit(limit);
    let image = ready(&cache, "a", &content(1, 4)).await;
    for owner in ["one", "other"] {
        let kept = cache.keeping(Keep::For(owner.into()));
        assert!(!kept.keeps(&image.repository, &image.reference).await);
        kept.store_image(image.clone()).await.unwrap();
        assert!(kept.keeps(&image.repository, &image.reference).await);
    }
    for owner in ["other", "one"] {
        cache.keep_only(owner, &[name("a")]).await;
        let refused = bring(&cache, "b", &content(2, 2)).await;
        assert!(
            matches!(refused, Err(Error::CacheFull { .. })),
            "{refused:?}"
        );
        cache.keep_only(owner, &[name("b")]).await;
    }
    bring(&cache, "b", &content(2, 2)).await.unwrap();
    assert_eq!(tags(&cache).await, ["b"]);
}

#[tokio::test]
async fn what_others_are_bringing_is_waited_for_and_then_gone() {
    let fixture = fixture();
    let cache = fixture
        .cache
        .clone()
        .with_limit(CacheLimit::Bytes(5 * MIB as u64));
    let cache = Arc::new(cache);
    let mut tasks = tokio::task::JoinSet::new();
    for seed in 1..=8 {
        let cache = Arc::clone(&cache);
        tasks.spawn(async move {
            bring(&cache, &seed.to_string(), &content(seed, 3))
                .await
                .map(|()| seed)
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap().unwrap();
    }
    assert_eq!(tags(&cache).await.len(), 1);
}

#[tokio::test]
async fn a_lease_of_a_run_that_was_killed_protects_nothing_and_goes() {
    let fixture = fixture();
    store_small(&fixture.cache, "app", "1", b"one").await;
    let lease = fixture.cache.lease(&[name("1")], []).await.unwrap();
    let leases = fixture.cache.directory().join(".leases");
    let path = std::fs::read_dir(&leases)
        .unwrap()
        .flatten()
        .next()
        .unwrap()
        .path();
    let copy = leases.join("dead");
    let text = std::fs::read_to_string(&path).unwrap();
    drop(lease);
    plant(&copy, &text);
    let report = fixture.cache.clean(&CleanRequest::default()).await.unwrap();
    assert_eq!(
        (report.images.as_slice(), report.in_use.len()),
        (&["app:1".to_owned()][..], 0)
    );
    assert!(!copy.exists());
}

#[tokio::test]
async fn a_lease_of_another_boot_counts_while_it_is_touched() {
    let fixture = fixture();
    store_small(&fixture.cache, "app", "1", b"one").await;
    let leases = fixture.cache.directory().join(".leases");
    std::fs::create_dir_all(&leases).unwrap();
    let path = leases.join("elsewhere");
    plant(&path, "{\"version\":1,\"boot\":\"another\"}\nimage app:1\n");
    let report = fixture.cache.clean(&CleanRequest::default()).await.unwrap();
    assert_eq!(report.in_use, ["app:1"]);
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(std::time::SystemTime::now() - Duration::from_mins(10))
        .unwrap();
    let report = fixture.cache.clean(&CleanRequest::default()).await.unwrap();
    assert_eq!(report.images, ["app:1"]);
    assert!(!path.exists());
}

#[tokio::test]
async fn blobs_that_no_image_names_yet_are_spared_while_others_can_go() {
    let fixture = fixture();
    let cache = fixture
        .cache
        .clone()
        .with_limit(CacheLimit::Bytes(7 * MIB as u64));
    let orphan: Descriptor = layer(&content(9, 2));
    put(&cache, &orphan, &content(9, 2)).await.unwrap();
    bring(&cache, "a", &content(1, 2)).await.unwrap();
    bring(&cache, "b", &content(2, 2)).await.unwrap();
    bring(&cache, "c", &content(3, 2)).await.unwrap();
    assert!(cache.has_blob(&orphan).await.unwrap());
    // Only when nothing else is left.
    bring(&cache, "d", &content(4, 6)).await.unwrap();
    assert!(!cache.has_blob(&orphan).await.unwrap());
    assert!(read(&cache, "app", "d").await.is_some());
}

#[tokio::test]
async fn a_clean_that_was_killed_is_ended_by_the_next() {
    let fixture = fixture();
    store_small(&fixture.cache, "app", "1", b"one").await;
    let trash = fixture.cache.directory().join(".trash");
    std::fs::create_dir(&trash).unwrap();
    plant(&trash.join("0123456789abcdef"), "a blob");
    fixture.cache.clean(&CleanRequest::default()).await.unwrap();
    assert!(!trash.exists());
}

#[tokio::test]
async fn what_others_have_brought_meanwhile_needs_no_room() {
    let fixture = fixture();
    let limit = CacheLimit::Bytes(5 * MIB as u64);
    let cache = fixture.cache.clone().with_limit(limit);
    let shared = layer(&content(1, 3));
    let names = [name("a"), name("b")];
    let mut first = cache.lease([&names[0]], [&shared.digest]).await.unwrap();
    first
        .reserve(&names[0], std::slice::from_ref(&shared))
        .await
        .unwrap();
    let other = cache.clone();
    let (wanted, image) = (shared.clone(), names[1].clone());
    let mut second = tokio::task::JoinSet::new();
    second.spawn(async move {
        let mut lease = other.lease([&image], [&wanted.digest]).await.unwrap();
        lease
            .reserve(&image, std::slice::from_ref(&wanted))
            .await
            .unwrap();
        other.has_blob(&wanted).await.unwrap()
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(second.try_join_next().is_none(), "both got room for one");
    put(&cache, &shared, &content(1, 3)).await.unwrap();
    first.has_arrived(&shared);
    drop(first);
    assert!(second.join_next().await.unwrap().unwrap());
}
