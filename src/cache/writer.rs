//! Writing one blob: bytes come in pieces, in any order and from several workers, and are handed to threads that write and
//! hash them.
//!
//! What waits is bounded, per blob and for the whole process, so memory does not grow with blobs or their number: who is
//! faster than the disk waits.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, TryAcquireError};

use crate::image::Descriptor;

use super::{
    Shared,
    arrival::{Arrival, End},
    blocks::{BLOCK, Block},
    disk::blocking,
    error::{Error, Result},
    lock::Held,
    memory::{Memory, Waiting},
    pieces::{Hold, Room},
    reader::BlobReader,
    work::Work,
};

/// How far ahead of the hash may be written. What lies between is read back from the page cache; farther apart it would
/// come from the disk.
const LAG: u64 = 512 * 1024 * 1024;

/// The right and the duty to fetch a blob. Dropped before [`BlobWriter::finish`], it leaves what came for the next one who
/// tries, if that is at least a mebibyte.
#[derive(Debug)]
#[must_use = "a blob that is not finished gets no name"]
pub struct BlobWriter {
    shared: Arc<Shared>,
    arrival: Arc<Arrival>,
    /// None once [`BlobWriter::finish`] has it.
    work: Option<Arc<Work>>,
    kept: u64,
}

/// Bytes of a blob that follow each other. What comes in small pieces is collected, so that the threads have something to do
/// when they are woken.
#[derive(Debug)]
pub struct Stretch<'a> {
    writer: &'a BlobWriter,
    /// Where the block belongs.
    offset: u64,
    filling: Option<(Block, Room)>,
}

impl BlobWriter {
    /// Begins with an empty partial, or goes on with one that was left. Blocks.
    pub(super) fn begin(
        descriptor: Descriptor,
        shared: Arc<Shared>,
        memory: Memory,
        lock: Held,
    ) -> Result<Self> {
        let work = Arc::new(Work::begin(descriptor, &shared, memory, Arc::new(lock))?);
        let kept = work.arrival.lock().pieces.written().total();
        // What an earlier run left and did not hash. Whoever waits for the hash may have nothing to hand over that would start it.
        work.start();
        Ok(Self {
            shared,
            arrival: Arc::clone(&work.arrival),
            work: Some(work),
            kept,
        })
    }

    /// What is being fetched.
    pub fn descriptor(&self) -> &Descriptor {
        &self.arrival.descriptor
    }

    /// How many bytes an earlier run left that are used.
    pub const fn kept(&self) -> u64 {
        self.kept
    }

    /// What is still to be fetched, in order. Nothing of a blob that is whole: then only [`BlobWriter::finish`] is missing.
    pub fn missing(&self) -> Vec<Range<u64>> {
        self.arrival.missing()
    }

    /// Takes bytes that belong at `offset`, in any order and from several tasks at once; what is there already is skipped.
    /// Returns at once while the disk keeps up.
    ///
    /// # Errors
    /// When there are more bytes than the descriptor says, and when they cannot be stored; that lasts until
    /// [`BlobWriter::restart`].
    pub async fn write_at(&self, offset: u64, bytes: Bytes) -> Result<()> {
        let mut stretch = self.stretch(offset);
        stretch.write(&bytes).await?;
        stretch.hand_on()
    }

