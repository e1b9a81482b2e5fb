//! The door for one operation: pull an image, extract a tar, or push an image from the cache by its manifest or by a tar.

use crate::{
    archive::{Choice, Compression, StoredArchiveImage},
    cache::Cache,
    image::{Digest, ImageName, Reference, Repository, RepositoryPath},
    output::OutputManager,
    registry::RegistryClient,
};

use super::{
    Destination, Error, ImageJob, Registries, RegistryId, RegistryImage, Result, Run, Tar,
    TarImages, TargetReference, TransferOptions,
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
    /// Extract images of a tar into the cache.
    ExtractAndCache {
        /// The tar.
        tar: Tar,
        /// Which of its images.
        images: TarImages,
        /// What is done to its plain layers; `None` = nothing.
        compression: Option<Compression>,
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
    /// Push an image of a tar: it is extracted into the cache first, unless it is there already.
    PushFromCacheUsingTar {
        /// The tar.
        tar: Tar,
        /// Which of its images; `None` = the only one.
        image: Option<Choice>,
        /// What is done to its plain layers; `None` = nothing.
        compression: Option<Compression>,
        /// The repository at the registry; an image without a name is cached under this one.
        repository: Repository,
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
    extracted: Vec<StoredArchiveImage>,
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
            extracted: Vec::new(),
        }
    }

    /// The images that the last operation extracted.
    pub fn extracted(&self) -> &[StoredArchiveImage] {
        &self.extracted
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
        // What is extracted must stay until it is pushed.
        let mut _lease = None;
        let job = match mode {
            OperationMode::ExtractAndCache {
                tar,
                images,
                compression,
            } => {
                return self.extract(tar, images, *compression).await;
            }
            OperationMode::PushFromCacheUsingTar {
                tar,
                image,
                compression,
                repository,
                reference,
            } => {
                let fallback = ImageName {
                    repository: repository.clone(),
                    reference: reference.clone(),
                };
                let failed = |source| Error::Cache {
                    image: fallback.clone(),
                    source,
                };
                let in_use = self.cache.use_shared().await.map_err(failed)?;
                let (cached, digest) = self
                    .extract_one(tar, image.as_ref(), *compression, &fallback)
                    .await?;
                let job = ImageJob {
                    pinned: Some(digest),
                    ..push_job(cached, repository.path(), reference)
                };
                let names: Vec<_> = job.cached_names().collect();
                let lease = self.cache.lease_to_read(&names, []).await;
                _lease = Some(lease.map_err(failed)?);
                drop(in_use);
                job
            }
            OperationMode::PushFromCacheUsingManifest {
                source,
                repository,
                reference,
            } => push_job(source.clone(), repository, reference),
            OperationMode::PullAndCache {
                repository,
                reference,
            } => pull_job(repository, reference),
        };
        let client = client.ok_or_else(|| Error::RegistryMissing {
            name: REGISTRY.to_owned(),
        })?;
        let client = auth_token.map_or_else(|| client.clone(), |token| client.with_token(token));
        self.copy(job, client).await
    }

    async fn extract(
        &mut self,
        tar: &Tar,
        images: &TarImages,
        compression: Option<Compression>,
    ) -> Result<()> {
        let extracted = tar.extract(images, compression, &self.cache, &self.output);
        self.extracted = extracted.await?;
        self.cache.flush_index().await;
        Ok(())
    }

    /// Extracts the image that is to be pushed, and tells its digest and its name in the cache: its own, or that of the
    /// destination.
    async fn extract_one(
        &mut self,
        tar: &Tar,
        image: Option<&Choice>,
        compression: Option<Compression>,
        fallback: &ImageName,
    ) -> Result<(ImageName, Digest)> {
        let images = TarImages::OneToPush {
            choice: image.cloned(),
            fallback: fallback.clone(),
        };
        self.extract(tar, &images, compression).await?;
        let extracted = self.extracted.first();
        let extracted = extracted.ok_or_else(|| Error::CachedImageUnknown {
            image: fallback.clone(),
        })?;
        let name = extracted.names.first().unwrap_or(fallback).clone();
        Ok((name, extracted.digest.clone()))
    }

    async fn copy(&self, job: ImageJob, client: RegistryClient) -> Result<()> {
        let registries = Registries::from([(RegistryId(REGISTRY.to_owned()), client)]);
        let run = Run::new(&self.cache, registries, self.options, self.output.clone());
        // Whoever typed the command waits for it, and can stop it.
        let run = run.parking(true);
        let copied = run.copy_in_time(&job).await;
        self.cache.flush_index().await;
        copied.fetched?;
        copied
            .destinations
            .into_iter()
            .flatten()
            .try_for_each(|outcome| outcome.map(|_| ()))
    }
}

/// From the registry into the cache.
fn pull_job(repository: &Repository, reference: &Reference) -> ImageJob {
    ImageJob {
        cached: ImageName {
            repository: repository.clone(),
            reference: reference.clone(),
        },
        pinned: None,
        source: Some(RegistryImage {
            registry: RegistryId(REGISTRY.to_owned()),
            repository: repository.path().clone(),
            reference: reference.clone(),
        }),
        destinations: Vec::new(),
    }
}

/// From the cache to the registry.
fn push_job(cached: ImageName, repository: &RepositoryPath, reference: &Reference) -> ImageJob {
    ImageJob {
        cached,
        pinned: None,
        source: None,
        destinations: vec![Destination {
            name: "default".to_owned(),
            registry: RegistryId(REGISTRY.to_owned()),
            repository: repository.clone(),
            reference: TargetReference::Known(reference.clone()),
        }],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_is_cached_under_the_name_as_given() {
        let repository = "registry.example/team/app".parse().unwrap();
        let job = pull_job(&repository, &"1".parse().unwrap());
        assert_eq!(job.cached.to_string(), "registry.example/team/app:1");
        assert_eq!(job.source.unwrap().repository.as_str(), "team/app");
    }

    #[test]
    fn a_push_needs_no_source() {
        let cached = "registry.example/team/app:1".parse().unwrap();
        let job = push_job(
            cached,
            &"mirror/app".parse().unwrap(),
            &"1".parse().unwrap(),
        );
        assert!(job.source.is_none());
        assert_eq!(job.destinations.len(), 1);
    }
}
