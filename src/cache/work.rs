//! What threads do for a blob on its way in: write its pieces, hash them in order, and now and then make sure that a power
//! loss would not cost everything.
//!
//! Writing and hashing go on side by side, on a thread each, which takes all that waits and leaves when there is little: a
//! stalled download holds none. The hash follows the contiguous frontier, from memory where the pieces are still there.
//!
//! Whoever works holds the [`Work`], and with it the lock of the digest: the last one to leave puts things in order, and
//! only then does somebody else get the blob's turn.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;

use crate::image::{Descriptor, Hasher};

use super::{
    Shared,
    arrival::{Arrival, End, Failure},
    disk::{Temporary, make_folder, sync_folder},
    error::{Error, Result},
    lock::{Held, StoreGuard},
    memory::Memory,
    notes::{Hashed, Notes},
    partial::{Partial, WORTH_KEEPING},
    pieces::{Next, Pieces},
    ranges::Ranges,
};

/// Bytes worth a hand-over to a thread: that costs some 10 µs, hashing this much 0.2 ms.
const ENOUGH: u64 = 256 * 1024;

/// Bytes that a thread takes at once.
const BATCH: u64 = 1024 * 1024;

/// Bytes read back at once for the hash: they stay in the processor's cache.
const READ_BACK: u64 = 256 * 1024;

/// Bytes between two checkpoints: what a power loss costs. One is written at a time, so a slow disk makes them rarer.
const CHECKPOINT_EVERY: u64 = 64 * 1024 * 1024;

/// What a claim holds until its file has its name, is removed or left for a later run.
#[derive(Debug)]
pub(super) struct ClaimLocks {
    pub(super) _blob: Held,
    pub(super) _store: StoreGuard,
}

#[derive(Debug)]
pub(super) struct Work {
    pub(super) arrival: Arc<Arrival>,
    hashed: Mutex<Hashed>,
    next_checkpoint: AtomicU64,
    notes: Mutex<Notes>,
    pub(super) claim: Arc<ClaimLocks>,
}

/// What a thread is there for.
#[derive(Debug)]
enum Task {
    Write,
    Hash,
    Checkpoint(Box<Hashed>),
}

impl Work {
    /// Begins with an empty file, or where an earlier run stopped. Blocks.
    pub(super) fn begin(
        descriptor: Descriptor,
        shared: &Shared,
        memory: Memory,
        claim: Arc<ClaimLocks>,
    ) -> Result<Self> {
        let path = shared.layout.partial(&descriptor.digest);
        let mut notes = Notes::new(shared.layout.partial_state(&descriptor.digest), &descriptor);
        // Notes that cannot be read are none.
        let progress = notes.load().ok().flatten();
        let taken_over = progress.and_then(|progress| {
            let partial = Partial::take_over(&path, descriptor.size)?;
            notes.go_on(&progress);
            Some((partial, progress))
        });
        let size = descriptor.size;
        let (partial, pieces, hashed) = if let Some((partial, progress)) = taken_over {
            let pieces = Pieces::new(size, progress.in_file, progress.hashed.position);
            (partial, pieces, progress.hashed)
        } else {
            notes.forget();
            let partial = Partial::create(path, size)?;
            let hashed = Hashed::nothing(descriptor.digest.algorithm());
            (partial, Pieces::new(size, Ranges::default(), 0), hashed)
        };
        Ok(Self {
            next_checkpoint: AtomicU64::new(hashed.position + CHECKPOINT_EVERY),
            hashed: Mutex::new(hashed),
            arrival: Arc::new(Arrival::new(descriptor, partial, pieces, memory)),
            notes: Mutex::new(notes),
            claim,
        })
    }

    /// Lets threads work if there is enough to do for them, or if somebody waits for it.
    pub(super) fn start(self: &Arc<Self>) {
        let enough = self.enough();
        let (writes, hashes) = {
            let mut state = self.arrival.lock();
            if state.end.is_some() {
                return;
            }
            let writes = !state.is_writing && state.pieces.unwritten() >= enough;
            let hashes = !state.is_hashing && state.pieces.unhashed() >= enough;
            state.is_writing |= writes;
            state.is_hashing |= hashes;
            (writes, hashes)
        };
        if writes {
            self.spawn(Task::Write);
        }
        if hashes {
            self.spawn(Task::Hash);
        }
    }

    /// How many bytes are worth a thread's while.
    fn enough(&self) -> u64 {
        let arrival = &self.arrival;
        if arrival.waiting.load(Ordering::SeqCst) > 0 || arrival.memory.is_scarce() {
            1
        } else {
            ENOUGH
        }
    }

