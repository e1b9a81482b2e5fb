//! Memory does not grow with the layer.

use crate::commands::{pull, push};
use crate::support::{Result, binary::Sandbox, images::Image, registry::Registry, skopeo};

/// The limit of the first slice; a layer of 512 MiB would not fit eight times.
const LIMIT: u64 = 64 * 1024 * 1024;

#[test]
fn half_a_gibibyte_in_one_layer_takes_at_most_64_mb() -> Result<()> {
    let (source, destination) = (Registry::open()?, Registry::open()?);
    let image = Image::builder()
        .layers(1, 512 * 1024 * 1024)
        .gzip_level(0)
        .build()?;
    image.push(source.access(), "big/app:1")?;
    let sandbox = Sandbox::new()?;
    let pulled = sandbox
        .run(&pull("big/app", "1", source.address()))?
        .expect_code(0)?;
    let pushed = sandbox
        .run(&push("big/app:1", "big/app", "1", destination.address()))?
        .expect_code(0)?;
    assert_eq!(
        skopeo::digest(destination.access(), "big/app:1")?,
        image.digest
    );
    for run in [pulled, pushed] {
        let megabytes = run.peak_rss_bytes / 1_000_000;
        println!(
            "{}: {megabytes} MB, {:.2} s",
            run.command,
            run.duration.as_secs_f64()
        );
        assert!(
            run.peak_rss_bytes <= LIMIT,
            "{}: {megabytes} MB",
            run.command
        );
    }
    Ok(())
}
