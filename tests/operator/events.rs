//! Events tell transitions, for worse and for better, once each.

use serde_json::json;

use crate::bed::{Bed, destination, source};
use crate::support::Result;
use crate::support::images::Image;
use crate::support::process::poll;
use crate::support::registry::Registry;

#[tokio::test]
async fn a_failure_and_the_recovery_make_one_event_each() -> Result<()> {
    let (from, to) = (Registry::open()?, Registry::open()?);
    let bed = Bed::new("events").await?;
    let _operator = bed.operator()?;
    let spec = |interval: &str| {
        json!({
            "source": source(from.access(), "app", &["1"]),
            "destinations": [destination("default", to.access())],
            "interval": interval,
        })
    };
    bed.mirror("app", &spec("1h"))?;
    bed.wait_ready("app", "False", "ManifestUnknown")?;
    Image::builder().build()?.push(from.access(), "app:1")?;
    let mut edited = spec("1h");
    edited["transfer"] = json!({"maxConcurrent": 2});
    bed.mirror("app", &edited)?;
    bed.wait_ready("app", "True", "Succeeded")?;
    // An edit of the interval alone is no transition.
    edited["interval"] = json!("2h");
    bed.mirror("app", &edited)?;
    bed.wait_until("app", crate::bed::PATIENCE, |object| {
        object["status"]["observedGeneration"] == 3
    })?;
    // Published in the background.
    let events = poll(std::time::Duration::from_secs(5), || {
        bed.events("app").ok().filter(|events| events.len() > 1)
    });
    let events = events.unwrap_or_default();
    let told: Vec<(&str, &str)> = events
        .iter()
        .map(|(kind, reason, _)| (kind.as_str(), reason.as_str()))
        .collect();
    assert_eq!(
        told,
        [("Warning", "ManifestUnknown"), ("Normal", "Succeeded")],
        "{events:?}"
    );
    assert_eq!(events[1].2, "1 image is at 1 destination");
    Ok(())
}
