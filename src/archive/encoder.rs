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

    /// About what a block takes in memory: before, behind, and the encoder between.
    pub(super) const fn memory(self) -> u64 {
        const MEBIBYTE: u64 = 1024 * 1024;
        match (self.method(), self.level()) {
            (Method::Gzip, _) => MEBIBYTE,
            (Method::Zstd, ..=9) => 5 * MEBIBYTE,
            (Method::Zstd, _) => 16 * MEBIBYTE,
        }
    }
}

/// A block on its way.
#[derive(Debug, Default)]
pub(super) struct Block {
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

/// Compresses blocks, one after the other, in any order.
pub(super) enum Encoder {
    Gzip(Compress),
    Zstd(Compressor<'static>),
}

impl Encoder {
    /// # Errors
    /// When there is no memory for it.
    pub(super) fn new(compression: Compression) -> io::Result<Self> {
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

    /// Fills in what the block becomes.
    pub(super) fn encode(&mut self, block: &mut Block) -> io::Result<()> {
        let Block {
            bytes,
            window,
            is_last,
            packed,
            checksum,
        } = block;
        let (window, plain) = bytes.split_at(*window);
        packed.clear();
        match self {
            Self::Gzip(deflate) => {
                *checksum = Crc::new();
                checksum.update(plain);
                deflate.reset();
                if !window.is_empty() {
                    deflate.set_dictionary(window).map_err(io::Error::other)?;
                }
                run(deflate, plain, packed, *is_last)
            }
            Self::Zstd(compressor) => {
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
