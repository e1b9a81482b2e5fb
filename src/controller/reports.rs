//! The whole report of a run, in ConfigMaps of the mirror's namespace that the mirror owns, so that they go with it.
//!
//! The first of them is written last and carries the hash of the whole, so a reader can tell whether the parts belong
//! together. What stands already is compared with what it should be, and written only where it differs.
//! A ConfigMap that the mirror does not own is never touched, whatever its name: its data is somebody's. The only
//! exception is what a mirror of the same name left that is gone: the garbage collector is on its way to it, and may come
//! after the new mirror's only run. Every write names the version it was decided on, so that none is taken over that was
//! exchanged meanwhile.

use std::collections::BTreeMap;

use futures::future::BoxFuture;
use k8s_openapi::{
    api::core::v1::ConfigMap,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{
    Api, Client, Resource as _,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde::Serialize;
use serde_json::json;

use crate::{
    api::{ImageMirror, ReportReference},
    error::Class,
    image::Digest,
    mirror::{ImageResult, MirrorReport, REPORT_VERSION},
    transfer::Failure,
};

use super::{
    call::{CALL_LIMIT, CallError, within},
    error::{Error, Result},
    target::Target,
    verdict::{RUN_PANICKED, RunOutcome},
};

/// Key of the report in each ConfigMap.
const KEY: &str = "report.json";
/// Annotation of the first part: hash of the whole report.
const REPORT_DIGEST: &str = "imagepusher.io/report-digest";
/// Annotation of the first part: how many parts there are.
const REPORT_PARTS: &str = "imagepusher.io/report-parts";
/// Bytes of a part. The API server takes a megabyte, keys and metadata included.
const MAX_PART_BYTES: usize = 900 * 1024;
/// Parts of a report: as many as the status names. A thousand images with all destinations need four.
const MAX_PARTS: usize = 16;
/// Longest name of an object.
const MAX_NAME_LENGTH: usize = 253;

/// What became of a report.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Kept {
    /// Where it lies; `None` where the one before still counts.
    pub(super) references: Option<Vec<ReportReference>>,
    /// What kept it from being written, or from being written whole.
    pub(super) trouble: Option<String>,
}

/// Keeps reports.
pub(super) trait ReportKeeper: Send + Sync + 'static {
    /// Keeps the report of a run that ended like this. Every call it makes ends within seconds.
    fn keep<'a>(&'a self, target: &'a Target, outcome: &'a RunOutcome) -> BoxFuture<'a, Kept>;
}

/// Keeps them in the cluster.
pub(super) struct ClusterReports {
    client: Client,
}

impl ClusterReports {
    pub(super) const fn new(client: Client) -> Self {
        Self { client }
    }
}

impl ReportKeeper for ClusterReports {
    fn keep<'a>(&'a self, target: &'a Target, outcome: &'a RunOutcome) -> BoxFuture<'a, Kept> {
        let api = Api::namespaced(self.client.clone(), &target.name.namespace);
        Box::pin(async move {
            let Some(report) = report(target, outcome) else {
                return Kept::default();
            };
            let (texts, is_whole) = parts(&report);
            let place = ConfigMaps { api, target };
            let (references, trouble) = match place.put(&texts).await {
                Ok(references) if is_whole => (references, None),
                Ok(references) => {
                    let text = format!("its end does not fit into {MAX_PARTS} ConfigMaps");
                    (references, Some(text))
                }
                Err(error) => (Vec::new(), Some(error.to_string())),
            };
            Kept {
                references: Some(references),
                trouble,
            }
        })
    }
}

/// The report of a run; none of one that was stopped, since it has no result.
fn report(target: &Target, outcome: &RunOutcome) -> Option<MirrorReport> {
    let (namespace, name) = (&target.name.namespace, &target.name.name);
    Some(match outcome {
        RunOutcome::Reported(report) => MirrorReport::of_run(namespace, name, report),
        RunOutcome::Refused(failure) => MirrorReport::of_failure(namespace, name, failure),
        RunOutcome::Panicked(text) => {
            let failure = Failure::new(RUN_PANICKED, Class::Network, text);
            MirrorReport::of_failure(namespace, name, &failure)
        }
        RunOutcome::Cancelled => return None,
    })
}

/// One part as JSON: a report of its own, with some of the images.
#[derive(Serialize)]
struct Share<'a> {
    version: u32,
    part: usize,
    parts: usize,
    #[serde(flatten)]
    report: &'a MirrorReport,
}

