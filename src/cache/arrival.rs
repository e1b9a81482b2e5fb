//! A blob on its way in, as its writer, the threads that work for it and its readers share it.

use std::{
    fmt, io,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, atomic::AtomicUsize},
};

use tokio::sync::{Notify, Semaphore};

use crate::image::Descriptor;

use super::{
    error::{Error, Result},
    memory::Memory,
    notes::Hashed,
    partial::Partial,
    pieces::{Found, Pieces},
};

/// Most bytes of one blob that wait to be written and hashed: enough for both to work at full speed side by side.
pub(super) const ROOM: usize = 4 * 1024 * 1024;

/// The end of a blob that nobody gets before its digest is known to be right: without it, no receiver takes the blob.
pub(super) const HELD_BACK: u64 = 64 * 1024;

pub(super) struct Arrival {
    pub(super) descriptor: Descriptor,
    pub(super) partial: Partial,
    pub(super) memory: Memory,
    /// What is left of [`ROOM`].
    pub(super) room: Arc<Semaphore>,
    /// The right to hold a piece when the memory of the process is used up.
    pub(super) spare: Arc<Semaphore>,
    /// How many wait for others of this blob to be worked off.
    pub(super) waiting: AtomicUsize,
    state: Mutex<State>,
    /// More can be read, or it is over.
    pub(super) arrived: Notify,
    /// Something was hashed, a thread has left, or it is over.
    pub(super) settled: Notify,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) pieces: Pieces,
    pub(super) end: Option<End>,
    /// How many write and hash.
    pub(super) threads: usize,
    /// One of them is at it, and so on.
    pub(super) is_writing: bool,
    pub(super) is_hashing: bool,
    pub(super) is_syncing: bool,
    /// The hash at the point of the next checkpoint, until that is written.
    pub(super) due: Option<Hashed>,
}

/// How it ended.
#[derive(Debug, Clone)]
pub(super) enum End {
    /// The writer was dropped; a later one may go on.
    GivenUp,
    /// Everything was thrown away, and it begins anew.
    Restarted,
    /// The bytes are not what the digest says.
    Wrong,
    Failed(Failure),
    /// The blob is whole, right and has its name.
    Verified,
}

/// Trouble with the file, to be told to everybody who asks.
#[derive(Debug, Clone)]
pub(super) enum Failure {
    Writing {
        operation: &'static str,
        missing: u64,
        source: Arc<io::Error>,
    },
    Reading(Arc<io::Error>),
    /// The threads are gone: the program goes down.
    Interrupted,
}

impl fmt::Debug for Arrival {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the pieces: they are the blob.
        let end = self.lock().end.clone();
        formatter
            .debug_struct("Arrival")
            .field("digest", &self.descriptor.digest)
            .field("end", &end)
            .finish_non_exhaustive()
    }
}

impl Arrival {
    pub(super) fn new(
        descriptor: Descriptor,
        partial: Partial,
        pieces: Pieces,
        memory: Memory,
    ) -> Self {
        Self {
            descriptor,
            partial,
            memory,
            room: Arc::new(Semaphore::new(ROOM)),
            spare: Arc::new(Semaphore::new(1)),
            waiting: AtomicUsize::new(0),
            state: Mutex::new(State {
                pieces,
                end: None,
                threads: 0,
                is_writing: false,
                is_hashing: false,
                is_syncing: false,
                due: None,
            }),
            arrived: Notify::new(),
            settled: Notify::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn missing(&self) -> Vec<Range<u64>> {
        self.lock().pieces.missing()
    }

    /// Ends it, unless it ended before; tells whether this was the end.
    pub(super) fn end(&self, end: End) -> bool {
        let is_first = {
            let mut state = self.lock();
            let is_first = state.end.is_none();
            if is_first {
                match end {
                    // What waits is written by the one who leaves last; what is verified may still be read.
                    End::GivenUp | End::Verified => {}
                    End::Restarted | End::Wrong | End::Failed(_) => state.pieces.clear(),
                }
                state.end = Some(end);
            }
            is_first
        };
        self.room.close();
        self.spare.close();
        self.arrived.notify_waiters();
        self.settled.notify_waiters();
        is_first
    }

    /// Fails once it is over.
    pub(super) fn ensure_going_on(&self) -> Result<()> {
        match &self.lock().end {
            None => Ok(()),
            Some(end) => Err(self.error(end)),
        }
    }

    /// Why nothing more can be written.
    pub(super) fn error(&self, end: &End) -> Error {
        let path = &self.partial.path;
        match end {
            End::Failed(Failure::Writing {
                operation,
                missing,
                source,
            }) => {
                let source = io::Error::new(source.kind(), Arc::clone(source));
                Error::writing(operation, path, *missing, source)
            }
            End::Failed(Failure::Reading(source)) => {
                let source = io::Error::new(source.kind(), Arc::clone(source));
                Error::reading("read back", path, source)
            }
            End::Failed(Failure::Interrupted) | End::GivenUp => Error::CacheInterrupted,
            End::Restarted | End::Wrong | End::Verified => {
                Error::reading("go on writing", path, io::Error::other(end.for_readers()))
            }
        }
    }

    /// Waits until `done`, which is asked again whenever something was worked off; fails once it is over.
    pub(super) async fn until(&self, done: impl Fn(&State) -> bool) -> Result<()> {
        loop {
            let settled = self.settled.notified();
            tokio::pin!(settled);
            settled.as_mut().enable();
            {
                let state = self.lock();
                if let Some(end) = &state.end {
                    return Err(self.error(end));
                }
                if done(&state) {
                    return Ok(());
                }
            }
            settled.await;
        }
    }

    /// Where a reader finds bytes from `offset`, at most `limit` of them.
    pub(super) fn find(
        &self,
        reader: &OnceLock<u64>,
        offset: u64,
        limit: usize,
    ) -> io::Result<Found> {
        let size = self.descriptor.size;
        let mut state = self.lock();
        let end = match &state.end {
            None => size.saturating_sub(HELD_BACK),
            Some(End::Verified) => size,
            Some(end) => return Err(io::Error::other(end.for_readers())),
        };
        let wanted = offset.saturating_add(u64::try_from(limit).unwrap_or(u64::MAX));
        let reader = *reader.get_or_init(|| state.pieces.begin_reading());
        Ok(state.pieces.find(reader, offset, wanted.min(end)))
    }
}

impl End {
    const fn for_readers(&self) -> &'static str {
        match self {
            Self::GivenUp => "the download of this blob was given up",
            Self::Restarted => "the download of this blob began anew",
            Self::Wrong => "the bytes that came for this blob are not what its digest says",
            Self::Failed(_) => "the blob could not be stored in the cache",
            Self::Verified => "the blob is in the cache",
        }
    }
}
