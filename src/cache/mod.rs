//! The cache: images on disk, in the published layout, shared by every run on the machine.
//!
//! This room owns one folder and everything in it. It knows no registry and no cluster; it must never serve bytes that
//! were not verified, and never name an image whose blobs are not there. Start with [`Cache`]; then `layout` for where
//! things lie, `writer` and `work` for how a blob gets in, `store` for how an image does, `verify`
//! for whether all is still right, `lease` for what must stay, and `clean` and `evict` for how it leaves.
//!
//! Opening a cache creates nothing and reads nothing: `list` and pushing from it work on a read-only volume. The folders
//! come with the first write.

mod arrival;
mod barrier;
mod blobs;
mod blocks;
mod clean;
#[cfg(test)]
mod damage;
mod disk;
mod entry;
mod error;
mod evict;
mod extractions;
#[cfg(test)]
mod faults;
mod folders;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod import;
mod index;
mod keep;
mod layout;
mod lease;
mod list;
mod lock;
mod manifests;
mod mark;
mod memory;
mod notes;
mod packed;
mod partial;
mod pieces;
#[cfg(test)]
mod pressure;
mod quarantine;
mod ranges;
mod reader;
mod rehash;
#[cfg(test)]
mod resumption;
mod room;
mod scrub;
mod store;
mod survey;
mod sweep;
mod tenants;
#[cfg(test)]
mod testing;
mod trust;
mod uploads;
mod verify;
mod work;
mod writer;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

use parking_lot::Mutex;

use crate::{
    image::{Digest, ImageName, RawManifest, Reference, Repository},
    output::OutputManager,
};

use barrier::Barrier;
use disk::{Temporary, blocking, make_folder};
use index::Index;
use layout::Layout;
use lock::Locks;
use manifests::{Stored, find_manifest, touch};
use room::Room;
use tenants::Origins;

pub use blobs::Claim;
pub use clean::{CleanReport, CleanRequest};
pub use disk::FreeSpace;
pub use entry::{CacheEntry, CachedBlob};
pub use error::{Error, Result};
pub use extractions::{ExtractedImage, FileIdentity, ManifestTree};
pub use import::{HashedBlob, Import, Spool, UnnamedBlob};
pub use keep::Keep;
pub use lease::Lease;
pub use list::ListedImage;
pub use lock::StoreGuard;
pub use memory::Memory;
pub use packed::PackedLayer;
pub use reader::BlobReader;
pub use room::CacheLimit;
pub use store::{ARCHIVE_ORIGIN, StoredImage};
pub use tenants::Tenants;
pub use uploads::UploadNote;
pub use verify::{
    BlobVerdict, Fault, Problem, VERIFY_REPORT_VERSION, VerifyProgress, VerifyReport, VerifyRequest,
};
pub use writer::{BlobWriter, Stretch};

/// A cache folder. Clones share their state; several processes may use one folder at a time.
#[derive(Debug, Clone)]
#[expect(clippy::struct_field_names, reason = "the published name of the field")]
pub struct Cache {
    cache_dir: PathBuf,
    index: Arc<Index>,
    shared: Arc<Shared>,
    memory: Memory,
    /// Why images are brought in.
    keep: Keep,
    output: OutputManager,
}

/// What the tasks of this process share besides the index.
#[derive(Debug)]
struct Shared {
    layout: Layout,
    locks: Locks,
    barrier: Barrier,
    room: Arc<Room>,
    /// The other caches on the volume, where there are some.
    tenants: Weak<Tenants>,
    origins: Origins,
    /// Held by whoever reads a blob to see whether it is right.
    reading: Mutex<()>,
}

impl Cache {
    /// The cache in this folder, which need not exist yet.
    ///
    /// # Errors
    /// When the path is relative and there is no current folder.
    pub fn open(cache_dir: impl Into<PathBuf>, output: OutputManager) -> Result<Self> {
        Self::open_in(cache_dir, output, |_| {})
    }

    /// The same, among others.
    fn open_in(
        cache_dir: impl Into<PathBuf>,
        output: OutputManager,
        surround: impl FnOnce(&mut Shared),
    ) -> Result<Self> {
        let cache_dir = cache_dir.into();
        // Messages name the folder, and a run must not move with the current one.
        let root = std::path::absolute(&cache_dir)
            .map_err(|source| Error::reading("find", &cache_dir, source))?;
        let layout = Layout::new(root.clone());
        let mut shared = Shared {
            locks: Locks::new(layout.clone()),
            layout,
            barrier: Barrier::default(),
            room: Arc::default(),
            tenants: Weak::new(),
            origins: Origins::default(),
            reading: Mutex::default(),
        };
        surround(&mut shared);
        Ok(Self {
            cache_dir: root,
            index: Arc::default(),
            shared: Arc::new(shared),
            memory: Memory::default(),
            keep: Keep::default(),
            output,
        })
    }

    /// The same cache, speaking to somebody else.
    #[must_use]
    pub fn with_output(&self, output: OutputManager) -> Self {
        Self {
            output,
            ..self.clone()
        }
    }

    /// The same cache, with the memory that the whole process has for pieces of blobs on their way.
    #[must_use]
    pub fn with_memory(&self, memory: Memory) -> Self {
        Self {
            memory,
            ..self.clone()
        }
    }

