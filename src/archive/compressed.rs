//! Archives whose plain layers are compressed on their way into the cache.

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt, path::PathBuf};

use serde_json::{Value, json};

use super::{
    Compression, Error, Limits, Method, extract,
    outer::Form,
    testing::{
        Bed, GZIP, PLAIN, Sample, Tar, WAYS, Way, bed, blob, descriptor, gzip, layout, sample,
    },
    windows::Room,
};
use crate::{
    cache::CleanRequest,
    image::{Digest, MediaType, RawManifest},
};

const METHODS: [Method; 2] = [Method::Gzip, Method::Zstd];

/// Extracts every image under its own names, and gives the manifest of `app:1`.
async fn try_extract(
    bed: &Bed,
    bytes: &[u8],
    way: Way,
    method: Option<Method>,
) -> Result<RawManifest, Error> {
    let archive = bed.archive(bytes, way);
    let (limits, compression) = (Limits::default(), method.map(Compression::new));
    let stored = extract(
        archive,
        &bed.cache,
        &limits,
        compression,
        &bed.output,
        |images| {
            let named = images.iter().map(|image| {
                let own = image.names.clone();
                let names = if own.is_empty() {
                    vec!["app:1".parse().unwrap()]
                } else {
                    own
                };
                (image.position, names)
            });
            Ok::<_, Error>(named.collect())
        },
    );
    let stored = stored.await?;
    let manifest = bed.manifest("app:1").await.unwrap();
    assert_eq!(stored[0].digest, *manifest.digest());
    Ok(manifest)
}

async fn extracted(bed: &Bed, bytes: &[u8], way: Way, method: Method) -> RawManifest {
    try_extract(bed, bytes, way, Some(method)).await.unwrap()
}

fn fields(manifest: &RawManifest) -> Value {
    serde_json::from_slice(manifest.bytes()).unwrap()
}

fn blob_file(bed: &Bed, digest: &Value) -> PathBuf {
    let hex = digest.as_str().unwrap().strip_prefix("sha256:").unwrap();
    bed.cache.directory().join("blobs/sha256").join(hex)
}

/// What a blob of the cache holds, expanded.
fn expanded(bed: &Bed, descriptor: &Value) -> Vec<u8> {
    let packed = fs::read(blob_file(bed, &descriptor["digest"])).unwrap();
    assert_eq!(json!(packed.len()), descriptor["size"]);
    assert_eq!(json!(Digest::of(&packed)), descriptor["digest"]);
    let form = Form::of(&packed);
    assert!(
        descriptor["mediaType"]
            .as_str()
            .unwrap()
            .ends_with(match form {
                Form::Gzip => "+gzip",
                Form::Zstd => "+zstd",
                _ => ".tar",
            })
    );
    let room = Room::of(form, &bed.limits, || Ok(())).unwrap();
    let mut plain = Vec::new();
    let mut decoder = form.decoder(&packed[..], None, &bed.limits, room).unwrap();
    decoder.read_to_end(&mut plain).unwrap();
    plain
}

/// The notes of compressed layers: those that were written anew have other numbers.
fn notes(bed: &Bed) -> BTreeMap<PathBuf, u64> {
    let folder = bed.cache.directory().join(".state/layers");
    let entries = fs::read_dir(folder).into_iter().flatten();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .map(|path| (path.clone(), path.metadata().unwrap().ino()))
        .collect()
}

fn layers_of(manifest: &RawManifest) -> Vec<Value> {
    fields(manifest)["layers"].as_array().unwrap().clone()
}

#[tokio::test]
async fn plain_layers_are_compressed_the_same_by_every_way_and_their_plain_bytes_are_not_kept() {
    let image = Sample::of(&[&vec![7; 700_000], b"the second layer"]);
    for method in METHODS {
        let mut digests = Vec::new();
        for way in WAYS {
            let bed = bed();
            let manifest = extracted(&bed, &image.docker().end(), way, method).await;
            assert_eq!(*manifest.media_type(), MediaType::OCI_MANIFEST);
            let layers = layers_of(&manifest);
            for (layer, plain) in layers.iter().zip(&image.layers) {
                assert_ne!(layer["mediaType"], json!(PLAIN), "{method} {way:?}");
                assert!(expanded(&bed, layer) == *plain, "{method} {way:?}");
            }
            let config = blob_file(&bed, &fields(&manifest)["config"]["digest"]);
            assert_eq!(fs::read(config).unwrap(), image.config);
            let blobs = bed
                .files()
                .iter()
                .filter(|file| file.starts_with("blobs/"))
                .count();
            assert_eq!(blobs, 3, "{:?}", bed.files());
            digests.push(manifest.digest().clone());
        }
        assert!(
            digests.iter().all(|digest| *digest == digests[0]),
            "{digests:?}"
        );
    }
}

