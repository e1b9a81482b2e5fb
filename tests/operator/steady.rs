//! A mirror that needs nothing costs nothing.

use std::time::Duration;

use serde_json::json;

use crate::bed::{ACCOUNT, Bed, destination, source};
use crate::support::Result;
use crate::support::images::Image;
use crate::support::registry::Registry;

#[tokio::test]
async fn nothing_is_written_and_nothing_asked_between_intervals_nor_by_a_restart() -> Result<()> {
    let (from, to) = (Registry::open()?, Registry::open()?);
    Image::builder().build()?.push(from.access(), "app:1")?;
    let bed = Bed::new("steady").await?;
    let operator = bed.operator()?;
    bed.mirror(
        "app",
        &json!({
            "source": source(from.access(), "app", &["1"]),
            "destinations": [destination("default", to.access())],
            "interval": "1h",
        }),
    )?;
    bed.wait_ready("app", "True", "Succeeded")?;
    // The event is published in the background.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let writes = || {
        bed.cluster.count_requests(ACCOUNT.0, ACCOUNT.1, |event| {
            event.namespace == bed.namespace && !matches!(event.verb.as_str(), "watch" | "list")
        })
    };
    let resource_version = || {
        bed.object("app")
            .map(|object| object["metadata"]["resourceVersion"].clone())
    };
    let (before, version, asked) = (writes()?, resource_version()?, from.requests().len());
    // The finalizer, a look for the report, the report, and at most: copying, Ready, the event.
    assert!(before <= 6, "{before}");
    tokio::time::sleep(Duration::from_secs(8)).await;
    operator.signal("TERM")?;
    assert_eq!(operator.wait_for_exit(Duration::from_secs(20))?, 0);
    let _again = bed.operator()?;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!((writes()?, resource_version()?), (before, version));
    assert_eq!(from.requests().len(), asked);
    Ok(())
}