/// The report in as many texts as needed, and whether it fits into as many as there may be.
fn parts(report: &MirrorReport) -> (Vec<String>, bool) {
    let head = MirrorReport {
        images: Vec::new(),
        ..report.clone()
    };
    let text = |images: &[ImageResult], part: usize, parts: usize| {
        json_of(&Share {
            version: REPORT_VERSION,
            part,
            parts,
            report: &MirrorReport {
                images: images.to_vec(),
                ..head.clone()
            },
        })
    };
    let sizes: Vec<usize> = report
        .images
        .iter()
        .map(|image| json_of(image).len())
        .collect();
    let room = MAX_PART_BYTES.saturating_sub(text(&[], MAX_PARTS, MAX_PARTS).len());
    let mut slices = slices(&sizes, room);
    let is_whole = slices.len() <= MAX_PARTS;
    slices.truncate(MAX_PARTS);
    let count = slices.len();
    let images = |slice| report.images.get(slice).unwrap_or_default();
    let texts = slices
        .into_iter()
        .enumerate()
        .map(|(number, slice)| text(images(slice), number + 1, count));
    (texts.collect(), is_whole)
}

/// Runs of neighbours that together stay below `room`; at least one, even if there is nothing.
fn slices(sizes: &[usize], room: usize) -> Vec<std::ops::Range<usize>> {
    let mut slices = Vec::new();
    let (mut start, mut used) = (0, 0);
    for (position, size) in sizes.iter().enumerate() {
        // A comma comes after each.
        let size = size + 1;
        if used + size > room && position > start {
            slices.push(start..position);
            (start, used) = (position, 0);
        }
        used += size;
    }
    slices.push(start..sizes.len());
    slices
}

fn json_of<T: Serialize>(value: &T) -> String {
    // Types of our own with text keys always serialise; should one not, an empty text is what people see.
    serde_json::to_string(value).unwrap_or_default()
}

/// The ConfigMaps of one mirror.
struct ConfigMaps<'a> {
    api: Api<ConfigMap>,
    target: &'a Target,
}

