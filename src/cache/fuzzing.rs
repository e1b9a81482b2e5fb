//! What must hold for any name that leads into the cache, and for any index that is found there.

#![expect(
    clippy::expect_used,
    reason = "a property that does not hold ends the process"
)]

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Component, Path},
};

use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::{
    image::{Digest, Host, ImageName, Reference, Repository, RepositoryPath, Tag},
    output::OutputManager,
};

use super::{
    Cache,
    index::Entries,
    layout::{Layout, index_key, tag_at},
};

/// A name is refused, or it is kept as it is written, and its files lie in the cache.
pub(crate) fn reference(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    is_kept::<Host>(text);
    is_kept::<Repository>(text);
    is_kept::<Tag>(text);
    is_kept::<Reference>(text);
    if let Some(digest) = is_kept::<Digest>(text) {
        let layout = Layout::new("/cache".into());
        for path in [
            layout.blob(&digest),
            layout.partial(&digest),
            layout.partial_state(&digest),
        ] {
            lies_below(&path, Path::new("/cache/blobs"));
        }
    }
    if let Some(path) = is_kept::<RepositoryPath>(text) {
        // The name becomes a part of a URL, and must be the same there.
        let url = url::Url::parse(&format!("https://registry.example/v2/{path}/tags/list?n=1"));
        assert_eq!(
            url.expect("a name fits into a URL").path(),
            format!("/v2/{text}/tags/list")
        );
    }
    if let Some(name) = is_kept::<ImageName>(text) {
        image_name(&name);
    }
}

fn image_name(name: &ImageName) {
    let ImageName {
        repository,
        reference,
    } = name;
    let layout = Layout::new("/cache".into());
    let manifest = layout.manifest(repository, reference);
    let folder = layout.repository(repository);
    lies_below(&manifest, &folder);
    lies_below(&folder, &layout.manifests());
    if let Some(tag) = reference.tag() {
        lies_below(&layout.tag_aside(repository, tag), &folder);
        let below = manifest
            .strip_prefix(layout.manifests())
            .expect("it lies below");
        let components: Vec<&str> = below.iter().filter_map(|part| part.to_str()).collect();
        assert_eq!(tag_at(&components), Some((repository.clone(), tag.clone())));
    }
    let key = index_key(repository, reference);
    let (first, last) = key.rsplit_once('/').expect("a key has two parts");
    assert_eq!(
        (first, last),
        (&*repository.to_string(), &*reference.to_string())
    );
}

/// What a text is as a name, if it is one: names are never repaired.
fn is_kept<T>(text: &str) -> Option<T>
where
    T: std::str::FromStr + ToString,
{
    let value = text.parse::<T>().ok()?;
    assert_eq!(value.to_string(), text);
    Some(value)
}

/// Whether a path goes only down from a folder.
fn lies_below(path: &Path, folder: &Path) {
    let below = path.strip_prefix(folder).expect("it lies below its folder");
    assert!(below.components().count() > 0, "{}", path.display());
    assert!(
        below
            .components()
            .all(|part| matches!(part, Component::Normal(_))),
        "{}",
        path.display()
    );
}

/// Whatever the index says, the cache has the images that lie in it, no path leads out of it, and an index that is written
/// afterwards needs no rebuilding.
pub(crate) fn index(bytes: &[u8]) {
    if let Ok(entries) = serde_json::from_slice::<Entries>(bytes) {
        let sound = entries.iter().filter(|(key, entry)| entry.is_sound(key));
        for (_, entry) in sound {
            let root = Path::new("/cache");
            lies_below(&root.join(&entry.manifest_path), &root.join("manifests"));
            for blob in entry.blobs.values() {
                lies_below(&root.join(&blob.path), &root.join("blobs"));
            }
        }
    }
    DESK.with(|desk| desk.try_index(bytes));
}

/// A cache with one image.
struct Desk {
    folder: TempDir,
    runtime: Runtime,
}

thread_local! {
    static DESK: Desk = Desk::new();
}

const MANIFEST: &[u8] =
    br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;

/// In memory, where there is such a place: an index is synced when it is written, which takes a disk fifty times as long. The
/// fuzzer chooses its own place.
fn folder() -> io::Result<TempDir> {
    if cfg!(fuzzing) {
        return tempfile::tempdir();
    }
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())
}

impl Desk {
    fn new() -> Self {
        let folder = folder().expect("a temporary folder");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
        let desk = Self { folder, runtime };
        fs::create_dir_all(desk.path("manifests/app")).expect("a folder");
        desk.put("manifests/app/1", MANIFEST);
        desk
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        let file = File::create(self.path(name));
        file.and_then(|mut file| file.write_all(bytes))
            .expect("a file is written");
    }

    fn try_index(&self, bytes: &[u8]) {
        // Who finds it cannot be asked to have written it.
        fs::remove_file(self.path("index.json")).ok();
        self.put("index.json", bytes);
        let first = self.images();
        let written = fs::read(self.path("index.json")).expect("the index is there");
        assert_eq!(first.len(), 1, "{first:?}");
        assert_eq!(first[0].0, "app:1");
        assert_eq!(first[0].1, Digest::of(MANIFEST));
        // What was written last is what is read next.
        assert_eq!(self.images(), first);
        assert_eq!(
            fs::read(self.path("index.json")).expect("the index is there"),
            written
        );
        let entries: Entries =
            serde_json::from_slice(&written).expect("it was written by us, or it was fine");
        assert!(entries.iter().all(|(key, entry)| entry.is_sound(key)));
    }

    /// What a process finds, after it made sure that the index is one.
    fn images(&self) -> Vec<(String, Digest, Option<String>)> {
        let cache = Cache::open(self.folder.path(), OutputManager::silent()).expect("a cache");
        let shared = &cache.shared;
        self.runtime.block_on(async {
            let created = cache
                .index
                .create(&shared.layout, &shared.locks, &cache.output);
            created.await.expect("the index is written");
            cache.flush_index().await;
            let images = cache.list().await.expect("the cache is listed");
            let images = images
                .into_iter()
                .map(|image| (image.name.to_string(), image.digest, image.registry));
            images.collect()
        })
    }
}
