//! The pieces of one blob that are in memory, and which parts of it are in its file. Pure: no I/O, no locks.
//!
//! A piece leaves memory when it is written and, if it lies where the hash will soon be, hashed. One that came out of turn
//! does not wait for the hash, which reads it back from the file. Pieces that left may be kept for readers.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
};

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    memory::{Kept, Memory, Share},
    ranges::Ranges,
};

/// Most that one blob keeps for its readers: what they lag behind in two round trips of 10 ms at 100 MB/s.
const KEPT_LIMIT: u64 = 2 * 1024 * 1024;

/// A smaller blob is read again soon, if at all, and gains little.
const LARGE: u64 = 8 * 1024 * 1024;

/// What a piece holds as long as it is in memory.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) of_the_blob: OwnedSemaphorePermit,
    pub(super) of_the_process: Hold,
}

impl Room {
    /// Gives back so many bytes of it.
    pub(super) fn give_back(&mut self, bytes: usize) {
        drop(self.of_the_blob.split(bytes));
        if let Hold::Share(share) = &mut self.of_the_process {
            share.give_back(bytes);
        }
    }
}

/// What lets a piece be in the memory of the process.
#[derive(Debug)]
pub(super) enum Hold {
    /// Part of the budget.
    Share(Share),
    /// The right of each blob to hold one piece whatever the budget says.
    Spare(#[expect(dead_code, reason = "held until the piece is gone")] OwnedSemaphorePermit),
}

/// A piece in memory.
#[derive(Debug)]
pub(super) struct Piece {
    bytes: Bytes,
    is_written: bool,
    _room: Arc<Room>,
}

/// Pieces that follow each other, to be written.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) offset: u64,
    pub(super) pieces: Vec<Bytes>,
    /// Nobody will read it from the file soon.
    pub(super) passes: bool,
}

impl Run {
    pub(super) fn range(&self) -> Range<u64> {
        let length: usize = self.pieces.iter().map(Bytes::len).sum();
        self.offset..self.offset + length as u64
    }
}

/// What the hash takes next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// These pieces.
    Memory(Vec<Bytes>),
    /// This part of the file.
    File(Range<u64>),
}

/// Where bytes for a reader are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Here.
    Memory(Bytes),
    /// In the file, so many at least.
    File(u64),
    /// Nowhere yet.
    NotYet,
}

#[derive(Debug)]
pub(super) struct Pieces {
    size: u64,
    /// In the file or in memory.
    taken: Ranges,
    /// In the file.
    written: Ranges,
    /// By offset; they do not overlap.
    in_memory: BTreeMap<u64, Piece>,
    unwritten: BTreeSet<u64>,
    unwritten_bytes: u64,
    /// So many bytes from the beginning went into the hash.
    hashed: u64,
    /// The end of the pieces that follow each other in memory from there.
    fed: u64,
    kept: BTreeMap<u64, (Kept, u64)>,
    /// How far each reader is that has begun.
    readers: BTreeMap<u64, u64>,
    expected_readers: usize,
    next_reader: u64,
}

impl Pieces {
    /// Of a blob of which a part is in the file, and of this the beginning is hashed.
    pub(super) fn new(size: u64, written: Ranges, hashed: u64) -> Self {
        Self {
            size,
            taken: written.clone(),
            written,
            in_memory: BTreeMap::new(),
            unwritten: BTreeSet::new(),
            unwritten_bytes: 0,
            hashed,
            fed: hashed,
            kept: BTreeMap::new(),
            readers: BTreeMap::new(),
            expected_readers: 0,
            next_reader: 0,
        }
    }

    /// The end of what is there without a gap from the beginning.
    pub(super) fn frontier(&self) -> u64 {
        self.taken.end_from(0)
    }

    pub(super) const fn hashed(&self) -> u64 {
        self.hashed
    }

    /// What can be hashed now.
    pub(super) fn unhashed(&self) -> u64 {
        self.frontier() - self.hashed
    }

    pub(super) const fn unwritten(&self) -> u64 {
        self.unwritten_bytes
    }

    pub(super) const fn written(&self) -> &Ranges {
        &self.written
    }

    pub(super) fn missing(&self) -> Vec<Range<u64>> {
        self.taken.gaps(0..self.size)
    }

