//! Blobs by their digest: are they here, and who fetches them.
//!
//! A blob that has its name was verified before it got it. What can happen to it later (cut, replaced by a symlink) is
//! caught where it is cheap: only regular files of the right size count.

use std::{fs::File, path::Path, sync::Arc};

use crate::{image::Descriptor, output::ByteSize};

use super::{
    Cache,
    disk::{FreeSpace, blocking, open_regular},
    error::{Error, Result},
    lock::LockName,
    writer::BlobWriter,
};

/// What became of the wish to have a blob.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one value per blob, handed over once"
)]
pub enum Claim {
    /// It is in the cache.
    Present,
    /// It is not, and nobody else fetches it: the caller does, now.
    Fetch(BlobWriter),
}

/// Opens a blob; none if there is no regular file of this size.
pub(super) fn open_complete(path: &Path, size: u64) -> Result<Option<File>> {
    Ok(open_regular(path)?.and_then(|(file, metadata)| (metadata.len() == size).then_some(file)))
}

impl Cache {
    /// Whether the blob is in the cache.
    pub async fn has_blob(&self, descriptor: &Descriptor) -> Result<bool> {
        Ok(self.open_blob(descriptor).await?.is_some())
    }

    /// Opens a blob for reading. A file of another size, or one that is not regular, counts as absent.
    pub async fn open_blob(&self, descriptor: &Descriptor) -> Result<Option<File>> {
        let path = self.shared.layout.blob(&descriptor.digest);
        let size = descriptor.size;
        blocking(move || open_complete(&path, size)).await
    }

    /// Makes sure that a blob is fetched once: waits while another task or process fetches it, then finds it present. If
    /// the other one fails, the caller gets its turn.
    pub async fn claim_blob(&self, descriptor: &Descriptor) -> Result<Claim> {
        if self.has_blob(descriptor).await? {
            return Ok(Claim::Present);
        }
        let store = self.use_shared().await?;
        let name = LockName::Blob(&descriptor.digest);
        let lock = self.shared.locks.exclusive(name, &self.output).await?;
        let (shared, output) = (Arc::clone(&self.shared), self.output.clone());
        let descriptor = descriptor.clone();
        blocking(move || {
            let path = shared.layout.blob(&descriptor.digest);
            if let Some((_, metadata)) = open_regular(&path)? {
                if metadata.len() == descriptor.size {
                    return Ok(Claim::Present);
                }
                output.warning(format!(
                    "the cached blob {} has {} instead of {}: it is fetched again",
                    descriptor.digest,
                    ByteSize(metadata.len()),
                    ByteSize(descriptor.size)
                ));
            }
            // Better now than after the download of half a layer.
            let partial = shared.layout.partial(&descriptor.digest);
            let free = FreeSpace::of(&partial);
            if matches!(free, FreeSpace::Bytes(bytes) | FreeSpace::NoInodes(bytes) if bytes < descriptor.size)
            {
                return Err(Error::CacheFull {
                    operation: "write",
                    path: partial,
                    needed: descriptor.size,
                    free,
                });
            }
            shared.barrier.prepare(&shared.layout)?;
            BlobWriter::create(descriptor, shared, lock, store).map(Claim::Fetch)
        })
        .await
    }
}
