//! Caches of several tenants on one volume (archive reference 5.7).
//!
//! Each tenant has a whole cache of its own, so nobody is ever served what somebody else fetched, and a reference of one is no
//! evidence for another. What they share is the volume: room is promised once for all, and who needs some may have it from
//! everybody's images in transit.
//!
//! A blob may still be fetched once for several of them, where the registry itself vouches for it: a tenant notes where each
//! blob came from, and another one who has just been told by the same registry and repository that the blob is there for him
//! as well gets a second name for the same file. So no tenant can name somebody else's digest and have it: a registry, a proxy
//! or a certificate authority of his own is no origin that others fetched from.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::{self, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

use parking_lot::Mutex;

use crate::{
    image::{Descriptor, Digest},
    output::OutputManager,
};

use super::{
    Cache, CacheLimit, Shared,
    disk::{blocking, guarded, make_folder, open_regular},
    error::{Error, Result},
    lock::LockName,
    memory::Memory,
    room::Room,
};

/// Some fifty thousand blobs of one repository. What no longer fits is forgotten, and fetched by each tenant.
const MAX_ORIGIN_SIZE: u64 = 4 * 1024 * 1024;

/// The caches below one folder, by the names of their tenants.
#[derive(Debug)]
pub struct Tenants {
    folder: PathBuf,
    /// For pieces of blobs on their way, of all tenants.
    memory: Memory,
    room: Arc<Room>,
    caches: Mutex<BTreeMap<String, Cache>>,
}

impl Tenants {
    /// The caches below `folder`, whose blobs together must not outgrow `limit`.
    pub fn new(folder: PathBuf, limit: CacheLimit) -> Arc<Self> {
        Arc::new(Self {
            folder,
            memory: Memory::default(),
            room: Arc::new(Room::new(limit)),
            caches: Mutex::default(),
        })
    }

    /// The cache of a tenant, whose name is a DNS label and cannot leave the folder. Opened once, because its tasks fetch each
    /// blob once by what they share in it.
    ///
    /// # Errors
    /// Those of [`Cache::open`].
    pub fn of(self: &Arc<Self>, tenant: &str) -> Result<Cache> {
        let mut caches = self.caches.lock();
        if let Some(cache) = caches.get(tenant) {
            return Ok(cache.clone());
        }
        let cache = Cache::open_in(
            self.folder.join(tenant),
            OutputManager::silent(),
            |shared| {
                shared.room = Arc::clone(&self.room);
                shared.tenants = Arc::downgrade(self);
            },
        )?
        .with_memory(self.memory.clone());
        caches.insert(tenant.to_owned(), cache.clone());
        Ok(cache)
    }

    /// Writes what the indexes of all tenants still wait for; for the end of the program.
    pub async fn flush(&self) {
        let caches: Vec<Cache> = self.caches.lock().values().cloned().collect();
        for cache in caches {
            cache.flush_index().await;
        }
    }

    /// All of them, also those whose tenants were not heard of since the start.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub async fn all(self: &Arc<Self>) -> Result<Vec<Cache>> {
        let tenants = Arc::clone(self);
        blocking(move || tenants.list()).await
    }

    /// The same. Blocks.
    pub(super) fn list(self: &Arc<Self>) -> Result<Vec<Cache>> {
        let failed = |source| Error::reading("look through", &self.folder, source);
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut caches = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            // Whatever else lies on the volume, lost+found for one, is no business of ours.
            if let Some(name) = entry.file_name().to_str()
                && is_label(name)
                && entry.path().join("blobs").is_dir()
            {
                caches.push(self.of(name)?);
            }
        }
        Ok(caches)
    }
}

/// Whether it is a DNS label, as the names of namespaces are.
fn is_label(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    name.bytes().all(inner) && !name.starts_with('-') && !name.ends_with('-')
}

/// What is known of where blobs came from, as far as it was read.
#[derive(Debug, Default)]
pub(super) struct Origins {
    read: Mutex<HashMap<PathBuf, Known>>,
}

#[derive(Debug, Default)]
struct Known {
    length: u64,
    digests: HashSet<Digest>,
}

impl Origins {
    /// Whether the file at `path` names the digest. Only what was added since the last look is read.
    fn name(&self, path: &Path, digest: &Digest) -> Result<bool> {
        let mut read = self.read.lock();
        let known = read.entry(path.to_owned()).or_default();
        let Some((mut file, metadata)) = open_regular(path)? else {
            *known = Known::default();
            return Ok(false);
        };
        if metadata.len() < known.length {
            *known = Known::default();
        }
        if metadata.len() > known.length {
            let failed = |source| Error::reading("read", path, source);
            file.seek(SeekFrom::Start(known.length)).map_err(failed)?;
            let mut text = String::new();
            let most = MAX_ORIGIN_SIZE - known.length.min(MAX_ORIGIN_SIZE);
            file.take(most).read_to_string(&mut text).map_err(failed)?;
            // A line that is being written is read next time.
            let whole = text.rfind('\n').map_or(0, |end| end + 1);
            let digests = text[..whole].lines().filter_map(|line| line.parse().ok());
            known.digests.extend(digests);
            known.length += whole as u64;
        }
        Ok(known.digests.contains(digest))
    }
}

