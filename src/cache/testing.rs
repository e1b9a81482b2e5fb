//! Parts that the tests of this room share: a cache in a temporary folder, images made on the spot, a listener.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    image::{Algorithm, Descriptor, Digest, MediaType, RawManifest},
    output::{Event, OutputManager, Renderer},
};

use super::{Cache, Claim, Result, StoredImage};

/// Where the images of these tests come from.
pub(super) const REGISTRY: &str = "http://localhost:5000";

/// Keeps what was said.
#[derive(Clone, Default)]
pub(super) struct Messages(Arc<Mutex<Vec<String>>>);

impl Renderer for Messages {
    fn handle(&self, event: &Event<'_>) {
        if let Event::Message { text, .. } = event {
            self.0.lock().unwrap().push((*text).to_owned());
        }
    }
}

impl Messages {
    /// How many messages contain `text`.
    pub(super) fn count(&self, text: &str) -> usize {
        let said = self.0.lock().unwrap();
        said.iter().filter(|message| message.contains(text)).count()
    }

    pub(super) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

/// Where the second process finds its volume.
const VOLUME: &str = "IMAGE_PUSHER_TEST_VOLUME";

/// For tests on disks that are full, small or read-only. Root may write everywhere, so permissions prove nothing: the test
/// runs again as a process of its own with a small volume in its own mount namespace. The folder of the volume in the process that has one. In the one that has none, runs the test in the other and returns
/// nothing.
pub(super) fn on_a_volume(module: &str, test: &str, options: &str) -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os(VOLUME) {
        return Some(folder.into());
    }
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-ec"])
        .arg("mount -t tmpfs -o \"$1\" none \"$2\"; exec \"$3\" --exact --nocapture \"$4\"")
        .args(["sh", options])
        .arg(folder.path())
        .arg(std::env::current_exe().unwrap())
        .arg(format!("{module}::{test}"))
        .env(VOLUME, folder.path())
        .output()
        .unwrap();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1 passed"), "the test did not run: {said}");
    None
}

/// A cache on a volume.
pub(super) fn open(volume: &Path) -> (Cache, Messages) {
    let messages = Messages::default();
    let cache = Cache::open(volume.join("cache"), OutputManager::new(messages.clone())).unwrap();
    (cache, messages)
}

/// A cache in a folder of its own.
pub(super) struct Fixture {
    pub(super) cache: Cache,
    pub(super) messages: Messages,
    pub(super) folder: TempDir,
}

pub(super) fn fixture() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let messages = Messages::default();
    let output = OutputManager::new(messages.clone());
    let cache = Cache::open(folder.path().join("cache"), output).unwrap();
    Fixture {
        cache,
        messages,
        folder,
    }
}

impl Fixture {
    /// What a run does at its end.
    pub(super) fn flush(&self) {
        futures::executor::block_on(self.cache.flush_index());
    }

    /// The same folder, as another process would see it.
    pub(super) fn reopened(&self) -> Cache {
        self.flush();
        Cache::open(
            self.cache.directory(),
            OutputManager::new(self.messages.clone()),
        )
        .unwrap()
    }

    /// Every file of the cache but the lock files, relative, sorted.
    pub(super) fn files(&self) -> Vec<String> {
        self.flush();
        let root = self.cache.directory();
        let mut found = Vec::new();
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                let relative = path.strip_prefix(root).unwrap().display().to_string();
                if relative == ".locks" {
                } else if entry.file_type().unwrap().is_dir() {
                    folders.push(path);
                } else {
                    found.push(relative);
                }
            }
        }
        found.sort();
        found
    }

    pub(super) fn index(&self) -> Value {
        self.flush();
        serde_json::from_slice(&std::fs::read(self.cache.directory().join("index.json")).unwrap())
            .unwrap()
    }
}

/// The descriptor of some bytes.
pub(super) fn blob(content: &[u8], media_type: &str) -> Descriptor {
    Descriptor {
        media_type: MediaType::from(media_type),
        digest: Digest::of(content),
        size: content.len() as u64,
        urls: Vec::new(),
        platform: None,
    }
}

pub(super) fn layer(content: &[u8]) -> Descriptor {
    blob(content, "application/vnd.oci.image.layer.v1.tar+gzip")
}

/// Puts a blob into the cache.
pub(super) async fn put(cache: &Cache, descriptor: &Descriptor, content: &[u8]) -> Result<()> {
    match cache.claim_blob(descriptor).await? {
        Claim::Present => Ok(()),
        Claim::Fetch(writer) => {
            writer.write_at(0, Bytes::copy_from_slice(content)).await?;
            writer.finish().await
        }
    }
}

pub(super) fn raw(manifest: &Value) -> RawManifest {
    RawManifest::new(manifest.to_string().into(), None, Algorithm::Sha256).unwrap()
}

/// A configuration for `architecture`, made different by `seed`.
pub(super) fn config(seed: &str, architecture: &str) -> Vec<u8> {
    json!({"os": "linux", "architecture": architecture, "author": seed})
        .to_string()
        .into_bytes()
}

/// An image manifest; its blobs are put into the cache.
pub(super) async fn image(cache: &Cache, config: &[u8], layers: &[&[u8]]) -> RawManifest {
    let config_descriptor = blob(config, MediaType::OCI_CONFIG.as_str());
    put(cache, &config_descriptor, config).await.unwrap();
    let mut descriptors = Vec::new();
    for content in layers {
        put(cache, &layer(content), content).await.unwrap();
        descriptors.push(layer(content));
    }
    raw(&json!({
        "schemaVersion": 2, "mediaType": MediaType::OCI_MANIFEST, "config": config_descriptor, "layers": descriptors,
    }))
}

/// An index of these images, with their platforms.
pub(super) fn index_of(children: &[(&RawManifest, &str)]) -> RawManifest {
    let manifests: Vec<Value> = children
        .iter()
        .map(|(child, architecture)| {
            json!({
                "mediaType": child.media_type(), "digest": child.digest(), "size": child.size(),
                "platform": {"os": "linux", "architecture": architecture},
            })
        })
        .collect();
    raw(&json!({"schemaVersion": 2, "mediaType": MediaType::OCI_INDEX, "manifests": manifests}))
}

pub(super) fn stored(repository: &str, reference: &str, root: &RawManifest) -> StoredImage {
    StoredImage {
        repository: repository.parse().unwrap(),
        reference: reference.parse().unwrap(),
        registry: REGISTRY.to_owned(),
        root: root.clone(),
        children: Vec::new(),
        missing: Vec::new(),
        pinned: false,
    }
}

/// Stores an image of one layer under a name.
pub(super) async fn store_small(cache: &Cache, repository: &str, reference: &str, content: &[u8]) {
    let root = image(cache, &config(reference, "amd64"), &[content]).await;
    cache
        .store_image(stored(repository, reference, &root))
        .await
        .unwrap();
}

/// The manifest an image name stands for.
pub(super) async fn read(cache: &Cache, repository: &str, reference: &str) -> Option<RawManifest> {
    let (repository, reference) = (repository.parse().unwrap(), reference.parse().unwrap());
    cache.manifest(&repository, &reference).await.unwrap()
}
