//! Checks a spec and turns its text into names. Pure: no client, no clock.
//!
//! The API server has checked most of this already; files for `sync` never met one, and an older CRD may have let more
//! through, so everything is checked again here.

use std::{collections::BTreeSet, num::NonZeroU64, time::Duration};

use crate::{
    api::{self, ImageMirrorSpec, parse_duration},
    image::Digest,
    output::{OutputManager, parse_quantity},
    transfer::{ExistingBlobs, TransferOptions},
};

use super::{
    Error, Given, MirrorRequest, Result,
    access::ValidatedAccess,
    archive::ValidatedArchive,
    destination::{ValidatedDestination, destinations},
    plan::Plan,
    request,
    source::{self, ValidatedSource},
};

/// Shorter intervals only load registries: the CRD says the same.
const MIN_INTERVAL: Duration = Duration::from_mins(1);
/// Shorter runs copy nothing.
const MIN_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a run may take where nobody says otherwise: a mirror may need hours.
const DEFAULT_TIMEOUT: Duration = Duration::from_hours(6);
/// How often an archive is looked at where no interval says otherwise.
const ARCHIVE_INTERVAL: Duration = Duration::from_mins(5);

/// A mirror that can run, as far as its spec can tell.
#[derive(Debug, Clone)]
pub struct ValidatedMirror {
    pub(super) work: Work,
    pub(super) options: TransferOptions,
    pub(super) retry_attempts: u32,
    pub(super) timeout: Duration,
    interval: Option<Duration>,
    run_key: String,
}

/// What is to be done.
#[derive(Debug, Clone)]
pub(super) enum Work {
    /// The spec alone names the images.
    Copy(Plan),
    /// The images show when the archive is read.
    Extract {
        archive: ValidatedArchive,
        destinations: Vec<ValidatedDestination>,
    },
}

/// Checks `spec`.
///
/// # Errors
/// [`Error::InvalidSpec`] and its kin, each naming the field, and [`Error::DestinationConflict`].
pub fn validate(spec: &ImageMirrorSpec) -> Result<ValidatedMirror> {
    let ImageMirrorSpec {
        source,
        destinations: places,
        interval,
        timeout,
        // Whether a run may start is not a matter of what it copies.
        suspend: _,
        transfer: _,
    } = spec;
    let destinations = destinations(places)?;
    let work = match source::validate(source)? {
        ValidatedSource::Registry { access, images } => {
            Work::Copy(Plan::new(&images, Some(&access), &destinations)?)
        }
        ValidatedSource::Cache(image) => Work::Copy(Plan::new(&[image], None, &destinations)?),
        ValidatedSource::Archive(archive) => {
            Plan::rehearse(&destinations)?;
            Work::Extract {
                archive,
                destinations,
            }
        }
    };
    let (options, retry_attempts) = transfer_options(&spec.transfer())?;
    Ok(ValidatedMirror {
        work,
        options,
        retry_attempts,
        timeout: timeout
            .as_deref()
            .map_or(Ok(DEFAULT_TIMEOUT), parse_timeout)?,
        interval: interval.as_deref().map(parse_interval).transpose()?,
        run_key: run_key(spec),
    })
}

impl ValidatedMirror {
    /// Every registry access of the mirror, as the spec has it.
    fn accesses(&self) -> Vec<&ValidatedAccess> {
        match &self.work {
            Work::Copy(plan) => plan.accesses.values().map(|access| &access.how).collect(),
            Work::Extract { destinations, .. } => {
                destinations.iter().map(|place| &place.access).collect()
            }
        }
    }

    /// Secrets the mirror names, each by name; all are of its own namespace.
    pub fn secret_names(&self) -> BTreeSet<String> {
        let accesses = self.accesses();
        let names = accesses.into_iter().flat_map(ValidatedAccess::secrets);
        names.cloned().collect()
    }

    /// ServiceAccounts whose imagePullSecrets the mirror needs; all are of its own namespace.
    pub fn service_accounts(&self) -> BTreeSet<String> {
        let accesses = self.accesses();
        let names = accesses
            .into_iter()
            .filter_map(|access| access.service_account.clone());
        names.collect()
    }

