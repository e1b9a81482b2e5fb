//! The seam between supervision and copying. The operator knows of the engine only what stands here, so its tests run with
//! an engine of their own.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use futures::future::BoxFuture;

use crate::{api::ImageMirrorSpec, error::Class, image::Digest, output::OutputManager};

/// What became of a run: every image, every destination.
#[derive(Debug, Clone, Default)]
pub struct RunReport {
    /// In the order of the selection.
    pub images: Vec<ImageReport>,
}

/// What became of one image.
#[derive(Debug, Clone)]
pub struct ImageReport {
    /// The image as selected.
    pub source: String,
    /// Digest of its manifest, once known.
    pub digest: Option<Digest>,
    /// What became of the image itself, of the lookup and the way into the cache.
    pub fetched: Outcome,
    /// What became of it at each destination.
    pub destinations: Vec<DestinationReport>,
}

impl ImageReport {
    /// Everything that failed, with the destination where there is one.
    pub fn failures(&self) -> impl Iterator<Item = (Option<&DestinationReport>, &Failure)> {
        let fetch = self.fetched.failure().map(|failure| (None, failure));
        let repeated = self.fetched.failure();
        let destinations = self.destinations.iter().filter_map(move |destination| {
            let failure = destination.outcome.failure()?;
            (Some(failure) != repeated).then_some((Some(destination), failure))
        });
        fetch.into_iter().chain(destinations)
    }

    /// Whether the image is where it should be, everywhere.
    pub fn is_complete(&self) -> bool {
        self.failures().next().is_none()
    }

    /// Whether anything was copied.
    pub fn is_copied(&self) -> bool {
        self.fetched == Outcome::Copied
            || self
                .destinations
                .iter()
                .any(|destination| destination.outcome == Outcome::Copied)
    }
}

/// What became of one image at one destination.
#[derive(Debug, Clone)]
pub struct DestinationReport {
    /// Name of the destination in the spec.
    pub name: String,
    /// The image's name there.
    pub target: String,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of an image at a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was there.
    UpToDate,
    /// It is there now.
    Copied,
    /// It is not there.
    Failed(Failure),
}

impl Outcome {
    /// The failure, if it is one.
    pub const fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Failed(failure) => Some(failure),
            Self::UpToDate | Self::Copied => None,
        }
    }
}

/// An error that was judged: what conditions, events and reports say of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The error's own name.
    pub reason: &'static str,
    /// What kind of trouble it is.
    pub class: Class,
    /// What happened, without credentials.
    pub message: String,
}

/// A Secret as it was read.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretDocument {
    /// Its name.
    pub name: String,
    /// Its type, for example `kubernetes.io/dockerconfigjson`.
    pub kind: String,
    /// Its content.
    pub data: BTreeMap<String, Vec<u8>>,
}

impl fmt::Debug for SecretDocument {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("SecretDocument")
            .field("name", &self.name)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// Turns specs into copies.
pub(super) trait Engine: Send + Sync + 'static {
    /// Judges a spec without asking anybody.
    fn prepare(&self, spec: &ImageMirrorSpec) -> Result<Box<dyn Prepared>, Failure>;
}

/// A spec that can be carried out.
pub(super) trait Prepared: Send {
    /// Names the Secrets it needs.
    fn secret_names(&self) -> BTreeSet<String>;
    /// A hash of all that decides the copies: two specs with one key need one run.
    fn run_key(&self) -> String;
    /// How often the source is looked at again.
    fn interval(&self) -> Option<Duration>;
    /// Images it selects.
    fn image_count(&self) -> usize;
    /// Copies. Dropping the future stops the work at its last checkpoint.
    fn run(
        self: Box<Self>,
        namespace: &str,
        secrets: BTreeMap<String, SecretDocument>,
        output: OutputManager,
    ) -> BoxFuture<'static, Result<RunReport, Failure>>;
}