    /// Takes what is new of these bytes; tells whether the frontier moved.
    pub(super) fn accept(&mut self, offset: u64, bytes: &Bytes, room: Room) -> bool {
        let room = Arc::new(room);
        let before = self.frontier();
        let end = offset + bytes.len() as u64;
        for gap in self.taken.gaps(offset..end) {
            let piece = Piece {
                bytes: bytes.slice(index(gap.start - offset)..index(gap.end - offset)),
                is_written: false,
                _room: Arc::clone(&room),
            };
            self.unwritten_bytes += gap.end - gap.start;
            self.unwritten.insert(gap.start);
            self.in_memory.insert(gap.start, piece);
            self.taken.insert(gap);
        }
        self.feed();
        self.frontier() > before
    }

    /// The next pieces to be written, about `limit` bytes of them, in the order of the file.
    pub(super) fn next_to_write(&mut self, limit: u64) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        let (mut taken, mut end) = (0, 0);
        while taken < limit
            && let Some(offset) = self.unwritten.pop_first()
            && let Some(piece) = self.in_memory.get(&offset)
        {
            let bytes = piece.bytes.clone();
            let length = bytes.len() as u64;
            let passes = self.passes(offset, offset + length);
            match runs.last_mut() {
                Some(run) if end == offset && run.passes == passes => run.pieces.push(bytes),
                _ => runs.push(Run {
                    offset,
                    pieces: vec![bytes],
                    passes,
                }),
            }
            taken += length;
            end = offset + length;
        }
        self.unwritten_bytes -= taken;
        runs
    }

    /// Whether nobody will read this part from the file soon: the hash takes it from memory, and no reader is far behind.
    fn passes(&self, offset: u64, end: u64) -> bool {
        let slowest = self.slowest_reader().unwrap_or(u64::MAX);
        self.size >= LARGE && end <= self.fed && slowest.saturating_add(KEPT_LIMIT) >= offset
    }

    /// These are in the file now. What is given back is no longer needed in memory.
    pub(super) fn note_written(&mut self, runs: &[Run], memory: &Memory) -> Vec<Piece> {
        let mut released = Vec::new();
        for run in runs {
            self.written.insert(run.range());
            let mut offset = run.offset;
            for bytes in &run.pieces {
                if let Some(piece) = self.in_memory.get_mut(&offset) {
                    piece.is_written = true;
                }
                released.extend(self.release(offset, memory));
                offset += bytes.len() as u64;
            }
        }
        released
    }

    /// What follows in the hash, about `limit` bytes.
    pub(super) fn next_to_hash(&self, limit: u64) -> Option<Next> {
        let mut end = self.hashed;
        let mut pieces = Vec::new();
        while end - self.hashed < limit
            && let Some(piece) = self.in_memory.get(&end)
        {
            end += piece.bytes.len() as u64;
            pieces.push(piece.bytes.clone());
        }
        if !pieces.is_empty() {
            return Some(Next::Memory(pieces));
        }
        // What is taken and not in memory is in the file.
        let in_memory = self.in_memory.range(end..).next();
        let limit = in_memory.map_or(end + limit, |(offset, _)| (*offset).min(end + limit));
        let available = self.frontier().min(limit);
        (available > end).then_some(Next::File(end..available))
    }

    /// The hash has taken everything up to `position`. What is given back is no longer needed in memory.
    pub(super) fn note_hashed(&mut self, position: u64, memory: &Memory) -> Vec<Piece> {
        let hashed = std::mem::replace(&mut self.hashed, position);
        let done: Vec<u64> = self
            .in_memory
            .range(hashed..position)
            .map(|(&offset, _)| offset)
            .collect();
        self.feed();
        done.into_iter()
            .filter_map(|offset| self.release(offset, memory))
            .collect()
    }

    /// Moves the end of what the hash will find in memory.
    fn feed(&mut self) {
        self.fed = self.fed.max(self.hashed);
        while let Some(piece) = self.in_memory.get(&self.fed) {
            self.fed += piece.bytes.len() as u64;
        }
    }

    /// Lets a piece go if nobody needs it in memory any more.
    fn release(&mut self, offset: u64, memory: &Memory) -> Option<Piece> {
        let piece = self.in_memory.get(&offset)?;
        let is_out_of_turn = offset >= self.fed;
        if !piece.is_written || (!is_out_of_turn && offset >= self.hashed) {
            return None;
        }
        let piece = self.in_memory.remove(&offset)?;
        if is_out_of_turn {
            return Some(piece);
        }
        self.keep(offset, piece, memory)
    }

    /// Keeps a piece for readers that have not had it; gives it back if there are none.
    fn keep(&mut self, offset: u64, piece: Piece, memory: &Memory) -> Option<Piece> {
        let end = offset + piece.bytes.len() as u64;
        let is_read = |slowest: u64| end <= slowest;
        if self.slowest_reader().is_none_or(is_read) {
            return Some(piece);
        }
        let bytes = piece.bytes.clone();
        // The room is given back first, or the piece would count twice.
        drop(piece);
        if let Some(kept) = memory.keep(bytes) {
            self.kept.insert(offset, (kept, end));
        }
        while let Some((&first, _)) = self.kept.first_key_value()
            && end - first > KEPT_LIMIT
        {
            self.kept.pop_first();
        }
        None
    }

    /// Somebody is going to read from the beginning.
    pub(super) const fn expect_reader(&mut self) {
        self.expected_readers += 1;
    }

    /// One that was expected reads.
    pub(super) const fn begin_reading(&mut self) -> u64 {
        self.expected_readers -= 1;
        self.next_reader += 1;
        self.next_reader
    }

    /// A reader is gone; it has a number if it has begun.
    pub(super) fn remove_reader(&mut self, reader: Option<u64>) {
        match reader {
            Some(reader) => drop(self.readers.remove(&reader)),
            None => self.expected_readers -= 1,
        }
        self.forget_read();
    }

    /// How far the slowest reader is. Of those that are expected nobody knows whether they will come, once one has.
    fn slowest_reader(&self) -> Option<u64> {
        let expected = (self.expected_readers > 0).then_some(0);
        self.readers.values().copied().min().or(expected)
    }

    /// Finds what a reader wants: bytes from `offset`, none from `end` on.
    pub(super) fn find(&mut self, reader: u64, offset: u64, end: u64) -> Found {
        self.readers.insert(reader, offset);
        self.forget_read();
        let end = end.min(self.taken.end_from(offset));
        if offset >= end {
            return Found::NotYet;
        }
        if let Some(bytes) = self.in_memory(offset) {
            return Found::Memory(bytes.slice(..index(end - offset).min(bytes.len())));
        }
        let next = self.in_memory.range(offset..).next();
        Found::File(next.map_or(end, |(next, _)| end.min(*next)) - offset)
    }

    /// The rest of the piece that holds `offset`.
    fn in_memory(&self, offset: u64) -> Option<Bytes> {
        let rest = |start: u64, bytes: &Bytes| {
            let skipped = index(offset - start);
            (skipped < bytes.len()).then(|| bytes.slice(skipped..))
        };
        let piece = self.in_memory.range(..=offset).next_back();
        if let Some(bytes) = piece.and_then(|(start, piece)| rest(*start, &piece.bytes)) {
            return Some(bytes);
        }
        let (start, (kept, end)) = self.kept.range(..=offset).next_back()?;
        if *end <= offset {
            return None;
        }
        rest(*start, &kept.bytes()?)
    }

    /// Lets go of what all readers have had.
    fn forget_read(&mut self) {
        let slowest = self.slowest_reader().unwrap_or(u64::MAX);
        while let Some(first) = self.kept.first_entry()
            && first.get().1 <= slowest
        {
            first.remove();
        }
    }

    /// Lets go of everything in memory: it is of no use any more.
    pub(super) fn clear(&mut self) {
        self.in_memory.clear();
        self.unwritten.clear();
        self.unwritten_bytes = 0;
        self.kept.clear();
    }
}

#[cfg(test)]
impl Pieces {
    /// What is held for writing and hashing.
    pub(super) fn bytes_in_memory(&self) -> usize {
        self.in_memory.values().map(|piece| piece.bytes.len()).sum()
    }
}

/// A distance within one piece.
fn index(distance: u64) -> usize {
    usize::try_from(distance).unwrap_or(usize::MAX)
}
