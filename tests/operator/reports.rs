//! The whole report of a run lies in a ConfigMap that the mirror owns.

use serde_json::{Value, json};

use crate::bed::{Bed, destination, source};
use crate::support::images::Image;
use crate::support::process::poll;
use crate::support::registry::Registry;
use crate::support::{Context, Result, skopeo};

fn config_map(bed: &Bed<'_>, name: &str) -> Result<Value> {
    let text = bed.kubectl(&["get", "configmap", name, "-o", "json"])?;
    serde_json::from_str(&text).context("kubectl wrote no JSON")
}

fn report(object: &Value) -> Value {
    serde_json::from_str(object["data"]["report.json"].as_str().unwrap()).unwrap()
}

#[tokio::test]
async fn the_report_names_every_image_and_is_written_when_it_changes_only() -> Result<()> {
    let (from, to) = (Registry::open()?, Registry::open()?);
    Image::builder().build()?.push(from.access(), "app:1")?;
    let bed = Bed::new("report").await?;
    let _operator = bed.operator()?;
    bed.mirror(
        "app",
        &json!({
            "source": source(from.access(), "app", &["1", "absent"]),
            "destinations": [destination("default", to.access())],
            "interval": "1h",
        }),
    )?;
    let object = bed.wait_ready("app", "False", "ManifestUnknown")?;
    assert_eq!(
        object["status"]["reportRef"],
        json!([{"name": "app-report"}])
    );
    let kept = config_map(&bed, "app-report")?;
    let owner = &kept["metadata"]["ownerReferences"][0];
    assert_eq!(
        (&owner["kind"], &owner["uid"], &owner["controller"]),
        (
            &json!("ImageMirror"),
            &object["metadata"]["uid"],
            &json!(true)
        )
    );
    let first = report(&kept);
    assert_eq!(
        (
            &first["version"],
            &first["part"],
            &first["parts"],
            &first["outcome"]
        ),
        (&json!(1), &json!(1), &json!(1), &json!("PartlyFailed"))
    );
    assert_eq!(
        first["totals"],
        json!({"total": 2, "upToDate": 0, "copied": 1, "failed": 1})
    );
    assert_eq!(first["images"][0]["outcome"], "Copied");
    assert_eq!(
        first["images"][0]["digest"],
        skopeo::digest(from.access(), "app:1")?
    );
    assert_eq!(first["images"][1]["failure"]["reason"], "ManifestUnknown");

    bed.request("app", "second")?;
    let second = config_map(&bed, "app-report")?;
    assert_eq!(report(&second)["images"][0]["outcome"], "UpToDate");
    bed.request("app", "third")?;
    let third = config_map(&bed, "app-report")?;
    assert_eq!(
        third["metadata"]["resourceVersion"],
        second["metadata"]["resourceVersion"]
    );

    let tampered = r#"{"data": {"report.json": "nothing failed"}}"#;
    bed.kubectl(&["patch", "configmap", "app-report", "-p", tampered])?;
    bed.request("app", "fourth")?;
    assert_eq!(config_map(&bed, "app-report")?["data"], third["data"]);
    Ok(())
}

/// Without a garbage collector, as where it has not come by yet.
#[tokio::test]
async fn a_mirror_that_was_made_anew_takes_the_place_of_the_old_ones_report() -> Result<()> {
    let (from, to) = (Registry::open()?, Registry::open()?);
    Image::builder().build()?.push(from.access(), "app:1")?;
    let bed = Bed::new("anew").await?;
    let _operator = bed.operator()?;
    let spec = json!({
        "source": source(from.access(), "app", &["1"]),
        "destinations": [destination("default", to.access())],
    });
    bed.mirror("app", &spec)?;
    bed.wait_ready("app", "True", "Succeeded")?;
    let before = config_map(&bed, "app-report")?;
    bed.kubectl(&["delete", "imir", "app"])?;
    assert_eq!(config_map(&bed, "app-report")?, before);

    bed.mirror("app", &spec)?;
    let object = bed.wait_ready("app", "True", "Succeeded")?;
    assert_eq!(
        object["status"]["reportRef"],
        json!([{"name": "app-report"}])
    );
    let after = config_map(&bed, "app-report")?;
    assert_eq!(
        after["metadata"]["ownerReferences"][0]["uid"],
        object["metadata"]["uid"]
    );
    assert_ne!(after["metadata"]["uid"], before["metadata"]["uid"]);
    assert_eq!(report(&after)["images"][0]["outcome"], "UpToDate");
    let told: Vec<_> = bed
        .events("app")?
        .into_iter()
        .filter(|(_, reason, _)| reason == "ReportNotWritten")
        .collect();
    assert!(told.is_empty(), "{told:?}");
    Ok(())
}

#[tokio::test]
async fn a_config_map_that_is_somebody_elses_stays_as_it_is_and_an_event_says_so() -> Result<()> {
    let (from, to) = (Registry::open()?, Registry::open()?);
    Image::builder().build()?.push(from.access(), "app:1")?;
    let bed = Bed::new("foreign").await?;
    bed.apply(&json!({
        "apiVersion": "v1", "kind": "ConfigMap", "data": {"report.json": "mine"},
        "metadata": {"name": "app-report", "namespace": bed.namespace},
    }))?;
    let before = config_map(&bed, "app-report")?;
    let _operator = bed.operator()?;
    bed.mirror(
        "app",
        &json!({
            "source": source(from.access(), "app", &["1"]),
            "destinations": [destination("default", to.access())],
        }),
    )?;
    let object = bed.wait_ready("app", "True", "Succeeded")?;
    assert!(object["status"].get("reportRef").is_none(), "{object:#}");
    bed.request("app", "again")?;
    let told = poll(std::time::Duration::from_secs(5), || {
        let events = bed.events("app").ok()?;
        let told: Vec<_> = events
            .into_iter()
            .filter(|(_, reason, _)| reason == "ReportNotWritten")
            .collect();
        (!told.is_empty()).then_some(told)
    });
    let told = told.unwrap_or_default();
    assert_eq!(told.len(), 1, "{told:?}");
    let (kind, _, note) = &told[0];
    assert!(
        kind == "Warning" && note.contains("app-report is not owned by this mirror"),
        "{note}"
    );
    assert_eq!(config_map(&bed, "app-report")?, before);
    Ok(())
}
