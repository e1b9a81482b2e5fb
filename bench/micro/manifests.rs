//! Manifests and indexes: a mirror reads one or two for each of its images in each run.

use bytes::Bytes;
use divan::Bencher;
use divan::counter::BytesCount;
use docker_image_pusher::image::{Algorithm, Digest, RawManifest};
use serde_json::{Value, json};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// An image with so many layers.
#[divan::bench(args = [3, 30])]
fn manifest(bencher: Bencher<'_, '_>, layers: usize) {
    parse(bencher, &image(layers));
}

/// So many platforms, each with its attestation, as buildx writes them.
#[divan::bench(args = [2, 16])]
fn index(bencher: Bencher<'_, '_>, platforms: usize) {
    let entry = |number: usize| {
        let mut entry = descriptor(MANIFEST, number);
        entry["platform"] =
            json!({"os": "linux", "architecture": "arm64", "variant": format!("v{number}")});
        entry["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
        entry
    };
    let manifests: Vec<_> = (0..2 * platforms).map(entry).collect();
    parse(
        bencher,
        &json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}),
    );
}

fn parse(bencher: Bencher<'_, '_>, manifest: &Value) {
    let bytes = Bytes::from(manifest.to_string());
    bencher.counter(BytesCount::new(bytes.len())).bench(|| {
        let raw = RawManifest::new(bytes.clone(), None, Algorithm::Sha256).unwrap();
        raw.parse().unwrap()
    });
}

fn image(layers: usize) -> Value {
    let layers: Vec<_> = (1..=layers)
        .map(|number| descriptor(LAYER, number))
        .collect();
    let config = descriptor(CONFIG, 0);
    json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers})
}

fn descriptor(media_type: &str, number: usize) -> Value {
    let digest = Digest::of(&number.to_be_bytes()).to_string();
    json!({"mediaType": media_type, "digest": digest, "size": 1000 + number})
}
