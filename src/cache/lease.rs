//! Leases: what runs that are alive need, so that nobody removes it (archive reference 5.5).
//!
//! A lease is a file in `.leases/`, locked as long as its owner lives: a header, then a line for each image and each digest
//! that is pinned. Whoever removes something holds the store lock alone and reads all leases; whoever pins holds it shared.
//! So what was pinned before one looks whether it is there stays there, and what was removed before is not found.
//!
//! Where locks do not reach across nodes, a lease of another boot counts as alive while its file was touched lately.

use std::{
    collections::{BTreeSet, HashSet},
    fs::{File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::image::{Descriptor, Digest, ImageName};

use super::{
    Cache,
    disk::{
        Temporary, blocking, boot_id, files_in, is_older, make_folder, open_regular, read_small,
    },
    error::{Error, Result},
    layout::Layout,
    lock::StoreGuard,
    manifests::StoredReference,
    room::Reservation,
};

/// How often the file of a lease is touched.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// How long the lease of another boot counts as alive after it was touched: four missed beats.
const ALIVE_WITHIN: Duration = Duration::from_mins(2);

/// Pins of some hundred thousand digests; a larger file is none of ours.
const MAX_LEASE_SIZE: u64 = 64 * 1024 * 1024;

/// What one user of the cache needs. Dropped, it lets go of everything.
#[derive(Debug)]
#[must_use = "what is pinned may be removed as soon as the lease is dropped"]
pub struct Lease {
    cache: Cache,
    _pins: Pins,
    // Behind the pins: whoever is told that there is room again finds them gone. None while it waits for room.
    room: Option<Reservation>,
}

#[derive(Debug)]
enum Pins {
    File {
        /// Removes the file when it is dropped.
        _temporary: Temporary,
        _heart: JoinSet<()>,
    },
    /// On a volume that cannot be written nobody can be told, so nothing at all is removed through this mount.
    Everything { _store: StoreGuard },
}

/// Whose lease it is.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    version: u32,
    /// Which start of which system.
    boot: Option<String>,
}

impl Cache {
    /// Keeps images by their names, and manifests and blobs by their digests, whether they are here or come. Creates the
    /// folders.
    pub async fn lease(
        &self,
        images: impl IntoIterator<Item = &ImageName>,
        digests: impl IntoIterator<Item = &Digest>,
    ) -> Result<Lease> {
        let images = images.into_iter().map(|name| format!("image {name}\n"));
        let digests: HashSet<Digest> = digests.into_iter().cloned().collect();
        let pinned = digests.iter().map(|digest| format!("digest {digest}\n"));
        let lines: String = images.chain(pinned).collect();
        match self.new_lease(lines.clone()).await {
            Err(Error::CacheFull { needed, .. }) if self.evict(needed, digests).await? => {
                self.new_lease(lines).await
            }
            leased => leased,
        }
    }

    /// The same for who only reads: a volume that is read-only, or full, will do.
    pub async fn lease_to_read(
        &self,
        images: impl IntoIterator<Item = &ImageName>,
        digests: impl IntoIterator<Item = &Digest>,
    ) -> Result<Lease> {
        match self.lease(images, digests).await {
            Err(Error::CacheUnwritable { .. } | Error::CacheFull { .. }) => {
                let guard = self.read_shared().await?;
                Ok(self.lease_of(Pins::Everything { _store: guard }))
            }
            leased => leased,
        }
    }

    async fn new_lease(&self, lines: String) -> Result<Lease> {
        let store = self.use_shared().await?;
        let folder = self.shared.layout.leases();
        let (file, temporary) = blocking(move || {
            // Nobody reads leases before the file is locked and whole.
            let _store = store;
            create(&folder, &lines)
        })
        .await?;
        Ok(self.lease_of(Pins::File {
            _temporary: temporary,
            _heart: JoinSet::from_iter([beat(file)]),
        }))
    }

    fn lease_of(&self, pins: Pins) -> Lease {
        Lease {
            cache: self.clone(),
            _pins: pins,
            room: Some(Reservation::nothing(Arc::clone(&self.shared))),
        }
    }
}

impl Lease {
    /// Makes sure that there is room for what is missing of these blobs, at the cost of images that nobody needs here; waits
    /// while other images of this process are on their way and will leave some.
    ///
    /// # Errors
    /// [`Error::CacheFull`] with what is needed and what there is, before anything was fetched.
    pub async fn reserve(&mut self, image: &ImageName, blobs: &[Descriptor]) -> Result<()> {
        // Whoever waits here has nothing that others could wait for.
        self.room = None;
        self.room = Some(self.cache.reserve(image, blobs).await?);
        Ok(())
    }

    /// Notes that the room for a blob is taken by the blob itself now.
    pub fn has_arrived(&self, blob: &Descriptor) {
        if let Some(room) = &self.room {
            room.used(&blob.digest);
        }
    }
}

/// Writes the file of a lease, and locks it before.
fn create(folder: &Path, lines: &str) -> Result<(File, Temporary)> {
    make_folder(folder)?;
    let header = Header {
        version: 1,
        boot: boot_id().map(str::to_owned),
    };
    let (file, temporary) = Temporary::create(folder)?;
    let failed = |source| Error::writing("write", temporary.path(), lines.len() as u64, source);
    file.try_lock()
        .map_err(|error| failed(io::Error::from(error)))?;
    let header = serde_json::to_string(&header).map_err(|error| failed(error.into()))?;
    (&file)
        .write_all(format!("{header}\n{lines}").as_bytes())
        .map_err(failed)?;
    Ok((file, temporary))
}

/// Touches the file now and then, and holds its lock.
async fn beat(file: File) {
    loop {
        tokio::time::sleep(HEARTBEAT).await;
        if let Err(error) = file.set_modified(SystemTime::now()) {
            tracing::debug!(%error, "a lease could not be touched");
        }
    }
}

/// All that is pinned by runs that are alive.
#[derive(Debug, Default)]
pub(super) struct Pinned {
    /// By their names.
    pub(super) images: BTreeSet<String>,
    pub(super) digests: HashSet<Digest>,
    /// Whether anybody is alive.
    pub(super) anybody: bool,
    /// Files of those who are not.
    pub(super) dead: Vec<PathBuf>,
}

impl Pinned {
    /// Reads all leases. The caller holds the store lock alone, or only wants to know roughly.
    pub(super) fn read(layout: &Layout) -> Result<Self> {
        let mut pinned = Self::default();
        for (path, _) in files_in(&layout.leases(), |_| true)? {
            let Some((file, metadata)) = open_regular(&path)? else {
                continue;
            };
            let is_locked = matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock));
            drop(file);
            let text = match read_small(&path, MAX_LEASE_SIZE)? {
                Some(Ok(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
                Some(Err(_)) | None => String::new(),
            };
            let mut lines = text.lines();
            let header = lines.next().unwrap_or_default();
            let touched_lately = || !is_older(&metadata, ALIVE_WITHIN);
            if is_locked || (is_of_another_boot(header) && touched_lately()) {
                pinned.anybody = true;
                lines.for_each(|line| pinned.add(line));
            } else {
                pinned.dead.push(path);
            }
        }
        Ok(pinned)
    }

    /// Whether somebody needs this manifest.
    pub(super) fn has(&self, reference: &StoredReference) -> bool {
        let digest = reference.name.reference.digest();
        digest.is_some_and(|digest| self.digests.contains(digest))
            || self.images.contains(&reference.name.to_string())
    }

    fn add(&mut self, line: &str) {
        match line.split_once(' ') {
            Some(("image", name)) => {
                self.images.insert(name.to_owned());
            }
            Some(("digest", digest)) => self.digests.extend(digest.parse()),
            // From a version that pins what this one does not know.
            _ => {}
        }
    }
}

fn is_of_another_boot(header: &str) -> bool {
    let header = serde_json::from_str::<Header>(header);
    header.is_ok_and(|header| header.boot.is_some() && header.boot.as_deref() != boot_id())
}
