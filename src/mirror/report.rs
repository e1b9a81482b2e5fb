//! What became of a mirror, whole: the same for the operator, which keeps it in `ConfigMaps`, and for `sync`, which writes it
//! to a file. docs/report.md describes it; a field is added, never changed, within one version.

use schemars::{JsonSchema, generate::SchemaSettings};
use serde::Serialize;
use serde_json::Value;

use crate::{
    error::handlers::{Recovery, recovery},
    transfer::{Failure, ImageReport, Outcome, RunReport},
};

/// Version of the JSON that reports are written as.
pub const REPORT_VERSION: u32 = 1;

/// What became of several mirrors: what `sync` writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Version of this form.
    pub version: u32,
    /// One entry per mirror, by namespace and name.
    pub mirrors: Vec<MirrorReport>,
}

impl Report {
    /// Of these mirrors.
    pub const fn new(mirrors: Vec<MirrorReport>) -> Self {
        Self {
            version: REPORT_VERSION,
            mirrors,
        }
    }

    /// The JSON schema of what is written, as committed in docs/report.schema.json.
    pub fn schema() -> Value {
        let settings = SchemaSettings::draft2020_12()
            .for_serialize()
            .with(|settings| settings.inline_subschemas = true);
        let mut schema = settings.into_generator().into_root_schema_for::<Self>();
        schema.insert("$id".to_owned(), "urn:imagepusher.io:report:1".into());
        schema.to_value()
    }
}

/// What became of a mirror.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MirrorReport {
    /// The mirror's namespace.
    pub namespace: String,
    /// Its name there.
    pub name: String,
    /// The whole in one word.
    pub outcome: MirrorOutcome,
    /// What kept the mirror from being carried out at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<ReportedFailure>,
    /// Figures.
    pub totals: Totals,
    /// One entry per image, in the order of the source.
    pub images: Vec<ImageResult>,
}

/// How a mirror or an image came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub enum MirrorOutcome {
    /// All images are at all destinations.
    Succeeded,
    /// Some images failed.
    PartlyFailed,
    /// All images failed, or the mirror could not be carried out at all.
    Failed,
    /// The mirror is suspended: nothing was done.
    Suspended,
}

/// Figures of a mirror, in images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// Images the mirror selects.
    pub total: usize,
    /// Images that were at all destinations before.
    pub up_to_date: usize,
    /// Images that were copied to at least one destination and are at all of them now.
    pub copied: usize,
    /// Images that at least one destination lacks.
    pub failed: usize,
}

/// What became of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageResult {
    /// The name of the image at its source.
    pub source: String,
    /// Its digest, where it could be learned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// `UpToDate`, `Copied` or `Failed`.
    #[schemars(extend("enum" = ["UpToDate", "Copied", "Failed"]))]
    pub outcome: &'static str,
    /// Why it could not be read or brought into the cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<ReportedFailure>,
    /// One entry per destination.
    pub destinations: Vec<DestinationResult>,
}

/// What became of an image at one destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DestinationResult {
    /// The destination's name.
    pub name: String,
    /// The full name of the image there.
    pub target: String,
    /// `UpToDate`, `Copied` or `Failed`.
    #[schemars(extend("enum" = ["UpToDate", "Copied", "Failed"]))]
    pub outcome: &'static str,
    /// Why it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<ReportedFailure>,
}

/// Why something failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReportedFailure {
    /// The error's own name, as docs/reasons.md lists them.
    pub reason: &'static str,
    /// The whole sentence.
    pub message: String,
    /// Whether it may go away by itself.
    pub retryable: bool,
}

impl MirrorReport {
    /// Of a run that went through all images.
    pub fn of_run(namespace: &str, name: &str, report: &RunReport) -> Self {
        let totals = Totals {
            total: report.images.len(),
            up_to_date: report.up_to_date(),
            copied: report.copied(),
            failed: report.failed(),
        };
        let outcome = match totals.failed {
            0 => MirrorOutcome::Succeeded,
            failed if failed < totals.total => MirrorOutcome::PartlyFailed,
            _ => MirrorOutcome::Failed,
        };
        Self {
            outcome,
            totals,
            images: report.images.iter().map(ImageResult::from).collect(),
            ..Self::empty(namespace, name, outcome)
        }
    }