    /// Names what decides the copies: source, destinations and transfer. Two specs with equal keys ask for the same run, so
    /// an edit that keeps the key does not disturb a running copy.
    pub fn run_key(&self) -> String {
        self.run_key.clone()
    }

    /// How often the source is looked at again; `None` = once per change of the spec. An archive changes without the spec,
    /// so it is looked at in any case.
    pub fn interval(&self) -> Option<Duration> {
        let is_archive = matches!(self.work, Work::Extract { .. });
        self.interval
            .or_else(|| is_archive.then_some(ARCHIVE_INTERVAL))
    }

    /// How many images the mirror selects; of an archive it shows when it is read.
    pub fn image_count(&self) -> Option<usize> {
        match &self.work {
            Work::Copy(plan) => Some(plan.jobs.len()),
            Work::Extract { .. } => None,
        }
    }

    /// Whether it reads what other mirrors brought into the cache, and nothing else.
    pub fn reads_cache(&self) -> bool {
        match &self.work {
            Work::Copy(plan) => plan.jobs.iter().all(|job| job.source.is_none()),
            Work::Extract { .. } => false,
        }
    }

    /// Every place that is known to be written, as its full name, with what is written there: two mirrors that write
    /// different things to one place undo each other's work. What an archive holds shows only when it is read; its places
    /// are those that the spec tells without.
    pub fn targets(&self) -> Vec<(String, String)> {
        match &self.work {
            Work::Copy(plan) => plan.targets().collect(),
            Work::Extract {
                archive,
                destinations,
            } => {
                let places = Plan::expected_places(&archive.names(), destinations);
                let written = format!("archive {}", archive.path());
                let targets = places.into_iter().map(|place| (place, written.clone()));
                targets.collect()
            }
        }
    }

    /// Puts in what only the surroundings know.
    ///
    /// # Errors
    /// When a Secret is missing, or does not hold what is needed from it.
    pub fn into_request(self, given: Given, output: &OutputManager) -> Result<MirrorRequest> {
        request::build(self, given, output)
    }
}

fn transfer_options(transfer: &api::Transfer) -> Result<(TransferOptions, u32)> {
    let api::Transfer {
        max_concurrent,
        retry_attempts,
        existing_blobs,
        bandwidth_limit,
    } = transfer;
    let existing_blobs = match existing_blobs {
        api::ExistingBlobs::Skip => ExistingBlobs::Skip,
        api::ExistingBlobs::Upload => ExistingBlobs::Upload,
    };
    let max_concurrent = usize::try_from(*max_concurrent)
        .ok()
        .filter(|value| (1..=64).contains(value));
    let max_concurrent = max_concurrent
        .ok_or_else(|| invalid("spec.transfer.maxConcurrent", "must be from 1 to 64"))?;
    let retry_attempts = u32::try_from(*retry_attempts)
        .ok()
        .filter(|value| *value <= 20);
    let retry_attempts = retry_attempts
        .ok_or_else(|| invalid("spec.transfer.retryAttempts", "must be from 0 to 20"))?;
    Ok((
        TransferOptions {
            max_concurrent,
            existing_blobs,
            bandwidth_limit: bandwidth_limit.as_deref().map(parse_rate).transpose()?,
        },
        retry_attempts,
    ))
}

fn parse_rate(text: &str) -> Result<NonZeroU64> {
    parse_quantity(text).ok_or_else(|| {
        invalid(
            "spec.transfer.bandwidthLimit",
            "must be bytes per second such as 500k, 50Mi or 1Gi",
        )
    })
}

fn parse_interval(text: &str) -> Result<Duration> {
    parse_duration(text)
        .filter(|interval| *interval >= MIN_INTERVAL)
        .ok_or_else(|| {
            invalid(
                "spec.interval",
                "must be a duration of at least 1m, for example 30m, 1h or 1h30m",
            )
        })
}

fn parse_timeout(text: &str) -> Result<Duration> {
    parse_duration(text)
        .filter(|timeout| *timeout >= MIN_TIMEOUT)
        .ok_or_else(|| {
            invalid(
                "spec.timeout",
                "must be a duration of at least 1s, for example 90s, 30m or 6h",
            )
        })
}

