//! One block of a layer, compressed by itself, so that several can be worked on at once.
//!
//! gzip: as pigz does it, one member, in which each block ends on a whole byte and may refer to what stands before it. zstd: a
//! frame per block; a row of frames is a zstd file (RFC 8878, section 3). What a block becomes depends on its bytes, its place
//! and the level only: not on who works on it, nor on how many do.

use std::io;

use flate2::{Compress, Crc, FlushCompress, Status};
use zstd::{bulk::Compressor, zstd_safe};

use super::compression::{Compression, Method};

/// What deflate can refer to.
pub(super) const WINDOW: usize = 32 * 1024;

const GZIP_BLOCK: usize = 256 * 1024;
const ZSTD_FRAME: usize = 1024 * 1024;

/// The method deflate, no flags, no time, then what is told of the level, and an unknown system.
const GZIP_HEAD: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];

/// The fixed parts of the format, and the room that is needed.
impl Compression {
    /// Bytes of a block, but the last one.
    pub(super) const fn block(self) -> usize {
        match self.method() {
            Method::Gzip => GZIP_BLOCK,
            Method::Zstd => ZSTD_FRAME,
        }
    }

    /// Bytes before a block that it may refer to.
    pub(super) const fn window(self) -> usize {
        match self.method() {
            Method::Gzip => WINDOW,
            Method::Zstd => 0,
        }
    }

    /// What stands before the first block.
    pub(super) const fn head(self) -> &'static [u8] {
        match self.method() {
            Method::Gzip => &GZIP_HEAD,
            Method::Zstd => &[],
        }
    }

    /// What stands behind the last block.
    pub(super) fn tail(self, checksum: &Crc) -> Vec<u8> {
        match self.method() {
            Method::Gzip => [checksum.sum(), checksum.amount()]
                .map(u32::to_le_bytes)
                .concat(),
            Method::Zstd => Vec::new(),
        }
    }

    /// What a block takes in memory at most, with its encoder.
    pub(super) const fn memory(self) -> u64 {
        const MEBIBYTE: u64 = 1024 * 1024;
        match (self.method(), self.level()) {
            (Method::Gzip, _) => MEBIBYTE,
            (Method::Zstd, ..=3) => 4 * MEBIBYTE,
            (Method::Zstd, ..=8) => 8 * MEBIBYTE,
            (Method::Zstd, ..=12) => 16 * MEBIBYTE,
            (Method::Zstd, _) => 24 * MEBIBYTE,
        }
    }
}

/// A block on its way, with all the memory that takes.
#[derive(Default)]
pub(super) struct Block {
    encoder: Option<Encoder>,
    /// The window before it, and itself.
    pub(super) bytes: Vec<u8>,
    /// Bytes of the window.
    pub(super) window: usize,
    pub(super) is_last: bool,
    /// What it becomes.
    pub(super) packed: Vec<u8>,
    /// Of its own bytes, where the format asks for that.
    pub(super) checksum: Crc,
}

/// What is used again for block after block.
enum Encoder {
    Gzip(Compress),
    Zstd(Compressor<'static>),
}

impl Encoder {
    /// # Errors
    /// When there is no memory for it.
    fn new(compression: Compression) -> io::Result<Self> {
        let level = compression.level();
        Ok(match compression.method() {
            Method::Gzip => {
                Self::Gzip(Compress::new(flate2::Compression::new(level.into()), false))
            }
            Method::Zstd => {
                let mut compressor = Compressor::new(level.into())?;
                compressor.set_parameter(zstd_safe::CParameter::ChecksumFlag(true))?;
                Self::Zstd(compressor)
            }
        })
    }
}

impl Block {
    /// Fills in what the block becomes.
    pub(super) fn encode(&mut self, compression: Compression) -> io::Result<()> {
        let Self {
            encoder,
            bytes,
            window,
            is_last,
            packed,
            checksum,
        } = self;
        let encoder = match encoder {
            Some(encoder) => encoder,
            none => none.insert(Encoder::new(compression)?),
        };
        let (window, plain) = bytes.split_at(*window);
        packed.clear();
        match encoder {
            Encoder::Gzip(deflate) => {
                *checksum = Crc::new();
                checksum.update(plain);
                deflate.reset();
                if !window.is_empty() {
                    deflate.set_dictionary(window).map_err(io::Error::other)?;
                }
                run(deflate, plain, packed, *is_last)
            }
            Encoder::Zstd(compressor) => {
                packed.reserve(zstd_safe::compress_bound(plain.len()));
                compressor.compress_to_buffer(plain, packed).map(drop)
            }
        }
    }
}

/// Deflates the whole of a block and ends it on a whole byte, the last one for good.
fn run(
    deflate: &mut Compress,
    plain: &[u8],
    packed: &mut Vec<u8>,
    is_last: bool,
) -> io::Result<()> {
    let flush = if is_last {
        FlushCompress::Finish
    } else {
        FlushCompress::Sync
    };
    // What cannot be compressed grows by a few bytes.
    packed.reserve(plain.len() + plain.len() / 64 + 64);
    loop {
        let taken = usize::try_from(deflate.total_in()).unwrap_or(usize::MAX);
        let rest = plain.get(taken..).unwrap_or_default();
        let status = deflate
            .compress_vec(rest, packed, flush)
            .map_err(io::Error::other)?;
        // Where there is room left, all that was to be written was.
        let is_through = if is_last {
            status == Status::StreamEnd
        } else {
            packed.len() < packed.capacity()
        };
        if is_through {
            return Ok(());
        }
        packed.reserve(WINDOW);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_takes_no_more_memory_than_is_asked_for() {
        for level in Method::Zstd.levels() {
            let compression = Compression::with_level(Method::Zstd, level).unwrap();
            let mut block = Block {
                bytes: (0..ZSTD_FRAME).map(|_| fastrand::u8(..)).collect(),
                ..Block::default()
            };
            block.encode(compression).unwrap();
            let Some(Encoder::Zstd(compressor)) = &mut block.encoder else {
                panic!("another encoder")
            };
            let context = compressor.context_mut().sizeof();
            let all = block.bytes.capacity() + block.packed.capacity() + context;
            assert!(all as u64 <= compression.memory(), "level {level}: {all}");
        }
    }
}