    /// Of a mirror that could not be carried out.
    pub fn of_failure(namespace: &str, name: &str, failure: &Failure) -> Self {
        Self {
            failure: Some(failure.into()),
            ..Self::empty(namespace, name, MirrorOutcome::Failed)
        }
    }

    /// Of a mirror that is suspended.
    pub fn of_suspended(namespace: &str, name: &str) -> Self {
        Self::empty(namespace, name, MirrorOutcome::Suspended)
    }

    /// The first thing that failed.
    pub fn first_failure(&self) -> Option<&ReportedFailure> {
        let of_images = self.images.iter().find_map(|image| {
            let of_destinations = image
                .destinations
                .iter()
                .find_map(|destination| destination.failure.as_ref());
            image.failure.as_ref().or(of_destinations)
        });
        self.failure.as_ref().or(of_images)
    }

    fn empty(namespace: &str, name: &str, outcome: MirrorOutcome) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            outcome,
            failure: None,
            totals: Totals::default(),
            images: Vec::new(),
        }
    }
}

impl From<&ImageReport> for ImageResult {
    fn from(report: &ImageReport) -> Self {
        let ImageReport {
            source,
            digest,
            fetched,
            destinations,
        } = report;
        let outcome = if !report.is_complete() {
            "Failed"
        } else if report.is_copied() {
            "Copied"
        } else {
            "UpToDate"
        };
        Self {
            source: source.clone(),
            digest: digest.as_ref().map(ToString::to_string),
            outcome,
            failure: fetched.failure().map(ReportedFailure::from),
            destinations: destinations
                .iter()
                .map(|destination| DestinationResult {
                    name: destination.name.clone(),
                    target: destination.target.clone(),
                    outcome: name_of(&destination.outcome),
                    failure: destination.outcome.failure().map(ReportedFailure::from),
                })
                .collect(),
        }
    }
}

const fn name_of(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::UpToDate => "UpToDate",
        Outcome::Copied => "Copied",
        Outcome::Failed(_) => "Failed",
    }
}

impl From<&Failure> for ReportedFailure {
    fn from(failure: &Failure) -> Self {
        Self {
            reason: failure.reason,
            message: failure.message.clone(),
            retryable: recovery(failure.class) == Recovery::Time,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        error::Class,
        image::Digest,
        transfer::{DestinationReport, Failure},
    };

    fn run(failed: bool) -> RunReport {
        let outcome = if failed {
            Outcome::Failed(Failure::new("AccessDenied", Class::Auth, "you may not"))
        } else {
            Outcome::Copied
        };
        let image = |outcome| ImageReport {
            source: "r.example/app:1".into(),
            digest: Some(Digest::of(b"")),
            fetched: Outcome::Copied,
            destinations: vec![DestinationReport {
                name: "default".into(),
                target: "i.example/app:1".into(),
                outcome,
            }],
        };
        RunReport {
            images: vec![image(Outcome::Copied), image(outcome)],
        }
    }

    #[test]
    fn a_mirror_is_judged_by_its_images() {
        for (failed, outcome, first) in [
            (false, MirrorOutcome::Succeeded, None),
            (true, MirrorOutcome::PartlyFailed, Some("AccessDenied")),
        ] {
            let report = MirrorReport::of_run("team", "app", &run(failed));
            let reason = report.first_failure().map(|failure| failure.reason);
            assert_eq!((report.outcome, reason), (outcome, first));
        }
    }

    #[test]
    fn the_committed_schema_is_the_generated_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/report.schema.json");
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        let generated = format!("{:#}\n", Report::schema());
        assert!(
            committed == generated,
            "{path} is out of date: write this to it:\n{generated}"
        );
    }

    /// Every field of the schema stands in the page that describes it.
    #[test]
    fn every_field_is_described() {
        fn names(schema: &Value, found: &mut Vec<String>) {
            match schema {
                Value::Object(fields) => {
                    let properties = fields.get("properties").and_then(Value::as_object);
                    found.extend(properties.into_iter().flat_map(|map| map.keys().cloned()));
                    fields.values().for_each(|value| names(value, found));
                }
                Value::Array(items) => items.iter().for_each(|item| names(item, found)),
                _ => {}
            }
        }
        let page = include_str!("../../docs/report.md");
        let mut found = Vec::new();
        names(&Report::schema(), &mut found);
        assert!(found.len() > 15, "{found:?}");
        found.retain(|name| !page.contains(&format!("`{name}`")));
        assert_eq!(found, Vec::<String>::new());
    }
}
