//! Compresses a layer on several threads: one reads blocks and writes what they become, in their order, others work on them.
//!
//! The bytes are the same for any number of threads, since each block is compressed by itself (see `encoder`). Memory is
//! bounded for the whole process, however many layers are worked on: each block takes its part of one budget.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Mutex, PoisonError,
        mpsc::{self, Receiver, SyncSender},
    },
    thread::{self, Scope},
};

use flate2::Crc;

use super::{
    compression::Compression,
    encoder::Block,
    error::{Error, Result},
    windows::Room,
};

/// Threads per layer: more would only wait for the one that reads and writes.
const MOST_WORKERS: usize = 8;

/// Both ends of a layer.
pub(super) trait Layer {
    /// Fills the buffer with the next plain bytes.
    fn read(&mut self, buffer: &mut [u8]) -> Result<()>;
    /// Takes the next compressed bytes.
    fn write(&mut self, packed: &[u8]) -> Result<()>;
    /// Fails when nobody waits for the layer any more.
    fn ensure_going_on(&self) -> Result<()>;
    /// The error of an encoder, or of a thread that cannot be had.
    fn failed(&self, source: io::Error) -> Error;
}

/// As many threads as there are processors.
pub(super) fn workers() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Compresses a layer of `size` bytes. Blocks.
pub(super) fn pack(
    layer: &mut impl Layer,
    size: u64,
    compression: Compression,
    workers: usize,
) -> Result<()> {
    let blocks = size.div_ceil(compression.block() as u64).max(1);
    let blocks = usize::try_from(blocks).unwrap_or(usize::MAX);
    let workers = workers.clamp(1, MOST_WORKERS).min(blocks);
    let (jobs, queue) = mpsc::sync_channel(2 * MOST_WORKERS);
    let queue = Mutex::new(queue);
    thread::scope(|scope| {
        for worker in 0..workers {
            match employ(scope, compression, &queue) {
                Ok(()) => {}
                Err(error) if worker == 0 => return Err(layer.failed(error)),
                // The system gives no more threads: fewer do it too.
                Err(_) => break,
            }
        }
        let conveyor = Conveyor {
            layer,
            compression,
            left: size,
            most: workers + 2,
            jobs,
            under_way: VecDeque::new(),
            free: Vec::new(),
            rooms: Vec::new(),
            window: Vec::new(),
            checksum: Crc::new(),
        };
        conveyor.run()
    })
}

/// A block and whom to give it back to.
struct Job {
    block: Block,
    done: SyncSender<io::Result<Block>>,
}

/// Starts a thread that works until there is nothing more to do.
fn employ<'scope>(
    scope: &'scope Scope<'scope, '_>,
    compression: Compression,
    queue: &'scope Mutex<Receiver<Job>>,
) -> io::Result<()> {
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
    let work = move || {
        while let Ok(Job { mut block, done }) = next() {
            let encoded = block.encode(compression);
            // Where nobody waits any more, somebody has failed.
            drop(done.send(encoded.map(|()| block)));
        }
    };
    let builder = thread::Builder::new().name("compression".to_owned());
    builder.spawn_scoped(scope, work).map(drop)
}

/// A block that somebody works on.
type UnderWay = Receiver<io::Result<Block>>;

/// Reads blocks, hands them out and writes what comes back.
struct Conveyor<'a, L> {
    layer: &'a mut L,
    compression: Compression,
    /// Bytes that were not read yet.
    left: u64,
    /// Blocks that may be under way at once.
    most: usize,
    jobs: SyncSender<Job>,
    under_way: VecDeque<UnderWay>,
    /// Blocks whose memory can be used again.
    free: Vec<Block>,
    /// The memory of all blocks.
    rooms: Vec<Room>,
    /// The end of the last block.
    window: Vec<u8>,
    checksum: Crc,
}