/// People have pushed what came out: it must not change within one version.
#[tokio::test]
async fn the_digest_of_a_compressed_image_never_changes() {
    for (method, expected) in [
        (
            Method::Gzip,
            "sha256:7c2c02c487d6e14d6e3b8333adafee1ad58c39b40f3ada1ec4cf69afc56c1865",
        ),
        (
            Method::Zstd,
            "sha256:f90a58d118a4d08730fdcd1a8fea4a202eda3d1eed8a2980941fd57d71b70075",
        ),
    ] {
        let manifest = extracted(&bed(), &sample().docker().end(), Way::File, method).await;
        assert_eq!(manifest.digest().to_string(), expected, "{method}");
    }
}

#[tokio::test]
async fn a_layer_that_is_compressed_already_stays_beside_one_that_is_not() {
    let mut image = sample();
    image.layers[0] = gzip(&image.layers[0]);
    for method in METHODS {
        let bed = bed();
        let manifest = extracted(&bed, &image.docker().end(), Way::File, method).await;
        let layers = layers_of(&manifest);
        assert_eq!(layers[0], descriptor(GZIP, &image.layers[0]));
        assert_eq!(expanded(&bed, &layers[1]), image.layers[1]);
        assert_eq!(notes(&bed).len(), 1);
    }
}

#[tokio::test]
async fn a_manifest_of_the_archive_is_kept_unless_a_layer_changes() {
    let packed = sample().packed(gzip);
    let manifest = packed.oci_manifest(GZIP);
    let top = descriptor(MediaType::OCI_MANIFEST.as_str(), &manifest);
    let tar = layout(blob(packed.oci_blobs(), &manifest), &[top]);
    let bed = bed();
    let kept = extracted(&bed, &tar.end(), Way::File, Method::Gzip).await;
    assert_eq!(kept.bytes(), &manifest);
    // What it says beside its layers stays.
    let image = sample();
    let mut manifest: Value = serde_json::from_slice(&image.oci_manifest(PLAIN)).unwrap();
    manifest["annotations"] = json!({"org.opencontainers.image.revision": "1234"});
    manifest["layers"][1]["annotations"] = json!({"of": "the layer"});
    manifest["layers"][0]["data"] = json!("aGVsbG8=");
    let bytes = manifest.to_string();
    let top = descriptor(MediaType::OCI_MANIFEST.as_str(), bytes.as_bytes());
    let tar = layout(blob(image.oci_blobs(), bytes.as_bytes()), &[top]);
    let changed = fields(&extracted(&bed, &tar.end(), Way::File, Method::Gzip).await);
    assert_eq!(changed["annotations"], manifest["annotations"]);
    assert_eq!(changed["config"], manifest["config"]);
    assert_eq!(
        changed["layers"][1]["annotations"],
        manifest["layers"][1]["annotations"]
    );
    assert_eq!(changed["layers"][0]["data"], Value::Null);
    for (layer, plain) in [0, 1].map(|number| (&changed["layers"][number], &image.layers[number])) {
        assert_eq!(layer["mediaType"], json!(GZIP));
        assert_eq!(expanded(&bed, layer), *plain);
    }
}

#[tokio::test]
async fn a_docker_manifest_becomes_an_oci_one_with_its_types() {
    const DOCKER: &str = "application/vnd.docker.image.rootfs.diff.tar";
    let mut image = sample();
    image.layers[1] = gzip(&image.layers[1]);
    let mut manifest: Value = serde_json::from_slice(&image.oci_manifest(DOCKER)).unwrap();
    manifest["mediaType"] = json!(MediaType::DOCKER_MANIFEST);
    manifest["config"]["mediaType"] = json!("application/vnd.docker.container.image.v1+json");
    manifest["layers"][1]["mediaType"] = json!(format!("{DOCKER}.gzip"));
    let bytes = manifest.to_string();
    let top = descriptor(MediaType::DOCKER_MANIFEST.as_str(), bytes.as_bytes());
    let tar = layout(blob(image.oci_blobs(), bytes.as_bytes()), &[top]).end();
    let bed = bed();
    let changed = extracted(&bed, &tar, Way::File, Method::Zstd).await;
    assert_eq!(*changed.media_type(), MediaType::OCI_MANIFEST);
    let changed = fields(&changed);
    assert_eq!(
        changed["config"],
        descriptor(MediaType::OCI_CONFIG.as_str(), &image.config)
    );
    assert_eq!(expanded(&bed, &changed["layers"][0]), image.layers[0]);
    assert_eq!(changed["layers"][1], descriptor(GZIP, &image.layers[1]));
}

