//! The bytes of a blob, or of a part of it, as they arrive.

use std::{io, ops::Range};

use bytes::Bytes;
use reqwest::Response;

use super::{
    answer::Answer,
    body::{self, Pace},
    content_encoding::{ContentEncoding, Unpacker},
    error::{Error, Operation, Result},
    limiter::Slot,
};

/// The bytes of a blob as they arrive. They are not hashed here: whoever stores them does. It holds a connection of its
/// registry until it is dropped.
#[derive(Debug)]
pub struct BlobStream {
    response: Response,
    unpacker: Option<Unpacker>,
    operation: Operation,
    slot: Slot,
    pace: Pace,
    range: Range<u64>,
    /// Where the next piece begins.
    position: u64,
}

impl BlobStream {
    /// A stream of these bytes out of a blob.
    pub(super) fn new(
        response: Response,
        operation: Operation,
        slot: Slot,
        range: Range<u64>,
    ) -> Self {
        Self {
            response,
            unpacker: None,
            operation,
            slot,
            pace: Pace::default(),
            position: range.start,
            range,
        }
    }

    /// The same, of an answer whose bytes are packed.
    pub(super) fn unpacked(self) -> Self {
        Self {
            unpacker: Some(Unpacker::new()),
            ..self
        }
    }

    /// How the answer says that its bytes are packed.
    pub(super) fn encoding(&self) -> Option<ContentEncoding> {
        ContentEncoding::of(self.response.headers())
    }

    /// Where in the blob the first byte of the stream belongs. It is not where it was asked to be when the server gives whole
    /// blobs only.
    pub const fn offset(&self) -> u64 {
        self.range.start
    }

    /// Where in the blob the stream ends; before what was asked for when the server gives less at once.
    pub const fn end(&self) -> u64 {
        self.range.end
    }

    /// How many connections of the registry are in use, this one included.
    pub fn connections(&self) -> usize {
        self.slot.connections()
    }

    /// The next piece; nothing when all has arrived.
    ///
    /// # Errors
    /// When the connection breaks or stands still, and when more or less comes than was promised. Nothing beyond the end is
    /// ever given out.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        let Some(piece) = self.next_piece().await? else {
            if self.position < self.range.end {
                return Err(self.wrong_size(false));
            }
            return Ok(None);
        };
        self.position += piece.len() as u64;
        if self.position > self.range.end {
            return Err(self.wrong_size(true));
        }
        Ok(Some(piece))
    }

    /// The next piece as it belongs into the blob.
    async fn next_piece(&mut self) -> Result<Option<Bytes>> {
        if self.unpacker.is_none() {
            return self.received().await;
        }
        loop {
            if let Some(piece) = self.unpack(Unpacker::next)? {
                return Ok(Some(piece));
            }
            match self.received().await? {
                Some(packed) => self.unpack(|unpacker| {
                    unpacker.feed(packed);
                    Ok(None)
                })?,
                None => return self.unpack(Unpacker::finish),
            };
        }
    }

    /// The next piece as it came.
    async fn received(&mut self) -> Result<Option<Bytes>> {
        let piece = body::next_chunk(&mut self.response, &mut self.pace, &self.operation).await?;
        if let Some(piece) = &piece {
            self.slot.note_bytes(piece.len());
        }
        Ok(piece)
    }

    fn unpack(
        &mut self,
        step: impl FnOnce(&mut Unpacker) -> io::Result<Option<Bytes>>,
    ) -> Result<Option<Bytes>> {
        let piece = self.unpacker.as_mut().map_or(Ok(None), step);
        piece.map_err(|_| Error::UnexpectedAnswer {
            operation: self.operation.clone(),
            answer: Answer::of_status(self.response.status()),
            problem: "its Content-Encoding says gzip, which its bytes are not, or not all of them",
        })
    }

    fn wrong_size(&self, longer: bool) -> Error {
        Error::SizeMismatch {
            operation: self.operation.clone(),
            expected: self.range.end - self.range.start,
            actual: self.position - self.range.start,
            longer,
        }
    }
}