    fn spawn(self: &Arc<Self>, task: Task) {
        let thread = Thread {
            work: Arc::clone(self),
            task,
            has_left: false,
        };
        // Its owner is the work, which ends when the last thread has left.
        drop(tokio::task::spawn_blocking(move || thread.run()));
    }

    /// Writes one batch, if at least so much waits; else the writing thread leaves.
    fn write_some(&self, enough: u64) -> Result<bool, Failure> {
        let batch = {
            let mut state = self.arrival.lock();
            if state.end.is_some() || state.pieces.unwritten() < enough {
                state.is_writing = false;
                return Ok(false);
            }
            state.pieces.next_to_write(BATCH)
        };
        self.write(&batch)?;
        Ok(true)
    }

    fn write(&self, batch: &[(u64, Bytes)]) -> Result<(), Failure> {
        let follows = |(offset, bytes): &(u64, Bytes), (next, _): &(u64, Bytes)| {
            offset + bytes.len() as u64 == *next
        };
        for run in batch.chunk_by(follows) {
            let pieces: Vec<&Bytes> = run.iter().map(|(_, bytes)| bytes).collect();
            let Some((offset, _)) = run.first() else {
                continue;
            };
            let written = self.arrival.partial.write_at(*offset, &pieces);
            written.map_err(|source| self.cannot("write", source))?;
        }
        // Before the notes, or a checkpoint that takes their place meanwhile would not know of it.
        let mut state = self.arrival.lock();
        state.pieces.note_written(batch, &self.arrival.memory);
        drop(state);
        let ranges = batch
            .iter()
            .map(|(offset, bytes)| *offset..*offset + bytes.len() as u64);
        self.notes().add(ranges);
        Ok(())
    }

    /// Hashes what comes next, if at least so much is there; else the hashing thread leaves.
    fn hash_some(&self, enough: u64) -> Result<bool, Failure> {
        let next = {
            let mut state = self.arrival.lock();
            let next = match &state.end {
                None if state.pieces.unhashed() >= enough => state.pieces.next_to_hash(BATCH),
                _ => None,
            };
            state.is_hashing = next.is_some();
            next
        };
        let Some(next) = next else {
            return Ok(false);
        };
        let mut hashed = self.hashed();
        match next {
            Next::Memory(pieces) => {
                for piece in pieces {
                    hashed.hasher.update(&piece);
                    hashed.position += piece.len() as u64;
                }
            }
            Next::File(range) => self.read_back(range.end, &mut hashed)?,
        }
        let position = hashed.position;
        let mut due = None;
        if position >= self.next_checkpoint.load(Ordering::Relaxed) {
            let next = position + CHECKPOINT_EVERY;
            self.next_checkpoint.store(next, Ordering::Relaxed);
            due = Some(hashed.clone());
        }
        drop(hashed);
        let mut state = self.arrival.lock();
        state.pieces.note_hashed(position, &self.arrival.memory);
        state.due = due.or_else(|| state.due.take());
        drop(state);
        self.arrival.settled.notify_waiters();
        Ok(true)
    }

    /// Hashes what left memory, up to `end`.
    fn read_back(&self, end: u64, hashed: &mut Hashed) -> Result<(), Failure> {
        let mut buffer = Vec::new();
        while hashed.position < end {
            let length = (end - hashed.position).min(READ_BACK);
            buffer.resize(usize::try_from(length).unwrap_or_default(), 0);
            self.arrival
                .partial
                .read_at(&mut buffer, hashed.position)
                .map_err(|source| Failure::Reading(Arc::new(source)))?;
            hashed.hasher.update(&buffer);
            hashed.position += length;
        }
        Ok(())
    }

    /// Starts the checkpoint that is due, once the file has all it tells of.
    fn start_checkpoint(self: &Arc<Self>) {
        let due = {
            let mut state = self.arrival.lock();
            let in_file = state.pieces.written().end_from(0);
            let ready = |due: &mut Hashed| due.position <= in_file;
            if state.end.is_some() || state.is_syncing {
                return;
            }
            let due = state.due.take_if(ready);
            state.is_syncing = due.is_some();
            due
        };
        if let Some(due) = due {
            self.spawn(Task::Checkpoint(Box::new(due)));
        }
    }

    /// Brings what is in the file to the disk, and notes that.
    fn write_checkpoint(&self, hashed: &Hashed) -> Result<(), Failure> {
        let arrival = &self.arrival;
        let on_disk = arrival.lock().pieces.written().clone();
        let synced = arrival.partial.file.sync_data();
        synced.map_err(|source| self.cannot("sync", source))?;
        if let Err(error) = self.note_checkpoint(hashed, &on_disk) {
            let digest = &arrival.descriptor.digest;
            tracing::debug!(%digest, %error, "no checkpoint is written");
        }
        Ok(())
    }

