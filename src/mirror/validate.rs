//! Checks a spec and turns its text into names. Pure: no client, no clock.
//!
//! The API server has checked most of this already; files for `sync` never met one, and an older CRD may have let more
//! through, so everything is checked again here.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use crate::{
    api::{self, Access, ImageMirrorSpec, RegistrySource, parse_duration},
    image::{Digest, Host, ImageName, Reference, Repository, RepositoryPath, Tag},
    output::OutputManager,
    registry::Endpoint,
    transfer::{
        Destination, ExistingBlobs, ImageJob, RegistryId, RegistryImage, TargetReference,
        TransferOptions,
    },
};

use super::{
    Error, MirrorRequest, Result, SecretDocument, request,
    template::{self, Unfilled},
};

/// Shorter intervals only load registries: the CRD says the same.
const MIN_INTERVAL: Duration = Duration::from_mins(1);

/// A mirror that can run, as far as its spec can tell.
#[derive(Debug, Clone)]
pub struct ValidatedMirror {
    pub(super) jobs: Vec<ImageJob>,
    /// Every registry access of the jobs.
    pub(super) accesses: BTreeMap<RegistryId, ValidatedAccess>,
    pub(super) options: TransferOptions,
    pub(super) retry_attempts: u32,
    interval: Option<Duration>,
    run_key: String,
}

/// How one registry of the mirror is reached.
#[derive(Debug, Clone)]
pub(super) struct ValidatedAccess {
    /// Path of the source or destination in the spec, for messages.
    pub(super) field: String,
    pub(super) endpoint: Endpoint,
    pub(super) host: Host,
    pub(super) repository: RepositoryPath,
    pub(super) secret: Option<String>,
    pub(super) cert_secret: Option<String>,
    pub(super) skip_tls_verify: bool,
}

/// One image the source selects.
struct Selected {
    reference: Reference,
    /// The tag it is known by, if any: of `tag@digest`, the tag.
    tag: Option<Tag>,
}

/// Checks `spec`.
///
/// # Errors
/// [`Error::InvalidSpec`] and its kin, each naming the field, and [`Error::DestinationConflict`].
pub fn validate(spec: &ImageMirrorSpec) -> Result<ValidatedMirror> {
    let ImageMirrorSpec {
        source,
        destinations,
        interval,
        transfer: _,
    } = spec;
    let registry = source
        .registry
        .as_ref()
        .ok_or_else(|| invalid("spec.source", "registry must be set"))?;
    let field = "spec.source.registry";
    let repository = named(
        field,
        "repository",
        registry.repository.parse::<Repository>(),
    )?;
    let host = repository.host().cloned().ok_or_else(|| {
        invalid(
            "spec.source.registry.repository",
            "must be host[:port]/path, for example docker.io/library/nginx",
        )
    })?;
    let source_id = RegistryId("source".to_owned());
    let mut accesses = BTreeMap::from([(
        source_id.clone(),
        access(field.to_owned(), &host, repository.path(), &registry.access)?,
    )]);
    let images = selected(registry)?;
    let mut jobs: Vec<ImageJob> = images
        .iter()
        .map(|image| job(&repository, &source_id, image))
        .collect();
    for (position, destination) in destinations.iter().enumerate() {
        let field = format!("spec.destinations[{position}]");
        if destinations[..position]
            .iter()
            .any(|earlier| earlier.name == destination.name)
        {
            return Err(invalid(
                format!("{field}.name"),
                format!("'{}' is used twice", destination.name),
            ));
        }
        let target = template::repository(&destination.repository, &host, repository.path())
            .map_err(|error| unfilled(format!("{field}.repository"), error))?;
        let target_host = target.host().ok_or_else(|| {
            invalid(
                format!("{field}.repository"),
                "must begin with a registry host, for example internal:5000/",
            )
        })?;
        let id = RegistryId(format!("destination {}", destination.name));
        accesses.insert(
            id.clone(),
            access(
                field.clone(),
                target_host,
                target.path(),
                &destination.access,
            )?,
        );
        for (job, image) in jobs.iter_mut().zip(&images) {
            let reference = template::tag(
                &destination.tag,
                image.tag.as_ref(),
                image.reference.digest(),
            )
            .map_err(|error| unfilled(format!("{field}.tag"), error))?;
            job.destinations.push(Destination {
                name: destination.name.clone(),
                registry: id.clone(),
                repository: target.path().clone(),
                reference,
            });
        }
    }
    refuse_conflicts(&jobs, &accesses)?;
    let (options, retry_attempts) = transfer_options(&spec.transfer())?;
    Ok(ValidatedMirror {
        jobs,
        accesses,
        options,
        retry_attempts,
        interval: interval.as_deref().map(parse_interval).transpose()?,
        run_key: run_key(spec),
    })
}

