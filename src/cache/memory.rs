//! The memory for pieces of blobs on their way: one budget for the whole process, whatever the number of blobs.
//!
//! Who holds a piece that must still be written or hashed holds a [`Share`]. What is left over serves readers that follow a
//! blob while it comes: such pieces are *kept*, and go, oldest first, as soon as a writer needs the room.

use std::{
    collections::BTreeMap,
    future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::blocks::{Block, Blocks};

/// What a cache has unless it is told otherwise: enough for eight blobs at full speed. Twice as much was not faster, half was slower.
const DEFAULT: usize = 8 * 1024 * 1024;

/// A budget of bytes. Clones share it.
#[derive(Debug, Clone)]
pub struct Memory {
    budget: Arc<Budget>,
}

#[derive(Debug)]
struct Budget {
    limit: usize,
    free: Arc<Semaphore>,
    kept: Mutex<BTreeMap<u64, KeptBytes>>,
    /// How many bytes these are.
    kept_bytes: AtomicUsize,
    next: AtomicU64,
    waiting: AtomicUsize,
    blocks: Blocks,
}

/// Part of the budget, given back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    permit: OwnedSemaphorePermit,
}

impl Share {
    /// Gives back so much of it.
    pub(super) fn give_back(&mut self, bytes: usize) {
        drop(self.permit.split(bytes));
    }
}

struct KeptBytes {
    bytes: Bytes,
    _share: Share,
}

impl std::fmt::Debug for KeptBytes {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} bytes", self.bytes.len())
    }
}

/// A piece that is there as long as nobody needs its room.
#[derive(Debug)]
pub(super) struct Kept {
    number: u64,
    budget: Arc<Budget>,
}

impl Default for Memory {
    fn default() -> Self {
        Self::new(DEFAULT)
    }
}

impl Memory {
    /// A budget of so many bytes. Whatever it is, each blob that is written may hold one piece.
    pub fn new(bytes: usize) -> Self {
        let limit = bytes.min(Semaphore::MAX_PERMITS);
        Self {
            budget: Arc::new(Budget {
                limit,
                free: Arc::new(Semaphore::new(limit)),
                kept: Mutex::default(),
                kept_bytes: AtomicUsize::new(0),
                next: AtomicU64::new(0),
                waiting: AtomicUsize::new(0),
                blocks: Blocks::default(),
            }),
        }
    }

    /// How many bytes are in use.
    pub fn used(&self) -> usize {
        self.budget.limit - self.budget.free.available_permits()
    }

    /// Whether little is left, so that pieces had better be worked off than collected. What is kept for readers can be had.
    pub(super) fn is_scarce(&self) -> bool {
        let budget = &self.budget;
        let kept = budget.kept_bytes.load(Ordering::Relaxed);
        budget.free.available_permits() + kept < budget.limit / 4
    }

    /// An empty block. Who keeps one has a share, or the right of a blob to hold one.
    pub(super) fn block(&self) -> Block {
        self.budget.blocks.take()
    }

    /// A share, if there is room or can be made.
    pub(super) fn try_take(&self, bytes: usize) -> Option<Share> {
        let taken = self.budget.try_take(bytes);
        if taken.is_some() || bytes > self.budget.limit {
            return taken;
        }
        self.budget.make_room(bytes);
        self.budget.try_take(bytes)
    }

    /// A share, first come first served. Waits for ever for more than there is altogether.
    pub(super) async fn take(&self, bytes: usize) -> Share {
        let _waiting = Waiting::new(&self.budget.waiting);
        self.budget.make_room(bytes);
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        if bytes > self.budget.limit {
            return future::pending().await;
        }
        match Arc::clone(&self.budget.free)
            .acquire_many_owned(permits)
            .await
        {
            Ok(permit) => Share { permit },
            // It is never closed.
            Err(_) => future::pending().await,
        }
    }

    /// Keeps a piece for readers, unless the room is needed for better.
    pub(super) fn keep(&self, bytes: Bytes) -> Option<Kept> {
        let budget = &self.budget;
        if budget.waiting.load(Ordering::Relaxed) > 0 {
            return None;
        }
        let share = budget.try_take(bytes.len())?;
        let number = budget.next.fetch_add(1, Ordering::Relaxed);
        budget.kept_bytes.fetch_add(bytes.len(), Ordering::Relaxed);
        let kept = KeptBytes {
            bytes,
            _share: share,
        };
        budget.kept().insert(number, kept);
        Some(Kept {
            number,
            budget: Arc::clone(budget),
        })
    }
}

impl Budget {
    fn kept(&self) -> MutexGuard<'_, BTreeMap<u64, KeptBytes>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_take(&self, bytes: usize) -> Option<Share> {
        let permits = u32::try_from(bytes).ok()?;
        let permit = Arc::clone(&self.free).try_acquire_many_owned(permits);
        permit.ok().map(|permit| Share { permit })
    }

    /// Drops kept pieces until so many bytes are free, or none is left.
    fn make_room(&self, bytes: usize) {
        while self.free.available_permits() < bytes {
            let oldest = self.kept().pop_first();
            match oldest {
                Some((_, oldest)) => self.give_back(oldest),
                None => return,
            }
        }
    }

    /// Never under the lock: the bytes may go back to the system.
    fn give_back(&self, kept: KeptBytes) {
        self.kept_bytes
            .fetch_sub(kept.bytes.len(), Ordering::Relaxed);
        drop(kept);
    }
}

impl Kept {
    /// The piece, if it is still there.
    pub(super) fn bytes(&self) -> Option<Bytes> {
        let kept = self.budget.kept();
        kept.get(&self.number).map(|kept| kept.bytes.clone())
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let kept = self.budget.kept().remove(&self.number);
        if let Some(kept) = kept {
            self.budget.give_back(kept);
        }
    }
}

/// Counts somebody who waits, also when that is given up.
#[derive(Debug)]
pub(super) struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    pub(super) fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn kept_pieces_go_oldest_first_when_a_writer_needs_room() {
        let memory = Memory::new(100);
        let keep = |length| memory.keep(Bytes::from(vec![0; length])).unwrap();
        let (old, new) = (keep(40), keep(40));
        assert_eq!(memory.used(), 80);
        let share = memory.try_take(50).unwrap();
        assert!(old.bytes().is_none());
        assert_eq!(new.bytes().unwrap().len(), 40);
        assert_eq!(memory.used(), 90);
        assert!(memory.keep(Bytes::from(vec![0; 11])).is_none());
        assert!(memory.try_take(101).is_none());
        assert_eq!(new.bytes().unwrap().len(), 40);
        drop((share, old, new));
        assert_eq!(memory.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_needs_more_waits_until_it_is_given_back() {
        let memory = Memory::new(100);
        let share = memory.try_take(60).unwrap();
        let wanted = memory.take(50);
        tokio::pin!(wanted);
        let second = Duration::from_secs(1);
        assert!(tokio::time::timeout(second, &mut wanted).await.is_err());
        // Nothing is kept for readers while somebody waits.
        assert!(memory.keep(Bytes::from_static(b"x")).is_none());
        drop(share);
        let taken = wanted.await;
        assert_eq!(memory.used(), 50);
        drop(taken);
        assert_eq!(memory.used(), 0);
        let never = memory.take(101);
        assert!(tokio::time::timeout(second, never).await.is_err());
    }
}
