//! The way of a blob and of an image into the cache, on the disk of temporary files.

use std::sync::LazyLock;

use bytes::Bytes;
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use docker_image_pusher::cache::{Cache, Claim, StoredImage};
use docker_image_pusher::image::{Algorithm, Descriptor, Digest, RawManifest};
use docker_image_pusher::output::OutputManager;
use serde_json::json;
use tempfile::TempDir;
use tokio::runtime::Runtime;

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// As large as the pieces that come from a connection.
const PIECE: usize = 256 * 1024;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

fn empty_cache() -> (TempDir, Cache) {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(folder.path(), OutputManager::silent()).unwrap();
    (folder, cache)
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Descriptor {
    let digest = Digest::of(bytes).to_string();
    serde_json::from_value(json!({"mediaType": media_type, "digest": digest, "size": bytes.len()}))
        .unwrap()
}

async fn put(cache: &Cache, blob: &Bytes, descriptor: &Descriptor) {
    let Claim::Fetch(writer) = cache.claim_blob(descriptor).await.unwrap() else {
        return;
    };
    for start in (0..blob.len()).step_by(PIECE) {
        let piece = blob.slice(start..blob.len().min(start + PIECE));
        writer.write_at(start as u64, piece).await.unwrap();
    }
    writer.finish().await.unwrap();
}

/// Claim, write, hash, verify, name: all but the network.
#[divan::bench(sample_count = 10, sample_size = 1, args = [1, 64, 256])]
fn blob(bencher: Bencher<'_, '_>, mebibytes: usize) {
    let blob = Bytes::from(vec![7; mebibytes * 1024 * 1024]);
    let descriptor = descriptor(LAYER, &blob);
    bencher
        .counter(BytesCount::new(blob.len()))
        .with_inputs(empty_cache)
        // The folder comes back and is removed outside of what is measured.
        .bench_values(|(folder, cache)| {
            RUNTIME.block_on(put(&cache, &blob, &descriptor));
            folder
        });
}

/// So many images into one cache, one after the other: the barrier before each, its reference, and its entry in index.json,
/// which is merged with those that are there.
#[divan::bench(sample_count = 5, sample_size = 1, args = [1, 100])]
fn images(bencher: Bencher<'_, '_>, count: usize) {
    bencher
        .counter(ItemsCount::new(count))
        .with_inputs(|| {
            let (folder, cache) = empty_cache();
            let images: Vec<_> = (0..count).map(image).collect();
            RUNTIME.block_on(async {
                for (_, config) in &images {
                    put(&cache, config, &descriptor(CONFIG, config)).await;
                }
            });
            (folder, cache, images)
        })
        .bench_values(|(folder, cache, images)| {
            RUNTIME.block_on(async {
                for (image, _) in images {
                    cache.store_image(image).await.unwrap();
                }
            });
            folder
        });
}

/// An image without layers, and its config.
fn image(number: usize) -> (StoredImage, Bytes) {
    let config = Bytes::from(json!({"number": number}).to_string());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor(CONFIG, &config), "layers": [],
    });
    let bytes = Bytes::from(manifest.to_string());
    let image = StoredImage {
        repository: "registry.example/team/app".parse().unwrap(),
        reference: format!("v{number}").parse().unwrap(),
        registry: "https://registry.example".to_owned(),
        root: RawManifest::new(bytes, None, Algorithm::Sha256).unwrap(),
        children: Vec::new(),
        missing: Vec::new(),
        pinned: false,
    };
    (image, config)
}
