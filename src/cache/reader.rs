//! Reading a blob, also one that is still on its way in: an upload may follow a download.

use std::{
    fmt,
    fs::File,
    io::{self, IoSliceMut},
    os::unix::fs::FileExt,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use rustix::io::{ReadWriteFlags, preadv2};

use super::{arrival::Arrival, blocks::Block, memory::Memory, pieces::Found};

/// A blob that can be read at any offset, by several at once: there is no shared cursor.
#[derive(Clone, Debug)]
pub struct BlobReader {
    size: u64,
    file: Arc<File>,
    memory: Memory,
    /// None of a blob that was whole from the start.
    follows: Option<Follower>,
}

/// A reader that the writer knows of: what it has not had is kept in memory for a while.
struct Follower {
    arrival: Arc<Arrival>,
    /// None before its first read.
    number: OnceLock<u64>,
}

impl Follower {
    fn new(arrival: &Arc<Arrival>) -> Self {
        arrival.lock().pieces.expect_reader();
        Self {
            arrival: Arc::clone(arrival),
            number: OnceLock::new(),
        }
    }
}

/// Another one that begins anew: it may read faster or more slowly.
impl Clone for Follower {
    fn clone(&self) -> Self {
        Self::new(&self.arrival)
    }
}

impl fmt::Debug for Follower {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.arrival, formatter)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let number = self.number.get().copied();
        self.arrival.lock().pieces.remove_reader(number);
    }
}

impl BlobReader {
    pub(super) fn of_file(file: File, size: u64, memory: &Memory) -> Self {
        Self {
            size,
            file: Arc::new(file),
            memory: memory.clone(),
            follows: None,
        }
    }

    pub(super) fn following(arrival: &Arc<Arrival>) -> Self {
        Self {
            size: arrival.descriptor.size,
            file: Arc::clone(&arrival.partial.file),
            memory: arrival.memory.clone(),
            follows: Some(Follower::new(arrival)),
        }
    }

