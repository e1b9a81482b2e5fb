//! Blocks of memory for bytes on their way into a file, used again and again.
//!
//! What the network hands over lies in buffers of any size that are rarely full, each kept alive by the smallest part of it:
//! held as it comes, it costs twice the memory, in pieces that nobody else can use. A copy costs less than that.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// The size of a block: with a thousandth of a system call per kilobyte and hardly a round of any lock.
pub(super) const BLOCK: usize = 128 * 1024;

/// Blocks that stay for the next use: as many as the budget allows.
const MOST: usize = 64;

/// Where blocks come from and go back to. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Blocks(Arc<Mutex<Vec<Box<[u8]>>>>);

/// A block that is being filled, and then read until nobody has a part of it any more.
#[derive(Debug)]
pub(super) struct Block {
    bytes: Box<[u8]>,
    length: usize,
    home: Blocks,
}

impl Blocks {
    /// An empty block.
    pub(super) fn take(&self) -> Block {
        let used = self.free().pop();
        Block {
            bytes: used.unwrap_or_else(|| vec![0; BLOCK].into()),
            length: 0,
            home: self.clone(),
        }
    }

    fn free(&self) -> MutexGuard<'_, Vec<Box<[u8]>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Block {
    pub(super) const fn len(&self) -> usize {
        self.length
    }

    /// Takes as many of these bytes as there is room for, and tells how many.
    pub(super) fn fill(&mut self, bytes: &[u8]) -> usize {
        let room = &mut self.bytes[self.length..];
        let length = bytes.len().min(room.len());
        room[..length].copy_from_slice(&bytes[..length]);
        self.length += length;
        length
    }

    /// Lets `read` fill what is left of it, at most `limit` bytes, and tell how many those are.
    pub(super) fn fill_by<E>(
        &mut self,
        limit: usize,
        read: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        let end = self.length.saturating_add(limit).min(BLOCK);
        let room = &mut self.bytes[self.length..end];
        let most = room.len();
        let length = read(room)?.min(most);
        self.length += length;
        Ok(length)
    }

    /// What is in it. Where that is little, the block is free again at once.
    pub(super) fn into_bytes(self) -> Bytes {
        if self.length < BLOCK / 2 {
            Bytes::copy_from_slice(self.as_ref())
        } else {
            Bytes::from_owner(self)
        }
    }
}

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut free = self.home.free();
        if free.len() < MOST {
            free.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_takes_what_it_has_room_for_and_is_used_again_when_nobody_reads_it() {
        let blocks = Blocks::default();
        let mut block = blocks.take();
        assert_eq!(block.fill(&[1; 100]), 100);
        assert_eq!(block.fill(&vec![2; BLOCK]), BLOCK - 100);
        assert_eq!((block.fill(&[3]), block.len()), (0, BLOCK));
        let bytes = block.into_bytes();
        let part = bytes.slice(99..101);
        drop(bytes);
        assert_eq!(blocks.free().len(), 0);
        assert_eq!(part, [1, 2][..]);
        drop(part);
        assert_eq!(blocks.free().len(), 1);
        assert_eq!(blocks.take().len(), 0);
    }

    #[test]
    fn a_block_with_little_in_it_is_free_at_once() {
        let blocks = Blocks::default();
        let mut block = blocks.take();
        block.fill(b"little");
        let bytes = block.into_bytes();
        assert_eq!((bytes, blocks.free().len()), (b"little"[..].into(), 1));
    }

    #[test]
    fn no_more_blocks_stay_than_are_worth_it() {
        let blocks = Blocks::default();
        let many: Vec<_> = (0..MOST + 5).map(|_| blocks.take()).collect();
        drop(many);
        assert_eq!(blocks.free().len(), MOST);
    }
}
