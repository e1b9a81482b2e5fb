//! Archives that leave out what an earlier one carried, as a stranger would make them: the cache's blobs are taken only where
//! the archive alone says what it is, and never on its word.

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use super::testing::{
    Bed, PLAIN, Sample, Tar, WAYS, Way, accepted, bed, blob, descriptor, gzip, put, sample,
};
use crate::{
    error::{Classified, handlers},
    image::{Digest, MediaType},
};

/// An OCI archive of the image without its layers.
fn without_layers(image: &Sample, manifest: &[u8], mark: &Value) -> Tar {
    let mut top = descriptor(MediaType::OCI_MANIFEST.as_str(), manifest);
    top["annotations"] = json!({"io.containerd.image.name": "team/app:1"});
    let index = json!({"schemaVersion": 2, "manifests": [top], "annotations": mark});
    let tar = blob(blob(Tar::default(), &image.config), manifest);
    tar.file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#)
        .file("index.json", index.to_string())
}

fn incremental(image: &Sample) -> Tar {
    without_layers(image, &image.oci_manifest(PLAIN), &mark())
}

fn mark() -> Value {
    json!({"io.imagepusher.incremental": "true"})
}

/// A cache that has the image.
async fn filled(image: &Sample) -> Bed {
    let bed = bed();
    bed.store(&image.oci_archive().end(), Way::File)
        .await
        .unwrap();
    bed
}

async fn refused(bed: &Bed, bytes: &[u8], way: Way, reason: &str, words: &str) {
    let before = bed.files();
    let error = bed.store(bytes, way).await.unwrap_err();
    let text = handlers::message(&error);
    assert_eq!(error.reason(), reason, "{way:?}: {text}");
    assert!(text.contains(words), "{way:?}: {text}");
    assert_eq!(bed.files(), before, "{way:?}: {text}");
}

#[tokio::test]
async fn layers_that_are_left_out_are_taken_from_the_cache_by_every_way() {
    let image = sample();
    let whole = accepted(&image.oci_archive().end()).await;
    for way in WAYS {
        let bed = filled(&image).await;
        let stored = bed.store(&incremental(&image).end(), way).await.unwrap();
        assert_eq!(stored[0].digest, whole[0]);
        assert!(bed.manifest("team/app:1").await.is_some());
    }
}

#[tokio::test]
async fn what_the_cache_has_not_is_told_with_the_remedy() {
    let image = sample();
    for way in WAYS {
        let missing = Digest::of(&image.layers[1]).to_string();
        let bytes = incremental(&image).end();
        refused(&bed(), &bytes, way, "ArchiveBaseMissing", &missing).await;
        let other = filled(&Sample::of(&[b"the first layer", b"another"])).await;
        refused(&other, &bytes, way, "ArchiveBaseMissing", &missing).await;
        let told = "extract the earlier archives first";
        refused(&other, &bytes, way, "ArchiveBaseMissing", told).await;
    }
}

/// One that was covered by a barrier is not read before it is used elsewhere; here it is.
#[tokio::test]
async fn a_layer_that_rotted_in_the_cache_is_told_as_that() {
    for pack in [|bytes: &[u8]| bytes.to_vec(), gzip] {
        let image = sample().packed(pack);
        let bed = filled(&image).await;
        let hex = Digest::of(&image.layers[0]).hex().to_owned();
        let path = bed.cache.directory().join("blobs/sha256").join(hex);
        let mut bytes = image.layers[0].clone();
        bytes[5] ^= 1;
        std::fs::remove_file(&path).unwrap();
        put(&path, &bytes);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o444)).unwrap();
        let bytes = incremental(&image).end();
        let told = "`docker-image-pusher verify` moves it away";
        refused(&bed, &bytes, Way::File, "ArchiveBaseDamaged", told).await;
    }
}

#[tokio::test]
async fn a_configuration_is_in_the_archive_or_nowhere() {
    let image = sample();
    let bed = filled(&image).await;
    let manifest = image.oci_manifest(PLAIN);
    let top = descriptor(MediaType::OCI_MANIFEST.as_str(), &manifest);
    let index = json!({"schemaVersion": 2, "manifests": [top], "annotations": mark()});
    let bytes = blob(Tar::default(), &manifest)
        .file("index.json", index.to_string())
        .end();
    let words = "the configuration, sha256:";
    refused(&bed, &bytes, Way::File, "ArchiveInvalid", words).await;
}

#[tokio::test]
async fn an_archive_that_does_not_say_so_must_be_whole_whatever_the_cache_has() {
    let image = sample();
    let bed = filled(&image).await;
    for mark in [
        json!(null),
        json!({}),
        json!({"io.imagepusher.incremental": "false"}),
        json!({"other": "true"}),
    ] {
        let bytes = without_layers(&image, &image.oci_manifest(PLAIN), &mark).end();
        let words = "is listed but not in the archive";
        refused(&bed, &bytes, Way::File, "ArchiveInvalid", words).await;
    }
}

/// What an archive with two descriptions means is decided by what is in it.
#[tokio::test]
async fn beside_a_manifest_json_nothing_is_looked_for_in_the_cache() {
    let image = sample();
    let bed = filled(&image).await;
    let bytes = incremental(&image).and(image.docker()).end();
    let stored = bed.store(&bytes, Way::File).await.unwrap();
    assert_eq!(stored[0].digest, accepted(&image.docker().end()).await[0]);
}

#[tokio::test]
async fn a_layer_of_the_cache_must_be_what_manifest_and_configuration_say() {
    let image = sample();
    let bed = filled(&image).await;
    // A configuration of other layers over those that are there.
    let mut other = Sample::of(&[b"the first layer", b"something else"]);
    other.layers.clone_from(&image.layers);
    let bytes = incremental(&other).end();
    refused(&bed, &bytes, Way::File, "DigestMismatch", "uncompressed").await;
    // Another size.
    let manifest = String::from_utf8(image.oci_manifest(PLAIN)).unwrap();
    let size = image.layers[1].len();
    let manifest = manifest.replace(
        &format!("\"size\":{size}"),
        &format!("\"size\":{}", size + 1),
    );
    let bytes = without_layers(&image, manifest.as_bytes(), &mark()).end();
    refused(&bed, &bytes, Way::Stream, "ArchiveBaseMissing", "sha256:").await;
}