/// An index of an image with plain layers, one with compressed layers that share nothing, and what is said of the first.
fn index() -> (Tar, [Sample; 2], Vec<Value>) {
    let (plain, packed) = (sample(), Sample::of(&[b"other"]).packed(gzip));
    let manifests = [plain.oci_manifest(PLAIN), packed.oci_manifest(GZIP)];
    let statement = b"{}".to_vec();
    let attestation = json!({
        "schemaVersion": 2, "mediaType": MediaType::OCI_MANIFEST,
        "config": descriptor(MediaType::OCI_CONFIG.as_str(), &plain.config),
        "layers": [descriptor("application/vnd.in-toto+json", &statement)],
    })
    .to_string();
    let mut children: Vec<Value> = [&manifests[0][..], &manifests[1], attestation.as_bytes()]
        .iter()
        .map(|bytes| descriptor(MediaType::OCI_MANIFEST.as_str(), bytes))
        .collect();
    for (child, architecture) in children.iter_mut().zip(["amd64", "arm64", "unknown"]) {
        child["platform"] = json!({"os": "linux", "architecture": architecture});
    }
    children[2]["annotations"] = json!({
        "vnd.docker.reference.digest": Digest::of(&manifests[0]), "vnd.docker.reference.type": "attestation-manifest",
    });
    let index = json!({
        "schemaVersion": 2, "mediaType": MediaType::OCI_INDEX, "manifests": children, "annotations": {"a": "b"},
    })
    .to_string();
    let tar = plain.oci_blobs().and(packed.oci_blobs());
    let tar = blob(blob(tar, &manifests[0]), &manifests[1]);
    let tar = blob(blob(tar, &statement), attestation.as_bytes());
    let tar = blob(tar, index.as_bytes());
    let top = descriptor(MediaType::OCI_INDEX.as_str(), index.as_bytes());
    (layout(tar, &[top]), [plain, packed], children)
}

#[tokio::test]
async fn an_index_names_the_changed_children_and_keeps_the_others() {
    let (tar, [plain, _], old) = index();
    let bed = bed();
    let index = extracted(&bed, &tar.end(), Way::File, Method::Gzip).await;
    let index = fields(&index);
    assert_eq!(index["annotations"], json!({"a": "b"}));
    let new = index["manifests"].as_array().unwrap();
    assert_eq!(new[1], old[1]);
    assert_eq!(new[0]["platform"], old[0]["platform"]);
    assert_ne!(new[0]["digest"], old[0]["digest"]);
    let name = format!("app@{}", new[0]["digest"].as_str().unwrap());
    let child = bed.manifest(&name).await.unwrap();
    assert_eq!(new[0]["size"], json!(child.size()));
    for (layer, plain) in layers_of(&child).iter().zip(&plain.layers) {
        assert_eq!(expanded(&bed, layer), *plain);
    }
    // What is said of the first child is said of what it became.
    let mut expected = old[2].clone();
    expected["annotations"]["vnd.docker.reference.digest"] = new[0]["digest"].clone();
    assert_eq!(new[2], expected);
    // With the notes, the second time gives the same.
    fs::remove_dir_all(bed.cache.directory().join(".state/archives")).unwrap();
    let (tar, ..) = self::index();
    let again = extracted(&bed, &tar.end(), Way::Stream, Method::Gzip).await;
    assert_eq!(fields(&again), index);
}

#[tokio::test]
async fn a_layer_that_several_images_share_is_compressed_once() {
    let (one, two) = (sample(), Sample::of(&[b"the first layer", b"a third one"]));
    let mut list = one.manifest(&json!(["app:1"])).as_array().unwrap().clone();
    let mut second = two.manifest(&json!(["app:2"]))[0].clone();
    second["Config"] = json!("second.json");
    second["Layers"] = json!(["layer-0", "layer-2"]);
    list.push(second);
    let tar = one
        .parts()
        .file("layer-2", &two.layers[1])
        .file("second.json", &two.config)
        .file("manifest.json", json!(list).to_string());
    let bed = bed();
    let first = extracted(&bed, &tar.end(), Way::File, Method::Gzip).await;
    let second = bed.manifest("app:2").await.unwrap();
    assert_eq!(layers_of(&first)[0], layers_of(&second)[0]);
    assert_eq!(expanded(&bed, &layers_of(&second)[1]), two.layers[1]);
    assert_eq!(notes(&bed).len(), 3);
}

