//! Compresses a layer on several threads: one reads blocks and writes what they become, in their order, others work on them.
//!
//! The bytes are the same for any number of threads, since each block is compressed by itself (see `encoder`). Memory is
//! bounded for the whole process, however many layers are worked on: each block on its way takes its part of one budget.

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
    encoder::{Block, Encoder},
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
        let mut encoder = Encoder::new(compression);
        while let Ok(Job { mut block, done }) = next() {
            let encoded = match &mut encoder {
                Ok(encoder) => encoder.encode(&mut block).map(|()| block),
                Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
            };
            // Who asked has failed otherwise.
            drop(done.send(encoded));
        }
    };
    let builder = thread::Builder::new().name("compression".to_owned());
    builder.spawn_scoped(scope, work).map(drop)
}

/// A block that somebody works on, and the memory it takes.
struct UnderWay {
    done: Receiver<io::Result<Block>>,
    _room: Room,
}

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
    /// The end of the last block.
    window: Vec<u8>,
    checksum: Crc,
}

impl<L: Layer> Conveyor<'_, L> {
    fn run(mut self) -> Result<()> {
        self.layer.write(self.compression.head())?;
        let mut is_over = false;
        while !is_over || !self.under_way.is_empty() {
            let room = if is_over { None } else { self.room()? };
            match room {
                Some(room) => is_over = self.hand_out(room)?,
                None => self.take_back()?,
            }
        }
        let tail = self.compression.tail(&self.checksum);
        self.layer.write(&tail)
    }

    /// Memory for one more block; none if one that is under way should be waited for first.
    fn room(&self) -> Result<Option<Room>> {
        if self.under_way.len() >= self.most {
            return Ok(None);
        }
        let bytes = self.compression.memory();
        match Room::to_pack_now(bytes) {
            // Only who holds nothing may wait: others wait for what we hold.
            None if self.under_way.is_empty() => {
                Room::to_pack(bytes, || self.layer.ensure_going_on()).map(Some)
            }
            room => Ok(room),
        }
    }

    /// Reads the next block and gives it to a worker; tells whether it was the last one.
    fn hand_out(&mut self, room: Room) -> Result<bool> {
        self.layer.ensure_going_on()?;
        let mut block = self.free.pop().unwrap_or_default();
        let length = self.left.min(self.compression.block() as u64);
        self.left -= length;
        block.is_last = self.left == 0;
        block.window = self.window.len();
        block.bytes.clear();
        block.bytes.append(&mut self.window);
        let length = usize::try_from(length).unwrap_or_default();
        block.bytes.resize(block.window + length, 0);
        self.layer.read(&mut block.bytes[block.window..])?;
        let kept = self.compression.window().min(block.bytes.len());
        let end = block.bytes.len() - kept;
        self.window.extend_from_slice(&block.bytes[end..]);
        let is_last = block.is_last;
        let (done, receiver) = mpsc::sync_channel(1);
        // Should the workers be gone, the receiver says so.
        drop(self.jobs.send(Job { block, done }));
        self.under_way.push_back(UnderWay {
            done: receiver,
            _room: room,
        });
        Ok(is_last)
    }

    /// Waits for the oldest block and writes what it became.
    fn take_back(&mut self) -> Result<()> {
        let Some(oldest) = self.under_way.pop_front() else {
            return Ok(());
        };
        let gone = || io::Error::other("a thread that compresses has ended");
        let block = oldest.done.recv().unwrap_or_else(|_| Err(gone()));
        let block = block.map_err(|error| self.layer.failed(error))?;
        self.checksum.combine(&block.checksum);
        self.layer.write(&block.packed)?;
        self.free.push(block);
        Ok(())
    }
}