    /// For bytes that follow each other from `offset` on.
    pub const fn stretch(&self, offset: u64) -> Stretch<'_> {
        Stretch {
            writer: self,
            offset,
            filling: None,
        }
    }

    /// A block to be filled from `offset`, and the room it takes.
    async fn block(&self, offset: u64) -> Result<(Block, Room)> {
        let length = self.block_length(offset);
        self.stay_near_the_hash(offset + length as u64).await?;
        let room = Room {
            of_the_blob: self.room_of_the_blob(length).await?,
            of_the_process: self.room_of_the_process(length).await?,
        };
        Ok((self.arrival.memory.block(), room))
    }

    /// How much of the blob a block takes from `offset`.
    fn block_length(&self, offset: u64) -> usize {
        let rest = self.arrival.descriptor.size - offset;
        usize::try_from(rest).map_or(BLOCK, |rest| rest.min(BLOCK))
    }

    fn take_in(&self, offset: u64, piece: &Bytes, room: Room) -> Result<()> {
        let has_moved = {
            let mut state = self.arrival.lock();
            if let Some(end) = &state.end {
                return Err(self.arrival.error(end));
            }
            state.pieces.accept(offset, piece, room)
        };
        if has_moved {
            self.arrival.arrived.notify_waiters();
        }
        self.start_work();
        Ok(())
    }

    /// Up to where bytes are taken without waiting for the hash, with room for what is on its way already. Whoever asks for
    /// bytes behind that holds a connection that those at the hash may need.
    ///
    /// # Errors
    /// When the blob cannot be stored: the hash stands still then.
    pub fn reach(&self) -> Result<u64> {
        self.arrival.ensure_going_on()?;
        Ok(self.hashed().saturating_add(LAG / 2))
    }

    /// How many bytes went into the hash.
    pub(super) fn hashed(&self) -> u64 {
        self.arrival.lock().pieces.hashed()
    }

    /// Waits while the hash is too far behind `end`.
    async fn stay_near_the_hash(&self, end: u64) -> Result<()> {
        if self.hashed().saturating_add(LAG) >= end {
            return Ok(());
        }
        let _waiting = Waiting::new(&self.arrival.waiting);
        self.start_work();
        self.arrival
            .until(|state| state.pieces.hashed().saturating_add(LAG) >= end)
            .await
    }

    async fn room_of_the_blob(&self, bytes: usize) -> Result<OwnedSemaphorePermit> {
        let room = &self.arrival.room;
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        match Arc::clone(room).try_acquire_many_owned(permits) {
            Ok(permit) => return Ok(permit),
            Err(TryAcquireError::Closed) => return Err(self.ended()),
            Err(TryAcquireError::NoPermits) => {}
        }
        let _waiting = Waiting::new(&self.arrival.waiting);
        self.start_work();
        let permit = Arc::clone(room).acquire_many_owned(permits).await;
        permit.map_err(|_| self.ended())
    }

    async fn room_of_the_process(&self, bytes: usize) -> Result<Hold> {
        let memory = &self.arrival.memory;
        if let Some(share) = memory.try_take(bytes) {
            return Ok(Hold::Share(share));
        }
        let _waiting = Waiting::new(&self.arrival.waiting);
        self.start_work();
        // One piece may always be held: whatever others do, this blob moves on.
        tokio::select! {
            share = memory.take(bytes) => Ok(Hold::Share(share)),
            spare = Arc::clone(&self.arrival.spare).acquire_owned() => match spare {
                Ok(spare) => Ok(Hold::Spare(spare)),
                Err(_) => Err(self.ended()),
            },
        }
    }

    fn start_work(&self) {
        if let Some(work) = &self.work {
            work.start();
        }
    }

    /// Reads the blob while it comes.
    pub fn reader(&self) -> BlobReader {
        BlobReader::following(&self.arrival)
    }

    /// Starts again from nothing, also after an error. The file is a new one: after a failed write nobody knows what the
    /// old one holds. Readers of before get an error.
    pub async fn restart(&mut self) -> Result<()> {
        self.arrival.end(End::Restarted);
        let Some(former) = self.work.clone() else {
            return Err(Error::CacheInterrupted);
        };
        let (descriptor, memory) = (self.descriptor().clone(), self.arrival.memory.clone());
        let shared = Arc::clone(&self.shared);
        let work = blocking(move || {
            former.discard();
            Work::begin(descriptor, &shared, memory, Arc::clone(&former.claim))
        })
        .await?;
        self.arrival = Arc::clone(&work.arrival);
        self.work = Some(Arc::new(work));
        self.kept = 0;
        Ok(())
    }

    /// Waits for the hash, verifies the blob and gives it its name.
    ///
    /// # Errors
    /// When bytes are missing: those that came are left for a later run. When the bytes are not what the digest says: they
    /// are removed, also those that an earlier run left, so it is worth fetching the blob once more.
    pub async fn finish(mut self) -> Result<()> {
        let missing: u64 = self.missing().iter().map(|gap| gap.end - gap.start).sum();
        if missing > 0 {
            self.arrival.ensure_going_on()?;
            return Err(self.size_mismatch(self.arrival.descriptor.size - missing));
        }
        self.arrival.until(|state| state.threads == 0).await?;
        let Some(work) = self.work.take() else {
            return Err(Error::CacheInterrupted);
        };
        let shared = Arc::clone(&self.shared);
        blocking(move || work.finish(&shared)).await
    }

    fn ended(&self) -> Error {
        let end = self.arrival.lock().end.clone();
        self.arrival.error(&end.unwrap_or(End::GivenUp))
    }

    fn size_mismatch(&self, actual: u64) -> Error {
        Error::SizeMismatch {
            digest: self.arrival.descriptor.digest.clone(),
            expected: self.arrival.descriptor.size,
            actual,
        }
    }
}

