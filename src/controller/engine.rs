//! The seam between supervision and copying. The operator knows of the engine only what stands here, so its tests run with
//! an engine of their own; the real one is in `executor.rs`.

use std::{collections::BTreeSet, time::Duration};

use futures::future::BoxFuture;

use crate::{api::ImageMirrorSpec, output::OutputManager};

use super::target::Name;

pub(super) use crate::{
    mirror::Given,
    transfer::{Failure, RunReport},
};

/// Turns specs into copies.
pub(super) trait Engine: Send + Sync + 'static {
    /// Judges a spec without asking anybody.
    fn prepare(&self, spec: &ImageMirrorSpec) -> Result<Box<dyn Prepared>, Failure>;
    /// Lets go of what was kept for the sake of a mirror that is gone.
    fn release(&self, mirror: &Name) -> BoxFuture<'static, ()>;
}

/// A spec that can be carried out.
pub(super) trait Prepared: Send {
    /// What it needs from the cluster.
    fn needs(&self) -> Needs;
    /// A hash of all that decides the copies: two specs with one key need one run.
    fn run_key(&self) -> String;
    /// How often the source is looked at again.
    fn interval(&self) -> Option<Duration>;
    /// What it writes, as far as the spec tells.
    fn places(&self) -> BTreeSet<String>;
    /// Images it selects; of an archive that shows when it is read.
    fn image_count(&self) -> Option<usize>;
    /// Copies, with what it needs from the cluster. Dropping the future stops the work.
    fn run(
        self: Box<Self>,
        mirror: &Name,
        given: Given,
        output: OutputManager,
    ) -> BoxFuture<'static, Result<RunReport, Failure>>;
}

/// What a run needs from the cluster, all of the mirror's own namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Needs {
    /// Secrets by name.
    pub(super) secrets: BTreeSet<String>,
    /// ServiceAccounts whose imagePullSecrets hold a login, by name.
    pub(super) accounts: BTreeSet<String>,
}
