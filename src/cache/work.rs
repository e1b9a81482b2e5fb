//! What threads do for a blob on its way in: write its pieces, hash them in order, and now and then make sure that a power
//! loss would not cost everything.
//!
//! One thread writes and hashes in turn, whichever is behind, and leaves when there is little to do: a stalled download holds
//! none. A second one joins where the first cannot keep up. The hash follows the contiguous frontier, from memory where the
//! pieces are still there.
//!
//! Whoever works holds the [`Work`], and with it the lock of the digest: the last one to leave puts things in order, and
//! only then does somebody else get the blob's turn.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use crate::image::{Descriptor, Hasher};

use super::{
    Shared,
    arrival::{Arrival, End, Failure, State},
    disk::{Temporary, make_folder, sync_folder},
    error::{Error, Result},
    lock::Held,
    memory::Memory,
    notes::{Hashed, Notes},
    partial::{Partial, WORTH_KEEPING},
    pieces::{Next, Pieces, Run},
    ranges::Ranges,
};

/// Bytes worth a hand-over to a thread: that costs some 20 µs on both sides, hashing this much 0.45 ms. Less
/// than what is noted at a time, so that a killed run loses little more than that.
const ENOUGH: u64 = 768 * 1024;

/// The same while memory is scarce.
const ENOUGH_WHEN_SCARCE: u64 = 128 * 1024;

/// Bytes that wait although a thread is at work: it does not keep up, and a second one helps.
const TOO_MUCH: u64 = 2 * 1024 * 1024;

/// Bytes that a thread takes at once.
const BATCH: u64 = 1024 * 1024;

/// Bytes read back at once for the hash: they stay in the processor's cache.
const READ_BACK: u64 = 256 * 1024;

/// Bytes between two checkpoints: what a power loss costs. One is written at a time, so a slow disk makes them rarer.
const CHECKPOINT_EVERY: u64 = 64 * 1024 * 1024;

/// Bytes that must be left to be hashed: near its end a blob is whole before it could be interrupted.
const WORTH_A_CHECKPOINT: u64 = 16 * 1024 * 1024;

#[derive(Debug)]
pub(super) struct Work {
    pub(super) arrival: Arc<Arrival>,
    hashed: Mutex<Hashed>,
    next_checkpoint: AtomicU64,
    notes: Mutex<Notes>,
    /// The lock of the digest, until the file has its name, is removed or left for a later run.
    pub(super) claim: Arc<Held>,
}

/// What a thread is there for.
#[derive(Debug)]
enum Task {
    /// Writing and hashing.
    Blob,
    Checkpoint(Box<Hashed>),
}

/// What a thread does next.
#[derive(Debug)]
enum Step {
    Write(Vec<Run>),
    Hash(Next),
}

impl Work {
    /// Begins with an empty file, or where an earlier run stopped. Blocks.
    pub(super) fn begin(
        descriptor: Descriptor,
        shared: &Shared,
        memory: Memory,
        claim: Arc<Held>,
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

    /// Lets a thread work if there is enough to do, or if somebody waits for it.
    pub(super) fn start(self: &Arc<Self>) {
        {
            let mut state = self.arrival.lock();
            let enough = match state.threads {
                0 => self.enough(),
                1 => TOO_MUCH,
                _ => return,
            };
            if state.end.is_some() || !state.has_work(enough) {
                return;
            }
            state.threads += 1;
        }
        self.spawn(Task::Blob);
    }

    /// How many bytes are worth a thread's while. Asked under the lock, or somebody might begin to wait for a thread that is
    /// about to leave.
    fn enough(&self) -> u64 {
        let arrival = &self.arrival;
        if arrival.waiting.load(Ordering::SeqCst) > 0 {
            1
        } else if arrival.memory.is_scarce() {
            ENOUGH_WHEN_SCARCE
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

    /// What a thread does next; without enough to do it leaves.
    fn next_step(&self) -> Option<Step> {
        let mut state = self.arrival.lock();
        let enough = self.enough();
        let step = state.next_step(enough);
        if step.is_none() {
            state.threads -= 1;
        }
        step
    }

    fn take(&self, step: Step) -> Result<(), Failure> {
        match step {
            Step::Write(runs) => self.write(&runs),
            Step::Hash(next) => self.hash(next),
        }
    }

    fn write(&self, runs: &[Run]) -> Result<(), Failure> {
        for run in runs {
            let written = self.arrival.partial.write_at(run);
            written.map_err(|source| self.cannot("write", source))?;
        }
        // Before the notes, or a checkpoint that takes their place meanwhile would not know of it.
        let mut state = self.arrival.lock();
        state.is_writing = false;
        let done = state.pieces.note_written(runs, &self.arrival.memory);
        drop(state);
        // Not under the lock: the bytes may go back to the system.
        drop(done);
        self.notes().add(runs.iter().map(Run::range));
        Ok(())
    }

    fn hash(&self, next: Next) -> Result<(), Failure> {
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
        let due = self.checkpoint_due(&hashed);
        drop(hashed);
        let mut state = self.arrival.lock();
        state.is_hashing = false;
        let done = state.pieces.note_hashed(position, &self.arrival.memory);
        state.due = due.or_else(|| state.due.take());
        drop(state);
        drop(done);
        self.arrival.settled.notify_waiters();
        Ok(())
    }

    fn checkpoint_due(&self, hashed: &Hashed) -> Option<Hashed> {
        let position = hashed.position;
        let is_due = position >= self.next_checkpoint.load(Ordering::Relaxed)
            && position + WORTH_A_CHECKPOINT <= self.arrival.descriptor.size;
        is_due.then(|| {
            let next = position + CHECKPOINT_EVERY;
            self.next_checkpoint.store(next, Ordering::Relaxed);
            hashed.clone()
        })
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
        loop {
            let step = self.arrival.lock().next_step(1);
            let Some(step) = step else {
                return self.arrival.ensure_going_on();
            };
            if let Err(failure) = self.take(step) {
                self.fail(failure);
            }
        }
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

impl State {
    /// Whether there is so much to do that nobody is at.
    fn has_work(&self, enough: u64) -> bool {
        self.to_write() >= enough || self.to_hash() >= enough
    }

    const fn to_write(&self) -> u64 {
        if self.is_writing {
            0
        } else {
            self.pieces.unwritten()
        }
    }

    fn to_hash(&self) -> u64 {
        if self.is_hashing {
            0
        } else {
            self.pieces.unhashed()
        }
    }

    /// Takes the longer queue, if it has at least so much.
    fn next_step(&mut self, enough: u64) -> Option<Step> {
        if self.end.is_some() || !self.has_work(enough) {
            return None;
        }
        if self.to_write() >= self.to_hash() {
            self.is_writing = true;
            return Some(Step::Write(self.pieces.next_to_write(BATCH)));
        }
        let next = self.pieces.next_to_hash(BATCH)?;
        self.is_hashing = true;
        Some(Step::Hash(next))
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
                Task::Blob => {
                    while let Some(step) = work.next_step() {
                        work.take(step)?;
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