impl Stretch<'_> {
    /// Where the next byte belongs.
    pub fn end(&self) -> u64 {
        let filled = self.filling.as_ref().map_or(0, |(block, _)| block.len());
        self.offset + filled as u64
    }

    /// Takes the bytes that follow. They count only when they were handed on.
    ///
    /// # Errors
    /// Those of [`BlobWriter::write_at`].
    pub async fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        let end = self.end().saturating_add(bytes.len() as u64);
        if end > self.writer.arrival.descriptor.size {
            return Err(self.writer.size_mismatch(end));
        }
        while !bytes.is_empty() {
            let (block, _) = match &mut self.filling {
                Some(filling) => filling,
                none => none.insert(self.writer.block(self.offset).await?),
            };
            bytes = &bytes[block.fill(bytes)..];
            if block.len() == BLOCK {
                self.hand_on()?;
            }
        }
        Ok(())
    }

    /// Hands on what is there. Whoever waits for more does this first: others may need the room.
    ///
    /// # Errors
    /// When the blob cannot be stored.
    pub fn hand_on(&mut self) -> Result<()> {
        let Some((block, mut room)) = self.filling.take() else {
            return Ok(());
        };
        let length = block.len();
        room.give_back(self.writer.block_length(self.offset) - length);
        self.writer
            .take_in(self.offset, &block.into_bytes(), room)?;
        self.offset += length as u64;
        Ok(())
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        let Some(work) = self.work.take() else {
            return;
        };
        self.arrival.end(End::GivenUp);
        // The last one to leave writes notes and waits for the disk: not on a thread that serves the network. At the end of
        // the program there is no other.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            drop(runtime.spawn_blocking(move || drop(work)));
        }
    }
}

#[cfg(test)]
impl BlobWriter {
    /// Whether the threads have done all they would do without more bytes.
    pub(super) fn is_worked_off(&self) -> bool {
        let state = self.arrival.lock();
        state.threads == 0 && !state.is_syncing && state.due.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        Cache, Claim,
        testing::{fixture, layer, put},
    };
    use super::*;
    use crate::{
        cache::arrival::ROOM,
        image::{Algorithm, Digest},
    };

    /// As many bytes, all different from their neighbours.
    fn content(length: usize) -> Vec<u8> {
        (0..=250).cycle().take(length).collect()
    }

    async fn claim(cache: &Cache, descriptor: &Descriptor) -> BlobWriter {
        match cache.claim_blob(descriptor).await.unwrap() {
            Claim::Fetch(writer) => writer,
            Claim::Present => panic!("{} is present", descriptor.digest),
        }
    }

