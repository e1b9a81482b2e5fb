//! A cache with less room than all mirrors together would fill.

use std::{
    fs::File,
    time::{Duration, SystemTime},
};

use serde_json::json;

use crate::bed::{Bed, PATIENCE, destination, source};
use crate::support::{Context, Result, images::Image, registry::Registry, skopeo};

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

/// Options for a cache that holds one of the images.
fn with_two_mebibytes<'a>(bed: &'a Bed<'_>) -> [&'a str; 4] {
    [
        "--watch-namespace",
        &bed.namespace,
        "--cache-max-size",
        "2Mi",
    ]
}

/// Design part 4: only a mirror without destinations needs its total.
#[tokio::test]
async fn what_a_mirror_keeps_here_stays_until_the_mirror_is_deleted() -> Result<()> {
    let registry = registry()?;
    let bed = Bed::new("keeps").await?;
    let _operator = bed.operator_with(&with_two_mebibytes(&bed))?;
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
    let _operator = bed.operator_with(&with_two_mebibytes(&bed))?;
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

/// Archive reference 5.5: a blob that a disk has spoiled is found though nobody asks for it, and fetched again.
#[tokio::test]
async fn a_blob_that_went_bad_is_found_and_fetched_again() -> Result<()> {
    let registry = Registry::open()?;
    let image = Image::builder().layers(1, 100_000).build()?;
    image.push(registry.access(), "app:1")?;
    let bed = Bed::new("scrubbed").await?;
    let spec = json!({"source": source(registry.access(), "app", &["1"])});
    bed.mirror("app", &spec)?;
    let options = ["--watch-namespace", &bed.namespace];
    let operator = bed.operator_with(&options)?;
    bed.wait_ready("app", "True", "Succeeded")?;
    drop(operator);

    let digest = &image.manifests[0].layers[0].blob.digest;
    let hex = digest.strip_prefix("sha256:").unwrap();
    let path = bed
        .path()
        .join(format!("cache/{}/blobs/sha256/{hex}", bed.namespace));
    let right = std::fs::read(&path).context("the layer is not in the cache")?;
    let mut wrong = right.clone();
    wrong[50_000] ^= 1;
    std::fs::remove_file(&path).context("could not remove the layer")?;
    std::fs::write(&path, wrong).context("could not write the layer")?;
    let long_ago = SystemTime::now() - Duration::from_hours(1000);
    let file = File::open(&path).context("no layer")?;
    file.set_modified(long_ago)
        .context("could not set a time")?;

    let operator = bed.operator_with(&options)?;
    let found = operator.wait_for("the blob found", PATIENCE, || {
        let log = operator.log();
        let line = log
            .lines()
            .find(|line| line.contains("is fetched again when a mirror needs it"));
        line.map(str::to_owned)
    })?;
    assert!(found.contains(hex) && found.contains("app:1"), "{found}");
    assert!(!path.exists());
    bed.request("app", "mend")?;
    bed.wait_until("app", PATIENCE, |object| {
        object["status"]["lastHandledReconcileAt"] == "mend" && path.exists()
    })?;
    assert_eq!(std::fs::read(&path).context("no layer")?, right);
    Ok(())
}
