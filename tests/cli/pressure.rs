//! A cache on a volume that is smaller than what passes it.

use serde_json::json;

use crate::support::{Result, binary::Sandbox, images::Image, registry::Registry, skopeo};

const MIB: u64 = 1024 * 1024;

/// Images of the mirror, of three layers each; on request larger ones than a test should move.
const IMAGES: u64 = 12;

fn layer_size() -> u64 {
    let asked = std::env::var("PRESSURE_MIB").ok();
    asked.map_or(8, |text| text.parse::<u64>().unwrap()) * MIB
}

/// Runs commands over one small volume, and gives what they said.
fn run_on_a_volume(sandbox: &Sandbox, bytes: u64, commands: &[&str]) -> Result<String> {
    let commands: Vec<_> = commands
        .iter()
        .map(|command| format!("\"$program\" {command}"))
        .collect();
    let (succeeded, told, said) = sandbox.script_on_a_volume(bytes, &commands.join("; "))?;
    assert!(succeeded, "{told}{said}");
    Ok(told + &said)
}

#[test]
fn a_mirror_three_times_as_large_as_the_volume_of_the_cache_comes_through() -> Result<()> {
    let (source, destination) = (Registry::open()?, Registry::open()?);
    let size = layer_size();
    let mut tags = Vec::new();
    let mut digests = Vec::new();
    for number in 0..IMAGES {
        let image = Image::builder()
            .layers(3, size)
            .gzip_level(0)
            .seed(number + 1);
        let image = image.build()?;
        image.push(source.access(), &format!("app:{number}"))?;
        tags.push(number.to_string());
        digests.push(image.digest);
    }
    let sandbox = Sandbox::new()?;
    let mirror = json!({
        "apiVersion": "imagepusher.io/v1alpha1",
        "kind": "ImageMirror",
        "metadata": {"name": "large"},
        "spec": {
            "source": {"registry": {"repository": format!("{}/app", source.address()), "tags": tags, "insecure": true}},
            "destinations": [{"repository": format!("{}/copy", destination.address()), "insecure": true}],
        },
    });
    sandbox.file("mirror.yaml", mirror.to_string())?;
    let total = IMAGES * 3 * size;
    let said = run_on_a_volume(
        &sandbox,
        total / 3,
        &["-v sync -f mirror.yaml", "verify", "list"],
    )?;
    assert!(said.contains("to make room"), "{said}");
    for (tag, digest) in tags.iter().zip(&digests) {
        assert_eq!(
            skopeo::digest(destination.access(), &format!("copy:{tag}"))?,
            *digest
        );
    }
    Ok(())
}

#[test]
fn an_image_larger_than_the_volume_is_refused_before_its_first_byte() -> Result<()> {
    let source = Registry::open()?;
    let image = Image::builder().layers(1, 40 * MIB).gzip_level(0).build()?;
    image.push(source.access(), "app:1")?;
    let sandbox = Sandbox::new()?;
    let pull = format!(
        "pull -r app -t 1 --registry {} || test $? = 1",
        source.address()
    );
    let said = run_on_a_volume(&sandbox, 20 * MIB, &[&pull, "list"])?;
    assert!(
        said.contains("CacheFull") || said.contains("make room for app:1"),
        "{said}"
    );
    assert!(
        said.contains("more are needed") && said.contains("are free"),
        "{said}"
    );
    assert_eq!(source.count("GET", "/blobs/"), 0);
    Ok(())
}
