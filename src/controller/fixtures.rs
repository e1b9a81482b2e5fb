//! Values that tests of this room share.

use std::{collections::BTreeSet, time::Duration};

use futures::future::BoxFuture;
use k8s_openapi::jiff::Timestamp;

use crate::{
    api::{ImageMirror, ImageMirrorSpec, ImageMirrorStatus},
    error::Class,
    output::OutputManager,
    transfer::{DestinationReport, Failure, ImageReport, Outcome, RunReport},
};

use super::{
    annotations::Wishes,
    engine::{Given, Needs, Prepared},
    present::{Ended, Scene},
    verdict::{RunOutcome, judge},
};

/// No annotation at all.
pub(super) static NO_WISHES: Wishes = Wishes {
    run: None,
    cancel: None,
};

/// A mirror with these copies that nobody suspended, annotated or looked at before.
pub(super) fn scene(base: &ImageMirrorStatus, generation: i64, now: Timestamp) -> Scene<'_> {
    Scene {
        base,
        generation,
        run_key: Some("k"),
        suspended: false,
        wishes: &NO_WISHES,
        now,
    }
}

/// The status after a run of one image to `a` and `b` that ended like this.
pub(super) fn concluded(
    scene: &Scene<'_>,
    outcome: &RunOutcome,
    again: bool,
    next: Option<Timestamp>,
) -> ImageMirrorStatus {
    let verdict = judge(outcome, &["a".to_owned(), "b".to_owned()], 0);
    scene.concluded(&Ended {
        verdict: &verdict,
        again,
        next,
        requested: None,
        reports: None,
    })
}

/// A run of one image without Secrets, whose work the test says.
pub(super) struct TestRun {
    pub(super) key: &'static str,
    pub(super) interval: Option<Duration>,
    pub(super) places: BTreeSet<String>,
    pub(super) work: BoxFuture<'static, ()>,
}

impl TestRun {
    /// Does `work` when it runs; its report says nothing.
    pub(super) fn boxed(
        key: &'static str,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> Box<dyn Prepared> {
        let work = Box::pin(work);
        Box::new(Self {
            key,
            interval: None,
            places: BTreeSet::new(),
            work,
        })
    }
}

impl Prepared for TestRun {
    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn run_key(&self) -> String {
        self.key.to_owned()
    }

    fn interval(&self) -> Option<Duration> {
        self.interval
    }

    fn places(&self) -> BTreeSet<String> {
        self.places.clone()
    }

    fn image_count(&self) -> Option<usize> {
        Some(1)
    }

    fn run(
        self: Box<Self>,
        _mirror: &super::target::Name,
        _given: Given,
        _output: OutputManager,
    ) -> BoxFuture<'static, Result<RunReport, Failure>> {
        Box::pin(async move {
            self.work.await;
            Ok(RunReport::default())
        })
    }
}

/// A failure named after its class.
pub(super) fn failure(class: Class) -> Failure {
    let name: &'static str = class.into();
    let reason = match name {
        "Config" => "ConfigFailed",
        "Auth" => "AuthFailed",
        "NotFound" => "NotFoundFailed",
        "Policy" => "PolicyFailed",
        "Network" => "NetworkFailed",
        _ => "OtherFailed",
    };
    Failure::new(reason, class, "it went wrong")
}

/// A report of images with destinations `a`, `b`, ...; `None` stands for a copy.
pub(super) fn report(images: &[&[Option<Class>]]) -> RunReport {
    let outcome = |class: &Option<Class>| {
        class.map_or(Outcome::Copied, |class| Outcome::Failed(failure(class)))
    };
    let image = |(number, outcomes): (usize, &&[Option<Class>])| ImageReport {
        source: format!("localhost:1/image:{number}"),
        digest: None,
        fetched: Outcome::UpToDate,
        destinations: ('a'..)
            .zip(outcomes.iter())
            .map(|(name, class)| DestinationReport {
                name: name.to_string(),
                target: format!("localhost:2/image:{number}"),
                outcome: outcome(class),
            })
            .collect(),
    };
    RunReport {
        images: images.iter().enumerate().map(image).collect(),
    }
}

/// A mirror of one tag to destination `a`, created and with our finalizer.
pub(super) fn mirror() -> ImageMirror {
    let spec: ImageMirrorSpec = serde_json::from_value(serde_json::json!({
        "source": {"registry": {"repository": "localhost:1/image", "tags": ["1"]}},
        "destinations": [{"name": "a", "repository": "localhost:2/image"}],
        "interval": "1h",
    }))
    .unwrap();
    let mut mirror = ImageMirror::new("mirror", spec);
    mirror.metadata.namespace = Some("team".to_owned());
    mirror.metadata.uid = Some("uid-1".to_owned());
    mirror.metadata.generation = Some(1);
    mirror.metadata.finalizers = Some(vec![super::reconcile::FINALIZER.to_owned()]);
    mirror
}
