//! Room on the volume: images in flight get theirs promised before they come, at the cost of others that nobody needs here.
//!
//! A mirror may be larger than the volume: an image that all its destinations have leaves when its room is needed, and who
//! finds none waits for those that are on their way. What is promised is known to this process only; with several of them a
//! volume may still turn out to be full, which the disk says then.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{
    image::{Algorithm, Descriptor, Digest, ImageName},
    output::ByteSize,
};

use super::{
    Cache, Shared,
    disk::{FreeSpace, blocking, files_in, open_regular},
    error::{Error, Result},
    layout::Layout,
};

/// How large the blobs of a cache may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheLimit {
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths of the volume.
    Percent(u8),
}

/// A larger part of the volume than what is lacking is made free at once: each look at the cache costs.
const AT_ONCE: u64 = 64;

/// How long it is believed what the blobs of all caches came to: other processes add to them, too.
const COUNTED_FOR: Duration = Duration::from_secs(30);

/// What is promised, and to how many.
#[derive(Debug, Default)]
pub(super) struct Room {
    limit: OnceLock<CacheLimit>,
    promises: Mutex<Promises>,
    /// Somebody let go of room.
    changed: Notify,
    /// Who looks for room; the others wait behind, so that a large image gets its turn.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Promises {
    bytes: u64,
    /// Those who have room enough for their work: when they are done, others may have theirs.
    holders: usize,
    counted: Option<Counted>,
}

/// What the blobs came to, with all that was promised since.
#[derive(Debug)]
struct Counted {
    bytes: u64,
    at: Instant,
}

/// Blobs that are to come, with their sizes.
pub(super) type Missing = HashMap<Digest, u64>;

/// Sizes are those that a stranger's manifest says.
fn total(missing: &Missing) -> u64 {
    let sizes = missing.values();
    sizes.fold(0, |sum, size| sum.saturating_add(*size))
}

/// Room that is promised to somebody at work. Dropped, it is free again, less what was used.
#[derive(Debug)]
pub(super) struct Reservation {
    shared: Arc<Shared>,
    left: Mutex<Missing>,
}

impl Reservation {
    /// For somebody who needs no room, as far as is known.
    pub(super) fn nothing(shared: Arc<Shared>) -> Self {
        shared.room.promises.lock().holders += 1;
        Self {
            shared,
            left: Mutex::default(),
        }
    }

    /// The blob itself, or its partial, has its room now.
    pub(super) fn used(&self, digest: &Digest) {
        let size = self.left.lock().remove(digest).unwrap_or_default();
        let mut promises = self.shared.room.promises.lock();
        promises.bytes = promises.bytes.saturating_sub(size);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let left = total(&self.left.lock());
        {
            let mut promises = self.shared.room.promises.lock();
            promises.bytes = promises.bytes.saturating_sub(left);
            promises.holders -= 1;
        }
        self.shared.room.changed.notify_waiters();
    }
}

impl Room {
    pub(super) fn new(limit: CacheLimit) -> Self {
        Self {
            limit: limit.into(),
            ..Self::default()
        }
    }

    /// Promises `needed` bytes if there are as many; else tells how many are there.
    fn promise(&self, shared: &Shared, needed: u64) -> Result<Result<(), FreeSpace>> {
        let mut free = FreeSpace::of(shared.layout.root());
        let limit = self
            .limit
            .get()
            .map(|limit| limit.bytes(shared.layout.root()));
        if let Some(limit) = limit
            && !self.fits_by_count(limit, needed)
        {
            let used = shared.used_by_all()?;
            let left = limit.saturating_sub(used);
            if free.bytes().is_none_or(|bytes| bytes > left) {
                free = FreeSpace::Allowed(left);
            }
            let mut promises = self.promises.lock();
            promises.counted = Some(Counted {
                bytes: used.saturating_add(promises.bytes),
                at: Instant::now(),
            });
        }
        let mut promises = self.promises.lock();
        if let Some(bytes) = free.bytes()
            && bytes < needed.saturating_add(promises.bytes)
        {
            return Ok(Err(free.less(promises.bytes)));
        }
        promises.bytes = promises.bytes.saturating_add(needed);
        promises.holders += 1;
        if let Some(counted) = &mut promises.counted {
            counted.bytes = counted.bytes.saturating_add(needed);
        }
        Ok(Ok(()))
    }

