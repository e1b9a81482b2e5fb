//! A validated mirror with what only its surroundings know: ready to run.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};

use crate::{
    cache::{self, Cache, Keep},
    output::OutputManager,
    registry::{Hosts, Loopback},
    transfer::{ImageJob, Outcome, Registries, Run, RunReport, TransferOptions},
};

use super::{
    ArchiveFolder, Error, Logins, Result, SecretDocument, SecretReader,
    plan::Plan,
    validate::{ValidatedMirror, Work},
};

/// What a mirror cannot say itself: Secrets, logins of ServiceAccounts, and where archives lie.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// The Secrets that [`ValidatedMirror::secret_names`] asked for, by name.
    pub secrets: BTreeMap<String, SecretDocument>,
    /// The imagePullSecrets of the ServiceAccounts that [`ValidatedMirror::service_accounts`] asked for, by account.
    pub pull_secrets: BTreeMap<String, Vec<SecretDocument>>,
    /// Reads Secrets anew while a run goes on; none where they cannot change.
    pub reader: Option<Arc<dyn SecretReader>>,
    /// Logins for ServiceAccounts whose imagePullSecrets are not known; `None` where an unknown account is an error.
    pub logins: Option<Logins>,
    /// Where archives lie; `None` where there is no such folder.
    pub archives: Option<ArchiveFolder>,
    /// What the process knows of registries.
    pub hosts: Hosts,
    /// Whose mirror it is, for a fair share of each registry's connections: the namespace.
    pub tenant: Arc<str>,
    /// For whose sake images stay that go nowhere else: the mirror's name, where it can be deleted some day; none where images
    /// stay until they are cleaned.
    pub owner: Option<Arc<str>>,
    /// Which registries of this machine may be asked.
    pub loopback: Loopback,
    /// Whether a run waits for a registry's quota, instead of leaving its images to the next one.
    pub waits_for_quota: bool,
}

/// A run that only needs a cache.
#[derive(Debug)]
pub struct MirrorRequest {
    work: Work,
    given: Given,
    registries: Registries,
    retry_attempts: u32,
    options: TransferOptions,
    timeout: Duration,
    output: OutputManager,
}

/// Puts in what only the surroundings know. Logins are looked at now where the registries are known already.
pub(super) fn build(
    mirror: ValidatedMirror,
    given: Given,
    output: &OutputManager,
) -> Result<MirrorRequest> {
    let ValidatedMirror {
        work,
        options,
        retry_attempts,
        timeout,
        ..
    } = mirror;
    let registries = match &work {
        Work::Copy(plan) => plan.registries(&given, retry_attempts, output)?,
        Work::Extract { .. } => Registries::new(),
    };
    Ok(MirrorRequest {
        work,
        given,
        registries,
        retry_attempts,
        options,
        timeout,
        output: output.clone(),
    })
}

impl MirrorRequest {
    /// Why its images are brought into the cache.
    fn keep(&self) -> Keep {
        let only_fills = match &self.work {
            Work::Copy(plan) => plan.jobs.iter().all(|job| job.destinations.is_empty()),
            Work::Extract { destinations, .. } => destinations.is_empty(),
        };
        match &self.given.owner {
            _ if !only_fills => Keep::Passing,
            Some(owner) => Keep::For(Arc::clone(owner)),
            None => Keep::OnRequest,
        }
    }

    /// Carries the mirror out. Dropping the future cancels it. When the mirror's timeout is over, images that are not
    /// through have failed; the others keep their outcome.
    ///
    /// # Errors
    /// Of an archive: what keeps it from being read, or from being sent where it should go.
    pub async fn run(self, cache: &Cache) -> Result<RunReport> {
        let deadline = Instant::now() + self.timeout;
        let owner = self.given.owner.clone();
        let cache = &cache.keeping(self.keep());
        match self.work {
            Work::Copy(plan) => {
                let run = Run::new(cache, self.registries, self.options, self.output);
                let run = run.until(deadline, self.timeout);
                let run = run.parking(self.given.waits_for_quota);
                let report = run.execute(&plan.jobs).await;
                release_others(cache, owner, &plan.jobs).await;
                Ok(report)
            }
            Work::Extract {
                archive,
                destinations,
            } => {
                let timeout = self.timeout;
                let failed = |error: cache::Error| Error::Archive(Arc::new(error.into()));
                let in_use = cache.use_shared().await.map_err(failed)?;
                let folder = self.given.archives.as_ref();
                let extracted = archive.extract(folder, cache, &self.output);
                let extracted = timeout_at(deadline, extracted)
                    .await
                    .map_err(|_| Error::RunTimedOut { timeout })??;
                let (images, are_new): (Vec<_>, Vec<_>) = extracted
                    .into_iter()
                    .map(|extracted| (extracted.image, extracted.is_new))
                    .unzip();
                let plan = Plan::new(&images, None, &destinations)
                    .map_err(|error| Error::OfArchive(Box::new(error)))?;
                // What is extracted must stay until it is pushed.
                let jobs = plan.jobs.iter();
                let pinned: Vec<_> = jobs.flat_map(ImageJob::cached_names).collect();
                let lease = cache.lease_to_read(&pinned, []).await.map_err(failed)?;
                drop(in_use);
                let registries = plan.registries(&self.given, self.retry_attempts, &self.output)?;
                let run = Run::new(cache, registries, self.options, self.output);
                let run = run.parking(self.given.waits_for_quota);
                let mut report = run.until(deadline, timeout).execute(&plan.jobs).await;
                drop(lease);
                release_others(cache, owner, &plan.jobs).await;
                note_extracted(&mut report, &are_new);
                Ok(report)
            }
        }
    }
}

/// Ends what the owner wanted before and does not want any more.
async fn release_others(cache: &Cache, owner: Option<Arc<str>>, jobs: &[ImageJob]) {
    if let Some(owner) = owner {
        let only_here = jobs.iter().filter(|job| job.destinations.is_empty());
        let names: Vec<_> = only_here.map(|job| job.cached.clone()).collect();
        cache.keep_only(&owner, &names).await;
    }
}

/// For the run the images of an archive were in the cache already; for the mirror they came there just now.
fn note_extracted(report: &mut RunReport, are_new: &[bool]) {
    for (image, is_new) in report.images.iter_mut().zip(are_new) {
        if *is_new && image.fetched == Outcome::UpToDate {
            image.fetched = Outcome::Copied;
        }
    }
}
