//! Bytes of blobs: kept as they came, or made from a seed, so that a blob may be large without being in memory. Nothing is
//! copied.

use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256, Sha512};

/// A seeded blob is made in blocks of this size, each from a number of its own: reading may begin anywhere.
const BLOCK: u64 = 64 * 1024;

/// The bytes of a blob or an answer.
#[derive(Debug, Clone)]
pub struct Content(Arc<Inner>);

#[derive(Debug)]
enum Inner {
    /// Pieces with the offset at which each begins.
    Pieces {
        pieces: Vec<(u64, Bytes)>,
        size: u64,
    },
    Seeded {
        seed: u64,
        size: u64,
    },
}

impl Content {
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        Self::of_pieces(vec![bytes.into()])
    }

    /// Bytes that came in pieces.
    pub fn of_pieces(pieces: Vec<Bytes>) -> Self {
        let mut size = 0;
        let pieces = pieces
            .into_iter()
            .filter(|piece| !piece.is_empty())
            .map(|piece| {
                let start = size;
                size += piece.len() as u64;
                (start, piece)
            })
            .collect();
        Self(Arc::new(Inner::Pieces { pieces, size }))
    }

    /// Bytes that look random, always the same for the same numbers.
    pub fn seeded(seed: u64, size: u64) -> Self {
        Self(Arc::new(Inner::Seeded { seed, size }))
    }

    pub fn size(&self) -> u64 {
        match &*self.0 {
            Inner::Pieces { size, .. } | Inner::Seeded { size, .. } => *size,
        }
    }

    /// The piece at `offset`, at most `limit` bytes of it; empty at the end only.
    pub fn read(&self, offset: u64, limit: u64) -> Bytes {
        if offset >= self.size() {
            return Bytes::new();
        }
        let (start, piece) = match &*self.0 {
            Inner::Pieces { pieces, .. } => {
                let after = pieces.partition_point(|(start, _)| *start <= offset);
                pieces[after - 1].clone()
            }
            Inner::Seeded { seed, size } => {
                let start = offset - offset % BLOCK;
                (start, seeded_block(*seed, start, *size))
            }
        };
        let from = length(offset - start);
        let to = piece.len().min(from.saturating_add(length(limit)));
        piece.slice(from..to)
    }

    /// All bytes; for small contents.
    pub fn to_bytes(&self) -> Bytes {
        self.pieces().flatten().collect()
    }

    /// The digest as text, with `sha256` or `sha512`.
    pub fn digest_with(&self, algorithm: &str) -> String {
        match algorithm {
            "sha512" => self.hashed::<Sha512>(algorithm),
            _ => self.hashed::<Sha256>("sha256"),
        }
    }

    pub fn digest(&self) -> String {
        self.digest_with("sha256")
    }

    fn hashed<H: Digest>(&self, algorithm: &str) -> String {
        let mut hash = H::new();
        for piece in self.pieces() {
            hash.update(&piece);
        }
        hash.finalize()
            .iter()
            .fold(format!("{algorithm}:"), |text, byte| {
                text + &format!("{byte:02x}")
            })
    }

    fn pieces(&self) -> impl Iterator<Item = Bytes> + '_ {
        let mut offset = 0;
        std::iter::from_fn(move || {
            let piece = self.read(offset, u64::MAX);
            offset += piece.len() as u64;
            (!piece.is_empty()).then_some(piece)
        })
    }
}

/// The digest of bytes, with the algorithm of another digest.
pub fn digest_like(digest: &str, bytes: &Bytes) -> String {
    let algorithm = digest.split(':').next().unwrap_or_default();
    Content::new(bytes.clone()).digest_with(algorithm)
}

fn seeded_block(seed: u64, start: u64, size: u64) -> Bytes {
    let mut block = vec![0; length((size - start).min(BLOCK))];
    let number = start / BLOCK;
    fastrand::Rng::with_seed(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).fill(&mut block);
    block.into()
}

fn length(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
