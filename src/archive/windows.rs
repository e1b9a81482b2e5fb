//! Memory of zstd decoders, and of blocks that are being compressed. A frame of some bytes can ask for a window of many
//! megabytes, and several layers of several archives are read at once: all decoders of the process share one budget, and who
//! finds it used up waits. So do all that compress.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{error::Result, limits::Limits, outer::Form};

/// Bytes that all windows may take together: two of the largest that are accepted.
static SHARED: Windows = Windows::new(64 << 20);

/// Bytes that all blocks may take together that are being compressed: two blocks of the highest
/// level of zstd; with gzip four layers on eight processors need less.
static PACKING: Windows = Windows::new(48 << 20);

/// How soon somebody who waits notices that nobody wants the archive any more.
const PATIENCE: Duration = Duration::from_millis(100);

/// A budget of bytes.
#[derive(Debug)]
struct Windows {
    budget: u64,
    taken: Mutex<u64>,
    freed: Condvar,
}

impl Windows {
    const fn new(budget: u64) -> Self {
        Self {
            budget,
            taken: Mutex::new(0),
            freed: Condvar::new(),
        }
    }

    fn taken(&self) -> MutexGuard<'_, u64> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until so many bytes are free. More than all there are is all of them, so that nobody waits for ever.
    fn take(&'static self, bytes: u64, ensure_going_on: impl Fn() -> Result<()>) -> Result<Room> {
        let bytes = bytes.min(self.budget);
        let mut taken = self.taken();
        while *taken + bytes > self.budget {
            ensure_going_on()?;
            let waited = self.freed.wait_timeout(taken, PATIENCE);
            taken = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        *taken += bytes;
        drop(taken);
        Ok(Room {
            windows: self,
            bytes,
        })
    }

    /// Takes so many bytes, if they are free.
    fn take_now(&'static self, bytes: u64) -> Option<Room> {
        let mut taken = self.taken();
        if *taken + bytes > self.budget {
            return None;
        }
        *taken += bytes;
        drop(taken);
        Some(Room {
            windows: self,
            bytes,
        })
    }
}

/// A part of the budget, given back when this is dropped: it lives as long as its decoder.
#[derive(Debug)]
pub(super) struct Room {
    windows: &'static Windows,
    bytes: u64,
}

impl Room {
    /// What a decoder of this form may need; blocks while others have it. Each zstd decoder takes the largest window that is
    /// accepted: what its later frames will ask for is not known at the first one.
    ///
    /// # Errors
    /// What `ensure_going_on` says while we wait.
    pub(super) fn of(
        form: Form,
        limits: &Limits,
        ensure_going_on: impl Fn() -> Result<()>,
    ) -> Result<Self> {
        let bytes = match form {
            Form::Zstd => 1_u64
                .checked_shl(limits.zstd_window_log)
                .unwrap_or(u64::MAX),
            Form::Plain | Form::Gzip | Form::Xz | Form::Bzip2 => 0,
        };
        SHARED.take(bytes, ensure_going_on)
    }

    /// What a block needs that is to be compressed; blocks while others have it.
    ///
    /// # Errors
    /// What `ensure_going_on` says while we wait.
    pub(super) fn to_pack(bytes: u64, ensure_going_on: impl Fn() -> Result<()>) -> Result<Self> {
        PACKING.take(bytes, ensure_going_on)
    }

    /// The same, without waiting; none if others have it.
    pub(super) fn to_pack_now(bytes: u64) -> Option<Self> {
        PACKING.take_now(bytes)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        *self.windows.taken() -= self.bytes;
        self.windows.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU64, Ordering},
        thread,
    };

    use super::*;
    use crate::cache;

    #[test]
    fn decoders_together_never_have_more_than_the_budget() {
        static WINDOWS: Windows = Windows::new(64);
        static NOW: AtomicU64 = AtomicU64::new(0);
        static MOST: AtomicU64 = AtomicU64::new(0);
        let workers: Vec<_> = (0..16)
            .map(|_| {
                thread::spawn(|| {
                    let room = WINDOWS.take(32, || Ok(())).unwrap();
                    let now = NOW.fetch_add(32, Ordering::SeqCst) + 32;
                    MOST.fetch_max(now, Ordering::SeqCst);
                    thread::park_timeout(Duration::from_millis(5));
                    NOW.fetch_sub(32, Ordering::SeqCst);
                    drop(room);
                })
            })
            .collect();
        for worker in workers {
            worker.join().unwrap();
        }
        assert!(MOST.load(Ordering::SeqCst) <= 64);
        assert_eq!(*WINDOWS.taken(), 0);
    }

    #[test]
    fn who_waits_for_memory_can_be_stopped_and_who_needs_none_does_not_wait() {
        static WINDOWS: Windows = Windows::new(64);
        let stopped = || Err(cache::Error::CacheInterrupted.into());
        let room = WINDOWS.take(u64::MAX, stopped).unwrap();
        assert_eq!(room.bytes, 64);
        let error = WINDOWS.take(1, stopped).unwrap_err();
        assert!(error.to_string().contains("given up"), "{error}");
        WINDOWS.take(0, stopped).unwrap();
        drop(room);
        WINDOWS.take(1, stopped).unwrap();
    }

    #[test]
    fn only_zstd_takes_of_the_budget() {
        let limits = Limits::default();
        for (form, bytes) in [(Form::Zstd, 32 << 20), (Form::Gzip, 0), (Form::Plain, 0)] {
            assert_eq!(Room::of(form, &limits, || Ok(())).unwrap().bytes, bytes);
        }
    }
}