impl ConfigMaps<'_> {
    /// Puts these texts there and takes away what was there besides.
    async fn put(&self, texts: &[String]) -> Result<Vec<ReportReference>> {
        let digest = Digest::of(texts.concat().as_bytes()).to_string();
        let first = self.look(&self.name(0)).await?;
        let before = annotation(first.as_ref(), REPORT_PARTS);
        let before = before.map_or(0, |count| count.parse().unwrap_or(MAX_PARTS));
        for (number, text) in texts.iter().enumerate().skip(1) {
            let name = self.name(number);
            let standing = self.look(&name).await?;
            self.write(&name, standing, text, BTreeMap::new()).await?;
        }
        for number in texts.len()..before.min(MAX_PARTS) {
            self.remove(&self.name(number)).await?;
        }
        let annotations = BTreeMap::from([
            (REPORT_DIGEST.to_owned(), digest),
            (REPORT_PARTS.to_owned(), texts.len().to_string()),
        ]);
        let text = texts.first().map_or("", String::as_str);
        self.write(&self.name(0), first, text, annotations).await?;
        let names = (0..texts.len()).map(|number| self.name(number));
        Ok(names.map(|name| ReportReference { name }).collect())
    }

    /// The ConfigMap of this name, if there is one. One that an earlier mirror of the name left is removed.
    ///
    /// # Errors
    /// [`Error::ReportNotWritten`] when it is somebody else's.
    async fn look(&self, name: &str) -> Result<Option<ConfigMap>> {
        let found = within(CALL_LIMIT, self.api.get_opt(name))
            .await
            .map_err(|error| failed("read", name, error))?;
        match found {
            Some(left) if self.is_left_over(&left) => self.delete(name, left).await.map(|()| None),
            Some(other) if !self.owns(&other) => Err(Error::ReportNotWritten {
                name: name.to_owned(),
            }),
            found => Ok(found),
        }
    }

    /// Makes or changes a part; one that is as wanted stays untouched.
    async fn write(
        &self,
        name: &str,
        standing: Option<ConfigMap>,
        text: &str,
        annotations: BTreeMap<String, String>,
    ) -> Result<()> {
        let Some(standing) = standing else {
            let new = self.new_part(name, text, annotations);
            let parameters = PostParams::default();
            let created = self.api.create(&parameters, &new);
            return within(CALL_LIMIT, created)
                .await
                .map(drop)
                .map_err(|error| failed("create", name, error));
        };
        if holds(&standing, text, &annotations) {
            return Ok(());
        }
        let patch = Patch::Merge(json!({
            "metadata": {
                "resourceVersion": standing.metadata.resource_version,
                "annotations": annotations,
            },
            "data": {KEY: text},
        }));
        let parameters = PatchParams::default();
        let patched = within(CALL_LIMIT, self.api.patch(name, &parameters, &patch)).await;
        patched
            .map(drop)
            .map_err(|error| failed("change", name, error))
    }

    /// Removes a part that a longer report had.
    async fn remove(&self, name: &str) -> Result<()> {
        let Ok(Some(standing)) = self.look(name).await else {
            // It is gone, or somebody else's by now.
            return Ok(());
        };
        self.delete(name, standing).await
    }

    /// Deletes what was seen, unless it was changed or exchanged since.
    async fn delete(&self, name: &str, standing: ConfigMap) -> Result<()> {
        let parameters = DeleteParams::default().preconditions(Preconditions {
            resource_version: standing.metadata.resource_version,
            uid: standing.metadata.uid,
        });
        match within(CALL_LIMIT, self.api.delete(name, &parameters)).await {
            Err(error) if !is_gone(&error) => Err(failed("delete", name, error)),
            _ => Ok(()),
        }
    }

    fn new_part(&self, name: &str, text: &str, annotations: BTreeMap<String, String>) -> ConfigMap {
        let managed_by = (
            "app.kubernetes.io/managed-by".to_owned(),
            env!("CARGO_PKG_NAME").to_owned(),
        );
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                labels: Some(BTreeMap::from([managed_by])),
                annotations: (!annotations.is_empty()).then_some(annotations),
                owner_references: Some(vec![self.owner()]),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(KEY.to_owned(), text.to_owned())])),
            ..ConfigMap::default()
        }
    }

    /// The mirror as an owner. It does not hold up the mirror's deletion: that needs a permission we do not have.
    fn owner(&self) -> OwnerReference {
        OwnerReference {
            api_version: ImageMirror::api_version(&()).into_owned(),
            kind: ImageMirror::kind(&()).into_owned(),
            name: self.target.name.name.clone(),
            uid: self.target.uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(false),
        }
    }

    fn owns(&self, object: &ConfigMap) -> bool {
        let owners = object.metadata.owner_references.as_deref();
        owners
            .unwrap_or_default()
            .iter()
            .any(|owner| owner.uid == self.target.uid)
    }

    /// Whether it belongs to nobody but a mirror of the same name that came before: two of one name are never there at
    /// once.
    fn is_left_over(&self, object: &ConfigMap) -> bool {
        let Some([owner]) = object.metadata.owner_references.as_deref() else {
            return false;
        };
        let group = owner.api_version.split('/').next();
        group == Some(&*ImageMirror::group(&()))
            && owner.kind == ImageMirror::kind(&())
            && owner.name == self.target.name.name
            && owner.controller == Some(true)
            && owner.uid != self.target.uid
    }

    /// Name of the part with this number.
    fn name(&self, number: usize) -> String {
        part_name(&self.target.name.name, number)
    }
}

/// `<mirror>-report`, `<mirror>-report-1`, ...; of a mirror whose name leaves no room, its beginning and a hash.
fn part_name(mirror: &str, number: usize) -> String {
    let suffix = match number {
        0 => "-report".to_owned(),
        number => format!("-report-{number}"),
    };
    // The same for all parts.
    let room = MAX_NAME_LENGTH - "-report-99".len();
    if mirror.len() <= room {
        return format!("{mirror}{suffix}");
    }
    let digest = Digest::of(mirror.as_bytes());
    let hash = digest.hex().get(..8).unwrap_or_default();
    let end = mirror.floor_char_boundary(room - 1 - hash.len());
    // A label may not end with what the cut leaves over.
    let start = mirror
        .get(..end)
        .unwrap_or_default()
        .trim_end_matches(['.', '-']);
    format!("{start}-{hash}{suffix}")
}

fn annotation<'a>(object: Option<&'a ConfigMap>, name: &str) -> Option<&'a String> {
    object?.metadata.annotations.as_ref()?.get(name)
}

/// Whether a part is as wanted.
fn holds(standing: &ConfigMap, text: &str, annotations: &BTreeMap<String, String>) -> bool {
    let data = standing.data.as_ref();
    data.and_then(|data| data.get(KEY))
        .is_some_and(|old| old == text)
        && annotations
            .iter()
            .all(|(name, value)| annotation(Some(standing), name) == Some(value))
}

