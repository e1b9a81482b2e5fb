//! The write barrier: a reference is written only after its blobs are known to be on the disk (archive reference 5.3,
//! step 5).
//!
//! One `syncfs` serves all images that ask for it at the same time. It reports write errors since Linux 5.8, once, and only
//! to files opened before the error: so the folder stays open, and blobs whose fate is unknown are thrown away instead of
//! synced again, which would succeed without them being there.

use std::{
    collections::BTreeSet,
    fs::File,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    disk::{blocking, remove_leftover},
    error::{Error, Result},
    layout::Layout,
    trust::note_covered,
};
use crate::image::Digest;

#[derive(Debug, Default)]
pub(super) struct Barrier {
    volume: OnceLock<Arc<File>>,
    /// Blobs that no barrier has covered, and that this process knows to be right.
    uncovered: Arc<Mutex<BTreeSet<Digest>>>,
    requested: AtomicU64,
    passed: tokio::sync::Mutex<u64>,
}

impl Barrier {
    /// Must be called before the first blob is written, so that its write errors are seen. Blocks.
    pub(super) fn prepare(&self, layout: &Layout) -> Result<()> {
        if self.volume.get().is_none() {
            let folder = File::open(layout.root())
                .map_err(|source| Error::reading("open", layout.root(), source))?;
            // Another task was faster: one of the two is enough.
            self.volume.get_or_init(|| Arc::new(folder));
        }
        Ok(())
    }

    /// Notes a blob that has its name and is right, as long as the system stays up.
    pub(super) fn note(&self, digest: &Digest) {
        lock(&self.uncovered).insert(digest.clone());
    }

    /// Whether it was noted, and no barrier has covered it since.
    pub(super) fn is_noted(&self, digest: &Digest) -> bool {
        lock(&self.uncovered).contains(digest)
    }

    /// Whether there are blobs that no barrier has covered.
    pub(super) fn is_needed(&self) -> bool {
        !lock(&self.uncovered).is_empty()
    }

    /// Returns when everything written before the call is on the disk.
    pub(super) async fn pass(&self, layout: &Layout) -> Result<()> {
        let ticket = self.requested.fetch_add(1, Ordering::SeqCst) + 1;
        let mut passed = self.passed.lock().await;
        if *passed >= ticket {
            return Ok(());
        }
        let covers = self.requested.load(Ordering::SeqCst);
        let uncovered = Arc::clone(&self.uncovered);
        let layout = layout.clone();
        let volume = self.volume.get().map(Arc::clone);
        blocking(move || {
            // They stay noted until their files say it themselves.
            let covered = lock(&uncovered).clone();
            let root = layout.root();
            let synced = match volume {
                Some(volume) => rustix::fs::syncfs(&*volume).map_err(Into::into),
                None => File::open(root)
                    .and_then(|volume| rustix::fs::syncfs(&volume).map_err(Into::into)),
            };
            for digest in &covered {
                match &synced {
                    Ok(()) => note_covered(&layout.blob(digest)),
                    Err(_) => remove_leftover(&layout.blob(digest)),
                }
            }
            lock(&uncovered).retain(|digest| !covered.contains(digest));
            synced.map_err(|source| Error::writing("sync", root, 0, source))
        })
        .await?;
        *passed = covers;
        Ok(())
    }
}

fn lock(uncovered: &Mutex<BTreeSet<Digest>>) -> MutexGuard<'_, BTreeSet<Digest>> {
    uncovered.lock().unwrap_or_else(PoisonError::into_inner)
}