impl ValidatedMirror {
    /// Secrets the mirror needs, by name; all are of its own namespace.
    pub fn secret_names(&self) -> BTreeSet<String> {
        self.accesses
            .values()
            .flat_map(|access| access.secret.iter().chain(&access.cert_secret))
            .cloned()
            .collect()
    }

    /// Names what decides the copies: source, destinations and transfer. Two specs with equal keys ask for the same run, so
    /// an edit that keeps the key does not disturb a running copy.
    pub fn run_key(&self) -> String {
        self.run_key.clone()
    }

    /// How often the source is looked at again; `None` = once per change of the spec.
    pub const fn interval(&self) -> Option<Duration> {
        self.interval
    }

    /// How many images the mirror selects.
    pub const fn image_count(&self) -> usize {
        self.jobs.len()
    }

    /// Puts in the Secrets that [`ValidatedMirror::secret_names`] asked for, by name.
    ///
    /// # Errors
    /// When a Secret is missing, or does not hold what is needed from it.
    pub fn into_request(
        self,
        secrets: &BTreeMap<String, SecretDocument>,
        output: &OutputManager,
    ) -> Result<MirrorRequest> {
        request::build(self, secrets, output)
    }
}

/// The images the source selects, each once.
fn selected(registry: &RegistrySource) -> Result<Vec<Selected>> {
    let mut seen = BTreeSet::new();
    let mut images = Vec::new();
    for (position, tag) in registry.tags.iter().enumerate() {
        if seen.insert(tag.0.as_str()) {
            let tag: Tag = named(
                &format!("spec.source.registry.tags[{position}]"),
                "",
                tag.0.parse(),
            )?;
            images.push(Selected {
                reference: Reference::Tag(tag.clone()),
                tag: Some(tag),
            });
        }
    }
    for (position, pinned) in registry.digests.iter().enumerate() {
        if !seen.insert(pinned.0.as_str()) {
            continue;
        }
        let field = format!("spec.source.registry.digests[{position}]");
        let (tag, digest) = match pinned.0.split_once('@') {
            Some((tag, digest)) => (Some(named(&field, "", tag.parse::<Tag>())?), digest),
            None => (None, pinned.0.as_str()),
        };
        images.push(Selected {
            reference: Reference::Digest(named(&field, "", digest.parse::<Digest>())?),
            tag,
        });
    }
    if images.is_empty() {
        return Err(invalid(
            "spec.source.registry",
            "nothing selected: set at least one of tags and digests",
        ));
    }
    Ok(images)
}

/// The job of an image, without destinations yet. In the cache it lies under what selected it: a pinned digest and the tag
/// of the same name are two images.
fn job(repository: &Repository, registry: &RegistryId, image: &Selected) -> ImageJob {
    ImageJob {
        cached: ImageName {
            repository: repository.clone(),
            reference: image.reference.clone(),
        },
        source: Some(RegistryImage {
            registry: registry.clone(),
            repository: repository.path().clone(),
            reference: image.reference.clone(),
        }),
        destinations: Vec::new(),
    }
}

fn access(
    field: String,
    host: &Host,
    repository: &RepositoryPath,
    access: &Access,
) -> Result<ValidatedAccess> {
    if access.is_insecure() && access.skips_tls_verification() {
        return Err(invalid(
            field,
            "insecure means plain http, skipTLSVerify cannot apply: set one of them",
        ));
    }
    let secret_name = |reference: &Option<api::SecretReference>, part: &str| {
        let Some(reference) = reference else {
            return Ok(None);
        };
        // The name becomes part of an API path (operator rule R5).
        if is_object_name(&reference.name) {
            return Ok(Some(reference.name.clone()));
        }
        Err(invalid(
            format!("{field}.{part}.name"),
            "must be the name of a Secret: lower-case letters, digits, '.' and '-', at most 253",
        ))
    };
    Ok(ValidatedAccess {
        endpoint: Endpoint::for_host(host, access.is_insecure()),
        host: host.clone(),
        repository: repository.clone(),
        secret: secret_name(&access.secret_ref, "secretRef")?,
        cert_secret: secret_name(&access.cert_secret_ref, "certSecretRef")?,
        skip_tls_verify: access.skips_tls_verification(),
        field,
    })
}