    /// How many bytes the whole blob has.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// At least one and at most `limit` bytes from `offset`, as soon as they are there. The last 64 KiB of a blob (the whole
    /// of a smaller one) come only once its digest is known to be right.
    ///
    /// # Errors
    /// When the download was given up, began anew or brought the wrong bytes, when the file cannot be read, and when there
    /// is nothing at `offset`.
    pub async fn read(&self, offset: u64, limit: usize) -> io::Result<Bytes> {
        if limit == 0 || offset >= self.size {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let Some(follower) = &self.follows else {
            return self.read_file(offset, self.size - offset, limit).await;
        };
        let Follower { arrival, number } = follower;
        loop {
            let arrived = arrival.arrived.notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            match arrival.find(number, offset, limit)? {
                Found::Memory(bytes) => return Ok(bytes),
                Found::File(length) => return self.read_file(offset, length, limit).await,
                Found::NotYet => arrived.await,
            }
        }
    }

    /// Waits until first bytes are there, or until it is over.
    pub async fn begun(&self) {
        let Some(follower) = &self.follows else {
            return;
        };
        let arrival = &follower.arrival;
        loop {
            let arrived = arrival.arrived.notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            {
                let state = arrival.lock();
                if state.end.is_some() || state.pieces.frontier() > 0 {
                    return;
                }
            }
            arrived.await;
        }
    }

    async fn read_file(&self, offset: u64, length: u64, limit: usize) -> io::Result<Bytes> {
        let length = usize::try_from(length).unwrap_or(limit).min(limit);
        let mut block = self.memory.block();
        if read_cached(&self.file, &mut block, length, offset) {
            return Ok(block.into_bytes());
        }
        let file = Arc::clone(&self.file);
        let read = move || {
            block.fill_by(length, |room| {
                file.read_exact_at(room, offset).map(|()| room.len())
            })?;
            Ok(block.into_bytes())
        };
        let interrupted = || io::Error::other("the program goes down");
        crate::blocking::blocking(read, interrupted).await
    }
}

/// Reads what the page cache has, which needs no other thread; tells whether that was anything. Where the file system cannot
/// tell, that is an error, and the disk is read.
fn read_cached(file: &File, block: &mut Block, limit: usize, offset: u64) -> bool {
    let read = block.fill_by(limit, |room| {
        let slices = &mut [IoSliceMut::new(room)];
        preadv2(file, slices, offset, ReadWriteFlags::NOWAIT)
    });
    read.is_ok_and(|read| read > 0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::task::JoinSet;

    use super::super::{
        BlobWriter, Cache, Claim, Memory,
        arrival::HELD_BACK,
        testing::{fixture, layer, put},
    };
    use super::*;
    use crate::image::Descriptor;

    const MIB: usize = 1024 * 1024;

    fn content(length: usize) -> Bytes {
        (0..=250).cycle().take(length).collect()
    }

    async fn claim(cache: &Cache, descriptor: &Descriptor) -> BlobWriter {
        match cache.claim_blob(descriptor).await.unwrap() {
            Claim::Fetch(writer) => writer,
            Claim::Present => panic!("{} is present", descriptor.digest),
        }
    }

    async fn read_all(reader: BlobReader) -> io::Result<Vec<u8>> {
        let mut read = Vec::new();
        while (read.len() as u64) < reader.size() {
            read.extend(reader.read(read.len() as u64, 100_000).await?);
        }
        Ok(read)
    }

    /// Whether it does not come to an end.
    async fn waits<T>(work: impl Future<Output = T>) -> bool {
        tokio::time::timeout(Duration::from_millis(100), work)
            .await
            .is_err()
    }

    #[tokio::test]
    async fn a_reader_gets_bytes_as_they_come_but_the_last_ones_only_when_all_are_right() {
        let fixture = fixture();
        let content = content(3 * MIB);
        let descriptor = layer(&content);
        let writer = claim(&fixture.cache, &descriptor).await;
        let reader = writer.reader();
        assert!(waits(reader.begun()).await && waits(reader.read(0, 1)).await);
        writer.write_at(0, content.slice(..10)).await.unwrap();
        reader.begun().await;
        assert_eq!(reader.read(0, 100).await.unwrap(), content[..10]);
        assert_eq!(reader.read(4, 3).await.unwrap(), content[4..7]);
        assert!(waits(reader.read(10, 1)).await);
        // What lies behind a gap does not fill it.
        writer.write_at(20, content.slice(20..)).await.unwrap();
        assert!(waits(reader.read(10, 1)).await);
        writer.write_at(10, content.slice(10..20)).await.unwrap();

        let end = content.len() as u64 - HELD_BACK;
        let mut position = 0;
        while position < end {
            position += reader.read(position, MIB).await.unwrap().len() as u64;
        }
        assert_eq!(position, end, "more was given away than may be");
        assert!(waits(reader.read(end, 1)).await);
        let follower = tokio::task::JoinSet::from_iter([read_all(reader.clone())]);
        writer.finish().await.unwrap();
        assert_eq!(follower.join_all().await.remove(0).unwrap(), content);
        assert_eq!(read_all(reader).await.unwrap(), content);
    }

    #[tokio::test]
    async fn a_small_blob_is_read_only_when_it_is_right() {
        let fixture = fixture();
        let descriptor = layer(b"small");
        let writer = claim(&fixture.cache, &descriptor).await;
        let reader = writer.reader();
        let bytes = Bytes::from_static(b"wrong");
        writer.write_at(0, bytes).await.unwrap();
        assert!(waits(reader.read(0, 5)).await);
        writer.finish().await.unwrap_err();
        let error = reader.read(0, 5).await.unwrap_err();
        assert!(
            error.to_string().contains("not what its digest says"),
            "{error}"
        );

        put(&fixture.cache, &descriptor, b"small").await.unwrap();
        let reader = fixture.cache.read_blob(&descriptor).await.unwrap().unwrap();
        reader.begun().await;
        assert_eq!(reader.read(1, 3).await.unwrap(), b"mal"[..]);
        for (offset, limit) in [(5, 1), (0, 0)] {
            assert!(reader.read(offset, limit).await.is_err());
        }
        assert!(
            fixture
                .cache
                .read_blob(&layer(b"other"))
                .await
                .unwrap()
                .is_none()
        );
    }

    #[tokio::test]
    async fn readers_are_told_when_the_download_is_given_up() {
        let fixture = fixture();
        let content = content(2 * MIB);
        let writer = claim(&fixture.cache, &layer(&content)).await;
        let reader = writer.reader();
        let mut waiting = JoinSet::from_iter([read_all(reader.clone())]);
        assert!(waits(waiting.join_next()).await);
        drop(writer);
        let error = waiting.join_next().await.unwrap().unwrap().unwrap_err();
        assert!(error.to_string().contains("given up"), "{error}");
        reader.begun().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn readers_that_follow_or_come_late_get_the_same_bytes_however_little_memory_there_is() {
        for budget in [0, 100_000, 64 * MIB] {
            let fixture = fixture();
            let memory = Memory::new(budget);
            let cache = fixture.cache.with_memory(memory.clone());
            let content = content(6 * MIB + 7);
            let writer = claim(&cache, &layer(&content)).await;
            let late = writer.reader();
            let mut readers: JoinSet<_> = (0..3).map(|_| read_all(writer.reader())).collect();
            let mut offset = 0;
            for piece in content.chunks(50_000) {
                let bytes = Bytes::copy_from_slice(piece);
                writer.write_at(offset, bytes).await.unwrap();
                offset += piece.len() as u64;
            }
            writer.finish().await.unwrap();
            readers.spawn(read_all(late));
            while let Some(read) = readers.join_next().await {
                assert!(read.unwrap().unwrap() == content, "other bytes were read");
            }
            // Nothing is kept for readers that are gone.
            assert_eq!(memory.used(), 0, "with a budget of {budget}");
        }
    }
}