fn failed(verb: &str, name: &str, error: CallError) -> Error {
    error.into_error(&format!("{verb} the ConfigMap {name}"))
}

fn is_gone(error: &CallError) -> bool {
    error.status().is_some_and(kube::core::Status::is_not_found)
}

/// Keeps nothing, for tests of others.
#[cfg(test)]
pub(super) struct Forgetful;

#[cfg(test)]
impl ReportKeeper for Forgetful {
    fn keep<'a>(&'a self, _target: &'a Target, _outcome: &'a RunOutcome) -> BoxFuture<'a, Kept> {
        Box::pin(std::future::ready(Kept::default()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::controller::fixtures;

    fn reported(images: usize) -> MirrorReport {
        let image: &[Option<Class>] = &[None, Some(Class::Network)];
        let report = fixtures::report(&vec![image; images]);
        MirrorReport::of_run("team", "mirror", &report)
    }

    #[test]
    fn a_long_report_is_split_between_images_and_each_part_is_a_report() {
        let report = reported(9_000);
        let (texts, is_whole) = parts(&report);
        assert!(texts.len() > 2 && is_whole, "{}", texts.len());
        let mut images = Vec::new();
        for (number, text) in texts.iter().enumerate() {
            assert!(text.len() <= MAX_PART_BYTES, "{}", text.len());
            let part: serde_json::Value = serde_json::from_str(text).unwrap();
            assert_eq!(
                (&part["version"], &part["part"], &part["parts"]),
                (&json!(1), &json!(number + 1), &json!(texts.len()))
            );
            assert_eq!(part["totals"]["total"], 9_000);
            images.extend(part["images"].as_array().unwrap().clone());
        }
        assert_eq!(json!(images), json!(report.images));
    }

    #[test]
    fn a_report_without_images_is_one_part() {
        let failure = fixtures::failure(Class::Auth);
        let report = MirrorReport::of_failure("team", "mirror", &failure);
        let (texts, is_whole) = parts(&report);
        assert_eq!((texts.len(), is_whole), (1, true));
        let part: serde_json::Value = serde_json::from_str(&texts[0]).unwrap();
        let expected = json!({
            "version": 1, "part": 1, "parts": 1, "namespace": "team", "name": "mirror", "outcome": "Failed",
            "failure": {"reason": "AuthFailed", "message": "it went wrong", "retryable": false},
            "totals": {"total": 0, "upToDate": 0, "copied": 0, "failed": 0}, "images": [],
        });
        assert_eq!(part, expected);
    }

    #[test]
    fn what_the_status_cannot_name_is_left_out_and_said() {
        let (texts, is_whole) = parts(&reported(60_000));
        assert_eq!((texts.len(), is_whole), (MAX_PARTS, false));
    }

    proptest! {
        #[test]
        fn slices_hold_everything_once_and_fit(sizes in proptest::collection::vec(1_usize..120, 0..60)) {
            let slices = slices(&sizes, 100);
            let joined: Vec<usize> = slices.iter().cloned().flatten().collect();
            prop_assert_eq!(joined, (0..sizes.len()).collect::<Vec<_>>());
            for slice in slices {
                let used: usize = sizes[slice.clone()].iter().map(|size| size + 1).sum();
                prop_assert!(used <= 100 || slice.len() == 1, "{slice:?}");
            }
        }

        #[test]
        fn every_part_of_every_mirror_has_a_name_of_its_own(
            mirror in "[a-z0-9]([a-z0-9.-]{0,300}[a-z0-9])?"
                .prop_filter("an object's name", |name| name.len() <= 253 && crate::mirror::is_object_name(name))
        ) {
            let names: BTreeSet<String> = (0..MAX_PARTS).map(|number| part_name(&mirror, number)).collect();
            prop_assert_eq!(names.len(), MAX_PARTS);
            for name in names {
                prop_assert!(crate::mirror::is_object_name(&name), "{name}");
            }
        }
    }

    #[test]
    fn names_that_leave_no_room_are_cut_and_stay_apart() {
        let long = |last: &str| format!("{}{last}", "a".repeat(252));
        assert_eq!(part_name("app", 0), "app-report");
        assert_eq!(part_name("app", 3), "app-report-3");
        assert_ne!(part_name(&long("b"), 0), part_name(&long("c"), 0));
        let dotted = format!("{}.{}", "a".repeat(233), "b".repeat(19));
        for mirror in [long("b"), dotted] {
            let name = part_name(&mirror, 15);
            assert!(crate::mirror::is_object_name(&name), "{name}");
        }
    }
}
