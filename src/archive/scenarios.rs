//! What the images of an archive turn out to be: the hybrid rule, names, platforms, the must-pass list, and what is in the
//! cache afterwards. Archives of real tools are tried in tests/archives.

use std::{io::Read, time::Duration};

use serde_json::{Value, json};

use super::{
    Limits, TarUtils, extract,
    testing::{
        Bed, GZIP, PLAIN, Sample, Tar, WAYS, Way, accepted, bed, blob, descriptor, gzip, layout,
        refused, sample, set_size, zstd,
    },
};
use crate::{
    cache::CleanRequest,
    error::Classified,
    image::{Digest, ImageName, Manifest, MediaType},
};

/// The manifest that is made for [`sample`] when its archive has none. It must never change: people have pushed it.
const SAMPLE_DIGEST: &str =
    "sha256:f1ea5d0528e5409cbbf75d28767c824ebba525a66e4a8077d03c73dd55364793";

fn manifest_type() -> &'static str {
    "application/vnd.oci.image.manifest.v1+json"
}

/// `blobs/sha256/<hex>` of some bytes.
fn blob_path(bytes: &[u8]) -> String {
    format!("blobs/sha256/{}", Digest::of(bytes).hex())
}

/// `manifest.json` as docker save writes it from version 25 on.
fn hybrid_manifest(image: &Sample, tags: &Value) -> String {
    let layers: Vec<String> = image.layers.iter().map(|layer| blob_path(layer)).collect();
    json!([{"Config": blob_path(&image.config), "RepoTags": tags, "Layers": layers}]).to_string()
}

/// A descriptor with a name as containerd writes it.
fn named(media_type: &str, bytes: &[u8], full_name: &str, reference: &str) -> Value {
    let mut descriptor = descriptor(media_type, bytes);
    descriptor["annotations"] = json!({
        "io.containerd.image.name": full_name, "org.opencontainers.image.ref.name": reference,
    });
    descriptor
}

#[tokio::test]
async fn an_archive_gives_the_same_digest_in_every_layout_and_by_every_way() {
    let image = sample();
    let plain = image.docker().end();
    // Config and layers under other names, the list first, a link for a layer.
    let manifest = json!([{
        "Config": format!("{}.json", image.config_digest().hex()), "RepoTags": ["app:1"],
        "Layers": ["id1/layer.tar", "id2/layer.tar"],
    }]);
    let other = Tar::default()
        .folder("./")
        .file("./manifest.json", manifest.to_string())
        .file("first.tar", &image.layers[0])
        .link(b'2', "id1/layer.tar", "../first.tar")
        .file("id2/layer.tar", &image.layers[1])
        .file(
            &format!("{}.json", image.config_digest().hex()),
            &image.config,
        )
        .end();
    for bytes in [plain, other] {
        let digests = accepted(&bytes).await;
        assert_eq!(digests[0].to_string(), SAMPLE_DIGEST);
    }
}

#[tokio::test]
async fn an_image_lies_in_the_cache_with_every_blob_and_its_origin() {
    for way in WAYS {
        let bed = bed();
        let contents = bed.parse(&sample().docker().end(), way).await.unwrap();
        let image = contents.images()[0].clone();
        assert_eq!(image.names[0].to_string(), "app:1");
        assert_eq!(image.platforms[0].to_string(), "linux/amd64");
        assert_eq!(image.digest.unwrap().to_string(), SAMPLE_DIGEST);
        assert!(bed.manifest("app:1").await.is_none(), "seen too early");
        let names: Vec<ImageName> = ["team/app:1", "app:2"]
            .iter()
            .map(|name| name.parse().unwrap())
            .collect();
        let stored = contents.store(&[(0, names.clone())]).await.unwrap();
        assert_eq!(stored[0].names, names);
        for name in ["team/app:1", "app:2"] {
            let manifest = bed.manifest(name).await.unwrap();
            assert_eq!(manifest.digest().to_string(), SAMPLE_DIGEST);
        }
        let listed = bed.cache.list().await.unwrap();
        assert!(listed.iter().all(crate::cache::ListedImage::is_complete));
        let origin = bed
            .cache
            .origin(&names[0].repository, &names[0].reference)
            .await
            .unwrap();
        let expected = match way {
            Way::File => "archive app.tar",
            Way::GzipFile => "archive app.tar.gz",
            Way::Stream | Way::ZstdStream => "archive standard input",
        };
        assert_eq!(origin, expected);
        assert_eq!(
            bed.files()
                .iter()
                .filter(|file| file.starts_with("blobs/"))
                .count(),
            3
        );
        let totals = bed.output.totals();
        assert_eq!((totals.extracted, totals.existing), (3, 0));
        assert!(totals.bytes_extracted > 0);
    }
}