    /// Whether the limit allows so much more by what was counted a short while ago: to count is to look at every blob.
    fn fits_by_count(&self, limit: u64, needed: u64) -> bool {
        let promises = self.promises.lock();
        promises.counted.as_ref().is_some_and(|counted| {
            counted.at.elapsed() < COUNTED_FOR && counted.bytes.saturating_add(needed) <= limit
        })
    }

    /// How much is worth making free at once.
    pub(super) fn at_once(&self, folder: &Path) -> u64 {
        let limit = self.limit.get().map(|limit| limit.bytes(folder));
        limit
            .or_else(|| FreeSpace::volume(folder))
            .unwrap_or_default()
            / AT_ONCE
    }

    fn has_holders(&self) -> bool {
        self.promises.lock().holders > 0
    }
}

impl CacheLimit {
    fn bytes(self, folder: &Path) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => {
                // In this order: the product of a large volume would not fit.
                FreeSpace::volume(folder).map_or(u64::MAX, |bytes| bytes / 100 * u64::from(percent))
            }
        }
    }
}

impl Shared {
    /// Bytes of all blobs, also those of other tenants.
    fn used_by_all(&self) -> Result<u64> {
        let Some(tenants) = self.tenants.upgrade() else {
            return used(&self.layout);
        };
        let caches = tenants.list()?;
        caches
            .iter()
            .try_fold(0, |sum, cache| Ok(sum + used(&cache.shared.layout)?))
    }
}

/// Bytes of all blobs, those on their way included. A blob that several tenants have counts for each with its share.
fn used(layout: &Layout) -> Result<u64> {
    let folders = [
        layout.blobs(Algorithm::Sha256),
        layout.blobs(Algorithm::Sha512),
        layout.partials(),
    ];
    folders.iter().try_fold(0, |sum, folder| {
        let files = files_in(folder, |_| true)?;
        Ok(sum + files.iter().map(|(_, size)| size).sum::<u64>())
    })
}

impl Cache {
    /// The same cache, whose blobs must not become more than this; said once, for all that share its state.
    #[must_use]
    pub fn with_limit(self, limit: CacheLimit) -> Self {
        self.shared.room.limit.get_or_init(|| limit);
        self
    }

    /// Promises room, as [`Lease::reserve`](super::Lease::reserve) tells.
    pub(super) async fn reserve(
        &self,
        image: &ImageName,
        blobs: &[Descriptor],
    ) -> Result<Reservation> {
        let room = &self.shared.room;
        let _turn = room.turn.lock().await;
        let mut said = false;
        loop {
            // Before the look, so that nothing that happens after it is missed.
            let changed = room.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let (needed, promised) = self.promise(blobs.to_vec()).await?;
            let free = match promised {
                Ok(reservation) => return Ok(reservation),
                Err(free) => free,
            };
            let lacking = needed.saturating_sub(free.bytes().unwrap_or_default());
            if self.evict(lacking, HashSet::new()).await? {
                continue;
            }
            if !room.has_holders() {
                return Err(Error::CacheFull {
                    operation: "make room for",
                    path: image.to_string().into(),
                    needed: lacking,
                    free,
                });
            }
            if !said {
                said = true;
                self.output.detail(format!(
                    "{image} waits for {} of room in the cache, until other images have left it",
                    ByteSize(needed)
                ));
            }
            changed.await;
        }
    }

    /// Promises room for those of the blobs that are missing now, and tells how much that is.
    async fn promise(
        &self,
        blobs: Vec<Descriptor>,
    ) -> Result<(u64, Result<Reservation, FreeSpace>)> {
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            let missing = missing(&shared.layout, blobs)?;
            let needed = total(&missing);
            let promised = shared.room.promise(&shared, needed)?;
            let reservation = promised.map(|()| Reservation {
                shared,
                left: Mutex::new(missing),
            });
            Ok((needed, reservation))
        })
        .await
    }
}

/// What has to come of these blobs.
fn missing(layout: &Layout, blobs: Vec<Descriptor>) -> Result<Missing> {
    let has = |path: &Path, size| {
        Ok(open_regular(path)?.is_some_and(|(_, metadata)| metadata.len() == size))
    };
    let mut missing = Missing::new();
    for Descriptor { digest, size, .. } in blobs {
        // A partial has its whole length from the start, so its room is taken already.
        if !has(&layout.blob(&digest), size)? && !has(&layout.partial(&digest), size)? {
            missing.insert(digest, size);
        }
    }
    Ok(missing)
}