/// A DNS subdomain, as names of Secrets are.
fn is_object_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    !name.is_empty()
        && name.len() <= 253
        && name.split('.').all(|label| {
            label.bytes().all(|byte| inner(byte) || byte == b'-')
                && label.bytes().next().is_some_and(inner)
                && label.bytes().last().is_some_and(inner)
        })
}

/// Two images for one place would overwrite each other on every run.
fn refuse_conflicts(
    jobs: &[ImageJob],
    accesses: &BTreeMap<RegistryId, ValidatedAccess>,
) -> Result<()> {
    let mut writers: HashMap<String, (&str, &Reference)> = HashMap::new();
    for job in jobs {
        for destination in &job.destinations {
            let Destination {
                name,
                registry,
                repository,
                reference,
            } = destination;
            let source = &job.cached.reference;
            let host = accesses.get(registry).map(|access| &access.endpoint);
            let mut target = format!(
                "{}/{repository}:{reference}",
                host.map_or_else(String::new, |endpoint| endpoint.host().to_string())
            );
            if matches!(reference, TargetReference::WithDigest(_)) {
                // Not known yet, but another one for each image.
                target = format!("{target} of {source}");
            }
            let Some((first_name, first_source)) = writers.insert(target.clone(), (name, source))
            else {
                continue;
            };
            // One digest selected under two tags is one image.
            if (first_name, first_source) != (name.as_str(), source) {
                return Err(Error::DestinationConflict {
                    target,
                    first: format!("destination {first_name} with {first_source}"),
                    second: format!("destination {name} with {source}"),
                });
            }
        }
    }
    Ok(())
}

fn transfer_options(transfer: &api::Transfer) -> Result<(TransferOptions, u32)> {
    let api::Transfer {
        max_concurrent,
        retry_attempts,
        existing_blobs,
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
        },
        retry_attempts,
    ))
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

/// Hash of the fields that decide the copies, with their defaults, so that writing a default out changes nothing.
fn run_key(spec: &ImageMirrorSpec) -> String {
    let deciding = serde_json::json!({
        "source": spec.source,
        "destinations": spec.destinations,
        "transfer": spec.transfer(),
    });
    Digest::of(deciding.to_string().as_bytes()).hex().to_owned()
}

fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Error {
    Error::InvalidSpec {
        field: field.into(),
        reason: reason.into(),
    }
}

/// Puts the field before what is wrong with a name in it.
fn named<T>(field: &str, part: &str, parsed: crate::image::Result<T>) -> Result<T> {
    let field = if part.is_empty() {
        field.to_owned()
    } else {
        format!("{field}.{part}")
    };
    parsed.map_err(|source| Error::InvalidName { field, source })
}

fn unfilled(field: String, error: Unfilled) -> Error {
    match error {
        Unfilled::Placeholder(text) => invalid(
            field,
            format!("the placeholder {} is not known", text.escape_debug()),
        ),
        Unfilled::Name(source) => Error::InvalidName { field, source },
    }
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::unwrap_in_result,
        reason = "what the tests themselves write can be read"
    )]

    use serde_json::{Value, json};

    use super::*;
    use crate::error::{Class, Classified, handlers};

    fn spec() -> Value {
        json!({
            "source": {"registry": {"repository": "registry.example/team/app", "tags": ["1", "2"]}},
            "destinations": [{"repository": "internal.example:5000/mirror/{repository}"}],
        })
    }

    fn checked(spec: &Value) -> Result<ValidatedMirror> {
        validate(&serde_json::from_value(spec.clone()).unwrap())
    }

    fn targets(mirror: &ValidatedMirror) -> Vec<String> {
        let destinations = mirror.jobs.iter().flat_map(|job| &job.destinations);
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
        let cached: Vec<_> = mirror
            .jobs
            .iter()
            .map(|job| job.cached.to_string())
            .collect();
        assert_eq!(cached[2], format!("registry.example/team/app@{digest}"));
        assert_eq!(cached[3], format!("registry.example/team/app@{digest}"));
        assert_eq!(
            mirror.jobs[2].source.as_ref().unwrap().reference,
            Reference::Digest(digest)
        );
    }

    #[test]
    fn docker_hub_is_reached_at_its_api_host() {
        let mut spec = spec();
        spec["source"]["registry"]["repository"] = json!("docker.io/library/nginx");
        let mirror = checked(&spec).unwrap();
        assert_eq!(
            mirror.accesses[&RegistryId("source".into())]
                .endpoint
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
                "/destinations/0/tag",
                json!("{tag}/x"),
                "spec.destinations[0].tag",
            ),
            (
                "/destinations/0/certSecretRef",
                json!({"name": "X"}),
                "spec.destinations[0].certSecretRef.name",
            ),
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
}
