//! Room on the volume: images in flight get theirs promised before they come, at the cost of others that nobody needs here.
//!
//! A mirror may be larger than the volume: an image that all its destinations have leaves when its room is needed, and who
//! finds none waits for those that are on their way. What is promised is known to this process only; with several of them a
//! volume may still turn out to be full, which the disk says then.

use std::{
    collections::HashSet,
    path::Path,
    sync::{Arc, OnceLock},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{
    image::{Algorithm, ImageName},
    output::ByteSize,
};

use super::{
    Cache, Shared,
    disk::{FreeSpace, blocking, files_in},
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
}

/// Room that is promised to somebody at work. Dropped, it is free again, less what was used.
#[derive(Debug)]
pub(super) struct Reservation {
    shared: Arc<Shared>,
    left: Mutex<u64>,
}

impl Reservation {
    /// For somebody who needs no room, as far as is known.
    pub(super) fn nothing(shared: Arc<Shared>) -> Self {
        shared.room.promises.lock().holders += 1;
        Self {
            shared,
            left: Mutex::new(0),
        }
    }

    /// The disk has these bytes, or the room for them, now.
    pub(super) fn used(&self, bytes: u64) {
        let mut left = self.left.lock();
        let used = bytes.min(*left);
        *left -= used;
        self.shared.room.promises.lock().bytes -= used;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.used(u64::MAX);
        self.shared.room.promises.lock().holders -= 1;
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
        let free = self.free(shared)?;
        let mut promises = self.promises.lock();
        if let Some(bytes) = free.bytes()
            && bytes < needed.saturating_add(promises.bytes)
        {
            return Ok(Err(free.less(promises.bytes)));
        }
        promises.bytes += needed;
        promises.holders += 1;
        Ok(Ok(()))
    }

    /// What the volume, and the limit, leave.
    fn free(&self, shared: &Shared) -> Result<FreeSpace> {
        let layout = &shared.layout;
        let free = FreeSpace::of(layout.root());
        let Some(limit) = self.limit.get() else {
            return Ok(free);
        };
        let left = limit
            .bytes(layout.root())
            .saturating_sub(shared.used_by_all()?);
        Ok(match free.bytes() {
            Some(bytes) if bytes <= left => free,
            _ => FreeSpace::Allowed(left),
        })
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
        let caches = tenants.all()?;
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
    pub(super) async fn reserve(&self, image: &ImageName, needed: u64) -> Result<Reservation> {
        let room = &self.shared.room;
        let _turn = room.turn.lock().await;
        let mut said = false;
        loop {
            // Before the look, so that nothing that happens after it is missed.
            let changed = room.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let free = match self.promise(needed).await? {
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

    async fn promise(&self, needed: u64) -> Result<Result<Reservation, FreeSpace>> {
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            let promised = shared.room.promise(&shared, needed)?;
            Ok(promised.map(|()| Reservation {
                shared,
                left: Mutex::new(needed),
            }))
        })
        .await
    }
}
