//! From a registry into the cache: look up, fetch the manifests, then all blobs, then let the image be seen.

use futures::{StreamExt, TryStreamExt, stream};

use crate::{
    cache::{BlobWriter, Claim, StoredImage},
    error::{Class, Classified, handlers},
    image::{Descriptor, Digest, ImageName, RawManifest, Reference},
    output::{Direction, Transfer},
    registry::{FoundManifest, RegistryClient},
};

use super::{Error, RegistryImage, Result, Run, tree::ImageTree};

/// An image at its source, and the name under which it is cached.
pub(super) struct Pull<'a> {
    pub(super) run: &'a Run,
    pub(super) client: &'a RegistryClient,
    pub(super) source: &'a RegistryImage,
    pub(super) cached: &'a ImageName,
}

impl Pull<'_> {
    /// The digest the source has now under the reference; of a digest, the digest itself, without asking.
    pub(super) async fn look_up(&self) -> Result<FoundManifest> {
        if let Reference::Digest(digest) = &self.source.reference {
            return Ok(FoundManifest::Digest(digest.clone()));
        }
        let RegistryImage {
            registry: _,
            repository,
            reference,
        } = self.source;
        match self
            .client
            .find_manifest(repository, reference)
            .await
            .map_err(|source| self.pull_error(source))?
        {
            Some(found) => Ok(found),
            // A HEAD answer has no body: the GET gives the registry's own words.
            None => self
                .get_manifest(reference)
                .await
                .map(FoundManifest::Manifest),
        }
    }

    /// Brings the whole image into the cache. `found` is what a look-up found, if there was one; `uploads` is how often the
    /// image will travel on from there. The second value tells whether anything was fetched.
    pub(super) async fn fetch(
        &self,
        found: Option<FoundManifest>,
        uploads: u64,
    ) -> Result<(ImageTree, bool)> {
        let root = self.root_manifest(found).await?;
        let tree =
            ImageTree::collect(self.cached, root, |digest| self.manifest_by_digest(digest)).await?;
        tree.plan(1 + uploads, &self.run.output);
        // Largest first, all at once: the run's slots decide how many travel.
        // A list of futures, not a stream that makes them: a closure over borrows inside one is not `Send` to the compiler
        // (rust-lang/rust#102211), and the operator's runs move between threads.
        let downloads: Vec<_> = tree.blobs().map(|blob| self.fetch_blob(blob)).collect();
        let fetched = stream::iter(downloads)
            .buffer_unordered(usize::MAX)
            .try_fold(0_u64, |count, fetched| async move {
                Ok(count + u64::from(fetched))
            })
            .await?;
        let known = self.is_cached_as(tree.root.digest()).await?;
        if !known || fetched > 0 {
            self.store(&tree).await?;
        }
        Ok((tree, !known || fetched > 0))
    }

    /// Whether the cached name already stands for this digest, from this registry.
    async fn is_cached_as(&self, digest: &Digest) -> Result<bool> {
        let ImageName {
            repository,
            reference,
        } = self.cached;
        let origin = self.run.cache.origin(repository, reference).await;
        let same_origin = origin.is_some_and(|origin| origin == self.client.address());
        let cached = self.cached_manifest(reference).await?;
        Ok(same_origin && cached.is_some_and(|manifest| manifest.digest() == digest))
    }

    async fn store(&self, tree: &ImageTree) -> Result<()> {
        let image = StoredImage {
            repository: self.cached.repository.clone(),
            reference: self.cached.reference.clone(),
            registry: self.client.address().to_owned(),
            root: tree.root.clone(),
            children: tree.children.clone(),
            pinned: false,
        };
        self.run
            .cache
            .store_image(image)
            .await
            .map_err(|source| self.cache_error(source))
    }

    /// The manifest the reference names: from the cache where the digest is known and there, else from the registry, once.
    async fn root_manifest(&self, found: Option<FoundManifest>) -> Result<RawManifest> {
        let cached = self.cached_manifest(&self.cached.reference).await?;
        let found = match found {
            Some(found) => Some(found),
            None if cached.is_some() => Some(self.look_up().await?),
            // Nothing to compare with: the GET answers what the HEAD would.
            None => {
                let digest = self.source.reference.digest();
                digest.cloned().map(FoundManifest::Digest)
            }
        };
        match (found, cached) {
            (Some(found), Some(manifest)) if manifest.digest() == found.digest() => Ok(manifest),
            (Some(FoundManifest::Digest(digest)), _) => self.manifest_by_digest(digest).await,
            (Some(FoundManifest::Manifest(manifest)), _) => Ok(manifest),
            (None, _) => self.get_manifest(&self.source.reference).await,
        }
    }

    async fn manifest_by_digest(&self, digest: Digest) -> Result<RawManifest> {
        let reference = Reference::Digest(digest);
        match self.cached_manifest(&reference).await? {
            Some(manifest) => Ok(manifest),
            None => self.get_manifest(&reference).await,
        }
    }

    /// Brings one blob into the cache, unless it is there; tells whether it travelled.
    async fn fetch_blob(&self, blob: &Descriptor) -> Result<bool> {
        let Run {
            cache,
            output,
            downloads,
            slots,
            ..
        } = self.run;
        let _only_one = downloads.lock(&blob.digest).await;
        if cache
            .has_blob(blob)
            .await
            .map_err(|source| self.cache_error(source))?
        {
            output.existing(&blob.digest, blob.size);
            return Ok(false);
        }
        let _slot = slots.acquire().await;
        match self.claim_and_download(blob).await {
            // A proxy may have mangled the bytes. Bytes of the wrong number were fetched twice already, by the retries below.
            Err(error @ Error::Cache { .. }) if error.class() == Class::Digest => {
                output.warning(format!(
                    "{}; fetching it once more",
                    handlers::message(&error)
                ));
                self.claim_and_download(blob).await
            }
            outcome => outcome,
        }
    }

    /// Fetches a blob, unless another process was faster; tells whether it travelled.
    async fn claim_and_download(&self, blob: &Descriptor) -> Result<bool> {
        let claim = self.run.cache.claim_blob(blob).await;
        match claim.map_err(|source| self.cache_error(source))? {
            Claim::Present => {
                self.run.output.existing(&blob.digest, blob.size);
                Ok(false)
            }
            Claim::Fetch(writer) => self.download(blob, writer).await.map(|()| true),
        }
    }

    /// Streams a blob into the cache until it is whole or the retries are used up.
    async fn download(&self, blob: &Descriptor, mut writer: BlobWriter) -> Result<()> {
        let output = &self.run.output;
        let transfer = output.transfer(Direction::Download, &blob.digest, blob.size);
        let mut retry = self.client.retry();
        while !writer.missing().is_empty() {
            let Err(error) = self.stream_once(blob, &writer, &transfer).await? else {
                break;
            };
            let Some(pause) = retry.next(&error) else {
                return Err(self.pull_error(error));
            };
            let operation = format!("GET blob {} of {}", blob.digest, self.image());
            output.retrying(&operation, &handlers::message(&error), pause);
            tokio::time::sleep(pause).await;
            writer
                .restart()
                .await
                .map_err(|source| self.cache_error(source))?;
            transfer.restart();
        }
        writer
            .finish()
            .await
            .map_err(|source| self.cache_error(source))?;
        transfer.complete();
        Ok(())
    }

    /// One attempt. The outer error is ours and final, the inner one the registry's and perhaps worth another attempt.
    async fn stream_once(
        &self,
        blob: &Descriptor,
        writer: &BlobWriter,
        transfer: &Transfer,
    ) -> Result<std::result::Result<(), crate::registry::Error>> {
        let mut body = match self.client.get_blob(&self.source.repository, blob).await {
            Ok(body) => body,
            // Asking was retried inside; to ask again here would multiply the attempts.
            Err(error) => return Err(self.pull_error(error)),
        };
        let mut offset = 0;
        loop {
            match body.next().await {
                Ok(Some(bytes)) => {
                    let length = bytes.len() as u64;
                    writer
                        .write_at(offset, bytes)
                        .await
                        .map_err(|source| self.cache_error(source))?;
                    offset += length;
                    transfer.advance(length);
                }
                Ok(None) => return Ok(Ok(())),
                Err(error) => return Ok(Err(error)),
            }
        }
    }

    async fn cached_manifest(&self, reference: &Reference) -> Result<Option<RawManifest>> {
        let manifest = self
            .run
            .cache
            .manifest(&self.cached.repository, reference)
            .await;
        manifest.map_err(|source| self.cache_error(source))
    }

    async fn get_manifest(&self, reference: &Reference) -> Result<RawManifest> {
        let manifest = self
            .client
            .get_manifest(&self.source.repository, reference)
            .await;
        manifest.map_err(|source| self.pull_error(source))
    }

    /// The image's full name at its source.
    pub(super) fn image(&self) -> String {
        self.source.full_name(self.client.endpoint().host())
    }

    fn pull_error(&self, source: crate::registry::Error) -> Error {
        Error::Pull {
            image: self.image(),
            source,
        }
    }

    fn cache_error(&self, source: crate::cache::Error) -> Error {
        Error::Cache {
            image: self.cached.clone(),
            source,
        }
    }
}
