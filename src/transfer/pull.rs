//! From a registry into the cache: look up, fetch the manifests, then all blobs, then let the image be seen.

use futures::{FutureExt, TryStreamExt, stream::FuturesUnordered};

use crate::{
    cache::{BlobWriter, Claim, Lease, StoredImage},
    error::{Class, Classified, handlers},
    image::{Descriptor, Digest, ImageName, RawManifest, Reference},
    output::{ByteSize, Direction},
    registry::{self, BlobDownload, FoundManifest, RegistryClient},
};

use super::{
    BLOBS_AT_ONCE, Error, RegistryImage, Result, Run,
    arrival::{Announcer, Stage},
    download::{self, Download},
    tree::ImageTree,
};

/// An image at its source, and the name under which it is cached.
pub(super) struct Pull<'a> {
    pub(super) run: &'a Run,
    pub(super) client: &'a RegistryClient,
    pub(super) source: &'a RegistryImage,
    pub(super) cached: &'a ImageName,
}

/// How a blob is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    /// What is missing of it.
    First,
    /// From its first byte, because something was wrong with those that came.
    Anew,
    /// The same, unpacked.
    Decoded,
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

    /// The image with everything below it. `found` is what a look-up found, if there was one.
    pub(super) async fn tree(&self, found: Option<FoundManifest>) -> Result<ImageTree> {
        let root = self.root_manifest(found).await?;
        let tree = ImageTree::collect(self.cached, root, |child| self.child_manifest(child.digest))
            .await?;
        self.tell_of_gaps(&tree);
        Ok(tree)
    }

    /// Brings the blobs of an image into the cache and lets the image be seen there. Each blob is announced as it comes, in the
    /// order of [`ImageTree::blobs`]. Tells whether anything was fetched.
    pub(super) async fn keep(
        &self,
        tree: &ImageTree,
        announcers: Vec<Announcer>,
        lease: &Lease,
    ) -> Result<bool> {
        // Largest first, many at once: the run's lanes decide how many travel.
        // Lists of futures, not a stream that makes them: a closure over borrows inside one is not `Send` to the compiler
        // (rust-lang/rust#102211), and the operator's runs move between threads. And not one list of all: a hostile image
        // has some hundred thousand blobs.
        let mut fetched = 0_u64;
        let mut blobs = tree.blobs().zip(announcers);
        loop {
            let crowd = blobs.by_ref().take(BLOBS_AT_ONCE);
            let downloads: FuturesUnordered<_> = crowd
                .map(|(blob, announcer)| self.fetch_blob(blob, announcer, lease))
                .collect();
            if downloads.is_empty() {
                break;
            }
            fetched += downloads
                .try_fold(0_u64, |count, fetched| async move {
                    Ok(count + u64::from(fetched))
                })
                .await?;
        }
        let known = self.is_cached(tree).await?;
        if !known || fetched > 0 {
            self.store(tree).await?;
        } else {
            let ImageName {
                repository,
                reference,
            } = self.cached;
            let touched = self.run.cache.touch(repository, reference).await;
            touched.map_err(|source| self.cache_error(source))?;
        }
        Ok(!known || fetched > 0)
    }

    /// Whether the cached name already stands for this image, from this registry, with the same gaps.
    async fn is_cached(&self, tree: &ImageTree) -> Result<bool> {
        let ImageName {
            repository,
            reference,
        } = self.cached;
        let cache = &self.run.cache;
        let origin = cache.origin(repository, reference).await;
        let same_origin = origin.is_some_and(|origin| origin == self.client.address());
        // One that was on its way to other places may have to stay from now on.
        if !cache.keeps(repository, reference).await {
            return Ok(false);
        }
        let same_gaps = cache.missing(repository, reference).await == digests(&tree.missing);
        let cached = self.cached_manifest(reference).await?;
        let same_root = cached.is_some_and(|manifest| manifest.has_digest(tree.root.digest()));
        if !(same_origin && same_gaps && same_root) {
            return Ok(false);
        }
        // One that was lost, or that `verify` moved away, came from the source this time.
        for child in &tree.children {
            let reference = Reference::Digest(child.digest().clone());
            if self.cached_manifest(&reference).await?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn store(&self, tree: &ImageTree) -> Result<()> {
        let image = StoredImage {
            repository: self.cached.repository.clone(),
            reference: self.cached.reference.clone(),
            registry: self.client.address().to_owned(),
            root: tree.root.clone(),
            children: tree.children.clone(),
            missing: digests(&tree.missing),
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
            (Some(found), Some(manifest)) if manifest.has_digest(found.digest()) => Ok(manifest),
            (Some(FoundManifest::Digest(digest)), _) => self.found_manifest(digest).await,
            (Some(FoundManifest::Manifest(manifest)), _) => Ok(manifest),
            (None, _) => self.get_manifest(&self.source.reference).await,
        }
    }

    /// The manifest that a HEAD named. Where there is none, the header was wrong, or the tag has moved on meanwhile: the tag
    /// itself has the last word (registry rule G2).
    async fn found_manifest(&self, digest: Digest) -> Result<RawManifest> {
        let found = self.child_manifest(digest.clone()).await?;
        match (found, &self.source.reference) {
            (Some(manifest), _) => Ok(manifest),
            (None, tag @ Reference::Tag(_)) => self.get_manifest(tag).await,
            (None, Reference::Digest(_)) => self.get_manifest(&Reference::Digest(digest)).await,
        }
    }

    /// A manifest that an index names; nothing when the source does not have it: others are not to suffer from one platform
    /// that was deleted (registry rule M10).
    async fn child_manifest(&self, digest: Digest) -> Result<Option<RawManifest>> {
        match self.manifest_by_digest(digest).await {
            Ok(manifest) => Ok(Some(manifest)),
            Err(Error::Pull {
                source: registry::Error::ManifestUnknown { .. },
                ..
            }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Says what of the image does not travel.
    fn tell_of_gaps(&self, tree: &ImageTree) {
        let output = &self.run.output;
        if !tree.missing.is_empty() {
            output.warning(format!(
                "the source of {} does not have all that its index names: it is copied without {}",
                self.image(),
                tree.missing_names()
            ));
        }
    }

    /// Says which layers do not travel to registries.
    pub(super) fn tell_of_foreign_layers(&self, tree: &ImageTree) {
        if !tree.foreign.is_empty() {
            self.run.output.info(format!(
                "{} layers of {} stay with their publisher, from where clients fetch them",
                tree.foreign.len(),
                self.image()
            ));
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
    async fn fetch_blob(
        &self,
        blob: &Descriptor,
        announcer: Announcer,
        lease: &Lease,
    ) -> Result<bool> {
        let Run {
            cache,
            output,
            downloads,
            roads,
            known,
            ..
        } = self.run;
        let _only_one = downloads.lock(&blob.digest).await;
        let is_here = cache.has_blob(blob).await;
        let is_here = is_here.map_err(|source| self.cache_error(source))?;
        let travelled = if is_here || self.take_from_others(blob).await? {
            output.existing(&blob.digest, blob.size);
            lease.has_arrived(blob);
            false
        } else {
            let _slot = roads.source.lanes.slot(blob.size).await;
            self.fetch_verified(blob, &announcer, lease).await?
        };
        if travelled {
            known.note(self.client.address(), &self.source.repository, &blob.digest);
        }
        announcer.announce(Stage::Here);
        Ok(travelled)
    }

    /// Takes a blob over that another tenant fetched from the same place, if the registry lets this one have it, too (archive
    /// reference 5.7). Whatever it says but yes, the download will give the error.
    async fn take_from_others(&self, blob: &Descriptor) -> Result<bool> {
        let Some(origin) = self.origin(blob) else {
            return Ok(false);
        };
        let cache = &self.run.cache;
        let failed = |source| self.cache_error(source);
        if !cache.is_with_others(&origin, blob).await.map_err(failed)? {
            return Ok(false);
        }
        let has_blob = self.client.has_blob(&self.source.repository, blob).await;
        if !matches!(has_blob, Ok(true)) {
            return Ok(false);
        }
        cache.take_from_others(&origin, blob).await.map_err(failed)
    }

    /// Where a blob comes from, if others may rely on it. Layers with addresses of their own come from elsewhere.
    fn origin(&self, blob: &Descriptor) -> Option<String> {
        let origin = self.client.origin(&self.source.repository);
        origin.filter(|_| blob.urls.is_empty())
    }

    /// Fetches a blob, and once more where its bytes were wrong: a proxy may have mangled them, or packed them (registry rule
    /// D2).
    async fn fetch_verified(
        &self,
        blob: &Descriptor,
        announcer: &Announcer,
        lease: &Lease,
    ) -> Result<bool> {
        let source = self.client.blob_download(&self.source.repository, blob);
        let claim = (announcer, lease);
        let attempt = self.claim_and_download(blob, &source, claim, Attempt::First);
        let error = match attempt.await {
            Err(error) if error.class() == Class::Digest => error,
            outcome => return outcome,
        };
        let second = if source.is_encoded() {
            Attempt::Decoded
        } else if matches!(error, Error::Cache { .. }) {
            Attempt::Anew
        } else {
            // Bytes of the wrong number were fetched twice already.
            return Err(error);
        };
        self.run.output.warning(format!(
            "{}; fetching it once more",
            handlers::message(&error)
        ));
        self.claim_and_download(blob, &source, claim, second).await
    }

    /// Fetches a blob, unless another process was faster; tells whether it travelled.
    async fn claim_and_download(
        &self,
        blob: &Descriptor,
        source: &BlobDownload,
        (announcer, lease): (&Announcer, &Lease),
        attempt: Attempt,
    ) -> Result<bool> {
        let claim = self.run.cache.claim_blob(blob).await;
        let claim = claim.map_err(|source| self.cache_error(source))?;
        lease.has_arrived(blob);
        match claim {
            Claim::Present => {
                self.run.output.existing(&blob.digest, blob.size);
                Ok(false)
            }
            Claim::Fetch(mut writer) => {
                if attempt != Attempt::First {
                    let restarted = writer.restart().await;
                    restarted.map_err(|source| self.cache_error(source))?;
                }
                if announcer.is_awaited() {
                    announcer.announce(Stage::Arriving(writer.reader()));
                }
                self.download(blob, source, writer, attempt).await?;
                Ok(true)
            }
        }
    }

    /// Brings what is missing of a blob until it is whole or the retries are used up.
    async fn download(
        &self,
        blob: &Descriptor,
        source: &BlobDownload,
        writer: BlobWriter,
        attempt: Attempt,
    ) -> Result<()> {
        let output = &self.run.output;
        let transfer = output.transfer(Direction::Download, &blob.digest, blob.size);
        if writer.kept() > 0 {
            output.info(format!(
                "blob {} goes on after {} of {}",
                blob.digest,
                ByteSize(writer.kept()),
                ByteSize(blob.size)
            ));
            transfer.kept(writer.kept());
        }
        let download = Download::new(
            source.clone(),
            &writer,
            &transfer,
            &self.run.roads.source.bandwidth,
            output,
            self.client.retry(),
            format!("GET blob {} of {}", blob.digest, self.image()),
        );
        // Boxed: the state of everything nested would else be one value of many kilobytes for each blob.
        let fetched = match attempt {
            Attempt::First | Attempt::Anew => download.run().boxed(),
            Attempt::Decoded => download.run_decoded().boxed(),
        };
        fetched.await.map_err(|failure| match failure {
            download::Failure::Registry(source) => self.pull_error(source),
            download::Failure::Cache(source) => self.cache_error(source),
        })?;
        drop(download);
        // Bytes that were here already may have come another way.
        let is_all_from_there = writer.kept() == 0;
        let finished = writer.finish().await;
        finished.map_err(|source| self.cache_error(source))?;
        if let Some(origin) = self.origin(blob).filter(|_| is_all_from_there) {
            self.run.cache.note_origin(&origin, blob).await;
        }
        transfer.complete();
        Ok(())
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

fn digests(descriptors: &[Descriptor]) -> Vec<Digest> {
    descriptors
        .iter()
        .map(|descriptor| descriptor.digest.clone())
        .collect()
}