impl<L: Layer> Conveyor<'_, L> {
    fn run(mut self) -> Result<()> {
        self.layer.write(self.compression.head())?;
        let mut is_over = false;
        while !is_over || !self.under_way.is_empty() {
            let block = if is_over { None } else { self.block()? };
            match block {
                Some(block) => is_over = self.hand_out(block)?,
                None => self.take_back()?,
            }
        }
        let tail = self.compression.tail(&self.checksum);
        self.layer.write(&tail)
    }

    /// A block to be filled; none if one that is under way should be waited for first.
    fn block(&mut self) -> Result<Option<Block>> {
        if let Some(block) = self.free.pop() {
            return Ok(Some(block));
        }
        let bytes = self.compression.memory();
        let room = if self.rooms.is_empty() {
            // Who has a block never waits for memory that others have, so all come through.
            Some(Room::to_pack(bytes, || self.layer.ensure_going_on())?)
        } else if self.rooms.len() < self.most {
            Room::to_pack_now(bytes)
        } else {
            None
        };
        Ok(room.map(|room| {
            self.rooms.push(room);
            Block::default()
        }))
    }

    /// Reads the next block and gives it to a worker; tells whether it was the last one.
    fn hand_out(&mut self, mut block: Block) -> Result<bool> {
        self.layer.ensure_going_on()?;
        let length = self.left.min(self.compression.block() as u64);
        self.left -= length;
        let is_last = self.left == 0;
        block.is_last = is_last;
        block.window = self.window.len();
        block.bytes.clear();
        block.bytes.append(&mut self.window);
        let length = usize::try_from(length).unwrap_or_default();
        block.bytes.resize(block.window + length, 0);
        self.layer.read(&mut block.bytes[block.window..])?;
        let kept = self.compression.window().min(block.bytes.len());
        let end = block.bytes.len() - kept;
        self.window.extend_from_slice(&block.bytes[end..]);
        let (done, receiver) = mpsc::sync_channel(1);
        // Should the workers be gone, the receiver says so.
        drop(self.jobs.send(Job { block, done }));
        self.under_way.push_back(receiver);
        Ok(is_last)
    }

    /// Waits for the oldest block and writes what it became.
    fn take_back(&mut self) -> Result<()> {
        let Some(oldest) = self.under_way.pop_front() else {
            return Ok(());
        };
        let gone = || io::Error::other("a thread that compresses has ended");
        let block = oldest.recv().unwrap_or_else(|_| Err(gone()));
        let block = block.map_err(|error| self.layer.failed(error))?;
        self.checksum.combine(&block.checksum);
        self.layer.write(&block.packed)?;
        self.free.push(block);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::{
        archive::{compression::Method, error::Place, limits::Limits, outer::Form},
        cache,
        image::Digest,
    };

    /// A layer in memory.
    #[derive(Default)]
    struct Memory {
        plain: Vec<u8>,
        position: usize,
        packed: Vec<u8>,
        /// What can be read before somebody fails.
        readable: Option<usize>,
        /// Nobody takes what is compressed.
        is_full: bool,
    }

    impl Layer for Memory {
        fn read(&mut self, buffer: &mut [u8]) -> Result<()> {
            let end = self.position + buffer.len();
            if self.readable.is_some_and(|readable| readable < end) {
                return Err(Place::archive("app.tar").invalid("it became shorter"));
            }
            buffer.copy_from_slice(&self.plain[self.position..end]);
            self.position = end;
            Ok(())
        }

        fn write(&mut self, packed: &[u8]) -> Result<()> {
            if self.is_full && !self.packed.is_empty() {
                return Err(cache::Error::CacheInterrupted.into());
            }
            self.packed.extend_from_slice(packed);
            Ok(())
        }

        fn ensure_going_on(&self) -> Result<()> {
            Ok(())
        }

        fn failed(&self, source: io::Error) -> Error {
            let place = Place::archive("app.tar");
            Error::CompressionFailed { place, source }
        }
    }

    /// Bytes that can be compressed somewhat, always the same.
    fn content(length: usize) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(7);
        let words: Vec<Vec<u8>> = (0..500)
            .map(|_| (0..random.usize(1..20)).map(|_| random.u8(..)).collect())
            .collect();
        let mut content = Vec::with_capacity(length + 20);
        while content.len() < length {
            content.extend_from_slice(&words[random.usize(..words.len())]);
        }
        content.truncate(length);
        content
    }

    fn packed(plain: &[u8], compression: Compression, workers: usize) -> Vec<u8> {
        let mut layer = Memory {
            plain: plain.to_vec(),
            ..Memory::default()
        };
        pack(&mut layer, plain.len() as u64, compression, workers).unwrap();
        layer.packed
    }

    fn expanded(bytes: &[u8]) -> Vec<u8> {
        let (form, limits) = (Form::of(bytes), Limits::default());
        let room = Room::of(form, &limits, || Ok(())).unwrap();
        let mut plain = Vec::new();
        let mut decoder = form.decoder(bytes, None, &limits, room).unwrap();
        decoder.read_to_end(&mut plain).unwrap();
        plain
    }

    const METHODS: [Method; 2] = [Method::Gzip, Method::Zstd];

    #[test]
    fn a_layer_becomes_the_same_bytes_for_any_number_of_threads_and_comes_back_whole() {
        const BLOCK: usize = 256 * 1024;
        let content = content((2 << 20) + 7);
        for method in METHODS {
            for length in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 1 << 20, content.len()] {
                let plain = &content[..length];
                let compression = Compression::new(method);
                let one = packed(plain, compression, 1);
                assert_eq!(Form::of(&one), method.form());
                assert!(expanded(&one) == plain, "{method} {length}");
                for workers in [2, 3, 100] {
                    let several = packed(plain, compression, workers);
                    assert!(one == several, "{method} {length} {workers}");
                }
            }
        }
    }

    #[test]
    fn every_level_gives_bytes_that_come_back_whole() {
        let content = content(600_000);
        for method in METHODS {
            for level in method.levels() {
                let compression = Compression::with_level(method, level).unwrap();
                let packed = packed(&content, compression, 2);
                assert!(expanded(&packed) == content, "{method} {level}");
                assert!(packed.len() < content.len(), "{method} {level}");
            }
        }
    }

    /// Where these change, so do the digests of images: the versions of the encoders in `compression` must then change too.
    #[test]
    fn the_bytes_of_a_layer_never_change() {
        let content = content(3_000_000);
        for (method, digest) in [
            (
                Method::Gzip,
                "sha256:7e921631b76c7c4da270098a0a9d47f4a24fac2feaa37071818afc5ea969bb11",
            ),
            (
                Method::Zstd,
                "sha256:dae4d5ee67574930f631827b277586516bf43a0e7db9d77978abc4b9a91c0c68",
            ),
        ] {
            let packed = packed(&content, Compression::new(method), 2);
            assert_eq!(Digest::of(&packed).to_string(), digest, "{method}");
        }
    }

    #[test]
    fn a_gzip_layer_is_one_member_without_time_name_or_system() {
        let content = content(700_000);
        let packed = packed(&content, Compression::new(Method::Gzip), 2);
        let mut decoder = flate2::bufread::GzDecoder::new(packed.as_slice());
        let mut plain = Vec::new();
        decoder.read_to_end(&mut plain).unwrap();
        assert!(plain == content);
        let header = decoder.header().unwrap();
        assert_eq!((header.mtime(), header.operating_system()), (0, 255));
        assert_eq!((header.filename(), header.comment()), (None, None));
        assert!(decoder.into_inner().is_empty());
    }

    #[test]
    fn what_cannot_be_compressed_grows_by_little() {
        let mut random = fastrand::Rng::with_seed(7);
        let content: Vec<u8> = (0..3_000_000).map(|_| random.u8(..)).collect();
        for method in METHODS {
            let packed = packed(&content, Compression::new(method), 2);
            assert!(expanded(&packed) == content, "{method}");
            assert!(
                packed.len() < content.len() + content.len() / 1000,
                "{method}"
            );
        }
    }

    #[test]
    fn a_failure_at_either_end_is_told_and_ends_all_work() {
        let plain = content(5_000_000);
        let size = plain.len() as u64;
        for method in METHODS {
            let mut source = Memory {
                plain: plain.clone(),
                readable: Some(2_500_000),
                ..Memory::default()
            };
            let error = pack(&mut source, size, Compression::new(method), 3).unwrap_err();
            assert!(error.to_string().contains("became shorter"), "{error}");
            let mut sink = Memory {
                plain: plain.clone(),
                // zstd has nothing to say before the first block.
                packed: vec![0],
                is_full: true,
                ..Memory::default()
            };
            let error = pack(&mut sink, size, Compression::new(method), 3).unwrap_err();
            assert!(matches!(error, Error::Cache(_)), "{error}");
        }
    }

    #[test]
    fn layers_that_are_compressed_at_once_share_the_memory_and_all_come_through() {
        let plain = content(4_000_000);
        let compression = Compression::with_level(Method::Zstd, 10).unwrap();
        let expected = packed(&plain, compression, 1);
        thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| assert!(packed(&plain, compression, 4) == expected));
            }
        });
    }
}
