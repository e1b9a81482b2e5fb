//! What skopeo and podman write, and what they say about it.

use std::fs::File;

use docker_image_pusher::image::{ImageManifest, ImageName};

use super::bed::{Bed, bed};
use super::support::images::{Image, ImageManifest as Made};
use super::support::podman::Podman;
use super::support::skopeo::{self, End};

fn digests(image: &ImageManifest) -> Vec<String> {
    image
        .layers
        .iter()
        .map(|layer| layer.digest.to_string())
        .collect()
}

fn diff_ids(made: &Made) -> Vec<String> {
    made.layers
        .iter()
        .map(|layer| layer.diff_id.clone())
        .collect()
}

fn name(text: &str) -> ImageName {
    text.parse().unwrap()
}

/// That the image in the cache is the one that was made, with plain layers.
async fn assert_plain_copy(bed: &Bed, name: &ImageName, made: &Made) {
    let image = bed.image(name).await;
    assert_eq!(digests(&image), diff_ids(made));
    assert_eq!(image.config.unwrap().digest.to_string(), made.config.digest);
}

#[tokio::test]
async fn an_archive_of_skopeo_for_docker_has_the_layers_that_skopeo_sees() {
    let image = Image::builder()
        .layer_sizes(&[300_000, 10, 0])
        .build()
        .unwrap();
    let bed = bed();
    let file = bed.folder.path().join("app.tar");
    image
        .save_docker_archive(&file, "localhost/team/app:1.2")
        .unwrap();
    let (images, stored) = bed.extract_file(&file).await;
    let wanted = name("localhost/team/app:1.2");
    assert_eq!(images[0].names, std::slice::from_ref(&wanted));
    assert_eq!(images[0].digest.as_ref(), Some(&stored[0].digest));
    assert_plain_copy(&bed, &wanted, &image.manifests[0]).await;
    let seen = skopeo::layers(End::Local(&format!("docker-archive:{}", file.display()))).unwrap();
    assert_eq!(digests(&bed.image(&wanted).await), seen);
    bed.assert_whole().await;

    // From a pipe, and into another cache: the same digest.
    let other = super::bed::bed();
    let (_, again) = other.extract_stream(File::open(&file).unwrap()).await;
    assert_eq!(again[0].digest, stored[0].digest);
    other.assert_whole().await;
}

#[tokio::test]
async fn an_oci_archive_of_skopeo_keeps_its_index_and_its_manifests_byte_for_byte() {
    let image = Image::builder()
        .platforms(&["linux/amd64", "linux/arm64/v8"])
        .layers(2, 50_000)
        .build()
        .unwrap();
    let bed = bed();
    let file = bed.folder.path().join("app.tar");
    image.save_oci_archive(&file, "1.2").unwrap();
    for stream in [false, true] {
        let bed = super::bed::bed();
        let (images, stored) = if stream {
            bed.extract_stream(File::open(&file).unwrap()).await
        } else {
            bed.extract_file(&file).await
        };
        assert_eq!(images[0].tag_only.as_ref().unwrap().as_str(), "1.2");
        assert_eq!(stored[0].digest.to_string(), image.digest);
        let root = bed.manifest(&stored[0].names[0]).await;
        assert_eq!(
            *root.bytes(),
            std::fs::read(image.blob_file(&image.digest)).unwrap()
        );
        for made in &image.manifests {
            let child = bed
                .manifest(&name(&format!("tagged@{}", made.digest)))
                .await;
            assert_eq!(
                *child.bytes(),
                std::fs::read(image.blob_file(&made.digest)).unwrap()
            );
        }
        let platforms: Vec<String> = images[0]
            .platforms
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(platforms, ["linux/amd64", "linux/arm64/v8"]);
        bed.assert_whole().await;
    }
}

#[tokio::test]
async fn archives_of_podman_are_read_in_all_its_formats() {
    let bed = bed();
    let folder = bed.folder.path();
    let podman = Podman::new(folder);
    let (one, two) = (
        Image::builder().layers(2, 60_000).build().unwrap(),
        Image::builder().layers(1, 60_000).build().unwrap(),
    );
    podman.add(&one, "localhost/app:1").unwrap();
    podman.add(&two, "localhost/tool:2").unwrap();
    let file = |name: &str| folder.join(name);

    podman
        .save(
            &["--format=docker-archive", "localhost/app:1"],
            &file("docker.tar"),
        )
        .unwrap();
    let (_, podmans) = bed.extract_file(&file("docker.tar")).await;
    assert_plain_copy(&bed, &name("localhost/app:1"), &one.manifests[0]).await;
    // Two tools, one image, one digest.
    one.save_docker_archive(&file("skopeo.tar"), "app:1")
        .unwrap();
    let (_, skopeos) = bed.extract_file(&file("skopeo.tar")).await;
    assert_eq!(podmans[0].digest, skopeos[0].digest);

    podman
        .save(
            &[
                "--format=docker-archive",
                "--multi-image-archive",
                "localhost/app:1",
                "localhost/tool:2",
            ],
            &file("several.tar"),
        )
        .unwrap();
    let (images, _) = bed.extract_file(&file("several.tar")).await;
    assert_eq!(images.len(), 2);
    assert_plain_copy(&bed, &name("localhost/tool:2"), &two.manifests[0]).await;

    podman
        .save(
            &["--format=oci-archive", "localhost/tool:2"],
            &file("oci.tar"),
        )
        .unwrap();
    let seen = skopeo::layers(End::Local(&format!(
        "oci-archive:{}",
        file("oci.tar").display()
    )))
    .unwrap();
    let (images, stored) = bed.extract_file(&file("oci.tar")).await;
    assert_eq!(images[0].names, [name("localhost/tool:2")]);
    let (_, streamed) = bed
        .extract_stream(File::open(file("oci.tar")).unwrap())
        .await;
    assert_eq!(streamed, stored);
    let image = bed.image(&name("localhost/tool:2")).await;
    assert_eq!(digests(&image), seen);
    assert_eq!(
        image.config.unwrap().digest.to_string(),
        two.manifests[0].config.digest
    );
    bed.assert_whole().await;
}
