//! From the cache to a registry: blobs first, then the manifests from the bottom up, the tag last, so that a registry never
//! shows an image whose parts are missing (registry rule M7).

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures::{FutureExt, TryStreamExt, stream::FuturesUnordered};

use crate::{
    error::handlers,
    image::{Descriptor, Digest, ImageName, Manifest, RawManifest, Reference, RepositoryPath},
    output::Direction,
    registry::{self, BlobSource, BlobUpload, RegistryClient, Uploaded},
};

use super::{
    BLOBS_AT_ONCE, Error, ExistingBlobs, RegistryImage, Result, Run,
    arrival::{Arrival, Stage},
    incoming::{Incoming, Notes},
    tree::ImageTree,
};

/// Pauses before a manifest is written again whose blobs the registry says it does not have: some see them a little later.
const RESEND_PAUSES: [Duration; 3] = [
    Duration::from_millis(250),
    Duration::from_secs(1),
    Duration::from_secs(4),
];

/// A blob of this size is here before an upload of it could begin: following it would only hold a connection.
const TOO_SMALL_TO_FOLLOW: u64 = 256 * 1024;

/// An image in the cache and one place it is to go to.
pub(super) struct Push<'a> {
    pub(super) run: &'a Run,
    pub(super) client: &'a RegistryClient,
    /// The image's repository at its source, where that is the same registry: what is there can be mounted.
    pub(super) origin: Option<&'a RepositoryPath>,
    pub(super) target: RegistryImage,
    pub(super) cached: &'a ImageName,
}

/// What the destination needs from us: a blob may be known to be missing without a question.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Question {
    /// Ask whether it is there.
    First,
    /// Send it: small, and almost never there when its manifest is not (registry rule U10).
    None,
}

