//! Images arrive: every tag, at every destination, read once.

use serde_json::json;

use crate::bed::{Bed, condition, destination, source};
use crate::support::images::Image;
use crate::support::registry::Registry;
use crate::support::{Result, skopeo};

#[tokio::test]
async fn three_tags_go_to_two_registries_with_a_login_each_and_every_blob_is_read_once()
-> Result<()> {
    let from = Registry::open()?;
    let first = Registry::with_htpasswd("robot", "first-canary")?;
    let second = Registry::with_htpasswd("robot", "second-canary")?;
    let images: Vec<Image> = (1..=3)
        .map(|seed| Image::builder().layers(2, 300_000).seed(seed).build())
        .collect::<Result<_>>()?;
    for (number, image) in images.iter().enumerate() {
        image.push(from.access(), &format!("team/app:{number}"))?;
    }
    let bed = Bed::new("copies").await?;
    bed.secret(
        "first",
        "kubernetes.io/basic-auth",
        &json!({"username": "robot", "password": "first-canary"}),
    )?;
    bed.secret(
        "second",
        "Opaque",
        &json!({"username": "robot", "password": "second-canary"}),
    )?;
    let operator = bed.operator()?;
    let (mut to_first, mut to_second) = (
        destination("first", first.access()),
        destination("second", second.access()),
    );
    to_first["secretRef"] = json!({"name": "first"});
    to_second["secretRef"] = json!({"name": "second"});
    bed.mirror(
        "app",
        &json!({
            "source": source(from.access(), "team/app", &["0", "1", "2"]),
            "destinations": [to_first, to_second],
            "interval": "1h",
        }),
    )?;
    bed.kubectl(&["wait", "imir/app", "--for=condition=Ready", "--timeout=60s"])?;

    for number in 0..3 {
        let digest = skopeo::digest(from.access(), &format!("team/app:{number}"))?;
        for access in [first.access(), second.access()] {
            assert_eq!(
                skopeo::digest(access, &format!("mirror/team/app:{number}"))?,
                digest
            );
        }
    }
    for image in &images {
        for blob in image.blobs() {
            let reads = from.count("GET", &blob.digest);
            assert_eq!(reads, 1, "{} was read {reads} times", blob.digest);
        }
    }
    let object = bed.object("app")?;
    let status = &object["status"];
    assert_eq!(status["synced"], "3/3");
    assert_eq!(
        status["summary"],
        json!({"total": 3, "upToDate": 0, "copied": 3, "failed": 0})
    );
    assert_eq!(
        status["destinations"],
        json!([{"name": "first", "synced": "3/3"}, {"name": "second", "synced": "3/3"}])
    );
    assert_eq!(status["images"].as_array().map(Vec::len), Some(3));
    assert_eq!(status["ready"], "True");
    assert!(
        status["nextSyncTime"].is_string() && status.get("progress").is_none(),
        "{status:#}"
    );
    assert_eq!(
        condition(&object, "Ready")["message"],
        "3 images are at 2 destinations"
    );
    // Operator rule S9.
    let everything = format!("{object} {:?} {}", bed.events("app")?, operator.log());
    assert!(!everything.contains("canary"), "{everything}");

    let log = operator.log();
    let (_, address) = log.split_once("are answered at ").unwrap();
    let address = &address[..address.find('"').unwrap()];
    let metrics = reqwest_text(&format!("http://{address}/metrics")).await;
    for line in [
        "imagepusher_blobs_total{outcome=\"downloaded\"} 9",
        "imagepusher_blobs_total{outcome=\"uploaded\"} 18",
        "imagepusher_jobs_running 0",
    ] {
        assert!(
            metrics.lines().any(|each| each == line),
            "{line} in\n{metrics}"
        );
    }
    assert_eq!(
        reqwest_text(&format!("http://{address}/readyz")).await,
        "ok\n"
    );
    assert_eq!(
        reqwest_text(&format!("http://{address}/livez")).await,
        "ok\n"
    );
    Ok(())
}

async fn reqwest_text(url: &str) -> String {
    crate::support::install_crypto_provider();
    let answer = reqwest::get(url).await.unwrap();
    assert!(answer.status().is_success(), "{url}: {}", answer.status());
    answer.text().await.unwrap()
}

#[tokio::test]
async fn a_mirror_without_destinations_fills_the_cache() -> Result<()> {
    let from = Registry::open()?;
    Image::builder().build()?.push(from.access(), "app:1")?;
    let bed = Bed::new("cached").await?;
    let _operator = bed.operator()?;
    bed.mirror(
        "app",
        &json!({"source": source(from.access(), "app", &["1"])}),
    )?;
    let object = bed.wait_ready("app", "True", "Succeeded")?;
    assert_eq!(
        condition(&object, "Ready")["message"],
        "1 image is in the cache"
    );
    Ok(())
}

#[tokio::test]
async fn what_one_mirror_brought_into_the_cache_another_one_takes_from_there() -> Result<()> {
    let (from, to) = (Registry::open()?, Registry::open()?);
    Image::builder().build()?.push(from.access(), "app:1")?;
    let bed = Bed::new("from-cache").await?;
    let _operator = bed.operator()?;
    bed.mirror(
        "fill",
        &json!({"source": source(from.access(), "app", &["1"])}),
    )?;
    bed.wait_ready("fill", "True", "Succeeded")?;
    let asked = from.requests().len();
    let cached = |reference: &str| {
        let repository = format!("{}/app", from.access().address);
        json!({"cache": {"repository": repository, "reference": reference}})
    };
    for (name, reference) in [("take", "1"), ("miss", "2")] {
        bed.mirror(
            name,
            &json!({
                "source": cached(reference),
                "destinations": [destination("default", to.access())],
            }),
        )?;
    }
    bed.wait_ready("take", "True", "Succeeded")?;
    bed.wait_ready("miss", "False", "CachedImageUnknown")?;
    assert_eq!(from.requests().len(), asked, "the source is left alone");
    assert_eq!(
        skopeo::digest(to.access(), "mirror/app:1")?,
        skopeo::digest(from.access(), "app:1")?
    );
    Ok(())
}