impl Cache {
    /// Notes that a whole blob came from `origin`, for other tenants who may ask there. A failure costs them a download.
    pub async fn note_origin(&self, origin: &str, blob: &Descriptor) {
        if self.shared.tenants.strong_count() == 0 {
            return;
        }
        let path = self.shared.layout.origin(&Digest::of(origin.as_bytes()));
        let line = format!("{}\n", blob.digest);
        let noted = blocking(move || append(&path, &line)).await;
        if let Err(error) = noted {
            tracing::debug!(%error, "the origin of a blob was not noted");
        }
    }

    /// Whether another tenant has a blob that came from `origin`: then it is worth asking there whether this one may have it.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn is_with_others(&self, origin: &str, blob: &Descriptor) -> Result<bool> {
        Ok(self.with_others(origin, blob).await?.is_some())
    }

    /// Takes a blob over from another tenant who has it from `origin`. The caller has just been told there that this tenant may
    /// have it. False if nobody has it any more, or the volume cannot give a file a second name.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn take_from_others(&self, origin: &str, blob: &Descriptor) -> Result<bool> {
        let Some(theirs) = self.with_others(origin, blob).await? else {
            return Ok(false);
        };
        let lock = LockName::Blob(&blob.digest);
        let lock = self.shared.locks.exclusive(lock, &self.output).await?;
        let (shared, blob) = (Arc::clone(&self.shared), blob.clone());
        blocking(move || {
            let _lock = lock;
            shared.barrier.prepare(&shared.layout)?;
            let ours = shared.layout.blob(&blob.digest);
            make_folder(&shared.layout.blobs(blob.digest.algorithm()))?;
            match fs::hard_link(theirs.layout.blob(&blob.digest), &ours) {
                // Another one of this tenant's runs was faster, or they have removed it, or the volume has no such names.
                Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                    return Err(Error::writing("link", &ours, 0, error));
                }
                Err(_) => {}
                // The barrier of its image covers the name.
                Ok(()) if shared.trusts(&blob.digest, blob.size)? => {
                    shared.barrier.note(&blob.digest);
                }
                Ok(()) => fs::remove_file(&ours)
                    .map_err(|source| Error::writing("remove", &ours, 0, source))?,
            }
            shared.trusts(&blob.digest, blob.size)
        })
        .await
    }

    /// The tenant who has it.
    async fn with_others(&self, origin: &str, blob: &Descriptor) -> Result<Option<Arc<Shared>>> {
        let Some(tenants) = Weak::upgrade(&self.shared.tenants) else {
            return Ok(None);
        };
        let (origin, blob) = (Digest::of(origin.as_bytes()), blob.clone());
        let own = self.shared.layout.root().to_owned();
        blocking(move || {
            for cache in tenants.list()? {
                let theirs = &cache.shared;
                let path = theirs.layout.origin(&origin);
                if theirs.layout.root() != own
                    && theirs.origins.name(&path, &blob.digest)?
                    && theirs.is_covered(&blob.digest, blob.size)?
                {
                    return Ok(Some(Arc::clone(theirs)));
                }
            }
            Ok(None)
        })
        .await
    }
}

