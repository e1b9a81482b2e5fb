//! Images made on the spot are what they say.

use crate::support::images::Image;
use crate::support::process::temporary_folder;
use crate::support::registry::Registry;
use crate::support::skopeo::{self, End};
use crate::support::{Context, Result};

#[test]
fn the_same_seed_gives_the_same_image() -> Result<()> {
    let build = |seed| {
        Image::builder()
            .layer_sizes(&[1_000, 20_000])
            .seed(seed)
            .build()
    };
    assert_eq!(build(1)?.digest, build(1)?.digest);
    assert_ne!(build(1)?.digest, build(2)?.digest);
    Ok(())
}

#[test]
fn archives_of_an_image_can_be_read_by_skopeo() -> Result<()> {
    let registry = Registry::open()?;
    let image = Image::builder().layers(3, 10_000).build()?;
    let folder = temporary_folder("archive")?;
    let docker = folder.path().join("docker.tar");
    let oci = folder.path().join("oci.tar");
    image.save_docker_archive(&docker, "demo/app:1.0")?;
    image.save_oci_archive(&oci, "1.0")?;

    let docker = format!("docker-archive:{}", docker.display());
    let to = End::Registry(registry.access(), "from/docker:1.0");
    skopeo::copy_with(End::Local(&docker), to, &[])?;
    let oci = format!("oci-archive:{}", oci.display());
    skopeo::copy(
        End::Local(&oci),
        End::Registry(registry.access(), "from/oci:1.0"),
    )?;
    assert_eq!(
        skopeo::digest(registry.access(), "from/oci:1.0")?,
        image.digest
    );
    Ok(())
}

#[test]
fn dockers_media_types_are_a_matter_of_how_it_is_pushed() -> Result<()> {
    let registry = Registry::open()?;
    let image = Image::builder().build()?;
    image.push_with(registry.access(), "demo/app:docker", &["--format", "v2s2"])?;
    let manifest = String::from_utf8(skopeo::raw_manifest(registry.access(), "demo/app:docker")?)
        .context("not text")?;
    assert!(
        manifest.contains("application/vnd.docker.distribution.manifest.v2+json"),
        "{manifest}"
    );
    Ok(())
}