#[tokio::test]
async fn layers_keep_their_compression_and_each_has_its_own() {
    let mut image = Sample::of(&[b"one", b"two", b"three"]);
    image.layers[1] = gzip(b"two");
    image.layers[2] = zstd(b"three");
    let bytes = image.docker().end();
    accepted(&bytes).await;
    let bed = bed();
    let contents = bed.parse(&bytes, Way::File).await.unwrap();
    // Its bytes decide on the digest of a compressed layer, and they were not read.
    assert_eq!(contents.images()[0].digest, None);
    contents
        .store(&[(0, vec!["app:1".parse().unwrap()])])
        .await
        .unwrap();
    let manifest = bed.manifest("app:1").await.unwrap();
    let Manifest::Image(parsed) = manifest.parse().unwrap() else {
        panic!("an image")
    };
    for ((layer, content), suffix) in parsed
        .layers
        .iter()
        .zip(&image.layers)
        .zip(["", "+gzip", "+zstd"])
    {
        assert_eq!(layer.digest, Digest::of(content));
        assert_eq!(layer.media_type.as_str(), format!("{PLAIN}{suffix}"));
    }
}

#[tokio::test]
async fn hybrid_archives_keep_their_oci_manifest_byte_for_byte() {
    for (image, layer_type) in [(sample(), PLAIN), (sample().packed(gzip), GZIP)] {
        // Not as we would write it.
        let manifest = [b"\n ", &image.oci_manifest(layer_type)[..]].concat();
        let top = named(manifest_type(), &manifest, "docker.io/library/app:1", "1");
        let tar = layout(blob(image.oci_blobs(), &manifest), &[top])
            .file("manifest.json", hybrid_manifest(&image, &json!(["app:1"])));
        assert_eq!(accepted(&tar.clone().end()).await, [Digest::of(&manifest)]);
        let bed = bed();
        let contents = bed.parse(&tar.end(), Way::File).await.unwrap();
        assert_eq!(contents.images().len(), 1);
        assert_eq!(contents.images()[0].names[0].to_string(), "app:1");
    }
}

