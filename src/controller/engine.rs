//! The seam between supervision and copying. The operator knows of the engine only what stands here, so its tests run with
//! an engine of their own; the real one is in `executor.rs`.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures::future::BoxFuture;

use crate::{api::ImageMirrorSpec, mirror::SecretDocument, output::OutputManager};

pub(super) use crate::transfer::{Failure, RunReport};

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
    /// Copies. Dropping the future stops the work.
    fn run(
        self: Box<Self>,
        namespace: &str,
        secrets: BTreeMap<String, SecretDocument>,
        output: OutputManager,
    ) -> BoxFuture<'static, Result<RunReport, Failure>>;
}