    /// The folder, as an absolute path.
    pub fn directory(&self) -> &Path {
        &self.cache_dir
    }

    /// Takes part in the use of the cache for a run that writes: nothing is cleaned away while the guard lives. Waits while
    /// a `clean` is at work, and creates the folders.
    pub async fn use_shared(&self) -> Result<StoreGuard> {
        self.shared.locks.use_shared(&self.output).await
    }

    /// The same for a run that only reads; works on a read-only volume and creates no folder.
    pub async fn read_shared(&self) -> Result<StoreGuard> {
        self.shared.locks.read_shared(&self.output).await
    }

    /// Fails, with the remedy, if nothing can be written.
    pub async fn ensure_writable(&self) -> Result<()> {
        let layout = self.shared.layout.clone();
        blocking(move || {
            for folder in [layout.manifests(), layout.partials(), layout.locks()] {
                make_folder(&folder)?;
                drop(Temporary::create(&folder)?);
            }
            Ok(())
        })
        .await
    }

    /// The manifest an image name stands for. One that cannot be read, or whose bytes are not what its name says, counts as
    /// absent, with a warning.
    pub async fn manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<Option<RawManifest>> {
        let layout = self.shared.layout.clone();
        let name = ImageName {
            repository: repository.clone(),
            reference: reference.clone(),
        };
        let (path, stored) =
            blocking(move || find_manifest(&layout, &name.repository, &name.reference)).await?;
        match stored {
            Stored::Manifest(manifest) => Ok(Some(manifest)),
            Stored::Absent => Ok(None),
            Stored::Unreadable(reason) => {
                self.output.warning(format!(
                    "the cached manifest {} is not used: {reason}",
                    path.display()
                ));
                Ok(None)
            }
        }
    }

    /// Address of the registry an image came from, where the index knows it.
    pub async fn origin(&self, repository: &Repository, reference: &Reference) -> Option<String> {
        self.entry(repository, reference).await?.registry
    }

    /// What an image names and its source did not have, where the index knows it: nobody need look for that.
    pub async fn missing(&self, repository: &Repository, reference: &Reference) -> Vec<Digest> {
        let entry = self.entry(repository, reference).await;
        let missing = entry.map(|entry| entry.missing).unwrap_or_default();
        missing
            .iter()
            .filter_map(|digest| digest.parse().ok())
            .collect()
    }

    /// Notes that an image was used. A failure costs nothing but an earlier end of the image.
    pub async fn touch(&self, repository: &Repository, reference: &Reference) -> Result<()> {
        let layout = self.shared.layout.clone();
        let (repository, reference) = (repository.clone(), reference.clone());
        blocking(move || {
            let (path, _) = find_manifest(&layout, &repository, &reference)?;
            touch(&path);
            Ok(())
        })
        .await
    }

    async fn entry(&self, repository: &Repository, reference: &Reference) -> Option<CacheEntry> {
        let entry = self
            .index
            .entry(&self.shared.layout, &self.output, repository, reference)
            .await;
        entry.unwrap_or_else(|error| {
            self.output.warning(format!(
                "the origin of the cached image is unknown: {}",
                crate::error::handlers::message(&error)
            ));
            None
        })
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{Messages, config, fixture, image, read, store_small, stored};
    use super::*;

    #[tokio::test]
    async fn opening_a_cache_creates_nothing() {
        let fixture = fixture();
        assert_eq!(read(&fixture.cache, "app", "1").await, None);
        assert!(!fixture.cache.directory().exists());
        fixture.cache.ensure_writable().await.unwrap();
        assert_eq!(fixture.files(), Vec::<String>::new());
        assert!(fixture.cache.directory().exists());
    }

    #[tokio::test]
    async fn a_corrupt_manifest_counts_as_absent_with_a_warning() {
        let fixture = fixture();
        let root = image(&fixture.cache, &config("x", "amd64"), &[b"layer"]).await;
        let digest = root.digest().to_string();
        for reference in ["1", &digest] {
            let image = stored("app", reference, &root);
            fixture.cache.store_image(image.clone()).await.unwrap();
            let path = fixture
                .cache
                .directory()
                .join("manifests/app")
                .join(reference);
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len(root.size() - 1).unwrap();
            assert_eq!(read(&fixture.cache, "app", reference).await, None);
            assert_eq!(
                fixture
                    .messages
                    .count(&format!("{} is not used", path.display())),
                1
            );
            fixture.cache.store_image(image).await.unwrap();
            assert_eq!(
                read(&fixture.cache, "app", reference).await.as_ref(),
                Some(&root)
            );
        }
    }

    #[tokio::test]
    async fn a_cache_with_another_output_is_the_same_cache() {
        let fixture = fixture();
        let messages = Messages::default();
        let other = fixture
            .cache
            .with_output(OutputManager::new(messages.clone()));
        store_small(&other, "app", "1", b"one").await;
        std::fs::File::create(fixture.cache.directory().join("manifests/app/1")).unwrap();
        assert_eq!(read(&other, "app", "1").await, None);
        assert_eq!(messages.all().len(), 1);
        assert_eq!(fixture.messages.all(), Vec::<String>::new());
    }
}