/// moby#47065, moby#47210, moby#51389: the layout says less than `manifest.json`, or something else.
#[tokio::test]
async fn a_hybrid_archive_with_a_wrong_oci_side_gets_the_manifest_of_a_plain_one() {
    let image = sample();
    let mut reversed = image.clone();
    reversed.layers.reverse();
    let mut none = image.clone();
    none.layers.clear();
    let docker = hybrid_manifest(&image, &json!(["app:1"]));
    let mut layouts = vec![
        Tar::default().file("index.json", r#"{"schemaVersion":2,"manifests":null}"#),
        Tar::default().file("index.json", r#"{"schemaVersion":2,"manifests":[]}"#),
    ];
    for wrong in [&reversed, &none] {
        let manifest = wrong.oci_manifest(PLAIN);
        let top = named(manifest_type(), &manifest, "docker.io/library/app:1", "1");
        layouts.push(layout(blob(Tar::default(), &manifest), &[top]));
    }
    // A manifest that is not there, or not what its name says.
    let manifest = image.oci_manifest(PLAIN);
    let top = descriptor(manifest_type(), &manifest);
    layouts.push(layout(Tar::default(), std::slice::from_ref(&top)));
    layouts.push(layout(
        Tar::default().file(&blob_path(&manifest), vec![b' '; manifest.len()]),
        &[top],
    ));
    let listed = vec![descriptor(manifest_type(), b"gone"); 20];
    layouts.push(layout(Tar::default(), &listed));
    for layout in layouts {
        let tar = image.oci_blobs().and(layout).file("manifest.json", &docker);
        assert_eq!(
            accepted(&tar.clone().end()).await[0].to_string(),
            SAMPLE_DIGEST
        );
        // However many are wrong, a reader can still read the warnings.
        let bed = bed();
        bed.store(&tar.end(), Way::File).await.unwrap();
        assert!(bed.warnings().len() <= 9, "{:?}", bed.warnings());
    }
}

/// containerd's store: the index names platforms that were never pulled; `manifest.json` says which one was meant.
#[tokio::test]
async fn of_an_incomplete_index_the_platform_that_docker_names_is_taken() {
    let (amd, arm) = (sample().packed(gzip), Sample::of(&[b"arm"]).packed(gzip));
    let (amd_manifest, arm_manifest) = (amd.oci_manifest(GZIP), arm.oci_manifest(GZIP));
    let index = index(&[(&amd_manifest, "amd64"), (&arm_manifest, "arm64")]);
    let top = named(
        MediaType::OCI_INDEX.as_str(),
        &index,
        "docker.io/library/app:1",
        "1",
    );
    let part = layout(blob(blob(amd.oci_blobs(), &amd_manifest), &index), &[top]);
    let docker = hybrid_manifest(&amd, &json!(["app:1"]));
    let tar = part.clone().file("manifest.json", &docker);
    assert_eq!(
        accepted(&tar.clone().end()).await,
        [Digest::of(&amd_manifest)]
    );
    // With the other platform the index is whole and kept.
    let whole = tar.and(blob(arm.oci_blobs(), &arm_manifest)).end();
    assert_eq!(accepted(&whole).await, [Digest::of(&index)]);
    // Without manifest.json nobody says which one was meant.
    refused(
        &part.end(),
        "ArchiveIncomplete",
        "docker.io/library/app:1: platform linux/arm64 is missing",
    )
    .await;
}

fn index(children: &[(&[u8], &str)]) -> Vec<u8> {
    let manifests: Vec<Value> = children
        .iter()
        .map(|(manifest, architecture)| {
            let mut child = descriptor(manifest_type(), manifest);
            child["platform"] = json!({"os": "linux", "architecture": architecture});
            child
        })
        .collect();
    json!({"schemaVersion": 2, "mediaType": MediaType::OCI_INDEX, "manifests": manifests})
        .to_string()
        .into_bytes()
}

#[tokio::test]
async fn an_index_with_all_its_platforms_and_their_attestations_is_stored_whole() {
    let (amd, arm) = (sample().packed(gzip), Sample::of(&[b"arm"]).packed(gzip));
    // An attestation: JSON in the place of a layer, with an image's configuration.
    let statement = Sample::of(&[br#"{"_type":"https://in-toto.io/Statement/v0.1"}"#]);
    let attestation = statement.oci_manifest("application/vnd.in-toto+json");
    let (amd_manifest, arm_manifest) = (amd.oci_manifest(GZIP), arm.oci_manifest(GZIP));
    let mut index: Value = serde_json::from_slice(&index(&[
        (&amd_manifest, "amd64"),
        (&arm_manifest, "arm64"),
        (&attestation, "unknown"),
    ]))
    .unwrap();
    index["manifests"][2]["platform"]["os"] = json!("unknown");
    let index = index.to_string().into_bytes();
    // As buildx writes it: the name in the annotation is a tag only.
    let mut top = descriptor(MediaType::OCI_INDEX.as_str(), &index);
    top["annotations"] = json!({"org.opencontainers.image.ref.name": "1.2"});
    let tar = [&amd, &arm, &statement]
        .iter()
        .fold(Tar::default(), |tar, image| tar.and(image.oci_blobs()));
    let tar = [&amd_manifest, &arm_manifest, &attestation, &index]
        .iter()
        .fold(tar, |tar, manifest| blob(tar, manifest));
    let bytes = layout(tar, &[top]).end();
    assert_eq!(accepted(&bytes).await, [Digest::of(&index)]);
    let bed = bed();
    let contents = bed.parse(&bytes, Way::Stream).await.unwrap();
    let image = contents.images()[0].clone();
    assert_eq!(
        (image.names.len(), image.tag_only.unwrap().as_str()),
        (0, "1.2")
    );
    let platforms: Vec<String> = image.platforms.iter().map(ToString::to_string).collect();
    assert_eq!(platforms, ["linux/amd64", "linux/arm64"]);
    contents
        .store(&[(0, vec!["app:1.2".parse().unwrap()])])
        .await
        .unwrap();
    assert_eq!(*bed.manifest("app:1.2").await.unwrap().bytes(), index);
    for child in [&amd_manifest, &arm_manifest, &attestation] {
        let name = format!("app@{}", Digest::of(child));
        assert_eq!(bed.manifest(&name).await.unwrap().bytes(), child);
    }
}

#[tokio::test]
async fn docker_manifests_and_sha512_digests_in_a_layout_travel_as_they_are() {
    use crate::image::Algorithm::Sha512;
    let image = sample();
    let config = descriptor(
        "application/vnd.docker.container.image.v1+json",
        &image.config,
    );
    let layers: Vec<Value> = image
        .layers
        .iter()
        .map(|layer| descriptor("application/vnd.docker.image.rootfs.diff.tar", layer))
        .collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MediaType::DOCKER_MANIFEST, "config": config, "layers": layers,
    })
    .to_string();
    let top = descriptor(MediaType::DOCKER_MANIFEST.as_str(), manifest.as_bytes());
    let tar = layout(blob(image.oci_blobs(), manifest.as_bytes()), &[top]);
    assert_eq!(
        accepted(&tar.end()).await,
        [Digest::of(manifest.as_bytes())]
    );

    let mut manifest: Value = serde_json::from_slice(&image.oci_manifest(PLAIN)).unwrap();
    let digest = Digest::with_algorithm(Sha512, &image.layers[0]);
    manifest["layers"][0]["digest"] = json!(digest);
    let manifest = manifest.to_string();
    let tar = image
        .oci_blobs()
        .file(&format!("blobs/sha512/{}", digest.hex()), &image.layers[0]);
    let top = descriptor(manifest_type(), manifest.as_bytes());
    let bytes = layout(blob(tar, manifest.as_bytes()), &[top]).end();
    assert_eq!(accepted(&bytes).await, [Digest::of(manifest.as_bytes())]);
}

/// moby#49141: layers that only their publisher may serve are left out of the archive.
#[tokio::test]
async fn a_layer_that_stays_with_its_publisher_may_be_absent() {
    let image = sample();
    let mut manifest: Value = serde_json::from_slice(&image.oci_manifest(PLAIN)).unwrap();
    manifest["layers"][0]["mediaType"] =
        json!("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
    manifest["layers"][0]["urls"] = json!(["https://publisher.example/layer"]);
    let manifest = manifest.to_string().into_bytes();
    let top = descriptor(manifest_type(), &manifest);
    let tar = blob(
        blob(blob(Tar::default(), &image.config), &image.layers[1]),
        &manifest,
    );
    let tar = layout(tar, &[top]);
    assert_eq!(accepted(&tar.clone().end()).await, [Digest::of(&manifest)]);
    let hybrid = tar.file("manifest.json", hybrid_manifest(&image, &json!(["app:1"])));
    assert_eq!(accepted(&hybrid.end()).await, [Digest::of(&manifest)]);
}

#[tokio::test]
async fn several_images_keep_their_order_and_names() {
    let (one, two) = (sample(), Sample::of(&[b"another"]));
    let path = |image: &Sample| format!("{}.json", image.config_digest().hex());
    let manifest = json!([
        {"Config": path(&one), "RepoTags": ["app:1", "localhost:5000/app:1.0"], "Layers": ["a", "b"]},
        {"Config": path(&two), "RepoTags": null, "Layers": ["c"]},
        {"Config": path(&two), "RepoTags": ["tool:1"], "Layers": ["c"]},
    ]);
    let bytes = Tar::default()
        .file(&path(&one), &one.config)
        .file(&path(&two), &two.config)
        .file("a", &one.layers[0])
        .file("b", &one.layers[1])
        .file("c", &two.layers[0])
        .file("manifest.json", manifest.to_string())
        .end();
    let bed = bed();
    let contents = bed.parse(&bytes, Way::File).await.unwrap();
    let names: Vec<Vec<String>> = contents
        .images()
        .iter()
        .map(|image| image.names.iter().map(ToString::to_string).collect())
        .collect();
    assert_eq!(
        names,
        [
            vec!["app:1", "localhost:5000/app:1.0"],
            vec![],
            vec!["tool:1"]
        ]
    );
    let name: ImageName = "x:1".parse().unwrap();
    let stored = contents.store(&[(1, vec![name.clone()])]).await.unwrap();
    assert_eq!((stored.len(), stored[0].position), (1, 1));
    // Only what was chosen is in the cache.
    assert_eq!(
        bed.files()
            .iter()
            .filter(|file| file.starts_with("blobs/"))
            .count(),
        2
    );
    let contents = bed.parse(&bytes, Way::File).await.unwrap();
    let error = contents
        .store(&[(0, vec![name.clone()]), (1, vec![name])])
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("cannot both be stored as x:1"),
        "{error}"
    );
    let contents = bed.parse(&bytes, Way::File).await.unwrap();
    let error = contents.store(&[(3, vec![])]).await.unwrap_err();
    assert!(error.to_string().contains("no image number 4"), "{error}");
}

#[tokio::test]
async fn descriptors_of_one_digest_are_one_image_with_several_names() {
    let image = sample();
    let manifest = image.oci_manifest(PLAIN);
    let tops: Vec<Value> = [
        ("docker.io/library/app:1", "1"),
        ("docker.io/library/app:2", "2"),
        ("not a name", "also not!"),
    ]
    .iter()
    .map(|(full, reference)| named(manifest_type(), &manifest, full, reference))
    .collect();
    let tar = layout(blob(image.oci_blobs(), &manifest), &tops);
    let bed = bed();
    let contents = bed.parse(&tar.end(), Way::File).await.unwrap();
    let names: Vec<String> = contents.images()[0]
        .names
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(contents.images().len(), 1);
    assert_eq!(
        names,
        ["docker.io/library/app:1", "docker.io/library/app:2"]
    );
}

#[tokio::test]
async fn a_second_extraction_writes_no_blob_again_and_still_reads_every_byte() {
    let bed = bed();
    let bytes = sample().docker().end();
    for (way, new, existing) in [(Way::File, 3, 0), (Way::File, 0, 3), (Way::Stream, 0, 3)] {
        let before = bed.output.totals();
        bed.store(&bytes, way).await.unwrap();
        let after = bed.output.totals();
        assert_eq!(
            (
                after.extracted - before.extracted,
                after.existing - before.existing
            ),
            (new, existing),
            "{way:?}"
        );
    }
    // A damaged archive is told from a good one although the cache has what it should hold.
    let mut damaged = bytes;
    let position = damaged
        .windows(9)
        .position(|text| text == b"the first")
        .unwrap();
    damaged[position] ^= 1;
    let error = bed.store(&damaged, Way::File).await.unwrap_err();
    assert_eq!(error.reason(), "DigestMismatch");
}

#[tokio::test]
async fn what_is_parsed_and_dropped_leaves_nothing() {
    for way in WAYS {
        let bed = bed();
        let contents = bed.parse(&sample().docker().end(), way).await.unwrap();
        drop(contents);
        assert_eq!(bed.files(), Vec::<String>::new(), "{way:?}");
    }
}

/// Extracts under the names of the archive, and counts how often it was read.
async fn extract_named(bed: &Bed, archive: super::Archive, prefix: &str) -> (Vec<String>, u64) {
    let before = bed.output.totals().bytes_extracted;
    let stored = extract(
        archive,
        &bed.cache,
        &Limits::default(),
        None,
        &bed.output,
        |images| {
            Ok::<_, super::Error>(
                images
                    .iter()
                    .map(|image| {
                        let name = format!("{prefix}{}", image.names[0]);
                        (image.position, vec![name.parse().unwrap()])
                    })
                    .collect(),
            )
        },
    )
    .await
    .unwrap();
    let digests = stored
        .into_iter()
        .map(|image| image.digest.to_string())
        .collect();
    (digests, bed.output.totals().bytes_extracted - before)
}

#[tokio::test]
async fn an_archive_that_did_not_change_is_not_read_again() {
    for way in [Way::File, Way::GzipFile] {
        let bed = bed();
        let bytes = sample().docker().end();
        let name = if way == Way::File {
            "app.tar"
        } else {
            "app.tar.gz"
        };
        bed.archive(&bytes, way);
        let open =
            || super::Archive::open(&bed.cache.directory().parent().unwrap().join(name)).unwrap();
        let (first, read) = extract_named(&bed, open(), "").await;
        assert!(read > 0);
        let (again, read) = extract_named(&bed, open(), "").await;
        assert_eq!((again, read), (first.clone(), 0));
        // Under another name, too.
        let (other, read) = extract_named(&bed, open(), "team/").await;
        assert_eq!((other, read), (first.clone(), 0));
        assert!(bed.manifest("team/app:1").await.is_some());
        // What the cache has lost is read again.
        bed.cache.clean(&CleanRequest::default()).await.unwrap();
        let (restored, read) = extract_named(&bed, open(), "").await;
        assert_eq!(restored, first);
        assert!(read > 0);
        // And what was written anew.
        bed.archive(&Sample::of(&[b"newer"]).docker().end(), way);
        let (newer, read) = extract_named(&bed, open(), "").await;
        assert_ne!(newer, first);
        assert!(read > 0);
    }
}

#[tokio::test]
async fn nothing_is_visible_when_the_choice_fails() {
    for way in WAYS {
        let bed = bed();
        let archive = bed.archive(&sample().docker().end(), way);
        let refused = extract(
            archive,
            &bed.cache,
            &bed.limits,
            None,
            &bed.output,
            |images| {
                assert_eq!(images.len(), 1);
                Err(super::Error::ArchiveNotFound {
                    path: "chosen".into(),
                })
            },
        )
        .await;
        assert!(refused.is_err());
        assert_eq!(bed.files(), Vec::<String>::new(), "{way:?}");
    }
}

/// Somebody sends an endless entry, and the reader is given up: its thread ends and its files go.
#[tokio::test]
async fn a_reading_that_is_given_up_ends_and_leaves_nothing() {
    let bed = bed();
    let head = Tar::default().entry(b'0', b"endless", b"", |header| set_size(header, 1 << 32));
    let endless = std::io::Cursor::new(head.open_end()).chain(std::io::repeat(7));
    let archive = super::Archive::from_reader(endless, "standard input".to_owned());
    let parsing = TarUtils::parse_image_info(archive, &bed.cache, &bed.limits, &bed.output);
    assert!(
        tokio::time::timeout(Duration::from_millis(100), parsing)
            .await
            .is_err()
    );
    let gone = async {
        while !bed.files().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_file_of_the_operator_is_read() {
    let bed = bed();
    let path = bed.write("app.tar", &sample().docker().end());
    let file = std::fs::File::open(path).unwrap();
    let archive = super::Archive::from_file(file, "team-a/app.tar".to_owned()).unwrap();
    assert_eq!(
        archive.identity().unwrap().path().to_str(),
        Some("team-a/app.tar")
    );
    let contents = TarUtils::parse_image_info(archive, &bed.cache, &bed.limits, &bed.output)
        .await
        .unwrap();
    assert_eq!(
        contents.images()[0].digest.as_ref().unwrap().to_string(),
        SAMPLE_DIGEST
    );
}