/// Adds a line to a file, which starts anew when it has become too long.
fn append(path: &Path, line: &str) -> Result<()> {
    let failed = |source| Error::writing("write", path, line.len() as u64, source);
    make_folder(path.parent().unwrap_or(path))?;
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(guarded())
        .open(path)
        .map_err(failed)?;
    if file.metadata().map_err(failed)?.len() + line.len() as u64 > MAX_ORIGIN_SIZE {
        file.set_len(0).map_err(failed)?;
    }
    file.write_all(line.as_bytes()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::super::testing::{config, image, layer, put, stored};
    use super::*;
    use crate::cache::{Claim, Keep};

    const ORIGIN: &str = "https://registry.example/team/app";

    struct Fixture {
        tenants: Arc<Tenants>,
        _folder: tempfile::TempDir,
    }

    fn fixture(limit: CacheLimit) -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        Fixture {
            tenants: Tenants::new(folder.path().join("cache"), limit),
            _folder: folder,
        }
    }

    /// Stores an image of one layer that only passes, fetched from `origin`.
    async fn fetch(cache: &Cache, tag: &str, content: &[u8], origin: &str) {
        let root = image(cache, &config(tag, "amd64"), &[content]).await;
        let passing = cache.keeping(Keep::Passing);
        passing
            .store_image(stored("app", tag, &root))
            .await
            .unwrap();
        cache.note_origin(origin, &layer(content)).await;
    }

    #[tokio::test]
    async fn a_blob_is_taken_over_from_who_fetched_it_from_the_same_place_only() {
        let fixture = fixture(CacheLimit::Percent(100));
        let (one, other) = (
            fixture.tenants.of("one").unwrap(),
            fixture.tenants.of("other").unwrap(),
        );
        let blob = layer(b"secret");
        fetch(&one, "1", b"secret", ORIGIN).await;
        for origin in [
            "https://evil.example/team/app",
            "http://registry.example/team/app",
            "https://registry.example/team/app2",
        ] {
            assert!(!other.is_with_others(origin, &blob).await.unwrap());
            assert!(!other.take_from_others(origin, &blob).await.unwrap());
        }
        assert!(!other.has_blob(&blob).await.unwrap());
        // Its own notes are no evidence for the one who wrote them.
        other
            .note_origin("https://evil.example/team/app", &blob)
            .await;
        assert!(
            !other
                .is_with_others("https://evil.example/team/app", &blob)
                .await
                .unwrap()
        );

        assert!(other.is_with_others(ORIGIN, &blob).await.unwrap());
        assert!(other.take_from_others(ORIGIN, &blob).await.unwrap());
        assert!(other.has_blob(&blob).await.unwrap());
        let inode = |cache: &Cache| {
            cache
                .shared
                .layout
                .blob(&blob.digest)
                .metadata()
                .unwrap()
                .ino()
        };
        assert_eq!(inode(&one), inode(&other));
        // It stays when the one who fetched it lets it go.
        one.clean(&crate::cache::CleanRequest::default())
            .await
            .unwrap();
        assert!(other.has_blob(&blob).await.unwrap());
        assert!(!one.has_blob(&blob).await.unwrap());
        assert!(!one.is_with_others(ORIGIN, &blob).await.unwrap());
    }

    #[tokio::test]
    async fn a_blob_that_no_barrier_has_covered_or_that_was_cut_is_not_handed_on() {
        let fixture = fixture(CacheLimit::Percent(100));
        let (one, other) = (
            fixture.tenants.of("one").unwrap(),
            fixture.tenants.of("other").unwrap(),
        );
        let blob = layer(b"no image names it yet");
        put(&one, &blob, b"no image names it yet").await.unwrap();
        one.note_origin(ORIGIN, &blob).await;
        assert!(!other.is_with_others(ORIGIN, &blob).await.unwrap());
        fetch(&one, "1", b"no image names it yet", ORIGIN).await;
        assert!(other.is_with_others(ORIGIN, &blob).await.unwrap());
        let path = one.shared.layout.blob(&blob.digest);
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", &path).unwrap();
        assert!(!other.take_from_others(ORIGIN, &blob).await.unwrap());
        assert!(!other.has_blob(&blob).await.unwrap());
        // It is fetched like any other, then.
        assert!(matches!(
            other.claim_blob(&blob).await.unwrap(),
            Claim::Fetch(_)
        ));
    }

    #[tokio::test]
    async fn what_is_no_tenants_cache_is_left_alone() {
        let fixture = fixture(CacheLimit::Percent(100));
        let folder = &fixture.tenants.folder;
        for path in [
            "lost+found/blobs",
            "empty",
            ".hidden/blobs",
            "blobs/sha256",
            "team-a/blobs",
        ] {
            std::fs::create_dir_all(folder.join(path)).unwrap();
        }
        let all = fixture.tenants.list().unwrap();
        let directories: Vec<_> = all.iter().map(Cache::directory).collect();
        assert_eq!(directories, [folder.join("team-a")]);
    }

    #[tokio::test]
    async fn room_is_made_at_the_cost_of_everybodys_images_in_transit() {
        let fixture = fixture(CacheLimit::Bytes(5 << 20));
        let (one, other) = (
            fixture.tenants.of("one").unwrap(),
            fixture.tenants.of("other").unwrap(),
        );
        fetch(&one, "1", &vec![1; 2 << 20], ORIGIN).await;
        fetch(&other, "2", &vec![2; 1 << 20], ORIGIN).await;
        let large = layer(&vec![3; 4 << 20]);
        let name = "app:3".parse().unwrap();
        let mut lease = other.lease([&name], [&large.digest]).await.unwrap();
        lease
            .reserve(&name, std::slice::from_ref(&large))
            .await
            .unwrap();
        assert_eq!(
            one.list().await.unwrap().len() + other.list().await.unwrap().len(),
            0
        );
        drop(lease);
        // A tenant who was not heard of since the start is no exception.
        fetch(&one, "1", &vec![1; 4 << 20], ORIGIN).await;
        let folder = fixture.tenants.folder.clone();
        let restarted = Tenants::new(folder, CacheLimit::Bytes(5 << 20));
        let third = restarted.of("third").unwrap();
        let mut lease = third.lease([&name], [&large.digest]).await.unwrap();
        lease
            .reserve(&name, std::slice::from_ref(&large))
            .await
            .unwrap();
        assert_eq!(one.list().await.unwrap().len(), 0);
    }
}