impl Push<'_> {
    /// The digest that the destination has under the reference. With [`ExistingBlobs::Upload`] the answer is none without
    /// asking.
    pub(super) async fn digest_there(&self) -> Result<Option<Digest>> {
        if self.run.options.existing_blobs == ExistingBlobs::Upload {
            return Ok(None);
        }
        let RegistryImage {
            registry: _,
            repository,
            reference,
        } = &self.target;
        self.client
            .head_manifest(repository, reference)
            .await
            .map_err(|source| self.push_error(source))
    }

    /// Copies the image to the registry: from the cache, or while it comes there. Both push modes and every destination of a
    /// mirror come here. `arrivals` has one entry per blob, in the order of [`ImageTree::blobs`].
    pub(super) async fn push_from_cache(
        &self,
        tree: &ImageTree,
        arrivals: &[Arrival],
    ) -> Result<(), NotSent> {
        // Lists of futures: see the note in pull.rs.
        let mut blobs = self.questions(tree).zip(arrivals);
        loop {
            let crowd = blobs.by_ref().take(BLOBS_AT_ONCE);
            let sends: FuturesUnordered<_> = crowd
                .map(|((blob, question), arrival)| self.send_blob(blob, question, arrival))
                .collect();
            if sends.is_empty() {
                break;
            }
            sends.try_collect::<()>().await?;
        }
        for child in &tree.children {
            self.send_manifest(&Reference::Digest(child.digest().clone()), child, tree)
                .await?;
        }
        self.send_manifest(&self.target.reference, &tree.root, tree)
            .await
    }

    /// The blobs in the order of [`ImageTree::blobs`]. A configuration is small, and almost never there when its manifest is
    /// not: it is sent without a question (registry rule U10).
    fn questions<'t>(
        &self,
        tree: &'t ImageTree,
    ) -> impl Iterator<Item = (&'t Descriptor, Question)> + use<'t> {
        let of_layers = match self.run.options.existing_blobs {
            ExistingBlobs::Skip => Question::First,
            ExistingBlobs::Upload => Question::None,
        };
        let layers = tree.layers.iter().map(move |layer| (layer, of_layers));
        layers.chain(tree.configs.iter().map(|config| (config, Question::None)))
    }

    /// Tells that every blob of the image is there, where nothing had to be asked blob by blob.
    pub(super) fn count_existing(&self, tree: &ImageTree) {
        tree.plan(1, &self.run.output);
        for blob in tree.blobs() {
            self.run.output.existing(&blob.digest, blob.size);
        }
    }

    /// Writes a manifest. A registry that lost blobs meanwhile, or does not see them yet, gets them once more (registry rule
    /// M9).
    async fn send_manifest(
        &self,
        reference: &Reference,
        manifest: &RawManifest,
        tree: &ImageTree,
    ) -> Result<(), NotSent> {
        let mut pauses = RESEND_PAUSES.into_iter();
        loop {
            let Err(refusal) = self.write_manifest(reference, manifest).await else {
                return Ok(());
            };
            let error = tree.refused(self.image(), refusal);
            let Some((missing, pause)) = missing_blobs(&error).zip(pauses.next()) else {
                return Err(error.into());
            };
            let operation = format!("write the manifest of {}", self.image());
            let output = &self.run.output;
            output.retrying(&operation, &handlers::message(&error), pause);
            tokio::time::sleep(pause).await;
            self.mend(manifest, missing, tree).await?;
        }
    }

    async fn write_manifest(
        &self,
        reference: &Reference,
        manifest: &RawManifest,
    ) -> registry::Result<()> {
        self.client
            .upload_manifest_with_token(&self.target.repository, reference, manifest, None)
            .await
    }

    /// Sends again what a manifest refers to and the registry does not have; without names, all of it that is not there.
    async fn mend(
        &self,
        manifest: &RawManifest,
        missing: &[Digest],
        tree: &ImageTree,
    ) -> Result<(), NotSent> {
        let parts = self.parts_of(manifest)?;
        let is_wanted = |digest: &Digest| {
            parts.contains(digest) && (missing.is_empty() || missing.contains(digest))
        };
        for blob in tree.blobs().filter(|blob| is_wanted(&blob.digest)) {
            let (address, repository) = (self.client.address(), &self.target.repository);
            self.run.known.forget(address, repository, &blob.digest);
            self.send_blob(blob, Question::First, &Arrival::here())
                .await?;
        }
        for child in tree
            .children
            .iter()
            .filter(|child| is_wanted(child.digest()))
        {
            let reference = Reference::Digest(child.digest().clone());
            let written = self.write_manifest(&reference, child).await;
            written.map_err(|source| self.push_error(source))?;
        }
        Ok(())
    }

    /// The digests that a manifest refers to.
    fn parts_of(&self, manifest: &RawManifest) -> Result<HashSet<Digest>> {
        let parsed = manifest.parse().map_err(|source| Error::Manifest {
            image: self.cached.clone(),
            source,
        })?;
        Ok(match parsed {
            Manifest::Image(image) => image.blobs().map(|blob| blob.digest.clone()).collect(),
            Manifest::Index(index) => {
                let children = index.manifests.into_iter();
                children.map(|child| child.digest).collect()
            }
        })
    }

    /// Sends one blob, unless this run or somebody before put it there.
    async fn send_blob(
        &self,
        blob: &Descriptor,
        question: Question,
        arrival: &Arrival,
    ) -> Result<(), NotSent> {
        let Run {
            output,
            uploads,
            known,
            ..
        } = self.run;
        let (address, repository) = (self.client.address(), &self.target.repository);
        let key = (address.to_owned(), repository.clone(), blob.digest.clone());
        let _only_one = uploads.lock(&key).await;
        let is_there = known.has(address, repository, &blob.digest)
            || (question == Question::First && self.has_blob(blob).await?);
        if is_there {
            output.existing(&blob.digest, blob.size);
        } else {
            self.upload(blob, arrival).await?;
        }
        known.note(address, repository, &blob.digest);
        Ok(())
    }

    /// Sends the bytes of a blob, which may still be coming.
    async fn upload(&self, blob: &Descriptor, arrival: &Arrival) -> Result<(), NotSent> {
        let Run {
            cache,
            output,
            roads,
            ..
        } = self.run;
        let (address, repository) = (self.client.address(), &self.target.repository);
        let elsewhere = self.elsewhere(blob);
        let road = roads.to(address);
        let mut arrival = arrival.clone();
        loop {
            // A blob that another repository has may need no bytes at all.
            let stage = match elsewhere {
                Some(_) => arrival.now(),
                None if blob.size <= TOO_SMALL_TO_FOLLOW => arrival.settled().await,
                None => arrival.readable().await,
            };
            if matches!(stage, Stage::Lost) {
                return Err(NotSent::Lost);
            }
            let outcome = {
                let _slot = road.lanes.slot(blob.size).await;
                let source = BlobSource::new(Arc::new(Incoming::new(cache, blob, &arrival, &road)));
                let transfer = output.transfer(Direction::Upload, &blob.digest, blob.size);
                let notes = Notes::new(cache, format!("{address} {repository} {}", blob.digest));
                let upload = BlobUpload {
                    repository,
                    descriptor: blob,
                    source: &source,
                    progress: &transfer,
                    mount_from: elsewhere.as_ref(),
                    notes: Some(&notes),
                };
                let sent = self
                    .client
                    .upload_blob_with_token(&upload, None)
                    .boxed()
                    .await;
                if sent.is_ok() {
                    transfer.complete();
                }
                sent
            };
            match outcome {
                Ok(Uploaded::Mounted) => {
                    output.detail(format!("blob {} was mounted", blob.digest));
                    return Ok(());
                }
                Ok(Uploaded::Sent | Uploaded::Resumed { .. }) => return Ok(()),
                // The bytes ended in the middle: their fetch broke off, or began anew because they were wrong.
                Err(registry::Error::SourceUnreadable { .. }) if !matches!(stage, Stage::Here) => {
                    if matches!(arrival.settled().await, Stage::Lost) {
                        return Err(NotSent::Lost);
                    }
                }
                Err(error) => return Err(self.push_error(error).into()),
            }
        }
    }

    /// Another repository of the registry that has the blob (registry rule U16).
    fn elsewhere(&self, blob: &Descriptor) -> Option<RepositoryPath> {
        // Whoever wants blobs to be sent anew suspects those that are there.
        if self.run.options.existing_blobs == ExistingBlobs::Upload {
            return None;
        }
        let repository = &self.target.repository;
        let origin = self.origin.filter(|origin| *origin != repository);
        let known = &self.run.known;
        let sent = known.elsewhere(self.client.address(), repository, &blob.digest);
        sent.or_else(|| origin.cloned())
    }

    async fn has_blob(&self, blob: &Descriptor) -> Result<bool> {
        self.client
            .has_blob(&self.target.repository, blob)
            .await
            .map_err(|source| self.push_error(source))
    }

    /// The image's full name at its destination.
    pub(super) fn image(&self) -> String {
        self.target.full_name(self.client.endpoint().host())
    }

    fn push_error(&self, source: crate::registry::Error) -> Error {
        Error::Push {
            image: self.image(),
            source,
        }
    }
}

/// The blobs that a registry says it does not have, if that is why it refuses a manifest.
fn missing_blobs(error: &Error) -> Option<&[Digest]> {
    match error {
        Error::Push {
            source: registry::Error::ManifestBlobUnknown { missing, .. },
            ..
        } => Some(missing),
        _ => None,
    }
}

/// Why a destination does not have an image.
#[derive(Debug)]
pub(super) enum NotSent {
    /// There was nothing to send: the fetch failed, and says why.
    Lost,
    /// The destination's part.
    Failed(Box<Error>),
}

impl From<Error> for NotSent {
    fn from(error: Error) -> Self {
        Self::Failed(Box::new(error))
    }
}
