//! A validated mirror with what only its surroundings know: ready to run.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};

use crate::{
    cache::Cache,
    image::{Host, RepositoryPath},
    output::OutputManager,
    registry::{self, Hosts, Login},
    transfer::{Outcome, Registries, Run, RunReport, TransferOptions},
};

use super::{
    ArchiveFolder, Error, Result, SecretDocument,
    access::RegistryAccess,
    plan::Plan,
    secret::NamedSecret,
    validate::{ValidatedMirror, Work},
};

/// What a mirror cannot say itself: Secrets, logins of ServiceAccounts, and where archives lie.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// The Secrets that [`ValidatedMirror::secret_names`] asked for, by name.
    pub secrets: BTreeMap<String, SecretDocument>,
    /// The imagePullSecrets of the ServiceAccounts that [`ValidatedMirror::service_accounts`] asked for, by account.
    pub pull_secrets: BTreeMap<String, Vec<SecretDocument>>,
    /// Logins for ServiceAccounts whose imagePullSecrets are not known; `None` where an unknown account is an error.
    pub logins: Option<Logins>,
    /// Where archives lie; `None` where there is no such folder.
    pub archives: Option<ArchiveFolder>,
    /// What the process knows of registries.
    pub hosts: Hosts,
    /// Whose mirror it is, for a fair share of each registry's connections: the namespace.
    pub tenant: Arc<str>,
    /// Whether a run waits for a registry's quota, instead of leaving its images to the next one.
    pub waits_for_quota: bool,
}

/// Finds the login for a repository outside of all Secrets: on the command line, among those of docker and podman.
#[derive(Clone)]
pub struct Logins(Arc<Finder>);

/// The login for a repository, if there is one.
type Finder = dyn Fn(&Host, &RepositoryPath) -> registry::Result<Option<Login>> + Send + Sync;

impl Logins {
    /// Logins that `find` knows.
    pub fn new(
        find: impl Fn(&Host, &RepositoryPath) -> registry::Result<Option<Login>> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(find))
    }
}

impl fmt::Debug for Logins {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Logins")
    }
}

impl Given {
    /// The login that a ServiceAccount has for a registry. One that none of its Secrets names is asked anonymously, as the
    /// kubelet does.
    pub(super) fn account_credential(
        &self,
        account: &str,
        access: &RegistryAccess,
        output: &OutputManager,
    ) -> Result<Login> {
        let field = format!("{}.serviceAccountName", access.how.field);
        let Some(documents) = self.pull_secrets.get(account) else {
            return match &self.logins {
                Some(Logins(find)) => match find(&access.host, &access.repository) {
                    Ok(login) => Ok(login.unwrap_or_default()),
                    Err(source) => Err(Error::AccessInvalid { field, source }),
                },
                None => Err(Error::ServiceAccountNotFound {
                    account: account.to_owned(),
                    field,
                }),
            };
        };
        for document in documents {
            let secret = NamedSecret {
                document,
                field: field.clone(),
            };
            if !secret.can_pull() {
                output.detail(format!(
                    "Secret {} of ServiceAccount {account} is passed over: its type is {}",
                    document.name,
                    document.kind.escape_debug()
                ));
            }
            if let Some(credential) = secret.pull_credential(&access.host, &access.repository)? {
                return Ok(credential.into());
            }
        }
        Ok(Login::default())
    }
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
    /// Carries the mirror out. Dropping the future cancels it. When the mirror's timeout is over, images that are not
    /// through have failed; the others keep their outcome.
    ///
    /// # Errors
    /// Of an archive: what keeps it from being read, or from being sent where it should go.
    pub async fn run(self, cache: &Cache) -> Result<RunReport> {
        let deadline = Instant::now() + self.timeout;
        match self.work {
            Work::Copy(plan) => {
                let run = Run::new(cache, self.registries, self.options, self.output);
                let run = run.until(deadline, self.timeout);
                let run = run.parking(self.given.waits_for_quota);
                Ok(run.execute(&plan.jobs).await)
            }
            Work::Extract {
                archive,
                destinations,
            } => {
                let timeout = self.timeout;
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
                let registries = plan.registries(&self.given, self.retry_attempts, &self.output)?;
                let run = Run::new(cache, registries, self.options, self.output);
                let run = run.parking(self.given.waits_for_quota);
                let mut report = run.until(deadline, timeout).execute(&plan.jobs).await;
                note_extracted(&mut report, &are_new);
                Ok(report)
            }
        }
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