#[tokio::test]
async fn what_was_compressed_before_is_not_compressed_again() {
    let bed = bed();
    let first = extracted(&bed, &sample().docker().end(), Way::File, Method::Gzip).await;
    let written = notes(&bed);
    assert_eq!(written.len(), 2);
    // The same layers in another archive, and a new one.
    let other = Sample::of(&[b"the first layer", b"a third one"]);
    let second = extracted(&bed, &other.docker().end(), Way::Stream, Method::Gzip).await;
    assert_eq!(layers_of(&first)[0], layers_of(&second)[0]);
    let now = notes(&bed);
    assert_eq!(now.len(), 3);
    assert!(written.iter().all(|note| now.get(note.0) == Some(note.1)));
    // Another method has its own.
    extracted(&bed, &other.docker().end(), Way::Stream, Method::Zstd).await;
    assert_eq!(notes(&bed).len(), 5);
}

#[tokio::test]
async fn a_compressed_blob_that_is_damaged_or_gone_is_made_anew() {
    let bed = bed();
    let bytes = sample().docker().end();
    let first = extracted(&bed, &bytes, Way::Stream, Method::Gzip).await;
    let layers = layers_of(&first);
    let paths: Vec<PathBuf> = layers
        .iter()
        .map(|layer| blob_file(&bed, &layer["digest"]))
        .collect();
    fs::remove_file(&paths[0]).unwrap();
    fs::remove_file(&paths[1]).unwrap();
    bed.write("cut", b"cut");
    fs::rename(
        bed.cache.directory().parent().unwrap().join("cut"),
        &paths[1],
    )
    .unwrap();
    let again = extracted(&bed, &bytes, Way::Stream, Method::Gzip).await;
    assert_eq!(again, first);
    for (layer, plain) in layers.iter().zip(&sample().layers) {
        assert_eq!(expanded(&bed, layer), *plain);
    }
    // The same where all was cleaned.
    bed.cache.clean(&CleanRequest::default()).await.unwrap();
    assert_eq!(
        extracted(&bed, &bytes, Way::Stream, Method::Gzip).await,
        first
    );
}

#[tokio::test]
async fn an_archive_is_known_for_itself_and_for_each_compression() {
    let bed = bed();
    let bytes = sample().docker().end();
    bed.archive(&bytes, Way::File);
    let mut digests = Vec::new();
    for method in [None, Some(Method::Gzip), Some(Method::Zstd)] {
        let path = bed.cache.directory().parent().unwrap().join("app.tar");
        for is_known in [false, true] {
            let archive = super::Archive::open(&path).unwrap();
            let compression = method.map(Compression::new);
            let before = bed.output.totals().bytes_extracted;
            let stored = extract(
                archive,
                &bed.cache,
                &bed.limits,
                compression,
                &bed.output,
                |images| Ok::<_, Error>(vec![(0, images[0].names.clone())]),
            );
            let stored = stored.await.unwrap();
            assert_eq!(bed.output.totals().bytes_extracted == before, is_known);
            assert_eq!(stored[0].is_new, !is_known);
            digests.push(stored[0].digest.clone());
        }
    }
    assert_eq!(
        (&digests[0], &digests[2], &digests[4]),
        (&digests[1], &digests[3], &digests[5])
    );
    assert!(digests[0] != digests[2] && digests[2] != digests[4]);
}

#[tokio::test]
async fn a_layer_that_is_not_what_the_configuration_says_is_refused_also_where_it_was_compressed_before()
 {
    let good = sample();
    let mut wrong = sample();
    wrong.layers[1] = b"the wrong layer!".to_vec();
    for way in WAYS {
        for was_there in [false, true] {
            let bed = bed();
            if was_there {
                extracted(&bed, &good.docker().end(), Way::Stream, Method::Gzip).await;
            }
            let before = bed.files();
            let refused = try_extract(&bed, &wrong.docker().end(), way, Some(Method::Gzip)).await;
            let error = refused.unwrap_err();
            assert!(
                matches!(error, Error::DigestMismatch { .. }),
                "{way:?}: {error}"
            );
            assert_eq!(bed.files(), before, "{way:?}");
        }
    }
}

#[tokio::test]
async fn a_layer_that_only_its_publisher_may_serve_stays_plain() {
    let image = sample();
    let mut manifest: Value = serde_json::from_slice(&image.oci_manifest(PLAIN)).unwrap();
    let restricted = "application/vnd.oci.image.layer.nondistributable.v1.tar";
    manifest["layers"][0]["mediaType"] = json!(restricted);
    let bytes = manifest.to_string();
    let top = descriptor(MediaType::OCI_MANIFEST.as_str(), bytes.as_bytes());
    let tar = layout(blob(image.oci_blobs(), bytes.as_bytes()), &[top]).end();
    let bed = bed();
    let changed = extracted(&bed, &tar, Way::File, Method::Gzip).await;
    let layers = layers_of(&changed);
    assert_eq!(layers[0], manifest["layers"][0]);
    assert_eq!(expanded(&bed, &layers[1]), image.layers[1]);
}
