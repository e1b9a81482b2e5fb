//! Values that tests of this room share.

use crate::{
    api::{ImageMirror, ImageMirrorSpec},
    error::Class,
    transfer::{DestinationReport, Failure, ImageReport, Outcome, RunReport},
};

/// A failure named after its class.
pub(super) fn failure(class: Class) -> Failure {
    let name: &'static str = class.into();
    Failure {
        retry_after: None,
        reason: match name {
            "Config" => "ConfigFailed",
            "Auth" => "AuthFailed",
            "NotFound" => "NotFoundFailed",
            "Policy" => "PolicyFailed",
            "Network" => "NetworkFailed",
            _ => "OtherFailed",
        },
        class,
        message: "it went wrong".to_owned(),
    }
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
