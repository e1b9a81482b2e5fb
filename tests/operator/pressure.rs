//! A cache with less room than all mirrors together would fill.

use serde_json::json;

use crate::bed::{Bed, destination, source};
use crate::support::{Result, images::Image, registry::Registry, skopeo};

const LAYER: u64 = 1_200_000;

/// A registry with `app:1` and `app:2`, of a good mebibyte each.
fn registry() -> Result<Registry> {
    let registry = Registry::open()?;
    for number in 1..=2 {
        let image = Image::builder().layers(1, LAYER).gzip_level(0).seed(number);
        image
            .build()?
            .push(registry.access(), &format!("app:{number}"))?;
    }
    Ok(registry)
}

/// Design part 4: only a mirror without destinations needs its total.
#[tokio::test]
async fn what_a_mirror_keeps_here_stays_until_the_mirror_is_deleted() -> Result<()> {
    let registry = registry()?;
    let bed = Bed::new("keeps").await?;
    let _operator = bed.operator_with(&[
        "--watch-namespace",
        &bed.namespace,
        "--cache-max-size",
        "2Mi",
    ])?;
    let fill = |tag: &str| json!({"source": source(registry.access(), "app", &[tag])});
    bed.mirror("first", &fill("1"))?;
    bed.wait_ready("first", "True", "Succeeded")?;
    bed.mirror("second", &fill("2"))?;
    let told = bed
        .wait_ready("second", "False", "ProgressingWithRetry")?
        .to_string();
    assert!(
        told.contains("CacheFull") && told.contains("more are needed"),
        "{told}"
    );
    assert_eq!(
        registry.count("GET", "/app/manifests/2"),
        1,
        "it was looked at"
    );
    bed.kubectl(&["delete", "imir", "first", "--wait=true"])?;
    bed.request("second", "again")?;
    bed.wait_ready("second", "True", "Succeeded").map(drop)
}

#[tokio::test]
async fn what_only_passes_makes_room_for_what_comes_next() -> Result<()> {
    let (from, to) = (registry()?, Registry::open()?);
    let bed = Bed::new("passes").await?;
    let _operator = bed.operator_with(&[
        "--watch-namespace",
        &bed.namespace,
        "--cache-max-size",
        "2Mi",
    ])?;
    let spec = json!({
        "source": source(from.access(), "app", &["1", "2"]),
        "destinations": [destination("default", to.access())],
    });
    bed.mirror("both", &spec)?;
    bed.wait_ready("both", "True", "Succeeded")?;
    for tag in ["app:1", "app:2"] {
        let (source, copy) = (
            skopeo::digest(from.access(), tag)?,
            skopeo::digest(to.access(), &format!("mirror/{tag}"))?,
        );
        assert_eq!(source, copy);
    }
    Ok(())
}
