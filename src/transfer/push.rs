//! From the cache to a registry: blobs first, then the manifests from the bottom up, the tag last, so that a registry never
//! shows an image whose parts are missing (registry rule M7).

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};

use crate::{
    image::{Descriptor, Digest, ImageName, RawManifest, Reference},
    output::Direction,
    registry::{BlobSource, BlobUpload, RegistryClient},
};

use super::{Error, ExistingBlobs, RegistryImage, Result, Run, tree::ImageTree};

/// An image in the cache and one place it is to go to.
pub(super) struct Push<'a> {
    pub(super) run: &'a Run,
    pub(super) client: &'a RegistryClient,
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
    /// Whether the destination has exactly this image under the reference. With [`ExistingBlobs::Upload`] the answer is no
    /// without asking.
    pub(super) async fn is_up_to_date(&self, digest: &Digest) -> Result<bool> {
        if self.run.options.existing_blobs == ExistingBlobs::Upload {
            return Ok(false);
        }
        let RegistryImage {
            registry: _,
            repository,
            reference,
        } = &self.target;
        let there = self
            .client
            .head_manifest(repository, reference)
            .await
            .map_err(|source| self.push_error(source))?;
        Ok(there.as_ref() == Some(digest))
    }

    /// Copies the image from the cache to the registry. Both push modes and every destination of a mirror come here.
    pub(super) async fn push_from_cache(&self, tree: &ImageTree) -> Result<()> {
        let layers = tree.layers.iter().map(|blob| (blob, Question::First));
        let configs = tree.configs.iter().map(|blob| (blob, Question::None));
        // A list of futures: see the note in pull.rs.
        let sends: Vec<_> = layers
            .chain(configs)
            .map(|(blob, question)| self.send_blob(blob, question))
            .collect();
        stream::iter(sends)
            .buffer_unordered(usize::MAX)
            .try_collect::<()>()
            .await?;
        for child in &tree.children {
            self.send_manifest(&Reference::Digest(child.digest().clone()), child)
                .await?;
        }
        self.send_manifest(&self.target.reference, &tree.root).await
    }

    /// Tells that every blob of the image is there, where nothing had to be asked blob by blob.
    pub(super) fn count_existing(&self, tree: &ImageTree) {
        tree.plan(1, &self.run.output);
        for blob in tree.blobs() {
            self.run.output.existing(&blob.digest, blob.size);
        }
    }

    async fn send_manifest(&self, reference: &Reference, manifest: &RawManifest) -> Result<()> {
        let sent = self
            .client
            .upload_manifest_with_token(&self.target.repository, reference, manifest, None)
            .await;
        sent.map_err(|source| self.push_error(source))
    }

    /// Sends one blob, unless this run or somebody before put it there.
    async fn send_blob(&self, blob: &Descriptor, question: Question) -> Result<()> {
        let Run {
            cache,
            output,
            uploads,
            sent,
            slots,
            options,
            ..
        } = self.run;
        let key = (
            self.target.registry.clone(),
            self.target.repository.clone(),
            blob.digest.clone(),
        );
        let _only_one = uploads.lock(&key).await;
        let asks = question == Question::First && options.existing_blobs == ExistingBlobs::Skip;
        if sent.lock().contains(&key) || (asks && self.has_blob(blob).await?) {
            output.existing(&blob.digest, blob.size);
            sent.lock().insert(key);
            return Ok(());
        }
        let _slot = slots.acquire().await;
        let file = cache
            .open_blob(blob)
            .await
            .map_err(|source| self.cache_error(source))?;
        let file = file.ok_or_else(|| self.incomplete(&blob.digest))?;
        let source = BlobSource::of_file(Arc::new(file), blob.size);
        let transfer = output.transfer(Direction::Upload, &blob.digest, blob.size);
        let upload = BlobUpload {
            repository: &self.target.repository,
            descriptor: blob,
            source: &source,
            progress: &transfer,
            mount_from: None,
            notes: None,
        };
        let uploaded = self.client.upload_blob_with_token(&upload, None).await;
        uploaded.map_err(|source| self.push_error(source))?;
        transfer.complete();
        sent.lock().insert(key);
        Ok(())
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

    fn incomplete(&self, digest: &Digest) -> Error {
        Error::CachedImageIncomplete {
            image: self.cached.clone(),
            digest: digest.clone(),
        }
    }

    fn push_error(&self, source: crate::registry::Error) -> Error {
        Error::Push {
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
