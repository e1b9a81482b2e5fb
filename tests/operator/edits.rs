//! What happens to a running copy when its mirror is edited or deleted.

use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::{Value, json};

use crate::bed::{Bed, PATIENCE, condition, destination, source};
use crate::support::Result;
use crate::support::faults::{Action, Rule};
use crate::support::gateway::Gateway;
use crate::support::images::Image;
use crate::support::process::poll;
use crate::support::registry::Registry;

/// Operator rule K1.
pub(crate) const PROMPT: Duration = Duration::from_secs(5);

pub(crate) struct Slow {
    _from: Registry,
    pub(crate) to: Registry,
    pub(crate) gateway: Gateway,
    pub(crate) bed: Bed<'static>,
}

/// A source whose blobs would take minutes.
pub(crate) async fn slow(prefix: &str) -> Result<Slow> {
    let from = Registry::open()?;
    for (seed, tag) in [(1, "old"), (2, "new")] {
        let image = Image::builder().layers(1, 2_000_000).seed(seed).build()?;
        image.push(from.access(), &format!("app:{tag}"))?;
    }
    let gateway = Gateway::before(&from)
        .rule(Rule::on(
            &Method::GET,
            "/blobs/",
            Action::SlowAnswer(10_000),
        ))
        .start()?;
    Ok(Slow {
        _from: from,
        to: Registry::open()?,
        gateway,
        bed: Bed::new(prefix).await?,
    })
}

impl Slow {
    pub(crate) fn spec(&self, tag: &str) -> Value {
        json!({
            "source": source(&self.gateway.access(None), "app", &[tag]),
            "destinations": [destination("default", self.to.access())],
            "interval": "1h",
        })
    }

    /// Applies a mirror and waits until its blobs are on their way.
    pub(crate) fn begin(&self, tag: &str) -> Result<()> {
        self.bed.mirror("app", &self.spec(tag))?;
        self.bed
            .wait_until("app", PATIENCE, |object| {
                object["status"]["progress"]["bytesDone"].as_i64() > Some(0)
            })
            .map(drop)
    }

    pub(crate) fn open_downloads(&self) -> usize {
        let exchanges = self.gateway.exchanges();
        let open = |exchange: &&crate::support::gateway::Exchange| {
            exchange.path.contains("/blobs/") && exchange.ended.is_none()
        };
        exchanges.iter().filter(open).count()
    }
}

#[tokio::test]
async fn an_edit_replaces_the_running_copy_within_five_seconds_and_fools_no_waiter() -> Result<()> {
    let slow = slow("edit").await?;
    let _operator = slow.bed.operator()?;
    slow.begin("old")?;
    assert!(slow.open_downloads() > 0);
    let started = Instant::now();
    slow.bed.mirror("app", &slow.spec("new"))?;
    let object = slow.bed.wait_until("app", PATIENCE, |object| {
        object["status"]["observedGeneration"] == 2
    })?;
    assert!(started.elapsed() < PROMPT, "{:?}", started.elapsed());
    let ready = condition(&object, "Ready");
    assert_eq!(
        (&ready["status"], &ready["observedGeneration"]),
        (&json!("Unknown"), &json!(2))
    );
    // The old blobs stop travelling, the new ones begin to.
    let moved = poll(PROMPT, || {
        let exchanges = slow.gateway.exchanges();
        let asked = |tag: &str| {
            exchanges
                .iter()
                .any(|each| each.path.ends_with(&format!("/manifests/{tag}")))
        };
        (asked("new") && slow.open_downloads() <= 2).then_some(())
    });
    assert!(moved.is_some(), "{:?}", slow.gateway.exchanges());
    let waited = slow
        .bed
        .kubectl(&["wait", "imir/app", "--for=condition=Ready", "--timeout=2s"]);
    assert!(waited.is_err(), "nothing is ready: {waited:?}");

    slow.gateway.clear_rules();
    // What travels slowly already goes on so: the next edit starts afresh.
    slow.bed.mirror("app", &slow.spec("old"))?;
    slow.bed
        .kubectl(&["wait", "imir/app", "--for=condition=Ready", "--timeout=60s"])?;
    let object = slow.bed.object("app")?;
    assert_eq!(object["status"]["observedGeneration"], 3);

    // Ready, then edited: `kubectl wait` must not take the old answer for the new question (CRD finding F23).
    slow.gateway.add_rule(Rule::on(
        &Method::GET,
        "/manifests/",
        Action::Delay(Duration::from_secs(3)),
    ));
    slow.gateway.add_rule(Rule::on(
        &Method::HEAD,
        "/manifests/",
        Action::Delay(Duration::from_secs(3)),
    ));
    slow.bed.mirror("app", &slow.spec("new"))?;
    slow.bed
        .kubectl(&["wait", "imir/app", "--for=condition=Ready", "--timeout=60s"])?;
    let object = slow.bed.object("app")?;
    assert_eq!(object["status"]["observedGeneration"], 4);
    assert_eq!(
        object["status"]["images"][0]["source"],
        format!("{}/app:new", slow.gateway.address())
    );
    Ok(())
}

#[tokio::test]
async fn an_edit_that_changes_no_copy_leaves_it_alone() -> Result<()> {
    let slow = slow("keep").await?;
    let _operator = slow.bed.operator()?;
    slow.begin("old")?;
    let asked = slow.gateway.exchanges().len();
    let mut spec = slow.spec("old");
    spec["interval"] = json!("2h");
    spec["timeout"] = json!("3h");
    slow.bed.mirror("app", &spec)?;
    let object = slow.bed.wait_until("app", PROMPT, |object| {
        object["status"]["observedGeneration"] == 2
    })?;
    assert_eq!(condition(&object, "Ready")["observedGeneration"], 2);
    assert_eq!(
        slow.gateway.exchanges().len(),
        asked,
        "nothing was asked anew"
    );
    assert!(slow.open_downloads() > 0);
    Ok(())
}

#[tokio::test]
async fn a_deleted_mirror_is_gone_within_five_seconds_and_its_copy_with_it() -> Result<()> {
    let slow = slow("delete").await?;
    let _operator = slow.bed.operator()?;
    slow.begin("old")?;
    let started = Instant::now();
    slow.bed
        .kubectl(&["delete", "imir", "app", "--timeout=30s"])?;
    assert!(started.elapsed() < PROMPT, "{:?}", started.elapsed());
    let stopped = poll(PROMPT, || (slow.open_downloads() == 0).then_some(()));
    assert!(stopped.is_some(), "{:?}", slow.gateway.exchanges());
    assert!(slow.bed.object("app").is_err());
    Ok(())
}

#[tokio::test]
async fn mirrors_beyond_the_concurrency_say_that_they_wait() -> Result<()> {
    let slow = slow("queue").await?;
    let _operator = slow.bed.operator_with(&[
        "--watch-namespace",
        &slow.bed.namespace,
        "--concurrency",
        "1",
    ])?;
    slow.begin("old")?;
    slow.bed.mirror("second", &slow.spec("new"))?;
    let object = slow.bed.wait_until("second", PATIENCE, |object| {
        condition(object, "Reconciling")["status"] == "True"
    })?;
    assert_eq!(
        condition(&object, "Reconciling")["message"],
        "waiting for a free slot"
    );
    slow.gateway.clear_rules();
    slow.bed
        .kubectl(&["delete", "imir", "app", "--timeout=30s"])?;
    slow.bed.wait_ready("second", "True", "Succeeded")?;
    Ok(())
}
