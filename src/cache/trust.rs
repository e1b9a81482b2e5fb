//! Which files are blobs that may be used as they are.
//!
//! A blob is verified before it has its name, but a power loss can leave it shorter than it was, or full of zeros, for its
//! name is on the disk before its bytes (archive reference 5.3, step 6). So a blob stays writable for its owner until a
//! [barrier](super::barrier) has covered it, and one that another run left like that is read once before it is used. Neither
//! clocks nor boots are asked, and it does not matter which of several nodes lost its power.

use std::{
    fs::{File, Metadata, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use crate::{
    image::{Descriptor, Digest, Hasher},
    output::ByteSize,
};

use super::{Shared, disk::open_regular, error::Result, rehash::hash};

/// What lies where a blob belongs.
#[derive(Debug)]
pub(super) enum Found {
    /// The blob.
    Whole(File),
    /// A regular file with other bytes; the text goes on a sentence about it.
    Damaged(String),
    /// No regular file.
    Absent,
}

/// Opens a file of this size; none if it is another size or not regular. It need not be what its name says.
pub(super) fn open_sized(path: &Path, size: u64) -> Result<Option<File>> {
    Ok(open_regular(path)?.and_then(|(file, metadata)| (metadata.len() == size).then_some(file)))
}

/// Whether a barrier has covered the blob: it had its bytes on the disk before it became read-only.
fn is_covered(metadata: &Metadata) -> bool {
    metadata.permissions().mode() & 0o222 == 0
}

/// Notes in the file that a barrier has covered it. Who may not is not its owner, and reads it again in the next run.
pub(super) fn note_covered(path: &Path) {
    let noted = open_regular(path)
        .map(|found| found.map(|(file, _)| file.set_permissions(Permissions::from_mode(0o444))));
    if let Ok(Some(Err(error))) = noted {
        tracing::debug!(path = %path.display(), %error, "the blob stays writable");
    }
}

impl Shared {
    /// Opens a blob that may be used. Blocks, and reads the whole of it if no barrier is known to have covered it.
    pub(super) fn find_blob(&self, descriptor: &Descriptor) -> Result<Found> {
        let Descriptor { digest, size, .. } = descriptor;
        let path = self.layout.blob(digest);
        let Some((file, metadata)) = open_regular(&path)? else {
            return Ok(Found::Absent);
        };
        if metadata.len() != *size {
            let (actual, size) = (ByteSize(metadata.len()), ByteSize(*size));
            return Ok(Found::Damaged(format!("has {actual} instead of {size}")));
        }
        if is_covered(&metadata) || self.is_right(&file, digest, &path)? {
            return Ok(Found::Whole(file));
        }
        let text = "is not what its digest says, as after a power loss".to_owned();
        Ok(Found::Damaged(text))
    }

    /// Whether the blob may be used without being read.
    pub(super) fn trusts(&self, digest: &Digest, size: u64) -> Result<bool> {
        let found = open_regular(&self.layout.blob(digest))?;
        Ok(found.is_some_and(|(_, metadata)| {
            metadata.len() == size && (is_covered(&metadata) || self.barrier.is_noted(digest))
        }))
    }

    /// Whether the blob is there, and a barrier has covered it.
    pub(super) fn is_covered(&self, digest: &Digest, size: u64) -> Result<bool> {
        let found = open_regular(&self.layout.blob(digest))?;
        Ok(found.is_some_and(|(_, metadata)| metadata.len() == size && is_covered(&metadata)))
    }

    /// Whether a blob that no barrier has covered is what its name says. Read once in this process, and one at a time: many
    /// may ask for the same one.
    fn is_right(&self, file: &File, digest: &Digest, path: &Path) -> Result<bool> {
        if self.barrier.is_noted(digest) {
            return Ok(true);
        }
        let _turn = self.reading.lock();
        if self.barrier.is_noted(digest) {
            return Ok(true);
        }
        let mut hasher = Hasher::new(digest.algorithm());
        hash(file, path, &mut hasher, &mut |_| Ok(()))?;
        let is_right = hasher.finish() == *digest;
        if is_right {
            self.barrier.note(digest);
        }
        Ok(is_right)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::super::testing::{Fixture, blob, config, fixture, image, layer, put, stored};
    use super::*;
    use crate::cache::Claim;

    fn path(fixture: &Fixture, descriptor: &Descriptor) -> PathBuf {
        fixture.cache.shared.layout.blob(&descriptor.digest)
    }

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    /// What a power loss makes of a file whose space was reserved.
    fn zero(path: &Path) {
        let length = path.metadata().unwrap().len();
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(0).unwrap();
        file.set_len(length).unwrap();
    }

    #[tokio::test]
    async fn a_blob_that_a_power_loss_left_full_of_zeros_is_fetched_again() {
        let fixture = fixture();
        let descriptor = layer(b"layer");
        put(&fixture.cache, &descriptor, b"layer").await.unwrap();
        zero(&path(&fixture, &descriptor));
        let after = fixture.reopened();
        assert!(!after.has_blob(&descriptor).await.unwrap());
        assert!(after.read_blob(&descriptor).await.unwrap().is_none());
        put(&after, &descriptor, b"layer").await.unwrap();
        assert_eq!(fs::read(path(&fixture, &descriptor)).unwrap(), b"layer");
        let said = format!(
            "the cached blob {} is not what its digest says",
            descriptor.digest
        );
        assert_eq!(fixture.messages.count(&said), 1);
    }

    #[tokio::test]
    async fn a_blob_becomes_read_only_with_the_barrier_of_its_image() {
        let fixture = fixture();
        let config = config("x", "amd64");
        let root = image(&fixture.cache, &config, &[b"layer"]).await;
        let blobs = [layer(b"layer"), blob(&config, "application/json")];
        for descriptor in &blobs {
            assert_eq!(mode(&path(&fixture, descriptor)) & 0o200, 0o200);
        }
        fixture
            .cache
            .store_image(stored("app", "1", &root))
            .await
            .unwrap();
        for descriptor in &blobs {
            assert_eq!(mode(&path(&fixture, descriptor)), 0o444);
        }
    }

    #[tokio::test]
    async fn a_good_blob_without_a_barrier_is_used_and_covered_by_the_next_one() {
        let fixture = fixture();
        let config = config("x", "amd64");
        let root = image(&fixture.cache, &config, &[b"layer"]).await;
        // The process ends here without having stored the image.
        let after = fixture.reopened();
        let claim = after.claim_blob(&layer(b"layer")).await.unwrap();
        assert!(matches!(claim, Claim::Present));
        assert!(after.shared.barrier.is_needed());
        after.store_image(stored("app", "1", &root)).await.unwrap();
        assert_eq!(mode(&path(&fixture, &layer(b"layer"))), 0o444);
        assert!(!after.shared.barrier.is_needed());
        assert_eq!(fixture.messages.all(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_blob_that_a_barrier_has_covered_is_not_read() {
        let fixture = fixture();
        let root = image(&fixture.cache, &config("x", "amd64"), &[b"layer"]).await;
        fixture
            .cache
            .store_image(stored("app", "1", &root))
            .await
            .unwrap();
        let path = path(&fixture, &layer(b"layer"));
        // Only `verify` finds what breaks afterwards: reading gigabytes on each use would cost more than it gains.
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        zero(&path);
        fs::set_permissions(&path, Permissions::from_mode(0o444)).unwrap();
        assert!(fixture.reopened().has_blob(&layer(b"layer")).await.unwrap());
    }
}
