//! The door for one operation: pull one image, or push one from the cache.

use crate::{
    cache::Cache,
    image::{ImageName, Reference, Repository, RepositoryPath},
    output::OutputManager,
    registry::RegistryClient,
};

use super::{
    Destination, Error, ImageJob, Registries, RegistryId, RegistryImage, Result, Run,
    TargetReference, TransferOptions,
};

/// What one operation does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OperationMode {
    /// Pull an image from a registry; it lies in the cache under the name given here, whose path is also the repository at
    /// the registry.
    PullAndCache {
        /// The repository as the user named it.
        repository: Repository,
        /// Tag or digest.
        reference: Reference,
    },
    /// Push an image that lies in the cache, by its manifest.
    PushFromCacheUsingManifest {
        /// The image's name in the cache.
        source: ImageName,
        /// The repository at the registry.
        repository: RepositoryPath,
        /// Tag or digest at the registry.
        reference: Reference,
    },
}

/// A facade over a shared cache, made for one operation.
#[derive(Debug)]
pub struct ImageManager {
    cache: Cache,
    output: OutputManager,
    options: TransferOptions,
}

/// The only registry access of a one-job run.
const REGISTRY: &str = "registry";

impl ImageManager {
    /// A manager that works on `cache` and tells `output` about it.
    pub const fn new(cache: Cache, output: OutputManager, options: TransferOptions) -> Self {
        Self {
            cache,
            output,
            options,
        }
    }

    /// Carries out `mode` as a run of one job. `auth_token` is a bearer token the caller has already; without one the client
    /// negotiates.
    ///
    /// # Errors
    /// What made the copy fail; [`Error::RegistryMissing`] when the mode needs a registry and no client is given.
    pub async fn execute_operation(
        &mut self,
        mode: &OperationMode,
        client: Option<&RegistryClient>,
        auth_token: Option<&str>,
    ) -> Result<()> {
        let client = client.ok_or_else(|| Error::RegistryMissing {
            name: REGISTRY.to_owned(),
        })?;
        let client = auth_token.map_or_else(|| client.clone(), |token| client.with_token(token));
        let registries = Registries::from([(RegistryId(REGISTRY.to_owned()), client)]);
        let run = Run::new(&self.cache, registries, self.options, self.output.clone());
        let job = job_of(mode);
        let in_use = run.use_cache(std::slice::from_ref(&job)).await;
        let _in_use = in_use.map_err(|source| Error::Cache {
            image: job.cached.clone(),
            source,
        })?;
        let copied = run.copy(&job).await;
        copied.fetched?;
        copied
            .destinations
            .into_iter()
            .flatten()
            .try_for_each(|outcome| outcome.map(|_| ()))
    }
}

/// The operation as a job.
fn job_of(mode: &OperationMode) -> ImageJob {
    match mode {
        OperationMode::PullAndCache {
            repository,
            reference,
        } => ImageJob {
            cached: ImageName {
                repository: repository.clone(),
                reference: reference.clone(),
            },
            source: Some(RegistryImage {
                registry: RegistryId(REGISTRY.to_owned()),
                repository: repository.path().clone(),
                reference: reference.clone(),
            }),
            destinations: Vec::new(),
        },
        OperationMode::PushFromCacheUsingManifest {
            source,
            repository,
            reference,
        } => ImageJob {
            cached: source.clone(),
            source: None,
            destinations: vec![Destination {
                name: "default".to_owned(),
                registry: RegistryId(REGISTRY.to_owned()),
                repository: repository.clone(),
                reference: TargetReference::Known(reference.clone()),
            }],
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mode_is_a_run_of_one_job() {
        let pull = job_of(&OperationMode::PullAndCache {
            repository: "registry.example/team/app".parse().unwrap(),
            reference: "1".parse().unwrap(),
        });
        assert_eq!(pull.cached.to_string(), "registry.example/team/app:1");
        assert_eq!(pull.source.unwrap().repository.as_str(), "team/app");
        let push = job_of(&OperationMode::PushFromCacheUsingManifest {
            source: pull.cached,
            repository: "mirror/app".parse().unwrap(),
            reference: "1".parse().unwrap(),
        });
        assert!(push.source.is_none());
        assert_eq!(push.destinations.len(), 1);
    }
}