    fn note_checkpoint(&self, hashed: &Hashed, on_disk: &Ranges) -> Result<()> {
        let path = &self.arrival.partial.path;
        let folder = path.parent().unwrap_or(path);
        let text = self.notes().checkpoint(hashed, on_disk);
        let checkpoint = Temporary::write(folder, text.as_bytes())?;
        let mut notes = self.notes();
        let in_file = self.arrival.lock().pieces.written().clone();
        notes
            .replace(&checkpoint, on_disk, &in_file)
            .map_err(|source| Error::writing("note the progress of", path, 0, source))?;
        drop(notes);
        sync_folder(folder)
    }

    /// Writes and hashes the rest, verifies the blob and gives it its name. The threads must have left.
    pub(super) fn finish(&self, shared: &Shared) -> Result<()> {
        let digest = &self.arrival.descriptor.digest;
        self.settle()?;
        let hasher: Hasher = self.hashed().hasher.clone();
        let actual = hasher.finish();
        if actual != *digest {
            self.arrival.end(End::Wrong);
            self.discard();
            return Err(Error::DigestMismatch {
                expected: digest.clone(),
                actual,
            });
        }
        let target = shared.layout.blob(digest);
        make_folder(&shared.layout.blobs(digest.algorithm()))?;
        self.arrival.partial.rename(&target)?;
        self.notes().close();
        self.arrival.end(End::Verified);
        shared.barrier.note(digest);
        Ok(())
    }

    fn settle(&self) -> Result<()> {
        let settled = (|| {
            while self.write_some(1)? {}
            while self.hash_some(1)? {}
            Ok(())
        })();
        if let Err(failure) = settled {
            self.fail(failure);
        }
        self.arrival.ensure_going_on()
    }

    /// Throws everything away: what came so far is of no use.
    pub(super) fn discard(&self) {
        let mut notes = self.notes();
        // Only once: afterwards the file of that name may be another one.
        if notes.close() {
            self.arrival.partial.remove();
        }
    }

    /// After trouble with the file nobody knows what it holds.
    fn fail(&self, failure: Failure) {
        if self.arrival.end(End::Failed(failure)) {
            self.discard();
        }
    }

    fn cannot(&self, operation: &'static str, source: std::io::Error) -> Failure {
        let missing = self.arrival.missing();
        Failure::Writing {
            operation,
            missing: missing.iter().map(|range| range.end - range.start).sum(),
            source: Arc::new(source),
        }
    }

    /// Leaves what came for a later run, if it is worth that.
    fn leave(&self) -> Result<(), Failure> {
        loop {
            let batch = self.arrival.lock().pieces.next_to_write(BATCH);
            if batch.is_empty() {
                break;
            }
            self.write(&batch)?;
        }
        let written = self.arrival.lock().pieces.written().total();
        if written < WORTH_KEEPING {
            self.discard();
            return Ok(());
        }
        // First what costs nothing: the program may be in a hurry.
        self.notes().flush();
        let hashed = self.hashed().clone();
        self.write_checkpoint(&hashed)
    }

    fn hashed(&self) -> MutexGuard<'_, Hashed> {
        self.hashed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
impl Work {
    /// Nothing is hashed as long as this is held.
    pub(super) fn stall(&self) -> MutexGuard<'_, Hashed> {
        self.hashed()
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.arrival.end(End::GivenUp);
        let is_given_up = matches!(self.arrival.lock().end, Some(End::GivenUp));
        if is_given_up && self.leave().is_err() {
            self.discard();
        }
        if is_given_up {
            self.arrival.lock().pieces.clear();
        }
    }
}

/// A thread at work.
struct Thread {
    work: Arc<Work>,
    task: Task,
    /// It left because there was nothing more to do.
    has_left: bool,
}

impl Thread {
    fn run(mut self) {
        let work = Arc::clone(&self.work);
        let done = (|| {
            match &self.task {
                Task::Write => {
                    while work.write_some(work.enough())? {
                        work.start_checkpoint();
                    }
                }
                Task::Hash => {
                    while work.hash_some(work.enough())? {
                        work.start_checkpoint();
                    }
                }
                Task::Checkpoint(hashed) => {
                    work.write_checkpoint(hashed)?;
                    work.arrival.lock().is_syncing = false;
                    work.start_checkpoint();
                }
            }
            Ok(())
        })();
        self.has_left = true;
        match done {
            Ok(()) => work.arrival.settled.notify_waiters(),
            Err(failure) => work.fail(failure),
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.work.fail(Failure::Interrupted);
        } else if !self.has_left {
            // The program goes down before this thread's turn came.
            self.work.arrival.end(End::GivenUp);
        }
    }
}