/// Hash of the fields that decide the copies, with their defaults, so that writing a default out changes nothing.
fn run_key(spec: &ImageMirrorSpec) -> String {
    let deciding = serde_json::json!({
        "source": spec.source,
        "destinations": spec.destinations,
        "transfer": spec.transfer(),
    });
    Digest::of(deciding.to_string().as_bytes()).hex().to_owned()
}

pub(super) fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Error {
    Error::InvalidSpec {
        field: field.into(),
        reason: reason.into(),
    }
}

/// Puts the field before what is wrong with a name in it.
pub(super) fn named<T>(field: &str, part: &str, parsed: crate::image::Result<T>) -> Result<T> {
    let field = if part.is_empty() {
        field.to_owned()
    } else {
        format!("{field}.{part}")
    };
    parsed.map_err(|source| Error::InvalidName { field, source })
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::unwrap_in_result,
        reason = "what the tests themselves write can be read"
    )]

    use serde_json::{Value, json};

    use super::*;
    use crate::{
        error::{Class, Classified, handlers},
        image::Reference,
        transfer::{ImageJob, RegistryId},
    };

    fn spec() -> Value {
        json!({
            "source": {"registry": {"repository": "registry.example/team/app", "tags": ["1", "2"]}},
            "destinations": [{"repository": "internal.example:5000/mirror/{repository}"}],
        })
    }

    fn checked(spec: &Value) -> Result<ValidatedMirror> {
        validate(&serde_json::from_value(spec.clone()).unwrap())
    }

    fn plan(mirror: &ValidatedMirror) -> &Plan {
        match &mirror.work {
            Work::Copy(plan) => plan,
            Work::Extract { .. } => panic!("the images of an archive are not known yet"),
        }
    }

    fn jobs(mirror: &ValidatedMirror) -> &[ImageJob] {
        &plan(mirror).jobs
    }

    fn targets(mirror: &ValidatedMirror) -> Vec<String> {
        let destinations = jobs(mirror).iter().flat_map(|job| &job.destinations);
        destinations
            .map(|destination| format!("{}:{}", destination.repository, destination.reference))
            .collect()
    }

    #[test]
    fn tags_and_digests_are_united_and_each_is_taken_once() {
        let digest = Digest::of(b"pinned");
        let mut spec = spec();
        spec["source"]["registry"]["tags"] = json!(["1", "2", "1"]);
        spec["source"]["registry"]["digests"] = json!([
            format!("3@{digest}"),
            digest.to_string(),
            digest.to_string()
        ]);
        let mirror = checked(&spec).unwrap();
        let expected = ["1", "2", "3", &format!("digest-{}", digest.hex())]
            .map(|tag| format!("mirror/team/app:{tag}"));
        assert_eq!(targets(&mirror), expected);
        let cached: Vec<_> = jobs(&mirror)
            .iter()
            .map(|job| job.cached.to_string())
            .collect();
        assert_eq!(cached[2], format!("registry.example/team/app@{digest}"));
        assert_eq!(cached[3], format!("registry.example/team/app@{digest}"));
        assert_eq!(
            jobs(&mirror)[2].source.as_ref().unwrap().reference,
            Reference::Digest(digest)
        );
    }

    #[test]
    fn docker_hub_is_reached_at_its_api_host() {
        let mut spec = spec();
        spec["source"]["registry"]["repository"] = json!("docker.io/library/nginx");
        let mirror = checked(&spec).unwrap();
        assert_eq!(
            plan(&mirror).accesses[&RegistryId("source".into())]
                .endpoint()
                .to_string(),
            "https://registry-1.docker.io"
        );
        assert_eq!(targets(&mirror)[0], "mirror/library/nginx:1");
    }

    #[test]
    fn two_images_for_one_place_are_a_conflict() {
        let mut fixed = spec();
        fixed["destinations"][0]["tag"] = json!("latest");
        let mut twice = spec();
        twice["destinations"] = json!([
            {"name": "a", "repository": "internal.example/app"},
            {"name": "b", "repository": "internal.example/app"},
        ]);
        for spec in [fixed, twice] {
            let error = checked(&spec).unwrap_err();
            assert_eq!(
                (error.reason(), error.class()),
                ("DestinationConflict", Class::Config)
            );
        }
        let mut by_digest = spec();
        by_digest["destinations"][0]["tag"] = json!("{digest}");
        assert!(checked(&by_digest).is_ok());
    }

    #[test]
    #[expect(
        clippy::too_many_lines,
        reason = "one table: every field that can be wrong"
    )]
    fn every_refusal_names_its_field() {
        for (path, value, field) in [
            ("/source", json!({}), "spec.source"),
            (
                "/source/registry/repository",
                json!("team/app"),
                "spec.source.registry.repository",
            ),
            (
                "/source/registry/repository",
                json!("registry.example/../app"),
                "spec.source.registry.repository",
            ),
            ("/source/registry/tags", json!([]), "spec.source.registry"),
            (
                "/source/registry/tags",
                json!(["ok", "not ok"]),
                "spec.source.registry.tags[1]",
            ),
            (
                "/source/registry/digests",
                json!(["sha256:abc"]),
                "spec.source.registry.digests[0]",
            ),
            (
                "/source/registry/secretRef",
                json!({"name": "../x"}),
                "spec.source.registry.secretRef.name",
            ),
            (
                "/destinations/0/repository",
                json!("mirror/app"),
                "spec.destinations[0].repository",
            ),
            (
                "/destinations/0/repository",
                json!("internal.example/{nonsense}"),
                "spec.destinations[0].repository",
            ),
            (
                "/destinations/0/repository",
                json!("{registry}/app"),
                "spec.destinations[0].repository",
            ),
            (
                "/destinations/0/name",
                json!("Main"),
                "spec.destinations[0].name",
            ),
            (
                "/destinations/0/tag",
                json!("{tag}/x"),
                "spec.destinations[0].tag",
            ),
            (
                "/destinations/0/certSecretRef",
                json!({"name": "X"}),
                "spec.destinations[0].certSecretRef.name",
            ),
            (
                "/source",
                json!({"cache": {"repository": "docker.io/app", "reference": "1"}, "archive": {"path": "a.tar"}}),
                "spec.source",
            ),
            (
                "/source",
                json!({"cache": {"repository": "team/app", "reference": "1"}}),
                "spec.source.cache.repository",
            ),
            (
                "/source",
                json!({"cache": {"repository": "docker.io/app", "reference": "not one"}}),
                "spec.source.cache.reference",
            ),
            (
                "/source",
                json!({"archive": {"path": "../app.tar"}}),
                "spec.source.archive.path",
            ),
            (
                "/source",
                json!({"archive": {"path": "/app.tar"}}),
                "spec.source.archive.path",
            ),
            (
                "/source/registry/serviceAccountName",
                json!("../x"),
                "spec.source.registry.serviceAccountName",
            ),
            (
                "/source/registry/proxySecretRef",
                json!({"name": "../x"}),
                "spec.source.registry.proxySecretRef.name",
            ),
            ("/timeout", json!("0s"), "spec.timeout"),
            ("/interval", json!("30s"), "spec.interval"),
            ("/interval", json!("soon"), "spec.interval"),
            (
                "/transfer",
                json!({"maxConcurrent": 0}),
                "spec.transfer.maxConcurrent",
            ),
            (
                "/transfer",
                json!({"retryAttempts": 21}),
                "spec.transfer.retryAttempts",
            ),
        ] {
            let mut spec = spec();
            let (parent, key) = path.rsplit_once('/').unwrap();
            spec.pointer_mut(parent).unwrap()[key] = value.clone();
            let error = checked(&spec).unwrap_err();
            let text = handlers::message(&error);
            assert!(text.starts_with(field), "{path} {value}: {text}");
            assert_eq!(
                (error.class(), error.reason()),
                (Class::Config, "InvalidSpec"),
                "{text}"
            );
        }
        let mut twice = spec();
        twice["destinations"] =
            json!([{"repository": "a.example/x"}, {"repository": "b.example/x"}]);
        assert!(
            checked(&twice)
                .unwrap_err()
                .to_string()
                .starts_with("spec.destinations[1].name")
        );
        let mut both = spec();
        both["destinations"][0]["insecure"] = json!(true);
        both["destinations"][0]["skipTLSVerify"] = json!(true);
        assert!(
            checked(&both)
                .unwrap_err()
                .to_string()
                .starts_with("spec.destinations[0]")
        );
    }

    #[test]
    fn only_what_decides_the_copies_changes_the_run_key() {
        let key = |change: &dyn Fn(&mut Value)| {
            let mut spec = spec();
            change(&mut spec);
            checked(&spec).unwrap().run_key()
        };
        let original = key(&|_| {});
        assert_eq!(original, key(&|spec| spec["interval"] = json!("1h")));
        assert_eq!(original, key(&|spec| spec["timeout"] = json!("1h")));
        assert_eq!(original, key(&|spec| spec["suspend"] = json!(true)));
        assert_eq!(
            original,
            key(&|spec| spec["transfer"] = json!({"maxConcurrent": 8}))
        );
        assert_ne!(
            original,
            key(&|spec| spec["transfer"] = json!({"maxConcurrent": 4}))
        );
        assert_ne!(
            original,
            key(&|spec| spec["source"]["registry"]["tags"] = json!(["1"]))
        );
        assert_ne!(
            original,
            key(&|spec| spec["destinations"][0]["insecure"] = json!(true))
        );
    }

    #[test]
    fn an_image_of_the_cache_needs_no_source_registry() {
        let mut spec = spec();
        spec["source"] =
            json!({"cache": {"repository": "docker.io/library/nginx", "reference": "1.27"}});
        let mirror = checked(&spec).unwrap();
        let job = &jobs(&mirror)[0];
        assert_eq!(job.source, None);
        assert_eq!(job.cached.to_string(), "docker.io/library/nginx:1.27");
        assert_eq!(targets(&mirror), ["mirror/library/nginx:1.27"]);
    }

    #[test]
    fn the_templates_of_an_archive_are_tried_before_it_is_read() {
        let mut spec = spec();
        spec["source"] = json!({"archive": {"path": "team-a/app.tar"}});
        let mirror = checked(&spec).unwrap();
        assert_eq!(mirror.image_count(), None);
        assert_eq!(mirror.interval(), Some(Duration::from_mins(5)));
        spec["destinations"][0]["tag"] = json!("{version}");
        let text = handlers::message(&checked(&spec).unwrap_err());
        assert!(text.starts_with("spec.destinations[0].tag"), "{text}");
    }

    #[test]
    fn everything_that_names_a_login_is_asked_for() {
        let mut spec = spec();
        spec["source"]["registry"]["secretRef"] = json!({"name": "a"});
        spec["source"]["registry"]["proxySecretRef"] = json!({"name": "b"});
        spec["destinations"][0]["certSecretRef"] = json!({"name": "c"});
        spec["destinations"][0]["serviceAccountName"] = json!("robot");
        let mirror = checked(&spec).unwrap();
        let names: Vec<_> = mirror.secret_names().into_iter().collect();
        assert_eq!(names, ["a", "b", "c"]);
        let accounts: Vec<_> = mirror.service_accounts().into_iter().collect();
        assert_eq!(accounts, ["robot"]);
        spec["destinations"][0]["secretRef"] = json!({"name": "d"});
        let text = checked(&spec).unwrap_err().to_string();
        assert!(text.starts_with("spec.destinations[0]"), "{text}");
    }

    #[test]
    fn what_is_written_is_known_where_the_spec_tells() {
        let mut value = spec();
        value["destinations"] = json!([
            {"name": "a", "repository": "Internal.example:5000/{name}"},
            {"name": "b", "repository": "internal.example:5000/by-digest", "tag": "{tag}-{digest}"},
        ]);
        let spec = serde_json::from_value(value).unwrap();
        let targets = validate(&spec).unwrap().targets();
        let expected = ["1", "2"].map(|tag| {
            let written = format!("registry.example/team/app:{tag}");
            (format!("internal.example:5000/app:{tag}"), written)
        });
        assert_eq!(targets, expected);
    }
}