    #[tokio::test]
    async fn a_blob_with_a_wrong_digest_is_never_linked() {
        let fixture = fixture();
        let wanted = layer(b"right");
        let error = put(&fixture.cache, &wanted, b"wrong").await.unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::DigestMismatch { .. }), "{text}");
        for digest in [&wanted.digest, &Digest::of(b"wrong")] {
            assert!(text.contains(&digest.to_string()), "{text}");
        }
        assert!(!fixture.cache.has_blob(&wanted).await.unwrap());
        assert_eq!(fixture.files(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_blob_with_too_few_or_too_many_bytes_is_refused() {
        let fixture = fixture();
        let mut short = layer(b"five!");
        short.size = 6;
        let error = put(&fixture.cache, &short, b"five!").await.unwrap_err();
        assert!(
            error.to_string().contains("6 bytes, but only 5 came"),
            "{error}"
        );
        let mut long = layer(b"five!");
        long.size = 4;
        let error = put(&fixture.cache, &long, b"five!").await.unwrap_err();
        assert!(
            error.to_string().contains("4 bytes, but at least 5 came"),
            "{error}"
        );
        put(&fixture.cache, &layer(b"five!"), b"five!")
            .await
            .unwrap();
        assert!(!fixture.cache.has_blob(&long).await.unwrap());
    }

    #[tokio::test]
    async fn a_finished_blob_is_complete() {
        let fixture = fixture();
        // More than the queue holds, in pieces of odd sizes.
        let content = content(ROOM * 2 + 5);
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let mut descriptor = layer(&content);
            descriptor.digest = Digest::with_algorithm(algorithm, &content);
            let writer = claim(&fixture.cache, &descriptor).await;
            let mut offset = 0;
            for piece in content.chunks(70_001) {
                writer
                    .write_at(offset, Bytes::copy_from_slice(piece))
                    .await
                    .unwrap();
                offset += piece.len() as u64;
                writer.write_at(offset, Bytes::new()).await.unwrap();
            }
            writer.finish().await.unwrap();
            let path = fixture.cache.shared.layout.blob(&descriptor.digest);
            assert!(path.parent().unwrap().ends_with(algorithm.name()));
            assert_eq!(std::fs::read(&path).unwrap(), content);
            assert!(
                fixture
                    .cache
                    .open_blob(&descriptor)
                    .await
                    .unwrap()
                    .is_some()
            );
        }
    }

    #[tokio::test]
    async fn an_empty_blob_is_a_blob() {
        let fixture = fixture();
        put(&fixture.cache, &layer(b""), b"").await.unwrap();
        assert!(fixture.cache.has_blob(&layer(b"")).await.unwrap());
    }

    #[tokio::test]
    async fn a_restart_forgets_what_came_before() {
        let fixture = fixture();
        let content = vec![7; 3 << 20];
        let descriptor = layer(&content);
        let mut writer = claim(&fixture.cache, &descriptor).await;
        writer.write_at(0, vec![1; 2 << 20].into()).await.unwrap();
        let reader = writer.reader();
        writer.restart().await.unwrap();
        assert!(reader.read(0, 1).await.is_err());
        assert_eq!(writer.missing().first(), Some(&(0..3 << 20)));
        let excess = writer.write_at(1, content.clone().into()).await;
        assert!(matches!(excess, Err(Error::SizeMismatch { .. })));
        writer.write_at(0, content.into()).await.unwrap();
        writer.finish().await.unwrap();
        assert!(fixture.cache.has_blob(&descriptor).await.unwrap());
        assert_eq!(fixture.files().len(), 1, "{:?}", fixture.files());
    }

    #[tokio::test]
    async fn a_writer_that_is_dropped_early_leaves_nothing_and_lets_the_next_one_in() {
        let fixture = fixture();
        let content = content(3 << 20);
        let descriptor = layer(&content);
        for received in [0, 10, 1 << 19] {
            let writer = claim(&fixture.cache, &descriptor).await;
            writer
                .write_at(0, content[..received].to_vec().into())
                .await
                .unwrap();
            drop(writer);
            // The next claim has waited until the one before was gone.
            let writer = claim(&fixture.cache, &descriptor).await;
            assert_eq!(writer.kept(), 0);
            assert_eq!(
                fixture.files(),
                [format!("blobs/.partial/{}", descriptor.digest)]
            );
        }
        put(&fixture.cache, &descriptor, &content).await.unwrap();
        assert_eq!(fixture.files().len(), 1);
    }

    #[tokio::test]
    async fn a_blob_larger_than_any_volume_is_refused_before_its_first_byte() {
        let fixture = fixture();
        let mut descriptor = layer(b"");
        descriptor.size = u64::MAX / 2;
        let error = fixture.cache.claim_blob(&descriptor).await.unwrap_err();
        assert!(matches!(error, Error::CacheFull { .. }), "{error}");
        assert_eq!(fixture.files(), Vec::<String>::new());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn many_workers_may_write_one_blob_in_any_order() {
        let fixture = fixture();
        let content = Bytes::from(content((9 << 20) + 77));
        let descriptor = layer(&content);
        let writer = Arc::new(claim(&fixture.cache, &descriptor).await);
        let mut workers = tokio::task::JoinSet::new();
        for number in (0..10_usize).rev() {
            let (writer, content) = (Arc::clone(&writer), content.clone());
            workers.spawn(async move {
                let start = number << 20;
                let range = content.slice(start..content.len().min(start + (1 << 20)));
                let mut offset = start as u64;
                for piece in range.chunks(33_333) {
                    let piece = Bytes::copy_from_slice(piece);
                    let length = piece.len() as u64;
                    writer.write_at(offset, piece).await.unwrap();
                    offset += length;
                }
            });
        }
        while let Some(done) = workers.join_next().await {
            done.unwrap();
        }
        assert_eq!(writer.missing(), []);
        Arc::into_inner(writer).unwrap().finish().await.unwrap();
        let path = fixture.cache.shared.layout.blob(&descriptor.digest);
        assert_eq!(std::fs::read(path).unwrap(), content);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn memory_is_bounded_while_the_hash_stalls_and_nobody_waits_for_ever() {
        const BLOBS: usize = 16;
        for budget in [0, 5 * BLOCK, 3 << 20] {
            let fixture = fixture();
            let memory = Memory::new(budget);
            let cache = fixture.cache.with_memory(memory.clone());
            let bytes = Bytes::from(content(3 << 20));
            let writers: Vec<_> = futures::future::join_all((0..BLOBS).map(|number| {
                let mut bytes = bytes.to_vec();
                bytes[0] = u8::try_from(number).unwrap();
                let cache = cache.clone();
                async move {
                    let writer = claim(&cache, &layer(&bytes)).await;
                    (Arc::new(writer), Bytes::from(bytes))
                }
            }))
            .await;
            let stalls: Vec<_> = writers
                .iter()
                .map(|(writer, _)| Arc::clone(writer.work.as_ref().unwrap()))
                .collect();
            let stalls: Vec<_> = stalls.iter().map(|work| work.stall()).collect();
            let mut tasks = tokio::task::JoinSet::new();
            let piece = 200_000;
            let arrivals: Vec<_> = writers
                .iter()
                .map(|(writer, _)| Arc::clone(&writer.arrival))
                .collect();
            for (writer, bytes) in writers {
                tasks.spawn(async move {
                    for number in 0..bytes.len().div_ceil(piece) {
                        let start = number * piece;
                        let piece = bytes.slice(start..bytes.len().min(start + piece));
                        writer.write_at(start as u64, piece).await.unwrap();
                    }
                    Arc::into_inner(writer)
                });
            }
            let mut most = 0;
            for _ in 0..40 {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                let held = arrivals
                    .iter()
                    .map(|arrival| arrival.lock().pieces.bytes_in_memory());
                most = most.max(held.sum::<usize>());
            }
            assert!(most <= budget + BLOBS * BLOCK, "{most} with {budget}");
            assert!(most >= BLOBS * BLOCK, "{most} with {budget}");
            drop(stalls);
            while let Some(writer) = tasks.join_next().await {
                writer.unwrap().unwrap().finish().await.unwrap();
            }
            assert_eq!(memory.used(), 0);
        }
    }

    #[tokio::test]
    async fn what_comes_in_small_pieces_is_handed_on_in_blocks_or_when_it_is_told() {
        let fixture = fixture();
        let content = content(2 * BLOCK + 10);
        let descriptor = layer(&content);
        let memory = Memory::default();
        let cache = fixture.cache.with_memory(memory.clone());
        let writer = claim(&cache, &descriptor).await;
        let size = descriptor.size;
        let mut stretch = writer.stretch(0);
        stretch.write(&content[..BLOCK - 1]).await.unwrap();
        assert_eq!(writer.missing().first(), Some(&(0..size)));
        assert_eq!(memory.used(), BLOCK);
        stretch.write(&content[BLOCK - 1..=BLOCK]).await.unwrap();
        assert_eq!(writer.missing().first(), Some(&(BLOCK as u64..size)));
        assert_eq!(stretch.end(), BLOCK as u64 + 1);
        stretch.hand_on().unwrap();
        stretch.hand_on().unwrap();
        assert_eq!(writer.missing().first(), Some(&(BLOCK as u64 + 1..size)));
        // Room is held for what is there.
        assert_eq!(memory.used(), BLOCK + 1);
        let excess = stretch.write(&content[BLOCK..]).await;
        assert!(matches!(excess, Err(Error::SizeMismatch { .. })));
        stretch.write(&content[BLOCK + 1..]).await.unwrap();
        stretch.hand_on().unwrap();
        assert_eq!(stretch.end(), size);
        writer.finish().await.unwrap();
        assert_eq!(memory.used(), 0);
    }

    #[tokio::test]
    async fn what_was_not_handed_on_was_never_there() {
        let fixture = fixture();
        let content = content(100);
        let writer = claim(&fixture.cache, &layer(&content)).await;
        let mut stretch = writer.stretch(0);
        stretch.write(&content).await.unwrap();
        drop(stretch);
        assert_eq!(writer.missing().first(), Some(&(0..100)));
        writer.write_at(0, content.into()).await.unwrap();
        writer.finish().await.unwrap();
    }

    #[tokio::test]
    async fn a_writer_waits_when_it_is_too_far_ahead_of_the_hash() {
        let fixture = fixture();
        let mut descriptor = layer(b"large");
        descriptor.size = LAG + (2 << 20);
        let writer = claim(&fixture.cache, &descriptor).await;
        let piece = Bytes::from(vec![0; 1 << 20]);
        writer
            .write_at(LAG - (1 << 20), piece.clone())
            .await
            .unwrap();
        let second = std::time::Duration::from_millis(100);
        let ahead = writer.write_at(LAG, piece.clone());
        tokio::pin!(ahead);
        assert!(tokio::time::timeout(second, &mut ahead).await.is_err());
        writer.write_at(0, piece).await.unwrap();
        ahead.await.unwrap();
    }
}
